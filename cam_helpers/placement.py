"""Where the cells of a heatmap belong on the image. Knows only arrays."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from cam_helpers.arrays import as_numbers, brief, check_count
import numpy as np


class ReceptiveField(NamedTuple):
    """What one cell of a layer's maps sees of the image, rows first, in pixels.

    Attributes
    ----------
    size
        Height and width of the part of the image that one cell depends on.
    stride
        Distance between the centres of neighbouring cells.
    start
        Centre of the first cell: cell ``i`` is centred at ``start + stride * i``, where pixel 0 is
        centred at 0. It may lie outside the image.
    """

    size: tuple[int, int]
    stride: tuple[float, float]
    start: tuple[float, float]


Placement = Literal["receptive_field", "resize"] | ReceptiveField


def assumed_by_resizing(cells: tuple[int, int], image_size: tuple[int, int]) -> ReceptiveField:
    """Return where resizing a heatmap of so many cells puts them: evenly over the whole image."""
    stride = tuple(pixels / count for pixels, count in zip(image_size, cells, strict=True))
    return ReceptiveField(
        size=tuple(image_size), stride=stride, start=tuple((step - 1) / 2 for step in stride)
    )


def interpolation(cells: int, pixels: int, stride: float, start: float) -> np.ndarray:
    """Return how much of each cell each pixel of one axis shows.

    A pixel between the centres of two cells mixes them linearly; a pixel outside all centres shows
    the nearest cell.

    Returns
    -------
    np.ndarray
        (pixels, cells) float32, rows that sum to 1.
    """
    position = np.clip((np.arange(pixels) - start) / stride, 0, cells - 1)  # in cells
    distance = np.abs(position[:, np.newaxis] - np.arange(cells))
    return np.maximum(0, 1 - distance).astype(np.float32)


def place(
    heatmap: np.ndarray, image_size: tuple[int, int], field: ReceptiveField | Literal["resize"]
) -> np.ndarray:
    """Return a heatmap as large as the image, each cell's value where the network looked.

    Parameters
    ----------
    heatmap
        (..., h, w) float, one value a cell; any number of maps at once.
    image_size
        Height and width of the image in pixels, as the network received it.
    field
        Of the layer that the map belongs to, from ``models.receptive_field``. ``"resize"`` spreads
        the cells evenly over the image, as ``tf.image.resize`` does: right where the two agree
        (VGG16), off by half a cell and more elsewhere.

    Returns
    -------
    np.ndarray
        (..., height, width) float32. Outside the centres of all cells it repeats the nearest one:
        see :func:`is_between_cells`. NaN stays NaN, and spreads.

    Raises
    ------
    ValueError
        If the heatmap has fewer than two axes, or the field is another word.

    References
    ----------
    Araujo, Norris and Sim 2019, https://distill.pub/2019/computing-receptive-fields. Notebook 04.
    """
    heatmap = as_numbers("heatmap", heatmap, np.float32)
    if heatmap.ndim < 2:
        raise ValueError(f"expected a heatmap (..., height, width), received {heatmap.shape}.")
    rows, columns = interpolations(heatmap.shape[-2:], image_size, field)
    with np.errstate(invalid="ignore"):
        return rows @ heatmap @ columns.T


def interpolations(
    cells: tuple[int, int],
    image_size: tuple[int, int],
    field: ReceptiveField | Literal["resize"],
) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`interpolation` of the rows (height, h) and of the columns (width, w)."""
    field = resolve(field, cells, image_size)
    return tuple(map(interpolation, cells, image_size, field.stride, field.start))


def centres(
    cells: tuple[int, int],
    image_size: tuple[int, int],
    field: ReceptiveField | Literal["resize"],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel rows (h,) and columns (w,) that the cells are centred at."""
    field = resolve(field, cells, image_size)
    return tuple(
        start + stride * np.arange(count)
        for count, stride, start in zip(cells, field.stride, field.start, strict=True)
    )


def resolve(
    field: ReceptiveField | Literal["resize"], cells: tuple[int, int], image_size: tuple[int, int]
) -> ReceptiveField:
    """Return the field itself, or for ``"resize"`` the one that resizing assumes."""
    cells, image_size = check_pair("cells", cells), check_pair("image_size", image_size)
    if isinstance(field, str) and field == "resize":
        return assumed_by_resizing(cells, image_size)
    if not isinstance(field, ReceptiveField):
        raise ValueError(
            f"expected a ReceptiveField or 'resize', received {brief(field)}: "
            "models.receptive_field(model, layer) gives one."
        )
    axes = as_numbers("stride and start", [field.stride, field.start])
    if not (axes.shape == (2, 2) and np.isfinite(axes).all() and axes[0].min() > 0):
        raise ValueError(f"expected a field with a stride above 0, received {brief(field)}.")
    return field


def check_pair(name: str, pair: tuple[int, int]) -> tuple[int, int]:
    """Return height and width as Python's integers; ValueError if they are none of 1 or more."""
    try:
        height, width = pair
        return check_count("height", height), check_count("width", width)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected {name} (height, width), 1 or more, received {brief(pair)}."
        ) from error


def patch(
    image: np.ndarray, cell: tuple[int, int], field: ReceptiveField, fill: float | Sequence = 0
) -> np.ndarray:
    """Return the part of an image that one cell sees: no pixel outside it changes the cell.

    Parameters
    ----------
    image
        (height, width, channels), or (height, width), of any dtype.
    cell
        Row and column of the cell in its map.
    field
        Of the layer that the map belongs to, from ``models.receptive_field``.
    fill
        Value, or one for each channel, of what lies outside the image.

    Returns
    -------
    np.ndarray
        (``*field.size``, channels), of the image's dtype: a copy.

    Raises
    ------
    ValueError
        If the image has another rank, the cell is no pair, or the field none.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or np.shape(cell) != (2,):
        raise ValueError(
            "expected an image (height, width, channels) and a cell (row, column), received "
            f"{image.shape} and {brief(cell)}: give one image and one cell."
        )
    if not isinstance(field, ReceptiveField):
        raise ValueError(
            f"expected a ReceptiveField, received {brief(field)}: "
            "models.receptive_field(model, layer) gives one."
        )
    seen = np.full((*field.size, *image.shape[2:]), fill, image.dtype)
    inside, whole = [], []
    for index, size, stride, start, pixels in zip(cell, *field, image.shape[:2], strict=True):
        first = int(np.floor(start + stride * index - (size - 1) / 2 + 0.5))
        low, high = np.clip([0, pixels], first, first + size) - first  # of the patch, in the image
        inside.append(slice(low, high))
        whole.append(slice(low + first, high + first))
    seen[tuple(inside)] = image[tuple(whole)]
    return seen


def is_between_cells(
    cells: tuple[int, int],
    image_size: tuple[int, int],
    field: ReceptiveField | Literal["resize"],
) -> np.ndarray:
    """Return which pixels lie between the centres of cells: (height, width) bool.

    What :func:`place` shows of the other pixels is extrapolated.
    """
    rows, columns = (
        (centre[0] <= np.arange(pixels)) & (np.arange(pixels) <= centre[-1])
        for centre, pixels in zip(centres(cells, image_size, field), image_size, strict=True)
    )
    return rows[:, np.newaxis] & columns
