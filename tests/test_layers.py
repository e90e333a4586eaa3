"""Which layer, and the network without its softmax: every kind of model a reader may bring."""

import gc
import weakref

from cam_helpers import cams, compiled, diagnosis, faithfulness, gradients, layers, models, once
from cam_helpers.backend import keras, tf
import numpy as np
import pytest

L = keras.layers


def conv_net(*head, name="net"):
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, name="conv")(inputs)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(name="relu")(x)
    x = L.MaxPooling2D(name="pool")(x)
    for layer in head or (L.Flatten(), L.Dense(5, activation="softmax", name="scores")):
        x = layer(x)
    return keras.Model(inputs, x, name=name)


def backbone_in_a_sequential():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, activation="relu", name="inner_conv")(inputs)
    x = L.Conv2D(6, 3, activation="relu", name="inner_last")(x)
    backbone = keras.Model(inputs, x, name="backbone")
    layers_ = [keras.Input((8, 8, 3)), L.Rescaling(2.0), backbone, L.GlobalAveragePooling2D()]
    return keras.Sequential([*layers_, L.Dense(5, activation="softmax")], name="transfer")


def images(seed=0, count=2):
    return np.random.default_rng(seed).random((count, 8, 8, 3), np.float32)


HEADS = {
    "dense softmax": [L.Flatten, lambda: L.Dense(5, activation="softmax")],
    "dense sigmoid": [L.Flatten, lambda: L.Dense(1, activation="sigmoid")],
    "function of TensorFlow": [L.Flatten, lambda: L.Dense(5, activation=tf.nn.softmax)],
    "layer as activation": [L.Flatten, lambda: L.Dense(5, activation=L.Softmax())],
    "activation": [L.Flatten, lambda: L.Dense(5), lambda: L.Activation("softmax")],
    "softmax layer": [L.Flatten, lambda: L.Dense(5), L.Softmax],
    "operation": [L.Flatten, lambda: L.Dense(5), lambda: keras.ops.softmax],
    "convolution": [
        lambda: L.GlobalAveragePooling2D(keepdims=True),
        lambda: L.Conv2D(5, 1, activation="softmax"),
        L.Flatten,
        lambda: L.Dropout(0.5),
        lambda: L.Activation("linear"),
    ],
    "nested head": [
        lambda: keras.Sequential(
            [keras.Input((3, 3, 4)), L.Flatten(), L.Dense(5, activation="softmax")]
        )
    ],
}


