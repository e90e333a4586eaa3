"""The maps of a whole dataset, streamed into a Zarr store that outlives the program.

The images go through the network batch by batch, and each batch is a chunk of the store: whole or
absent. A run that is killed goes on with the chunks that are missing; memory does not grow with the
number of images. ``xarray.open_zarr(store)`` opens what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
import warnings

import cam_helpers
from cam_helpers import archives, map_stores, methods, writing
from cam_helpers.arrays import as_numbers, brief, check_count
from cam_helpers.backend import keras, tf
from cam_helpers.cams import Scored, layer_path
from cam_helpers.checks import ClassIndex, check_classes, check_input, check_model
from cam_helpers.image_sources import CHANGED, Batch, Source, open_images, read
from cam_helpers.networks import rescales
from cam_helpers.placement import Placement, ReceptiveField, place
from cam_helpers.receptive_field import field_of
import numpy as np
from tqdm import tqdm
import zarr

if TYPE_CHECKING:
    import distributed


class Request(NamedTuple):
    """What is done with each batch: its images are prepared, then explained by a method."""

    method: str
    options: dict
    prepare: Callable[[np.ndarray], np.ndarray] | None


class Task(NamedTuple):
    """One chunk of the store: its images, and the class asked for of each, None for the top."""

    part: slice
    batch: Batch
    class_index: np.ndarray | None


def explain_dataset(
    model: keras.Model,
    images: np.ndarray | zarr.Array | tf.data.Dataset | str | Path,
    method: str | Callable,
    store: map_stores.Store,
    *,
    class_index: ClassIndex = None,
    batch_size: int,
    client: distributed.Client | None = None,
    progress: bool = True,
    layer: str | None = None,
    placement: Placement = "receptive_field",
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    **options,
) -> zarr.Group:
    """Map any number of images into a Zarr store, or go on with what a stopped run left there.

    Parameters
    ----------
    model
        As for ``cams.grad_cam``.
    images
        (n, height, width, channels): an array, also one on disk (``np.load(..., mmap_mode="r")``,
        h5py), a Zarr array or its path, or a ``tf.data.Dataset`` of images or batches, alone or
        first of a tuple, in the same order at each pass. Or the path of a folder of photos: all in
        it and in the folders below, sorted by path, each as ``photos.load_photo`` fits it to the
        model's size, RGB or grey, 0 to 255.
    method
        Of ``methods.METHODS``, or its function, such as ``cams.grad_cam``.
    store
        The path of the store, or one of ``zarr.storage``.
    class_index
        One class for all images, one for each, or None for each image's top class.
    batch_size
        Images that go through the network at once, and make one chunk.
    client
        Of a Dask cluster, whose workers need this package: they explain the batches, each with a
        model of its own, and this process writes what they send. Photos and Zarr arrays are read by
        the workers, which must find them under the same path. None for this process alone.
    progress
        Show a progress bar.
    layer, placement
        As for ``methods.heatmaps``.
    prepare
        Makes of a batch as it is read what the model takes, such as ``backbone.preprocess``.
    options
        Of the method, such as ``samples`` of SmoothGrad.

    Returns
    -------
    zarr.Group
        For reading. ``maps`` (image, row, column) float32, at least 0, class activation maps at the
        resolution of their layer (:func:`place_maps`), others at that of the images;
        ``class_index`` (image,) int32; ``score`` (image,) float32, the logit of that class; of
        photos ``file`` (image,). Attributes: ``method``, ``layer``, ``options``, ``field`` where
        the cells of that layer look, ``image_size``, ``class_index``, ``batch_size``, ``model``
        (the SHA-256 of architecture and weights), ``images`` (of what tells them apart) less those
        ``left_out``, as they could not be read, and ``versions`` of the libraries used.

        A photo that cannot be read, and an image with NaN or infinity, has NaN as map and score and
        -1 as class; a warning counts them, and the next call tries them again.

    Raises
    ------
    BlockingIOError
        If another run writes into the store.
    FileExistsError
        If it holds something else, or maps of another model, method, layer, option, class, size of
        batches, or of other images: their number, the first batch and, unless they come one after
        the other, the last must be the same.
    OSError
        If nothing can be read or written there, the disk is full, or all workers that had the same
        batch died.
    ValueError
        As the method, and for images of no such form.

    References
    ----------
    Notebook 12.
    """
    known = methods.CAMS | methods.AT_THE_PIXELS
    name = next((name for name, each in known.items() if method in (name, each)), None)
    if name is None:
        raise ValueError(
            f"expected one of {', '.join(known)}, or its function, received {brief(method)}."
        )
    check_count("batch_size", batch_size)
    check_input(model)
    if name in methods.AT_A_LAYER:
        options["layer"] = layer_path(model, layer)
    if name in methods.PLACED_INSIDE:
        options["placement"] = placement
    source, request = open_images(images, model), Request(name, options, prepare)
    if source.files and prepare is None and not rescales(model):
        raise ValueError(
            f"expected prepare for photos, as '{model.name}' does not rescale pixels itself, "
            "received None: give what makes of pixels from 0 to 255 what the model takes."
        )
    classes = check_model(model)
    wanted = None if class_index is None else check_classes(class_index, source.count, classes)
    parts = [
        slice(i, min(i + batch_size, source.count)) for i in range(0, source.count, batch_size)
    ]
    ends = [parts[0], parts[0] if source.in_a_row else parts[-1]]
    unread = map_stores.left_out(store)
    (first, bad), (last, others) = (_look_at(source, end, request, unread) for end in ends)
    if source.in_a_row and first != last:
        raise ValueError(CHANGED)
    image = _one_good(source, parts, request)
    one = methods.scored_maps(name, model, image, None, **options).heatmaps
    recipe = {
        "method": name,
        "layer": options.get("layer"),
        "options": {key: _plain(value) for key, value in options.items() if key != "layer"},
        "field": _field(model, name, options, image.shape[1:3], placement),
        "image_size": image.shape[1:3],
        "class_index": _asked(class_index, wanted),
        "batch_size": int(batch_size),
        "model": archives.digest_of_model(model),
        "images": _sha256(f"{source.count} {first} {last}".encode()),
        "left_out": sorted({*unread, *bad, *others}),
    }
    explained = _explainer(client, model, request)
    with map_stores.alone(store), writing.explained(str(store)):
        shape = (source.count, *one.shape[1:])
        group = map_stores.opened(store, recipe, versions(), shape, source.files)
        arrays = {name: group[name] for name in map_stores.ARRAYS}  # to look each up takes time
        todo = map_stores.missing(group, parts)
        done = source.count - sum(part.stop - part.start for part in todo)
        bad = []
        with (
            tqdm(total=source.count, initial=done, unit="image", disable=not progress) as bar,
            writing.stoppable(lambda: f"after {done} images of {source.count}: call it again."),
        ):
            for part, good, found in explained(_tasks(source, todo, wanted)):
                map_stores.write(arrays, part, good, found)
                bad += [part.start + row for row in np.flatnonzero(~good)]
                done += len(good)
                bar.update(len(good))
    if bad:
        named = [
            source.files[index] if source.files else f"image {index}" for index in sorted(bad)[:3]
        ]
        warnings.warn(
            f"{len(bad)} of {source.count} images could not be read or are not finite, and have no "
            f"map: {', '.join(named)}{', …' if len(bad) > 3 else ''}",
            stacklevel=2,
        )
    return zarr.open_group(store, mode="r")


def place_maps(maps: np.ndarray, attributes: Mapping) -> np.ndarray:
    """Return maps of a store as large as the images: (n, height, width) float32.

    Parameters
    ----------
    maps
        (n, rows, columns), some of the store's.
    attributes
        The store's, or those of the xarray.Dataset that it was opened as.
    """
    field = attributes["field"]
    if field is None:
        return np.asarray(maps)
    field = (
        field if field == "resize" else ReceptiveField(**{k: tuple(v) for k, v in field.items()})
    )
    return place(maps, tuple(attributes["image_size"]), field)


def explain_batch(
    model: keras.Model, task: Task, request: Request
) -> tuple[slice, np.ndarray, Scored | None]:
    """Return a task's part, which of its images are good, (batch,) bool, and what is found in them.

    None if no image is good.
    """
    images, good = _prepared(task.batch, request)
    if not good.any():
        return task.part, good, None
    options = {"batch_size": len(images), **request.options}
    classes = None if task.class_index is None else task.class_index[good]
    return task.part, good, methods.scored_maps(request.method, model, images, classes, **options)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a map is."""
    known = {"cam_helpers": cam_helpers, "tensorflow": tf, "keras": keras, "numpy": np}
    return {name: each.__version__ for name, each in known.items()}


