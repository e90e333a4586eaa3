"""The rules at a ReLU: known answers wherever one may hide, refusals by name, nothing changed."""

import functools
import importlib
import re

from cam_helpers import compiled, relu_rules
from cam_helpers.backend import keras, tf
from cam_helpers.gradients import deconvnet, guided_backprop, saliency
import numpy as np
import pytest

L = keras.layers

# What goes into the ReLU, what comes down to it, and what each rule lets through.
X = [-1, -1, 2, 2, 2, 0, 6, 7, 7]
R = [4, -5, 4, -5, 0, 4, 4, 4, -5]
METHODS = {"backprop": saliency, "deconvnet": deconvnet, "guided": guided_backprop}
RELU = {
    "backprop": [0, 0, 4, -5, 0, 0, 4, 4, -5],
    "deconvnet": [4, 0, 4, 0, 0, 4, 4, 4, 0],
    "guided": [0, 0, 4, 0, 0, 0, 4, 4, 0],
}
RELU6 = {
    "backprop": [0, 0, 4, -5, 0, 0, 0, 0, 0],
    "deconvnet": [4, 0, 4, 0, 0, 4, 4, 4, 0],
    "guided": [0, 0, 4, 0, 0, 0, 0, 0, 0],
}
ROW = (1, len(X), 1)


def explained(*steps):
    """A network of these steps, each linear part of which is the identity, under one score."""
    return side_by_side([lambda x: functools.reduce(lambda x, step: step(x), steps, x)])


def side_by_side(places):
    """The same, where each of several steps gets an image row of its own."""
    inputs = keras.Input((len(places), *ROW[1:]))
    rows = [place(inputs[:, i : i + 1]) for i, place in enumerate(places)]
    x = L.Concatenate(axis=1)(rows) if len(rows) > 1 else rows[0]
    model = keras.Model(inputs, L.Dense(2, use_bias=False, name="score")(L.Flatten()(x)))
    for variable in model.trainable_variables:
        if "kernel" in variable.name:
            variable.assign(tf.ones_like(variable))
    model.get_layer("score").kernel.assign(np.transpose([R * len(rows), X * len(rows)]))
    return model


def what_passes(model):
    rows = np.tile(np.float32(X), (model.input_shape[1], 1))[np.newaxis, ..., np.newaxis]
    return {rule: method(model, rows, 0)[0, ..., 0].tolist() for rule, method in METHODS.items()}


def each_row(expected, places):
    return {rule: [row] * len(places) for rule, row in expected.items()}


def nested(*steps, sequential=False):
    if sequential:
        return keras.Sequential([keras.Input(ROW), *steps])
    x = inputs = keras.Input(ROW)
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


class Own(L.Layer):
    def call(self, x):
        return tf.nn.relu(x)


def conv(activation, kind=L.Conv2D):
    return kind(1, 1, use_bias=False, activation=activation)


PLACES = {
    "Conv2D('relu')": lambda: conv("relu"),
    "Conv2D(keras.activations.relu)": lambda: conv(keras.activations.relu),
    "Conv2D(tf.nn.relu)": lambda: conv(tf.nn.relu),
    "Conv2D(keras.ops.relu)": lambda: conv(keras.ops.relu),
    "Conv2D(ReLU())": lambda: conv(L.ReLU()),
    "SeparableConv2D": lambda: conv("relu", L.SeparableConv2D),
    "DepthwiseConv2D": lambda: L.DepthwiseConv2D(1, use_bias=False, activation="relu"),
    "Dense": lambda: L.Dense(1, use_bias=False, activation="relu"),
    "Activation('relu')": lambda: L.Activation("relu"),
    "Activation(ReLU())": lambda: L.Activation(L.ReLU()),
    "ReLU()": lambda: L.ReLU(),
    "keras.ops.relu": lambda: keras.ops.relu,
    "a layer of one's own": lambda: Own(),
    "Lambda": lambda: L.Lambda(tf.nn.relu),
    "nested": lambda: nested(conv("relu")),
    "nested Sequential": lambda: nested(L.ReLU(), sequential=True),
    "nested twice": lambda: nested(nested(L.ReLU(), sequential=True)),
}
PLACES6 = {
    "Conv2D('relu6')": lambda: conv("relu6"),
    "Conv2D(keras.activations.relu6)": lambda: conv(keras.activations.relu6),
    "Conv2D(tf.nn.relu6)": lambda: conv(tf.nn.relu6),
    "Conv2D(keras.ops.relu6)": lambda: conv(keras.ops.relu6),
    "Conv2D(ReLU(6))": lambda: conv(L.ReLU(6)),
    "Activation('relu6')": lambda: L.Activation("relu6"),
    "ReLU(6)": lambda: L.ReLU(6),
    "ReLU(6.0)": lambda: L.ReLU(max_value=6.0),
    "keras.ops.relu6": lambda: keras.ops.relu6,
    "nested": lambda: nested(L.ReLU(6)),
}


