"""Are images prepared as the network learned them? Its batch normalisations remember."""

from cam_helpers import layers
from cam_helpers.backend import keras
import numpy as np

# How images can be mended, and the row of symptoms.SYMPTOMS that the need for it belongs to.
MEAN = np.array([103.939, 116.779, 123.68], np.float32)  # of ImageNet, blue, green, red
WAYS = {
    "images / 255": ("range", lambda x: x / 255),
    "images * 255": ("range", lambda x: x * 255),
    "images / 127.5 - 1": ("range", lambda x: x / 127.5 - 1),
    "(images + 1) * 127.5": ("range", lambda x: (x + 1) * 127.5),
    "images * 2 - 1": ("range", lambda x: x * 2 - 1),
    "(images + 1) / 2": ("range", lambda x: (x + 1) / 2),
    "images.max() + images.min() - images": ("range", lambda x: x.max() + x.min() - x),
}
COLOUR_WAYS = {
    "images[..., ::-1]": ("channels", lambda x: x[..., ::-1]),
    "images[..., ::-1] - ImageNet's mean": ("range", lambda x: x[..., ::-1] - MEAN),
    "(images + ImageNet's mean)[..., ::-1]": ("range", lambda x: (x + MEAN)[..., ::-1]),
}
ALIKE = ("images.max() + images.min() - images", "images[..., ::-1]")
SCALED = tuple(way for way in WAYS if "255" in way or "127.5" in way)
LAYERS = 12  # the first batch normalisations that are asked
# Crops of ten photos on MobileNet, prepared rightly, seemed to fit at most this much better another
# way: alone 1.34 times, by twos 1.24, by threes 1.08, by fours 1.04; fours with swapped colours
# 1.16 (median). Another scale made 5 times or more of it, also where averages lag: there 3.
CLEARLY = {1: np.inf, 2: 2, 3: 1.3}  # by the number of images
FROM_FOUR = 1.12
SCALE = 3
FITS = 0.4  # a larger distance is no fit: the averages lag behind the training


def better_prepared(model: keras.Model, images: np.ndarray) -> tuple[str, str] | None:
    r"""Return how images fit clearly better to what a network was trained on; None if nohow.

    A batch normalisation remembers mean and variance of each map over all of training. Of what
    the images make of them there, :math:`\frac{1}{2} (v + m^2 - 1 - \ln v)` is the distance
    (Kullback-Leibler, both as normal distributions; mean m and variance v in the remembered
    units). Averaged over the maps, and geometrically over the first layers, it decides. Between
    swapped colours and inverted ones, which fit alike, decides where the network is surer.

    Parameters
    ----------
    model
        Functional or ``Sequential``, with logits. One without trained batch normalisation tells
        nothing; of those only VGG16 and VGG19 with their 1000 classes are known here.
    images
        (batch, height, width, channels) float32. Four different ones are enough; one alone shows
        only a scale that is far off.

    Returns
    -------
    tuple
        Key of ``symptoms.SYMPTOMS``, and what was measured.
    """
    if narrow := _too_narrow(model, images):
        return narrow
    normalisations = [
        (path, layer)
        for path, layer in _normalisations(model)
        if np.any(layer.moving_mean) or np.any(np.array(layer.moving_variance) != 1)
    ][:LAYERS]
    if not normalisations:
        return _for_vgg(model, images)
    if np.ptp(images) == 0:
        return None
    network = layers.cut(model, [path for path, _ in normalisations])
    ways = WAYS | (COLOUR_WAYS if images.shape[-1] == 3 else {})
    mended = {way: np.float32(mend(images)) for way, (_, mend) in ways.items()}
    given = _distances(network, normalisations, images)
    left = {way: _distances(network, normalisations, mended[way]) for way in ways}
    better = {way: np.exp(np.mean(given - left[way])) for way in ways}
    needed = CLEARLY.get(len({image.tobytes() for image in images}), FROM_FOUR)
    best = max(better, key=better.get)
    if better[best] < (SCALE if best in SCALED else needed):
        return None
    if best not in SCALED and np.exp(left[best].mean()) > FITS:
        return None
    if best in ALIKE and all(better.get(way, 0) > needed for way in ALIKE):
        best = max(ALIKE, key=lambda way: _sureness(model, mended[way]))
    times = f"{better[best]:.2f}" if better[best] < 100 else "more than 100"
    return ways[best][0], f"as {best} they fit {times} times better to what the network remembers"


def _too_narrow(model, images):
    """A Rescaling at the start expects 0 to 255: has it been done before?"""
    steps = [node.operation for node in layers.nodes(model)]
    first = next((step for step in steps if not isinstance(step, keras.layers.InputLayer)), None)
    if not isinstance(first, keras.layers.Rescaling) or np.size(first.scale) > 1:
        return None
    low, high = images.min(), images.max()
    if not (0 < float(first.scale) < 0.01 and -1 <= low < high <= 1):
        return None
    expects = f"but '{first.name}' divides by {1 / first.scale:.5g}"
    return "range", f"they go from {low:.3g} to {high:.3g}, {expects}"


def _sureness(model, images):
    """The logarithm of the top class's probability, averaged over the images."""
    logits = np.asarray(keras.tree.flatten(model(images, training=False))[0], np.float64)
    top = logits.max(axis=1, keepdims=True)
    return -np.log(np.exp(logits - top).sum(axis=1)).mean()


def _for_vgg(model, images):
    names = [node.operation.name for node in layers.nodes(model)]
    if "block1_conv1" not in names or model.output_shape[-1] != 1000:
        return None
    low, high = images.min(), images.max()
    if -124 <= low < 0 and high <= 152 and high - low > 10:
        return None
    wants = "VGG takes blue, green and red of 0 to 255 minus their means"
    return "range", f"they go from {low:.3g} to {high:.3g}, but {wants}"


def _distances(network, normalisations, images):
    """The logarithm of each normalisation's distance."""
    found = []
    outputs = keras.tree.flatten(network(images, training=False))
    for (_, layer), output in zip(normalisations, outputs, strict=True):
        output = np.asarray(output, np.float64)
        gamma = np.ones(output.shape[-1]) if layer.gamma is None else np.array(layer.gamma)
        beta = np.zeros(output.shape[-1]) if layer.beta is None else np.array(layer.beta)
        told = np.abs(gamma) > 0.01 * np.abs(gamma).max()  # the others pass nothing on
        maps = (output[..., told] - beta[told]) / gamma[told]
        axes = tuple(range(maps.ndim - 1))
        mean, variance = maps.mean(axis=axes), maps.var(axis=axes) + 1e-6
        distance = 0.5 * (variance + mean**2 - 1 - np.log(variance))
        found.append(np.log(distance.mean() + 1e-12))
    return np.array(found)


def _normalisations(model, prefix=""):
    """Paths and layers of batch normalisation, in order."""
    for node in layers.nodes(model):
        layer = node.operation
        if layers.is_nested(layer):
            yield from _normalisations(layer, f"{prefix}{layer.name}/")
        elif isinstance(layer, keras.layers.BatchNormalization) and layer.axis in (-1, 3):
            yield f"{prefix}{layer.name}", layer
