"""What a method may be asked: images that a network has room for, and maps that are numbers."""

import re

from cam_helpers import (
    activations,
    cams,
    controls,
    deconvolution,
    faithfulness,
    filters,
    gradients,
    methods,
)
from cam_helpers.backend import keras, tf
import numpy as np
import pytest

L = keras.layers
SIZE = (12, 10, 2)
CAMS = [cams.grad_cam, cams.grad_cam_plus_plus, cams.hires_cam, cams.layer_cam, cams.score_cam]
AT_THE_PIXELS = [
    gradients.saliency,
    gradients.smooth_grad,
    gradients.integrated_gradients,
    gradients.guided_backprop,
    gradients.deconvnet,
    gradients.guided_grad_cam,
]


def network(size=SIZE, dtype="float32"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(size)
    x = L.Conv2D(4, 3, activation="relu", name="first", dtype=dtype)(inputs)
    x = L.Conv2D(5, 3, activation="relu", name="last", dtype=dtype)(x)
    x = L.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(inputs, L.Dense(3, name="logits", dtype=dtype)(x), name="network")


def images(count=3, size=SIZE):
    return np.random.default_rng(1).normal(size=(count, *size)).astype(np.float32)


# images

GREY = (28, 28, 1)
UNFIT = {
    "grey images": (GREY, np.zeros((5, 28, 28)), "images[..., np.newaxis] gives grey images"),
    "a grey image": (GREY, np.zeros((28, 28)), "images[np.newaxis, ..., np.newaxis] makes one"),
    "an image": (GREY, np.zeros(GREY), "images[np.newaxis] makes one image a batch"),
    "grey images of any size": ((None, None, 1), np.zeros((5, 9, 7)), "images[..., np.newaxis]"),
    "an image of any size": ((None, None, 1), np.zeros((9, 7, 1)), "images[np.newaxis] makes"),
    "no grey images": ((28, 28, 3), np.zeros((5, 28, 28)), "images[np.newaxis] makes one image"),
    "grey images of another size": (GREY, np.zeros((5, 9, 28)), "images[np.newaxis] makes one"),
    "images without pixels": ((None, None, 1), np.zeros((2, 0, 9, 1)), "an empty batch (2, 0, 9"),
    "several sizes": (GREY, [np.zeros(GREY), np.zeros((9, 9, 1))], "expected images of one shape"),
    "a path": (GREY, "cat.png", "expected images as an array of real numbers, received text"),
    "no float32": (
        GREY,
        np.full((1, *GREY), -1e39),
        "expected pixels of at most 1.84e+19, received 1e+39: scale them down.",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.filterwarnings("error")
def test_images_that_do_not_fit_get_one_sentence(case):
    size, unfit, sentence = UNFIT[case]
    for method in (cams.grad_cam, gradients.saliency):
        with pytest.raises(ValueError, match=re.escape(sentence)) as error:
            method(network(size), unfit, 0)
        assert "\n" not in str(error.value)


def test_images_of_any_precision_and_layout_give_the_same_map():
    model, expected = network(), cams.grad_cam(network(), images(), 0)
    for same in (
        images().astype(np.float64),
        images().astype(">f4"),
        np.asfortranarray(images()),
        np.repeat(images(), 2, axis=2)[:, :, ::2],
        list(images()),
        images().view(np.recarray),
    ):
        np.testing.assert_allclose(cams.grad_cam(model, same, 0), expected, atol=1e-6)


# class indices


@pytest.mark.parametrize("value", [[0, [1]], [[0, 1], [2]], np.ones((9, 9)), "x" * 500])
def test_no_class_is_named_in_one_line(value):
    sentence = "^expected class_index as an integer, one for each image, or None for the top class"
    with pytest.raises(ValueError, match=sentence) as error:
        cams.grad_cam(network(), images(), value)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


# networks of images of any size


def of_any_size(inner=False):
    """Two windows and a pooling between them: 10 pixels are the fewest."""
    keras.utils.set_random_seed(0)
    within = keras.Input((None, None, 2))
    x = L.MaxPooling2D(2)(L.Conv2D(4, 5, activation="relu", name="first")(within))
    x = L.Conv2D(4, 3, activation="relu", name="last")(x)
    inputs = keras.Input((None, None, 2))
    x = keras.Model(within, x)(inputs) if inner else x
    outputs = L.Dense(3)(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs if inner else within, outputs, name="any")


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("method", [*CAMS, *AT_THE_PIXELS, cams.cam, controls.edges])
def test_images_too_small_for_the_network_are_named(method, inner):
    """TensorFlow takes the mean over no cell of 8 pixels' maps, and returns 1e21."""
    model = of_any_size(inner)
    for size in range(1, 10):
        sentence = (
            f"expected images of a size that 'any' has room for, received ({size}, 12): try larger "
            "ones. Computed output size would be"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}.*$") as error:
            method(model, images(2, (size, 12, 2)), 0)
        assert "\n" not in str(error.value)
    found = method(model, images(2, (10, 12, 2)), 0)
    assert np.isfinite(found).all()


def test_what_comes_after_a_layer_needs_no_room_where_only_the_layer_is_asked_for():
    model, small = of_any_size(), images(2, (6, 5, 2))
    kernel, bias = model.get_layer("first").get_weights()
    expected = (tf.nn.conv2d(small, kernel, 1, "VALID") + bias).numpy()
    found = activations.layer_activations(model, small, "first")["first"]
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-5)
    best = activations.strongest_activations(model, small, "first", count=1)
    np.testing.assert_allclose(best.value[:, 0], expected.max(axis=(0, 1, 2)), atol=1e-5)
    assert deconvolution.deconvolve(model, small, "first", 0).shape == small.shape
    for call in (
        lambda: activations.layer_activations(model, small, "last"),
        lambda: activations.strongest_activations(model, small, "last", count=1),
        lambda: deconvolution.deconvolve(model, small, "last", 0),
    ):
        with pytest.raises(ValueError, match=r"'any' has room for, received \(6, 5\): try larger"):
            call()


def test_a_picture_too_small_for_a_layer_is_named():
    model = keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(2, 5), L.Conv2D(2, 5)])
    with pytest.raises(ValueError, match=r"has room for, received \(8, 9\): try larger ones\. "):
        filters.maximize_activation(model, model.layers[1].name, 0, steps=1, size=(8, 9))
    filters.maximize_activation(model, model.layers[0].name, 0, steps=1, size=(8, 9), jitter=0)


