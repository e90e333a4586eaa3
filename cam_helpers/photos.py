"""Photos: four that are always there, the reader's own, and either cut to a network's size."""

import contextlib
import io
import os
import re

from cam_helpers import fetch, photo_files, photo_pixels
from cam_helpers.placement import check_pair
import numpy as np
from PIL import Image, ImageOps
import skimage.data

SAMPLES = {
    "cat": skimage.data.chelsea,
    "espresso": skimage.data.coffee,
    "camera": skimage.data.camera,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
}
ADDRESS = re.compile(r"(data|file|ftp|[a-z][a-z0-9+.-]*(?=://)):", re.IGNORECASE)
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


def load_photo(
    source: str | os.PathLike | bytes | Image.Image | np.ndarray,
    size: tuple[int, int] | None = None,
    how: str = "crop",
) -> np.ndarray:
    """Return a photo from wherever it is, upright: (height, width, 3) uint8 RGB.

    What is transparent becomes white, and of 16 bits a channel the upper 8 are kept.

    Parameters
    ----------
    source
        The path of a JPEG, PNG, WebP, GIF (its first frame), BMP or TIFF file; such a file's bytes;
        its http(s) address; the name of a sample, such as ``"cat"``; a PIL image of any mode up to
        16 bits a channel; or an array, (height, width), (height, width, 1), 3 or 4 for RGB and
        RGBA: uint8 from 0 to 255, uint16 from 0 to 65,535, or float from 0 to 1. It stays as it is.
    size, how
        With a size (height, width), such as ``backbone.input_size``, the photo is fitted to it:
        what ``fit(photo, size, how)`` returns, float32.

    Raises
    ------
    OSError
        If there is no file, it may not be read, or the address does not answer in time.
    ValueError
        If what is there is not a whole photo, or is larger than ``photo_files.MAX_BYTES`` and
        ``photo_pixels.MAX_PIXELS`` allow. What is noticed of damage: see ``photo_files.read``.
    """
    photo = _load(source)
    return photo if size is None else fit(photo, size, how)


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
    height, width = check_pair("a size", size)
    photo_pixels.check_size(width, height, "a size")
    if how not in WAYS_TO_FIT:
        raise ValueError(f"expected one of {', '.join(WAYS_TO_FIT)}, received {how!r}.")
    image = Image.fromarray(photo)
    if how == "stretch":
        fitted = image.resize((width, height), Image.Resampling.BILINEAR)
    elif how == "crop":
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    else:
        fitted = ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, LETTERBOX_FILL)
    return np.asarray(fitted, np.float32)


def _load(source):
    if isinstance(source, Image.Image):
        return photo_pixels.rgb(source)
    if isinstance(source, bytes | bytearray | memoryview):
        content = bytes(source)
        return photo_files.read(io.BytesIO(content), f"{len(content):,} bytes")
    if hasattr(source, "__array__"):
        return photo_pixels.rgb(photo_pixels.image_of(source), "an array")
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            "expected a path, an address, the name of a sample, bytes, a PIL image or an array, "
            f"received {type(source).__name__}: np.asarray makes an array of a list, and a file's "
            "read() gives its bytes."
        )
    if str(source) in SAMPLES:
        return sample_photo(str(source))
    name = _shown(os.fspath(source))
    if isinstance(source, str) and (found := ADDRESS.match(source)) and not _is_file(source):
        if found[1].lower() not in ("http", "https"):
            raise ValueError(
                f"expected an address that begins with http:// or https://, received {name}: "
                "save the photo, and give its path."
            )
        try:
            content = fetch.content(source, photo_files.MAX_BYTES)
        except OSError as error:
            raise OSError(
                f"expected the address of a photo, received {name} ({error}): "
                "save the photo in a browser, and give its path."
            ) from error
        return photo_files.read(io.BytesIO(content), name)
    with photo_files.open_file(source, name) as file:
        return photo_files.read(file, name)


def _is_file(path):
    with contextlib.suppress(ValueError):  # a NUL
        return os.path.isfile(path)
    return False


def _shown(source):
    text = repr(source)
    return text if len(text) <= 200 else f"{text[:120]} … {text[-60:]}"
