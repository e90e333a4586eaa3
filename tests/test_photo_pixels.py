"""Pixels of every kind, to numbers that are known."""

import io
import struct

from cam_helpers import photo_pixels, photos
import numpy as np
from picture_files import CAT, FILES, GREY, chunk, png, saved, tiff
from PIL import Image, ImageFile
import pytest

UPRIGHT = np.zeros((24, 48, 3), np.uint8)  # black and, from its top left corner, red, green, blue
UPRIGHT[:8, :8], UPRIGHT[:8, 40:], UPRIGHT[16:, :8] = np.eye(3) * 255
TURNED = {  # by the standard: which side of the photo is the first row, and which the first column
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.swapaxes(0, 1),  # left, top
    6: UPRIGHT.swapaxes(0, 1)[::-1],  # right, top
    7: UPRIGHT.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: UPRIGHT.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_photos_come_upright(kind, options, orientation):
    turned = Image.fromarray(TURNED[orientation])
    content = saved(kind, turned, exif=exif(orientation), **options)
    photo = photos.load_photo(content)
    assert photo.shape == UPRIGHT.shape
    np.testing.assert_allclose(photo, UPRIGHT, atol=8 if kind == "JPEG" else 0)
    opened = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(photos.load_photo(opened), photo)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_changes_nothing(orientation):
    content = saved("PNG", Image.fromarray(UPRIGHT), exif=exif(orientation))
    np.testing.assert_array_equal(photos.load_photo(content), UPRIGHT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MM\0*",
        b"MM\0*\0\0\0\x08\0",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0",
        b"MM\0*\xff\xff\xff\xff\0\x01",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\xff\x08\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\x1a\0\0\0" + bytes(12),  # 0 / 0
        b"neither of the two",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("error")
def test_damaged_exif_data_leave_the_picture(kind, data):
    content = saved(kind, exif=b"Exif\0\0" + data)
    np.testing.assert_array_equal(photos.load_photo(content), photos.load_photo(saved(kind)))


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_is_as_pillow_converts_it(name):
    expected = np.asarray(Image.open(io.BytesIO(FILES[name])).convert("RGB"))
    np.testing.assert_array_equal(photos.load_photo(FILES[name]), expected)
    coloured = not name.endswith(("1 bit", "fax", "grey", "tiles"))
    shown = expected.astype(float) - (CAT if coloured else np.asarray(GREY)[..., None])
    assert np.abs(shown).mean() < (6 if coloured else 130)


@pytest.mark.parametrize(
    "mode", [mode for mode in photo_pixels.MODES if not mode.startswith(("I", "La"))]
)
def test_every_mode_of_pillow_is_as_pillow_converts_it(mode):
    source = CAT.convert("RGBA") if mode == "RGBa" else CAT.convert("L") if mode == "PA" else CAT
    image = source.convert(mode)
    before = image.tobytes()
    photo = photos.load_photo(image)
    np.testing.assert_array_equal(photo, np.asarray(image.convert("RGB")))
    photo[:] = 7
    assert (image.mode, image.size, image.tobytes()) == (mode, (60, 40), before)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_what_is_transparent_is_white_in_every_mode(mode):
    image = Image.frombytes("LA", (3, 1), bytes([100, 255, 100, 0, 100, 51]))  # 51 is a fifth
    if mode == "PA":
        image = Image.frombytes("PA", (3, 1), image.tobytes())
        image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
    elif mode == "RGBa":
        image = image.convert("RGBA")
    image = image.convert(mode)
    expected = [[[100] * 3, [255] * 3, [224] * 3]]
    np.testing.assert_allclose(photos.load_photo(image), expected, atol=1)


def test_a_transparent_colour_of_a_palette_a_grey_and_an_rgb_png():
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90]))
    alphas = chunk(b"tRNS", bytes([255, 0, 51]))
    photo = photos.load_photo(png([[0, 1, 2, 0]], 4, 8, 3, palette, alphas))
    expected = [[[10, 20, 30], [255, 255, 255], [218, 220, 222], [10, 20, 30]]]
    np.testing.assert_array_equal(photo, expected)
    photo = photos.load_photo(png([[5, 6, 7]], 3, 8, 0, chunk(b"tRNS", b"\0\x06")))
    np.testing.assert_array_equal(photo[..., 0], [[5, 255, 7]])
    colour = chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3]))
    photo = photos.load_photo(png([[1, 2, 3, 1, 2, 4]], 2, 8, 2, colour))
    np.testing.assert_array_equal(photo, [[[255, 255, 255], [1, 2, 4]]])


