"""Arrays made into pictures: each step that changes values on their way to the eye has a name."""

from cam_helpers.arrays import as_numbers, check_number
import matplotlib
import numpy as np


def stretch(heatmap: np.ndarray) -> np.ndarray:
    """Return a heatmap (..., height, width) divided by its maximum; without any above 0, as it is.

    Each map loses its height: compare shapes afterwards, not strengths.
    """
    heatmap = as_numbers("heatmap", heatmap, float)
    top = np.max(heatmap, axis=(-2, -1), keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite stays so
        return np.divide(heatmap, top, out=heatmap.copy(), where=top > 0)


def superimpose(
    photo: np.ndarray,
    heatmap: np.ndarray,
    strength: float = 0.8,
    emphasize: bool = False,
    cmap: str = "jet",
) -> np.ndarray:
    """Return the photo with the heatmap's colours added to it, cut off at white.

    Parameters
    ----------
    photo
        (height, width, 3), values in [0, 1].
    heatmap
        (height, width) of the photo, values in [0, 1]; see ``placement.place`` and :func:`stretch`.
    strength
        Factor of the colours.
    emphasize
        Push values apart first, by the sigmoid 1 / (1 + exp(-50 (value - 0.5))).
    cmap
        Matplotlib's name of the colours.

    Returns
    -------
    np.ndarray
        (height, width, 3), values in [0, 1].

    Raises
    ------
    ValueError
        If photo and heatmap differ in height or width, or values lie outside [0, 1].

    References
    ----------
    The comparison figure of notebook 03.
    """
    photo, heatmap = as_numbers("photo", photo, float), as_numbers("heatmap", heatmap, float)
    check_number("strength", strength)
    if photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise ValueError(f"expected a photo (height, width, 3), received {photo.shape}.")
    check_size(photo, heatmap)
    for name, values in (("photo", photo), ("heatmap", heatmap)):
        if not (np.min(values) >= 0 and np.max(values) <= 1):
            raise ValueError(
                f"expected a {name} with values from 0 to 1, received {np.min(values):g} to "
                f"{np.max(values):g}: {'stretch it' if name == 'heatmap' else 'divide by 255'}."
            )
    if emphasize:
        heatmap = 1 / (1 + np.exp(-50 * (heatmap - 0.5)))
    colours = matplotlib.colormaps[cmap](heatmap)[..., :3]
    return np.minimum(strength * colours + photo, 1)


def largest_channel(gradients: np.ndarray) -> np.ndarray:
    """Return the largest absolute value over the channels of each pixel: (..., height, width).

    ``gradients`` is (..., height, width, channels), signed. Where a pixel matters, not which way.

    References
    ----------
    Simonyan et al. 2014, https://arxiv.org/abs/1312.6034, section 3.1. Notebook 05.
    """
    return np.abs(as_numbers("gradients", gradients)).max(axis=-1)


def around_grey(gradients: np.ndarray) -> np.ndarray:
    """Return signed values as a picture in which 0 is mid-grey: values in [0, 1].

    Each image of (..., height, width, channels) is divided by its own largest absolute value, so
    it loses its height; one that is zero everywhere becomes grey.
    """
    gradients = as_numbers("gradients", gradients, float)
    top = np.abs(gradients).max(axis=(-3, -2, -1), keepdims=True)
    with np.errstate(invalid="ignore"):  # what is not finite stays so
        return 0.5 + 0.5 * np.divide(gradients, top, out=np.zeros(gradients.shape), where=top > 0)


def check_size(image: np.ndarray, heatmap: np.ndarray) -> None:
    """Raise ValueError if a heatmap has not the height and width of its image."""
    if np.shape(heatmap) != np.shape(image)[:2]:
        raise ValueError(
            f"expected a heatmap of the image's height and width {np.shape(image)[:2]}, received "
            f"{np.shape(heatmap)}: place it, by models.receptive_field(model, layer) or 'resize'."
        )
