"""Is the map true to the network? Hide what it calls important, and see what the network says.

Heatmaps come as large as the images, (n, height, width), from any source: ``plots.place`` makes
those of a layer so, ``plots.largest_channel`` those at the pixels. Each metric returns one number
for each image. None means anything without the same number for the maps of ``controls``.
"""

from contextlib import suppress
from typing import Literal, NamedTuple

from cam_helpers import compiled
from cam_helpers.arrays import as_numbers, brief, check_count, check_heatmaps, check_range
from cam_helpers.backend import keras
from cam_helpers.checks import ClassIndex, check_request
from cam_helpers.pictures import stretch
import numpy as np
from skimage.filters import gaussian
from tqdm import tqdm

Baseline = Literal["zeros", "blur", "mean"] | float | np.ndarray
BLUR = 1 / 8  # standard deviation of the blur, as a share of an image's shorter side


class Curve(NamedTuple):
    """The probability of each image's class while its pixels are deleted or inserted.

    Attributes
    ----------
    fractions
        (steps + 1,) share of pixels changed, from 0 to 1.
    probabilities
        (n, steps + 1) of the class, image by image.
    area
        (n,) under each curve, from 0 to 1.
    """

    fractions: np.ndarray
    probabilities: np.ndarray
    area: np.ndarray


def deletion(
    model: keras.Model,
    images: np.ndarray,
    heatmaps: np.ndarray,
    class_index: ClassIndex = None,
    *,
    baseline: Baseline = "zeros",
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 100,
    progress: bool = False,
) -> Curve:
    """Return how fast the class is lost when its highest pixels go first: a small area is good.

    Parameters
    ----------
    model
        Functional or ``Sequential``, one output (batch, classes) of logits; see ``to_logits``. One
        logit counts as two classes: 1 is the logit, 0 its negative. Several make probabilities by
        a softmax, or by a sigmoid each where that is what ``to_logits`` has taken off.
    images
        (n, height, width, channels) float, preprocessed as the model wants it.
    heatmaps
        (n, height, width) float; only the order of a map's pixels counts.
    class_index
        One class for all images, one for each, or None for each image's top class. The class stays
        the same along the whole curve.
    baseline
        What a pixel becomes: ``"zeros"``, which is black, mid-grey or the mean colour, as the
        preprocessing has it; the image's own ``"mean"`` colour; the image under a Gaussian
        ``"blur"`` of an eighth of its shorter side; a value; or an array that broadcasts to the
        images.
    steps
        Points of the curve, besides the first, at equal distances.
    seed
        Of the order of pixels that are equally high, the same for all images.
    batch_size
        Images that go through the network at once.
    progress
        Show a progress bar.

    Returns
    -------
    Curve
        Fractions, probabilities and area; both ends of the curve included, area by trapezoids.

    Raises
    ------
    ValueError
        If the model ends in softmax or sigmoid, if images, heatmaps, classes or baseline do not fit
        it or one another, if there are more steps than pixels, or if a score comes out as NaN.

    References
    ----------
    Petsiuk, Das and Saenko 2018, https://arxiv.org/abs/1806.07421, section 4.2. Notebook 09.
    """
    images, heatmaps, wanted = _checked(model, images, heatmaps, class_index, batch_size)
    end = _baseline(baseline, images)
    return _curve(model, images, end, heatmaps, wanted, steps, seed, batch_size, progress)


def insertion(
    model: keras.Model,
    images: np.ndarray,
    heatmaps: np.ndarray,
    class_index: ClassIndex = None,
    *,
    baseline: Baseline = "zeros",
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 100,
    progress: bool = False,
) -> Curve:
    """Return how fast the class appears when its highest pixels come first: a large area is good.

    From the baseline to the image; ``class_index`` None is the top class of the image. Parameters,
    result, errors and source are those of :func:`deletion`.
    """
    images, heatmaps, wanted = _checked(model, images, heatmaps, class_index, batch_size)
    start = _baseline(baseline, images)
    return _curve(model, start, images, heatmaps, wanted, steps, seed, batch_size, progress)


def average_drop(
    model: keras.Model,
    images: np.ndarray,
    heatmaps: np.ndarray,
    class_index: ClassIndex = None,
    *,
    baseline: Baseline = "zeros",
    batch_size: int = 100,
) -> np.ndarray:
    r"""Return the share of the probability that is lost where the map is dark: small is good.

    :math:`\max(0, p_c(x) - p_c(x \circ L)) / p_c(x)`, where :math:`x \circ L` is the image seen
    through the map: each pixel times L, and the baseline times 1 - L. L is the map without what is
    below 0, divided by its maximum; a map with nothing above 0 shows the baseline alone. A map
    that is bright everywhere loses nothing and says nothing.

    Parameters
    ----------
    model, images, heatmaps, class_index, baseline, batch_size
        As for :func:`deletion`.

    Returns
    -------
    np.ndarray
        (n,) float64 from 0 to 1. The average drop is 100 times their mean, in percent.

    Raises
    ------
    ValueError
        As for :func:`deletion`.

    References
    ----------
    Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063, section 4.1. Notebook 09.
    """
    whole, seen = _seen_through(model, images, heatmaps, class_index, baseline, batch_size)
    lost = np.maximum(0, whole - seen)
    return np.divide(lost, whole, out=np.zeros(len(lost)), where=whole > 0)


