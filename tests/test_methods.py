"""Every method and control by name: the function behind it, placed or reduced to one channel."""

from cam_helpers import cams, controls, gradients, methods
from cam_helpers.backend import keras
from cam_helpers.placement import place
from cam_helpers.receptive_field import receptive_field
import numpy as np
import pytest

L = keras.layers
SIZE = (13, 11)
CHEAP = {
    "SmoothGrad": {"samples": 2},
    "integrated gradients": {"steps": 3},
    "Score-CAM": {"max_maps": 4},
}
OTHER = [  # options that change a map
    ("Grad-CAM++", {"normalize_alpha": True}),
    ("Score-CAM", {"max_maps": 1}),
    ("SmoothGrad", {"samples": 2, "seed": 5}),
    ("integrated gradients", {"steps": 3, "baseline": 1.0}),
    ("random pixels", {"seed": 1}),
    ("random cells", {"cells": 3}),
    ("centred Gaussian", {"width": 0.1}),
]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((*SIZE, 3))
    x = L.Conv2D(6, 3, activation="relu", name="first")(inputs)
    x = L.Conv2D(8, 3, strides=2, activation="relu", name="last")(x)
    return keras.Model(inputs, L.Dense(4)(L.Flatten()(x)), name="network")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(3, *SIZE, 3)).astype(np.float32)


def heatmaps(name, model, images, class_index=None, **options):
    return methods.heatmaps(name, model, images, class_index, **{**CHEAP.get(name, {}), **options})


def test_names_are_those_of_the_functions():
    assert {name: each.__name__ for name, each in methods.CAMS.items()} == {
        "Grad-CAM": "grad_cam",
        "Grad-CAM++": "grad_cam_plus_plus",
        "LayerCAM": "layer_cam",
        "HiResCAM": "hires_cam",
        "Score-CAM": "score_cam",
    }
    assert {name: each.__name__ for name, each in methods.AT_THE_PIXELS.items()} == {
        "saliency": "saliency",
        "SmoothGrad": "smooth_grad",
        "integrated gradients": "integrated_gradients",
        "guided backpropagation": "guided_backprop",
        "deconvnet": "deconvnet",
        "guided Grad-CAM": "guided_grad_cam",
    }
    assert {name: each.__name__ for name, each in methods.CONTROLS.items()} == {
        "random pixels": "random_pixels",
        "random cells": "random_cells",
        "centred Gaussian": "centred_gaussian",
        "edges": "edges",
    }
    assert (*methods.CAMS, *methods.AT_THE_PIXELS) == methods.METHODS


@pytest.mark.parametrize("name", [*methods.METHODS, *methods.CONTROLS])
def test_maps_are_as_large_as_the_images_and_not_negative(name, model, images):
    found = heatmaps(name, model, images)
    assert found.shape == (3, *SIZE)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() > 0
    np.testing.assert_array_equal(heatmaps(name, model, images.tolist()), found)


@pytest.mark.parametrize("layer", [None, "first"])
@pytest.mark.parametrize("name", methods.CAMS)
def test_class_activation_maps_are_placed(name, layer, model, images):
    found = heatmaps(name, model, images, 2, layer=layer)
    cells = methods.CAMS[name](model, images, 2, layer=layer, **CHEAP.get(name, {}))
    expected = place(cells, SIZE, receptive_field(model, layer or "last"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", methods.CAMS)
def test_class_activation_maps_are_resized_if_asked(name, model, images):
    found = heatmaps(name, model, images, 2, placement="resize")
    own = {**CHEAP.get(name, {}), **({"placement": "resize"} if name == "Score-CAM" else {})}
    expected = place(methods.CAMS[name](model, images, 2, **own), SIZE, "resize")
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - heatmaps(name, model, images, 2)).max() > 0.01 * found.max()


def test_maps_go_where_a_field_of_ones_own_says(model, images):
    field = receptive_field(model, "last")._replace(start=(5.0, 2.0))
    found = heatmaps("LayerCAM", model, images, placement=field)
    np.testing.assert_array_equal(found, place(cams.layer_cam(model, images), SIZE, field))


@pytest.mark.parametrize("name", methods.AT_THE_PIXELS)
def test_gradients_count_with_their_largest_channel_without_sign(name, model, images):
    signed = methods.AT_THE_PIXELS[name](model, images, [0, 1, 3], **CHEAP.get(name, {}))
    assert signed.min() < 0
    expected = np.abs(signed).max(axis=-1)
    np.testing.assert_array_equal(heatmaps(name, model, images, [0, 1, 3]), expected)


@pytest.mark.parametrize(
    "asked",
    [{"layer": "first"}, {"placement": "resize"}, {"layer": "first", "placement": "resize"}],
)
def test_guided_grad_cam_gets_layer_and_placement(asked, model, images):
    found = heatmaps("guided Grad-CAM", model, images, 1, **asked)
    expected = np.abs(gradients.guided_grad_cam(model, images, 1, **asked)).max(axis=-1)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - heatmaps("guided Grad-CAM", model, images, 1)).max() > 0


@pytest.mark.parametrize("name", list(methods.AT_THE_PIXELS)[:-1])
def test_gradients_have_no_layer_and_no_place(name, model, images):
    found = heatmaps(name, model, images, layer="first", placement="resize")
    np.testing.assert_array_equal(found, heatmaps(name, model, images))