@pytest.mark.parametrize(("places", "expected"), [(PLACES, RELU), (PLACES6, RELU6)])
def test_what_each_rule_lets_through_wherever_the_relu_is(places, expected):
    model = side_by_side([make() for make in places.values()])
    assert what_passes(model) == each_row(expected, places)


def test_the_model_may_be_sequential():
    steps = [keras.Input(ROW), L.ReLU(), L.Flatten(), explained(L.ReLU()).get_layer("score")]
    assert what_passes(keras.Sequential(steps)) == each_row(RELU, "1")


def test_the_rule_holds_at_each_of_several_relus():
    turned = L.Conv2D(1, 1, use_bias=False, name="turned")
    model = explained(L.ReLU(), turned, L.ReLU())
    turned.kernel.assign(-tf.ones((1, 1, 1, 1)))
    passed = what_passes(model)
    assert not any(passed["backprop"][0])  # whatever is active below is not above
    assert not any(passed["guided"][0])
    assert passed["deconvnet"][0] == [0] * len(X)  # what is positive above is negative below
    assert what_passes(explained(L.ReLU(), L.ReLU(6))) == each_row(RELU6, "1")


def test_a_relu_shared_by_two_calls_and_branches_that_meet():
    relu = L.ReLU()
    inputs = keras.Input(ROW)
    twice = L.Add()([relu(inputs), relu(inputs)])
    model = keras.Model(inputs, L.Dense(2, use_bias=False)(L.Flatten()(twice)))
    model.layers[-1].set_weights([np.transpose([R, R])])
    expected = {rule: [2 * each for each in row] for rule, row in RELU.items()}
    assert what_passes(model) == each_row(expected, "1")


# refusals

