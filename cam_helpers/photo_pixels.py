"""Pixels of any kind, a PIL image's or an array's, to upright 8-bit RGB or one sentence."""

from collections.abc import Iterator
import contextlib
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageFile

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
MODES += ("LAB", "I;16", "I;16L", "I;16B", "I;16N")
MAX_PIXELS = 120_000_000  # the 108 megapixels of a phone, which take 1 to 3 GB to decode
TOO_LARGE = f"expected 1 to {MAX_PIXELS:,} pixels, received {{}} of {{}}: save it in another size."
FLOAT_SLACK = 1e-3  # how far resizing may leave the range of 0 to 1: rounding brings it back
UPRIGHT = {  # what undoes an EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def rgb(image: Image.Image, name: str = "a PIL image") -> np.ndarray:
    """Return a PIL image upright as (height, width, 3) uint8 RGB; the image stays as it is.

    Pillow's own ``convert("RGB")``, after which what is transparent is white, except that Pillow
    cuts 16-bit grey off at 255: here the upper 8 of 16 bits are kept, as Pillow does for 16-bit
    colour. Colour profiles are not applied, and an orientation in damaged EXIF data is ignored.

    Raises
    ------
    ValueError
        If the image, called ``name``, is damaged, has no or more than ``MAX_PIXELS`` pixels, or
        more than 16 bits a channel: those have no known range.
    """
    check_size(*image.size, name)
    if image.mode not in MODES:
        raise ValueError(
            f"expected at most 16 bits a channel, received {name} of Pillow's mode {image.mode}, "
            "whose range is not known: save it with 8 bits a channel."
        )
    damaged = f"expected a whole picture, received {name}, which is damaged or cut short"
    with one_sentence(f"{damaged}: fetch or save it anew.", name):
        sample = image.tile[0][3] if image.format == "PNG" and image.tile else image.mode
        image.load()
    if sample == "RGB;16B" and "transparency" in image.info:
        raise ValueError(
            f"expected 8 bits a channel, received {name} of 16 with a transparent colour, of "
            "which Pillow reads the upper half: save it with 8 bits a channel."
        )
    with one_sentence(f"{damaged}: fetch or save it anew.", name):
        upright = _to_upright(image)
        image = _without_slips(image, sample)
        if image.has_transparency_data:
            image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        return np.array(image if upright is None else image.transpose(upright))


def image_of(source: object) -> Image.Image:
    """Return an array as a PIL image of 8 bits a channel, grey, RGB or RGBA.

    Of uint16 the upper 8 bits are kept; floats are 0 to 1, and become 0 to 255. ValueError for
    another shape, type or range, and for no or more than ``MAX_PIXELS`` pixels.
    """
    try:
        array = np.asarray(source)
    except Exception as error:  # a symbolic tensor, or one on another device
        raise ValueError(
            f"expected an array, received {type(source).__name__}, of which NumPy makes none: "
            "give its values."
        ) from error
    received = f"received {array.shape} {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"expected an array (height, width), (height, width, 1), 3 or 4, {received}: take one "
            "photo of a batch as batch[0], and move channels to the end with np.moveaxis."
        )
    check_size(array.shape[1], array.shape[0], "an array")
    if array.dtype.kind == "f":
        if not (array.min() >= -FLOAT_SLACK and array.max() <= 1 + FLOAT_SLACK):
            raise ValueError(
                f"expected floats from 0 to 1, {received} from {array.min():.4g} to "
                f"{array.max():.4g}: give photo / 255 or photo.astype(np.uint8)."
            )
        array = np.rint(array * np.float32(255)).astype(np.uint8)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(
            f"expected an array of uint8, uint16 or float, {received}: "
            "give photo.astype(np.uint8) if its values are 0 to 255."
        )
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def check_size(width: int, height: int, name: str) -> None:
    """Raise ValueError if a picture called ``name`` has no pixels or above ``MAX_PIXELS``."""
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(TOO_LARGE.format(name, f"{width:,} × {height:,}"))


@contextlib.contextmanager
def one_sentence(sentence: str, name: str) -> Iterator[None]:
    """Raise ValueError for whatever Pillow raises, hear no warning, and let no picture be partial.

    Damaged files bring a dozen kinds of exception out of Pillow's decoders.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:  # beyond Pillow's own limit
        raise ValueError(TOO_LARGE.format(name, "far more")) from error
    except Exception as error:
        raise ValueError(sentence) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _to_upright(image):
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged, in one of a dozen ways; the picture is not
        return None


def _without_slips(image, sample):
    """An image that Pillow converts rightly: no 16-bit grey, no transparent grey of 2 or 4 bits."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        bits = 12 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 16
        values = np.asarray(image)
        grey = (values >> bits - 8).astype(np.uint8)
        white_is_0 = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
        image = Image.fromarray(255 - grey if white_is_0 else grey)
        if key is not None:
            image.putalpha(Image.fromarray(np.where(values == key, np.uint8(0), np.uint8(255))))
    elif key is not None and sample in ("L;2", "L;4"):
        image = image.copy()
        image.info["transparency"] = key * 255 // (2 ** int(sample[2]) - 1)
    return image