@pytest.mark.parametrize("name", methods.METHODS)
def test_methods_are_asked_about_the_class(name, model, images):
    first, second = (heatmaps(name, model, images, index) for index in (0, 1))
    assert np.abs(first - second).max() > 1e-3 * first.max()


@pytest.mark.parametrize("name", methods.CONTROLS)
def test_controls_are_those_of_their_module_whatever_the_class(name, model, images):
    expected = getattr(controls, methods.CONTROLS[name].__name__)(model, images)
    for index in (None, 2, [0, 1, 3]):
        found = heatmaps(name, model, images, index, layer="first", placement="resize")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("name", "options"), OTHER)
def test_options_reach_the_method(name, options, model, images):
    found = methods.heatmaps(name, model, images, 1, **options)
    assert np.abs(found - heatmaps(name, model, images, 1)).max() > 1e-3 * found.max()
    if name in methods.CONTROLS:
        expected = methods.CONTROLS[name](model, images, 1, **options)
    elif name in methods.CAMS:
        cells = methods.CAMS[name](model, images, 1, **options)
        expected = place(cells, SIZE, receptive_field(model, "last"))
    else:
        expected = np.abs(methods.AT_THE_PIXELS[name](model, images, 1, **options)).max(axis=-1)
    np.testing.assert_array_equal(found, expected)


def test_unknown_name_is_answered_with_all_names(model, images):
    with pytest.raises(ValueError, match="expected one of Grad-CAM, ") as raised:
        methods.heatmaps("grad_cam", model, images)
    message = str(raised.value)
    assert message.endswith(", edges, received 'grad_cam'.")
    for name in (*methods.METHODS, *methods.CONTROLS):
        assert name in message


def test_errors_of_the_method_come_through(model, images):
    with pytest.raises(ValueError, match="placement"):
        methods.heatmaps("Grad-CAM", model, images, placement="stretch")
    with pytest.raises(ValueError, match="layer 'middle'"):
        methods.heatmaps("Grad-CAM", model, images, layer="middle")
    with pytest.raises(ValueError, match="class"):
        methods.heatmaps("edges", model, images, 9)


# maps with their scores


@pytest.mark.parametrize("batch_size", [2, 32])
@pytest.mark.parametrize("asked", [None, 2, [3, 0, 1]])
@pytest.mark.parametrize("name", methods.METHODS)
def test_scored_maps_are_unplaced_with_class_and_logit(name, asked, batch_size, model, images):
    options = {**CHEAP.get(name, {}), "batch_size": batch_size}
    found = methods.scored_maps(name, model, images, asked, **options)
    logits = model(images).numpy()
    classes = logits.argmax(axis=1) if asked is None else np.broadcast_to(asked, 3)
    np.testing.assert_array_equal(found.class_index, classes)
    np.testing.assert_allclose(found.scores, logits[np.arange(3), classes], rtol=1e-5)
    assert (found.class_index.dtype, found.scores.dtype) == (np.int32, np.float32)
    maps = {**methods.CAMS, **methods.AT_THE_PIXELS}[name](model, images, asked, **options)
    expected = maps if name in methods.CAMS else np.abs(maps).max(axis=-1)
    np.testing.assert_array_equal(found.heatmaps, expected)
    assert found.heatmaps.dtype == np.float32


@pytest.mark.parametrize("name", ["LayerCAM", "Score-CAM", "guided Grad-CAM"])
def test_scored_maps_get_layer_and_placement(name, model, images):
    asked = {"layer": "first", "placement": "resize"}
    found = methods.scored_maps(name, model, images, 1, **asked, **CHEAP.get(name, {}))
    if name == "LayerCAM":
        expected = cams.layer_cam(model, images, 1, layer="first")
    elif name == "Score-CAM":
        expected = cams.score_cam(model, images, 1, max_maps=4, **asked)
    else:
        expected = np.abs(gradients.guided_grad_cam(model, images, 1, **asked)).max(axis=-1)
    np.testing.assert_array_equal(found.heatmaps, expected)


@pytest.mark.parametrize("name", ["Grad-CAM", "Score-CAM", "saliency"])
def test_scores_of_one_logit_have_the_sign_of_the_class(name, images):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((*SIZE, 3))
    x = L.Conv2D(4, 3, activation="relu", name="last")(inputs)
    single = keras.Model(inputs, L.Dense(1)(L.Flatten()(x)))
    logit = single(images).numpy()[:, 0]
    options = CHEAP.get(name, {})
    for index, sign in ((0, -1), (1, 1)):
        found = methods.scored_maps(name, single, images, index, **options)
        np.testing.assert_allclose(found.scores, sign * logit, rtol=1e-5)
    found = methods.scored_maps(name, single, images, **options)
    np.testing.assert_array_equal(found.class_index, logit > 0)
    np.testing.assert_allclose(found.scores, np.abs(logit), rtol=1e-5)


def test_scored_maps_are_those_of_methods_alone(model, images):
    with pytest.raises(ValueError, match="received 'edges'"):
        methods.scored_maps("edges", model, images)
    with pytest.raises(ValueError, match="batch_size"):
        methods.scored_maps("saliency", model, images, batch_size=0)