@pytest.mark.parametrize("head", HEADS)
def test_to_logits_undoes_the_activation_and_leaves_the_model_alone(head):
    model = conv_net(*[make() for make in HEADS[head]])
    before, config = model(images()).numpy(), str(model.get_config())
    logits = layers.to_logits(model)
    activation = "sigmoid" if before.shape[1] == 1 else "softmax"
    again = getattr(keras.activations, activation)(logits(images())).numpy()
    np.testing.assert_allclose(again, before, atol=1e-6)
    assert np.abs(logits(images()).numpy() - before).max() > 0.01
    np.testing.assert_array_equal(model(images()).numpy(), before)
    assert str(model.get_config()) == config
    for old, new in zip(model.get_weights(), logits.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert layers.final_activation(model) == activation
    assert layers.final_activation(logits) is None
    assert layers.to_logits(logits) is logits
    assert layers.to_logits(model) is logits


def test_to_logits_takes_the_weights_of_now_and_piles_nothing_up():
    model = conv_net()
    layers.to_logits(model)
    model.layers[-1].kernel.assign(2 * model.layers[-1].kernel)
    model.layers[-1].bias.assign_add([1.0, 0, 0, 0, 0])
    again = keras.activations.softmax(layers.to_logits(model)(images()))
    np.testing.assert_allclose(again, model(images()), atol=1e-6)
    assert len(model.layers[-2].output._keras_history.operation._outbound_nodes) <= 2
    outer = keras.Sequential([keras.Input((8, 8, 3)), model])
    layers.to_logits(outer)
    model.layers[-1].kernel.assign(3 * model.layers[-1].kernel)
    again = keras.activations.softmax(layers.to_logits(outer)(images()))
    np.testing.assert_allclose(again, outer(images()), atol=1e-6)


def test_a_dropped_model_takes_its_logits_along():
    model = conv_net()
    layers.to_logits(model)
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None


def test_a_nested_model_without_a_graph_is_a_layer():
    class Own(keras.Model):
        def call(self, inputs):
            return 2 * inputs

    inputs = keras.Input((8, 8, 3))
    x = L.Flatten()(L.Conv2D(2, 3, name="after")(Own(name="own")(inputs)))
    model = keras.Model(inputs, L.Dense(3)(x))
    assert layers.map_layers(model) == ["own", "after"]
    assert layers.split(model, "own")(images())[0].shape == (2, 8, 8, 3)


def test_predict_gives_the_same_bits_before_and_after():
    model = conv_net()
    before = model.predict(images(), verbose=0)
    layers.split(layers.to_logits(model), "relu")
    np.testing.assert_array_equal(model.predict(images(), verbose=0), before)


def test_explainable_layer_is_after_norm_and_activation_and_before_pooling():
    assert layers.explainable_layer(conv_net()) == "relu"
    assert layers.explainable_layer(models.fashion_cnn()) == "norm8"


def test_explainable_layer_has_more_than_one_row_and_column():
    head = [L.Conv2D(2, (3, 1), name="row"), L.Flatten(), L.Dense(5)]
    assert layers.explainable_layer(conv_net(*head)) == "relu"


def test_explainable_layer_is_before_average_pooling_and_never_a_picture():
    pools = [L.AveragePooling2D(1), L.Flatten(), L.Dense(5)]
    assert layers.explainable_layer(conv_net(*pools)) == "relu"
    head = keras.Sequential([L.Rescaling(2.0), backbone_in_a_sequential()])
    head.build((None, 8, 8, 3))
    assert layers.explainable_layer(head) == "transfer/backbone/inner_last"


def test_a_layer_that_is_called_twice_counts_as_called_last():
    inputs, twice = keras.Input((8, 8, 3)), L.Conv2D(3, 3, padding="same", name="twice")
    x = L.Flatten()(twice(twice(inputs)))
    model = keras.Model(inputs, L.Dense(2)(x))
    maps = layers.split(model, "twice")(images())[0]
    np.testing.assert_allclose(maps, twice(twice(images())), atol=1e-6)


def test_explainable_layer_is_after_an_addition_that_is_no_layer():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(3, 3, padding="same")(inputs)
    x = x + inputs
    added = x._keras_history.operation.name
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    assert layers.explainable_layer(model) == added
    assert layers.split(model, added)(images())[0].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VGG16", "block5_conv3"),
        ("ResNet50", "conv5_block3_out"),
        ("MobileNet", "conv_pw_13_relu"),
        ("MobileNetV2", "out_relu"),
        ("EfficientNetV2B0", "top_activation"),
        ("Xception", "block14_sepconv2_act"),
        ("DenseNet121", "relu"),
        ("InceptionV3", "mixed10"),
    ],
)
def test_explainable_layer_of_each_backbone(name, expected):
    small = {"weights": None, "include_top": False, "input_shape": (128, 128, 3)}
    model = getattr(keras.applications, name)(**small)
    assert layers.explainable_layer(model) == expected


def test_explainable_layer_of_convnext_is_its_last_addition():
    model = keras.applications.ConvNeXtTiny(
        weights=None, include_top=False, pooling="avg", input_shape=(64, 64, 3)
    )
    added = [each.operation.name for each in layers.nodes(model) if "add" in each.operation.name]
    assert layers.explainable_layer(model) == added[-1]


def test_a_nested_backbone_has_a_path_and_keeps_it_when_saved(tmp_path):
    model = backbone_in_a_sequential()
    assert layers.explainable_layer(model) == "backbone/inner_last"
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert layers.explainable_layer(loaded) == "backbone/inner_last"
    for each in (model, loaded):
        maps, scores = layers.split(each, "backbone/inner_conv")(images())
        inner = model.get_layer("backbone").get_layer("inner_conv")(images() * 2)
        np.testing.assert_allclose(maps, inner, atol=1e-6)
        np.testing.assert_allclose(scores, model(images()), atol=1e-6)


