"""The maps: identities, brute force, an independent library, and each error by its message."""

import gc
import itertools
import re
import weakref

from cam_helpers import cams, compiled, layers, models, photos
from cam_helpers.backend import keras, tf
from cam_helpers.once import _MADE
from cam_helpers.placement import ReceptiveField
import numpy as np
import pytest
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
from tf_keras_vis.scorecam import Scorecam
from tf_keras_vis.utils.scores import CategoricalScore

L = keras.layers
GRADIENT_METHODS = [cams.grad_cam, cams.grad_cam_plus_plus, cams.hires_cam, cams.layer_cam]
METHODS = [*GRADIENT_METHODS, cams.score_cam]
SIZE = (12, 10, 2)


def network(*head, classes=4, seed=0, size=SIZE):
    """Two convolutions and a head, by default one that weighs each cell on its own."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(size)
    x = L.Conv2D(5, 3, activation="relu", name="first")(inputs)
    x = L.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="last")(x)
    for layer in head or [L.Flatten()]:
        x = layer(x)
    return keras.Model(inputs, L.Dense(classes, name="logits")(x), name="network")


def pooled(**options):
    return network(L.GlobalAveragePooling2D(), **options)


def images(count=3, seed=1, size=SIZE):
    return np.random.default_rng(seed).normal(size=(count, *size)).astype(np.float32)


def same(found, expected, tolerance=1e-5):
    assert found.dtype == np.float32
    assert found.any()
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


# identities


def test_cam_is_what_each_cell_adds_to_the_score():
    model = pooled()
    heatmaps = cams.cam(model, images(), 2)
    bias = model.get_layer("logits").bias.numpy()[2]
    np.testing.assert_allclose(
        heatmaps.mean(axis=(1, 2)), model(images()).numpy()[:, 2] - bias, atol=1e-5
    )
    assert heatmaps.min() < 0


def test_with_a_pooled_head_grad_cam_is_cam_is_hires_cam():
    model = pooled()
    cells = 5 * 4
    expected = np.maximum(cams.cam(model, images(), [0, 1, 2]), 0) / cells
    same(cams.grad_cam(model, images(), [0, 1, 2]), expected)
    same(cams.hires_cam(model, images(), [0, 1, 2]), expected)


def test_with_a_flattened_head_they_differ():
    model = network()
    grad, hires = (method(model, images(), 0) for method in (cams.grad_cam, cams.hires_cam))
    assert np.abs(grad - hires).max() > 0.1 * hires.max()


def test_hires_cam_before_its_relu_adds_up_to_the_score_of_a_linear_head():
    model = network()
    kernel = model.get_layer("logits").kernel.numpy()[:, 1].reshape(5, 4, 6)
    feature_maps = layers.split(model, "last")(images())[0].numpy()
    same(cams.hires_cam(model, images(), 1), np.maximum((feature_maps * kernel).sum(axis=-1), 0))
    positive = (feature_maps * np.maximum(kernel, 0)).sum(axis=-1)
    same(cams.layer_cam(model, images(), 1), positive)


def grad_cam_plus_plus_by_brute_force(model, image, class_index):
    """Equation 10 of the paper: derivatives of Y = exp(y) by differences of the head itself."""
    feature_maps, scores = (x.numpy()[0] for x in layers.split(model, "last")(image[np.newaxis]))
    dense = model.get_layer("logits")
    kernel, bias = (np.float64(x)[..., class_index] for x in dense.get_weights())
    maps, step = np.float64(feature_maps), 0.05

    def big_y(change):
        return np.exp((maps + change).reshape(-1) @ kernel + bias - scores[class_index])

    weights = np.zeros(maps.shape[-1])
    for k in range(maps.shape[-1]):
        for row, column in np.ndindex(maps.shape[:2]):
            change = np.zeros_like(maps)
            change[row, column, k] = step
            values = np.array([big_y(n * change) for n in range(-3, 4)])
            first = values @ [-1, 9, -45, 0, 45, -9, 1] / (60 * step)
            second = values @ [2, -27, 270, -490, 270, -27, 2] / (180 * step**2)
            third = values @ [1, -8, 13, 0, -13, 8, -1] / (8 * step**3)
            denominator = 2 * second + maps[..., k].sum() * third
            if first > 1e-9:
                weights[k] += second / denominator * first
    return np.maximum(maps @ weights, 0)


def test_grad_cam_plus_plus_agrees_with_brute_force_derivatives():
    model = network()
    for index, image in enumerate(images()):
        expected = grad_cam_plus_plus_by_brute_force(model, image, index)
        same(cams.grad_cam_plus_plus(model, image[np.newaxis], index)[0], expected)


def test_grad_cam_plus_plus_survives_large_scores():
    model = network()
    model.get_layer("logits").bias.assign_add([500.0] * 4)
    assert np.isfinite(cams.grad_cam_plus_plus(model, images())).all()


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_a_constant_added_to_the_score_changes_nothing_and_a_factor_scales(method):
    model = network()
    before = method(model, images(), 1)
    model.get_layer("logits").bias.assign_add([7.0] * 4)
    np.testing.assert_array_equal(method(model, images(), 1), before)
    if method is not cams.grad_cam_plus_plus:  # its alpha depends on the score's scale
        model.get_layer("logits").kernel.assign(3 * model.get_layer("logits").kernel)
        same(method(model, images(), 1), 3 * before)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_images_one_by_one(method):
    model, classes = network(), [3, 0, 1]
    together = method(model, images(), classes)
    for index, image in enumerate(images()):
        same(together[index], method(model, image[np.newaxis], classes[index])[0])
    same(method(model, images(), classes, batch_size=2), together)


@pytest.mark.parametrize("method", [*METHODS, cams.cam])
def test_classes_one_for_all_one_for_each_or_the_top(method):
    model = pooled(seed=3)
    top = model(images()).numpy().argmax(axis=1)
    assert len(set(top)) > 1
    np.testing.assert_array_equal(method(model, images()), method(model, images(), top))
    np.testing.assert_array_equal(method(model, images(), 2), method(model, images(), [2, 2, 2]))
    assert np.abs(method(model, images(), 2) - method(model, images(), 3)).max() > 0.01


@pytest.mark.parametrize("method", [*METHODS, cams.cam])
def test_one_logit_is_two_classes(method):
    one = pooled(classes=1)
    two = pooled(classes=2)
    two.get_layer("first").set_weights(one.get_layer("first").get_weights())
    two.get_layer("last").set_weights(one.get_layer("last").get_weights())
    kernel, bias = one.get_layer("logits").get_weights()
    options = {"layer": "first"} if method in GRADIENT_METHODS else {}
    for class_index, factor in [(0, -1), (1, 1)]:
        both = [np.zeros_like(kernel)] * 2
        both[class_index] = factor * kernel
        biases = np.zeros(2)
        biases[class_index] = factor * bias[0]
        two.get_layer("logits").set_weights([np.hstack(both), biases])
        expected = method(two, images(), class_index, **options)
        same(method(one, images(), class_index, **options), expected)
    top = (one(images()).numpy()[:, 0] > 0).astype(int)
    np.testing.assert_array_equal(method(one, images()), method(one, images(), top))


# with scores


@pytest.mark.parametrize("batch_size", [2, 32])
@pytest.mark.parametrize("asked", [None, 2, [3, 0, 1]])
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_scores_come_with_the_maps_they_are_of(method, asked, batch_size):
    model, batch = network(), images()
    found = method(model, batch, asked, batch_size=batch_size, return_scores=True)
    np.testing.assert_array_equal(
        found.heatmaps, method(model, batch, asked, batch_size=batch_size)
    )
    logits = model(batch).numpy()
    classes = logits.argmax(axis=1) if asked is None else np.broadcast_to(asked, 3)
    np.testing.assert_array_equal(found.class_index, classes)
    np.testing.assert_allclose(found.scores, logits[np.arange(3), classes], rtol=1e-5)
    assert [each.dtype for each in found] == [np.float32, np.int32, np.float32]


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_scores_of_one_logit_have_the_sign_of_the_class(method):
    model, batch = network(classes=1), images()
    logit = model(batch).numpy()[:, 0]
    for index, sign in ((0, -1), (1, 1)):
        found = method(model, batch, index, return_scores=True)
        np.testing.assert_allclose(found.scores, sign * logit, rtol=1e-5)
    found = method(model, batch, return_scores=True)
    np.testing.assert_array_equal(found.class_index, logit > 0)
    np.testing.assert_allclose(found.scores, np.abs(logit), rtol=1e-5)


def test_scores_cost_no_other_trace(monkeypatch):
    model, made = network(), []
    monkeypatch.setattr(compiled, "_derivative", counted(compiled._derivative, made))
    for return_scores in (False, True, False):
        cams.layer_cam(model, images(), 0, return_scores=return_scores)
    assert len(made) == 1


def counted(call, made):
    def counting(*arguments, **options):
        made.append(1)
        return call(*arguments, **options)

    return counting


# Score-CAM by hand


def score_cam_by_hand(model, image, class_index, weighting):
    feature_maps = layers.split(model, "last")(image[np.newaxis])[0].numpy()[0]
    weights, logits = np.zeros(feature_maps.shape[-1]), {}
    for k in range(feature_maps.shape[-1]):
        mask = tf.image.resize(feature_maps[..., k : k + 1], image.shape[:2]).numpy()
        if np.ptp(mask) > 0:
            mask = (mask - mask.min()) / np.ptp(mask)
            logits[k] = model((image * mask)[np.newaxis]).numpy()[0]
    used = list(logits)
    y = np.array([logits[k] for k in used])
    p = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
    nothing = np.exp(model(np.zeros_like(image)[np.newaxis]).numpy()[0])
    weights[used] = {
        "probability": p[:, class_index],
        "increase": p[:, class_index] - (nothing / nothing.sum())[class_index],
        "softmax": np.exp(y[:, class_index]) / np.exp(y[:, class_index]).sum(),
    }[weighting]
    return np.maximum(feature_maps @ weights, 0)


@pytest.mark.parametrize("weighting", ["probability", "increase", "softmax"])
def test_score_cam_agrees_with_its_definition(weighting):
    model = network()
    for index, image in enumerate(images()):
        found = cams.score_cam(
            model, image[np.newaxis], index, weighting=weighting, placement="resize", batch_size=4
        )
        same(found[0], score_cam_by_hand(model, image, index, weighting))


def test_score_cam_of_few_maps_takes_those_of_largest_deviation():
    model, image = network(), images(1)
    feature_maps = layers.split(model, "last")(image)[0].numpy()[0]
    two = np.argsort(-feature_maps.std(axis=(0, 1)))[:2]
    weights = np.zeros(6)
    for k in two:
        alone = np.zeros((1, 5, 4, 6), np.float32)
        alone[..., k] = feature_maps[..., k]
        run = compiled.masked_scores(model)
        rows, columns = cams.interpolations((5, 4), SIZE[:2], "resize")
        scores = run(image[0], alone[..., k], rows, columns).numpy()
        weights[k] = compiled.softmax(scores)[0, 1]
    found = cams.score_cam(model, image, 1, max_maps=2, placement="resize")
    same(found[0], np.maximum(feature_maps @ weights, 0))


def test_score_cam_runs_the_network_for_no_constant_map(monkeypatch):
    model = network()
    kernel, bias = model.get_layer("last").get_weights()
    kernel[..., [1, 4]], bias[[1, 4]] = 0, [0, 3]  # dead, and alive everywhere
    model.get_layer("last").set_weights([kernel, bias])
    counted, real = [], compiled.masked_scores(model)

    def count(image, maps, rows, columns):
        counted.append(len(maps))
        return real(image, maps, rows, columns)

    monkeypatch.setattr(compiled, "masked_scores", lambda model: count)
    cams.score_cam(model, images(1), 0, batch_size=3)
    assert counted == [3, 1]
    model.get_layer("last").set_weights([np.zeros_like(kernel), bias])
    assert not cams.score_cam(model, images(1), 0).any()
    assert counted == [3, 1]


def test_score_cam_lays_its_masks_where_the_network_looked():
    model = network()
    field = models.receptive_field(model, "last")
    assert field.start == (2, 2)
    default = cams.score_cam(model, images(), 0)
    np.testing.assert_array_equal(cams.score_cam(model, images(), 0, placement=field), default)
    resized = cams.score_cam(model, images(), 0, placement="resize")
    assert np.abs(resized - default).max() > 1e-3 * default.max()


def test_score_cam_runs_the_network_for_no_map_that_is_constant_where_shown(monkeypatch):
    monkeypatch.setattr(compiled, "masked_scores", lambda model: pytest.fail)
    only_the_last_cell = ReceptiveField(size=(9, 9), stride=(100, 100), start=(-1000, -1000))
    assert not cams.score_cam(network(), images(1), 0, placement=only_the_last_cell).any()


def test_score_cam_survives_large_logits():
    model = network()
    model.get_layer("logits").bias.assign_add([500.0, 0, 0, 0])
    heatmap = cams.score_cam(model, images(1), 0, placement="resize")
    feature_maps = layers.split(model, "last")(images(1))[0].numpy()
    same(heatmap, np.maximum(feature_maps[..., np.ptp(feature_maps, (0, 1, 2)) > 0].sum(-1), 0))


def test_score_cam_shows_progress_when_asked(capfd):
    cams.score_cam(network(), images(1), 0)
    assert capfd.readouterr().err == ""
    cams.score_cam(network(), images(1), 0, progress=True)
    assert "masks" in capfd.readouterr().err


# an independent library


def corner_to_corner(cells, image_size):
    """Where tf-keras-vis puts its masks: the corner cells on the corner pixels."""
    stride = tuple((b - 1) / (a - 1) for a, b in zip(cells, image_size, strict=True))
    return ReceptiveField(size=image_size, stride=stride, start=(0, 0))


def agree_with_tf_keras_vis(model, batch, classes, layer, maps=None):
    raw = {"penultimate_layer": layer, "seek_penultimate_conv_layer": False}
    raw |= {"expand_cam": False, "normalize_cam": False}
    score = CategoricalScore(classes)
    found = cams.grad_cam(model, batch, classes, layer=layer)
    same(found, np.asarray(Gradcam(model)(score, batch, **raw)), 1e-4)
    plus_plus = np.asarray(GradcamPlusPlus(model)(score, batch, **raw))
    own = cams.grad_cam_plus_plus(model, batch, classes, layer=layer, normalize_alpha=True)
    factor = np.exp([y[c] for y, c in zip(model(batch).numpy(), classes, strict=True)])
    same(own * factor[:, np.newaxis, np.newaxis], plus_plus, 1e-4)
    one = batch[:1]
    listed = keras.Model([model.input], model.output)  # tf-keras-vis passes its images as a list
    theirs = Scorecam(listed)(CategoricalScore(classes[:1]), one, max_N=maps, **raw)
    own = cams.score_cam(
        model,
        one,
        classes[0],
        layer=layer,
        max_maps=maps,
        placement=corner_to_corner(found.shape[1:], batch.shape[1:3]),
    )
    same(own, np.asarray(theirs), 1e-4)


def test_parity_on_a_small_network():
    agree_with_tf_keras_vis(network(), images(), [0, 1, 3], "last")


def test_parity_on_the_fashion_network(fashion_mnist):
    model = layers.to_logits(models.load_fashion_cnn())
    agree_with_tf_keras_vis(model, fashion_mnist.test_images[:4], [9, 2, 1, 1], "final", 128)


def test_parity_on_mobilenet(mobilenet):
    batch = mobilenet.preprocess(
        np.stack(
            [photos.fit(photos.sample_photo(name), (224, 224)) for name in ("cat", "espresso")]
        )
    )
    agree_with_tf_keras_vis(mobilenet.model, batch, [285, 967], mobilenet.layer, 64)


def test_parity_on_vgg16():
    vgg = models.load_backbone("VGG16", weights=None)
    photo = photos.fit(photos.sample_photo("cat"), vgg.input_size)
    batch = vgg.preprocess(photo[np.newaxis])
    agree_with_tf_keras_vis(vgg.model, batch, [285], vgg.layer, 8)


# every kind of model


def test_mixed_precision_gives_float32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = pooled()
    finally:
        keras.config.set_dtype_policy("float32")
    exact = pooled()
    exact.set_weights(model.get_weights())
    for method in METHODS:
        same(method(model, images(), 1), method(exact, images(), 1), 0.01)


def test_a_nested_model_gives_the_map_of_the_same_layers_unnested():
    flat = pooled()
    backbone = keras.Model(flat.input, flat.get_layer("last").output, name="backbone")
    outer = keras.Sequential(
        [keras.Input(SIZE), backbone, L.GlobalAveragePooling2D(), L.Dense(4)], name="outer"
    )
    outer.layers[-1].set_weights(flat.get_layer("logits").get_weights())
    for method in [*METHODS, cams.cam]:
        same(method(outer, images(), 1), method(flat, images(), 1))
    same(
        cams.layer_cam(outer, images(), 1, layer="backbone/first"),
        cams.layer_cam(flat, images(), 1, layer="first"),
    )


def test_variable_image_size():
    model = pooled(size=(None, None, 2))
    for size in [(12, 10, 2), (21, 15, 2)]:
        batch, field = images(size=size), models.receptive_field(model, "last", size[:2])
        fixed = pooled(size=size)
        same(cams.grad_cam(model, batch, 0), cams.grad_cam(fixed, batch, 0))
        placed = cams.score_cam(fixed, batch, 0, placement=field)
        same(cams.score_cam(model, batch, 0), placed)


def test_double_precision_images_and_unsigned_classes():
    model, batch = network(), images()
    expected = cams.grad_cam(model, batch, [0, 1, 2])
    doubled = cams.grad_cam(model, batch.astype(np.float64), np.array([0, 1, 2], np.uint8))
    np.testing.assert_array_equal(doubled, expected)


@pytest.mark.parametrize("method", [*METHODS, cams.cam])
def test_an_output_given_as_a_list_or_a_dict_is_that_output(method):
    model = pooled()
    expected = method(model, images(), 1)
    for output in ([model.output], {"scores": model.output}):
        other = keras.Model(model.input, output)
        np.testing.assert_array_equal(method(other, images(), 1), expected)


def test_a_nested_models_name_means_its_explainable_layer():
    inputs = keras.Input(SIZE)
    x = L.MaxPooling2D(2)(L.Conv2D(5, 3, activation="relu", name="inner")(inputs))
    body = keras.Model(inputs, x, name="body")
    outer = keras.Sequential([keras.Input(SIZE), body, L.Flatten(), L.Dense(4)])
    for method in METHODS:
        expected = method(outer, images(), 1, layer="body/inner")
        np.testing.assert_array_equal(method(outer, images(), 1, layer="body"), expected)
        np.testing.assert_array_equal(method(outer, images(), 1), expected)


def test_integer_inputs_of_the_network_itself():
    inputs = keras.Input(SIZE, dtype="uint8")
    x = L.Conv2D(5, 3, activation="relu")(L.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    pixels = np.abs(images() * 50).round()
    assert cams.grad_cam(model, pixels, 1).any()
    expected = np.maximum(cams.cam(model, pixels, 1), 0) / (10 * 8)
    same(cams.grad_cam(model, pixels, 1), expected)


@pytest.mark.parametrize("weighting", ["probability", "increase", "softmax"])
def test_score_cam_of_no_varied_map_is_zero(weighting):
    model = network()
    dead = [0 * weight for weight in model.get_layer("last").get_weights()]
    model.get_layer("last").set_weights(dead)
    assert not cams.score_cam(model, images(), 0, weighting=weighting).any()


def test_an_activation_set_later_is_seen():
    model = network()
    cams.grad_cam(model, images(), 0)
    model.get_layer("logits").activation = keras.activations.softmax
    with pytest.raises(ValueError, match="which ends in softmax: explain"):
        cams.grad_cam(model, images(), 0)


def test_a_layer_that_is_named_needs_no_explainable_one():
    class Block(L.Layer):
        def call(self, x):
            return keras.ops.square(x)

    inputs = keras.Input(SIZE)
    x = L.Flatten()(Block(name="block")(inputs))
    model = keras.Model(inputs, L.Dense(3)(x))
    assert cams.grad_cam(model, images(), 0, layer="block").any()
    sentence = "cannot be followed.* Or choose placement='resize'"
    with pytest.raises(ValueError, match=sentence):
        cams.score_cam(model, images(), 0, layer="block")
    assert cams.score_cam(model, images(), 0, layer="block", placement="resize").any()


def test_options_of_one_model_are_kept_apart():
    model = network()
    plain = cams.grad_cam_plus_plus(model, images(), 0)
    normalized = cams.grad_cam_plus_plus(model, images(), 0, normalize_alpha=True)
    assert np.abs(plain - normalized).max() > 0.1 * plain.max()
    np.testing.assert_array_equal(cams.grad_cam_plus_plus(model, images(), 0), plain)


def test_a_layer_that_a_shortcut_goes_around_gets_its_whole_gradient():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SIZE)
    first = L.Conv2D(5, 3, padding="same", activation="relu", name="first")(inputs)
    second = L.Conv2D(5, 3, padding="same", activation="relu", name="second")(first)
    pooled_ = L.GlobalAveragePooling2D()(L.ReLU(name="out")(first + second * first))
    model = keras.Model(inputs, L.Dense(3)(pooled_))
    head = keras.Model(first, model.output)
    feature_maps = tf.constant(keras.Model(inputs, first)(images()))
    with tf.GradientTape() as tape:
        tape.watch(feature_maps)
        score = head(feature_maps)[:, 2]
    gradients = tape.gradient(score, feature_maps)
    weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    expected = tf.nn.relu(tf.reduce_sum(weights * feature_maps, axis=-1))
    same(cams.grad_cam(model, images(), 2, layer="first"), expected.numpy())


def test_nothing_of_the_caller_changes():
    model, batch = network(), images()
    kept, before, config = batch.copy(), model(batch).numpy(), str(model.get_config())
    for method in METHODS:
        first = method(model, batch, 0)
        np.testing.assert_array_equal(method(model, batch, 0), first)
    np.testing.assert_array_equal(batch, kept)
    np.testing.assert_array_equal(model(batch).numpy(), before)
    assert str(model.get_config()) == config


def test_traced_once_for_all_batch_sizes(monkeypatch):
    model, splits = network(), []
    real = layers.split
    monkeypatch.setattr(layers, "split", lambda *args: splits.append(args) or real(*args))
    for count in (1, 3, 2):
        cams.grad_cam(model, images(count), 0)
        cams.grad_cam(model, images(count), 0, layer="first")
    assert [layer for _, layer in splits] == ["last", "first"]


def test_weights_that_change_change_the_map():
    model = network()
    before = cams.grad_cam(model, images(), 0)
    model.get_layer("logits").kernel.assign(2 * model.get_layer("logits").kernel)
    same(cams.grad_cam(model, images(), 0), 2 * before)


def test_a_dropped_model_takes_its_compiled_functions_along():
    model = network()
    for method in METHODS:
        method(model, images(), 0)
    functions = [weakref.ref(made) for made in _MADE[model][1].values() if callable(made)]
    held = weakref.ref(model)
    assert len(functions) == 6
    del model
    gc.collect()
    assert held() is None
    assert [function() for function in functions] == [None] * 6


# errors

ERRORS = {
    "softmax": (
        {"model": lambda: keras.Sequential([network(), L.Softmax()], name="sure")},
        "expected a model that returns logits, received 'sure', which ends in softmax: explain "
        "models.to_logits(model).",
    ),
    "sigmoid": (
        {"model": lambda: keras.Sequential([network(classes=1), L.Activation("sigmoid")])},
        "which ends in sigmoid",
    ),
    "one image": (
        {"images": lambda: images()[0]},
        "expected images (batch, height, width, channels), received (12, 10, 2): "
        "images[np.newaxis] makes one image a batch.",
    ),
    "a list of pixels": ({"images": lambda: [1.0, 2.0]}, "received (2,): stack them."),
    "another size": (
        {"images": lambda: images(size=(10, 12, 2))},
        "expected images (None, 12, 10, 2), received (3, 10, 12, 2): resize or convert them to "
        "what 'network' takes.",
    ),
    "integers": (
        {"images": lambda: np.zeros((1, *SIZE), np.uint8)},
        "expected float images as 'network' wants them, received uint8: preprocess them first.",
    ),
    "no image": (
        {"images": lambda: images(0)},
        "expected at least one image, received an empty batch (0, 12, 10, 2).",
    ),
    "NaN": (
        {"images": lambda: np.where(np.arange(3) == 1, np.nan, images().T).T},
        "expected finite pixels, received NaN or infinite ones in image 1 (1 of 3 images): mend "
        "or leave it out.",
    ),
    "infinity": ({"images": lambda: images() * np.inf}, "in image 0 (3 of 3 images)"),
    "too high a class": (
        {"class_index": lambda: 4},
        "expected class_index from 0 to 3, received 4: there are 4.",
    ),
    "a negative class": (
        {"class_index": lambda: [0, -1, 2]},
        "from 0 to 3, received -1: there are 4.",
    ),
    "too few classes": (
        {"class_index": lambda: [0, 1]},
        "expected one class_index for all images or one for each of 3, received shape (2,).",
    ),
    "no integer": (
        {"class_index": lambda: 1.0},
        "expected class_index as an integer, one for each image, or None for the top class, "
        "received 1.0.",
    ),
    "a name": ({"class_index": lambda: "cat"}, "received 'cat'."),
    "an unknown layer": (
        {"layer": lambda: "conv9"},
        "layer 'conv9' is not in 'network'. Try one of: 'first', 'last'.",
    ),
    "a layer without a place": (
        {"layer": lambda: "logits"},
        "layer 'logits' has shape (None, 4); a map needs (batch, height, width, maps). Try one",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_gets_one_sentence(case):
    changes, sentence = ERRORS[case]
    asked = {"model": network, "images": images, "class_index": lambda: 0, **changes}
    for method in [cams.grad_cam, cams.score_cam]:
        with pytest.raises(ValueError, match=r".+") as error:
            method(**{name: make() for name, make in asked.items()})
        assert sentence in str(error.value)
        assert "\n" not in str(error.value)


def test_a_score_for_each_cell_is_no_score():
    flat = network()
    cells = keras.Model(flat.input, flat.get_layer("last").output, name="cells")
    with pytest.raises(ValueError, match=r"an output \(batch, classes\), received 'cells' with \("):
        cams.grad_cam(cells, images(), 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"weighting": "mean"},
            "expected weighting 'probability', 'increase' or 'softmax', received 'mean'.",
        ),
        ({"max_maps": 0}, "expected max_maps as an integer of 1 or more, received 0."),
        (
            {"placement": "centre"},
            "expected placement 'receptive_field', 'resize' or a ReceptiveField, received "
            "'centre'.",
        ),
    ],
)
def test_score_cam_names_its_choices(options, sentence):
    with pytest.raises(ValueError, match=r".+") as error:
        cams.score_cam(network(), images(), 0, **options)
    assert str(error.value) == sentence


@pytest.mark.parametrize("name", ["batch_size", "max_maps"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True])
def test_counts_are_integers_of_1_or_more(name, value):
    sentence = f"expected {name} as an integer of 1 or more, received {value!r}."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        cams.score_cam(network(), images(), 0, **{name: value})


def test_a_layer_behind_which_gradients_stop_is_named():
    class Stop(L.Layer):
        def call(self, x):
            return keras.ops.stop_gradient(x)

    with pytest.raises(ValueError, match="can be derived by layer 'last', received one"):
        cams.grad_cam(network(Stop(), L.Flatten()), images(), 0, layer="last")


def test_two_inputs_and_channels_first_are_refused():
    inputs = [keras.Input(SIZE, name="image"), keras.Input((3,))]
    x = L.Concatenate()([L.Flatten()(L.Conv2D(2, 3)(inputs[0])), inputs[1]])
    two = keras.Model(inputs, L.Dense(3)(x), name="two")
    with pytest.raises(ValueError, match="expected a model with one input, received 'two' with 2"):
        cams.grad_cam(two, images(), 0)
    inputs = keras.Input(SIZE)
    x = L.Flatten()(L.MaxPooling2D(2, data_format="channels_first", name="first")(inputs))
    first = keras.Model(inputs, L.Dense(3)(x))
    with pytest.raises(ValueError, match="expected channels last, received 'first' with channels"):
        cams.grad_cam(first, images(), 0)


def test_cam_takes_one_linear_dense_and_nothing_else():
    inputs = keras.Input(SIZE)
    x = L.Conv2D(4, 3, name="maps")(inputs)
    x = L.GlobalAveragePooling2D(keepdims=True)(x)
    model = keras.Model(inputs, L.Flatten()(L.Conv2D(4, 1, groups=2)(x)))
    with pytest.raises(ValueError, match="received another head: use grad_cam"):
        cams.cam(model, images(), 0)


def test_all_methods_take_the_same_arguments():
    for one, other in itertools.pairwise([*METHODS, cams.cam]):
        model, batch = pooled(), images(1)
        assert one(model, batch, 0).shape == other(model, batch, 0).shape == (1, 5, 4)
