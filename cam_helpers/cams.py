"""Class activation maps: where in the image is the evidence for a class?

Every method takes a model that returns logits, a batch of images as the model wants them, and one
class for each image. It returns one heatmap for each image, at the resolution of the layer, in the
unit of the score, neither resized nor scaled: ``plots.place`` puts it on the image.
"""

from typing import Literal, NamedTuple

from cam_helpers import compiled, layers
from cam_helpers.arrays import brief
from cam_helpers.backend import keras, tf
from cam_helpers.checks import ClassIndex, check_count, check_finite, check_request
from cam_helpers.once import once
from cam_helpers.placement import Placement, interpolations
from cam_helpers.progress import Progress, passes
from cam_helpers.receptive_field import field_of
import numpy as np


class Scored(NamedTuple):
    """Heatmaps and what they are of.

    Attributes
    ----------
    heatmaps
        (batch, h, w) float32.
    class_index
        (batch,) int32, the class that each explains.
    scores
        (batch,) float32, its logit.
    """

    heatmaps: np.ndarray
    class_index: np.ndarray
    scores: np.ndarray


def cam(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    layer: str | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    r"""Return how much each cell adds to the class score, where a network's head is linear.

    :math:`L = \sum_k w^c_k A^k`, with the weights of the last layer. Only for global average
    pooling and one ``Dense`` after the layer; there the mean of L is the score, less its bias.

    Parameters
    ----------
    model, images, class_index, layer, batch_size
        As for :func:`grad_cam`.

    Returns
    -------
    np.ndarray
        (batch, h, w) float32, signed: negative where a cell speaks against the class.

    Raises
    ------
    ValueError
        As for :func:`grad_cam`, and if the head is another one.

    References
    ----------
    Zhou et al. 2016, https://arxiv.org/abs/1512.04150, equations 1 and 2. Notebook 04.
    """
    layer, images, wanted = _checked(model, images, class_index, layer, batch_size)
    weights = layers.head_weights(model, layer)  # (maps, classes)
    if weights.shape[1] == 1:
        weights = np.concatenate([-weights, weights], axis=1)
    run, heatmaps = compiled.feature_maps_and_scores(model, layer), []
    for part in compiled.parts(len(images), batch_size):
        feature_maps, _, chosen = run(images[part], wanted[part])
        heatmaps.append(np.einsum("bhwk,kb->bhw", feature_maps, weights[:, chosen.numpy()]))
    return check_finite(model, np.concatenate(heatmaps))


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    layer: str | None = None,
    batch_size: int = 32,
    return_scores: bool = False,
) -> np.ndarray | Scored:
    r"""Return where the maps lie whose increase would raise the class score.

    :math:`L = ReLU(\sum_k \alpha_k A^k)`, :math:`\alpha_k = \frac{1}{Z} \sum_{ij} g^k_{ij}`, with
    the feature maps A and the gradient g of the class score with respect to them.

    Parameters
    ----------
    model
        Functional or ``Sequential``, one output (batch, classes) of logits; see ``to_logits``. One
        logit counts as two classes: 1 is the logit, 0 its negative.
    images
        (batch, height, width, channels) float, preprocessed as the model wants it.
    class_index
        One class for all images, one for each, or None for each image's top class.
    layer
        Name, or path into nested models; None for ``explainable_layer``.
    batch_size
        Images that are mapped at once.
    return_scores
        Return :class:`Scored`: the heatmaps, and which class each is of and how high it scores.

    Returns
    -------
    np.ndarray or Scored
        (batch, h, w) float32, at least 0, in units of the score per cell.

    Raises
    ------
    ValueError
        If the model ends in softmax or sigmoid, if images, classes or layer do not fit it, or if it
        makes NaN or infinity of them.

    References
    ----------
    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2. Notebook 03.
    """

    def formula(feature_maps, gradients):
        weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)  # (batch, 1, 1, maps)
        return tf.nn.relu(tf.reduce_sum(weights * feature_maps, axis=-1))

    return _from_gradients(formula, model, images, class_index, layer, batch_size, return_scores)


