"""What the layers of a network put out: as arrays, as files, and which images excite a map most.

All of it comes from one forward pass that ends at the deepest of the layers, compiled once for each
model and choice of layers. Images go through batch by batch.
"""

from collections.abc import Sequence
import hashlib
from pathlib import Path
from typing import NamedTuple

from cam_helpers import archives, compiled, writing
from cam_helpers.arrays import as_numbers
from cam_helpers.backend import keras, tf
from cam_helpers.checks import (
    check_count,
    check_finite,
    check_images,
    check_input,
    check_maps,
    check_size,
    check_weights,
)
from cam_helpers.layers import cut, full_path
from cam_helpers.once import once
from cam_helpers.selection import Wanted, every_path, select
import numpy as np
from tqdm import tqdm


class Strongest(NamedTuple):
    """The images that excite each map most, best first, and where: :func:`strongest_activations`.

    Attributes
    ----------
    image
        (maps, count) int64, index of the image.
    cell
        (maps, count, 2) int64, row and column of its strongest cell.
    value
        (maps, count) float32, the activation there, before its ReLU: else every cell at ReLU6's
        ceiling were as strong as any other. At most 0 where a map stays dead.
    """

    image: np.ndarray
    cell: np.ndarray
    value: np.ndarray


def layer_activations(
    model: keras.Model, images: np.ndarray, layers: Wanted, *, batch_size: int = 32
) -> dict[str, np.ndarray]:
    """Return what each layer puts out, from one forward pass for all of them.

    Parameters
    ----------
    model
        Functional or ``Sequential``, with one input; a softmax at its end does no harm.
    images
        (batch, height, width, channels) float, as the model wants them.
    layers
        A name, a path (``"mobilenet/conv_pw_13_relu"``), an index into ``model.layers``, or a
        pattern of names and paths (``"block*_conv1"``). Or several of these.
    batch_size
        Images that go through the network at once.

    Returns
    -------
    dict[str, np.ndarray]
        For the name or path of each layer (batch, ...) float32, in the order asked for and, within
        a pattern, in that of the network. A layer that is called twice counts as called last; of
        several outputs the first counts.

    Raises
    ------
    ValueError
        If no layer matches, the model cannot take the images, or a layer does not put out one
        thing for each image.

    References
    ----------
    Notebook 06.
    """
    images = _checked(model, images, batch_size)
    activations = dict.fromkeys(select(model, layers))
    for part, batch in _batches(model, images, batch_size):
        for path, output in _outputs(model, activations, batch):
            if activations[path] is None:
                activations[path] = np.empty((len(images), *output.shape[1:]), np.float32)
            activations[path][part] = output
    return activations


def save_activations(
    model: keras.Model,
    images: np.ndarray,
    layers: Wanted,
    folder: str | Path,
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Path]:
    """Save what each layer puts out for many images, in one compressed file a layer.

    Memory does not grow with the number of images. A file is there whole or not at all, is kept if
    it is there, and never overwritten. If the call was interrupted, even killed, the same call goes
    on where it ended: what is not finished waits in a hidden folder beside the files.

    Parameters
    ----------
    model, images, layers, batch_size
        As for :func:`layer_activations`.
    folder
        Where to save, made if need be.
    progress
        Show a progress bar.

    Returns
    -------
    dict[str, Path]
        For each layer its file: ``mobilenet__conv1.npz`` for ``"mobilenet/conv1"``. In it,
        ``np.load(file)["activations"]`` is (images, ...) float32, and ``"layer"``, ``"place"``,
        ``"model"`` and ``"images"`` say of what: the layer's path, its number among all calls, and
        the SHA-256 of the model (architecture and weights) and of the images.

    Raises
    ------
    FileExistsError
        If a file is there that is not of this layer, model and images.
    OSError
        If the disk is full, or nothing can be written there.
    ValueError
        As for :func:`layer_activations`, and if two layers would share a file.

    References
    ----------
    Notebook 06.
    """
    images = _checked(model, images, batch_size)
    paths, folder = select(model, layers), Path(folder)
    files = {path: folder / f"{path.replace('/', '__')}.npz" for path in paths}
    if len(set(files.values())) < len(files):
        raise ValueError(f"expected layers with files of their own, received {paths}: rename one.")
    places = {path: str(place) for place, path in enumerate(every_path(model))}
    of = {"model": archives.digest_of_model(model), "images": _digest(model, images, batch_size)}
    labels = {path: {"layer": path, "place": places[path], **of} for path in paths}
    missing = [path for path in paths if not archives.is_there(files[path], labels[path])]
    unfinished = folder / f".{of['model'][:16]}-{of['images'][:16]}"
    parts, pieces = list(compiled.parts(len(images), batch_size)), {}
    for path in missing:
        names = [f"{places[path]}.{part.start}-{part.stop}" for part in parts]
        pieces[path] = [unfinished / name for name in names]
    if missing:
        number = 0
        with (
            writing.stoppable(
                lambda: f"in batch {number + 1} of {len(parts)}: the same call goes on there."
            ),
            tqdm(total=len(parts) + len(missing), disable=not progress, leave=False) as bar,
        ):
            for number, part in enumerate(parts):
                if not all(archives.is_whole(pieces[path][number]) for path in missing):
                    batch = check_images(model, images[part])
                    for path, output in _outputs(model, missing, batch):
                        archives.write_piece(pieces[path][number], output.numpy())
                bar.update()
            for path in missing:
                archives.join_pieces(pieces[path], files[path], len(images), labels[path])
                bar.update()
    archives.clear(unfinished, [places[path] for path in paths])
    return files


