"""Localization: shares counted by hand, chance, and each error by its message."""

import re

from cam_helpers.localization import energy_inside, grid_pointing_game, pointing_game
import numpy as np
import pytest

METRICS = [pointing_game, energy_inside]
MASK = np.zeros((3, 4), bool)
MASK[0, 1:3] = True  # 2 of 12 pixels


def lit(*pixels, value=1.0):
    heatmap = np.zeros((1, 3, 4))
    for pixel in pixels:
        heatmap[0][pixel] = value
    return heatmap


# pointing game


def test_the_highest_pixel_is_inside_or_not():
    maps = np.concatenate([lit((0, 1)), lit((0, 0)), lit((0, 2)) + lit((2, 2), value=1.001)])
    assert pointing_game(maps, MASK).tolist() == [1, 0, 0]
    assert pointing_game(maps - 5, MASK).tolist() == [1, 0, 0]
    assert pointing_game(-maps, ~MASK)[0] == 10 / 11
    assert pointing_game(maps, np.stack([MASK, ~MASK, ~MASK])).tolist() == [1, 1, 1]


def test_of_several_highest_pixels_the_share_inside():
    assert pointing_game(lit((0, 1), (0, 2), (1, 1), (2, 3)), MASK).tolist() == [0.5]
    assert pointing_game(lit((0, 1), (0, 2)), MASK).tolist() == [1]
    for flat in (lit(), lit() + 7, lit() - 7):
        assert pointing_game(flat, MASK).tolist() == [2 / 12]  # chance


# energy


def test_the_share_of_what_is_above_zero():
    heatmap = lit((0, 1), value=3) + lit((2, 2), value=1) + lit((0, 2), value=-50)
    assert energy_inside(heatmap, MASK).tolist() == [0.75]
    assert energy_inside(heatmap + lit((1, 0), value=-9), MASK).tolist() == [0.75]
    np.testing.assert_allclose(energy_inside(1e-30 * heatmap, MASK), [0.75])
    assert energy_inside(lit((0, 1), (0, 2)), MASK).tolist() == [1]
    assert energy_inside(lit((0, 0), (1, 2)), MASK).tolist() == [0]
    np.testing.assert_allclose(energy_inside(lit() + 4, MASK), [2 / 12])  # chance


def test_a_map_with_nothing_above_zero_has_no_energy_anywhere():
    maps = np.concatenate([lit(), lit() - 1, lit((0, 1))])
    assert energy_inside(maps, MASK).tolist() == [0, 0, 1]


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_map_its_inverse_and_one_mask_for_each(metric):
    masks = np.random.default_rng(0).random((5, 3, 4)) > 0.6
    assert metric(masks.astype(float), masks).tolist() == [1] * 5
    assert metric(1 - masks, masks).tolist() == [0] * 5
    together = metric(masks.astype(float), MASK)
    for index, mask in enumerate(masks):
        assert metric(mask[np.newaxis].astype(float), MASK).tolist() == [together[index]]


# mosaics


def test_the_share_in_the_cell_of_the_class():
    mosaic = np.zeros((1, 4, 6))
    mosaic[0, 0, 5], mosaic[0, 3, 2], mosaic[0, 2, 0], mosaic[0, 1, 1] = 1, 2, 5, -9
    maps = np.repeat(mosaic, 4, axis=0)
    assert grid_pointing_game(maps, [0, 1, 2, 3]).tolist() == [0, 1 / 8, 7 / 8, 0]
    assert grid_pointing_game(maps, 2).tolist() == [7 / 8] * 4
    assert grid_pointing_game(np.ones((1, 4, 6)), 3).tolist() == [0.25]  # chance
    assert grid_pointing_game(-np.ones((1, 4, 6)), 3).tolist() == [0]


def test_cells_are_counted_along_the_rows_of_a_grid_of_any_shape():
    for rows, columns in [(1, 3), (3, 1), (2, 3), (3, 2), (6, 6), (1, 1)]:
        mosaic = np.zeros((rows * columns, 6, 12))
        height, width = 6 // rows, 12 // columns
        for index, heatmap in enumerate(mosaic):
            top, left = index // columns * height, index % columns * width
            heatmap[top : top + height, left : left + width] = 1
        cells = np.arange(rows * columns)
        found = grid_pointing_game(mosaic, cells, (rows, columns))
        np.testing.assert_array_equal(found, np.ones(len(cells)))
        if len(cells) > 1:
            wrong = grid_pointing_game(mosaic, (cells + 1) % len(cells), (rows, columns))
            np.testing.assert_array_equal(wrong, np.zeros(len(cells)))
        flat = grid_pointing_game(np.ones((1, 6, 12)), 0, (rows, columns))
        np.testing.assert_allclose(flat, 1 / len(cells))


