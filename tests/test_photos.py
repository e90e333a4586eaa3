"""Photos: the samples, files of every kind, and three ways to a network's size."""

import re
import socket

from cam_helpers import fetch, photos
import numpy as np
from PIL import Image
import pytest

STRIPES = np.zeros((40, 80, 3), np.uint8)  # red, green and blue columns in the middle, dark outside
STRIPES[:, 20:40], STRIPES[:, 40:60] = (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cat", (300, 451, 3)),
        ("espresso", (400, 600, 3)),
        ("camera", (512, 512, 3)),
        ("motorcycle", (500, 741, 3)),
    ],
)
def test_samples_need_no_network(name, shape, monkeypatch):
    def refuse(*_):
        raise AssertionError("a sample photo was about to be downloaded")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    photo = photos.sample_photo(name)
    assert photo.shape == shape
    assert photo.dtype == np.uint8
    assert photo.max() > 200


def test_an_unknown_sample():
    with pytest.raises(ValueError, match=r"^expected one of cat, espresso, camera, motorcycle, re"):
        photos.sample_photo("dog")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("cat", "Egyptian_cat"),
        ("espresso", "espresso"),
        ("camera", "tripod"),
        ("motorcycle", "moped"),
    ],
)
@pytest.mark.parametrize("how", ["crop", "letterbox"])
def test_a_network_sees_in_the_samples_what_they_show(mobilenet, name, label, how):
    image = photos.fit(photos.sample_photo(name), mobilenet.input_size, how)
    logits = mobilenet.model(mobilenet.preprocess(image[np.newaxis]))
    assert mobilenet.decode(logits, top=1)[0][0][0] == label


def test_a_file_is_read_as_it_is(tmp_path):
    Image.fromarray(STRIPES).save(tmp_path / "stripes.png")
    photo = photos.load_photo(tmp_path / "stripes.png")
    np.testing.assert_array_equal(photo, STRIPES)
    assert photo.flags.writeable
    np.testing.assert_array_equal(photos.load_photo(str(tmp_path / "stripes.png")), STRIPES)


def test_what_is_transparent_becomes_white(tmp_path):
    pixels = np.array([[(10, 20, 30, 255), (10, 20, 30, 0), (0, 100, 200, 51)]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "glass.png")
    expected = [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]]  # a fifth of the colour
    np.testing.assert_array_equal(photos.load_photo(tmp_path / "glass.png"), expected)
    palette = Image.fromarray(STRIPES).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "glass.gif", transparency=palette.getpixel((0, 0)))
    photo = photos.load_photo(tmp_path / "glass.gif")
    np.testing.assert_array_equal(photo[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(photo[0, 30], [255, 0, 0])


@pytest.fixture
def photo_address(server):
    """The address of the stripes on a server of this machine."""
    Image.fromarray(STRIPES).save(server.folder / "stripes.png")
    return server.url + "stripes.png"


def test_an_address_is_fetched(photo_address, server):
    np.testing.assert_array_equal(photos.load_photo(photo_address), STRIPES)
    upper = photo_address.replace("http://", "HTTP://")
    photo = photos.load_photo(upper, (10, 20), "stretch")
    np.testing.assert_array_equal(photo, photos.fit(STRIPES, (10, 20), "stretch"))
    assert server.requests == [("GET", "/stripes.png")] * 2


def test_an_address_without_a_photo(photo_address, server):
    message = (
        r"^expected the address of a photo, received 'http://127.0.0.1:\d+/no.png' \(status 404 "
    )
    with pytest.raises(
        OSError, match=message + r"instead of a file\): save the photo in a browser, "
    ):
        photos.load_photo(server.url + "no.png")
    with pytest.raises(
        ValueError, match=r"received 'http://127.*/', which seems to be a web page: "
    ):
        photos.load_photo(server.url)
    (server.folder / "half.png").write_bytes((server.folder / "stripes.png").read_bytes()[:-20])
    with pytest.raises(
        ValueError, match=r"half\.png', which is damaged or cut short: fetch or save"
    ):
        photos.load_photo(server.url + "half.png")


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "ftp://host/photo.jpg",
        "data:image/png;base64,AAAA",
        "gopher://host/1",
        "s3://bucket/photo.jpg",
        "x://y",
    ],
)
def test_other_addresses_are_refused_as_such(address):
    message = r"^expected an address that begins with http:// or https://, received '"
    with pytest.raises(ValueError, match=message + re.escape(address)):
        photos.load_photo(address)


@pytest.mark.parametrize(
    "name", ["photo:1.png", "C:photo.png", "http.png", "httpx:photo.png", "http:photo.png"]
)
def test_names_with_a_colon_are_no_addresses(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(STRIPES).save(name)
    np.testing.assert_array_equal(photos.load_photo(name), STRIPES)


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http:///photo.jpg",
        "http://[",
        "http://host:port/",
        "http://" + "a" * 70 + ".b/",
        "http://a..b/",
        "https://\ud800/",
        "http://127.0.0.1:9/photo.jpg",
        "http://127.0.0.1:9\x1f",
    ],
)
def test_addresses_that_cannot_be_reached(address, monkeypatch):
    monkeypatch.setattr(fetch, "SECONDS_TO_ANSWER", 0.5)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(
        OSError, match=r"^expected the address of a photo, received '.*\): save the ph"
    ):
        photos.load_photo(address)


