"""Nine architectures in five forms, and small models of other kinds: each explained right.

Grad-CAM is written here once more, without a cut through the network: a layer's own ``call`` is
wrapped, whatever model or model in a model it lies in. ``OWN_MODELS=all`` runs all nine; else three
stand for them.
"""

import contextlib
import functools
import os

from cam_helpers import backbones, cams, compiled, faithfulness, gradients, layers, models
from cam_helpers.backend import keras, tf
import numpy as np
import pytest

L = keras.layers
NAMES = [name for name in backbones.NETWORKS if name != "MobileNet-1.0"]
SOME = ["MobileNet", "VGG16", "Xception"]
CHOSEN = NAMES if os.environ.get("OWN_MODELS") == "all" else SOME
CLASSES = 3


# Grad-CAM by hand


@contextlib.contextmanager
def changed(operation, change):
    """Put a function after a layer, and note what it returns."""
    call, noted = operation.call, []

    def with_change(*args, **kwargs):
        noted.append(change(call(*args, **kwargs)))
        return noted[-1]

    operation.call = with_change
    try:
        yield noted
    finally:
        operation.call = call


def find(model, path):
    """The layer or operation at a path."""
    name, _, rest = path.partition("/")
    graph = getattr(model, "_functional", model)
    (operation,) = [each for each in graph.operations if each.name == name]
    return find(operation, rest) if rest else operation


def by_hand(model, path, images):
    """Grad-CAM of each class (classes, h, w), the gradients that it averages, the feature maps."""
    with tf.GradientTape(persistent=True) as tape:

        def watched(output):
            tape.watch(output)
            return output

        with changed(find(model, path), watched) as noted:
            logits = model(images, training=False)
        each = [logits[0, k] for k in range(CLASSES)]
    (feature_maps,) = noted  # of one call
    by_class = [tape.gradient(logit, feature_maps)[0] for logit in each]
    by_class, feature_maps = (np.float32(found) for found in (by_class, feature_maps[0]))
    weights = by_class.mean(axis=(1, 2))  # (classes, maps)
    maps = np.einsum("ck,hwk->chw", weights, feature_maps)
    return np.maximum(maps, 0), by_class, feature_maps


def slope(model, path, images, step):
    """By how much each logit changes if the layer puts out a step more, from half a step less."""
    ends = []
    for half in (step / 2, -step / 2):
        with changed(find(model, path), lambda output, half=half: output + half):
            ends.append(model(images, training=False)[0].numpy().astype(np.float64))
    return ends[0] - ends[1]


def close(found, expected, tolerance):
    """Equal to a share of the highest value; and there is something to be equal."""
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# nine architectures in five forms


@functools.cache
def parts(name):
    """A backbone, a new head, and an image: random, but with activations of a usual size."""
    keras.utils.set_random_seed(3)
    backbone = build(name)
    wake(backbone)
    head = [L.GlobalAveragePooling2D(name="average"), L.Dense(CLASSES, name="logits")]
    plain(backbone, head)
    # Where class 0 has no evidence class 1 has; large, as float16 holds no small gradients.
    kernel = 100 * head[1].kernel.numpy()
    kernel[:, 1] = -kernel[:, 0]
    head[1].kernel.assign(kernel)
    return backbone, head


def build(name):
    size = 139 if name == "InceptionV3" else 96  # the smallest with 3 × 3 cells at the end
    options = {"weights": None, "include_top": False, "input_shape": (size, size, 3)}
    model = getattr(keras.applications, name)(**options)
    if name == "VGG16":  # without its last pooling, for cam
        return keras.Model(model.inputs[0], model.get_layer("block5_conv3").output, name="vgg16")
    return model


def image(backbone):
    shape = (1, *backbone.input_shape[1:])
    return np.random.default_rng(0).normal(0, 0.5, shape).astype(np.float32)


def wake(backbone):
    """Normalise random activations, else they fade layer by layer; by half, else rounding grows."""
    norms = [each for each in backbone.layers if isinstance(each, L.BatchNormalization)]
    shape = (8, *backbone.input_shape[1:])
    for norm in norms:
        norm.momentum = 0.0
    backbone(np.random.default_rng(1).normal(0, 0.5, shape).astype(np.float32), training=True)
    for each in backbone.layers:
        if type(each).__name__ == "LayerScale":  # of ConvNeXt, which starts with branches of 1e-6
            each.gamma.assign(0.3 + 0 * each.gamma)
    for norm in norms:
        norm.moving_variance.assign(4 * norm.moving_variance)


def plain(backbone, head):
    return keras.Model(backbone.inputs[0], head[1](head[0](backbone.outputs[0])))


def in_a_sequential(backbone, head):
    return keras.Sequential([keras.Input(backbone.input_shape[1:]), backbone, *head])


def in_a_functional(backbone, head):
    x = inputs = keras.Input(backbone.input_shape[1:])
    x = L.Rescaling(2.0, offset=0.25)(L.RandomFlip()(x))
    return keras.Model(inputs, L.Dropout(0.5)(head[1](head[0](backbone(x)))))


