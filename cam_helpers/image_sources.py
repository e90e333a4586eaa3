"""Many images, from wherever they are, a batch at a time: memory does not grow with their number.

A batch is an array, or a function that reads one: that can be sent to where it is needed.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import itertools
from pathlib import Path
from typing import NamedTuple

from cam_helpers import layers, photo_files, photos
from cam_helpers.arrays import as_numbers
from cam_helpers.backend import keras, tf
from cam_helpers.networks import GREY
import numpy as np
import zarr

Batch = np.ndarray | Callable[[], np.ndarray]
CHANGED = (
    "expected a tf.data.Dataset with the same images at each pass, received one that has changed: "
    "leave shuffling and random changes out."
)


class Source(NamedTuple):
    """Images, (n, height, width, channels) in all.

    Attributes
    ----------
    count
        n.
    batches
        Yields the ``Batch`` of each of some slices, which come in order.
    files
        Of photos their paths below the folder; else None.
    in_a_row
        Whether the images can only be read from the first on.
    """

    count: int
    batches: Callable[[Sequence[slice]], Iterator[Batch]]
    files: list[str] | None = None
    in_a_row: bool = False


def open_images(images, model: keras.Model) -> Source:
    """Return the source of images given in any of the forms that :func:`explain_dataset` takes.

    Raises
    ------
    FileNotFoundError
        If a path is neither a folder nor a Zarr array.
    ValueError
        If there is no image, no photo in a folder, or the form is another one.
    """
    if isinstance(images, str | Path):
        path = Path(images).resolve()  # workers may be at work in another folder
        images = _zarr_array(path)
        if images is None:
            return _photos(path, model)
    if isinstance(images, tf.data.Dataset):
        return _dataset(images)
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        images = as_numbers("images", images)
    if len(images.shape) != 4 or not images.shape[0]:
        raise ValueError(
            f"expected images (n, height, width, channels), received {tuple(images.shape)}."
        )
    if isinstance(images, zarr.Array):  # whoever explains a part reads it, on any machine
        return Source(
            images.shape[0], lambda parts: (functools.partial(_cut, images, p) for p in parts)
        )
    return Source(images.shape[0], lambda parts: (np.asarray(images[part]) for part in parts))


def read(batch: Batch) -> np.ndarray:
    """Return the images of a batch, (batch, height, width, channels).

    A photo that cannot be read is NaN everywhere.
    """
    return as_numbers("images", batch() if callable(batch) else batch)


def _zarr_array(path):
    if not any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup")):
        return None
    found = zarr.open(path, mode="r")
    if isinstance(found, zarr.Group):
        raise ValueError(
            f"expected a Zarr array of images, received the group '{path}' of "
            f"{', '.join(sorted(found.array_keys())) or 'no arrays'}: give the path of one of them."
        )
    return found


def _cut(array, part):
    return np.asarray(array[part])


def _photos(folder, model):
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected a folder of photos or a Zarr array, received '{folder}': check its name."
        )
    *size, channels = layers.graph_of(model).inputs[0].shape[1:]
    if None in size or channels not in (1, 3):
        raise ValueError(
            f"expected a model of RGB or grey images of one size for a folder of photos, received "
            f"'{model.name}', which takes {(*size, channels)}: make an array of the photos."
        )
    found = (path for path in folder.rglob("*") if path.suffix.lower() in photo_files.SUFFIXES)
    paths = sorted(path for path in found if path.is_file())
    if not paths:
        raise ValueError(
            f"expected photos ({', '.join(photo_files.SUFFIXES)}) in '{folder}', found none."
        )
    reader = functools.partial(_load, size=tuple(size), grey=channels == 1)

    def batches(parts):
        return (functools.partial(reader, paths[part]) for part in parts)

    names = [path.relative_to(folder).as_posix() for path in paths]  # bytes that are no text: \udc…
    names = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    return Source(len(paths), batches, names)


def _load(paths, size, grey):
    """Photos cut to a size, (batch, height, width, 1 or 3) float32 from 0 to 255."""
    images = np.full((len(paths), *size, 3), np.nan, np.float32)
    for image, path in zip(images, paths, strict=True):
        try:
            image[:] = photos.load_photo(path, size)
        except FileNotFoundError:  # the whole folder may be missing: on another machine it often is
            raise
        except (OSError, ValueError):
            continue
    return images @ GREY if grey else images


def _dataset(dataset):
    first = tf.nest.flatten(dataset.element_spec)[0].shape
    if first.rank not in (3, 4):
        raise ValueError(
            "expected a tf.data.Dataset of images (height, width, channels) or batches of them, "
            f"alone or with labels, received elements of {first}."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "expected a tf.data.Dataset that ends, received one that repeats for ever."
        )
    images = dataset.map(lambda *element: tf.nest.flatten(element)[0])
    count = int(images.cardinality())
    if first.rank == 4 or count < 0:  # only the images themselves tell how many they are
        count = sum(int(n) for n in images.map(lambda x: tf.shape(x)[0] if first.rank == 4 else 1))
    if not count:
        raise ValueError("expected images, received an empty tf.data.Dataset.")

    def batches(parts):
        if not parts:
            return
        start, size = parts[0].start, parts[0].stop - parts[0].start
        each = images if first.rank == 3 else images.unbatch()
        found = zip(itertools.count(start, size), each.skip(start).batch(size), strict=False)
        for part in parts:
            batch = next((batch for at, batch in found if at == part.start), ())
            if len(batch) != part.stop - part.start:
                raise ValueError(CHANGED)
            yield batch.numpy()

    return Source(count, batches, in_a_row=True)
