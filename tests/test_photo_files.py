"""Files that are no photos, not whole or far too large: noticed in one sentence, at little cost."""

import ast
import os
from pathlib import Path
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib

from cam_helpers import data, photo_files, photos
import numpy as np
from picture_files import CAT, FILES, chunk, png, saved, tiff
from PIL import Image
import pytest


def refused(source, *kinds):
    """The one sentence that a source is refused with, and nothing else is heard."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with pytest.raises(kinds or (ValueError, OSError)) as caught:
            photos.load_photo(source)
    assert not heard
    message = str(caught.value)
    assert message.startswith("expected ")
    assert message.endswith(".")
    assert "received " in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_whole_or_refused(name, capfd):
    content = FILES[name]
    whole = photos.load_photo(content)
    ends = {round(len(content) * percent / 100) for percent in range(100)}
    at_their_ends = 0
    for end in sorted(ends | set(range(len(content) - 20, len(content)))):
        try:
            photo = photos.load_photo(content[:end])
        except ValueError:
            refused(content[:end], ValueError)
        else:
            np.testing.assert_array_equal(photo, whole)
            at_their_ends += 1
    assert at_their_ends < 25 or "animated" in name or name == "MPO"  # whose first picture is whole
    assert capfd.readouterr() == ("", "")


def test_every_flipped_bit_of_a_png_is_noticed():
    content = png([[1, 2, 3], [4, 5, 6]], 3, 8, 0)
    np.testing.assert_array_equal(photos.load_photo(content)[..., 0], [[1, 2, 3], [4, 5, 6]])
    for place in range(len(content) - 12):  # the last 12 only say that this is the end
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            refused(bytes(damaged), ValueError)


def test_a_tag_of_a_tiff_that_the_file_does_not_hold():
    """Pillow skips it with a warning: here the alpha that says what is transparent."""
    content = tiff(bytes(4), 1, 1, t258=(3, [8] * 4), t262=(3, [2]), t277=(3, [4]), t338=(3, [2]))
    np.testing.assert_array_equal(photos.load_photo(content), [[[255, 255, 255]]])
    missing = content.replace(struct.pack("<HHI", 258, 3, 4), struct.pack("<HHI", 258, 3, 400))
    assert "Pillow cannot read as one" in refused(missing, ValueError)
    ends_early = content[:12] + struct.pack("<H", 255) + content[14:]
    assert "Pillow cannot read as one" in refused(ends_early, ValueError)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "a web page: save the picture in it"),
        (b"\xef\xbb\xbf \n<HTML>", "a web page: save the picture in it"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing: export it as PNG"),
        (b"<?xml version='1.0'?><svg/>", "an XML file, perhaps an SVG drawing: export it as"),
        (b"%PDF-1.7 ", "a PDF: export the page as PNG"),
        (b"PK\3\4" + bytes(40), "a zip archive: unpack it first"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "an HEIC picture: export it as JPEG"),
        (b"\0\0\0\x18ftypmif1" + bytes(40), "an HEIC picture: export it as JPEG"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "an AVIF picture or a video: export a picture as"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "an AVIF picture or a video: export a picture as"),
    ],
)
def test_what_people_take_for_a_photo_is_named(tmp_path, content, kind):
    (tmp_path / "photo.jpg").write_bytes(content)
    message = refused(tmp_path / "photo.jpg", ValueError)
    assert f"photo.jpg', which seems to be {kind}" in message


@pytest.mark.parametrize(
    "content",
    [
        b"not a photo",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        saved("ICO"),
        saved("PPM"),
        saved("TGA"),
        saved("PCX"),
        saved("DIB"),
        b"\0" * 5000,
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"MM\0*\0\0\0\x08",
        b"II*\0\xff\xff\xff\xff",
        b"RIFF\0\0\0\0WEBPVP8 ",
    ],
)
def test_no_other_decoder_is_reached(content):
    assert "Pillow cannot read as one: save it anew as JPEG or PNG" in refused(content, ValueError)


def test_a_file_is_read_by_what_it_holds(tmp_path):
    for name in ("cat.jpg", "cat.txt", "cat", "cät 猫 🐈.gif"):
        (tmp_path / name).write_bytes(FILES["PNG"])
        np.testing.assert_array_equal(photos.load_photo(tmp_path / name), CAT)
        np.testing.assert_array_equal(data.load_photo(str(tmp_path / name)), CAT)
    for kind in (bytes, bytearray, memoryview):
        np.testing.assert_array_equal(photos.load_photo(kind(FILES["PNG"])), CAT)


def test_with_a_size_a_photo_is_fitted():
    photo = photos.load_photo(FILES["PNG"], (20, 30), "letterbox")
    assert photo.dtype == np.float32
    expected = photos.fit(np.asarray(CAT), (20, 30), "letterbox")
    np.testing.assert_array_equal(photo, expected)
    np.testing.assert_array_equal(
        photos.load_photo("cat", (9, 9)), photos.fit(photos.sample_photo("cat"), (9, 9))
    )
    with pytest.raises(
        ValueError, match=r"^expected one of crop, stretch, letterbox, received 'no"
    ):
        photos.load_photo("cat", (9, 9), how="no")


def test_paths_where_no_photo_is(tmp_path):
    message = refused(tmp_path / "no.jpg", FileNotFoundError)
    assert message.endswith("no.jpg', which is no file: check its name and folder.")
    assert refused("", FileNotFoundError).startswith("expected the path of a photo, received '', w")
    message = refused(tmp_path, IsADirectoryError)
    assert message.endswith("which is a folder, no file: name a file in it.")
    (tmp_path / "empty.jpg").touch()
    message = refused(tmp_path / "empty.jpg", ValueError)
    assert message.endswith("empty.jpg', which is empty: fetch or save it anew.")
    assert refused(b"", ValueError).endswith(
        "received 0 bytes, which is empty: fetch or save it anew."
    )
    assert refused("a\0b.jpg", ValueError).endswith("which no file can be called: check its name.")
    assert "'a\\nb.jpg', which is no file" in refused("a\nb.jpg", OSError)
    assert "'\\ud800', which" in refused("\ud800", ValueError, OSError)
    long = refused("x" * 5000, OSError)
    assert "xxx … xxx" in long
    assert len(long) < 400
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert "one', which cannot be read: " in refused(tmp_path / "one", OSError)
    (tmp_path / "cat.png").write_bytes(FILES["PNG"])
    assert "cat.png/x', which cannot be read: " in refused(tmp_path / "cat.png" / "x", OSError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO on this system")
def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")  # nobody writes to it: opening it would wait
    for path in (tmp_path / "fifo.jpg", "/dev/zero"):
        message = refused(path, OSError)
        assert message.endswith("is no file but a device or a pipe: save the photo as a file.")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users on this system")
def test_a_file_that_another_user_keeps():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cat.png")
        path.write_bytes(FILES["PNG"])
        path.chmod(0)
        os.chmod(folder, 0o755)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # whom permissions bind
        try:
            message = refused(path, PermissionError)
            assert message.endswith("cat.png', which cannot be read: Permission denied.")
        finally:
            if user == 0:
                os.seteuid(0)


@pytest.mark.parametrize("source", [None, 7, ["cat"], 1.5, object(), Image, {"photo": "cat"}])
def test_what_is_no_source(source):
    message = refused(source, ValueError)
    assert message.startswith("expected a path, an address, the name of a sample, bytes, a PIL im")


def test_a_file_above_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "long.png", "wb") as file:
        file.write(FILES["PNG"])
        file.truncate(photo_files.MAX_BYTES + 1_000_000)
    message = refused(tmp_path / "long.png", ValueError)
    assert message.endswith("which has 101 MB, more than 100: save it smaller, or as JPEG.")


def set_size(content, place, order, width, height):
    content = bytearray(content)
    struct.pack_into(order, content, place, width, height)
    return bytes(content)


CLAIM = 50_000
START = FILES["JPEG"].index(b"\xff\xc0")
PROGRESSIVE = FILES["JPEG progressive"].index(b"\xff\xc2")
FRAME = FILES["GIF"].index(b",\0\0\0\0")
ANIMATED = bytearray(FILES["WebP animated"])
ANIMATED[24:27] = ANIMATED[27:30] = struct.pack("<I", CLAIM - 1)[:3]


def claims():
    long = chunk(b"tEXt", b"a\0" + bytes(70_000_000))
    return {
        "JPEG": set_size(FILES["JPEG"], START + 5, ">HH", CLAIM, CLAIM),
        "JPEG progressive": set_size(
            FILES["JPEG progressive"], PROGRESSIVE + 5, ">HH", CLAIM, CLAIM
        ),
        "PNG": png([bytes(10**7)], CLAIM, 8, 2, height=CLAIM),
        "PNG with a long text": png([bytes(99)], CLAIM, 8, 2, long, height=CLAIM),
        "WebP": set_size(FILES["WebP"], 26, "<HH", 16_383, 16_383),  # the most that one can say
        "WebP animated": bytes(ANIMATED),
        "GIF": set_size(FILES["GIF"], 6, "<HH", CLAIM, CLAIM),
        "GIF by its frame": set_size(FILES["GIF"], FRAME + 5, "<HH", CLAIM, CLAIM),
        "BMP": set_size(FILES["BMP"], 18, "<ii", CLAIM, CLAIM),
        "BMP as long as it says": set_size(FILES["BMP"], 18, "<ii", CLAIM, CLAIM)
        + bytes(60_000_000),
        "TIFF": tiff(bytes(99), CLAIM, CLAIM, t258=(3, [8]), t262=(3, [1])),
        "TIFF LZW": tiff(bytes(99), CLAIM, CLAIM, t258=(3, [8]), t262=(3, [1]), t259=(3, [5])),
        "TIFF JPEG": tiff(bytes(99), CLAIM, CLAIM, t258=(3, [8]), t262=(3, [1]), t259=(3, [7])),
    }


def bombs():
    return {
        "text": png([[0]], 1, 8, 0, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))),
        "profile": png(
            [[0]], 1, 8, 0, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000)))
        ),
        "content": png([bytes(200_000_000)], 1, 8, 0, height=1),
        "tags that share": b"II*\0\x08\0\0\0"
        + struct.pack("<H", 20_000)
        + b"".join(struct.pack("<HHII", 1000 + tag, 1, 400_000, 8) for tag in range(20_000))
        + bytes(400_000),
        "a tag of objects": tiff(bytes(16), 4, 4, t262=(3, [1])).replace(
            struct.pack("<HHI", 262, 3, 1), struct.pack("<HHI", 258, 3, 20_000_000)
        )
        + bytes(40_000_000),
        "tiles": tiff(
            zlib.compress(bytes(10**6)),
            *(9, 9),
            **{"t258": (3, [8]), "t259": (3, [8]), "t262": (3, [1])},
            **{"t322": (4, [32_000]), "t323": (4, [32_000]), "t324": (4, [8]), "t325": (4, [900])},
        ),
        "scans": FILES["JPEG progressive"][:-2]
        + FILES["JPEG progressive"][FILES["JPEG progressive"].rindex(b"\xff\xda") : -2] * 200
        + b"\xff\xd9",
    }


MEASURE = """
import resource, sys
from cam_helpers import photos
for path in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forgets the peak
    def memory(name):
        line = next(line for line in open("/proc/self/status") if line.startswith(name))
        return int(line.split()[1]) / 1000
    before = memory("VmRSS")
    try:
        photos.load_photo(path)
        message = "LOADED"
    except ValueError as error:
        message = str(error)
    print((memory("VmHWM") - before, message))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_what_claims_50000_by_50000_pixels_and_other_bombs_cost_no_memory(tmp_path):
    contents = claims() | bombs()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in contents]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=60,
    )
    assert all(
        line.startswith("TIFFFillTile") for line in done.stderr.splitlines()
    )  # libtiff's own
    measured = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    for name, (megabytes, message) in zip(contents, measured, strict=True):
        print(f"{name}: {megabytes:.0f} MB, {message}")
        assert megabytes < 200, name
        if name.split()[0] in ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"):
            assert message.startswith("expected 1 to 120,000,000 pixels, received '"), name
        elif name != "content":  # of which a decoder takes as much as the picture has room for
            assert message.startswith("expected a "), name


def test_a_photo_of_more_pixels_than_pillow_warns_of(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # the cat has 2400, 1.6 times as many
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(photos.load_photo(FILES["PNG"]), CAT)
    assert not heard
    assert Image.MAX_IMAGE_PIXELS == 1500