@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [
        (1, [0b01000000], [0, 255, 0, 0]),
        (2, [0b00011011], [0, 255, 170, 255]),
        (4, [0x01, 0x2F], [0, 255, 34, 255]),
    ],
)
def test_a_transparent_grey_of_few_bits_is_white(depth, row, expected):
    """Pillow compares the transparent grey, 1, with greys that it has stretched to 255."""
    key = chunk(b"tRNS", b"\0\x01")
    photo = photos.load_photo(png([row], 4, depth, 0, key))
    np.testing.assert_array_equal(photo[..., 0], [expected])
    opened = Image.open(io.BytesIO(png([row], 4, depth, 0, key)))
    before = dict(opened.info)
    np.testing.assert_array_equal(photos.load_photo(opened), photo)
    assert opened.info == before


DEEP = np.array([[0, 255, 256, 0x1234, 0x80FF, 65535]], np.uint16)
UPPER = [[0, 0, 1, 0x12, 0x80, 255]]


def test_of_16_bits_the_upper_8_are_kept_in_grey_as_in_colour():
    big = DEEP.astype(">u2")
    grey = png([big.tobytes()], 6, 16, 0)
    colour = png([np.repeat(big, 3).tobytes()], 6, 16, 2)
    for content in (grey, colour, saved("TIFF", Image.fromarray(DEEP))):
        photo = photos.load_photo(content)
        np.testing.assert_array_equal(photo, np.stack(UPPER * 3, axis=-1)[np.newaxis])
    alpha = png(
        [np.stack([DEEP[0], DEEP[0] * 0 + 65535], axis=-1).astype(">u2").tobytes()], 6, 16, 4
    )
    np.testing.assert_array_equal(photos.load_photo(alpha)[..., 0], UPPER)
    for mode, order in [("I;16", "<u2"), ("I;16B", ">u2"), ("I;16L", "<u2")]:
        image = Image.frombytes(mode, (6, 1), DEEP.astype(order).tobytes())
        np.testing.assert_array_equal(photos.load_photo(image)[..., 0], UPPER)


def test_tiffs_of_16_bits_by_their_tags():
    options = {"t258": (3, [16]), "t262": (3, [1])}
    photo = photos.load_photo(tiff(DEEP.tobytes(), 6, 1, **options))
    np.testing.assert_array_equal(photo[..., 0], UPPER)
    photo = photos.load_photo(tiff(DEEP.tobytes(), 6, 1, **options | {"t262": (3, [0])}))
    np.testing.assert_array_equal(photo[..., 0], 255 - np.array(UPPER))  # white is 0
    colour = {"t258": (3, [16] * 3), "t262": (3, [2]), "t277": (3, [3])}
    photo = photos.load_photo(tiff(np.repeat(DEEP, 3).tobytes(), 6, 1, **colour))
    np.testing.assert_array_equal(photo, np.stack(UPPER * 3, axis=-1)[np.newaxis])


def test_12_bits_are_stretched_over_8():
    content = tiff(bytes.fromhex("000fff801234"), 4, 1, t258=(3, [12]), t262=(3, [1]))
    photo = photos.load_photo(content)  # 0x000, 0xfff, 0x801, 0x234
    np.testing.assert_array_equal(photo[..., 0], [[0, 255, 0x80, 0x23]])


