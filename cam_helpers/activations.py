"""What the layers of a network put out: as arrays, as files, and which images excite a map most.

All of it comes from one forward pass that ends at the deepest of the layers, compiled once for each
model and choice of layers. Images go through batch by batch.
"""

from collections.abc import Sequence
import hashlib
from pathlib import Path
import shutil
from typing import NamedTuple

from cam_helpers import archives, compiled
from cam_helpers.backend import keras, tf
from cam_helpers.checks import check_count, check_images
from cam_helpers.layers import Wanted, cut, full_path, graph_of, select
from cam_helpers.once import once
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
        (maps, count) float32, the activation there.
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
        If no layer matches, or the model cannot take the images.

    References
    ----------
    Notebook 06.
    """
    _check(model, images, batch_size)
    paths = select(model, layers)
    run, activations = _compiled(model, paths), {}
    for part, batch in _batches(model, images, batch_size):
        for path, output in zip(paths, run(batch), strict=True):
            if path not in activations:
                activations[path] = np.empty((len(images), *output.shape[1:]), np.float32)
            activations[path][part] = output.numpy()
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
        ``np.load(file)["activations"]`` is (images, ...) float32, and ``"layer"``, ``"model"`` and
        ``"images"`` say of what: the layer's path, and the SHA-256 of the model (architecture and
        weights) and of the images.

    Raises
    ------
    FileExistsError
        If a file is there that is not of this layer, model and images.
    ValueError
        As for :func:`layer_activations`, and if two layers would share a file.

    References
    ----------
    Notebook 06.
    """
    _check(model, images, batch_size)
    paths, folder = select(model, layers), Path(folder)
    files = {path: folder / f"{path.replace('/', '__')}.npz" for path in paths}
    if len(set(files.values())) < len(files):
        raise ValueError(f"expected layers with files of their own, received {paths}: rename one.")
    of = {"model": archives.digest_of_model(model), "images": _digest(model, images, batch_size)}
    labels = {path: {"layer": path, **of} for path in paths}
    missing = [path for path in paths if not archives.is_there(files[path], labels[path])]
    unfinished = folder / f".{of['model'][:16]}-{of['images'][:16]}"
    unfinished.mkdir(parents=True, exist_ok=True)
    if missing:
        run, pieces = _compiled(model, missing), []
        parts = list(compiled.parts(len(images), batch_size))
        for part in tqdm(parts, "batches", disable=not progress, leave=False):
            span = f"{part.start}-{part.stop}"
            new = [unfinished / f"{files[path].stem}.{span}" for path in missing]
            if not all(piece.exists() for piece in new):
                for piece, output in zip(new, run(check_images(model, images[part])), strict=True):
                    archives.write_piece(piece, output.numpy())
            pieces.append(new)
        for path, own in tqdm(
            list(zip(missing, zip(*pieces, strict=True), strict=True)),
            "files",
            disable=not progress,
            leave=False,
        ):
            archives.join_pieces(own, files[path], "activations", len(images), labels[path])
    shutil.rmtree(unfinished)
    return files


def strongest_activations(
    model: keras.Model,
    images: np.ndarray,
    layer: str,
    maps: Sequence[int] | None = None,
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
        Name, or path into nested models, of a layer with output (batch, height, width, maps).
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
    _check(model, images, batch_size)
    if check_count("count", count) > len(images):
        raise ValueError(f"expected a count of at most {len(images)} images, received {count}.")
    run = _compiled(model, [full_path(model, layer)], _peaks)
    maps = _checked_maps(maps, run.structured_outputs[0].shape[1], layer)
    kinds = np.float32, np.int64, np.int64, np.int64  # of value, row, column and image
    found = [np.empty((len(maps), 0), kind) for kind in kinds]
    for part, batch in _batches(model, images, batch_size):
        new = [output.numpy().T[maps] for output in run(batch)]  # each (maps, batch)
        new.append(np.broadcast_to(np.arange(len(images))[part], new[0].shape))
        found = [np.concatenate(pair, axis=1) for pair in zip(found, new, strict=True)]
        best = np.argsort(-found[0], axis=1, kind="stable")[:, :count]
        found = [np.take_along_axis(each, best, axis=1) for each in found]
    value, row, column, image = found
    return Strongest(image, np.stack([row, column], axis=-1), value)


def _as_they_are(*outputs):
    return outputs


def _peaks(feature_maps):
    """Each map's largest value, its row and its column: (batch, maps)."""
    if feature_maps.shape.rank != 4:
        raise ValueError(
            "expected a layer with an output (batch, height, width, maps), received one with "
            f"{tuple(feature_maps.shape)}: layers.map_layers(model) lists those with maps."
        )
    _, height, width, maps = tf.unstack(tf.shape(feature_maps, tf.int64))
    by_cell = tf.reshape(feature_maps, (-1, height * width, maps))
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
            return step(*[tf.cast(output, tf.float32) for output in outputs])

        return run.get_concrete_function()

    return once(model, (step.__qualname__, *paths), make)


def _batches(model, images, batch_size):
    """Yield slices and their images, checked and as float32: never a copy of more than a batch."""
    for part in compiled.parts(len(images), batch_size):
        try:
            yield part, check_images(model, images[part])
        except ValueError:
            check_images(model, images)  # says which of all images it is
            raise


def _check(model, images, batch_size):
    check_count("batch_size", batch_size)
    inputs = graph_of(model).inputs
    if len(inputs) != 1:
        raise ValueError(
            f"expected a model with one input, received '{model.name}' with {len(inputs)}: "
            "rebuild it as a keras.Model of the image alone."
        )
    check_images(model, images[:1] if np.ndim(images) == 4 else images)


def _checked_maps(maps, there, layer):
    wanted = np.arange(there) if maps is None else np.asarray(maps)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or not wanted.size:
        raise ValueError(f"expected maps as a sequence of indices, or None, received {maps!r}.")
    outside = wanted[(wanted < 0) | (wanted >= there)]
    if outside.size:
        raise ValueError(
            f"expected maps from 0 to {there - 1} of layer '{layer}', received {outside[0]}."
        )
    return wanted


def _digest(model, images, batch_size):
    """SHA-256 of the images as float32, and of how many there are."""
    digest = hashlib.sha256(str(len(images)).encode())
    for _, batch in _batches(model, images, batch_size):
        digest.update(np.ascontiguousarray(batch))
    return digest.hexdigest()
