"""Where cells belong: against TensorFlow's resizing, and by hand."""

from cam_helpers.backend import tf
from cam_helpers.placement import (
    ReceptiveField,
    assumed_by_resizing,
    interpolation,
    is_between_cells,
    place,
)
import numpy as np
import pytest


@pytest.mark.parametrize("image_size", [(224, 224), (50, 31)])
def test_without_a_field_it_is_resizing(image_size):
    maps = np.random.default_rng(0).random((3, 7, 5), np.float32)
    resized = tf.image.resize(maps[..., np.newaxis], image_size).numpy()[..., 0]
    np.testing.assert_allclose(place(maps, image_size, "resize"), resized, atol=1e-6)


def test_a_cell_is_brightest_at_its_centre():
    field = ReceptiveField(size=(9, 9), stride=(4, 3), start=(2, 1))
    heatmap = np.zeros((3, 4))
    heatmap[1, 2] = 1
    placed = place(heatmap, (12, 14), field)
    assert np.unravel_index(placed.argmax(), placed.shape) == (2 + 4, 1 + 2 * 3)
    assert placed[6, 7] == 1
    assert placed[5, 7] == pytest.approx(3 / 4)
    assert placed[6, 9] == pytest.approx(1 / 3)
    assert placed.dtype == np.float32


def test_between_pixels_centres_are_met_in_the_middle():
    np.testing.assert_allclose(interpolation(2, 4, stride=2, start=0.5)[:, 1], [0, 0.25, 0.75, 1])


def test_pixels_outside_all_centres_repeat_the_nearest_cell():
    field = ReceptiveField(size=(9, 9), stride=(4, 4), start=(9, 9))
    heatmap = np.arange(4.0).reshape(2, 2)
    placed, known = place(heatmap, (28, 28), field), is_between_cells((2, 2), (28, 28), field)
    assert np.unique(placed[:10, :10]) == 0
    assert np.unique(placed[13:, 13:]) == 3
    assert np.argwhere(known).min(axis=0).tolist() == [9, 9]
    assert np.argwhere(known).max(axis=0).tolist() == [13, 13]
    assert known.sum() == 5 * 5


def test_cells_outside_the_image_are_not_shown():
    field = ReceptiveField(size=(9, 9), stride=(4, 4), start=(-8, 9))
    heatmap = np.zeros((7, 7))
    heatmap[0] = heatmap[:, 6] = 5  # centred at row -8 and column 33
    placed = place(heatmap, (28, 28), field)
    assert placed[:, :26].max() == 0
    assert not is_between_cells((7, 7), (28, 28), field)[17:].any()  # rows end at -8 + 6 · 4 = 16


def test_what_resizing_assumes():
    assert assumed_by_resizing((14, 7), (224, 224)) == ((224, 224), (16, 32), (7.5, 15.5))


def test_a_heatmap_has_two_axes():
    with pytest.raises(ValueError, match=r"expected a heatmap \(..., height, width\), received"):
        place(np.zeros(3), (4, 4), "resize")


@pytest.mark.parametrize("field", [None, "nearest", (1, 2)])
def test_a_field_is_named(field):
    with pytest.raises(ValueError, match="expected a ReceptiveField or 'resize', received"):
        place(np.zeros((3, 3)), (4, 4), field)