def _explainer(client, model, request) -> Callable[[Iterator[Task]], Iterator]:
    if client is None:
        return lambda tasks: (explain_batch(model, task, request) for task in tasks)
    from cam_helpers import cluster  # needs the extra of this name

    return cluster.explainer(client, model, request)


def _tasks(source: Source, parts, wanted) -> Iterator[Task]:
    for part, batch in zip(parts, source.batches(parts), strict=True):
        yield Task(part, batch, None if wanted is None else wanted[part])


def _prepared(batch, request):
    """The good images as the model takes them, and which they are."""
    images = read(batch)
    good = np.isfinite(images).all(axis=(1, 2, 3))
    if request.prepare is None or not good.any():
        return images if good.all() else images[good], good
    prepared = as_numbers("images", request.prepare(images[good]))  # a copy, which it may change
    if prepared.shape[:1] != (good.sum(),):
        raise ValueError(
            f"expected prepare to return an image for each of {good.sum()}, received "
            f"{prepared.shape}: it gets a batch, and returns one."
        )
    return prepared, good


def _look_at(source, part, request, unread):
    """The digest of a batch, less those known to be unread; which of its images are not good."""
    (batch,) = source.batches([part])
    images, good = _prepared(batch, request)
    index = part.start + np.arange(len(good))
    images = as_numbers("images", images, np.float32)[~np.isin(index[good], unread)]
    return _sha256(images.tobytes()), index[~good].tolist()


def _one_good(source, parts, request):
    for batch in source.batches(parts):
        images, good = _prepared(batch, request)
        if good.any():
            return images[:1]
    raise ValueError("expected images, received none that can be read: mend them.")


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _plain(value):
    """What JSON can hold; of an array of several values their digest."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else _sha256(f"{array.shape}".encode() + array.tobytes())


def _asked(class_index, wanted):
    """The class asked for; of several, of whatever integers, their digest."""
    if wanted is None:
        return "top class"
    return _plain(wanted if np.ndim(class_index) else class_index)


def _field(model, name, options, size, placement):
    """Where the cells of the maps look, None if they are pixels."""
    if name not in methods.CAMS:
        return None
    field = field_of(model, options["layer"], size, placement)
    if isinstance(field, str):
        return field
    return {key: np.asarray(pair).tolist() for key, pair in field._asdict().items()}