def grad_cam_plus_plus(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    layer: str | None = None,
    normalize_alpha: bool = False,
    batch_size: int = 32,
    return_scores: bool = False,
) -> np.ndarray | Scored:
    r"""Return where the maps lie of which some cell would raise the class score.

    :math:`\alpha^k_{ij} = g^2 / (2 g^2 + (\sum_{ab} A^k_{ab}) g^3)`,
    :math:`w_k = \sum_{ij} \alpha^k_{ij} ReLU(g^k_{ij})`, :math:`L = ReLU(\sum_k w_k A^k)`. The
    paper's factor exp(score), the same for all k, is left out. The equation presumes maps after a
    ReLU, whose sum is not negative.

    Parameters
    ----------
    model, images, class_index, layer, batch_size, return_scores
        As for :func:`grad_cam`.
    normalize_alpha
        Divide each map's alpha by its sum over all cells. The paper's equation does not;
        tf-keras-vis does, and so does the authors' code, but over cells of positive gradient.

    Returns
    -------
    np.ndarray
        (batch, h, w) float32, at least 0.

    Raises
    ------
    ValueError
        As for :func:`grad_cam`.

    References
    ----------
    Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063, equation 19. Notebook 03.
    """

    def formula(feature_maps, gradients):
        total = tf.reduce_sum(feature_maps, axis=(1, 2), keepdims=True)
        alpha = tf.math.divide_no_nan(1.0, 2 + total * gradients)  # the fraction, divided by g²
        if normalize_alpha:
            alpha = tf.where(gradients == 0, 0.0, alpha)
            alpha = tf.math.divide_no_nan(alpha, tf.reduce_sum(alpha, axis=(1, 2), keepdims=True))
        weights = tf.reduce_sum(alpha * tf.nn.relu(gradients), axis=(1, 2), keepdims=True)
        return tf.nn.relu(tf.reduce_sum(weights * feature_maps, axis=-1))

    return _from_gradients(
        formula,
        model,
        images,
        class_index,
        layer,
        batch_size,
        return_scores,
        normalize_alpha=normalize_alpha,
    )


def hires_cam(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    layer: str | None = None,
    batch_size: int = 32,
    return_scores: bool = False,
) -> np.ndarray | Scored:
    r"""Return how much each cell adds to the class score, to first order.

    :math:`L = ReLU(\sum_k g^k_{ij} A^k_{ij})`: Grad-CAM without the averaging of the gradient, so
    true to networks that weigh each cell on its own. Parameters, result and errors are those of
    :func:`grad_cam`.

    References
    ----------
    Draelos and Carin 2020, https://arxiv.org/abs/2011.08891, equation 3. Notebook 04.
    """

    def formula(feature_maps, gradients):
        return tf.nn.relu(tf.reduce_sum(gradients * feature_maps, axis=-1))

    return _from_gradients(formula, model, images, class_index, layer, batch_size, return_scores)


def layer_cam(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    layer: str | None = None,
    batch_size: int = 32,
    return_scores: bool = False,
) -> np.ndarray | Scored:
    r"""Return where cells are active whose increase would raise the class score.

    :math:`L = ReLU(\sum_k ReLU(g^k_{ij}) A^k_{ij})`. Made for early layers, where one weight for a
    whole map is too coarse. Parameters, result and errors are those of :func:`grad_cam`.

    References
    ----------
    Jiang et al. 2021, https://doi.org/10.1109/TIP.2021.3089943, equations 6 and 7. Notebook 04.
    """

    def formula(feature_maps, gradients):
        return tf.nn.relu(tf.reduce_sum(tf.nn.relu(gradients) * feature_maps, axis=-1))

    return _from_gradients(formula, model, images, class_index, layer, batch_size, return_scores)