REFUSED = {
    "silu": lambda: conv("silu"),
    "gelu": lambda: conv("gelu"),
    "elu": lambda: L.Activation("elu"),
    "leaky_relu": lambda: L.Activation("leaky_relu"),
    "tanh": lambda: conv("tanh"),
    "sigmoid": lambda: L.Activation("sigmoid"),
    "softplus": lambda: conv("softplus"),
    "hard_silu": lambda: L.Activation("hard_silu"),  # hides a ReLU6
    "hard_sigmoid": lambda: L.Activation("hard_sigmoid"),  # so does this one
    "softmax": lambda: conv("softmax"),
    "<lambda>": lambda: conv(lambda x: tf.nn.relu(x)),
    "ELU": lambda: L.ELU(),
    "LeakyReLU": lambda: L.LeakyReLU(),
    "PReLU": lambda: L.PReLU(),
    "Softmax": lambda: conv(L.Softmax()),
    "Silu": lambda: keras.ops.silu,
    "Gelu": lambda: keras.ops.gelu,
    "LeakyRelu": lambda: keras.ops.leaky_relu,
    "Tanh": lambda: keras.ops.tanh,
    "Sigmoid": lambda: keras.ops.sigmoid,
    "HardSigmoid": lambda: keras.ops.hard_sigmoid,
    "Softplus": lambda: keras.ops.softplus,
}
BENT = {
    "slope": lambda: L.ReLU(negative_slope=0.1),
    "threshold": lambda: L.ReLU(threshold=1.0),
    "another maximum": lambda: L.ReLU(max_value=4),
    "inside an activation": lambda: conv(L.ReLU(max_value=4)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_activations_are_refused_by_name(name):
    where = re.escape(name) + r" in layer '\w+': the rule knows no gate for it; use the plain"
    with pytest.raises(ValueError, match=f"expected ReLU or ReLU6 as activation, received {where}"):
        relu_rules.check_relus(explained(L.ReLU(), REFUSED[name]()))


def test_both_rules_refuse_and_the_plain_gradient_does_not():
    model, row = explained(L.Activation("tanh")), np.ones((1, *ROW), np.float32)
    for method in (deconvnet, guided_backprop, deconvnet):
        with pytest.raises(ValueError, match="received tanh in layer"):
            method(model, row, 0)
    slope = 1 - np.tanh(1) ** 2
    np.testing.assert_allclose(saliency(model, row, 0).ravel(), np.multiply(slope, R), rtol=1e-5)


@pytest.mark.parametrize("name", BENT)
def test_bent_relus_are_refused(name):
    sentence = "received a ReLU with a slope, a threshold or another maximum than 6 in layer '"
    with pytest.raises(ValueError, match=sentence):
        relu_rules.check_relus(explained(BENT[name]()))


@pytest.mark.parametrize("sequential", [False, True])
def test_a_refusal_reaches_into_nested_models(sequential):
    model = explained(nested(L.Activation("tanh", name="inside"), sequential=sequential))
    with pytest.raises(ValueError, match="received tanh in layer 'inside'"):
        relu_rules.check_relus(model)


def test_every_smooth_activation_of_keras_has_a_name_that_is_refused():
    own = ("deserialize", "get", "serialize", "linear", "relu", "relu6")
    smooth = {name for name in vars(keras.activations) if name[0] != "_"}.difference(own)
    assert len(smooth) > 20
    assert all(relu_rules._refused(keras.activations.get(name)) for name in smooth)
    pixels, two = keras.Input((1, 9, 2)), {"threshold": (0, 0)}
    made = {
        name: getattr(keras.ops.nn, name)(pixels, *two.get(name, ()))
        for name in smooth
        if hasattr(keras.ops.nn, name)
    }
    assert len(made) > 20
    for name, tensor in made.items():
        assert relu_rules._refused(tensor._keras_history.operation), name


@pytest.mark.parametrize("activation", [tf.nn.relu, tf.nn.tanh, tf.nn.silu])
def test_an_activation_in_a_function_of_its_own_is_refused_as_no_rule_reaches_it(activation):
    class Compiled(L.Layer):
        @tf.function
        def call(self, x):
            return activation(x)

    model, row = explained(Compiled()), np.array(X, np.float32).reshape(1, *ROW)
    if activation is tf.nn.relu:
        assert saliency(model, row, 0).ravel().tolist() == RELU["backprop"]
    for method in (deconvnet, guided_backprop):
        with pytest.raises(
            ValueError, match=r"'.*call.*': the rule does not reach into it; take @"
        ):
            method(model, row, 0)


# what must not change


def test_nothing_of_the_model_changes():
    model = explained(conv("relu"), L.BatchNormalization(), L.ReLU(6), nested(L.ReLU()))
    row = np.array(X, np.float32).reshape(1, *ROW)
    weights, config = model.get_weights(), str(model.get_config())
    scores, plain = model(row).numpy(), saliency(model, row, 0)
    for method in (guided_backprop, deconvnet):
        assert np.abs(method(model, row, 0) - plain).max() > 1
        np.testing.assert_array_equal(saliency(model, row, 0), plain)
        fresh = keras.models.clone_model(model)
        fresh.set_weights(weights)
        np.testing.assert_array_equal(saliency(fresh, row, 0), plain)
    assert str(model.get_config()) == config
    for after, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(model(row).numpy(), scores)
    with tf.GradientTape() as tape:
        pixels = tf.constant(row)
        tape.watch(pixels)
        score = model(pixels)[:, 0]
    np.testing.assert_allclose(tape.gradient(score, pixels), plain, atol=1e-6)


def test_the_rule_ends_with_the_block_even_after_an_error():
    with tf.Graph().as_default() as graph:
        with pytest.raises(ZeroDivisionError), relu_rules.applied("guided"):
            raise ZeroDivisionError
        assert not graph._gradient_override_map


def test_the_module_can_be_loaded_anew():
    importlib.reload(relu_rules)
    assert what_passes(explained(L.ReLU())) == each_row(RELU, "1")


class Dressed(L.Layer):
    """A layer of a reader's own, with an activation that its class does not show."""

    def __init__(self, bend, **options):
        super().__init__(**options)
        self.bend = bend

    def call(self, x):
        return self.bend(x)


@tf.custom_gradient
def own_gradient(x):
    return tf.nn.relu(x), lambda upstream: upstream


HIDDEN = {
    "a layer of one's own": (lambda: Dressed(tf.tanh, name="dressed"), "Tanh"),
    "a wrapper": (
        lambda: L.TimeDistributed(L.Conv1D(2, 1, activation="elu"), name="wrapper"),
        "Elu",
    ),
    "a lambda": (lambda: L.Lambda(tf.nn.leaky_relu, name="lambda"), "LeakyRelu"),
    "custom_gradient": (lambda: Dressed(own_gradient, name="own"), "a gradient of its own"),
}


@pytest.mark.parametrize("case", HIDDEN)
@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_what_a_layer_hides_is_refused_when_traced(case, rule):
    make, received = HIDDEN[case]
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(make()(inputs))))
    with pytest.raises(
        ValueError, match=f"expected ReLU or ReLU6 as activation, received {received} in"
    ):
        compiled.score_gradients(model, rule)


@pytest.mark.parametrize(
    "bend",
    [
        lambda x: keras.ops.maximum(x, 0.0),
        lambda x: keras.ops.clip(x, 0.0, 6.0),
        keras.ops.absolute,
    ],
)
def test_a_relu_by_another_name_is_refused(bend):
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(bend(inputs))))
    with pytest.raises(ValueError, match="expected ReLU or ReLU6 as activation"):
        relu_rules.check_relus(model)


def test_layers_that_only_scale_or_choose_are_let_through():
    norm = L.Normalization(mean=[1.0, 2.0], variance=[1.0, 4.0])
    inputs = keras.Input((4, 4, 2))
    x = norm(inputs)
    x = L.Maximum()([L.Conv2D(3, 1, activation="relu")(x), L.Conv2D(3, 1)(x)])
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(L.UnitNormalization()(x))))
    relu_rules.check_relus(model)
    for rule in relu_rules.RULES:
        compiled.score_gradients(model, rule)