def average_increase(
    model: keras.Model,
    images: np.ndarray,
    heatmaps: np.ndarray,
    class_index: ClassIndex = None,
    *,
    baseline: Baseline = "zeros",
    batch_size: int = 100,
) -> np.ndarray:
    r"""Return whether hiding what is dark makes the class more probable: many is good.

    :math:`p_c(x \circ L) > p_c(x)`, as for :func:`average_drop`, whose parameters, errors and
    source these are.

    Returns
    -------
    np.ndarray
        (n,) bool. The increase in confidence is 100 times their mean, in percent.
    """
    whole, seen = _seen_through(model, images, heatmaps, class_index, baseline, batch_size)
    return seen > whole


def _curve(model, start, end, heatmaps, wanted, steps, seed, batch_size, progress):
    """Probabilities while the pixels of one batch of images turn into another's, highest first."""
    pixels = heatmaps[0].size
    steps = check_count("steps", steps)
    if steps > pixels:
        raise ValueError(
            f"expected at most one step for each of {pixels} pixels, received {steps}."
        )
    places = _places(heatmaps, seed)
    counts = np.linspace(0, pixels, steps + 1).astype(int)
    probabilities = np.empty((len(heatmaps), steps + 1))
    for step, count in enumerate(tqdm(counts, "steps", disable=not progress, leave=False)):
        for part in compiled.parts(len(heatmaps), batch_size):
            mixed = np.where(places[part] < count, end[part], start[part])
            probabilities[part, step] = _probabilities(model, mixed, wanted[part], batch_size)
    fractions = counts / pixels
    return Curve(fractions, probabilities, np.trapezoid(probabilities, fractions, axis=1))


def _places(heatmaps, seed):
    """How many pixels of its map go before each one: (n, height, width, 1) int32."""
    places = np.empty((len(heatmaps), heatmaps[0].size), np.int32)
    lots = np.random.default_rng(seed).permutation(heatmaps[0].size)
    for place, heatmap in zip(places, heatmaps, strict=True):
        place[np.lexsort((lots, -heatmap.ravel()))] = np.arange(len(lots))
    return places.reshape(*heatmaps.shape, 1)


def _seen_through(model, images, heatmaps, class_index, baseline, batch_size):
    """Probabilities of each image's class, in the whole image and seen through the map."""
    images, heatmaps, wanted = _checked(model, images, heatmaps, class_index, batch_size)
    light = stretch(np.maximum(heatmaps, 0))[..., np.newaxis].astype(np.float32)
    with np.errstate(over="ignore"):
        seen = images * light + _baseline(baseline, images) * (1 - light)
    both = (_probabilities(model, each, wanted, batch_size) for each in (images, seen))
    return tuple(both)


def _probabilities(model, images, classes, batch_size):
    """Probability of each image's class, (n,) float64."""
    run, found = compiled.scores(model), []
    for part in compiled.parts(len(images), batch_size):
        found.append(run(images[part].astype(np.float32, copy=False)).numpy())
    logits = np.concatenate(found).astype(np.float64)
    probabilities = compiled.probabilities(model, logits)[np.arange(len(images)), classes]
    if np.isnan(probabilities).any():
        raise ValueError(
            f"expected scores that are numbers, received NaN from '{model.name}': try another "
            "baseline, or look for the layer that makes NaN."
        )
    return probabilities


def _checked(model, images, heatmaps, class_index, batch_size):
    """Images, finite heatmaps as large as these, and the class of each image."""
    images, wanted = check_request(model, images, class_index, batch_size)
    heatmaps = as_numbers("heatmaps", heatmaps, np.float64)
    if heatmaps.shape != images.shape[:3]:
        raise ValueError(
            f"expected heatmaps {images.shape[:3]}, as large as the images, received "
            f"{heatmaps.shape}: plots.place puts those of a layer on the image."
        )
    check_heatmaps(heatmaps)
    if class_index is None:
        run, parts = compiled.scores(model), compiled.parts(len(images), batch_size)
        wanted = np.concatenate([run(images[part]).numpy().argmax(axis=1) for part in parts])
    return images, heatmaps, wanted


def _baseline(baseline, images):
    """What pixels become, as large as the images."""
    if isinstance(baseline, str):
        if baseline == "zeros":
            return np.broadcast_to(np.float32(0), images.shape)
        if baseline == "mean":
            return np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
        if baseline == "blur":
            deviation = BLUR * min(images.shape[1:3])
            return np.stack([gaussian(each, deviation, channel_axis=-1) for each in images])
    else:
        with suppress(ValueError):
            values = as_numbers("baseline", baseline, np.float32)
            if np.isfinite(values).all():
                check_range("a baseline", values, power=2)
                return np.broadcast_to(values, images.shape)
    is_array = isinstance(baseline, np.ndarray)
    raise ValueError(
        "expected a baseline 'zeros', 'blur' or 'mean', one value, or an array that broadcasts to "
        f"{images.shape}, all finite, received "
        f"{f'an array {baseline.shape}' if is_array else brief(baseline)}."
    )