def test_models_in_a_model_are_cut_open_together_as_one_by_one():
    inputs = keras.Input((8, 8, 3))
    x = L.Add(name="sum")([conv_net(name="left")(inputs), conv_net(name="right")(inputs)])
    model, batch = keras.Model(inputs, L.Dense(3, name="last")(x)), images()
    left, right = model.get_layer("left"), model.get_layer("right")
    paths = ["right/conv", "left/norm", "sum", "left/conv", "left", "last"]
    together = layers.cut(model, paths, scores=True)(batch)
    by_hand = {
        "right/conv": right.get_layer("conv")(batch),
        "left/norm": left.get_layer("norm")(left.get_layer("conv")(batch)),
        "sum": left(batch) + right(batch),
        "left/conv": left.get_layer("conv")(batch),
        "left": left(batch),
        "last": model(batch),
        "scores": model(batch),
    }
    for found, (path, expected) in zip(together, by_hand.items(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=path)
        if path != "scores":
            np.testing.assert_allclose(layers.cut(model, [path])(batch), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["list", "dict"])
def test_a_model_in_a_model_may_have_several_inputs_and_outputs(form):
    keras.utils.set_random_seed(0)
    one, other = keras.Input((8, 8, 3), name="z"), keras.Input((8, 8, 3), name="a")
    less = L.Subtract(name="less")([one, other])
    conv = L.Conv2D(2, 3, name="conv")(less)
    given = {"z": one, "a": other} if form == "dict" else [one, other]
    inner = keras.Model(given, [conv, L.ReLU(name="unused")(less)], name="inner")
    middle_input = keras.Input((8, 8, 3))
    doubled = 2 * middle_input
    given = {"z": doubled, "a": middle_input} if form == "dict" else [doubled, middle_input]
    first, second = inner(given)
    middle = keras.Model(middle_input, [second, first], name="middle")
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, L.Flatten(name="flat")(middle(inputs)[1]))
    paths = ["middle/inner/unused", "flat", "middle/inner/less", "middle"]
    batch = images() - 0.5  # and 2 * batch - batch is the batch
    by_hand = [np.maximum(batch, 0), np.reshape(inner.get_layer("conv")(batch), (2, -1)), batch]
    for found, expected in zip(
        layers.cut(model, paths)(batch), [*by_hand, by_hand[0]], strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_cut_computes_no_more_than_it_must():
    model = conv_net()
    assert [each.name for each in layers.cut(model, ["norm", "conv"]).layers[1:]] == [
        "conv",
        "norm",
    ]
    assert layers.cut(model, ["conv"], scores=True).layers[-1] is model.layers[-1]


def test_a_nested_model_alone_means_its_explainable_layer():
    model = backbone_in_a_sequential()
    by_name = layers.split(model, "backbone")(images())[0]
    np.testing.assert_array_equal(by_name, layers.split(model, "backbone/inner_last")(images())[0])


def test_models_in_models_in_models():
    outer = keras.Sequential([keras.Input((8, 8, 3)), backbone_in_a_sequential()], name="outer")
    assert layers.explainable_layer(outer) == "transfer/backbone/inner_last"
    logits = layers.to_logits(outer)
    maps, scores = layers.split(logits, "transfer/backbone/inner_last")(images())
    assert maps.shape == (2, 4, 4, 6)
    np.testing.assert_allclose(keras.activations.softmax(scores), outer(images()), atol=1e-6)


def test_head_weights_are_those_of_the_dense():
    model = conv_net(L.GlobalAveragePooling2D(), L.Dropout(0.1), L.Dense(5))
    np.testing.assert_array_equal(layers.head_weights(model, "pool"), model.layers[-1].kernel)
    with pytest.raises(ValueError, match="between 'relu' and the scores of 'net', received anoth"):
        layers.head_weights(model, "relu")
    with pytest.raises(ValueError, match="use grad_cam, which takes any"):
        layers.head_weights(conv_net(L.Flatten(), L.Dense(5)), "pool")
    nested = layers.to_logits(backbone_in_a_sequential())
    assert layers.head_weights(nested, "backbone/inner_last").shape == (6, 5)


def logit_net():
    keras.utils.set_random_seed(0)
    return conv_net(L.Flatten(), L.Dense(5, name="logits"))


def test_a_contrast_is_the_difference_of_two_logits():
    model = logit_net()
    contrast, logits = models.to_contrast(model, 3, 1), model(images()).numpy()
    np.testing.assert_allclose(contrast(images())[:, 0], logits[:, 3] - logits[:, 1], atol=1e-6)
    assert contrast.output_shape == (None, 1)
    slopes = [gradients.saliency(model, images(), k) for k in (3, 1)]
    found = gradients.saliency(contrast, images(), 1)
    np.testing.assert_allclose(found, slopes[0] - slopes[1], atol=1e-6)
    np.testing.assert_array_equal(gradients.saliency(contrast, images(), 0), -found)


@pytest.mark.parametrize("method", [cams.grad_cam, cams.hires_cam])
def test_a_contrastive_map_is_the_difference_of_the_maps_before_their_relu(method):
    model = logit_net()
    kernel = model.get_layer("logits").kernel.numpy().reshape(3, 3, 4, 5)[..., [3, 1]]
    if method is cams.grad_cam:
        kernel = np.broadcast_to(kernel.mean(axis=(0, 1), keepdims=True), kernel.shape)
    maps = np.einsum("bhwk,hwkc->bhwc", layers.split(model, "pool")(images())[0], kernel)
    expected = maps[..., 0] - maps[..., 1]
    assert expected.min() < -1e-3
    assert expected.max() > 1e-3
    contrast = models.to_contrast(model, 3, 1)
    for class_index, sign in ((1, 1), (0, -1)):
        found = method(contrast, images(), class_index, layer="pool")
        np.testing.assert_allclose(found, np.maximum(sign * expected, 0), atol=1e-6)


def test_every_tool_takes_a_contrast_as_a_single_logit():
    model = logit_net()
    contrast, logits = models.to_contrast(model, 3, 1), model(images()).numpy()
    among_two = np.exp(logits[:, 3]) / (np.exp(logits[:, 3]) + np.exp(logits[:, 1]))
    curve = faithfulness.deletion(contrast, images(), images()[..., 0], 1)
    np.testing.assert_allclose(curve.probabilities[:, 0], among_two, atol=1e-6)
    assert models.to_logits(contrast) is contrast
    assert layers.explainable_layer(contrast) == "relu"
    assert not diagnosis.diagnose(contrast, images(), 1)
    assert gradients.guided_backprop(contrast, images(), 1).any()
    assert cams.score_cam(contrast, images(), 1).shape == (2, 6, 6)


def test_a_contrast_is_made_once_and_goes_with_its_model():
    model = logit_net()
    contrast = models.to_contrast(model, np.int64(3), 1)
    assert models.to_contrast(model, 3, 1) is contrast
    assert models.to_contrast(model, 1, 3) is not contrast
    cams.grad_cam(contrast, images(), 1)
    made = dict(once._MADE[contrast][1])
    cams.grad_cam(models.to_contrast(model, 3, 1), images(), 1)
    assert once._MADE[contrast][1] == made
    model.get_layer("logits").kernel.assign(2 * model.get_layer("logits").kernel)
    logits = model(images()).numpy()
    np.testing.assert_allclose(contrast(images())[:, 0], logits[:, 3] - logits[:, 1], atol=1e-6)
    held = weakref.ref(model), weakref.ref(contrast)
    del model, contrast, made
    gc.collect()  # the model
    gc.collect()  # what was kept for it
    assert [each() for each in held] == [None, None]


def test_a_contrast_of_a_sequential_that_was_rebuilt_is_made_anew():
    model = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(2, 3), L.Flatten(), L.Dense(3)])
    before = models.to_contrast(model, 0, 1)
    model.add(L.Dense(4))
    after = models.to_contrast(model, 0, 1)
    assert after is not before
    logits = model(images()).numpy()
    np.testing.assert_allclose(after(images())[:, 0], logits[:, 0] - logits[:, 1], atol=1e-6)


