"""Pictures of images and heatmaps. Knows only arrays.

Functions that draw one picture take ``ax=None`` and return the axes; functions that draw many
return the figure. None of them shows, clips, squares or normalises anything by itself.
"""

from collections.abc import Callable, Sequence
import inspect
from pathlib import Path
import re
from typing import Literal

from cam_helpers import writing
from cam_helpers.arrays import as_numbers
from cam_helpers.pictures import around_grey, check_size, largest_channel, stretch, superimpose
from cam_helpers.placement import ReceptiveField, centres, place
from IPython import get_ipython
from IPython.display import Markdown
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
import numpy as np

__all__ = [
    "around_grey",
    "centres",
    "confusion",
    "largest_channel",
    "overlay",
    "place",
    "save",
    "show_image",
    "show_images",
    "show_maps",
    "show_source",
    "stretch",
    "superimpose",
    "use_style",
]

Field = ReceptiveField | Literal["resize"]


def use_style(for_photos: bool = False) -> None:
    """Set the tutorial's plotting style: small files, no needless ink.

    ``for_photos`` makes a notebook keep its figures as JPEG, a fifth of the size.
    """
    if for_photos and get_ipython():
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85})
    plt.rcParams.update(
        {
            "figure.dpi": 72,
            "savefig.dpi": 144,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "image.interpolation": "nearest",
            "image.cmap": "gray",
            "font.size": 11,
            "axes.titlesize": 10,
        }
    )


def show_source(*functions: Callable, docstring: bool = True) -> Markdown:
    """Return the sources of functions as they stand in their own files, for a notebook to show."""
    sources = [inspect.getsource(function) for function in functions]
    if not docstring:
        found = re.compile(r'\n    r?""".*?"""\n+', re.DOTALL)
        sources = [found.sub("\n", source, count=1) for source in sources]
    return Markdown("```python\n" + "\n\n".join(sources) + "```")


def save(figure: Figure, path: str | Path, **options) -> None:
    """Write a figure to a file, whole or not at all; the file's name says of which kind.

    ``options`` are matplotlib's ``savefig``'s. OSError if it cannot be written.
    """
    with writing.whole(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:], **options)


def show_image(image: np.ndarray, title: str = "", ax: plt.Axes | None = None) -> plt.Axes:
    """Draw one image, grey (height, width[, 1]) or colour (height, width, 3), values in [0, 1]."""
    ax = ax or plt.subplots(figsize=(2, 2))[1]
    ax.imshow(np.squeeze(image), vmin=0, vmax=1)
    ax.set_title(title)
    ax.set_axis_off()
    return ax


