"""The controls: known pictures, chance, and the methods' own signature."""

import inspect
import re

from cam_helpers import cams, controls, metrics
from cam_helpers.backend import keras
import numpy as np
import pytest

L = keras.layers
CONTROLS = [
    controls.random_pixels,
    controls.random_cells,
    controls.centred_gaussian,
    controls.edges,
]
SEEDED = [controls.random_pixels, controls.random_cells]
SIZE = (12, 10, 3)


def network(size=SIZE, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(size)
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, name="last")(inputs))
    return keras.Model(inputs, L.Dense(5)(x), name="network")


def images(count=3, size=SIZE, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *size)).astype(np.float32)


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_are_called_as_methods_are(control):
    method, own = (inspect.signature(each).parameters for each in (cams.grad_cam, control))
    assert list(own.values())[:3] == list(method.values())[:3]
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in list(own.values())[3:])
    assert all(each.default is not inspect.Parameter.empty for each in list(own.values())[3:])


@pytest.mark.parametrize("control", CONTROLS)
def test_maps_are_as_large_as_the_images_and_not_negative(control):
    for size in (SIZE, (7, 15, 1)):
        heatmaps = control(network(size), images(size=size))
        assert heatmaps.shape == (3, *size[:2])
        assert heatmaps.dtype == np.float32
        assert heatmaps.min() >= 0
        assert heatmaps.max() > 0


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_look_at_no_weight_and_at_no_class(control):
    expected = control(network(), images())
    for model, class_index in [(network(seed=9), None), (network(), 2), (network(), [0, 1, 4])]:
        np.testing.assert_array_equal(control(model, images(), class_index), expected)


@pytest.mark.parametrize("control", CONTROLS)
def test_other_kinds_of_float_and_nothing_changes(control):
    batch = images().astype(np.float16)
    kept = batch.copy()
    batch.flags.writeable = False
    expected = control(network(), batch.astype(np.float32))
    for kind in (batch, batch.astype(np.float64), batch.tolist()):
        np.testing.assert_array_equal(control(network(), kind), expected)
    np.testing.assert_array_equal(batch, kept)


# noise


@pytest.mark.parametrize("control", SEEDED)
def test_noise_goes_by_its_seed_and_is_another_for_each_image(control):
    first = control(network(), images())
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(control(network(), images(seed=2)), first)
    np.testing.assert_array_equal(control(network(), images(), seed=0), first)
    assert np.abs(control(network(), images(), seed=1) - first).max() > 0.1
    assert np.abs(first[0] - first[1]).max() > 0.1
    np.testing.assert_array_equal(control(network(), images(2)), first[:2])


