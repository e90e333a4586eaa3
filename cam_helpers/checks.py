"""What a method may be asked: which model, which images, which class. Else one clear sentence."""

from collections.abc import Sequence

from cam_helpers import layers
from cam_helpers.backend import keras
from cam_helpers.once import forget_if_changed, once
import numpy as np

ClassIndex = int | Sequence[int] | None
TOP_CLASS = -1


def check_request(
    model: keras.Model, images: np.ndarray, class_index: ClassIndex, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return images (batch, height, width, channels) float32 and classes (batch,) int32.

    Raises
    ------
    ValueError
        If batch_size is no count, and as :func:`check_input`, :func:`check_model`,
        :func:`check_logits`, :func:`check_images` and :func:`check_classes`.
    """
    check_count("batch_size", batch_size)
    check_input(model)
    classes = once(model, ("classes",), lambda: check_model(model))
    check_logits(model)  # each time: the caller may have set an activation since
    images = check_images(model, images)
    return images, check_classes(class_index, len(images), classes)


def check_model(model: keras.Model) -> int:
    """Return the number of classes that a model has scores for; one score makes two.

    Raises
    ------
    ValueError
        If the model has several outputs, or if its output is not (batch, classes).
    """
    outputs = layers.graph_of(model).outputs
    if len(outputs) != 1:
        raise ValueError(
            f"expected a model with one output, received '{model.name}' with {len(outputs)}: "
            "choose one with keras.Model(model.input, model.outputs[0])."
        )
    shape = outputs[0].shape
    if len(shape) != 2 or shape[1] is None:
        raise ValueError(
            f"expected a model with an output (batch, classes), received '{model.name}' with "
            f"{shape}: choose a score for each class first."
        )
    return max(2, shape[1])


def check_input(model: keras.Model) -> None:
    """Make sure that a model takes images, and that nothing stale is kept of it.

    Raises
    ------
    ValueError
        If it is no Keras model with a graph, if it has several inputs, if its input is not (batch,
        height, width, channels), or if its channels come first.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"expected a Keras model, received {type(model).__name__}: load or build one first."
        )
    forget_if_changed(model)
    once(model, ("input",), lambda: _check_input(model))


def _check_input(model):
    inputs = layers.graph_of(model).inputs
    if len(inputs) != 1:
        raise ValueError(
            f"expected a model with one input, received '{model.name}' with {len(inputs)}: "
            "rebuild it as a keras.Model of the image alone."
        )
    shape = inputs[0].shape
    if len(shape) != 4:
        raise ValueError(
            "expected a model that takes images (batch, height, width, channels), received "
            f"'{model.name}', which takes {shape}: put a Reshape in a model before it."
        )
    for node in layers.nodes(model):
        if getattr(node.operation, "data_format", None) == "channels_first":
            raise ValueError(
                f"expected channels last, received '{node.operation.name}' with channels first: "
                "rebuild the model with data_format='channels_last'."
            )


def check_logits(model: keras.Model) -> None:
    """Raise ValueError if a model ends in softmax, sigmoid or another activation."""
    activation = layers.final_activation(model)
    if activation:
        raise ValueError(
            f"expected a model that returns logits, received '{model.name}', which ends in "
            f"{activation}: explain models.to_logits(model)."
        )


def check_images(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the images as float32, if the model can take them as they are.

    Raises
    ------
    ValueError
        If rank, size or kind are others, if a pixel is not finite, or if there is no image.
    """
    images, shape = np.asarray(images), tuple(layers.graph_of(model).inputs[0].shape)
    if images.ndim != 4:
        way_out = "images[np.newaxis] makes one image a batch" if images.ndim == 3 else "stack them"
        raise ValueError(
            f"expected images (batch, height, width, channels), received {images.shape}: {way_out}."
        )
    if len(images) == 0:
        raise ValueError(f"expected at least one image, received an empty batch {images.shape}.")
    pairs = zip(shape[1:], images.shape[1:], strict=True)
    if any(want not in (None, have) for want, have in pairs):
        raise ValueError(
            f"expected images {shape}, received {images.shape}: resize or convert them to what "
            f"'{model.name}' takes."
        )
    if images.dtype.kind != "f":
        raise ValueError(
            f"expected float images as '{model.name}' wants them, received {images.dtype}: "
            "preprocess them first."
        )
    images = images.astype(np.float32, copy=False)
    if not np.isfinite(images).all():
        bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3))).tolist()
        raise ValueError(
            f"expected finite pixels, received NaN or infinite ones in image {bad[0]} "
            f"({len(bad)} of {len(images)} images): mend or leave it out."
        )
    return images


def check_classes(class_index: ClassIndex, count: int, classes: int) -> np.ndarray:
    """Return one class for each image, (count,) int32, ``TOP_CLASS`` where None was asked for.

    Raises
    ------
    ValueError
        If a class is no integer or out of range, or there are not as many as images.
    """
    if class_index is None:
        return np.full(count, TOP_CLASS, np.int32)
    return check_each("class_index", class_index, count, classes)


def check_each(name: str, index: int | Sequence[int], count: int, limit: int) -> np.ndarray:
    """Return one index below ``limit`` for each of ``count`` images, (count,) int32.

    Raises
    ------
    ValueError
        If one is no integer or out of range, or there are not as many as images.
    """
    wanted = np.asarray(index)
    if wanted.dtype.kind not in "iu":
        way_out = ", or None for the top class" if name == "class_index" else ""
        raise ValueError(
            f"expected {name} as an integer, one for each image{way_out}, received {index!r}."
        )
    if wanted.ndim and wanted.shape != (count,):
        raise ValueError(
            f"expected one {name} for all images or one for each of {count}, received shape "
            f"{wanted.shape}."
        )
    outside = wanted[(wanted < 0) | (wanted >= limit)]
    if outside.size:
        raise ValueError(
            f"expected {name} from 0 to {limit - 1}, received {outside.flat[0]}: there are {limit}."
        )
    return np.broadcast_to(wanted, count).astype(np.int32)


def check_heatmaps(heatmaps: np.ndarray) -> None:
    """Raise ValueError if a value of heatmaps (n, height, width) is not finite."""
    if not np.isfinite(heatmaps).all():
        bad = np.flatnonzero(~np.isfinite(heatmaps).all(axis=(1, 2))).tolist()
        raise ValueError(
            f"expected finite heatmaps, received NaN or infinite values in map {bad[0]} "
            f"({len(bad)} of {len(heatmaps)}): do not divide a blank map by its maximum."
        )


def check_maps(maps: int | Sequence[int], count: int, layer: str) -> np.ndarray:
    """Return indices of maps, (n,) int32; ValueError if one is no map of the layer's ``count``."""
    wanted = np.atleast_1d(maps)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or not wanted.size:
        raise ValueError(
            f"expected maps as an integer or a sequence of integers, received {maps!r}."
        )
    outside = wanted[(wanted < 0) | (wanted >= count)]
    if outside.size:
        raise ValueError(
            f"expected maps from 0 to {count - 1} of '{layer}', received {outside[0]}."
        )
    return wanted.astype(np.int32)


def check_number(name: str, value: float) -> None:
    """Raise ValueError if a value is no finite number of 0 or more."""
    if not isinstance(value, int | float | np.number) or not 0 <= value < np.inf:
        raise ValueError(f"expected {name} as a number of 0 or more, received {value!r}.")


def check_count(name: str, value: int) -> int:
    """Return ``value`` if it is an integer of 1 or more; else ValueError."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected {name} as an integer of 1 or more, received {value!r}.")
    return int(value)
