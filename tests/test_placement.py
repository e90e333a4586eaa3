"""Where cells belong: against TensorFlow's resizing, a gradient, and by hand."""

from cam_helpers.backend import keras, tf
from cam_helpers.placement import (
    ReceptiveField,
    assumed_by_resizing,
    interpolation,
    is_between_cells,
    patch,
    place,
)
from cam_helpers.receptive_field import receptive_field
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


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"), [(2, 1, "same"), (3, 2, "same"), ((4, 3), (3, 2), "valid")]
)
def test_a_patch_is_all_that_moves_a_cell_and_no_more(kernel, strides, padding):
    options = {"padding": padding, "kernel_initializer": "ones"}
    model = keras.Sequential(
        [
            keras.Input((16, 12, 2)),
            keras.layers.Conv2D(2, kernel, strides=strides, **options),
            keras.layers.AveragePooling2D(2),
            keras.layers.Conv2D(1, 2, name="last", **options),
        ]
    )
    field = receptive_field(model, "last")
    image = np.random.default_rng(0).random((16, 12, 2), np.float32) + 1
    for cell in np.ndindex(*model.output_shape[1:3]):
        pixels = tf.Variable(image[np.newaxis])
        with tf.GradientTape() as tape:
            value = model(pixels)[0, cell[0], cell[1], 0]
        moves = tape.gradient(value, pixels).numpy()[0, ..., 0] != 0
        rows, columns = np.flatnonzero(moves.any(axis=1)), np.flatnonzero(moves.any(axis=0))
        seen = patch(image, cell, field)
        assert seen.shape == (*field.size, 2)
        assert seen.dtype == np.float32
        inside = seen[..., 0] != 0
        for axis, (found, pixels) in enumerate([(rows, 16), (columns, 12)]):
            shown = np.flatnonzero(inside.any(axis=1 - axis))
            assert len(shown) == len(found)
            assert shown[0] == 0 or found[0] == 0  # what is missing lies outside the image
            assert shown[-1] == field.size[axis] - 1 or found[-1] == pixels - 1
        expected = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_array_equal(seen[inside], expected.reshape(-1, 2))


def test_a_patch_is_filled_outside_the_image_and_is_a_copy():
    field = ReceptiveField(size=(3, 2), stride=(2, 2), start=(0, 0.5))
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    assert patch(image, (0, 1), field).tolist() == [[0, 0], [3, 4], [7, 8]]
    between = ReceptiveField(size=(3, 2), stride=(1.6, 1), start=(0.3, 0.5))
    assert patch(image, (1, 0), between).tolist() == [[5, 6], [9, 10], [0, 0]]  # from row 0.9 on
    assert patch(image, (9, 9), field, fill=7).tolist() == [[7, 7]] * 3
    colours = patch(np.stack([image] * 3, axis=-1), (0, 0), field, fill=(1, 2, 3))
    assert colours.dtype == np.uint8
    assert colours[:2, 0].tolist() == [[1, 2, 3], [1, 1, 1]]
    colours[:] = 0
    patch(image, (0, 1), field)[:] = 0
    assert image.min() == 1


def test_a_patch_needs_an_image_a_cell_and_a_field():
    image, field = np.zeros((4, 4, 1)), ReceptiveField((2, 2), (1, 1), (0, 0))
    with pytest.raises(ValueError, match=r"received \(1, 4, 4, 1\) and \(0, 0\): give one image"):
        patch(image[np.newaxis], (0, 0), field)
    with pytest.raises(ValueError, match=r"received \(4, 4, 1\) and 3: give one image and one cel"):
        patch(image, 3, field)
    with pytest.raises(ValueError, match="expected a ReceptiveField, received 'resize': models"):
        patch(image, (0, 0), "resize")


def test_a_heatmap_has_two_axes():
    with pytest.raises(ValueError, match=r"expected a heatmap \(..., height, width\), received"):
        place(np.zeros(3), (4, 4), "resize")


@pytest.mark.parametrize("field", [None, "nearest", (1, 2)])
def test_a_field_is_named(field):
    with pytest.raises(ValueError, match="expected a ReceptiveField or 'resize', received"):
        place(np.zeros((3, 3)), (4, 4), field)
