"""Is the map where the evidence is? For images in which that is known to the pixel.

Heatmaps come as large as the images, (n, height, width), from any source. Each metric returns one
number for each image, and each has a number that chance would reach.
"""

from collections.abc import Sequence

from cam_helpers.arrays import as_numbers, brief, check_count, check_heatmaps
from cam_helpers.checks import check_each
import numpy as np


def pointing_game(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return whether each map is highest inside its mask: 1 is a hit, 0 a miss.

    Of several highest pixels, the share inside: what one of them drawn by lot would score. A map
    that is the same everywhere scores the mask's share of the image, which is chance.

    Parameters
    ----------
    heatmaps
        (n, height, width) float.
    masks
        (n, height, width) bool, or (height, width) for all: where the evidence is known to be.

    Returns
    -------
    np.ndarray
        (n,) float64 from 0 to 1.

    Raises
    ------
    ValueError
        If heatmaps and masks differ in size, a mask is not bool or empty, or a value not finite.

    References
    ----------
    Zhang et al. 2016, https://arxiv.org/abs/1608.00507, section 4.2, without its tolerance of 15
    pixels. Notebook 09.
    """
    heatmaps, masks = _checked_masks(heatmaps, masks)
    highest = heatmaps == heatmaps.max(axis=(1, 2), keepdims=True)
    return (highest & masks).sum(axis=(1, 2)) / highest.sum(axis=(1, 2))


def energy_inside(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of each map, of what is above 0, that lies inside its mask.

    Parameters and errors are those of :func:`pointing_game`.

    Returns
    -------
    np.ndarray
        (n,) float64 from 0 to 1, by chance the mask's share of the image; 0 for a map with nothing
        above 0.

    References
    ----------
    Wang et al. 2020, https://arxiv.org/abs/1910.01279, section 4.3. Notebook 09.
    """
    heatmaps, masks = _checked_masks(heatmaps, masks)
    above = np.maximum(heatmaps, 0)
    total = above.sum(axis=(1, 2))
    inside = (above * masks).sum(axis=(1, 2))
    return np.divide(inside, total, out=np.zeros(len(total)), where=total > 0)


def grid_pointing_game(
    heatmaps: np.ndarray, cells: int | Sequence[int], grid: tuple[int, int] = (2, 2)
) -> np.ndarray:
    """Return the share of each map, of what is above 0, in the cell of a mosaic with its class.

    Parameters
    ----------
    heatmaps
        (n, height, width) float, of mosaics of images of different classes.
    cells
        Which cell shows the class that the map is of: one for all, or one for each; counted along
        the rows from the upper left, 0.
    grid
        Rows and columns of the mosaic.

    Returns
    -------
    np.ndarray
        (n,) float64 from 0 to 1, by chance 1 / (rows · columns); 0 for a map with nothing above 0.

    Raises
    ------
    ValueError
        If the mosaic cannot be divided so, a cell is none of it, or a value is not finite.

    References
    ----------
    Böhle, Fritz and Schiele 2021, https://arxiv.org/abs/2104.00032, section 4. Notebook 09.
    """
    if np.shape(grid) != (2,):
        raise ValueError(f"expected a grid (rows, columns), received {brief(grid)}.")
    heatmaps, (rows, columns) = as_numbers("heatmaps", heatmaps), grid
    check_count("rows", rows)
    check_count("columns", columns)
    if heatmaps.ndim != 3 or heatmaps.shape[1] % rows or heatmaps.shape[2] % columns:
        raise ValueError(
            f"expected heatmaps (n, height, width) that divide into {rows} × {columns} cells, "
            f"received {heatmaps.shape}: place them on the mosaic first."
        )
    cells = check_each("cells", cells, len(heatmaps), rows * columns)
    of_pixels = np.arange(rows * columns).reshape(rows, columns)
    of_pixels = np.kron(of_pixels, np.ones(heatmaps.shape[1:] // np.array(grid), int))
    return energy_inside(heatmaps, of_pixels == cells[:, np.newaxis, np.newaxis])


def _checked_masks(heatmaps, masks):
    heatmaps = as_numbers("heatmaps", heatmaps, np.float64)
    masks = as_numbers("masks", masks)
    if heatmaps.ndim != 3 or masks.shape not in (heatmaps.shape, heatmaps.shape[1:]):
        raise ValueError(
            "expected heatmaps (n, height, width) and masks as large, received "
            f"{heatmaps.shape} and {masks.shape}: plots.place puts those of a layer on the image."
        )
    check_heatmaps(heatmaps)
    if masks.dtype != bool or not masks.any(axis=(-2, -1)).all():
        raise ValueError(
            f"expected bool masks with a pixel each, received {masks.dtype}"
            f"{'' if masks.dtype != bool else ' and an empty mask'}: mask > 0 makes them bool."
        )
    return heatmaps, np.broadcast_to(masks, heatmaps.shape)
