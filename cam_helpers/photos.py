"""Photos: four that are always there, the reader's own, and either cut to a network's size."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
import skimage.data

SAMPLES = {
    "cat": skimage.data.chelsea,
    "espresso": skimage.data.coffee,
    "camera": skimage.data.camera,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
}
WAYS_TO_FIT = ("crop", "stretch", "letterbox")
LETTERBOX_FILL = (124, 117, 104)  # ImageNet's mean colour, the nearest to nothing for a network


def sample_photo(name: str) -> np.ndarray:
    """Return a photo that comes with scikit-image: (height, width, 3) uint8 RGB.

    ``"cat"`` (300, 451), ``"espresso"`` (400, 600), ``"camera"`` on a tripod (512, 512, grey) and
    ``"motorcycle"`` (500, 741): free to use, and ImageNet has a class for each. ValueError for
    another name.
    """
    if name not in SAMPLES:
        raise ValueError(f"expected one of {', '.join(SAMPLES)}, received {name!r}.")
    photo = SAMPLES[name]()
    return photo if photo.ndim == 3 else np.stack([photo] * 3, axis=-1)


def load_photo(path: str | Path) -> np.ndarray:
    """Return a photo from a file, upright, or a sample by its name: (height, width, 3) uint8 RGB.

    What is transparent becomes white.

    Raises
    ------
    OSError
        If no file is there.
    ValueError
        If the file is not an image that Pillow reads, or has more than 8 bits a channel.
    """
    if str(path) in SAMPLES:
        return sample_photo(str(path))
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"expected the path of a photo, received '{path}', which is no file."
        )
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"expected a photo, received '{path}', which Pillow cannot read as a whole image: "
            "save it anew as JPEG or PNG."
        ) from error
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"expected 8 bits a channel, received '{path}' of mode {image.mode}: save it with 8."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def fit(photo: np.ndarray, size: tuple[int, int], how: str = "crop") -> np.ndarray:
    """Return a photo in a network's input size, resized bilinearly and smoothed before it shrinks.

    Parameters
    ----------
    photo
        (height, width, 3) uint8 RGB, larger or smaller than ``size``.
    size
        Height and width in pixels, such as ``backbone.input_size``.
    how
        ``"crop"`` cuts the longer sides at both ends and ``"letterbox"`` adds bars of
        ``LETTERBOX_FILL``; both keep the proportions. ``"stretch"`` does not.

    Returns
    -------
    np.ndarray
        (height, width, 3) float32 RGB, 0 to 255.

    Raises
    ------
    ValueError
        For another kind of photo, size or way.
    """
    photo = np.asarray(photo)
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or not photo.size:
        raise ValueError(
            f"expected a photo (height, width, 3) uint8, received {photo.shape} {photo.dtype}: "
            "load_photo and sample_photo return one."
        )
    if np.shape(size) != (2,) or min(size) < 1:
        raise ValueError(f"expected a size (height, width) of at least 1 pixel, received {size}.")
    if how not in WAYS_TO_FIT:
        raise ValueError(f"expected one of {', '.join(WAYS_TO_FIT)}, received {how!r}.")
    image, (height, width) = Image.fromarray(photo), size
    if how == "stretch":
        fitted = image.resize((width, height), Image.Resampling.BILINEAR)
    elif how == "crop":
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    else:
        fitted = ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, LETTERBOX_FILL)
    return np.asarray(fitted, np.float32)