def of(form, name, folder):
    """A model of a form, images for it, and the backbone in it; None if it is not nested."""
    backbone, head = parts(name)
    images = image(backbone)
    if form == "plain":
        return plain(backbone, head), images, None
    if form == "sequential":
        return in_a_sequential(backbone, head), images, backbone
    if form == "mixed precision":
        half = mixed(name)
        half.set_weights(backbone.get_weights())
        return in_a_sequential(half, head), images, half
    model = in_a_functional(backbone, head)
    if form == "saved":
        model.save(folder / "model.keras")
        model = models.load_model(folder / "model.keras")
        assert model.get_layer(backbone.name) is not backbone
        backbone = model.get_layer(backbone.name)
    return model, (images - 0.25) / 2, backbone


def mixed(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return build(name)
    finally:
        keras.config.set_dtype_policy(before)


@functools.cache
def expected(name):
    """By hand on the plain form: for the last layer, and one inside."""
    model = plain(*parts(name))
    inside = layers.map_layers(model)
    inside = inside[int(0.7 * len(inside))]
    last = layers.explainable_layer(model)
    return {path: by_hand(model, path, image(model)) for path in (last, inside)}


FORMS = ["plain", "sequential", "functional", "saved", "mixed precision"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CHOSEN)
def test_a_backbone_is_explained_right_in_each_form(name, form, tmp_path):
    model, images, backbone = of(form, name, tmp_path)
    paths = dict(zip(names(parts(name)[0]), names(backbone or model), strict=False))
    inside = f"{backbone.name}/" if backbone else ""
    plain_maps = {inside + paths[layer]: maps for layer, (maps, *_) in expected(name).items()}
    explained_right(model, images, plain_maps, half=form == "mixed precision")


def names(model):
    """Names of its layers and operations; Keras numbers those of keras.ops anew in each model."""
    return [node.operation.name for node in layers.nodes(model)]


def explained_right(model, images, plain_maps, half):
    # float16 keeps 11 bits.
    tolerance = 2e-2 if half else 1e-4
    last = layers.explainable_layer(model)
    assert last == next(iter(plain_maps))
    batch, classes = np.repeat(images, CLASSES, axis=0), range(CLASSES)
    for path, of_plain in plain_maps.items():
        maps, by_class, feature_maps = by_hand(model, path, images)
        found = cams.grad_cam(model, batch, classes, layer=path)
        if half and path != last:  # eager and compiled round otherwise, which grows on the way back
            for one, other in ((found, maps), (found, of_plain)):
                assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.95
        else:
            close(found, maps, tolerance)
            close(found, of_plain, tolerance)
        if path == last:
            np.testing.assert_array_equal(cams.grad_cam(model, batch, classes), found)
            contributions = np.maximum(cams.cam(model, batch, classes), 0)
            close(found, contributions / contributions[0].size, tolerance)
        own = compiled.gradient_map(model, path, all_gradients)(batch, np.int32(classes)).numpy()
        if not half:  # whose logits are too coarse for a small step
            close(own, by_class, tolerance)
            step = 3e-4 * np.linalg.norm(feature_maps) * own[0] / np.linalg.norm(own[0])
            rise = slope(model, path, images, step)[0]
            np.testing.assert_allclose(rise, np.sum(own[0] * step), rtol=3e-2)


def all_gradients(_, at_each_cell):
    return at_each_cell


def test_mobilenet_that_knows_imagenet_is_explained_right(mobilenet, tmp_path):
    last = mobilenet.model.get_layer(mobilenet.layer).output
    backbone = keras.Model(mobilenet.model.inputs[0], last, name="mobilenet")
    keras.utils.set_random_seed(0)
    head = [L.GlobalAveragePooling2D(name="average"), L.Dense(CLASSES, name="logits")]
    model, batch = plain(backbone, head), image(backbone)
    last = layers.explainable_layer(model)
    plain_maps = {path: by_hand(model, path, batch)[0] for path in (last, "conv_pw_9_relu")}
    explained_right(model, batch, plain_maps, half=False)
    save_and_load = tmp_path / "model.keras"
    in_a_functional(backbone, head).save(save_and_load)
    plain_maps = {f"{backbone.name}/{path}": maps for path, maps in plain_maps.items()}
    loaded = models.load_model(save_and_load)
    explained_right(loaded, (batch - 0.25) / 2, plain_maps, half=False)


# small models of other kinds


def network(size=(12, 10, 3), classes=3, head=L.Flatten, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(size)
    x = L.Conv2D(5, 3, activation="relu", name="first")(inputs)
    x = L.Conv2D(6, 3, activation="relu", name="last")(x)
    return keras.Model(inputs, L.Dense(classes, name="logits")(head()(x)), name="network")


def noise(size=(12, 10, 3), count=2):
    return np.random.default_rng(0).normal(size=(count, *size)).astype(np.float32)


@pytest.mark.parametrize("method", [cams.grad_cam, cams.hires_cam, gradients.saliency])
def test_one_sigmoid_is_explained_for_and_against(method):
    model = network(classes=1)
    kernel, bias = model.get_layer("logits").get_weights()
    sigmoid = network(classes=1)
    sigmoid.get_layer("logits").activation = keras.activations.sigmoid
    one = models.to_logits(sigmoid)
    two = network(classes=2)
    two.get_layer("logits").set_weights([np.hstack([-kernel, kernel]), np.hstack([-bias, bias])])
    for class_index in (0, 1):
        close(method(one, noise(), class_index), method(two, noise(), class_index), 1e-6)
    assert np.abs(method(one, noise(), 0) - method(one, noise(), 1)).max() > 1e-3
    drawn = noise()[..., 0]
    found = faithfulness.deletion(one, noise(), drawn, 1).probabilities[:, 0]
    np.testing.assert_allclose(found, sigmoid(noise())[:, 0], atol=1e-6)


def test_a_grey_model_is_the_colour_model_with_its_kernels_added_up():
    colour, grey = network((12, 10, 3)), network((12, 10, 1))
    kernel, *others = colour.get_weights()
    grey.set_weights([kernel.sum(axis=2, keepdims=True), *others])
    batch = noise((12, 10, 1))
    for layer in ("first", "last"):
        expected = cams.grad_cam(colour, np.repeat(batch, 3, axis=3), 1, layer=layer)
        close(cams.grad_cam(grey, batch, 1, layer=layer), expected, 1e-5)


def test_an_input_of_any_size_is_that_of_each_size():
    open_ended = network((None, None, 1), head=L.GlobalAveragePooling2D)
    for size in [(12, 10, 1), (7, 20, 1)]:
        fixed = network(size, head=L.GlobalAveragePooling2D)
        fixed.set_weights(open_ended.get_weights())
        for method in (cams.grad_cam, cams.score_cam, gradients.saliency):
            expected = method(fixed, noise(size), 2)
            assert expected.shape[1:3] in [size[:2], (size[0] - 4, size[1] - 4)]
            close(method(open_ended, noise(size), 2), expected, 1e-5)


def test_of_several_outputs_one_is_chosen_with_one_line():
    single = network()
    side = L.Dense(4, name="side")(L.GlobalAveragePooling2D()(single.get_layer("first").output))
    both = keras.Model(single.inputs, [side, single.outputs[0]])
    with pytest.raises(ValueError, match="expected a model with one output, received"):
        cams.grad_cam(both, noise(), 0)
    chosen = keras.Model(both.inputs, both.get_layer("logits").output)
    close(cams.grad_cam(chosen, noise(), 1), cams.grad_cam(single, noise(), 1), 1e-6)
    chosen = keras.Model(both.inputs, both.get_layer("side").output)
    assert layers.explainable_layer(chosen) == "first"
    kernel = both.get_layer("side").kernel.numpy()[:, 3]
    maps = np.maximum(single.get_layer("first")(noise()), 0) @ kernel
    close(cams.grad_cam(chosen, noise(), 3), np.maximum(maps, 0) / maps[0].size, 1e-5)


class Own(keras.Model):
    """A network as a class, which keeps no graph."""

    def __init__(self, looks=False):
        super().__init__()
        self.first = L.Conv2D(5, 3, activation="relu", name="first")
        self.last = L.Conv2D(6, 3, activation="relu", name="last")
        self.head = keras.Sequential([L.Flatten(), L.Dense(3)])
        self.looks = looks

    def call(self, x, training=False):
        if self.looks and np.asarray(x).mean() > 0:
            x = -x
        return self.head(self.last(self.first(x)))


def test_a_subclassed_model_needs_one_line():
    functional, own = network(), Own()
    with pytest.raises(
        ValueError, match=r"received Own 'own.*', which has no graph: rebuild it as"
    ):
        cams.grad_cam(own, noise(), 0)
    x = keras.Input((12, 10, 3))
    graph = keras.Model(x, own.call(x))
    own.set_weights(functional.get_weights())
    np.testing.assert_allclose(own(noise()), functional(noise()), atol=1e-6)
    for layer in ("first", "last"):
        expected = cams.grad_cam(functional, noise(), 1, layer=layer)
        close(cams.grad_cam(graph, noise(), 1, layer=layer), expected, 1e-6)
    close(gradients.saliency(graph, noise(), 1), gradients.saliency(functional, noise(), 1), 1e-6)


def test_a_subclassed_model_that_looks_at_values_has_no_graph():
    x = keras.Input((12, 10, 3))
    with pytest.raises(ValueError, match="A KerasTensor"):
        Own(looks=True).call(x)


def test_a_small_model_in_mixed_precision():
    full, before = network(), keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = network()
    finally:
        keras.config.set_dtype_policy(before)
    half.set_weights(full.get_weights())
    for method in (cams.grad_cam, cams.hires_cam, cams.layer_cam, gradients.saliency):
        found, expected = method(half, noise(), 1), method(full, noise(), 1)
        assert found.dtype == np.float32
        close(found, expected, 1e-2)
        assert np.abs(found - expected).max() > 0
