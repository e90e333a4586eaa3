"""Why is my heatmap wrong? Every known cause is measured on a model, its images and a layer."""

import difflib

from cam_helpers import checks, layers, signs
from cam_helpers.backend import keras
from cam_helpers.placement import Placement
from cam_helpers.preparation import better_prepared
from cam_helpers.symptoms import SYMPTOMS, Cause, found, said_by
import numpy as np

MEASURED = 8  # images at most; all are looked through for NaN


def diagnose(
    model: keras.Model,
    images: np.ndarray,
    class_index: checks.ClassIndex = None,
    layer: str | None = None,
    *,
    placement: Placement = "receptive_field",
    memory: int | None = None,
) -> None:
    """Print why heatmaps of a model can go wrong: :func:`causes`, in plain sentences."""
    known = causes(model, images, class_index, layer, placement=placement, memory=memory)
    for cause in known:
        print(cause)
    if not known:
        print(f"None of the {len(SYMPTOMS)} known causes was found.")


def causes(
    model: keras.Model,
    images: np.ndarray,
    class_index: checks.ClassIndex = None,
    layer: str | None = None,
    *,
    placement: Placement = "receptive_field",
    memory: int | None = None,
) -> list[Cause]:
    """Return the known causes of wrong heatmaps that apply, each with what was measured.

    Some twenty passes of at most 16 images. The model stays as it is, and nothing raises an error:
    what does not fit is a cause itself. A cause that is found can hide others behind it.

    Parameters
    ----------
    model
        As it gave the bad heatmap; softmax and all.
    images
        (batch, height, width, channels), as the model got them. Four different ones tell
        more than one.
    class_index
        One class for all images, one for each, or None for each image's top class.
    layer
        Name or path of the layer explained; None for ``models.explainable_layer(model)``.
    placement
        How heatmaps are laid over the image: ``"resize"`` is what other libraries do.
    memory
        Bytes that are free, for Score-CAM; None asks Linux, or assumes 4 GiB elsewhere.

    Returns
    -------
    list of Cause
        Rows of ``symptoms.SYMPTOMS``. Empty if none applies.

    References
    ----------
    Notebook 11 shows each with its picture.
    """
    state = []
    if isinstance(model, keras.Model):  # a call may change the state of seeds and normalisations
        state = [(variable, np.array(variable)) for variable in model.non_trainable_variables]
    known = []
    try:
        for cause in _causes(model, images, class_index, layer, placement, memory):
            known.append(cause)
    except Exception as error:  # whatever a broken model raises is the answer
        known.append(found("request", f"{type(error).__name__}, {said_by(error)}"))
    finally:
        for variable, before in state:
            if not np.array_equal(np.array(variable), before, equal_nan=True):
                variable.assign(before)
    return known


def _causes(model, images, class_index, layer, placement, memory):
    try:
        checks.check_input(model)
        checks.check_model(model)
    except ValueError as error:
        yield found("request", said_by(error))
        return
    path = yield from _layer_to_explain(model, layer)
    count = len(images) if np.ndim(images) == 4 else None
    images = yield from _images_to_measure(model, images)
    broken = [weight.path for weight in model.weights if not np.isfinite(np.array(weight)).all()]
    if broken:
        yield found("nan", f"weights are not finite, the first of {len(broken)} is '{broken[0]}'")
    if broken or images is None:
        return
    try:
        classes = checks.check_model(model)
        wanted = checks.check_classes(class_index, count or len(images), classes)
    except ValueError as error:
        yield found("request", said_by(error))
        wanted = []
    if len(wanted) != len(images):  # as some are NaN
        wanted = np.full(len(images), checks.TOP_CLASS, np.int32)
    images, wanted = images[:MEASURED], wanted[:MEASURED]
    if not np.isfinite(signs.scores_of(model, images, training=False)).all():
        where = signs.first_not_finite(model, images)
        yield found("nan", f"the first output that is not finite is that of {where}")
        return
    logits = yield from signs.logits_of(model, images, wanted)
    yield from signs.unsteady(model, logits, images)
    if better := better_prepared(logits, images):
        yield found(*better)
    if path:
        yield from signs.of_the_maps(logits, path, images, wanted)
        yield from signs.of_the_place(logits, path, images, placement, memory)


def _layer_to_explain(model, layer):
    """Yield what is wrong with the layer asked for; return the path of the one to go on with."""
    paths = signs.all_paths(model)
    if layer is not None and not isinstance(layer, str):
        cure = "pass layer.name, or the path of a nested layer."
        yield found("layer", f"a name is expected, and {type(layer).__name__} was given", cure)
        layer = getattr(layer, "name", None)
    if layer is not None and layer not in paths:
        inside = [path for path in paths if path.endswith(f"/{layer}")]
        if inside:
            yield found("nested", f"'{layer}' lies at '{inside[-1]}'", f"layer='{inside[-1]}'.")
        else:
            near = difflib.get_close_matches(layer, paths) or layers.map_layers(model)[-3:]
            measured = (
                f"'{layer}' is not in '{model.name}', whose nearest are {_listed(near) or 'none'}"
            )
            yield found("layer", measured)
        layer = inside[-1] if inside else None
    try:
        path = layers.full_path(model, layer) if layer else layers.explainable_layer(model)
    except ValueError as error:
        yield found("place", said_by(error))
        return None
    shape = layers.cut(model, [path]).outputs[0].shape
    if len(shape) != 4 or set(shape[1:3]) == {1}:
        yield found("place", f"'{path}' has shape {shape}")
        return None
    return path


def _images_to_measure(model, images):
    """Yield what is wrong with the images; return them mended, or None."""
    try:
        return checks.check_images(model, images)
    except ValueError as error:
        sentence = said_by(error)
    images, size = np.asarray(images), layers.graph_of(model).inputs[0].shape[1:]
    mended, row = None, "request"
    if images.ndim == 3:
        mended = images[np.newaxis]
    elif images.ndim == 4 and images.shape[1] == size[-1] != images.shape[-1]:
        mended = np.moveaxis(images, 1, -1)  # channels came first
        sentence = sentence.partition(":")[0] + ": np.moveaxis(images, 1, -1) puts channels last"
    elif images.ndim != 4 or any(
        want not in (None, have) for want, have in zip(size, images.shape[1:], strict=True)
    ):
        pass
    elif images.dtype.kind in "iub":
        mended = images.astype(np.float32)
    elif not np.isfinite(images).all():
        row, mended = "nan", images[np.isfinite(images).all(axis=(1, 2, 3))]
    yield found(row, sentence)
    if mended is None or not len(mended):
        return None
    return (yield from _images_to_measure(model, mended))


def _listed(names):
    return ", ".join(f"'{name}'" for name in names)
