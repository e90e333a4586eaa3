"""What a model, its images and a layer show, each sign of trouble measured: see diagnosis."""

from pathlib import Path
import re

from cam_helpers import checks, compiled, layers
from cam_helpers.backend import tf
from cam_helpers.placement import ReceptiveField, centres
from cam_helpers.receptive_field import receptive_field
from cam_helpers.symptoms import found, said_by
import numpy as np

FREE = 4 * 2**30  # bytes of memory, where the system does not say


def logits_of(model, images, wanted):
    """Yield what the scores have gone through; return the model that comes before it."""
    kinds, logits = [], model
    while (kind := layers.final_activation(logits)) in ("softmax", "sigmoid"):
        kinds.append(kind)
        logits = layers.to_logits(logits)
    scores = scores_of(model, images, training=False)
    if kind:
        yield found(
            "request", f"'{model.name}' ends in {kind}, no logits", "activation=None there."
        )
    elif len(kinds) > 1 or (kinds and getattr(model.loss, "from_logits", False)):
        why = f"ends in {' of '.join(kinds)}"
        if len(kinds) == 1:
            why += ", and its loss with from_logits=True takes another"
        elif kinds == ["softmax", "softmax"]:
            limit = np.e / (np.e + scores.shape[1] - 1)
            why += f", and no probability can exceed {limit:.3f}"
        yield found("twice", f"'{model.name}' {why}; the largest here is {scores.max():.3f}")
    elif kinds:
        both = compiled.two_sided(scores_of(logits, images, training=False)).numpy().astype(float)
        shares = compiled.probabilities(logits, both)
        rows = np.arange(len(images))
        chosen = np.where(wanted == checks.TOP_CLASS, both.argmax(axis=1), wanted)
        own = shares[rows, chosen]
        shares[rows, chosen] = 0
        left = np.median(own * shares.sum(axis=1))  # p (1 - p), however near p is to 1
        if kinds == ["sigmoid"] and scores.shape[1] > 1:  # each by itself
            left = np.median(1 / (2 + 2 * np.cosh(both[rows, chosen])))
        measured = f"'{model.name}' ends in {kinds[0]}, which lets {left:.0e} of the gradient pass"
        yield found("softmax", measured)
    elif (
        scores.shape[1] > 1 and scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3)
    ):
        yield found("softmax", "the scores of each image add up to 1, as after a hidden softmax")
    return logits


def unsteady(model, logits, images):
    """Yield why the same images may get other scores."""
    augments = any(type(node.operation).__name__.startswith("Rand") for node in _all_nodes(logits))
    mode = {"training": False} if augments else {}  # predict and the cams leave augmentation out
    first, again = (scores_of(logits, images, **mode) for _ in range(2))
    half = any("16" in str(getattr(each, "compute_dtype", "")) for each in logits.layers)
    tolerance = (0.02 if half else 1e-3) * max(np.abs(first).max(), 1e-6)
    change = np.abs(first - again).max()
    if change > tolerance:
        yield found("random", f"two calls with the same images differ by {change:.2g}")
        return
    neighbours = np.concatenate([images, images[:, ::-1, ::-1]])
    alone, among = (scores_of(logits, each, **mode)[:1] for each in (images[:1], neighbours))
    change = np.abs(among - alone).max()
    if change > tolerance:
        yield found("batch", f"the first image alone and in a batch differ by {change:.2g}")
        return
    if getattr(model, "predict_function", None) is None:
        return  # nothing stale, and none must be compiled on the caller's model
    predicted = np.asarray(tf.nest.flatten(model.predict(images, verbose=0))[0])
    now = scores_of(model, images, training=False)
    change = np.abs(predicted - now).max()
    if change > (0.02 if half else 1e-3) * max(np.abs(now).max(), 1e-6):
        yield found("changed", f"model.predict(images) and model(images) differ by {change:.2g}")


def of_the_maps(logits, path, images, wanted):
    """Yield why the map of a layer says nothing, or the same of each class."""
    count, run = len(images), None
    try:
        run = compiled.gradient_map(logits, path, _weighted)
    except ValueError as error:
        yield found("dead", said_by(error))
        return
    heatmaps, slope, contrast = (output.numpy() for output in run(images, wanted))
    if not (np.isfinite(heatmaps).all() and np.isfinite(slope).all()):
        yield found("nan", f"the gradient at '{path}' is not finite")
        return
    if not contrast.all():
        flat = np.sum(contrast == 0)
        yield found("dead", f"every map of '{path}' is constant in {flat} of {count} images")
    elif not slope.all():
        flat = np.sum(slope == 0)
        yield found("dead", f"the gradient at '{path}' is 0 in {flat} of {count} images")
    else:
        empty = np.sum(heatmaps.max(axis=(1, 2)) <= 0)
        if empty:
            yield found("evidence", f"the map of '{path}' is 0 in {empty} of {count} images")
        yield from _same(logits, path, images, run)