def test_layers_of_the_readers_own_have_room(monkeypatch):
    class Twice(L.Layer):
        def call(self, x):
            return 2 * x

    inputs = keras.Input((None, None, 2))
    x = L.Lambda(lambda x: x + 1)(Twice()(L.Conv2D(3, 3, name="maps")(inputs)))
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    assert cams.grad_cam(model, images(2), 0, layer="maps").shape == (2, 10, 8)


def test_the_room_is_looked_for_once_a_size(monkeypatch):
    model, asked = of_any_size(), []
    real = type(model).compute_output_shape

    def count(self, shape):
        asked.append(shape)
        return real(self, shape)

    monkeypatch.setattr(type(model), "compute_output_shape", count)
    for size in ((12, 10, 2), (12, 10, 2), (13, 10, 2), (12, 10, 2)):
        gradients.saliency(model, images(1, size), 0)
    assert asked == [(None, 12, 10, 2), (None, 13, 10, 2)]
    monkeypatch.setattr(type(model), "compute_output_shape", pytest.fail)
    gradients.saliency(network(), images(), 0)  # its size is known


# maps that are no numbers


def with_weight(name, value, index=0, used=False):
    """A network one weight of which is no number, from the start or after its first use."""
    model = network()
    if used:
        cams.grad_cam(model, images(), 0)
    weights = model.get_layer(name).get_weights()
    weights[index].flat[0] = value
    model.get_layer(name).set_weights(weights)
    return model