def test_pixels_are_uniform_and_independent():
    heatmaps = controls.random_pixels(network((64, 64, 3)), images(5, (64, 64, 3)))
    shares, _ = np.histogram(heatmaps, bins=10, range=(0, 1))
    np.testing.assert_allclose(shares / heatmaps.size, 0.1, atol=0.01)
    assert abs(np.corrcoef(heatmaps[:, 1:].ravel(), heatmaps[:, :-1].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(heatmaps[0].ravel(), heatmaps[1].ravel())[0, 1]) < 0.06


def test_random_pixels_are_near_chance_in_every_game_of_places():
    size, count = (20, 15, 1), 2000
    model, batch = network(size), images(count, size)
    mask = np.zeros(size[:2], bool)
    mask[3:9, 4:14] = True  # a fifth of the pixels
    heatmaps = controls.random_pixels(model, batch)
    error = np.sqrt(0.2 * 0.8 / count)
    assert abs(metrics.pointing_game(heatmaps, mask).mean() - 0.2) < 3 * error
    assert abs(metrics.energy_inside(heatmaps, mask).mean() - 0.2) < 0.002
    for cell in range(12):
        share = metrics.grid_pointing_game(heatmaps, cell, (4, 3)).mean()
        assert abs(share - 1 / 12) < 0.002


@pytest.mark.parametrize("cells", [1, 3, 5])
def test_cells_are_noise_resized(cells):
    size = (4 * cells + 1, 6 * cells + 3, 3)
    heatmaps = controls.random_cells(network(size), images(size=size), cells=cells)
    assert heatmaps.max() < 1
    assert heatmaps.shape == (3, *size[:2])
    bends = np.abs(np.diff(heatmaps, 2, axis=1)).max(axis=(0, 2)) > 1e-5  # linear in between
    assert bends.sum() <= 2 * cells
    if cells == 1:
        assert np.ptp(heatmaps, axis=(1, 2)).max() < 1e-6
    else:
        assert np.ptp(heatmaps, axis=(1, 2)).min() > 0.1


def test_as_many_cells_as_pixels_or_seven():
    square = (7, 7, 3)
    noise = np.random.default_rng(5).random((3, 7, 7), np.float32)
    found = controls.random_cells(network(square), images(size=square), seed=5)
    np.testing.assert_allclose(found, noise, atol=1e-6)


# the bump


def test_the_bump_is_centred_and_as_wide_as_asked_for():
    size = (41, 81, 1)
    bump, again = controls.centred_gaussian(network(size), images(2, size))
    np.testing.assert_array_equal(bump, again)
    assert bump.max() == bump[20, 40] == 1
    np.testing.assert_allclose(bump, bump[::-1, ::-1], atol=1e-6)
    rows, columns = np.mgrid[:41, :81]
    expected = np.exp(-(((rows - 20) / 10.25) ** 2 + ((columns - 40) / 20.25) ** 2) / 2)
    np.testing.assert_allclose(bump, expected, atol=1e-6)
    narrow = controls.centred_gaussian(network(size), images(1, size), width=0.05)[0]
    across = narrow[20] / narrow[20].sum()
    deviation = np.sqrt((across * (np.arange(81) - 40) ** 2).sum())
    np.testing.assert_allclose(deviation, 0.05 * 81, rtol=1e-3)


def test_the_bump_of_an_even_number_of_pixels_lies_between_the_two_in_the_middle():
    bump = controls.centred_gaussian(network(), images())[0]
    assert bump[5, 4] == bump[6, 5] == bump.max() < 1


# edges


def test_a_step_is_an_edge_and_nothing_else_is():
    batch = np.zeros((3, *SIZE), np.float32)
    batch[0, :, 5:] = 4  # upright, between columns 4 and 5
    batch[1, 6:] = [-6, 0, 0]  # lying, in one of the channels
    found = controls.edges(network(), batch)
    upright = np.zeros(SIZE[:2])
    upright[:, 4:6] = 4 / np.sqrt(2)  # the step, times 4 / 4, of one of the two directions
    np.testing.assert_allclose(found[0], upright, atol=1e-6)
    lying = np.zeros(SIZE[:2])
    lying[5:7] = 2 / np.sqrt(2)
    np.testing.assert_allclose(found[1], lying, atol=1e-6)
    assert not found[2].any()


# errors


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"images": images()[0]}, "expected images (batch, height, width, channels), received"),
        ({"class_index": 5}, "expected class_index from 0 to 4, received 5: there are 5."),
        ({"images": np.full((1, *SIZE), np.nan)}, "expected finite pixels, received NaN"),
        ({"model": "network"}, "expected a Keras model, received str: load or build one first."),
    ],
)
def test_bad_input_gets_one_sentence(control, changed, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        control(**{"model": network(), "images": images(), **changed})


def test_counts_and_widths_are_checked():
    with pytest.raises(ValueError, match="expected cells as an integer of 1 or more, received 0"):
        controls.random_cells(network(), images(), cells=0)
    for width in (-0.1, np.nan, "wide"):
        sentence = f"expected width as a number of 0 or more, received {width!r}."
        with pytest.raises(ValueError, match=re.escape(sentence)):
            controls.centred_gaussian(network(), images(), width=width)
    with pytest.raises(ValueError, match="expected width above 0, received 0"):
        controls.centred_gaussian(network(), images(), width=0)
