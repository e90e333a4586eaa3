"""Gradients at the pixels: which change of which pixel would raise the score?

Every method takes a model that returns logits, a batch of images as the model wants them, and one
class for each image. It returns float32 of the shape of the images, signed, in score per unit of
the pixel or, where its text says so, in the unit of the score. For a picture in one colour scale
``plots.largest_channel`` takes the largest channel of each pixel.
"""

from collections.abc import Iterator
import itertools

from cam_helpers import cams, compiled
from cam_helpers.arrays import as_numbers, brief, check_count, check_number, check_range
from cam_helpers.backend import keras
from cam_helpers.checks import ClassIndex, check_finite, check_request
from cam_helpers.once import once
from cam_helpers.placement import Placement, place
from cam_helpers.progress import Progress, passes
from cam_helpers.receptive_field import field_of
from cam_helpers.relu_rules import Rule, check_relus
import numpy as np


def saliency(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    r"""Return how fast the class score rises with each pixel: its gradient.

    :math:`\partial y^c / \partial x`, with its sign. The figure of the paper is its
    ``plots.largest_channel``.

    Parameters
    ----------
    model
        Functional or ``Sequential``, one output (batch, classes) of logits; see ``to_logits``. One
        logit counts as two classes: 1 is the logit, 0 its negative.
    images
        (batch, height, width, channels) float, preprocessed as the model wants it.
    class_index
        One class for all images, one for each, or None for each image's top class.
    batch_size
        Images that go through the network at once.

    Returns
    -------
    np.ndarray
        (batch, height, width, channels) float32, in score per unit of the preprocessed pixel.

    Raises
    ------
    ValueError
        If the model ends in softmax or sigmoid, if images or classes do not fit it, or if it makes
        NaN or infinity of them.

    References
    ----------
    Simonyan et al. 2014, https://arxiv.org/abs/1312.6034, section 3. Notebook 05.
    """
    return _sent_back("backprop", model, images, class_index, batch_size)


def guided_backprop(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    r"""Return what reaches each pixel if only support passes, and only through active units.

    The gradient, but at each ReLU with input x the incoming gradient R goes on as
    :math:`1[x > 0] \, 1[R > 0] \, R`. A drawing of what active units respond to, no gradient of
    anything: it hardly depends on the class. Parameters, result and errors are those of
    :func:`saliency`; ValueError as well for an activation that is no ReLU.

    References
    ----------
    Springenberg et al. 2015, https://arxiv.org/abs/1412.6806, section 3.4. Notebook 05.
    """
    return _sent_back("guided", model, images, class_index, batch_size)


def deconvnet(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    r"""Return what reaches each pixel if only support passes, whatever unit was active.

    The gradient, but at each ReLU the incoming gradient R goes on as :math:`1[R > 0] \, R`. Of the
    image it knows only which cell won each max pooling. Parameters, result and errors are those of
    :func:`guided_backprop`.

    References
    ----------
    Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901, section 2.1; Simonyan et al. 2014,
    https://arxiv.org/abs/1312.6034, section 4. Notebooks 05 and 08.
    """
    return _sent_back("deconvnet", model, images, class_index, batch_size)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused in the end
def smooth_grad(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    noise: float = 0.15,
    samples: int = 50,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress = False,
) -> np.ndarray:
    r"""Return the gradient averaged over noisy copies of each image.

    :math:`\frac{1}{n} \sum_s \partial y^c(x + \epsilon_s) / \partial x`,
    :math:`\epsilon_s \sim N(0, \sigma^2)`: of the signed gradients, so that what noise turns around
    cancels.

    Parameters
    ----------
    model, images, class_index
        As for :func:`saliency`; None is the top class of the image without noise.
    noise
        :math:`\sigma` as a share of each image's largest value less its smallest.
    samples
        Noisy copies of each image, n.
    seed
        Of the noise, which is the same for each image.
    batch_size
        Copies that go through the network at once.
    progress
        Show a progress bar; or a callable that all passes go through, as with ``progress.passes``.

    Returns
    -------
    np.ndarray
        (batch, height, width, channels) float32, in score per unit of the preprocessed pixel.

    Raises
    ------
    ValueError
        As for :func:`saliency`, and if noise is negative or samples is no count.

    References
    ----------
    Smilkov et al. 2017, https://arxiv.org/abs/1706.03825, section 2.1. Notebook 05.
    """
    check_count("samples", samples)
    check_number("noise", noise)
    images, wanted = check_request(model, images, class_index, batch_size)
    check_range("noise", np.array(noise * np.ptp(images)), power=2)
    run = compiled.score_gradients(model)
    maps = np.empty(images.shape, np.float32)
    for index, part, batches in _one_by_one(len(images), samples, batch_size, progress):
        _, _, (chosen,) = run(images[part], wanted[part])
        image, rng = images[index], np.random.default_rng(seed)
        deviation, total = noise * np.ptp(image), np.zeros(image.shape)
        for some in batches:
            size = len(range(samples)[some])
            noisy = image + deviation * rng.standard_normal((size, *image.shape), np.float32)
            gradients, _, _ = run(noisy.astype(np.float32), np.full(size, chosen))
            total += gradients.numpy().sum(axis=0, dtype=np.float64)
        maps[index] = total / samples
    return check_finite(model, maps)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused in the end
def integrated_gradients(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    baseline: float | np.ndarray = 0,
    steps: int = 50,
    complete: bool = True,
    batch_size: int = 32,
    progress: Progress = False,
) -> np.ndarray:
    r"""Return how much each pixel adds to the class score on the way from a baseline to the image.

    :math:`(x - x') \sum_s w_s \, \partial y^c(x' + t_s (x - x')) / \partial x`, at the midpoints
    :math:`t_s` of equal steps, so that the sum over all pixels is the score of the image less that
    of the baseline.

    Parameters
    ----------
    model, images, class_index
        As for :func:`saliency`.
    baseline
        :math:`x'`: one value for every pixel, or an array that has, or broadcasts to, the shape of
        one image, in units of the preprocessed pixel. 0 is black for a network that takes [0, 1],
        mid-grey for MobileNet, the mean colour for VGG16.
    steps
        Gradients to average for each image.
    complete
        Choose the weights :math:`w_s`, of all that make that sum right, nearest to equal ones. It
        is the sum that this mends, not each pixel. False weighs all steps the same: then how far
        the sum is off says how well so few steps follow the score. So it is, too, where one weight
        would have to be negative, which is where the steps are too few.
    batch_size
        Steps that go through the network at once.
    progress
        Show a progress bar; or a callable that all passes go through, as with ``progress.passes``.

    Returns
    -------
    np.ndarray
        (batch, height, width, channels) float32, in units of the score.

    Raises
    ------
    ValueError
        As for :func:`saliency`, if steps is no count, or the baseline does not fit an image.

    References
    ----------
    Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365, equations 1 and 3. Notebook 05.
    """
    check_count("steps", steps)
    images, wanted = check_request(model, images, class_index, batch_size)
    start = _baseline(baseline, images.shape[1:])
    run = compiled.score_gradients(model)
    times = ((np.arange(steps) + 0.5) / steps).astype(np.float32)[:, None, None, None]
    maps = np.empty(images.shape, np.float32)
    for index, part, batches in _one_by_one(len(images), steps, batch_size, progress):
        _, score, chosen = run(images[part], wanted[part])
        _, floor, _ = run(start[np.newaxis], chosen)
        way, sums, slopes = images[index] - start, np.zeros((2, *start.shape)), []
        for some in batches:
            points = start + times[some] * way
            found, _, _ = run(points, np.repeat(chosen, len(points)))
            shares = found.numpy() * way.astype(np.float64)  # (steps, height, width, channels)
            slope = shares.sum(axis=(1, 2, 3))  # of the score along the way
            sums += shares.sum(axis=0), np.tensordot(slope, shares, 1)
            slopes.extend(slope)
        tilt = _tilt(np.array(slopes), float(score[0]) - float(floor[0])) if complete else 0
        maps[index] = (1 / steps - tilt * np.mean(slopes)) * sums[0] + tilt * sums[1]
    return check_finite(model, maps)


def guided_grad_cam(
    model: keras.Model,
    images: np.ndarray,
    class_index: ClassIndex = None,
    *,
    layer: str | None = None,
    placement: Placement = "receptive_field",
    batch_size: int = 32,
) -> np.ndarray:
    r"""Return guided backpropagation where Grad-CAM is bright.

    :math:`U(L) \cdot G`, with the Grad-CAM heatmap L, placed on the image, and guided
    backpropagation G. The fine drawing is G's, with its doubts; the choice of place is Grad-CAM's.

    Parameters
    ----------
    model, images, class_index, batch_size
        As for :func:`saliency`.
    layer, placement
        Of the heatmap, as for ``cams.score_cam``.

    Returns
    -------
    np.ndarray
        (batch, height, width, channels) float32.

    Raises
    ------
    ValueError
        As for :func:`guided_backprop` and ``cams.grad_cam``, and for another placement.

    References
    ----------
    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, section 3.2. Notebook 05.
    """
    heatmaps = cams.grad_cam(model, images, class_index, layer=layer, batch_size=batch_size)
    path, size = cams.layer_path(model, layer), np.shape(images)[1:3]
    heatmaps = place(heatmaps, size, field_of(model, path, size, placement))
    drawing = guided_backprop(model, images, class_index, batch_size=batch_size)
    with np.errstate(over="ignore"):
        return check_finite(model, heatmaps[..., np.newaxis] * drawing)


def _sent_back(rule: Rule, model, images, class_index, batch_size):
    images, wanted = check_request(model, images, class_index, batch_size)
    if rule != "backprop":
        once(model, ("relus",), lambda: check_relus(model))
    run = compiled.score_gradients(model, rule)
    parts = compiled.parts(len(images), batch_size)
    found = [run(images[part], wanted[part])[0].numpy() for part in parts]
    return check_finite(model, np.concatenate(found))


def _one_by_one(images, samples, batch_size, progress) -> Iterator[tuple[int, slice, Iterator]]:
    """Yield each image's index, as a number and a slice, and its batches of samples."""
    every = [(i, some) for i in range(images) for some in compiled.parts(samples, batch_size)]
    for index, own in itertools.groupby(passes(every, "passes", progress), lambda each: each[0]):
        yield index, slice(index, index + 1), (some for _, some in own)


def _baseline(baseline, shape):
    """The baseline as (height, width, channels) float32."""
    try:
        start = np.broadcast_to(as_numbers("baseline", baseline, np.float32), shape)
    except ValueError as error:
        received = getattr(baseline, "shape", ()) or brief(baseline)
        raise ValueError(
            f"expected a baseline as one value or as an image {shape}, received {received}."
        ) from error
    if not np.isfinite(start).all():
        raise ValueError("expected a finite baseline, received NaN or infinite values.")
    check_range("a baseline", start, power=2)
    return start


def _tilt(slopes, difference):
    """By how much the weight of a step rises with its slope, for weights that make the sum right.

    Weights 1/n + tilt (slope - mean slope) sum to 1 and are, of all whose mean slope is the
    difference, nearest to equal. Where one would be negative the steps are too few: no tilt. Nor
    where the slopes differ by no more than float32 rounds: dividing by that would blow it up.
    """
    if not np.isfinite(difference):
        return np.nan  # comes to light in the map
    off = slopes - slopes.mean()
    if off @ off <= 1e-12 * (slopes @ slopes):
        return 0
    tilt = (difference - slopes.mean()) / (off @ off)
    return tilt if (1 / len(slopes) + tilt * off >= 0).all() else 0