def score_cam(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    layer: str | None = None,
    weighting: Literal["probability", "increase", "softmax"] = "probability",
    max_maps: int | None = None,
    placement: Placement = "receptive_field",
    batch_size: int = 32,
    progress: Progress = False,
) -> np.ndarray:
    r"""Return where the maps lie that, laid over the image as masks, keep the class.

    :math:`L = ReLU(\sum_k w_k A^k)`, with one forward pass for each map: the image times the map,
    stretched to 0…1. A map that is equal everywhere makes no mask and counts nothing. Memory does
    not grow with the number of maps.

    Parameters
    ----------
    model, images, class_index, layer
        As for :func:`grad_cam`.
    weighting
        ``"probability"`` of the class on the masked image (the authors' code), its ``"increase"``
        over an image of zeros (channel-wise increase of confidence), or the ``"softmax"`` over the
        maps of the class's logit (Algorithm 1).
    max_maps
        Only so many maps, those of largest standard deviation (Faster-Score-CAM). None for all.
    placement
        Where the masks are laid: where the network looked, or as resizing puts them, which is what
        other libraries do. A field of your own is taken as it is.
    batch_size
        Masked images that go through the network at once.
    progress
        Show a progress bar; or a callable that the passes of each image go through, as with
        ``progress.passes``.

    Returns
    -------
    np.ndarray
        (batch, h, w) float32, at least 0.

    Raises
    ------
    ValueError
        As for :func:`grad_cam`, and if weighting, max_maps or placement is none of those above.

    References
    ----------
    Wang et al. 2020, https://arxiv.org/abs/1910.01279, section 3 and Algorithm 1;
    https://github.com/tabayashi0117/Score-CAM for ``max_maps``. Notebook 03.
    """
    if weighting not in ("probability", "increase", "softmax"):
        raise ValueError(
            "expected weighting 'probability', 'increase' or 'softmax', received "
            f"{brief(weighting)}."
        )
    if max_maps is not None:
        check_count("max_maps", max_maps)
    layer, images, wanted = _checked(model, images, class_index, layer, batch_size)
    maps_of, score = compiled.feature_maps_and_scores(model, layer), compiled.masked_scores(model)
    field = field_of(model, layer, images.shape[1:3], placement)
    heatmaps = []
    for index, image in enumerate(images):
        one = slice(index, index + 1)
        found = maps_of(images[one], wanted[one])
        feature_maps, scores, chosen = (output.numpy()[0] for output in found)
        feature_maps = np.moveaxis(feature_maps, -1, 0)  # (maps, h, w)
        rows, columns = interpolations(feature_maps.shape[1:], image.shape[:2], field)
        used = _masks_to_try(feature_maps, rows, columns, max_maps)
        if not used.size:
            heatmaps.append(np.zeros(feature_maps.shape[1:]))
            continue
        feature_maps, logits = feature_maps[used], np.empty((len(used), len(scores)), np.float32)
        for part in passes(list(compiled.parts(len(used), batch_size)), "masks", progress):
            logits[part] = score(image, feature_maps[part], rows, columns)
        if weighting == "softmax":
            weights = compiled.softmax(logits[:, chosen], axis=0)
        else:
            weights = compiled.probabilities(model, logits)[:, chosen]
        if weighting == "increase":
            nothing = score(image, np.zeros_like(feature_maps[:1]), rows, columns).numpy()
            weights = weights - compiled.probabilities(model, nothing)[0, chosen]
        heatmaps.append(np.maximum(np.einsum("k,khw->hw", weights, feature_maps), 0))
    return check_finite(model, np.stack(heatmaps).astype(np.float32))


def layer_path(model: keras.Model, layer: str | None) -> str:
    """Return the path of the layer that a method explains when it is asked for ``layer``."""
    if layer is None:
        return once(model, ("explainable layer",), lambda: layers.explainable_layer(model))
    return layers.full_path(model, layer)


def _masks_to_try(feature_maps, rows, columns, max_maps):
    """Indices of the maps that are not constant where shown, or of the most varied of them."""
    shown = feature_maps[:, rows.any(axis=0)][:, :, columns.any(axis=0)]
    with np.errstate(over="ignore", invalid="ignore"):
        used = np.flatnonzero(np.ptp(shown, axis=(1, 2)) != 0)  # NaN, too, comes to light this way
        deviation = np.nan_to_num(feature_maps[used].std(axis=(1, 2)), nan=np.inf)
    return np.sort(used[np.argsort(-deviation, kind="stable")[:max_maps]])


def _from_gradients(
    formula, model, images, class_index, layer, batch_size, return_scores, **options
):
    layer, images, wanted = _checked(model, images, class_index, layer, batch_size)
    run = compiled.gradient_map(model, layer, formula, scored=True, **options)
    parts = compiled.parts(len(images), batch_size)
    found = zip(*(run(images[part], wanted[part]) for part in parts), strict=True)
    scored = Scored(*(np.concatenate([each.numpy() for each in some]) for some in found))
    check_finite(model, scored.heatmaps)
    return scored if return_scores else scored.heatmaps


def _checked(model, images, class_index, layer, batch_size):
    images, wanted = check_request(model, images, class_index, batch_size)
    return layer_path(model, layer), images, wanted
