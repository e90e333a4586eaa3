"""Picture files that nobody promised to be good: read whole, or refused in one sentence."""

import os
import stat
import struct
from typing import BinaryIO

from cam_helpers import photo_pixels
import numpy as np
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 100_000_000  # of a file: decoders keep parts of it in memory, some twice
MAX_SCANS = 100  # of a JPEG: each is a pass over all pixels, and ten are usual
MAX_TAG = 1_000_000  # numbers in a TIFF's tag: Pillow makes a Python object of each
OTHER_KINDS = {  # how files begin that people take for photos
    b"<!doctype html": "a web page: save the picture in it, not the page",
    b"<html": "a web page: save the picture in it, not the page",
    b"<svg": "an SVG drawing: export it as PNG",
    b"<?xml": "an XML file, perhaps an SVG drawing: export it as PNG",
    b"%pdf": "a PDF: export the page as PNG",
    b"pk\3\4": "a zip archive: unpack it first",
}
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
TILE_WIDTH, TILE_LENGTH = 322, 323  # of a TIFF: libtiff makes room for one, whatever the picture's
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TIFF_SIZES |= {16: 8, 17: 8, 18: 8}


def open_file(path: str | os.PathLike, name: str) -> BinaryIO:
    """Return a file that ends, open for reading: a device does not, and a FIFO waits for a writer.

    ``name`` stands for the file in what is raised: OSError of the kind that Python raises, or
    ValueError where no file can have such a path. The source of ``photos.load_photo``.
    """
    received = f"expected the path of a photo, received {name}, which"
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISREG(kind):
            return open(path, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{received} is no file: check its name and folder.") from error
    except OSError as error:
        raise type(error)(f"{received} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{received} no file can be called: check its name.") from error
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(f"{received} is a folder, no file: name a file in it.")
    raise OSError(f"{received} is no file but a device or a pipe: save the photo as a file.")


def read(file: BinaryIO, name: str) -> np.ndarray:
    """Return the picture that a file's content holds: (height, width, 3) uint8 RGB, upright.

    By what the file holds, not by its extension; what becomes of its pixels, ``photo_pixels.rgb``
    says. ValueError, with ``name`` for the file, if it is not a whole picture of ``FORMATS``, or is
    larger than ``MAX_BYTES`` or ``photo_pixels.MAX_PIXELS``.

    A file that ends too early is noticed in every format. Bytes that have changed in the middle
    are noticed in PNG, which alone has checksums.
    """
    received = f"expected a JPEG, PNG, WebP, GIF, BMP or TIFF picture, received {name}, which"
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise ValueError(f"{received} is empty: fetch or save it anew.")
    if size > MAX_BYTES:
        raise ValueError(
            f"{received} has {size / 1e6:,.0f} MB, more than {MAX_BYTES / 1e6:.0f}: "
            "save it smaller, or as JPEG."
        )
    file.seek(0)
    head = file.read(1000)
    if other_kind := _other_kind(head):
        raise ValueError(f"{received} seems to be {other_kind}.")
    if head.startswith(b"\x89PNG") and len(head) >= 24:  # before Pillow reads what a PNG says
        photo_pixels.check_size(*struct.unpack_from(">II", head, 16), name)
    with photo_pixels.one_sentence(
        f"{received} Pillow cannot read as one: save it anew as JPEG or PNG.", name
    ):
        if head[:2] in (b"II", b"MM"):
            _check_tiff(file, size)
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
        tags = getattr(image, "tag_v2", {})
        photo_pixels.check_size(tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1), name)
    photo_pixels.check_size(*image.size, name)
    with photo_pixels.one_sentence(
        f"{received} is damaged or cut short: fetch or save it anew.", name
    ):
        if image.format == "PNG":
            image.verify()  # the checksums, which opening and loading skip
            image = Image.open(file, formats=FORMATS)
        if image.format in ("JPEG", "MPO"):
            file.seek(0)
            if file.read().count(b"\xff\xda") > MAX_SCANS:
                raise ValueError("so many scans only cost time")
    return photo_pixels.rgb(image, name)


def _other_kind(head):
    if head[4:8] == b"ftyp":
        if head[8:12] in HEIF_BRANDS:
            return "an HEIC picture: export it as JPEG"
        return "an AVIF picture or a video: export a picture as JPEG"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for start, kind in OTHER_KINDS.items() if text.startswith(start)), None)


def _check_tiff(file, size):
    """Fail where a tag lies outside of the file; Pillow skips it, and with it what it says."""
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:1] == b"I" else ">", b"+" in head[:4]
    start, count, entry, room = (8, "Q", "HHQ8s", 8) if big else (4, "H", "HHL4s", 4)
    offset = "Q" if big else "L"
    file.seek(struct.unpack_from(order + offset, head, start)[0])
    (tags,) = struct.unpack(order + count, file.read(struct.calcsize(order + count)))
    claimed = 0
    for _ in range(tags):
        data = file.read(struct.calcsize(order + entry))
        tag, kind, number, value = struct.unpack(order + entry, data)
        length = number * TIFF_SIZES.get(kind, 0)
        claimed += length
        outside = length > room and struct.unpack(order + offset, value)[0] + length > size
        if outside or claimed > size or (number > MAX_TAG and TIFF_SIZES.get(kind, 0) > 1):
            raise ValueError(f"tag {tag} claims {number:,} numbers in a file of {size:,} bytes")
