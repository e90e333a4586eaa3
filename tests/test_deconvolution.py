"""One activation sent back: networks run by hand, known answers, and each error by its message."""

import gc
import re
import weakref

import by_hand
from cam_helpers import models
from cam_helpers.backend import keras
from cam_helpers.deconvolution import deconvolve
from cam_helpers.filters import maximize_activation
from cam_helpers.gradients import saliency
from cam_helpers.once import _MADE
from cam_helpers.relu_rules import RULES
import numpy as np
import pytest
from test_gradients import branched, images, narrow, same

L = keras.layers
SIZE = (25, 22, 3)


def network(seed=0, size=SIZE):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(size)
    x = L.Conv2D(4, 3, strides=2, activation="relu", name="first")(inputs)
    x = L.Conv2D(5, 3, padding="same", name="linear")(L.MaxPooling2D(2, name="pooled")(x))
    x = L.GlobalAveragePooling2D(name="means")(L.ReLU(name="last")(x))
    return keras.Model(inputs, L.Dense(3)(x), name="network")


def one_map(row):
    """Images of one row that are their own map, twice: as they are, and times -2."""
    inputs = keras.Input((1, len(row), 1))
    model = keras.Model(inputs, L.Conv2D(2, 1, use_bias=False, name="maps")(inputs))
    model.layers[-1].set_weights([np.reshape([1.0, -2.0], (1, 1, 1, 2))])
    return model, np.reshape(row, (1, 1, -1, 1)).astype(np.float32)


def by_hand_alone(model, values, layer, maps, rule):
    """Of a map for each image the cell that is highest before its ReLU, sent back alone."""
    alone, before = np.zeros_like(values[layer]), by_hand.before_relu(model, values, layer)
    for index, number in enumerate(maps):
        highest = before[index, ..., number]
        cell = np.unravel_index(highest.argmax(), highest.shape)
        alone[index, *cell, number] = values[layer][index, *cell, number]
    return by_hand.send_back(model, values, layer, alone, rule, inside=True)


@pytest.mark.parametrize(
    ("make", "layer", "rules"),
    [
        (branched, "rectified", RULES),
        (branched, "norm", ["deconvnet"]),  # where the strongest value of a map may be negative
        (branched, "pooled", ["deconvnet"]),
        (branched, "sum", ["guided"]),
        (narrow, "relu6", RULES),
    ],
)
def test_deconvolution_agrees_with_a_network_run_by_hand(make, layer, rules):
    model, batch = make(3), images(3, 3, SIZE)
    values = by_hand.run(model, batch)
    peaks = values[layer].max(axis=(1, 2))  # (images, maps)
    maps = (peaks if layer != "norm" else -peaks).argmax(axis=1)
    assert (peaks.min(axis=1) < 0).all() == (layer == "norm")
    for rule in rules:
        found = deconvolve(model, batch, layer, maps, rule=rule)
        same(found, by_hand_alone(model, values, layer, maps, rule))
        assert found.any(axis=(1, 2, 3)).all()


def test_deconvolution_agrees_with_the_fashion_network_run_by_hand(fashion_mnist):
    model, batch = models.load_fashion_cnn(), fashion_mnist.test_images[:2]
    values = by_hand.run(keras.Model(model.input, model.get_layer("norm8").output), batch)
    strongest = values["final"].max(axis=(1, 2)).argmax(axis=1)
    for rule in RULES:
        expected = by_hand_alone(model, values, "final", strongest, rule)
        same(deconvolve(model, batch, "final", strongest, rule=rule), expected)


def test_what_goes_down_is_the_activation_itself_and_the_first_of_equal_ones():
    model, row = one_map([1, 5, -3, 5])
    assert deconvolve(model, row, "maps", 0).ravel().tolist() == [0, 5, 0, 0]
    assert deconvolve(model, row, "maps", 1).ravel().tolist() == [0, 0, -12, 0]  # 6 times -2


def test_a_strongest_activation_that_is_negative_goes_down_as_it_is():
    model, row = one_map([-4, -2, -3])
    assert deconvolve(model, row, "maps", 0).ravel().tolist() == [0, -2, 0]
    found = deconvolve(*one_map([4, 1, 3]), "maps", 1)
    assert found.ravel().tolist() == [0, 4, 0]  # -2 times -2


