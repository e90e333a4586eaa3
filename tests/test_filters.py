"""What a filter wants: pictures that are known beforehand, and each error by its message."""

import gc
import hashlib
import re
import subprocess
import sys
import weakref

from cam_helpers import backbones, filters
from cam_helpers.backend import keras, tf
from cam_helpers.filters import maximize_activation
import numpy as np
import pytest
from tf_keras_vis.activation_maximization import ActivationMaximization
from tf_keras_vis.utils.model_modifiers import ExtractIntermediateLayer, ReplaceToLinear
from tf_keras_vis.utils.scores import CategoricalScore

L = keras.layers
BARE = {"jitter": 0, "total_variation": 0, "l2": 0}  # no regulariser
KERNELS = np.random.default_rng(5).normal(size=(3, 3, 3, 4)).astype(np.float32)
KERNELS += 0.1 * np.sign(KERNELS)  # no weight so small that its pixel hardly moves


def linear(side=3, channels=3, **options):
    """One 3×3 convolution with known kernels; on 3×3 pixels each map has one cell."""
    inputs = keras.Input((side, side, channels))
    convolution = L.Conv2D(4, 3, name="filter", **options)
    model = keras.Model(inputs, L.Flatten()(convolution(inputs)), name="linear")
    convolution.set_weights([KERNELS[:, :, :channels], np.zeros(4, np.float32)])
    return model


