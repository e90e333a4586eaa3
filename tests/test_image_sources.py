"""Images from anywhere: each batch alone, in any order of what is missing, none read too early."""

import functools
import pickle

from cam_helpers import image_sources
from cam_helpers.backend import keras, tf
import numpy as np
from PIL import Image
import pytest
import zarr

COUNT = 11
IMAGES = np.arange(COUNT * 12, dtype=np.float32).reshape(COUNT, 2, 2, 3)
PARTS = [slice(0, 4), slice(4, 8), slice(8, 11)]


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((2, 2, 3))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs), name="small")


def opened(images, model=None):
    return image_sources.open_images(images, model)


def tf_data(*sizes):
    data = tf.data.Dataset.from_tensor_slices(IMAGES)
    if not sizes:
        return data
    batches = np.split(IMAGES, np.cumsum(sizes)[:-1])
    spec = tf.TensorSpec((None, 2, 2, 3), tf.float32)
    return tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)


FORMS = {
    "array": lambda folder: IMAGES,
    "list": lambda folder: IMAGES.tolist(),
    "Zarr": lambda folder: zarr.create_array(folder / "a", data=IMAGES, chunks=(5, 2, 2, 3)),
    "tf.data": lambda folder: tf_data(),
    "tf.data, batches": lambda folder: tf_data().batch(3),
    "tf.data, ragged": lambda folder: tf_data(1, 6, 2, 2),
    "tf.data, filtered": lambda folder: tf_data().filter(lambda image: image[0, 0, 0] >= 0),
    "tf.data of tuples": lambda folder: tf.data.Dataset.zip((tf_data(), tf.data.Dataset.range(11))),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", [[0, 1, 2], [0], [1], [2], [0, 2], [1, 2], []])
def test_any_of_the_batches_are_those_of_the_images(form, which, tmp_path):
    source = opened(FORMS[form](tmp_path))
    assert source.count == COUNT
    assert source.files is None
    assert source.in_a_row == form.startswith("tf.data")
    parts = [PARTS[number] for number in which]
    found = [image_sources.read(batch) for batch in source.batches(parts)]
    assert len(found) == len(parts)
    for part, images in zip(parts, found, strict=True):
        np.testing.assert_array_equal(images, IMAGES[part])


def test_batches_are_read_one_at_a_time(tmp_path):
    read = []

    class Slow:
        shape, dtype = IMAGES.shape, IMAGES.dtype

        def __getitem__(self, part):
            read.append(part)
            return IMAGES[part]

    batches = opened(Slow()).batches(PARTS)
    assert read == []
    for number in range(3):
        next(batches)
        assert read == PARTS[: number + 1]


def test_what_workers_read_is_small_to_send(model, tmp_path):
    array = zarr.create_array(tmp_path / "a", shape=(4000, 2, 2, 3), dtype="f4", fill_value=1.0)
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.new("RGB", (2, 2), (10 * number,) * 3).save(tmp_path / "photos" / f"{number}.png")
    for images, part in ((array, slice(0, 4000)), (tmp_path / "photos", slice(1, 4))):
        (batch,) = opened(images, model).batches([part])
        sent = pickle.dumps(batch)
        assert len(sent) < 3000
        found = image_sources.read(pickle.loads(sent))
        assert len(found) == part.stop - part.start
    np.testing.assert_array_equal(found[:, 0, 0, 0], [10, 20, 30])


def test_relative_paths_are_read_from_elsewhere(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (2, 2), (9, 9, 9)).save("a.png")
    zarr.create_array("array", data=IMAGES)
    batches = [next(opened(path, model).batches([slice(0, 1)])) for path in (".", "array")]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    photo, image = map(image_sources.read, batches)
    np.testing.assert_array_equal(photo, np.full((1, 2, 2, 3), 9))
    np.testing.assert_array_equal(image, IMAGES[:1])


def test_photos_that_cannot_be_read_are_nan(model, tmp_path):
    Image.new("RGB", (2, 2), (9, 8, 7)).save(tmp_path / "b.png")
    (tmp_path / "a.jpg").write_text("no photo")
    (tmp_path / "c.webp").symlink_to("nowhere")
    (tmp_path / "d.png").mkdir()
    source = opened(tmp_path, model)
    assert source.files == ["a.jpg", "b.png"]
    (batch,) = source.batches([slice(0, 2)])
    found = image_sources.read(batch)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found).all(axis=(1, 2, 3)), [True, False])
    np.testing.assert_array_equal(found[1, 0, 0], [9, 8, 7])


def test_models_that_take_no_photos(tmp_path):
    for shape in ((None, None, 3), (2, 2, 4)):
        inputs = keras.Input(shape)
        model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs), name="other")
        message = (
            r"^expected a model of RGB or grey images of one size for a folder of photos, received "
            rf"'other', which takes \({shape[0]}, {shape[1]}, {shape[2]}\): make an array of the "
            r"photos\.$"
        )
        with pytest.raises(ValueError, match=message):
            opened(tmp_path, model)


@pytest.mark.parametrize("count", [3, 7, 10])
def test_a_dataset_that_is_shorter_at_the_next_pass(count):
    passes = iter([COUNT, count])
    spec = tf.TensorSpec((2, 2, 3), tf.float32)
    source = opened(
        tf.data.Dataset.from_generator(lambda: iter(IMAGES[: next(passes)]), output_signature=spec)
    )
    assert source.count == COUNT
    with pytest.raises(ValueError, match=r"^expected a tf\.data\.Dataset with the same images"):
        list(source.batches(PARTS))


def test_arrays_of_other_things_are_refused():
    for bad in (IMAGES.astype(object), IMAGES.astype(complex), IMAGES.astype(str)):
        (batch,) = opened(bad).batches([slice(0, 2)])
        with pytest.raises(ValueError, match=r"^expected images as an array of real numbers"):
            image_sources.read(batch)
    with pytest.raises(ValueError, match=r"^expected images as an array of real numbers"):
        opened(functools.partial(print))


def test_a_photo_that_is_gone_is_an_error_and_not_a_gap(model, tmp_path):
    """As on a worker that does not see the folder: it would make a store of nothing."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (batch,) = opened(tmp_path, model).batches([slice(0, 1)])
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="is no file: check its name and folder"):
        image_sources.read(batch)