def test_premultiplied_alpha_is_undone():
    pixels = bytes([20, 40, 60, 51, 0, 0, 0, 0])  # a fifth of (100, 200, 300 cut to 255)
    content = tiff(pixels, 2, 1, t258=(3, [8] * 4), t262=(3, [2]), t277=(3, [4]), t338=(3, [1]))
    photo = photos.load_photo(content)
    np.testing.assert_allclose(photo, [[[224, 244, 255], [255, 255, 255]]], atol=1)


def test_a_transparent_colour_of_16_bits():
    row = struct.pack(">3H", 0x1234, 0x1235, 0xFFFF)
    photo = photos.load_photo(png([row], 3, 16, 0, chunk(b"tRNS", b"\x12\x34")))
    np.testing.assert_array_equal(photo[..., 0], [[255, 0x12, 255]])
    colour = png([row], 1, 16, 2, chunk(b"tRNS", row))
    with pytest.raises(ValueError, match=r"^expected 8 bits a channel, received 90 bytes of 16 wi"):
        photos.load_photo(colour)


def test_inks_of_adobe_and_of_tiff():
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    for content in (saved("JPEG", inks, quality=100), saved("TIFF", inks)):
        np.testing.assert_allclose(photos.load_photo(content)[0, 0], [255, 0, 0], atol=2)


def test_lab_is_the_colour_it_names():
    image = Image.new("LAB", (2, 1), (0, 128, 128))
    image.putpixel((1, 0), (138, 81 + 128, 70 + 128))  # sRGB's red as seen at D50
    photo = photos.load_photo(saved("TIFF", image))
    np.testing.assert_allclose(photo, [[[0, 0, 0], [255, 0, 0]]], atol=12)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_refused(mode):
    for source in (Image.new(mode, (4, 4)), saved("TIFF", Image.new(mode, (4, 4)))):
        with pytest.raises(ValueError, match=rf"16 bits a channel, received .* mode {mode}, whose"):
            photos.load_photo(source)


def test_a_pil_image_is_neither_closed_nor_turned(tmp_path):
    (tmp_path / "cat.png").write_bytes(saved("PNG", Image.fromarray(TURNED[6]), exif=exif(6)))
    with Image.open(tmp_path / "cat.png") as image:
        np.testing.assert_array_equal(photos.load_photo(image), UPRIGHT)
        assert image.getexif()[0x0112] == 6
        np.testing.assert_array_equal(np.asarray(image), TURNED[6])
    film = Image.open(io.BytesIO(FILES["GIF animated"]))
    film.seek(1)
    second = photos.load_photo(film)  # the frame that it stands at
    assert film.tell() == 1
    np.testing.assert_array_equal(second, np.asarray(film.convert("RGB")))
    film.seek(0)
    np.testing.assert_array_equal(photos.load_photo(film), photos.load_photo(FILES["GIF"]))


def test_pil_images_that_hold_no_picture():
    closed = Image.open(io.BytesIO(FILES["PNG"]))
    closed.close()
    cut = Image.open(io.BytesIO(FILES["PNG"][:3000]))
    for image in (closed, cut):
        with pytest.raises(
            ValueError, match=r"^expected a whole picture, received a PIL image, wh"
        ):
            photos.load_photo(image)
    with pytest.raises(ValueError, match=r"^expected 1 to 120,000,000 pixels, received a PIL imag"):
        photos.load_photo(Image.new("L", (0, 5)))
    with pytest.raises(ValueError, match=r"received a PIL image of 12,001 × 10,000: save it in an"):
        photos.load_photo(Image.new("1", (12_001, 10_000)))


