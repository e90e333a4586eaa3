"""Photos that nobody promised to be good: a photo or one sentence, soon, and in little memory."""

import io
import resource
import socket
import struct
import time
import warnings
import zlib

from cam_helpers import photo_pixels, photos
from fuzzing import cases, in_time
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import numpy as np
from picture_files import FILES
from PIL import Image
import pytest

MEGABYTES = 400
STARTS = sorted({content[:12] for content in FILES.values()})
NUMBERS = [0, 1, 2, 7, 255, 256, 1000, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
WAYS = ("byte", "bit", "number", "cut", "insert", "remove", "repeat", "splice")


def no_address(*_, **__):
    raise socket.gaierror("no name is looked up here")


@pytest.fixture(autouse=True, scope="module")
def small_photos():
    """A lower limit of pixels, so that what exceeds it in memory or time stands out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo_pixels, "MAX_PIXELS", 2_000_000)
        patch.setenv("no_proxy", "*")
        patch.setattr(socket, "getaddrinfo", no_address)
        yield


def is_a_photo_or_one_sentence(source):
    started, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            photo = photos.load_photo(source)
        except (ValueError, OSError) as error:
            message = str(error)
            assert message.startswith("expected ")  # in_time's does not
            assert "received " in message
            assert message.endswith(".")
            assert message.isprintable()
            assert len(message) < 500
        else:
            assert photo.dtype == np.uint8
            assert photo.ndim == 3
            assert photo.shape[2] == 3
            assert photo.size
            assert photo.flags.owndata
    assert time.monotonic() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEGABYTES * 1024


@cases(0.06)
@hypothesis.given(st.sampled_from([b"", *STARTS]), st.binary(max_size=300))
def test_random_bytes(start, content):
    is_a_photo_or_one_sentence(start + content)


def mutated(content, way, place, number, piece):
    """A content changed in one place, 0 to 1 of the way through or, if negative, in its header."""
    at = round(place * len(content)) if place >= 0 else round(-place * min(len(content), 150))
    if way == "byte":
        return content[:at] + bytes([number % 256]) + content[at + 1 :]
    if way == "bit":
        return (
            content[:at]
            + bytes(b ^ 1 << number % 8 for b in content[at : at + 1])
            + content[at + 1 :]
        )
    if way == "number":
        order = ("<H", ">H", "<I", ">I")[len(piece) % 4]
        number = struct.pack(order, number % 2 ** (8 * struct.calcsize(order)))
        return content[:at] + number + content[at + len(number) :]
    if way == "cut":
        return content[:at]
    if way == "insert":
        return content[:at] + piece + content[at:]
    if way == "remove":
        return content[:at] + content[at + 1 + number % 100 :]
    if way == "repeat":
        return content[:at] + content[max(0, at - number % 500) :]
    other = FILES[sorted(FILES)[number % len(FILES)]]
    return content[:at] + other[round(abs(place) * len(other)) :]


def with_right_checksums(content):
    """A PNG whose chunks have the checksums that they claim to have, to get further with it."""
    repaired, at = content[:8], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        body = content[at + 4 : at + 8 + length]
        repaired += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return repaired


mutations = st.tuples(
    st.sampled_from(WAYS),
    st.floats(-1, 1),
    st.sampled_from(NUMBERS) | st.integers(0, 2**32 - 1),
    st.binary(max_size=30),
)


@cases(0.3)
@hypothesis.given(
    st.sampled_from(sorted(FILES)), st.lists(mutations, min_size=1, max_size=4), st.booleans()
)
def test_real_files_mutated(name, changes, repair):
    content = FILES[name]
    for change in changes:
        content = mutated(content, *change)
    is_a_photo_or_one_sentence(with_right_checksums(content) if repair else content)


@cases(0.02)
@hypothesis.given(
    st.sampled_from(sorted(FILES)), st.lists(mutations, max_size=2), st.sampled_from([0, 1, 2])
)
def test_pil_images_of_mutated_files(name, changes, frame):
    content = FILES[name]
    for change in changes:
        content = mutated(content, *change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(content))
            image.seek(frame)
        except Exception:  # Pillow's own, before it is ours
            return
    is_a_photo_or_one_sentence(image)


@cases(0.08)
@hypothesis.given(
    arrays.arrays(
        arrays.scalar_dtypes() | st.sampled_from([np.dtype("u1"), np.dtype("f4"), np.dtype("O")]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
        | st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from([1, 3, 4])),
    )
)
def test_random_arrays(array):
    before = array.tobytes()
    is_a_photo_or_one_sentence(array)
    assert array.tobytes() == before


@cases(0.04)
@hypothesis.given(
    st.sampled_from(
        ["", "", "/", "~", "data:", "file:", "s3://", "http://127.0.0.1:9", "HTTP://["]
    ),
    st.text(st.characters(codec=None), max_size=50),
    st.integers(1, 400),
)
def test_random_names(start, text, times):
    is_a_photo_or_one_sentence(start + text * times)
