"""Arrays from a caller: what is no array of real numbers or not finite, by its message."""

import re
import tracemalloc

from cam_helpers import arrays
import numpy as np
import pytest

UNFIT = {
    "lists of several lengths": ([[1, 2], [3]], "expected maps of one shape, received some of"),
    "arrays of several shapes": ([np.zeros((2, 3)), np.zeros((2, 4))], "received some of several"),
    "text": (["1.5", "2"], "expected maps as an array of real numbers, received text: load or"),
    "bytes": (b"1", "received bytes: load or convert them first."),
    "nothing": (None, "received NoneType"),
    "a number that no float holds": ([10**400], "received list"),
    "complex numbers": (np.ones(2, complex), "received complex128"),
    "dates": (np.zeros(2, "M8[s]"), "received datetime64[s]"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_no_array_of_real_numbers_is_named_in_one_sentence(case):
    values, sentence = UNFIT[case]
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        arrays.as_numbers("maps", values, np.float64)
    assert "\n" not in str(error.value)


def test_numbers_of_any_kind_keep_their_values():
    for kind in ("f2", ">f8", "g", "i1", "u8", "?"):
        found = arrays.as_numbers("maps", np.array([0, 1, 1], kind), np.float64)
        assert found.dtype == np.float64
        assert found.tolist() == [0, 1, 1]
    same = np.ones(3, np.float32)
    assert arrays.as_numbers("maps", same) is same
    assert arrays.as_numbers("maps", [[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.filterwarnings("error")
def test_what_a_dtype_cannot_hold_becomes_infinite_without_a_warning():
    assert arrays.as_numbers("maps", [1e300, -1e300], np.float32).tolist() == [np.inf, -np.inf]


@pytest.mark.filterwarnings("error")
def test_which_arrays_are_not_finite():
    batch = np.zeros((5, 2, 3))
    assert arrays.not_finite(batch).tolist() == []
    batch[1, 0, 0], batch[3, 1, 2], batch[4, 0, 1] = np.nan, np.inf, -np.inf
    assert arrays.not_finite(batch).tolist() == [1, 3, 4]
    assert arrays.not_finite(batch[[0, 2]]).tolist() == []


def test_looking_for_nan_takes_no_mask_as_large_as_the_arrays():
    batch = np.ones((1000, 1000))
    tracemalloc.start()
    try:
        arrays.not_finite(batch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000  # a mask has a million bytes


def test_heatmaps_must_be_there_and_fit_float32():
    with pytest.raises(ValueError, match=r"at least one heatmap, received an empty \(0, 3, 4\)\.$"):
        arrays.check_heatmaps(np.zeros((0, 3, 4)))
    with pytest.raises(
        ValueError, match=r"^expected heatmaps of at most 3\.4e\+38, received 1e\+300: "
    ):
        arrays.check_heatmaps(np.full((1, 3, 4), -1e300))
    arrays.check_heatmaps(np.full((1, 3, 4), 3e38))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "g"])
def test_a_limit_holds_for_numbers_of_any_precision(kind):
    arrays.check_range("pixels", np.array([-3, 5], kind), power=2)
    arrays.check_range("pixels", np.array([2**63], np.uint64), power=2)
    if kind != "f2":
        with pytest.raises(
            ValueError, match=r"^expected pixels of at most 1\.84e\+19, received 2e"
        ):
            arrays.check_range("pixels", np.array([-2e19, 5], kind), power=2)
        arrays.check_range("pixels", np.array([-2e19, 5], kind))


def test_a_number_too_large_for_a_float_is_refused():
    with pytest.raises(ValueError, match=r"^expected noise as a number .* received 1000"):
        arrays.check_number("noise", 10**400)
    for value in (0, 2.5, 10**300, np.float16(1), np.float32(1e38), np.int8(3)):
        arrays.check_number("noise", value)


def test_a_value_is_named_in_one_short_line():
    assert arrays.brief("cat") == "'cat'"
    assert arrays.brief(np.eye(2)) == "array([[1., 0.], [0., 1.]])"
    assert arrays.brief("x" * 500) == f"'{'x' * 78}…"