def in_half_precision():
    model = network(dtype="mixed_float16")
    model.get_layer("last").set_weights(
        [1e3 + 0 * w for w in model.get_layer("last").get_weights()]
    )
    return model


def with_a_dead_layer():
    """A score that is no number, and no gradient at all that would show it."""
    model = with_weight("logits", np.nan, index=1, used=True)
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([0 * kernel, bias - 1])
    return model


def with_a_step(step):
    """A step of the reader's own before the scores."""
    inputs = keras.Input(SIZE)
    x = L.Conv2D(4, 3, activation="relu", name="maps")(inputs)
    return keras.Model(inputs, L.Lambda(step)(L.Dense(3)(L.Flatten()(x))), name="network")


WEIGHTS = "expected finite weights, received NaN or infinite ones in '{}' of 'network': load or "
MAPS = (
    "expected finite scores and maps, received NaN or infinite ones of 'network' for image {}: "
    "cam_helpers.diagnose(model, images) says where they begin."
)
BROKEN = {
    "NaN in a kernel": (lambda: with_weight("first", np.nan), WEIGHTS.format("first/kernel")),
    "infinity": (lambda: with_weight("logits", -np.inf, 1), WEIGHTS.format("logits/bias")),
    "NaN after a first use": (lambda: with_weight("logits", np.nan, 1, True), MAPS.format(0)),
    "infinity after a first use": (lambda: with_weight("logits", np.inf, 1, True), MAPS.format(0)),
    "NaN in the scores of a dead layer": (with_a_dead_layer, MAPS.format(0)),
    "float16 that overflows": (in_half_precision, MAPS.format(0)),
    "a logarithm of what is negative": (
        lambda: with_a_step(lambda x: keras.ops.log(x - 1e6)),
        MAPS.format(0),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.filterwarnings("error")
def test_no_method_returns_a_map_that_is_not_finite(case):
    model, sentence = BROKEN[case][0](), BROKEN[case][1]
    for method in (*CAMS, *AT_THE_PIXELS):
        quick = {"samples": 2} if method is gradients.smooth_grad else {}
        for class_index in (0, None):
            with pytest.raises(ValueError, match=f"^{re.escape(sentence)}") as error:
                method(model, 50 + images(), class_index, **quick)
            assert "\n" not in str(error.value)
    pooled = hasattr(model.layers[-2], "data_format")
    if pooled:
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            cams.cam(model, 50 + images(), 0)


def test_weights_that_are_no_numbers_are_refused_before_a_relu_makes_zeros_of_them():
    model, sentence = with_weight("first", np.nan), WEIGHTS.format("first/kernel")
    for call in (
        lambda: deconvolution.deconvolve(model, images(), "last", 0),
        lambda: activations.layer_activations(model, images(), "first"),
        lambda: activations.strongest_activations(model, images(), "last", count=1),
        lambda: faithfulness.deletion(model, images(), images()[..., 0]),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            call()
    grey = network((12, 10, 1))
    grey.set_weights([np.nan * weight for weight in grey.get_weights()])
    with pytest.raises(ValueError, match=r"^expected finite weights, received NaN"):
        filters.maximize_activation(grey, "last", 0, steps=2)


def test_mended_weights_are_looked_at_again():
    model = with_weight("first", np.nan)
    with pytest.raises(ValueError, match=r"^expected finite weights"):
        cams.grad_cam(model, images(), 0)
    model.set_weights(network().get_weights())
    np.testing.assert_array_equal(
        cams.grad_cam(model, images(), 0), cams.grad_cam(network(), images(), 0)
    )


def test_the_image_is_named_whose_map_is_not_finite():
    model, batch = with_a_step(lambda x: tf.where(tf.abs(x) > 1e3, np.nan, x)), images(5)
    batch[3] *= 1e6
    for method in (cams.grad_cam, gradients.saliency):
        with pytest.raises(ValueError, match=f"^{re.escape(MAPS.format(3))}$"):
            method(model, batch, 0, batch_size=2)
        method(model, batch[:3], 0)


def test_a_class_whose_score_is_a_number_has_a_map_beside_one_whose_is_not():
    broken = with_weight("logits", np.nan, 1, used=True)  # class 0
    for method in (*CAMS[:4], gradients.saliency):
        np.testing.assert_allclose(method(broken, images(), 1), method(network(), images(), 1))
        with pytest.raises(ValueError, match=r"^expected finite scores"):
            method(broken, images())  # the top class may be the one


def test_a_class_that_is_ruled_out_by_minus_infinity_is_no_fault():
    plain, ruled_out = with_a_step(lambda x: x), with_a_step(lambda x: x - [0, np.inf, 0])
    ruled_out.set_weights(plain.get_weights())
    for class_index in (0, [0, 2, 2]):
        found = [cams.grad_cam(model, images(), class_index) for model in (ruled_out, plain)]
        np.testing.assert_allclose(*found)


def test_nan_in_one_map_is_not_passed_over_by_score_cam():
    inputs = keras.Input(SIZE)
    x = L.Conv2D(4, 3, name="first")(inputs)
    x = L.Lambda(lambda x: tf.where(tf.range(4) == 2, np.nan, x), name="maps")(x)
    x = L.Lambda(lambda x: tf.where(tf.math.is_nan(x), 0.0, x))(x)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)), name="network")
    assert np.isfinite(model(images()).numpy()).all()
    for options in ({}, {"max_maps": 2}, {"weighting": "softmax"}, {"weighting": "increase"}):
        with pytest.raises(ValueError, match=f"^{re.escape(MAPS.format(0))}$"):
            cams.score_cam(model, images(), 0, layer="maps", placement="resize", **options)
    with pytest.raises(ValueError, match=f"^{re.escape(MAPS.format(0))}$"):
        activations.strongest_activations(model, images(), "maps", count=1)
    found = activations.layer_activations(model, images(), "maps")["maps"]  # what it puts out
    assert np.isnan(found).mean(axis=(0, 1, 2)).tolist() == [0, 0, 1, 0]


