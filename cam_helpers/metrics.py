"""How to tell whether a heatmap is true: every metric of the tutorial, in one place."""

from cam_helpers.checks import check_count
from cam_helpers.compiled import parts
from cam_helpers.faithfulness import (
    Curve,
    average_drop,
    average_increase,
    deletion,
    insertion,
)
from cam_helpers.localization import energy_inside, grid_pointing_game, pointing_game
from cam_helpers.sanity import randomize_layers, rank_correlation, ssim
import numpy as np

__all__ = [
    "Curve",
    "average_drop",
    "average_increase",
    "deletion",
    "energy_inside",
    "grid_pointing_game",
    "insertion",
    "mean_and_interval",
    "pointing_game",
    "randomize_layers",
    "rank_correlation",
    "ssim",
]

MOST_AT_ONCE = 2**22  # values drawn, 64 MB


def mean_and_interval(
    values: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of one value for each image, and the interval that it is known to: 95 %.

    From the percentiles of the means of images drawn with replacement (bootstrap). It answers how
    far other images of this kind would move the mean. To compare two methods, give the difference
    of their values image by image.

    Parameters
    ----------
    values
        (n,) float or bool. One NaN makes all three NaN.
    resamples
        Draws of n images.
    seed
        Of the draws: the same images for the same n.

    References
    ----------
    Efron 1979, https://doi.org/10.1214/aos/1176344552. Notebook 09.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected one value for each image (n,), received {values.shape}.")
    draws = np.random.default_rng(seed)
    means = np.empty(check_count("resamples", resamples))
    for part in parts(resamples, max(1, MOST_AT_ONCE // len(values))):
        drawn = draws.integers(len(values), size=(len(means[part]), len(values)))
        means[part] = values[drawn].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
