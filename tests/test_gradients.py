"""Gradients at the pixels: differences, networks run by hand, an independent library, errors."""

import gc
import re
import weakref

import by_hand
from cam_helpers import cams, compiled, models, photos
from cam_helpers.backend import keras, tf
from cam_helpers.gradients import (
    deconvnet,
    guided_backprop,
    guided_grad_cam,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from cam_helpers.once import _MADE
from cam_helpers.placement import ReceptiveField, place
import numpy as np
import pytest
from tf_keras_vis.saliency import Saliency
from tf_keras_vis.utils.model_modifiers import GuidedBackpropagation
from tf_keras_vis.utils.scores import CategoricalScore

L = keras.layers
METHODS = [saliency, guided_backprop, deconvnet, smooth_grad, integrated_gradients, guided_grad_cam]
SIZE = (12, 10, 2)


def network(*head, classes=4, seed=0, size=SIZE, activation="relu"):
    keras.utils.set_random_seed(seed)
    options = {
        "activation": activation,
        "bias_initializer": keras.initializers.RandomNormal(0, 0.3),
    }
    inputs = keras.Input(size)
    x = L.Conv2D(5, 3, **options, name="first")(inputs)
    x = L.Conv2D(6, 3, strides=2, padding="same", **options, name="last")(x)
    for layer in head or [L.GlobalAveragePooling2D()]:
        x = layer(x)
    return keras.Model(inputs, L.Dense(classes, name="logits")(x), name="network")


def linear(seed=0):
    keras.utils.set_random_seed(seed)
    steps = [keras.Input(SIZE), L.Conv2D(3, 3), L.Flatten(), L.Dense(4)]
    return keras.Sequential(steps, name="linear")


def weights_of(model, class_index):
    """Of a linear model: by how much each pixel raises a score."""
    pixels = np.eye(np.prod(SIZE)).reshape(-1, *SIZE).astype(np.float32)
    scores = model(pixels).numpy() - model(np.zeros((1, *SIZE), np.float32)).numpy()
    return scores[:, class_index].reshape(SIZE)


def images(count=3, seed=1, size=SIZE):
    return np.random.default_rng(seed).normal(size=(count, *size)).astype(np.float32)


def quick(method):
    """A method with few steps or samples, where it takes any."""
    few = {smooth_grad: {"samples": 3}, integrated_gradients: {"steps": 4}}.get(method, {})
    return lambda *args, **options: method(*args, **few, **options)


def same(found, expected, tolerance=1e-5):
    assert found.dtype == np.float32
    assert found.any()
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def fashion():
    return models.to_logits(models.load_fashion_cnn())


@pytest.fixture(scope="module")
def photographs(mobilenet):
    names = ("cat", "espresso", "camera", "motorcycle")
    return mobilenet.preprocess(
        np.stack([photos.fit(photos.sample_photo(name), (224, 224)) for name in names])
    )


# finite differences


def in_double_precision(model):
    def double(layer):
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

    pixels = keras.Input(model.input_shape[1:], dtype="float64")
    twin = keras.models.clone_model(model, input_tensors=pixels, clone_function=double)
    twin.set_weights(model.get_weights())
    twin.dtype_policy = keras.DTypePolicy("float64")  # else it takes its input in float32
    return twin


def differences(model, image, class_index, pixels, step):
    """How fast the score rises with each of some pixels, by changing it up and down."""
    changed = np.tile(np.float64(image), (2, len(pixels), 1, 1, 1))
    each = np.arange(len(pixels))
    changed[0, each, *pixels.T] += step
    changed[1, each, *pixels.T] -= step
    scores = model(changed.reshape(-1, *image.shape), training=False).numpy()[:, class_index]
    assert scores.dtype == np.float64
    above, below = scores.reshape(2, -1)
    return (above - below) / (2 * step)


def fifty(image, seed=0):
    places = np.argwhere(np.ones_like(image))
    return np.random.default_rng(seed).permutation(places)[:50]


def test_saliency_agrees_with_differences_on_a_network_in_double_precision():
    model = in_double_precision(network(L.Flatten()))
    image, pixels = images(1)[0], fifty(images(1)[0])
    found = saliency(model, image[np.newaxis], 2)[0]
    assert found.dtype == np.float32
    expected = differences(model, image, 2, pixels, 1e-6)
    np.testing.assert_allclose(found[*pixels.T], expected, rtol=1e-3)
    np.testing.assert_allclose(found[*pixels.T], expected, rtol=1e-6, atol=1e-7)


def test_saliency_agrees_with_differences_on_the_fashion_network(fashion, fashion_mnist):
    twin = in_double_precision(fashion)
    for number in range(2):
        image = fashion_mnist.test_images[number]
        # On a background of equal pixels all cells of a pooling window tie: there the score has an
        # edge, and no derivative.
        image = image + np.random.default_rng(0).uniform(0, 0.02, image.shape).astype(np.float32)
        pixels = fifty(image, number)
        label = fashion_mnist.test_labels[number]
        found = saliency(fashion, image[np.newaxis], label)[0][*pixels.T]
        expected = differences(twin, image, label, pixels, 1e-6)
        np.testing.assert_allclose(found, expected, rtol=1e-3)


# run by hand


def random_statistics(model, seed):
    """Batch normalisation as after a training: gammas of both signs, variances other than 1."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            gamma, beta, mean = rng.normal(size=(3, layer.gamma.shape[0]))
            gamma *= 4  # so that some of what comes to a ReLU6 is above 6
            layer.set_weights([gamma, beta, mean, rng.uniform(0.5, 2, gamma.shape)])
    return model


def branched(seed=0):
    """Strides, "same", addition, overlapping pooling, depthwise, ReLU and ReLU6 on their own."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((25, 22, 3))
    x = L.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(inputs)
    shortcut = L.ReLU(6.0, name="relu6")(L.BatchNormalization()(x))
    x = L.Conv2D(8, 3, padding="same", activation="relu")(shortcut)
    x = L.BatchNormalization()(L.Conv2D(6, 1, bias_initializer="normal")(x))
    x = L.Activation("relu")(L.Add(name="sum")([x, shortcut]))
    x = L.MaxPooling2D(3, strides=2, padding="same", name="pooled")(x)
    x = L.DepthwiseConv2D(3, use_bias=False)(x)
    x = L.ReLU(name="rectified")(L.BatchNormalization(name="norm")(x))
    x = L.AveragePooling2D(2, strides=2, padding="same")(x)
    x = L.Conv2D(5, 2, activation="relu6", bias_initializer="normal", name="last")(x)
    x = L.Dense(4, name="logits")(L.GlobalAveragePooling2D()(x))
    return random_statistics(keras.Model(inputs, x), seed)


def narrow(seed=0):
    """ "valid" throughout, padding as a layer, normalisation after the ReLU, a flattened head."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((25, 22, 3))
    x = L.ZeroPadding2D(((0, 1), (2, 1)))(inputs)
    x = L.Conv2D(5, (3, 2), strides=(1, 2), activation="relu")(x)
    x = L.MaxPooling2D(2)(L.BatchNormalization()(x))
    x = L.Conv2D(6, 3, activation="relu6", bias_initializer="normal", name="relu6")(x)
    x = L.AveragePooling2D((2, 3), strides=2)(L.BatchNormalization()(x))
    x = L.Dense(4, name="logits")(L.Flatten()(x))
    return random_statistics(keras.Model(inputs, x), seed)


@pytest.mark.parametrize("make", [branched, narrow])
def test_the_rules_agree_with_networks_run_by_hand(make):
    for seed in (3, 6):
        model, batch, classes = make(seed), images(3, seed, (25, 22, 3)), [2, 0, 3]
        values = by_hand.run(model, batch)
        same(np.float32(values["logits"]), model(batch).numpy())
        assert (values["relu6"] == 6).any()
        seeds, maps = np.eye(4)[classes], {}
        for rule, method in (
            ("backprop", saliency),
            ("deconvnet", deconvnet),
            ("guided", guided_backprop),
        ):
            maps[rule] = by_hand.send_back(model, values, "logits", seeds, rule)
            found = method(model, batch, classes)
            assert (np.abs(found).max(axis=(1, 2, 3)) > 0).all()
            for one, other in zip(found, maps[rule], strict=True):
                same(one, other)
        assert np.abs(maps["guided"] - maps["backprop"]).max() > 0.1 * maps["guided"].max()
        assert np.abs(maps["guided"] - maps["deconvnet"]).max() > 0.1 * maps["guided"].max()


def test_the_fashion_network_run_by_hand(fashion, fashion_mnist):
    batch = fashion_mnist.test_images[:1]
    values = by_hand.run(fashion, batch)
    seed = np.eye(10)[values[fashion.layers[-1].name].argmax(axis=1)]
    for rule, method in (("deconvnet", deconvnet), ("guided", guided_backprop)):
        expected = by_hand.send_back(fashion, values, fashion.layers[-1].name, seed, rule)
        same(method(fashion, batch), expected)


# SmoothGrad


def test_without_noise_smooth_grad_is_saliency():
    model = network()
    same(
        smooth_grad(model, images(), [0, 1, 2], noise=0, samples=3),
        saliency(model, images(), [0, 1, 2]),
    )


def test_smooth_grad_of_a_linear_model_is_its_weights():
    model = linear()
    found = smooth_grad(model, images(), 2, noise=3.0, samples=5)
    same(found, np.tile(weights_of(model, 2), (3, 1, 1, 1)))


def test_smooth_grad_is_the_mean_over_noisy_copies_with_a_deviation_of_each_images_own():
    model, batch = network(), images() * np.array([1, 10, 0.1], np.float32).reshape(-1, 1, 1, 1)
    found = smooth_grad(model, batch, 1, noise=0.3, samples=7, seed=5)
    for index, image in enumerate(batch):
        rng, total = np.random.default_rng(5), 0
        for _ in range(7):
            noise = rng.standard_normal(SIZE, np.float32) * 0.3 * (image.max() - image.min())
            total = total + saliency(model, (image + noise)[np.newaxis].astype(np.float32), 1)[0]
        same(found[index], total / 7)


def test_smooth_grad_explains_the_class_of_the_image_without_noise():
    model = network(L.Flatten())
    top = model(images()).numpy().argmax(axis=1)
    options = {"noise": 1.0, "samples": 8}
    found = smooth_grad(model, images(), **options)
    np.testing.assert_array_equal(found, smooth_grad(model, images(), top, **options))
    rng = np.random.default_rng(0)
    noisy = images()[0] + np.ptp(images()[0]) * rng.standard_normal((8, *SIZE), np.float32)
    assert len(set(model(noisy).numpy().argmax(axis=1))) > 1


def test_smooth_grad_goes_by_its_seed_and_not_by_how_copies_are_batched():
    model = network()
    first = smooth_grad(model, images(), 0, samples=7)
    np.testing.assert_array_equal(smooth_grad(model, images(), 0, samples=7), first)
    for batch_size in (1, 3, 7):
        same(smooth_grad(model, images(), 0, samples=7, batch_size=batch_size), first)
    other = smooth_grad(model, images(), 0, samples=7, seed=1)
    assert np.abs(other - first).max() > 0.01 * np.abs(first).max()


# integrated gradients


def score_rise(model, batch, classes, baseline=0.0):
    start = np.broadcast_to(np.float32(baseline), batch.shape)
    scores = (model(each, training=False).numpy() for each in (batch, start))
    above, below = (np.take_along_axis(each, classes[:, np.newaxis], 1)[:, 0] for each in scores)
    return above - below


def adds_up(found, rise, tolerance=0.01):
    error = np.abs(found.sum(axis=(1, 2, 3), dtype=np.float64) - rise) / np.abs(rise)
    assert error.max() <= tolerance
    return error.max()


@pytest.mark.parametrize("baseline", [0, 0.5, 1])
def test_fifty_steps_add_up_on_the_fashion_network(fashion, fashion_mnist, baseline):
    batch = fashion_mnist.test_images[:10]
    classes = fashion(batch).numpy().argmax(axis=1)
    found = integrated_gradients(fashion, batch, baseline=baseline)
    adds_up(found, score_rise(fashion, batch, classes, baseline))


def test_fifty_steps_add_up_on_mobilenet(mobilenet, photographs):
    found = integrated_gradients(mobilenet.model, photographs)
    classes = mobilenet.model(photographs).numpy().argmax(axis=1)
    adds_up(found, score_rise(mobilenet.model, photographs, classes))


@pytest.mark.parametrize("baseline", [0, -1.5, "channels", "image"])
def test_fifty_steps_add_up_on_a_small_network_from_any_baseline(baseline):
    rng = np.random.default_rng(7)
    arrays = {"channels": rng.normal(size=2), "image": rng.normal(size=SIZE)}
    baseline = arrays.get(baseline, baseline)
    model, classes = network(L.Flatten()), np.array([3, 0, 1])
    found = integrated_gradients(model, images(), classes, baseline=baseline)
    adds_up(found, score_rise(model, images(), classes, baseline), 1e-4)
    whole = np.broadcast_to(baseline, SIZE)
    np.testing.assert_array_equal(
        integrated_gradients(model, images(), classes, baseline=whole), found
    )


def along_the_way(model, image, class_index, baseline, steps):
    """Shares of each step of the score's rise (steps, height, width, channels), by a tape."""
    way = np.float64(image) - baseline
    times = (np.arange(steps) + 0.5) / steps
    shares = []
    for time in times:
        with tf.GradientTape() as tape:
            x = tf.constant((baseline + time * way)[np.newaxis], tf.float32)
            tape.watch(x)
            score = model(x)[:, class_index]
        shares.append(tape.gradient(score, x).numpy()[0] * way)
    return np.array(shares)


def test_steps_of_equal_weight_are_the_midpoint_rule():
    model = network(L.Flatten())
    found = integrated_gradients(model, images(), 1, steps=6, baseline=0.3, complete=False)
    for image, one in zip(images(), found, strict=True):
        same(one, along_the_way(model, image, 1, 0.3, 6).mean(axis=0))


def test_weights_are_the_nearest_to_equal_ones_that_add_up():
    model, steps = network(L.Flatten(), activation="tanh"), 5
    classes, batch = np.full(3, 1), 6 * images()
    found = integrated_gradients(model, batch, 1, steps=steps)
    rises = score_rise(model, batch, classes)
    for image, one, rise in zip(batch, found, rises, strict=True):
        shares = along_the_way(model, image, 1, 0.0, steps)
        equal = np.full(steps, 1 / steps)
        conditions = np.stack([np.ones(steps), shares.sum(axis=(1, 2, 3))])
        lacking = [1, rise] - conditions @ equal
        weights = equal + np.linalg.lstsq(conditions, lacking)[0]  # the least change that does it
        assert np.abs(weights - equal).max() > 0.003
        assert weights.min() > 0
        same(one, np.tensordot(weights, shares, 1), 1e-4)


def bent(*slopes_from):
    """A score of one pixel t from 0 to 1: a sum of slope · ReLU(t - start)."""
    slopes, starts = np.transpose(slopes_from)
    hidden, score = L.Dense(len(slopes), activation="relu"), L.Dense(2)
    model = keras.Sequential([keras.Input((1, 1, 1)), L.Flatten(), hidden, score])
    hidden.set_weights([np.ones((1, len(slopes))), -starts])
    score.set_weights([np.transpose([slopes, 0 * slopes]), np.zeros(2)])
    return model


def test_weights_are_equal_where_one_would_be_negative():
    pixel = np.ones((1, 1, 1, 1), np.float32)
    steep_between = bent((1, 0), (20, 0.4), (-19, 0.6))  # slopes 1 and 2 at the midpoints
    assert score_rise(steep_between, pixel, np.array([0])) == pytest.approx([5.4], rel=1e-5)
    for complete in (True, False):
        found = integrated_gradients(steep_between, pixel, 0, steps=2, complete=complete)
        assert found.ravel() == pytest.approx([1.5])
    found = integrated_gradients(steep_between, pixel, 0, steps=50)
    assert found.ravel() == pytest.approx([5.4], rel=1e-4)
    late = bent((1, 0), (20, 0.9))  # slopes 1, 1 at the midpoints: no weights add up to 3
    found = integrated_gradients(late, pixel, 0, steps=2)
    assert found.ravel() == pytest.approx([1.0])


def test_a_score_that_is_straight_along_the_way_is_not_blown_up():
    model = network(L.Flatten())
    for name in ("first", "last"):
        bias = model.get_layer(name).bias
        bias.assign(0 * bias)  # from 0 on, no gate changes any more: all slopes are equal
    batch = images(12)
    gradient = saliency(model, batch, 0)
    for steps in (6, 7, 50):
        same(integrated_gradients(model, batch, 0, steps=steps), batch * gradient)


def test_a_linear_model_takes_one_step():
    model = linear()
    for steps in (1, 3):
        found = integrated_gradients(model, images(), 2, steps=steps, baseline=0.5)
        same(found, (images() - 0.5) * weights_of(model, 2))


def test_an_image_that_is_the_baseline_gets_nothing():
    model = network()
    assert not integrated_gradients(model, images(1), 0, baseline=images(1)[0]).any()


def test_weights_that_add_up_lead_hardly_further_from_the_integral(fashion, fashion_mnist):
    batch, off = fashion_mnist.test_images[1:3], {}
    exact = integrated_gradients(fashion, batch, steps=1000, complete=False, batch_size=100)
    for complete in (True, False):
        found = integrated_gradients(fashion, batch, complete=complete)
        off[complete] = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert off[True] <= 1.1 * off[False] < 0.15


def test_steps_go_through_the_network_in_batches():
    model = network()
    together = integrated_gradients(model, images(), 0, steps=7)
    for batch_size in (1, 3):
        same(integrated_gradients(model, images(), 0, steps=7, batch_size=batch_size), together)


# guided Grad-CAM


def test_guided_grad_cam_is_guided_backpropagation_times_the_heatmap_in_its_place():
    model = network(L.Flatten())
    drawing = guided_backprop(model, images(), [0, 1, 2])
    field = ReceptiveField((9, 9), (2, 2), (3, 1))
    for layer in ("first", "last"):
        heatmaps = cams.grad_cam(model, images(), [0, 1, 2], layer=layer)
        real = models.receptive_field(model, layer)
        found = [
            guided_grad_cam(model, images(), [0, 1, 2], layer=layer, **options)
            for options in ({}, {"placement": "resize"}, {"placement": field})
        ]
        for one, where in zip(found, (real, "resize", field), strict=True):
            same(one, drawing * place(heatmaps, SIZE[:2], where)[..., np.newaxis])
        assert np.abs(found[0] - found[1]).max() > 0.01 * np.abs(found[0]).max()
    same(guided_grad_cam(model, images(), [0, 1, 2]), found[0])


def test_guided_grad_cam_of_a_layer_in_a_nested_model():
    flat = network()
    backbone = keras.Model(flat.input, flat.get_layer("last").output, name="backbone")
    steps = [keras.Input(SIZE), backbone, L.GlobalAveragePooling2D(), flat.get_layer("logits")]
    outer = keras.Sequential(steps)
    for layer, path in ((None, None), ("last", "backbone/last"), ("first", "backbone/first")):
        expected = guided_grad_cam(flat, images(), 1, layer=layer)
        same(guided_grad_cam(outer, images(), 1, layer=path), expected)


# an independent library


def theirs(model, batch, classes, **options):
    """tf-keras-vis's gradients as they are; it passes its images as a list."""
    listed = keras.Model([model.input], model.output)
    raw = {"keepdims": True, "gradient_modifier": None, "normalize_map": False}
    return np.asarray(Saliency(listed, **options)(CategoricalScore(classes), batch, **raw))


def test_parity_of_saliency_on_a_small_network():
    same(saliency(network(), images(), [0, 1, 3]), theirs(network(), images(), [0, 1, 3]), 1e-4)


def test_parity_on_the_fashion_network(fashion, fashion_mnist):
    batch, classes = fashion_mnist.test_images[:4], [9, 2, 1, 1]
    same(saliency(fashion, batch, classes), theirs(fashion, batch, classes), 1e-4)
    guided = theirs(fashion, batch, classes, model_modifier=GuidedBackpropagation())
    same(guided_backprop(fashion, batch, classes), guided, 1e-4)


def test_parity_of_saliency_on_mobilenet_and_where_its_guided_backpropagation_has_no_gate(
    mobilenet, photographs
):
    model, batch, classes = mobilenet.model, photographs[:2], [285, 967]
    plain = saliency(model, batch, classes)
    same(plain, theirs(model, batch, classes), 1e-4)
    ungated = theirs(model, batch, classes, model_modifier=GuidedBackpropagation())
    same(plain, ungated, 1e-4)  # it knows activations of layers, not layers that are one
    gated = guided_backprop(model, batch, classes)
    assert np.corrcoef(gated.ravel(), ungated.ravel())[0, 1] < 0.5


# every kind of request and model


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_its_images_one_by_one(method):
    model, classes, method = network(L.Flatten()), [3, 0, 1], quick(method)
    together = method(model, images(), classes)
    for index, image in enumerate(images()):
        same(together[index], method(model, image[np.newaxis], classes[index])[0])
    same(method(model, images(), classes, batch_size=2), together)


@pytest.mark.parametrize("method", METHODS)
def test_classes_one_for_all_one_for_each_or_the_top(method):
    model, method = network(L.Flatten(), seed=5), quick(method)
    top = model(images()).numpy().argmax(axis=1)
    assert len(set(top)) > 1
    np.testing.assert_array_equal(method(model, images()), method(model, images(), top))
    np.testing.assert_array_equal(method(model, images(), 2), method(model, images(), [2, 2, 2]))
    other = np.abs(method(model, images(), 2) - method(model, images(), 3)).max()
    assert other > 0.1 * np.abs(method(model, images(), 2)).max()


@pytest.mark.parametrize("method", METHODS)
def test_one_logit_is_two_classes(method):
    one, two, method = network(classes=1), network(classes=2), quick(method)
    for name in ("first", "last"):
        two.get_layer(name).set_weights(one.get_layer(name).get_weights())
    kernel, bias = one.get_layer("logits").get_weights()
    two.get_layer("logits").set_weights([np.hstack([-kernel, kernel]), np.hstack([-bias, bias])])
    found = {index: method(one, images(), index) for index in (0, 1)}
    for index, maps in found.items():
        np.testing.assert_allclose(maps, method(two, images(), index), atol=1e-6)
    assert np.abs(found[1] - found[0]).max() > 0
    top = (one(images()).numpy()[:, 0] > 0).astype(int)
    np.testing.assert_array_equal(method(one, images()), method(one, images(), top))


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_gives_float32(method):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    exact = network()
    exact.set_weights(model.get_weights())
    found, expected = (quick(method)(each, images(), 1) for each in (model, exact))
    assert found.dtype == np.float32
    off = np.abs(found - expected).mean()  # a few gates may differ
    assert 0 < off < 0.02 * np.abs(expected).mean()


def test_a_nested_or_sequential_model_gives_the_map_of_the_same_layers():
    flat = network()
    backbone = keras.Model(flat.input, flat.get_layer("last").output)
    rest = [L.GlobalAveragePooling2D(), flat.get_layer("logits")]
    outer = keras.Sequential([keras.Input(SIZE), backbone, *rest])
    for method in METHODS[:-1]:
        same(quick(method)(outer, images(), 1), quick(method)(flat, images(), 1))


def test_an_output_given_as_a_list_or_a_dict_is_that_output():
    model = network()
    expected = saliency(model, images(), 1)
    for output in ([model.output], {"scores": model.output}):
        same(saliency(keras.Model(model.input, output), images(), 1), expected)


def test_images_of_any_size_and_in_double_precision():
    model = network(size=(None, None, 2))
    for size in [(12, 10, 2), (21, 15, 2)]:
        batch, fixed = images(size=size), network(size=size)
        for method in METHODS:
            expected = quick(method)(fixed, batch, 0)
            same(quick(method)(model, batch.astype(np.float64), 0), expected)


def test_nothing_of_the_caller_changes():
    model, batch, start = network(), images(), images(1, 2)[0]
    kept, config, before = batch.copy(), str(model.get_config()), model(batch).numpy()
    batch.flags.writeable = start.flags.writeable = False
    for method in METHODS:
        options = {"baseline": start} if method is integrated_gradients else {}
        first = quick(method)(model, batch, 0, **options)
        np.testing.assert_array_equal(quick(method)(model, batch, 0, **options), first)
    np.testing.assert_array_equal(batch, kept)
    np.testing.assert_array_equal(model(batch).numpy(), before)
    assert str(model.get_config()) == config


def test_traced_once_for_all_batch_sizes_and_once_for_each_rule(monkeypatch):
    model, traced = network(), []
    real = compiled._network
    monkeypatch.setattr(compiled, "_network", lambda model: traced.append(model) or real(model))
    for count in (1, 3):
        for method in (saliency, smooth_grad, integrated_gradients, guided_backprop, deconvnet):
            quick(method)(model, images(count), 0)
    assert traced == [model] * 3


def test_weights_that_change_change_the_map():
    model = network()
    before = {method: quick(method)(model, images(), 0) for method in METHODS[:-1]}
    model.get_layer("logits").kernel.assign(2 * model.get_layer("logits").kernel)
    for method, maps in before.items():
        same(quick(method)(model, images(), 0), 2 * maps)


def test_a_dropped_model_takes_its_compiled_functions_along():
    model = network()
    for method in METHODS:
        quick(method)(model, images(), 0)
    functions = [weakref.ref(made) for made in _MADE[model][1].values() if callable(made)]
    held = weakref.ref(model)
    assert len(functions) == 4  # three rules and Grad-CAM
    del model
    gc.collect()
    assert held() is None
    assert [function() for function in functions] == [None] * 4


@pytest.mark.parametrize("method", [smooth_grad, integrated_gradients])
def test_progress_is_shown_when_asked(method, capfd):
    quick(method)(network(), images(1), 0)
    assert capfd.readouterr().err == ""
    quick(method)(network(), images(1), 0, progress=True)
    assert "passes" in capfd.readouterr().err


# errors

ERRORS = {
    "softmax": (
        {"model": lambda: keras.Sequential([network(), L.Softmax()], name="sure")},
        "expected a model that returns logits, received 'sure', which ends in softmax: explain "
        "models.to_logits(model).",
    ),
    "one image": (
        {"images": lambda: images()[0]},
        "expected images (batch, height, width, channels), received (12, 10, 2): "
        "images[np.newaxis] makes one image a batch.",
    ),
    "another size": (
        {"images": lambda: images(size=(10, 12, 2))},
        "expected images (None, 12, 10, 2), received (3, 10, 12, 2): resize or convert them to "
        "what 'network' takes.",
    ),
    "integers": (
        {"images": lambda: np.zeros((1, *SIZE), np.uint8)},
        "expected float images as 'network' wants them, received uint8: preprocess them first.",
    ),
    "NaN": (
        {"images": lambda: images() * np.nan},
        "expected finite pixels, received NaN or infinite ones in image 0 (3 of 3 images): mend "
        "or leave it out.",
    ),
    "too high a class": (
        {"class_index": lambda: 4},
        "expected class_index from 0 to 3, received 4: there are 4.",
    ),
    "no integer": (
        {"class_index": lambda: 1.0},
        "expected class_index as an integer, one for each image, or None for the top class, "
        "received 1.0.",
    ),
    "no batch size": (
        {"batch_size": lambda: 0},
        "expected batch_size as an integer of 1 or more, received 0.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_gets_one_sentence(case):
    changes, sentence = ERRORS[case]
    asked = {"model": network, "images": images, "class_index": lambda: 0, **changes}
    for method in METHODS:
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            method(**{name: make() for name, make in asked.items()})


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        (smooth_grad, {"noise": -0.1}, "expected noise as a number of 0 or more, received -0.1."),
        (smooth_grad, {"noise": np.inf}, "expected noise as a number of 0 or more, received inf."),
        (smooth_grad, {"noise": np.nan}, "expected noise as a number of 0 or more, received nan."),
        (smooth_grad, {"samples": 0}, "expected samples as an integer of 1 or more, received 0."),
        (
            integrated_gradients,
            {"steps": 2.0},
            "expected steps as an integer of 1 or more, received 2.0.",
        ),
        (
            integrated_gradients,
            {"baseline": np.zeros((10, 12, 2))},
            "expected a baseline as one value or as an image (12, 10, 2), received (10, 12, 2).",
        ),
        (
            integrated_gradients,
            {"baseline": np.nan},
            "expected a finite baseline, received NaN or infinite values.",
        ),
        (
            guided_grad_cam,
            {"placement": "centre"},
            "expected placement 'receptive_field', 'resize' or a ReceptiveField, received "
            "'centre'.",
        ),
        (
            guided_grad_cam,
            {"layer": "conv9", "placement": "resize"},
            "layer 'conv9' is not in 'network'. Try one of: 'first', 'last'.",
        ),
    ],
)
def test_choices_are_named(method, options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        method(network(), images(), 0, **options)


def test_gradients_that_stop_on_the_way_to_the_pixels_are_named():
    class Stop(L.Layer):
        def call(self, x):
            return keras.ops.stop_gradient(x)

    inputs = keras.Input(SIZE, name="pixels")
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(Stop()(inputs))))
    with pytest.raises(ValueError, match="can be derived by the pixels, received one"):
        saliency(model, images(), 0)


def test_an_activation_set_later_is_seen():
    model = network()
    saliency(model, images(), 0)
    model.get_layer("logits").activation = keras.activations.softmax
    for method in METHODS:
        with pytest.raises(ValueError, match="which ends in softmax: explain"):
            method(model, images(), 0)