def test_partial_pictures_stay_forbidden_where_pillow_allows_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
        with pytest.raises(ValueError, match="damaged or cut short"):
            photos.load_photo(FILES[name][: len(FILES[name]) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    cut = Image.open(io.BytesIO(FILES["PNG"][:3000]))
    with pytest.raises(ValueError, match="damaged or cut short"):
        photos.load_photo(cut)


RGBA = np.array([[[0, 100, 255, 255], [9, 9, 9, 0]]], np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGBA, [[[0, 100, 255], [255, 255, 255]]]),
        (RGBA[..., :3], RGBA[..., :3]),
        (RGBA[..., :1], [[[0, 0, 0], [9, 9, 9]]]),
        (RGBA[..., 1], [[[100, 100, 100], [9, 9, 9]]]),
        (RGBA[:, ::-1, 2::-1], [[[9, 9, 9], [255, 100, 0]]]),
        (RGBA[..., :3].astype(np.uint16) * 256 + 255, RGBA[..., :3]),
        ((RGBA[..., :3] * np.uint16(256)).astype(">u2"), RGBA[..., :3]),
        (RGBA / 255, [[[0, 100, 255], [255, 255, 255]]]),
        (RGBA[..., :3].astype(np.float32) / 255, RGBA[..., :3]),
        (RGBA[..., :3].astype(np.float16) / 255, RGBA[..., :3]),
        (np.array([[-0.0005, 1.0005]]), [[[0] * 3, [255] * 3]]),
        (np.array([[0.5, 0.25]], np.longdouble), [[[128] * 3, [64] * 3]]),
    ],
)
def test_arrays_of_every_kind(array, expected):
    before = array.copy()
    photo = photos.load_photo(array)
    np.testing.assert_array_equal(photo, expected)
    assert photo.dtype == np.uint8
    photo[:] = 77
    np.testing.assert_array_equal(array, before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros(4, np.uint8),
            r"^expected an array \(height, width\), \(height, width, 1\), 3 or ",
        ),
        (np.zeros((1, 4, 4, 3), np.uint8), r"received \(1, 4, 4, 3\) uint8: take one photo of a b"),
        (
            np.zeros((3, 4, 4, 3)),
            r"batch as batch\[0\], and move channels to the end with np.moveaxis",
        ),
        (np.zeros((4, 4, 2), np.uint8), r"received \(4, 4, 2\) uint8"),
        (
            np.zeros((4, 0, 3), np.uint8),
            r"^expected 1 to 120,000,000 pixels, received an array of 0 ",
        ),
        (
            np.broadcast_to(np.uint8(0), (50_000, 50_000, 3)),
            r"of 50,000 × 50,000: save it in anothe",
        ),
        (
            np.full((4, 4), 255.0),
            r"^expected floats from 0 to 1, received \(4, 4\) float64 from 255 t",
        ),
        (
            np.full((4, 4), -0.5),
            r"from -0\.5 to -0\.5: give photo / 255 or photo\.astype\(np\.uint8",
        ),
        (np.full((4, 4), np.nan), "from nan to nan"),
        (np.full((4, 4), np.inf, np.float16), "from inf to inf"),
        (
            np.zeros((4, 4), bool),
            r"^expected an array of uint8, uint16 or float, received \(4, 4\) b",
        ),
        (np.zeros((4, 4), np.int64), r"int64: give photo\.astype\(np\.uint8\) if its values are 0"),
        (np.zeros((4, 4), complex), "received .* complex128"),
        (np.zeros((4, 4), object), "received .* object"),
        (np.zeros((4, 4), "U3"), "received .* <U3"),
        (np.zeros((4, 4), "M8[s]"), "received .* datetime64"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        photos.load_photo(array)


def test_a_tensor_is_an_array_and_one_without_values_is_refused():
    from cam_helpers.backend import keras, tf

    photo = photos.load_photo(tf.constant(RGBA[..., :3]))
    np.testing.assert_array_equal(photo, RGBA[..., :3])
    with pytest.raises(
        ValueError, match=r"^expected an array, received KerasTensor, of which NumP"
    ):
        photos.load_photo(keras.Input((4, 4, 3)))
