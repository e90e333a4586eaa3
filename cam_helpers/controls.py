"""Heatmaps that know nothing of the network: what a method has to beat.

Each is called as the methods are, with model, images and class. It looks at no weight and at no
class, and returns (batch, height, width) float32, at least 0, as large as the images.
"""

from cam_helpers.arrays import check_count, check_number
from cam_helpers.backend import keras
from cam_helpers.checks import ClassIndex, check_finite, check_request
from cam_helpers.placement import place
import numpy as np
from skimage.filters import sobel


def random_pixels(
    model: keras.Model, images: np.ndarray, class_index: ClassIndex = None, *, seed: int = 0
) -> np.ndarray:
    """Return noise, each pixel by itself, another for each image: values from 0 to 1.

    Parameters
    ----------
    model, images, class_index
        As for ``cams.grad_cam``; of the images only the shape is used.
    seed
        Of the noise.

    Raises
    ------
    ValueError
        As for ``cams.grad_cam``.

    References
    ----------
    Petsiuk, Das and Saenko 2018, https://arxiv.org/abs/1806.07421, section 4.3. Notebook 09.
    """
    images, _ = check_request(model, images, class_index, 1)
    return np.random.default_rng(seed).random(images.shape[:3], np.float32)


def random_cells(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    cells: int = 7,
    seed: int = 0,
) -> np.ndarray:
    """Return noise as coarse as a class activation map: so many cells each way, resized.

    Parameters and errors are those of :func:`random_pixels`; ``cells`` is 1 or more.
    """
    check_count("cells", cells)
    images, _ = check_request(model, images, class_index, 1)
    coarse = np.random.default_rng(seed).random((len(images), cells, cells), np.float32)
    return place(coarse, images.shape[1:3], "resize")


def centred_gaussian(
    model: keras.Model, images: np.ndarray, class_index: ClassIndex = None, *, width: float = 0.25
) -> np.ndarray:
    """Return a bump in the middle, the same for all images: photographers centre what they show.

    Parameters and errors are those of :func:`random_pixels`. ``width`` is the standard deviation as
    a share of the height and of the width of the image, above 0.
    """
    check_number("width", width)
    if not width:
        raise ValueError("expected width above 0, received 0: a tenth makes a narrow bump.")
    images, _ = check_request(model, images, class_index, 1)
    bumps = []
    for pixels in images.shape[1:3]:
        distance = (np.arange(pixels) - (pixels - 1) / 2) / (width * pixels)
        with np.errstate(over="ignore"):
            bumps.append(np.exp(-(distance**2) / 2))
    bump = np.outer(*bumps).astype(np.float32)
    return np.repeat(bump[np.newaxis], len(images), axis=0)


def edges(model: keras.Model, images: np.ndarray, class_index: ClassIndex = None) -> np.ndarray:
    """Return how steep the image is at each pixel: the Sobel filter of the mean of its channels.

    Parameters and errors are those of :func:`random_pixels`.

    References
    ----------
    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, section 5: a picture of edges looks like
    an explanation. Notebook 09.
    """
    images, _ = check_request(model, images, class_index, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        maps = np.stack([sobel(each) for each in images.mean(axis=-1)])
    return check_finite(model, maps.astype(np.float32))
