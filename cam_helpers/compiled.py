"""A network cut at a layer and compiled, once for each model and layer.

TensorFlow traces a function once and runs it as one graph after that: no Python between the
layers, and of the backward pass only what leads from the score to the layer. The compiled
functions are kept with a weak hold on their model. They never refer to it, only to its layers, so
a model that is dropped takes them along.
"""

from collections.abc import Callable, Iterator

from cam_helpers import layers, relu_rules
from cam_helpers.backend import keras, tf
from cam_helpers.checks import TOP_CLASS
from cam_helpers.once import once
from cam_helpers.relu_rules import Rule
import numpy as np

INDEX = tf.TensorSpec((None,), tf.int32)  # one for each image


def gradient_map(
    model: keras.Model, layer: str, formula: Callable, *, scored: bool = False, **options
) -> Callable:
    """Return a compiled (images, class_index) -> heatmaps (batch, h, w).

    ``formula`` turns feature maps and the gradients of the class score with respect to them, both
    (batch, h, w, maps), into heatmaps. What else it depends on goes into ``options``. ``scored``:
    it also returns the class of each image, and its score.
    """

    def heatmaps(feature_maps, scores, classes):
        score = tf.gather(scores, classes, batch_dims=1)
        # No further back than to the layer.
        gradients = _derivative(score, feature_maps, f"layer '{layer}'")
        found = formula(tf.cast(feature_maps, tf.float32), gradients)
        return (found, classes, score) if scored else found

    return _at_layer(model, layer, heatmaps, (formula.__qualname__, scored, *options.items()))


def score_gradients(model: keras.Model, rule: Rule = "backprop") -> Callable:
    """Return a compiled (images, class_index) -> gradients of the class score, scores, classes.

    The gradients have the shape of the images; scores and classes are (batch,).
    """

    def make():
        network = _network(model)

        @tf.function(autograph=False, input_signature=[_images(network), INDEX])
        def run(images, class_index):
            with relu_rules.applied(rule):
                scores = two_sided(network(images, training=False))
            classes = chosen_classes(scores, class_index)
            score = tf.gather(scores, classes, batch_dims=1)
            return _derivative(score, images, "the pixels"), score, classes

        return run.get_concrete_function()

    return once(model, ("score gradients", rule), make)


def peak_gradients(model: keras.Model, layer: str, rule: Rule) -> Callable:
    """Return a compiled (images, map_index) -> the strongest activation of a map, sent back.

    Of one map for each image, the cell that is highest :func:`before_relu` alone goes back to the
    pixels, times its activation; of equal ones, the first. The result has the shape of the images.
    """

    def make():
        cut = layers.cut(model, [layer])  # what comes after the layer is none of its business

        @tf.function(autograph=False, input_signature=[_images(cut), INDEX])
        def run(images, map_index):
            with relu_rules.applied(rule):
                (feature_maps,) = tf.nest.flatten(cut(images, training=False))

            def cells(maps):  # of the map asked for, (batch, h * w)
                one = tf.gather(maps, map_index, axis=3, batch_dims=1)
                return tf.reshape(one, (tf.shape(one)[0], -1))

            before = cells(before_relu(feature_maps))
            strongest = tf.argmax(before, axis=1)
            peak = tf.gather(before, strongest, batch_dims=1)
            activation = tf.gather(cells(feature_maps), strongest, batch_dims=1)
            return _derivative(peak, images, "the pixels", seed=activation)

        return run.get_concrete_function()

    return once(model, ("peak gradients", layer, rule), make)


def feature_maps_and_scores(model: keras.Model, layer: str) -> Callable:
    """Return a compiled (images, class_index) -> maps (batch, h, w, k), scores, classes."""

    def as_they_are(feature_maps, scores, classes):
        score = tf.gather(scores, classes, batch_dims=1)
        return _nan_where_the_score_is(score, feature_maps), scores, classes

    return _at_layer(model, layer, as_they_are, ("feature maps",))


def scores(model: keras.Model) -> Callable:
    """Return a compiled images -> scores (batch, classes), at least two classes."""

    def make():
        network = _network(model)

        @tf.function(autograph=False, input_signature=[_images(network)])
        def run(images):
            return two_sided(network(images, training=False))

        return run.get_concrete_function()

    return once(model, ("scores",), make)