# what comes in


def test_other_kinds_of_numbers_and_nothing_changes():
    maps = np.random.default_rng(0).random((2, 4, 6)).astype(np.float16)
    mask = np.eye(4, 6, dtype=bool)
    kept, kept_mask = maps.copy(), mask.copy()
    for metric in METRICS:
        expected = metric(maps.astype(np.float64), mask)
        assert expected.dtype == np.float64
        for kind in (maps, maps.astype(np.float32), maps.tolist()):
            np.testing.assert_array_equal(metric(kind, mask.tolist()), expected)
    np.testing.assert_array_equal(
        grid_pointing_game(maps.tolist(), 1), grid_pointing_game(maps.astype(np.float64), [1, 1])
    )
    np.testing.assert_array_equal(maps, kept)
    np.testing.assert_array_equal(mask, kept_mask)
    large = np.full((1, 4, 6), 60_000, np.float16)  # whose sum is no float16
    np.testing.assert_allclose(energy_inside(large, mask), 4 / 24)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("heatmaps", "masks", "sentence"),
    [
        (
            lit(),
            MASK[:2],
            "expected heatmaps (n, height, width) and masks as large, received (1, 3, 4) and "
            "(2, 4): plots.place puts those of a layer on the image.",
        ),
        (lit()[0], MASK, "received (3, 4) and (3, 4)"),
        (lit(), np.stack([MASK, MASK]), "received (1, 3, 4) and (2, 3, 4)"),
        (lit((0, 0), value=np.nan), MASK, "expected finite heatmaps, received NaN or infinite"),
        (
            lit(),
            MASK.astype(float),
            "expected bool masks with a pixel each, received float64: mask > 0 makes them bool.",
        ),
        (
            lit(),
            MASK[np.newaxis] & False,
            "received bool and an empty mask: mask > 0 makes them bool.",
        ),
        (np.zeros((2, 3, 4)), np.stack([MASK, MASK & False]), "received bool and an empty mask"),
    ],
)
def test_bad_input_gets_one_sentence(metric, heatmaps, masks, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        metric(heatmaps, masks)


@pytest.mark.parametrize(
    ("shape", "options", "sentence"),
    [
        (
            (1, 4, 5),
            {},
            "expected heatmaps (n, height, width) that divide into 2 × 2 cells, received (1, 4, 5):"
            " place them on the mosaic first.",
        ),
        ((1, 5, 4), {}, "received (1, 5, 4)"),
        ((4, 4), {}, "received (4, 4)"),
        ((1, 4, 4), {"grid": (3, 2)}, "divide into 3 × 2 cells"),
        ((1, 4, 4), {"grid": (0, 2)}, "expected rows as an integer of 1 or more, received 0."),
        ((1, 4, 4), {"grid": (2, 2.0)}, "expected columns as an integer of 1 or more"),
        ((1, 4, 4), {"cells": 4}, "expected cells from 0 to 3, received 4: there are 4."),
        ((1, 4, 4), {"cells": [0, 1]}, "expected one cells for all images or one for each of 1"),
        ((1, 4, 4), {"cells": None}, "expected cells as an integer, one for each image, received"),
    ],
)
def test_bad_mosaics_get_one_sentence(shape, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        grid_pointing_game(np.ones(shape), **{"cells": 0, **options})


def test_a_mosaic_with_nan_is_named():
    with pytest.raises(ValueError, match="expected finite heatmaps"):
        grid_pointing_game(np.full((1, 4, 4), np.nan), 0)


@pytest.mark.parametrize("grid", [2, (2, 2, 2)])
def test_a_grid_is_rows_and_columns(grid):
    with pytest.raises(ValueError, match=r"expected a grid \(rows, columns\), received"):
        grid_pointing_game(np.ones((1, 4, 4)), 0, grid)