def test_at_the_ceiling_of_relu6_the_cell_that_would_be_highest_goes_down():
    x = inputs = keras.Input((1, 4, 1))
    for layer in (L.Conv2D(1, 1, use_bias=False, kernel_initializer="ones"), L.ReLU(6, name="top")):
        x = layer(x)
    row = np.reshape([1, 7, 9, 6], (1, 1, 4, 1)).astype(np.float32)
    for rule in RULES:
        found = deconvolve(keras.Model(inputs, x), row, "top", 0, rule=rule)
        assert found.ravel().tolist() == [0, 0, 6, 0]


def test_a_map_that_is_zero_everywhere_gives_nothing():
    model = network()
    kernel, bias = model.get_layer("first").get_weights()
    model.get_layer("first").set_weights([0 * kernel, bias - 1])
    assert not deconvolve(model, images(1, size=SIZE), "first", 0).any()


def test_backprop_is_the_gradient_of_half_the_square_of_the_strongest_activation():
    model, batch = network(), images(size=SIZE)
    strongest = keras.ops.max(model.get_layer("last").output, axis=(1, 2))
    score = keras.Model(model.input, L.Rescaling(0.5)(strongest**2))
    found = deconvolve(model, batch, "last", [4, 0, 1], rule="backprop")
    same(found, saliency(score, batch, [4, 0, 1]))


def test_a_batch_equals_its_images_one_by_one():
    model, batch = network(), images(size=SIZE)
    for rule in RULES:
        together = deconvolve(model, batch, "last", [4, 0, 1], rule=rule)
        for index, number in enumerate([4, 0, 1]):
            alone = deconvolve(model, batch[index : index + 1], "last", number, rule=rule)
            same(alone[0], together[index])
        same(deconvolve(model, batch, "last", [4, 0, 1], rule=rule, batch_size=2), together)
    one = deconvolve(model, batch, "last", 2)
    np.testing.assert_array_equal(deconvolve(model, batch, "last", [2, 2, 2]), one)


def test_a_layer_in_a_nested_model_and_a_sequential_one():
    flat, batch = network(), images(size=SIZE)
    body = keras.Model(flat.input, flat.get_layer("last").output, name="body")
    outer = keras.Sequential([keras.Input(SIZE), body, L.Flatten(), L.Dense(3)])
    for path, layer in (("body/last", "last"), ("body", "last"), ("body/first", "first")):
        same(deconvolve(outer, batch, path, 1), deconvolve(flat, batch, layer, 1))


def test_what_comes_after_the_layer_does_not_matter():
    model, batch = network(), images(size=SIZE)
    x = L.Activation("silu")(model.get_layer("last").output)
    other = keras.Model(model.input, L.Dense(3, activation="softmax")(L.Flatten()(x)))
    np.testing.assert_array_equal(
        deconvolve(other, batch, "last", 1), deconvolve(model, batch, "last", 1)
    )


def test_images_of_any_size_and_mixed_precision():
    model = network(size=(None, None, 3))
    for size in (SIZE, (31, 40, 3)):
        found = deconvolve(model, images(size=size).astype(np.float64), "last", 1)
        same(found, deconvolve(network(size=size), images(size=size), "last", 1))
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = network()
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(network().get_weights())
    found, expected = (deconvolve(each, images(size=SIZE), "last", 1) for each in (half, network()))
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()


def test_nothing_of_the_caller_changes():
    model, batch = network(), images(size=SIZE)
    kept, scores, plain = batch.copy(), model(batch).numpy(), saliency(model, batch, 0)
    batch.flags.writeable = False
    first = deconvolve(model, batch, "last", 1)
    np.testing.assert_array_equal(deconvolve(model, batch, "last", 1), first)
    np.testing.assert_array_equal(batch, kept)
    np.testing.assert_array_equal(model(batch).numpy(), scores)
    np.testing.assert_array_equal(saliency(model, batch, 0), plain)


