"""What a method may be asked: which model, which images, which class. Else one clear sentence."""

from collections.abc import Sequence

from cam_helpers import layers
from cam_helpers.arrays import as_numbers, brief, check_count, check_range, not_finite
from cam_helpers.backend import keras, tf
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
        :func:`check_weights`, :func:`check_logits`, :func:`check_images`, :func:`check_size` and
        :func:`check_classes`.
    """
    check_count("batch_size", batch_size)
    check_input(model)
    check_weights(model)
    classes = once(model, ("classes",), lambda: check_model(model))
    check_logits(model)  # each time: the caller may have set an activation since
    images = check_images(model, images)
    check_size(model, images.shape)
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


def check_weights(model: keras.Model) -> None:
    """Raise ValueError if a weight is NaN or infinite; looked at before a model's first use.

    What is fast in TensorFlow, a convolution and its ReLU in one, makes 0 of NaN: such a network
    has scores and maps that look like numbers. One that diverges later has NaN scores.
    """

    def check():
        for weight in model.weights:
            if "float" not in weight.dtype or 0 in weight.shape:
                continue
            ends = tf.reduce_min(weight.value), tf.reduce_max(weight.value)  # without a copy
            if not all(np.isfinite(np.float64(end)) for end in ends):
                raise ValueError(
                    f"expected finite weights, received NaN or infinite ones in '{weight.path}' of "
                    f"'{model.name}': load or train it again; cam_helpers.diagnose(model, images) "
                    "says more."
                )

    once(model, ("weights",), check)


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
        If rank, size or kind are others, if a pixel is not finite or its square none that float32
        can hold, or if there is no image.
    """
    images, shape = as_numbers("images", images), tuple(layers.graph_of(model).inputs[0].shape)
    if images.ndim != 4:
        raise ValueError(
            f"expected images (batch, height, width, channels), received {images.shape}: "
            f"{_made_a_batch(images.shape, shape)}."
        )
    if not images.size:
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
    bad = not_finite(images)
    if bad.size:
        raise ValueError(
            f"expected finite pixels, received NaN or infinite ones in image {bad[0]} "
            f"({len(bad)} of {len(images)} images): mend or leave it out."
        )
    check_range("pixels", images, power=2)  # products of them overflow, which a ReLU may hide
    return images.astype(np.float32, copy=False)


def _made_a_batch(received, wanted):
    """How images of another rank become a batch: with the shapes received and wanted."""
    *size, channels = wanted[1:]
    if channels == 1 and _fits(received, size):
        return "images[np.newaxis, ..., np.newaxis] makes one grey image a batch"
    if channels == 1 and _fits(received[1:], size) and not _fits(received, wanted[1:]):
        return "images[..., np.newaxis] gives grey images their one channel"
    return "images[np.newaxis] makes one image a batch" if len(received) == 3 else "stack them"


def _fits(received, wanted):
    pairs = zip(wanted, received, strict=False)
    return len(received) == len(wanted) and all(want in (None, have) for want, have in pairs)


def check_size(model: keras.Model, shape: tuple[int, ...], paths: Sequence[str] = ()) -> None:
    """Make sure that a network of images of any size has room for these; once for each size.

    TensorFlow raises errors of its own for a window larger than the maps, or takes the mean of no
    cells, which is not always NaN.

    Parameters
    ----------
    model
        That takes them.
    shape
        Of the images, (batch, height, width, channels).
    paths
        Of the layers that are of interest; none for all up to the scores.

    Raises
    ------
    ValueError
        If a layer on the way cannot take what comes of such images.
    """
    graph = layers.graph_of(model)
    if None not in graph.inputs[0].shape[1:]:
        return

    def check():
        network = layers.cut(model, paths) if paths else graph
        everything = layers.cut(network, layers.map_layers(network), scores=True)
        try:
            sides = everything.compute_output_shape((None, *shape[1:]))
            if 0 in keras.tree.flatten(sides):  # Keras 3.13 refuses only what is below 0
                raise ValueError("Computed output size would be zero")
        except ValueError as error:
            said = str(error).partition("\n")[0].partition(". ")[0]
            raise ValueError(
                f"expected images of a size that '{model.name}' has room for, received "
                f"{tuple(shape[1:3])}: try larger ones. {said}."
            ) from error

    once(model, ("size", *shape[1:], *paths), check)


def check_finite(model: keras.Model, maps: np.ndarray, first: int = 0) -> np.ndarray:
    """Return what was found for each image, (n, ...) float; ValueError if it is not finite.

    ``first`` is the number of the first of these images.
    """
    bad = not_finite(maps)
    if bad.size:
        raise ValueError(
            f"expected finite scores and maps, received NaN or infinite ones of '{model.name}' for "
            f"image {first + bad[0]}: cam_helpers.diagnose(model, images) says where they begin."
        )
    return maps


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
    try:
        wanted = np.asarray(index)
    except ValueError:  # lists within the list
        wanted = np.empty(0)
    if wanted.dtype.kind not in "iu":
        way_out = ", or None for the top class" if name == "class_index" else ""
        raise ValueError(
            f"expected {name} as an integer, one for each image{way_out}, received {brief(index)}."
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


def check_maps(maps: int | Sequence[int], count: int, layer: str) -> np.ndarray:
    """Return indices of maps, (n,) int32; ValueError if one is no map of the layer's ``count``."""
    try:
        wanted = np.atleast_1d(maps)
    except ValueError:  # lists within the list
        wanted = np.empty(0)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or not wanted.size:
        raise ValueError(
            f"expected maps as an integer or a sequence of integers, received {brief(maps)}."
        )
    outside = wanted[(wanted < 0) | (wanted >= count)]
    if outside.size:
        raise ValueError(
            f"expected maps from 0 to {count - 1} of '{layer}', received {outside[0]}."
        )
    return wanted.astype(np.int32)
