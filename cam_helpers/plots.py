"""Pictures of images and heatmaps. Knows only arrays.

Functions that draw one picture take ``ax=None`` and return the axes; functions that draw many
return the figure. None of them shows, clips, squares or normalises anything by itself.
"""

from collections.abc import Callable, Sequence
import inspect

from IPython.display import Markdown
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
import matplotlib.pyplot as plt
import numpy as np


def use_style() -> None:
    """Set the tutorial's plotting style: small files, no needless ink."""
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


def show_source(function: Callable) -> Markdown:
    """Return the source of ``function`` as it stands in its own file, for a notebook to show."""
    return Markdown(f"```python\n{inspect.getsource(function)}```")


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
        (height, width) of the image, in any unit. A map that is zero everywhere is drawn as such
        and says so in its title.
    cmap, alpha
        Matplotlib's name of the colours, and their opacity: 0 shows the image alone.
    limits
        Values of the first and the last colour; None for 0 and the map's maximum (1 if there is
        nothing above 0).

    Raises
    ------
    ValueError
        If image and heatmap differ in height or width.
    """
    image, heatmap = np.squeeze(image), np.asarray(heatmap)
    if heatmap.shape != image.shape[:2]:
        raise ValueError(
            f"expected a heatmap of the image's height and width {image.shape[:2]}, received "
            f"{heatmap.shape}: resize it first."
        )
    ax = show_image(image, ax=ax)
    low, high = limits or (0, heatmap.max() if heatmap.max() > 0 else 1)
    ax.imshow(heatmap, cmap=cmap, alpha=alpha, vmin=low, vmax=high)
    ax.set_title(title if heatmap.any() else f"{title}\n(zero everywhere)".strip())
    return ax


def show_maps(
    images: Sequence[np.ndarray],
    rows: dict[str, Sequence[np.ndarray]],
    titles: Sequence[str] | None = None,
    *,
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
        Label of the row and its n heatmaps (height, width).
    titles
        One for each image.
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
    side = 1.1 if count > 5 else 1.4  # inches
    size = (side * count + 1, (side + 0.05) * (len(rows) + 1) + 0.2 * lines)
    figure, axes = plt.subplots(len(rows) + 1, count, squeeze=False, figsize=size)
    for ax, image, title in zip(axes[0], images, titles, strict=True):
        show_image(image, title, ax)
    for row, (label, maps) in zip(axes[1:], rows.items(), strict=True):
        for ax, image, heatmap in zip(row, images, maps, strict=True):
            overlay(image, heatmap, cmap=cmap, alpha=alpha, limits=limits, ax=ax)
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