def masked_scores(model: keras.Model) -> Callable:
    """Return a compiled function that lays maps over an image as masks and scores the results.

    It takes one image (height, width, channels), maps (n, h, w), and the interpolation of their
    rows (height, h) and columns (width, w); it returns (n, classes).
    """

    def make():
        network = _network(model)
        image = tf.TensorSpec(_images(network).shape[1:])
        spec = [image, tf.TensorSpec((None, None, None)), *[tf.TensorSpec((None, None))] * 2]

        @tf.function(autograph=False, input_signature=spec)
        def run(image, maps, rows, columns):
            masks = rows @ maps @ tf.transpose(columns)  # (n, height, width)
            low = tf.reduce_min(masks, axis=(1, 2), keepdims=True)
            high = tf.reduce_max(masks, axis=(1, 2), keepdims=True)
            masks = tf.math.divide_no_nan(masks - low, high - low)
            return two_sided(network(image * masks[..., tf.newaxis], training=False))

        return run.get_concrete_function()

    return once(model, ("masked scores",), make)


def two_sided(scores: tf.Tensor) -> tf.Tensor:
    """Return float32 scores (batch, classes), a single logit y as the two classes -y and y."""
    scores = tf.cast(scores, tf.float32)
    return tf.concat([-scores, scores], axis=1) if scores.shape[1] == 1 else scores


def chosen_classes(scores: tf.Tensor, class_index: tf.Tensor) -> tf.Tensor:
    """Return (batch,) int32: the class asked for, or the top class for ``TOP_CLASS``."""
    known = tf.where(tf.math.is_nan(scores), np.inf, scores)  # NaN is no score to pass over
    top = tf.argmax(known, axis=1, output_type=tf.int32)
    return tf.where(class_index == TOP_CLASS, top, class_index)


def parts(count: int, batch_size: int) -> Iterator[slice]:
    """Yield slices of at most ``batch_size`` that cover ``count``."""
    for start in range(0, count, batch_size):
        yield slice(start, start + batch_size)


def probabilities(model: keras.Model, scores: np.ndarray) -> np.ndarray:
    """Return the probability of each class from a model's :func:`scores` (..., classes).

    Of exclusive classes it is the softmax; where :func:`layers.is_multi_label`, the sigmoid.
    """
    if layers.is_multi_label(model):
        return softmax(np.stack([np.zeros_like(scores), scores]), axis=0)[1]
    scale = 0.5 if model.outputs[0].shape[1] == 1 else 1  # softmax of ±y/2 is sigmoid of ±y
    return softmax(scale * scores)


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the softmax of logits along an axis; no logit is too large for it."""
    with np.errstate(invalid="ignore"):  # of an infinite logit it is NaN
        powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _at_layer(model, layer, step, key):
    """Compile what a step makes of a layer's feature maps, the scores and the classes asked for."""

    def make():
        cut = layers.split(model, layer)

        @tf.function(autograph=False, input_signature=[_images(cut), INDEX])
        def run(images, class_index):
            feature_maps, scores = cut(images, training=False)
            scores = two_sided(scores)
            return step(feature_maps, scores, chosen_classes(scores, class_index))

        return run.get_concrete_function()

    return once(model, (layer, *key), make)


def before_relu(maps: tf.Tensor) -> tf.Tensor:
    """Return what went into the ReLU that a graph's tensor comes out of; without one, the tensor.

    There a map that is dead still has a gradient, and one at ReLU6's ceiling a highest cell.
    """
    return maps.op.inputs[0] if maps.op.type in ("Relu", "Relu6") else maps


def _derivative(score, tensor, name, seed=None):
    (gradients,) = tf.gradients(score, tensor, grad_ys=seed)
    if gradients is None:
        raise ValueError(
            f"expected a network that can be derived by {name}, received one in which a later step "
            "stops gradients or makes whole numbers: leave that step out."
        )
    return _nan_where_the_score_is(score, gradients)


def _nan_where_the_score_is(score, values):
    """float32 values, NaN where an image's score is NaN or infinite: else a ReLU may hide it."""
    nothing = tf.cast(score - score, tf.float32)  # 0, or NaN
    return tf.cast(values, tf.float32) + nothing[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _network(model):
    """The model's layers without the model, which must stay free to go."""
    graph = layers.graph_of(model)
    return keras.Model(graph.inputs[0], graph.outputs[0])


def _images(network):
    return tf.TensorSpec((None, *network.inputs[0].shape[1:]))
