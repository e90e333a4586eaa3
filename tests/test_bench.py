"""The ratio of two calls is what their durations say."""

import time

from cam_helpers import bench
import pytest


def test_ratios_are_medians_within_turns():
    pauses = iter([9, 9] + [0.02, 0.06] * 2 + [0.04, 0.12] + [0.02, 0.5] + [0.02, 0.06])
    slept = lambda: time.sleep(min(next(pauses), 0.5))  # noqa: E731
    found = bench.ratios({"one": slept, "three": slept}, turns=5)
    assert found["one"] == 1
    assert found["three"] == pytest.approx(3, rel=0.2)