def subclassed():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    return Own(name="own")


def two_outputs():
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(3)(inputs)])


ERRORS = {
    "a name that is not there": (
        lambda: layers.split(conv_net(), "conv9"),
        "layer 'conv9' is not in 'net'. Try one of: 'conv', 'norm', 'relu', 'pool'.",
    ),
    "a name to cut at": (
        lambda: layers.cut(conv_net(), ["conv", "conv9"]),
        "layer 'conv9' is not in 'net'. Try one of: 'conv', 'norm', 'relu', 'pool'.",
    ),
    "a name in a nested model": (
        lambda: layers.split(backbone_in_a_sequential(), "backbone/conv9"),
        "layer 'conv9' is not in 'backbone'. Try one of: 'inner_conv', 'inner_last'.",
    ),
    "a path through a layer": (
        lambda: layers.split(conv_net(), "conv/kernel"),
        "layer 'conv/kernel' is not in 'net'. Try one of:",
    ),
    "a layer itself": (
        lambda: layers.split(conv_net(), L.ReLU(name="relu")),
        "expected a layer by name or path, received <ReLU name=relu, built=True>: pass layer.name",
    ),
    "another rank": (
        lambda: layers.split(conv_net(), "scores"),
        "layer 'scores' has shape (None, 5); a map needs (batch, height, width, maps). "
        "Try one of: 'conv', 'norm', 'relu', 'pool'.",
    ),
    "no convolution": (
        lambda: layers.explainable_layer(
            keras.Sequential([keras.Input((8, 8, 3)), L.Rescaling(1.0, name="scale")], name="flat")
        ),
        "expected a convolution with an output (batch, height, width, maps) in 'flat', received "
        "'scale' (None, 8, 8, 3): there is no map to explain.",
    ),
    "subclassed": (
        lambda: layers.explainable_layer(subclassed()),
        "expected a functional model, or a Sequential one with an Input, received Own 'own', "
        "which has no graph: rebuild it as keras.Model(x, model.call(x)) of x",
    ),
    "never built": (
        lambda: layers.to_logits(keras.Sequential([L.Dense(3)], name="bare")),
        "received Sequential 'bare', which has no graph",
    ),
    "another activation": (
        lambda: layers.to_logits(conv_net(L.Flatten(), L.Dense(5, activation="tanh"))),
        "expected a model that ends in softmax, sigmoid or logits, received 'net', which ends in "
        "tanh: give its last layer activation=None.",
    ),
    "a contrast of probabilities": (
        lambda: layers.to_contrast(conv_net(), 0, 1),
        "expected a model that returns logits, received 'net', which ends in softmax: contrast "
        "models.to_logits(model).",
    ),
    "a contrast of one class": (
        lambda: layers.to_contrast(logit_net(), 2, 2),
        "expected two different classes, received 2 twice: choose another b.",
    ),
    "a contrast out of range": (
        lambda: layers.to_contrast(logit_net(), 2, 5),
        "expected b as an integer from 0 to 4, received 5: 'net' has 5 classes.",
    ),
    "a contrast of names": (
        lambda: layers.to_contrast(logit_net(), "cat", 5),
        "expected a as an integer from 0 to 4, received 'cat': 'net' has 5 classes.",
    ),
    "a contrast of one logit": (
        lambda: layers.to_contrast(conv_net(L.Flatten(), L.Dense(1)), 1, 0),
        "expected a model with two logits (batch, classes) or more, received 'net' with (None, 1): "
        "a single logit is a contrast already, of class 1 with class 0.",
    ),
    "two outputs": (
        lambda: layers.to_logits(two_outputs()),
        "expected a model with one output, received 2: choose one with "
        "keras.Model(model.input, model.outputs[0]).",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_there_is(case):
    call, sentence = ERRORS[case]
    with pytest.raises(ValueError, match=r".+") as error:
        call()
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("head", "multi_label"),
    [
        ([L.Dense(3, activation="sigmoid")], True),
        ([L.Dense(3), L.Activation("sigmoid")], True),
        ([keras.Sequential([keras.Input((4,)), L.Dense(3, activation="sigmoid")])], True),
        ([L.Dense(1, activation="sigmoid")], False),
        ([L.Dense(3, activation="softmax")], False),
        ([L.Dense(3)], False),
    ],
    ids=["sigmoids", "layer of sigmoids", "nested", "one sigmoid", "softmax", "logits"],
)
def test_labels_with_a_sigmoid_each_have_probabilities_of_their_own(head, multi_label):
    inputs = keras.Input((6, 6, 1))
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(inputs))
    for layer in head:
        x = layer(x)
    model = keras.Model(inputs, x)
    logits = layers.to_logits(model)
    assert layers.is_multi_label(logits) == multi_label
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype(np.float32)
    scores = compiled.scores(logits)(images).numpy()
    if layers.final_activation(model) and x.shape[1] > 1:
        found = compiled.probabilities(logits, scores)
        np.testing.assert_allclose(found, model(images), rtol=1e-5)
    huge = np.array([[-1e4, 0, 1e4]])
    expected = [[0, 0.5, 1]] if multi_label else [[0, 0, 1]]
    if x.shape[1] > 1:
        np.testing.assert_array_equal(compiled.probabilities(logits, huge), expected)