def test_it_shares_a_model_with_the_other_methods():
    model, batch = network(), images(size=SIZE)
    first = deconvolve(model, batch, "last", 1)
    maximize_activation(model, "last", 1, steps=1)
    np.testing.assert_array_equal(deconvolve(model, batch, "last", 1), first)
    other = network()
    maximize_activation(other, "last", 1, steps=1)
    np.testing.assert_array_equal(deconvolve(other, batch, "last", 1), first)


def test_compiled_once_for_each_layer_and_rule_and_gone_with_the_model():
    model, batch = network(), images(size=SIZE)
    for count in (1, 3):
        deconvolve(model, batch[:count], "last", 0)
        deconvolve(model, batch[:count], "last", 3)
    functions = [made for made in _MADE[model][1].values() if callable(made)]
    assert len(functions) == 1
    for layer, rule in (("last", "guided"), ("first", "guided"), ("last", "backprop")):
        deconvolve(model, batch, layer, 0, rule=rule)
    functions = [weakref.ref(made) for made in _MADE[model][1].values() if callable(made)]
    assert len(functions) == 4
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None
    assert [function() for function in functions] == [None] * 4


# errors


def two_inputs():
    inputs = [keras.Input(SIZE), keras.Input(SIZE)]
    x = L.Conv2D(2, 3, name="last")(L.Add()(inputs))
    return keras.Model(inputs, x, name="two")


ERRORS = {
    "another rule": (
        {"rule": "relu"},
        "expected one of backprop, deconvnet, guided, received 'relu'.",
    ),
    "no batch size": (
        {"batch_size": 0},
        "expected batch_size as an integer of 1 or more, received 0.",
    ),
    "too high a map": (
        {"map_index": [0, 5, 1]},
        "expected map_index from 0 to 4, received 5: there are 5.",
    ),
    "a negative map": (
        {"map_index": -1},
        "expected map_index from 0 to 4, received -1: there are 5.",
    ),
    "no integer": (
        {"map_index": None},
        "expected map_index as an integer, one for each image, received None.",
    ),
    "too few maps": (
        {"map_index": [0, 1]},
        "expected one map_index for all images or one for each of 3, received shape (2,).",
    ),
    "an unknown layer": (
        {"layer": "conv9"},
        "layer 'conv9' is not in 'network'. Try one of: 'first', 'pooled', 'linear', 'last'.",
    ),
    "a layer without maps": (
        {"layer": "means"},
        "layer 'means' has shape (None, 5); a map needs (batch, height, width, maps). Try one "
        "of: 'first', 'pooled', 'linear', 'last'.",
    ),
    "one image": (
        {"images": images(size=SIZE)[0]},
        "expected images (batch, height, width, channels), received (25, 22, 3): "
        "images[np.newaxis] makes one image a batch.",
    ),
    "two inputs": (
        {"model": two_inputs},
        "expected a model with one input, received 'two' with 2: rebuild it as a keras.Model of "
        "the image alone.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_gets_one_sentence(case):
    changes, sentence = ERRORS[case]
    asked = {"model": network, "images": images(size=SIZE), "layer": "last", "map_index": 0}
    asked |= changes
    model = asked.pop("model")()
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        deconvolve(model, **asked)


def test_activations_before_the_layer_must_be_relus_unless_the_rule_is_the_gradient():
    inputs = keras.Input(SIZE)
    x = L.Conv2D(2, 3, activation="silu", name="bent")(inputs)
    model = keras.Model(inputs, L.Conv2D(2, 3, name="last")(x))
    for rule in ("deconvnet", "guided"):
        with pytest.raises(ValueError, match="received silu in layer 'bent': the rule knows no"):
            deconvolve(model, images(size=SIZE), "last", 0, rule=rule)
    assert deconvolve(model, images(size=SIZE), "last", 0, rule="backprop").any()


def test_gradients_that_stop_on_the_way_to_the_pixels_are_named():
    class Stop(L.Layer):
        def call(self, x):
            return keras.ops.stop_gradient(x)

    inputs = keras.Input(SIZE, name="pixels")
    model = keras.Model(inputs, L.Conv2D(2, 3, name="last")(Stop()(inputs)))
    with pytest.raises(ValueError, match="can be derived by the pixels, received one"):
        deconvolve(model, images(size=SIZE), "last", 0)
