from cam_helpers import activations, deconvolution, gradients, models
from cam_helpers.backend import keras
from cam_helpers.once import _MADE
import numpy as np
import pytest

L = keras.layers


def images(count=2):
    return np.random.default_rng(0).normal(size=(count, 4, 4, 1)).astype(np.float32)


def network(activation="relu"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 1))
    x = L.Conv2D(3, 2, activation=activation, name="conv")(inputs)
    return keras.Model(inputs, L.Dense(2, name="scores")(L.Flatten()(x)))


def test_a_model_is_traced_once_while_it_stays_what_it_is():
    model = network()
    gradients.saliency(model, images(), 0)
    made = dict(_MADE[model][1])
    model.get_layer("conv").kernel.assign_add(model.get_layer("conv").kernel)
    gradients.saliency(model, images(), 0)
    assert _MADE[model][1] == made


def test_another_activation_is_seen():
    model = network()
    before = activations.layer_activations(model, images(), "conv")["conv"]
    model.get_layer("conv").activation = keras.activations.linear
    after = activations.layer_activations(model, images(), "conv")["conv"]
    assert after.min() < 0
    np.testing.assert_allclose(np.maximum(after, 0), before, atol=1e-6)


def test_another_activation_of_a_nested_model_is_seen():
    inside = network()
    model = keras.Sequential([keras.Input((4, 4, 1)), inside, L.Dense(2, name="head")])
    before = gradients.saliency(model, images(), 0)
    inside.get_layer("conv").activation = keras.activations.linear
    assert np.abs(gradients.saliency(model, images(), 0) - before).max() > 1e-3


def test_an_activation_that_has_no_gate_is_refused_also_when_it_comes_later():
    model = network()
    gradients.guided_backprop(model, images(), 0)
    model.get_layer("conv").activation = keras.activations.tanh
    with pytest.raises(ValueError, match="received tanh in layer 'conv'"):
        gradients.guided_backprop(model, images(), 0)


def test_a_sequential_model_that_is_rebuilt_is_looked_at_anew():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), L.Dense(3)])
    gradients.saliency(model, images(), 2)
    model.pop()
    model.add(L.Dense(2, use_bias=False, name="new"))
    found = gradients.saliency(model, images(), 1)
    kernel = model.get_layer("new").kernel[:, 1].numpy().reshape(4, 4, 1)
    np.testing.assert_allclose(found, np.stack([kernel, kernel]), atol=1e-6)
    with pytest.raises(ValueError, match="from 0 to 1, received 2"):
        gradients.saliency(model, images(), 2)


def test_a_normalization_that_is_adapted_again_is_seen():
    norm = L.Normalization(axis=-1)
    norm.adapt(np.ones((3, 4, 4, 1), np.float32) * [[[[1]]], [[[2]]], [[[3]]]])
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, L.Flatten()(norm(inputs)))
    before = activations.layer_activations(model, images(), norm.name)[norm.name]
    norm.adapt(np.ones((3, 4, 4, 1), np.float32) * [[[[11]]], [[[12]]], [[[13]]]])
    after = activations.layer_activations(model, images(), norm.name)[norm.name]
    np.testing.assert_allclose(before - after, 10 / np.sqrt(2 / 3), rtol=1e-5)


MODELS = {
    "three axes": (
        lambda: keras.Sequential([keras.Input((4, 4)), L.Flatten(), L.Dense(2)], name="flat"),
        "expected a model that takes images (batch, height, width, channels), received 'flat'",
    ),
    "channels first": (
        lambda: keras.Sequential(
            [
                keras.Input((1, 4, 4)),
                L.Conv2D(2, 2, data_format="channels_first", name="conv"),
                L.Flatten(),
                L.Dense(2),
            ]
        ),
        "expected channels last, received 'conv' with channels first",
    ),
    "no model": (lambda: None, "expected a Keras model, received NoneType: load or build one"),
    "not built": (lambda: keras.Sequential([L.Dense(2)], name="bare"), "which has no graph"),
}


@pytest.mark.parametrize("case", MODELS)
def test_every_method_says_which_models_it_takes(case):
    make, sentence = MODELS[case]
    model = make()
    pictures = (
        np.zeros((1, *model.input_shape[1:]), np.float32) if case == "three axes" else images()
    )
    for ask in (
        lambda: gradients.saliency(model, pictures, 0),
        lambda: gradients.guided_grad_cam(model, pictures, 0),
        lambda: activations.layer_activations(model, pictures, "conv"),
        lambda: activations.strongest_activations(model, pictures, "conv", count=1),
        lambda: deconvolution.deconvolve(model, pictures, "conv", 0),
    ):
        with pytest.raises(ValueError, match=r".+") as error:
            ask()
        assert sentence in str(error.value)


def test_whole_numbers_have_no_gradient():
    model = keras.Sequential([keras.Input((4, 4, 1), dtype="uint8"), L.Flatten(), L.Dense(2)])
    with pytest.raises(ValueError, match="can be derived by the pixels, received one"):
        gradients.saliency(model, images(), 0)


def test_logits_of_a_model_whose_head_was_exchanged():
    model = keras.Sequential([keras.Input((4, 4, 1)), L.Flatten(), L.Dense(3, "softmax")])
    assert models.to_logits(model).output_shape == (None, 3)
    model.pop()
    model.add(L.Dense(2, "softmax"))
    assert models.to_logits(model).output_shape == (None, 2)