@pytest.mark.filterwarnings("error")
def test_what_overflows_is_refused_by_its_name():
    for options, sentence in (
        ({"baseline": 3e38}, "expected a baseline of at most 1.84e+19, received 3e+38: scale"),
        ({"baseline": 1e300}, "expected a finite baseline, received NaN or infinite values."),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            gradients.integrated_gradients(network(), images(), 0, **options)
    with pytest.raises(ValueError, match=r"^expected noise of at most 1\.84e\+19, received"):
        gradients.smooth_grad(network(), images(), 0, noise=1e30)
    with pytest.raises(ValueError, match=r"^expected a baseline 'zeros', .* received 3e\+38\.$"):
        faithfulness.deletion(network(), images(), images()[..., 0], baseline=3e38)
    assert methods.heatmaps("centred Gaussian", network(), images(), width=1e-300).shape[0] == 3


@pytest.mark.parametrize("name", ["\r", "a\x0bb", "\u2028"])
@pytest.mark.parametrize("method", [cams.grad_cam, activations.layer_activations])
def test_a_name_with_a_line_break_stays_in_one_line(method, name):
    with pytest.raises(ValueError, match=r"expected a layer of|is not in") as error:
        method(network(), images(), layer=name) if method is cams.grad_cam else method(
            network(), images(), name
        )
    assert len(str(error.value).splitlines()) == 1
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("size", [(0, 10**400), (10**400, 12)])
def test_a_huge_number_is_not_printed_whole(size):
    with pytest.raises(ValueError, match=r"^expected size.*…") as error:
        filters.maximize_activation(network((12, 12, 3)), "first", 0, size=size)
    assert len(str(error.value)) < 300
