"""One photo explained: what a network sees in it, and where; as a figure and as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
import difflib
import os
from pathlib import Path
import warnings

from cam_helpers import compiled, methods, plots
from cam_helpers.networks import Network
from cam_helpers.photos import fit, load_photo
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
import numpy as np

COLUMNS = 4
LONGEST = 40  # characters of a name or label in a figure
KINDS = {  # a method that a network is none for where it is none for another
    **dict.fromkeys(methods.CAMS, "Grad-CAM"),
    **dict.fromkeys(("saliency", "SmoothGrad", "integrated gradients"), "saliency"),
    **dict.fromkeys(("guided backpropagation", "deconvnet"), "guided backpropagation"),
    "guided Grad-CAM": "guided Grad-CAM",
}


@dataclass(frozen=True)
class Explanation:
    """What a network sees in one photo.

    Attributes
    ----------
    image
        (height, width, 3) float32 RGB, 0 to 255: the photo as cut for the network.
    probabilities
        (classes,) float.
    class_index
        The class explained.
    maps
        Name of the method and its map (height, width) float32, at least 0.
    """

    image: np.ndarray
    probabilities: np.ndarray
    class_index: int
    maps: dict[str, np.ndarray]


def explain(
    network: Network,
    photo: np.ndarray,
    names: Sequence[str],
    class_index: int | None = None,
    *,
    how: str = "crop",
) -> Explanation:
    """Return what a network sees in a photo, and where.

    Parameters
    ----------
    photo
        (height, width, 3) uint8 RGB.
    names
        Of ``methods.METHODS``.
    class_index
        None for the top class.
    how
        As for ``photos.fit``.
    """
    image = fit(photo, network.size, how)
    images = network.prepare(image[np.newaxis])
    scores = compiled.scores(network.model)(images).numpy()
    probabilities = compiled.probabilities(network.model, scores.astype(np.float64))[0]
    chosen = int(scores[0].argmax()) if class_index is None else class_index
    maps = {
        name: methods.heatmaps(
            name,
            network.model,
            images,
            chosen,
            layer=network.layer,
            placement=network.placement,
        )[0]
        for name in names
    }
    return Explanation(image, probabilities, chosen, maps)


def explain_file(
    network: Network,
    source: str | Path,
    names: Sequence[str],
    class_index: int | None,
    how: str,
    file: str | Path,
) -> dict:
    """Explain a photo, write its figure to a file, and return :func:`numbers` and the file.

    ``source`` is as for ``photos.load_photo``, ``names``, ``class_index`` and ``how`` are as for
    :func:`explain`. OSError or ValueError if the photo cannot be read or the figure not written.
    """
    explanation = explain(network, load_photo(source), names, class_index, how=how)
    drawing = figure(network, explanation, Path(source).name)
    with warnings.catch_warnings(action="ignore"):  # of no such glyph
        plots.save(drawing, file, dpi=120, bbox_inches="tight")
    return {"figure": str(file), **numbers(network, explanation)}


def find_methods(wanted: str, network: Network) -> list[str]:
    """Return names of ``methods.METHODS`` from a list such as ``"grad_cam,saliency"`` or ``"all"``.

    Each kind is tried on noise; ``"all"`` leaves out those that the network is none for.

    Raises
    ------
    ValueError
        If there is no such method, or the network is none for it.
    """
    known = methods.BY_FUNCTION
    functions = known if wanted == "all" else [name.strip().lower() for name in wanted.split(",")]
    for name in functions:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
            raise ValueError(
                f"expected methods of {', '.join(known)}, or all, received '{name}'"
                f"{f': did you mean {near[0]}?' if near else '.'}"
            )
    names = list(dict.fromkeys(known[name] for name in functions))
    noise = np.random.default_rng(0).uniform(0, 255, (1, *network.size, 3)).astype(np.float32)
    images, refused = network.prepare(noise), {}
    for kind in dict.fromkeys(KINDS[name] for name in names):
        try:
            methods.heatmaps(
                kind, network.model, images, layer=network.layer, placement=network.placement
            )
        except ValueError as error:
            refused[kind] = error
    fit_for = [name for name in names if KINDS[name] not in refused]
    if refused and (wanted != "all" or not fit_for):
        raise next(iter(refused.values()))
    return fit_for


def figure(network: Network, explanation: Explanation, title: str) -> Figure:
    """Return the photo, the likeliest classes and the maps, each with its colour bar."""
    panels = 2 + len(explanation.maps)
    columns = min(panels, COLUMNS)
    rows = -(-panels // columns)
    drawing = Figure(figsize=(3.1 * columns, 2.9 * rows + 0.4), layout="constrained")
    axes = list(drawing.subplots(rows, columns, squeeze=False).flat)
    probability = explanation.probabilities[explanation.class_index]
    label = f"{_spaced(network.labels[explanation.class_index])} ({probability:.2f})"
    drawn = ", resized: where its cells look is unknown" if network.placement == "resize" else ""
    drawing.suptitle(
        f"{_readable(title)}: evidence for {label}\n{_readable(network.name)}"
        + (f", layer {network.layer}{drawn}" if methods.AT_A_LAYER & {*explanation.maps} else ""),
        parse_math=False,
    )
    image = explanation.image / 255
    plots.show_image(image, "as the network saw it", axes[0])
    _draw_likeliest(axes[1], network.labels, explanation)
    for ax, (name, heatmap) in zip(axes[2:], explanation.maps.items(), strict=False):
        plots.overlay(image, heatmap, name, alpha=0.5 if name in methods.CAMS else 0.85, ax=ax)
        drawn = ax.images[-1]
        colours = ScalarMappable(drawn.norm, drawn.cmap)  # without the overlay's opacity
        drawing.colorbar(colours, ax=ax, shrink=0.8)
    for ax in axes[panels:]:
        ax.set_axis_off()
    return drawing


def numbers(network: Network, explanation: Explanation) -> dict:
    """Return what the figure shows as numbers that JSON can hold.

    ``peak`` is row and column of the map's highest pixel in the image as the network saw it, of
    ``size`` (height, width); ``maximum`` and ``mean`` are in the method's own unit.
    """
    index, at_a_layer = explanation.class_index, bool(methods.AT_A_LAYER & {*explanation.maps})
    return {
        "network": network.name,
        "layer": network.layer if at_a_layer else None,
        "placement": network.placement if at_a_layer else None,
        "size": list(network.size),
        "class": _named(network, explanation, index),
        "top": [_named(network, explanation, k) for k in _likeliest(explanation)],
        "maps": {
            name: {
                "maximum": _short(heatmap.max()),
                "mean": _short(heatmap.mean()),
                "peak": [int(i) for i in np.unravel_index(heatmap.argmax(), heatmap.shape)],
            }
            for name, heatmap in explanation.maps.items()
        },
    }


def _likeliest(explanation, count=5):
    return np.argsort(-explanation.probabilities, kind="stable")[:count]


def _named(network, explanation, index):
    return {
        "index": int(index),
        "label": network.labels[index],
        "probability": _short(explanation.probabilities[index]),
    }


def _readable(name):
    """A name for a figure: short, and without bytes that no character stands for."""
    name = os.fsencode(name).decode("utf-8", "replace")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _spaced(label):
    return _readable(label).replace("_", " ")


def _short(value):
    return float(f"{value:.6g}")


def _draw_likeliest(ax, labels, explanation):
    likeliest = _likeliest(explanation)
    values = explanation.probabilities[likeliest]
    colours = ["C1" if k == explanation.class_index else "C0" for k in likeliest]
    ax.barh(range(len(likeliest)), values, color=colours, height=0.35)
    for row, (k, value) in enumerate(zip(likeliest, values, strict=True)):
        text = f"{_spaced(labels[k])}  {value:.2f}"
        ax.text(0, row - 0.25, text, va="bottom", fontsize=9, parse_math=False)
    ax.set(xlim=(0, 1), ylim=(len(likeliest) - 0.5, -0.8), xlabel="probability", yticks=[])
    ax.set_box_aspect(1)
    ax.spines[["top", "right"]].set_visible(False)