def strongest_activations(
    model: keras.Model,
    images: np.ndarray,
    layer: str,
    maps: int | Sequence[int] | None = None,
    *,
    count: int = 9,
    batch_size: int = 32,
) -> Strongest:
    """Return which images excite each map of a layer most, and in which cell.

    Memory does not grow with the number of images.

    Parameters
    ----------
    model
        Functional or ``Sequential``.
    images
        (n, height, width, channels) float, as the model wants them.
    layer
        Name, or path into nested models, of a layer with output (batch, height, width, maps). The
        name of a nested model alone means its ``layers.explainable_layer``, not what it puts out.
    maps
        Indices of the maps; None for all.
    count
        Images for each map.
    batch_size
        Images that go through the network at once.

    Returns
    -------
    Strongest
        Of equal activations, the first image and its first cell come first.

    Raises
    ------
    ValueError
        If ``count`` is larger than the number of images, if there is no such layer or map, or the
        model cannot take the images.

    References
    ----------
    Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901, figure 2. Notebook 06.
    """
    images = _checked(model, images, batch_size)
    if check_count("count", count) > len(images):
        raise ValueError(f"expected a count of at most {len(images)} images, received {count}.")
    path = full_path(model, layer)
    there = _compiled(model, [path], _peaks).structured_outputs[0].shape[1]
    maps = check_maps(np.arange(there) if maps is None else maps, there, layer)
    kinds = np.float32, np.int64, np.int64, np.int64  # of value, row, column and image
    found = [np.empty((len(maps), 0), kind) for kind in kinds]
    for part, batch in _batches(model, images, batch_size):
        peaks = [output.numpy() for _, output in _outputs(model, [path], batch, _peaks)]
        check_finite(model, peaks[0], part.start)
        new = [peak.T[maps] for peak in peaks]  # each (maps, batch)
        new.append(np.broadcast_to(np.arange(len(images))[part], new[0].shape))
        found = [np.concatenate(pair, axis=1) for pair in zip(found, new, strict=True)]
        best = np.argsort(-found[0], axis=1, kind="stable")[:, :count]
        found = [np.take_along_axis(each, best, axis=1) for each in found]
    value, row, column, image = found
    return Strongest(image, np.stack([row, column], axis=-1), value)


def _as_they_are(*outputs):
    return [tf.cast(output, tf.float32) for output in outputs]


def _peaks(feature_maps):
    """Each map's largest value before its ReLU, its row and its column: (batch, maps)."""
    if feature_maps.shape.rank != 4:
        raise ValueError(
            "expected a layer with an output (batch, height, width, maps), received one with "
            f"{tuple(feature_maps.shape)}: layers.map_layers(model) lists those with maps."
        )
    _, height, width, maps = tf.unstack(tf.shape(feature_maps, tf.int64))
    values = tf.cast(compiled.before_relu(feature_maps), tf.float32)
    by_cell = tf.reshape(values, (-1, height * width, maps))
    best = tf.argmax(by_cell, axis=1)  # of equal values the first
    return tf.reduce_max(by_cell, axis=1), best // width, best % width


def _compiled(model, paths, step=_as_they_are):
    """Compile images -> what a step makes of the layers' outputs, float32 tensors."""

    def make():
        opened = cut(model, paths)
        spec = tf.TensorSpec((None, *opened.inputs[0].shape[1:]))

        @tf.function(autograph=False, input_signature=[spec])
        def run(images):
            outputs = tf.nest.flatten(opened(images, training=False))
            return step(*outputs)

        return run.get_concrete_function()

    return once(model, (step.__qualname__, *paths), make)


def _outputs(model, paths, batch, step=_as_they_are):
    """Yield each path, in alphabetical order, and what a step makes of its output for a batch."""
    paths = sorted(set(paths))  # in another order they need not be compiled again
    check_size(model, batch.shape, paths)
    outputs = _compiled(model, paths, step)(batch)
    for path, output in zip(paths * (len(outputs) // len(paths)), outputs, strict=True):
        there = [*output.shape, 1][0]
        if there != len(batch):
            raise ValueError(
                f"expected one output for each image, received {there} of '{path}' for "
                f"{len(batch)} images: choose a layer before or after it."
            )
        yield path, output


def _batches(model, images, batch_size):
    """Yield slices and their images, checked and as float32: never a copy of more than a batch."""
    for part in compiled.parts(len(images), batch_size):
        with np.errstate(over="ignore"):  # it is refused
            batch = np.asarray(images[part]).astype(np.float32, copy=False)
        bad = np.flatnonzero(~np.isfinite(batch).all(axis=(1, 2, 3)))
        if bad.size:
            raise ValueError(
                "expected finite pixels, received NaN or infinite ones in image "
                f"{part.start + bad[0]}: mend or leave it out."
            )
        yield part, batch


def _checked(model, images, batch_size):
    check_count("batch_size", batch_size)
    check_input(model)
    check_weights(model)
    images = images if hasattr(images, "ndim") else as_numbers("images", images)
    check_images(model, images[:1] if images.ndim == 4 else images)
    return images


def _digest(model, images, batch_size):
    """SHA-256 of the images as float32."""
    digest = hashlib.sha256(str(np.shape(images)).encode())
    for _, batch in _batches(model, images, batch_size):
        digest.update(np.ascontiguousarray(batch))
    return digest.hexdigest()
