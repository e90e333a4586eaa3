"""One activation sent back to the pixels: what in this image made this map respond?"""

from collections.abc import Sequence

from cam_helpers import compiled, layers
from cam_helpers.arrays import brief
from cam_helpers.backend import keras
from cam_helpers.checks import (
    check_count,
    check_each,
    check_finite,
    check_images,
    check_input,
    check_size,
    check_weights,
)
from cam_helpers.once import once
from cam_helpers.relu_rules import RULES, Rule, check_relus
import numpy as np


def deconvolve(
    model: keras.Model,
    images: np.ndarray,
    layer: str,
    map_index: int | Sequence[int],
    *,
    rule: Rule = "deconvnet",
    batch_size: int = 32,
) -> np.ndarray:
    """Return the pattern of pixels that a map's strongest activation answers to in each image.

    All of the layer but that one cell is set to zero, and what is left goes back: un-pooled to the
    cell that won, rectified, filtered with the transposed kernels, scaled as batch normalisation
    scales.

    Parameters
    ----------
    model
        Functional or ``Sequential``, one input and one output. Its end does not matter.
    images
        (batch, height, width, channels) float, preprocessed as the model wants it.
    layer
        Name, or path into nested models, of a layer with output (batch, h, w, maps).
    map_index
        One map for all images, or one for each.
    rule
        What a ReLU lets through on the way back: ``"deconvnet"`` what is positive, ``"guided"``
        that and only where it was active, ``"backprop"`` all where it was active, the gradient.
    batch_size
        Images that go through the network at once.

    Returns
    -------
    np.ndarray
        (batch, height, width, channels) float32, signed, in the unit of the activation times its
        change per unit of the pixel.

    Raises
    ------
    ValueError
        If images, layer or map do not fit the model, if it makes NaN or infinity of them, for
        another rule, and with a rule that is not
        the gradient for an activation that is no ReLU.

    References
    ----------
    Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901, section 2.1. Notebook 08.
    """
    check_count("batch_size", batch_size)
    if rule not in RULES:
        raise ValueError(f"expected one of {', '.join(RULES)}, received {brief(rule)}.")
    check_input(model)
    check_weights(model)
    images = check_images(model, images)
    path = layers.full_path(model, layer)
    check_size(model, images.shape, [path])
    maps = once(model, ("maps of", path), lambda: layers.split(model, path).outputs[0].shape[-1])
    if rule != "backprop":  # what comes after the layer is none of its business
        once(model, ("relus", path), lambda: check_relus(layers.cut(model, [path])))
    wanted = check_each("map_index", map_index, len(images), maps)
    run = compiled.peak_gradients(model, path, rule)
    parts = compiled.parts(len(images), batch_size)
    patterns = [run(images[part], wanted[part]).numpy() for part in parts]
    return check_finite(model, np.concatenate(patterns))
