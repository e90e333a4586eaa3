"""The mean and what it is known to; and that every metric is to be had here."""

import re

from cam_helpers import faithfulness, localization, metrics, sanity
import numpy as np
import pytest
from scipy.stats import bootstrap


def some_values(count=200, seed=0):
    return np.random.default_rng(seed).gamma(2, size=count)


def test_the_mean_and_an_interval_that_is_nearly_the_normal_one():
    values = some_values()
    mean, low, high = metrics.mean_and_interval(values)
    assert mean == values.mean()
    error = values.std() / np.sqrt(len(values))
    np.testing.assert_allclose([low, high], [mean - 1.96 * error, mean + 1.96 * error], rtol=0.02)
    assert all(isinstance(each, float) for each in (mean, low, high))


@pytest.mark.parametrize("count", [15, 200])
def test_the_interval_is_that_of_scipys_bootstrap_of_percentiles(count):
    values = some_values(count)
    dice = np.random.default_rng(1)
    theirs = bootstrap((values,), np.mean, method="percentile", rng=dice).confidence_interval
    width = theirs.high - theirs.low
    np.testing.assert_allclose(metrics.mean_and_interval(values)[1:], theirs, atol=0.03 * width)


def test_the_interval_holds_the_true_mean_in_95_percent_of_cases():
    held = 0
    for seed in range(400):
        _, low, high = metrics.mean_and_interval(some_values(100, seed), resamples=500)
        held += low <= 2 <= high  # the mean of the distribution
    assert 0.91 < held / 400 < 0.97


def test_of_hits_and_misses_and_of_one_value_and_of_equal_ones():
    hits = np.arange(100) < 30
    mean, low, high = metrics.mean_and_interval(hits)
    assert mean == 0.3
    np.testing.assert_allclose([low, high], 0.3 + np.array([-1, 1]) * 1.96 * 0.0458, atol=0.012)
    assert metrics.mean_and_interval([7]) == (7, 7, 7)
    assert metrics.mean_and_interval(np.full(9, 0.5)) == (0.5, 0.5, 0.5)
    assert np.isnan(metrics.mean_and_interval([1, np.nan, 2])).all()


def test_draws_go_by_the_seed_and_the_number_of_images():
    values = some_values()
    first = metrics.mean_and_interval(values)
    assert metrics.mean_and_interval(values, seed=0) == first
    assert metrics.mean_and_interval(values, seed=1) != first
    assert metrics.mean_and_interval(values, resamples=100) != first
    shifted = metrics.mean_and_interval(values + 1)
    np.testing.assert_allclose(np.subtract(shifted, first), 1)


def test_draws_in_parts_are_the_same_draws(monkeypatch):
    values = some_values(31)
    whole = metrics.mean_and_interval(values, resamples=1001)
    monkeypatch.setattr(metrics, "MOST_AT_ONCE", 1000)
    np.testing.assert_allclose(metrics.mean_and_interval(values, resamples=1001), whole)
    monkeypatch.setattr(metrics, "MOST_AT_ONCE", 1)
    np.testing.assert_allclose(metrics.mean_and_interval(values, resamples=1001), whole)


@pytest.mark.parametrize("values", [[], np.ones((2, 3)), 5.0])
def test_one_value_for_each_image(values):
    sentence = f"expected one value for each image (n,), received {np.shape(values)}."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        metrics.mean_and_interval(values)


def test_at_least_one_draw():
    with pytest.raises(ValueError, match="expected resamples as an integer of 1 or more, received"):
        metrics.mean_and_interval([1, 2], resamples=0)


def test_every_metric_is_to_be_had_here():
    for module in (faithfulness, localization, sanity):
        for name, thing in vars(module).items():
            if getattr(thing, "__module__", "") == module.__name__ and not name.startswith("_"):
                assert getattr(metrics, name) is thing
                assert name in metrics.__all__
    assert all(hasattr(metrics, name) for name in metrics.__all__)