def _same(logits, path, images, run):
    scores = compiled.two_sided(scores_of(logits, images, training=False)).numpy()
    order = np.argsort(-scores, axis=1).astype(np.int32)
    ranks = sorted({0, 1, scores.shape[1] - 1})
    maps = [run(images, order[:, rank])[0].numpy().reshape(len(images), -1) for rank in ranks]
    signs = []
    for each in zip(*maps, strict=True):
        if min(map(np.ptp, each)) == 0:
            return
        signs.extend(np.corrcoef(each)[np.triu_indices(len(each), 1)])
    if np.abs(signs).min() > 0.999 and np.max(signs) > 0:
        measured = (
            f"the maps of {len(ranks)} classes correlate by {np.abs(signs).min():.3f} or more"
        )
        yield found("same", measured)


def of_the_place(logits, path, images, placement, memory):
    """Yield where the pixels come in: unseen, misplaced, or too many of them."""
    jump = next((node.operation for node in _all_nodes(logits) if _jumps(node)), None)
    if jump:
        top = np.full(len(images), checks.TOP_CLASS, np.int32)
        gradients = compiled.score_gradients(logits)(images, top)[0].numpy()
        unseen = 1 - gradients.any(axis=(0, 3)).mean()
        if 0.1 < unseen < 1:
            measured = f"{unseen:.0%} of the pixels get no gradient, '{jump.name}' jumps over them"
            yield found("checkerboard", measured)
    size, maps = images.shape[1:3], layers.cut(logits, [path])(images[:1], training=False)
    (maps,) = tf.nest.flatten(maps)
    cells = tuple(maps.shape[1:3])
    if not isinstance(placement, ReceptiveField) and placement not in ("receptive_field", "resize"):
        way_out = "'receptive_field', 'resize' or a ReceptiveField."
        yield found("request", f"placement is {placement!r}", way_out)
    if placement == "resize":
        try:
            field = receptive_field(logits, path, size)
        except ValueError:
            field = "resize"  # unknown
        pairs = zip(centres(cells, size, field), centres(cells, size, "resize"), strict=True)
        pixels = max(np.abs(ours - theirs).max() for ours, theirs in pairs)
        stride = min(size[0] / cells[0], size[1] / cells[1])
        if pixels >= stride / 2:
            measured = f"up to {pixels:.0f} pixels or {pixels / stride:.1f} cells of '{path}'"
            yield found("shifted", measured)
    needed = 4 * maps.shape[-1] * images[0].size
    free = _free_memory() if memory is None else memory
    if needed > free:
        measured = (
            f"the {maps.shape[-1]} masks of one image take {needed / 2**20:,.0f} MiB, of "
            f"{free / 2**20:,.0f} that are free"
        )
        yield found("memory", measured)


def _weighted(maps, gradients):
    """Grad-CAM before its ReLU, the steepest gradient, and the contrast of the liveliest map."""
    weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    contrast = tf.reduce_max(maps, axis=(1, 2)) - tf.reduce_min(maps, axis=(1, 2))
    return (
        tf.reduce_sum(weights * maps, axis=-1),
        tf.reduce_max(tf.abs(gradients), axis=(1, 2, 3)),
        tf.reduce_max(contrast, axis=1),
    )


def first_not_finite(model, images):
    """Say which layer gives the first output that is not finite."""
    for path in all_paths(model):
        outputs = tf.nest.flatten(layers.cut(model, [path])(images, training=False))
        if not all(np.isfinite(np.array(output)).all() for output in outputs):
            return f"'{path}'"
    return "the model"


def _jumps(node):
    layer = node.operation
    window = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    strides = getattr(layer, "strides", None)
    if not window or not strides or "Transpose" in type(layer).__name__:
        return False
    return any(step > width for step, width in zip(strides, window, strict=True))


def _all_nodes(model):
    for node in layers.nodes(model):
        yield node
        if layers.is_nested(node.operation):
            yield from _all_nodes(node.operation)


def all_paths(model):
    """Paths of all layers, in the order of computation."""
    paths = []
    for node in layers.nodes(model):
        if layers.is_nested(node.operation):
            paths += [f"{node.operation.name}/{path}" for path in all_paths(node.operation)]
        paths.append(node.operation.name)
    return paths


def scores_of(model, images, **training):
    return np.asarray(tf.nest.flatten(model(images, **training))[0], np.float32)


def _free_memory():
    try:
        text = Path("/proc/meminfo").read_text("ascii")
        return int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1]) * 1024
    except (OSError, TypeError):
        return FREE