def show_images(
    images: Sequence[np.ndarray], titles: Sequence[str] | None = None, columns: int = 10
) -> Figure:
    """Draw images of one size in rows of ``columns``.

    Parameters
    ----------
    images
        (n, height, width[, 1 or 3]), values in [0, 1].
    titles
        One for each image.
    """
    titles = [""] * len(images) if titles is None else titles
    rows = max(1, -(-len(images) // columns))
    lines = max((len(title.splitlines()) for title in titles), default=0)
    figure, axes = plt.subplots(
        rows, columns, squeeze=False, figsize=(1.25 * columns, (1.25 + 0.2 * lines) * rows)
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        show_image(image, title, ax)
    return figure


def overlay(
    image: np.ndarray,
    heatmap: np.ndarray,
    title: str = "",
    *,
    field: Field | None = None,
    cmap: str = "inferno",
    alpha: float = 0.5,
    limits: tuple[float, float] | None = None,
    ax: plt.Axes | None = None,
) -> plt.Axes:
    """Draw a heatmap over its image.

    Parameters
    ----------
    image
        (height, width[, 1 or 3]), values in [0, 1].
    heatmap
        (h, w), in any unit. A map that is zero everywhere is drawn as such and says so in its
        title.
    field
        Where the cells belong, as for :func:`place`; a dotted frame through the centres of the
        outermost cells marks what is extrapolated. None for a map of the image's own size.
    cmap, alpha
        Matplotlib's name of the colours, and their opacity: 0 shows the image alone.
    limits
        Values of the first and the last colour; None for 0 and the map's maximum (1 if there is
        nothing above 0).

    Raises
    ------
    ValueError
        If there is no field, and image and heatmap differ in height or width, or if one of them is
        no picture.
    """
    image, heatmap = np.squeeze(as_numbers("image", image)), as_numbers("heatmap", heatmap)
    if image.shape[2:] not in ((), (3,)) or image.ndim < 2 or heatmap.ndim != 2 or not image.size:
        raise ValueError(
            "expected an image (height, width[, 1 or 3]) and a heatmap (h, w), received "
            f"{image.shape} and {heatmap.shape}."
        )
    low, high = limits or (0, heatmap.max() if heatmap.max() > 0 else 1)
    ax = show_image(image, ax=ax)
    if field is not None:
        rows, columns = centres(heatmap.shape, image.shape[:2], field)
        corner, size = (columns[0], rows[0]), (np.ptp(columns), np.ptp(rows))
        ax.add_patch(Rectangle(corner, *size, fill=False, color="white", lw=0.8, ls=":"))
        heatmap = place(heatmap, image.shape[:2], field)
    check_size(image, heatmap)
    ax.imshow(heatmap, cmap=cmap, alpha=alpha, vmin=low, vmax=high)
    ax.set_title(title if heatmap.any() else f"{title}\n(zero everywhere)".strip())
    return ax


def show_maps(
    images: Sequence[np.ndarray],
    rows: dict[str, Sequence[np.ndarray]],
    titles: Sequence[str] | None = None,
    *,
    field: Field | dict[str, Field] | None = None,
    cmap: str = "inferno",
    alpha: float = 0.5,
    limits: tuple[float, float] | None = (0, 1),
    colour_bar: str = "",
) -> Figure:
    """Draw a row of images and, under it, one row of overlays for each set of heatmaps.

    Parameters
    ----------
    images
        (n, height, width[, 1 or 3]), values in [0, 1].
    rows
        Label of the row and its n heatmaps (h, w).
    titles
        One for each image.
    field
        As for :func:`overlay`, one for all rows or one for the label of each.
    cmap, alpha, limits
        As for :func:`overlay`.
    colour_bar
        What the colours mean. Empty for no bar.

    Raises
    ------
    ValueError
        If a bar is asked for while each map has limits of its own.
    """
    if colour_bar and limits is None:
        raise ValueError("expected limits with a colour_bar, received None: give (low, high)")
    count = len(images)
    titles = [""] * count if titles is None else titles
    lines = max(len(title.splitlines()) for title in titles)
    side = 1.1 if count > 5 else 1.4 if count > 2 else 2  # inches
    margins = 0.1 * max(map(len, rows)) + (0.8 if colour_bar else 0)
    size = (side * count + margins, (side + 0.05) * (len(rows) + 1) + 0.2 * lines)
    figure, axes = plt.subplots(len(rows) + 1, count, squeeze=False, figsize=size)
    for ax, image, title in zip(axes[0], images, titles, strict=True):
        show_image(image, title, ax)
    for row, (label, maps) in zip(axes[1:], rows.items(), strict=True):
        placed = field[label] if isinstance(field, dict) else field
        for ax, image, heatmap in zip(row, images, maps, strict=True):
            overlay(image, heatmap, field=placed, cmap=cmap, alpha=alpha, limits=limits, ax=ax)
        row[0].text(-0.08, 0.5, label, transform=row[0].transAxes, ha="right", va="center")
    if colour_bar:
        drawn = axes[-1, 0].images[-1]
        colours = ScalarMappable(drawn.norm, drawn.cmap)  # without the overlay's opacity
        figure.colorbar(colours, ax=axes, label=colour_bar, fraction=0.03)
    return figure


def confusion(counts: np.ndarray, names: Sequence[str], ax: plt.Axes | None = None) -> plt.Axes:
    """Draw how many images of a true class (row) were given a predicted class (column).

    Parameters
    ----------
    counts
        (classes, classes) int.
    names
        One for each class.
    """
    ax = ax or plt.subplots(figsize=(6.4, 6))[1]
    ax.imshow(counts, cmap="Blues", norm="symlog")
    for row, column in np.argwhere(counts):
        dark = counts[row, column] > counts.max() / 20
        ax.text(
            column,
            row,
            counts[row, column],
            ha="center",
            va="center",
            color="white" if dark else "black",
            fontsize=9,
        )
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    return ax