def test_crop_keeps_the_middle_and_its_proportions():
    image = photos.fit(STRIPES, (20, 20))
    assert image.shape == (20, 20, 3)
    assert image.dtype == np.float32
    red, green = (image[..., :2] > 127).all(axis=0).T
    np.testing.assert_array_equal(np.flatnonzero(red), range(10))
    np.testing.assert_array_equal(np.flatnonzero(green), range(10, 20))


def test_crop_is_resizing_and_cutting_the_middle_out_in_one():
    photo = photos.sample_photo("cat")[:, :448]
    half = Image.fromarray(photo).resize((224, 150), Image.Resampling.BILINEAR)
    expected = np.asarray(half, np.float32)[:, 37:187]
    np.testing.assert_allclose(photos.fit(photo, (150, 150)), expected, atol=1)
    image = photos.fit(photo.swapaxes(0, 1), (150, 150))
    np.testing.assert_allclose(image, expected.swapaxes(0, 1), atol=1)


def test_stretch_shows_everything():
    image = photos.fit(STRIPES, (20, 20), how="stretch")
    red, green = (image[..., :2] > 127).any(axis=0).T
    np.testing.assert_array_equal(np.flatnonzero(red), range(5, 10))
    np.testing.assert_array_equal(np.flatnonzero(green), range(10, 15))


def test_letterbox_adds_bars_of_one_colour():
    image = photos.fit(STRIPES, (20, 20), how="letterbox")
    for bar in (image[:5], image[15:]):
        np.testing.assert_array_equal(bar, np.broadcast_to(photos.LETTERBOX_FILL, (5, 20, 3)))
    red, green = (image[5:15, :, :2] > 127).all(axis=0).T
    np.testing.assert_array_equal(np.flatnonzero(red), range(5, 10))
    np.testing.assert_array_equal(np.flatnonzero(green), range(10, 15))
    upright = photos.fit(STRIPES.swapaxes(0, 1), (20, 20), how="letterbox")
    np.testing.assert_array_equal(upright, image.swapaxes(0, 1))


@pytest.mark.parametrize("how", photos.WAYS_TO_FIT)
@pytest.mark.parametrize("size", [(10, 30), (30, 10), (100, 160), (40, 80)])
def test_sizes_are_height_and_width_also_of_small_photos(how, size):
    image = photos.fit(STRIPES, size, how)
    assert image.shape == (*size, 3)
    assert image.min() >= 0
    assert image.max() <= 255
    if size in [(40, 80), (100, 160)] and how != "letterbox":
        part = STRIPES if how == "stretch" or size == (40, 80) else STRIPES[:, 8:72]
        middles = (np.arange(size[1]) + 0.5) * part.shape[1] / size[1] - 0.5
        red = np.interp(middles, range(part.shape[1]), part[0, :, 0])
        np.testing.assert_allclose(image[size[0] // 2, :, 0], red, atol=1)


def test_shrinking_averages_and_does_not_skip_pixels():
    board = np.indices((64, 64)).sum(axis=0)[..., np.newaxis] % 2 * 255
    image = photos.fit(np.tile(board, 3).astype(np.uint8), (8, 8))
    np.testing.assert_allclose(image, 127.5, atol=2)


def test_the_given_photo_stays_as_it_is():
    photo = STRIPES.copy()
    for how in photos.WAYS_TO_FIT:
        photos.fit(photo, (40, 80), how)[:] = 7
    np.testing.assert_array_equal(photo, STRIPES)


@pytest.mark.parametrize(
    ("photo", "size", "how", "message"),
    [
        (STRIPES / 255, (8, 8), "crop", r"^expected a photo \(height, width, 3\) uint8, received"),
        (
            STRIPES[..., 0],
            (8, 8),
            "crop",
            r"received \(40, 80\) uint8: load_photo and sample",
        ),
        (STRIPES[:0], (8, 8), "crop", r"received \(0, 80, 3\) uint8"),
        (
            STRIPES,
            224,
            "crop",
            r"^expected a size \(height, width\), 1 or more, received 224\.$",
        ),
        (STRIPES, (0, 8), "crop", r"received \(0, 8\).$"),
        (STRIPES, (8.0, 8), "crop", r"received \(8\.0, 8\)\.$"),
        (STRIPES, (None, None), "crop", r"received \(None, None\)\.$"),
        (STRIPES, (10**9, 10**9), "crop", "^expected 1 to 120,000,000 pixels, received a size of"),
        (STRIPES, (8, 8), "fill", "^expected one of crop, stretch, letterbox, received 'fill'.$"),
    ],
)
def test_what_does_not_fit_is_refused(photo, size, how, message):
    with pytest.raises(ValueError, match=message):
        photos.fit(photo, size, how)
