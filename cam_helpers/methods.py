"""Every method and control by name and in one form: what the league and the notebooks compare."""

from collections.abc import Callable

from cam_helpers import cams, compiled, controls, gradients
from cam_helpers.backend import keras
from cam_helpers.checks import ClassIndex, check_request
from cam_helpers.pictures import largest_channel
from cam_helpers.placement import Placement, place
from cam_helpers.receptive_field import field_of
import numpy as np

CAMS = {
    "Grad-CAM": cams.grad_cam,
    "Grad-CAM++": cams.grad_cam_plus_plus,
    "LayerCAM": cams.layer_cam,
    "HiResCAM": cams.hires_cam,
    "Score-CAM": cams.score_cam,
}
AT_THE_PIXELS = {
    "saliency": gradients.saliency,
    "SmoothGrad": gradients.smooth_grad,
    "integrated gradients": gradients.integrated_gradients,
    "guided backpropagation": gradients.guided_backprop,
    "deconvnet": gradients.deconvnet,
    "guided Grad-CAM": gradients.guided_grad_cam,
}
CONTROLS = {
    "random pixels": controls.random_pixels,
    "random cells": controls.random_cells,
    "centred Gaussian": controls.centred_gaussian,
    "edges": controls.edges,
}
METHODS = (*CAMS, *AT_THE_PIXELS)
WITH_SCORES = ("Grad-CAM", "Grad-CAM++", "LayerCAM", "HiResCAM")  # in the same pass
PLACED_INSIDE = {"Score-CAM", "guided Grad-CAM"}
AT_A_LAYER = {*CAMS, "guided Grad-CAM"}
BY_FUNCTION = {each.__name__: name for name, each in (CAMS | AT_THE_PIXELS).items()}


def heatmaps(
    name: str,
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    layer: str | None = None,
    placement: Placement = "receptive_field",
    **options,
) -> np.ndarray:
    """Return the maps of a method or control, as large as the images, where the network looked.

    Class activation maps are placed; of gradients at the pixels the largest channel counts, without
    its sign.

    Parameters
    ----------
    name
        One of ``METHODS`` or ``CONTROLS``.
    model, images, class_index
        As for ``cams.grad_cam``.
    layer, placement
        Of class activation maps and guided Grad-CAM, as for ``cams.score_cam``.
    options
        Of the method itself, such as ``samples`` of SmoothGrad.

    Returns
    -------
    np.ndarray
        (batch, height, width) float32, at least 0.

    Raises
    ------
    ValueError
        For another name, and as the method.
    """
    if name in CONTROLS:
        return CONTROLS[name](model, images, class_index, **options)
    maps = _maps(name, model, images, class_index, layer, placement, options)
    if name not in CAMS:
        return maps
    size = np.shape(images)[1:3]
    return place(maps, size, field_of(model, cams.layer_path(model, layer), size, placement))


def scored_maps(
    name: str,
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    layer: str | None = None,
    placement: Placement = "receptive_field",
    batch_size: int = 32,
    **options,
) -> cams.Scored:
    """Return the maps of a method unplaced, each with the class it is of and that class's score.

    Parameters and errors are those of :func:`heatmaps`, without the controls.

    Returns
    -------
    cams.Scored
        Class activation maps have the resolution of their layer, others that of the images.
    """
    options["batch_size"] = batch_size
    if name in WITH_SCORES:
        options["return_scores"] = True
        return _maps(name, model, images, class_index, layer, placement, options)
    images, wanted = check_request(model, images, class_index, batch_size)
    run, scores = compiled.scores(model), []
    for part in compiled.parts(len(images), batch_size):
        scores.append(run(images[part]).numpy())
    scores = np.concatenate(scores)
    classes = compiled.chosen_classes(scores, wanted).numpy()
    maps = _maps(name, model, images, classes, layer, placement, options)
    return cams.Scored(maps, classes, scores[np.arange(len(scores)), classes])


def _maps(name, model, images, class_index, layer, placement, options):
    """What the method makes, or of gradients at the pixels the largest channel."""
    if name not in METHODS:
        raise ValueError(f"expected one of {', '.join((*METHODS, *CONTROLS))}, received {name!r}.")
    if name in PLACED_INSIDE:
        options = {**options, "placement": placement}
    if name in AT_A_LAYER:
        options = {**options, "layer": layer}
    method: Callable = CAMS.get(name) or AT_THE_PIXELS[name]
    maps = method(model, images, class_index, **options)
    return maps if name in CAMS else largest_channel(maps)
