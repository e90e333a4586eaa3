"""Arrays from a caller: numbers of one shape, all finite. Else one clear sentence."""

import numpy as np


def as_numbers(name: str, values: np.ndarray, dtype: type | None = None) -> np.ndarray:
    """Return real numbers as an array, of a dtype or of their own.

    Values that a dtype cannot hold become infinite, for :func:`check_heatmaps` and its like to
    refuse.

    Raises
    ------
    ValueError
        If they differ in shape, or are complex, dates, text or other things than real numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"expected {name} of one shape, received some of several: bring them to one size."
        ) from error
    if array.dtype.kind not in "fiub":
        kinds = {"U": "text", "S": "bytes", "O": type(values).__name__}
        raise ValueError(
            f"expected {name} as an array of real numbers, received "
            f"{kinds.get(array.dtype.kind, array.dtype)}: load or convert them first."
        )
    if dtype is None:
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def check_heatmaps(heatmaps: np.ndarray) -> None:
    """Raise ValueError if there are no heatmaps (n, height, width), or a value is not finite."""
    if not heatmaps.size:
        raise ValueError(f"expected at least one heatmap, received an empty {heatmaps.shape}.")
    bad = not_finite(heatmaps)
    if bad.size:
        raise ValueError(
            f"expected finite heatmaps, received NaN or infinite values in map {bad[0]} "
            f"({len(bad)} of {len(heatmaps)}): do not divide a blank map by its maximum."
        )
    check_range("heatmaps", heatmaps)


def check_range(name: str, values: np.ndarray, power: int = 1) -> None:
    """Raise ValueError if a finite value, or a power of it, is too large for float32."""
    largest = max(abs(float(values.min())), abs(float(values.max())))  # of any dtype
    limit = float(np.finfo(np.float32).max) ** (1 / power)
    if largest > limit:
        raise ValueError(
            f"expected {name} of at most {limit:.3g}, received {largest:.3g}: scale them down."
        )


def not_finite(arrays: np.ndarray) -> np.ndarray:
    """Return which of n arrays (n, ...), none of them empty, hold NaN or infinity: (bad,) int64."""
    with np.errstate(invalid="ignore"):
        ends = arrays.min(), arrays.max()  # NaN spreads to both; no mask as large as the arrays
    if np.isfinite(ends).all():
        return np.empty(0, np.int64)
    return np.flatnonzero(~np.isfinite(arrays).reshape(len(arrays), -1).all(axis=1))


def brief(value: object) -> str:
    """Return what a value looks like, in one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def check_number(name: str, value: float) -> None:
    """Raise ValueError if a value is no finite number of 0 or more."""
    is_real = isinstance(value, int | float | np.integer | np.floating)
    is_huge = isinstance(value, int) and value >= 2**1023  # no float can hold it
    if not is_real or is_huge or not 0 <= value < np.inf:
        raise ValueError(f"expected {name} as a number of 0 or more, received {brief(value)}.")


def check_count(name: str, value: int) -> int:
    """Return ``value`` if it is an integer of 1 or more; else ValueError."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"expected {name} as an integer of 1 or more, received {brief(value)}.")
    return int(value)