def network(channels=3, side=12, classes=4, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((side, side, channels))
    x = L.Conv2D(5, 3, activation="relu", name="first")(inputs)
    x = L.Conv2D(6, 3, strides=2, padding="same", use_bias=False, name="second")(x)
    x = L.ReLU(6, name="relu6")(L.BatchNormalization(name="norm")(x))
    return keras.Model(inputs, L.Dense(classes)(L.Flatten()(x)), name="network")


def mean_of(model, layer, pictures):
    cut = keras.Model(model.inputs[0], model.get_layer(layer).output)
    return cut(pictures).numpy().mean(axis=(1, 2))


def unit(kernel):
    return kernel / np.sqrt((kernel**2).mean())


def black_white_to_bgr(images):
    """As for VGG16: blue, green and red minus their means."""
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() > 1
    return images[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32)


# known pictures


def test_the_picture_of_one_linear_cell_is_the_sign_pattern_of_its_kernel():
    pictures = maximize_activation(linear(), "filter", range(4), steps=500, step_size=0.1, **BARE)
    assert pictures.dtype == np.float32
    np.testing.assert_array_equal(pictures, np.moveaxis(KERNELS > 0, -1, 0))


def test_inside_a_larger_picture_it_is_the_sign_of_the_kernels_sum():
    pictures = maximize_activation(linear(9), "filter", range(4), steps=500, step_size=0.1, **BARE)
    wanted = KERNELS.sum(axis=(0, 1)).T > 0  # (maps, channels)
    inside = pictures[:, 2:-2, 2:-2]  # seen by every cell of the kernel
    np.testing.assert_array_equal(
        inside, np.broadcast_to(wanted[:, np.newaxis, np.newaxis], inside.shape)
    )


def test_one_step_goes_as_far_as_step_size_says():
    for scale in (1, 1e-25, 1e20):  # of the activation: the step does not depend on it
        model = linear()
        model.get_layer("filter").kernel.assign(scale * KERNELS)
        one, two = (
            maximize_activation(model, "filter", 1, steps=steps, step_size=0.01, **BARE)[0]
            for steps in (1, 2)
        )
        np.testing.assert_allclose(two - one, 0.01 * unit(KERNELS[..., 1]), atol=1e-6)


def test_l2_holds_the_picture_where_its_pull_to_grey_balances_the_map():
    options = {**BARE, "l2": 8, "steps": 200}
    picture = maximize_activation(linear(), "filter", 2, **options)[0]
    np.testing.assert_allclose(picture, 0.5 + unit(KERNELS[..., 2]) / 8, atol=1e-5)


def test_total_variation_smooths():
    model = network()
    rough, smooth = (
        maximize_activation(model, "norm", [0, 3], **{**BARE, "total_variation": weight})
        for weight in (0, 0.1)
    )
    before, after = (tf.image.total_variation(tf.constant(each)) for each in (rough, smooth))
    assert (after.numpy() < 0.8 * before.numpy()).all()


def test_a_step_with_total_variation_is_that_of_its_formula():
    before, after = (
        maximize_activation(
            linear(), "filter", 0, steps=steps, step_size=0.001, **{**BARE, "total_variation": 0.3}
        )[0].astype(float)
        for steps in (1, 2)
    )
    roughness = np.zeros_like(before)
    for axis in (0, 1):
        sign = np.sign(np.diff(before, axis=axis))
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        roughness -= np.diff(np.pad(sign, pad), axis=axis)
    expected = 0.001 * (unit(KERNELS[..., 0]) - 0.3 * roughness)
    np.testing.assert_allclose(after - before, expected, atol=1e-6)


def test_a_step_with_jitter_is_taken_where_the_picture_was_moved_to():
    """With one cell, the gradient is the kernel, moved back by what the picture was moved."""
    one, two = (
        maximize_activation(
            linear(), "filter", 0, steps=steps, step_size=0.001, seed=4, **{**BARE, "jitter": 1}
        )[0]
        for steps in (1, 2)
    )
    rng = np.random.default_rng(4)
    rng.uniform(size=(3, 3, 3))
    move = rng.integers(-1, 1, (2, 2), endpoint=True)[1]
    assert move.any()
    expected = 0.001 * np.roll(unit(KERNELS[..., 0]), -move, axis=(0, 1))
    np.testing.assert_allclose(two - one, expected, atol=1e-6)


def test_it_ascends_and_each_map_its_own():
    model = network()
    start, end = (maximize_activation(model, "norm", range(6), steps=n, **BARE) for n in (1, 40))
    before, after = (mean_of(model, "norm", pictures) for pictures in (start, end))
    assert (np.diag(after) > np.diag(before) + 0.2).all()
    np.testing.assert_array_equal(after.argmax(axis=0), range(6))
    earlier = maximize_activation(model, "first", range(5), **BARE)  # another layer of this model
    np.testing.assert_array_equal(mean_of(model, "first", earlier).argmax(axis=0), range(5))


def test_class_scores():
    model = network()
    pictures = maximize_activation(model, None, [3, 1], **BARE)
    scores = model(pictures).numpy()
    np.testing.assert_array_equal(scores.argmax(axis=1), [3, 1])


def test_one_logit_is_two_classes():
    model = network(classes=1)
    scores = model(maximize_activation(model, None, [0, 1], **BARE)).numpy()[:, 0]
    assert scores[0] < 0 < scores[1]


# before the ReLU


@pytest.mark.parametrize("kind", ["fused", "layer", "ReLU6", "activation", "nested"])
def test_a_dead_relu_still_gets_a_gradient(kind):
    activation = {
        "layer": L.ReLU(name="last"),
        "ReLU6": L.ReLU(6, name="last"),
        "activation": L.Activation("relu", name="last"),
    }.get(kind)
    inputs = keras.Input((3, 3, 3))
    fused = activation is None
    convolution = L.Conv2D(
        4, 3, activation="relu" if fused else None, name="last" if fused else "filter"
    )
    body = x = convolution(inputs)
    if activation is not None:
        body = x = activation(x)
    path = "last"
    if kind == "nested":
        x, path = keras.Model(inputs, body, name="body")(inputs), "body/last"
    model = keras.Model(inputs, L.Flatten()(x))
    convolution.set_weights([KERNELS, np.full(4, -1000, np.float32)])
    assert not model(np.ones((1, 3, 3, 3), np.float32)).numpy().any()
    pictures = maximize_activation(model, path, range(4), steps=500, step_size=0.1, **BARE)
    np.testing.assert_array_equal(pictures, np.moveaxis(KERNELS > 0, -1, 0))


def test_what_no_pixel_can_change_keeps_its_noise():
    model = linear()
    model.get_layer("filter").kernel.assign(np.zeros_like(KERNELS))
    few, many = (maximize_activation(model, "filter", 0, steps=n, **BARE) for n in (1, 30))
    np.testing.assert_array_equal(few, many)
    assert 0.4 <= few.min() < few.max() <= 0.6


# colours


def test_the_preprocessing_is_undone():
    """The map wants blue: in the picture that is the third channel, for the network the first."""
    model = linear()
    kernel = np.zeros_like(KERNELS)
    kernel[:, :, 0] = 1
    model.get_layer("filter").kernel.assign(kernel)
    options = {**BARE, "steps": 300, "step_size": 0.1}
    bgr = maximize_activation(model, "filter", 0, preprocess=black_white_to_bgr, **options)[0]
    rgb = maximize_activation(model, "filter", 0, **options)[0]
    np.testing.assert_array_equal(bgr[..., 2], 1)
    np.testing.assert_array_equal(rgb[..., 0], 1)
    assert 0.4 <= bgr[..., :2].min() < bgr[..., :2].max() <= 0.6


@pytest.mark.parametrize("name", ["VGG16", "MobileNet", "DenseNet121", "EfficientNetV2B0"])
def test_the_network_saw_the_preprocessed_picture(name):
    """BGR minus mean, −1…1, divided by deviations, and 0…255: what Keras's networks take."""
    module = getattr(keras.applications, backbones.NETWORKS[name][0])
    picture = np.random.default_rng(1).random((12, 12, 3), np.float32)
    colours, offset = filters._affine(module.preprocess_input, (12, 12, 3))
    expected = module.preprocess_input(255 * picture[np.newaxis])[0]
    np.testing.assert_allclose(picture @ colours + offset, expected, rtol=1e-5, atol=1e-4)


def test_a_step_is_the_gradient_at_the_preprocessed_picture():
    model, preprocess = network(), lambda images: images[..., [1, 2, 0]] / 127.5 - 1
    before, after = (
        maximize_activation(
            model, "relu6", 2, preprocess=preprocess, steps=n, step_size=1e-3, **BARE
        )
        for n in (1, 2)
    )
    seen = tf.constant(preprocess(255 * before), tf.float32)
    cut = keras.Model(model.inputs[0], model.get_layer("norm").output)
    with tf.GradientTape() as tape:
        tape.watch(seen)
        mean = tf.reduce_mean(cut(seen)[..., 2])
    gradient = tape.gradient(mean, seen).numpy()[..., [2, 0, 1]]
    np.testing.assert_allclose(after - before, 1e-3 * unit(gradient), atol=1e-6)


def test_a_few_steps_agree_with_tf_keras_vis():
    """Without its modifiers, by our length of a step; it clips at the end only."""
    model, rng = network(), np.random.default_rng(3)
    noise = rng.uniform(0.4, 0.6, (12, 12, 3)).astype(np.float32)
    peer = ActivationMaximization(model, [ExtractIntermediateLayer("norm"), ReplaceToLinear()])
    expected = peer(
        CategoricalScore(4),
        tf.constant(noise[np.newaxis]),
        input_range=(0.0, 1.0),
        input_modifiers=None,
        regularizers=None,
        steps=5,
        optimizer=keras.optimizers.SGD(learning_rate=0.02),
        gradient_modifier=lambda gradient: unit(gradient.numpy()),
    )
    found = maximize_activation(model, "norm", 4, steps=5, step_size=0.02, seed=3, **BARE)
    assert 0.01 < found.min() < found.max() < 0.99
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_sequential_model():
    layers = [keras.Input((3, 3, 3)), L.Conv2D(4, 3, name="filter"), L.Flatten()]
    model = keras.Sequential(layers)
    model.get_layer("filter").set_weights(linear().get_weights())
    np.testing.assert_array_equal(
        maximize_activation(model, "filter", [2, 0]),
        maximize_activation(linear(), "filter", [2, 0]),
    )


# the same again


def test_a_batch_equals_its_maps_one_by_one_and_in_parts():
    model = network()
    together = maximize_activation(model, "relu6", [4, 0, 2], steps=20)
    for index, k in enumerate([4, 0, 2]):
        alone = maximize_activation(model, "relu6", k, steps=20)
        np.testing.assert_allclose(alone[0], together[index], atol=1e-3)
    parts = maximize_activation(model, "relu6", [4, 0, 2], steps=20, batch_size=2)
    np.testing.assert_allclose(parts, together, atol=1e-3)


def test_a_progress_bar_changes_nothing(capsys):
    model = network()
    without = maximize_activation(model, "norm", [1, 2], steps=23)
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(
        maximize_activation(model, "norm", [1, 2], steps=23, progress=True), without
    )
    assert "steps" in capsys.readouterr().err


ELSEWHERE = """
import sys
sys.path.insert(0, "tests")
from test_filters import digest
print(digest())
"""


def digest():
    pictures = maximize_activation(network(), "relu6", [1, 4])
    return hashlib.sha256(pictures.tobytes()).hexdigest()


def test_bit_equal_in_another_process():
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest() == digest()


def test_another_seed_is_another_picture():
    model = network()
    first, again, other = (maximize_activation(model, "norm", 0, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_each_regulariser_can_be_left_out():
    model = network()
    pictures = [
        maximize_activation(model, "norm", 0, **{**BARE, **only})
        for only in ({}, {"jitter": 2}, {"total_variation": 0.2}, {"l2": 0.3})
    ]
    for index, picture in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(picture - other).max() > 0.05


def test_models_stay_as_they_are_and_go_when_dropped():
    model = network()
    before = [weight.copy() for weight in model.get_weights()]
    config = model.get_config()
    maximize_activation(model, "norm", 0, steps=3)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.get_config() == config
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_new_weights_are_seen():
    model = linear()
    first = maximize_activation(model, "filter", 0, steps=20)
    model.get_layer("filter").kernel.assign(-KERNELS)
    assert np.abs(maximize_activation(model, "filter", 0, steps=20) - first).max() > 0.1


def test_a_model_of_any_size():
    inputs = keras.Input((None, None, 1))
    x = L.Conv2D(2, 3, name="filter")(inputs)
    model = keras.Model(inputs, L.GlobalAveragePooling2D()(x), name="open")
    assert maximize_activation(model, "filter", [1, 0], steps=2, size=(9, 7)).shape == (2, 9, 7, 1)
    with pytest.raises(ValueError, match=re.escape("received none: 'open' takes (None, None)")):
        maximize_activation(model, "filter", 0)


# errors


def softmax():
    model = network()
    return keras.Model(model.inputs[0], L.Softmax()(model.outputs[0]), name="soft")


def stopped():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(2, 3, name="after")(keras.ops.stop_gradient(inputs))
    return keras.Model(inputs, L.Flatten()(x))


def flat():
    return keras.Sequential([keras.Input((8,)), L.Dense(2)])


def two_inputs():
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    return keras.Model([a, b], L.Flatten()(L.Conv2D(2, 3, name="norm")(a + b)), name="two")


@pytest.mark.parametrize(
    ("make", "layer", "maps", "options", "message"),
    [
        (network, "norm", 6, {}, "expected maps from 0 to 5 of 'norm', received 6."),
        (network, "norm", [0, -1], {}, "expected maps from 0 to 5 of 'norm', received -1."),
        (network, None, 4, {}, "expected maps from 0 to 3 of 'class scores', received 4."),
        (network, "norm", 1.0, {}, "expected maps as an integer or a sequence of integers, rec"),
        (network, "norm", [], {}, "expected maps as an integer or a sequence of integers, rec"),
        (network, "nowhere", 0, {}, "layer 'nowhere' is not in 'network'. Try one of: 'first'"),
        (network, "norm", 0, {"steps": 0}, "expected steps as an integer of 1 or more, received 0"),
        (network, "norm", 0, {"batch_size": 0}, "expected batch_size as an integer of 1 or more"),
        (network, "norm", 0, {"jitter": -1}, "expected jitter in whole pixels, 0 or more, rec"),
        (network, "norm", 0, {"jitter": 0.5}, "expected jitter in whole pixels, 0 or more, rec"),
        (network, "norm", 0, {"l2": -1}, "expected l2 as a number of 0 or more, received -1."),
        (
            network,
            "norm",
            0,
            {"step_size": np.nan},
            "expected step_size as a number of 0 or more, rec",
        ),
        (network, "norm", 0, {"l2": 1e300}, "expected l2 of at most 3.4e+38, received 1e+300: sc"),
        (
            network,
            "norm",
            0,
            {"total_variation": -0.1},
            "expected total_variation as a number of 0 or more, received -0.1.",
        ),
        (
            network,
            "norm",
            0,
            {"size": (9, 9)},
            "expected size (12, 12), received (9, 9): 'network'",
        ),
        (
            network,
            "norm",
            0,
            {"size": 12},
            "expected size=(height, width) of at least 1 pixel, rec",
        ),
        (lambda: network(2), "norm", 0, {}, "expected a model of grey or RGB images, received"),
        (two_inputs, "norm", 0, {}, "expected a model with one input, received 'two' with 2: re"),
        (
            flat,
            None,
            0,
            {},
            "expected a model that takes images (batch, height, width, channels), rec",
        ),
        (softmax, None, 0, {}, "expected a model that returns logits, received 'soft', which ends"),
        (stopped, "after", 0, {}, "expected a layer that can be derived by the image, received"),
        (
            network,
            "norm",
            0,
            {"preprocess": lambda images: images**2},
            "expected a preprocess that is affine in each pixel and keeps the size",
        ),
        (
            network,
            "norm",
            0,
            {"preprocess": lambda images: images[:, ::2]},
            "expected a preprocess that is affine in each pixel and keeps the size",
        ),
        (
            lambda: network(1),
            "norm",
            0,
            {"preprocess": keras.applications.vgg16.preprocess_input},
            "expected a preprocess for images (12, 12, 1), received one that refuses them: ",
        ),
    ],
)
def test_each_error_says_what_was_expected(make, layer, maps, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        maximize_activation(make(), layer, maps, **options)


def test_a_backbones_preprocess_on_another_network():
    backbone = backbones.load_backbone("MobileNet", weights=None)
    with pytest.raises(ValueError, match=r"received one that refuses them: expected RGB images"):
        maximize_activation(network(), "norm", 0, preprocess=backbone.preprocess)
