"""The explorer's pictures: a photo, or a map over it, as HTML that also says what it shows."""

import base64
from collections.abc import Sequence
from html import escape
import io

from cam_helpers.pictures import check_size
import matplotlib
import numpy as np
from PIL import Image

COLOURS = "inferno"  # as in plots.overlay
UNITS = {
    **dict.fromkeys(("Grad-CAM", "Grad-CAM++", "LayerCAM", "HiResCAM"), "score per cell"),
    "Score-CAM": "weighted activation",
    "integrated gradients": "score",
    "guided Grad-CAM": "product of two maps",
}
OF_GRADIENTS = "score per unit of a pixel"
PLACES = (
    ("upper left", "top", "upper right"),
    ("left", "centre", "right"),
    ("lower left", "bottom", "lower right"),
)


def over(image: np.ndarray, heatmap: np.ndarray, opacity: float) -> np.ndarray:
    """Return a heatmap over its image, (height, width, 3) uint8, in the colours of a plot.

    Parameters
    ----------
    image
        (height, width, 3) float, 0 to 255.
    heatmap
        (height, width), at least 0; its maximum gets the last colour, as in ``plots.overlay``.
    opacity
        0 shows the image alone, 1 the heatmap alone.
    """
    check_size(image, heatmap)
    top = heatmap.max() if heatmap.max() > 0 else 1
    colours = 255 * matplotlib.colormaps[COLOURS](heatmap / top)[..., :3]
    return np.rint((1 - opacity) * image + opacity * colours).astype(np.uint8)


def highest(heatmap: np.ndarray) -> str:
    """Return in words, by thirds, where a heatmap is highest: ``"highest at the upper left"``."""
    if not heatmap.any():
        return "zero everywhere"
    peak = np.unravel_index(heatmap.argmax(), heatmap.shape)
    row, column = (3 * at // size for at, size in zip(peak, heatmap.shape, strict=True))
    return f"highest at the {PLACES[row][column]}"


def photo_html(image: np.ndarray, photo: str, network: str) -> str:
    """Return the picture of a photo (height, width, 3), 0 to 255, as a network saw it."""
    seen = f"as {network} saw it"
    caption = f"<b>{escape(photo)}</b><br>{escape(seen)}"
    return _figure(np.rint(image).astype(np.uint8), f"Photo {photo} {seen}", caption)


def map_html(
    image: np.ndarray, heatmap: np.ndarray, opacity: float, method: str, about: Sequence[str]
) -> str:
    """Return the picture of a map over its image, with a colour bar.

    Parameters
    ----------
    image, heatmap, opacity
        As for :func:`over`.
    method
        Of ``methods.METHODS``.
    about
        What the map is of: class, layer, photo.
    """
    lines = "<br>".join(map(escape, about))
    caption = f"<b>{escape(method)}</b><br>{lines}<br>{_bar(heatmap, method)}"
    words = f"{method} of {', '.join(about)}: {highest(heatmap)}"
    return _figure(over(image, heatmap, opacity), words, caption)


def sentence_html(sentence: str, role: str = "status") -> str:
    """Return a sentence that a screen reader reads out; ``role="alert"`` for an error."""
    return f'<div role="{role}" style="line-height:1.4">{escape(sentence)}</div>'


def _figure(pixels, words, caption):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    source = base64.b64encode(file.getvalue()).decode()
    return (
        '<figure style="margin:0;line-height:1.4">'
        f'<img alt="{escape(words)}" src="data:image/png;base64,{source}" style="width:100%">'
        f'<figcaption style="overflow-wrap:anywhere">{caption}</figcaption></figure>'
    )


def _bar(heatmap, method):
    if not heatmap.any():
        return "zero everywhere"
    colours = matplotlib.colormaps[COLOURS](np.linspace(0, 1, 9))
    stops = ",".join(map(matplotlib.colors.to_hex, colours))
    style = f"display:inline-block;width:5em;height:.8em;background:linear-gradient(90deg,{stops})"
    unit = UNITS.get(method, OF_GRADIENTS)
    return f'0 <span style="{style}"></span> {heatmap.max():.2g} {unit}'
