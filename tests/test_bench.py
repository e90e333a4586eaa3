"""What the bench times is what its rows say, and its ratios are those of the durations."""

import gc
import sys

from cam_helpers import bench, gradients, models
from cam_helpers.backend import keras
import numpy as np
import pytest

L = keras.layers


def taking(clock, *seconds):
    left = iter(seconds)

    def call():
        clock[0] += next(left)

    return call


@pytest.fixture
def clock(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    return clock


def test_ratios_are_medians_within_turns_and_leave_compiling_out(clock):
    calls = {"one": taking(clock, 9, 1, 2, 1, 4, 1), "three": taking(clock, 9, 3, 6, 50, 12, 3)}
    assert bench.ratios(calls, turns=5) == {"one": 1, "three": 3}


def test_ratios_of_calls_repeated_within_a_turn(clock):
    calls = {"two": taking(clock, 9, 1, 3, 2, 2), "five": taking(clock, 9, 4, 6, 4, 6)}
    assert bench.ratios(calls, turns=2, repeats=2) == {"two": 1, "five": 2.5}


def test_clusters_are_compared_turn_by_turn(monkeypatch):
    seconds = {1: iter([4, 8, 10]), 2: iter([2, 6, 1])}
    call = lambda model, images, workers: next(seconds[workers])  # noqa: E731
    monkeypatch.setattr(bench, "_on_a_cluster", call)
    assert bench.on_clusters(None, None) == {"one worker": 1, "two workers": 0.5}


def test_the_garbage_collector_runs_again_even_after_an_error():
    with pytest.raises(ZeroDivisionError):
        bench.ratios({"one": lambda: 1 / 0})
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 2))
    maps = L.Conv2D(40, 3, strides=2, activation="relu", name="maps")(inputs)
    return keras.Model(inputs, L.Dense(4)(L.Flatten()(maps)))


@pytest.fixture
def images():
    return np.random.default_rng(0).random((3, 12, 12, 2), np.float32)


def agree(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_rows_of_the_table_are_the_same_maps(network, images):
    calls = bench.gradient_calls(network, "maps", images)
    assert list(calls) == [
        "forward pass",
        "grad_cam",
        "grad_cam_plus_plus",
        "layer_cam",
        "hires_cam",
        "tf-keras-vis Gradcam",
        "tf-keras-vis GradcamPlusPlus",
    ]
    made = {name: call() for name, call in calls.items()}
    agree(made.pop("forward pass"), network(images).numpy())
    assert {heatmaps.shape for heatmaps in made.values()} == {(3, 5, 5)}
    agree(made["grad_cam"], made["tf-keras-vis Gradcam"])


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")  # tf-keras-vis
def test_the_rows_of_the_table_of_pixels_are_the_same_gradients(network, images):
    calls = bench.pixel_calls(network, images)
    assert list(calls) == [
        "forward and backward pass",
        "saliency",
        "guided_backprop",
        "tf-keras-vis Saliency",
        "tf-keras-vis GuidedBackpropagation",
    ]
    made = {name: call() for name, call in calls.items()}
    expected = gradients.saliency(network, images, 0)
    for name in ("forward and backward pass", "saliency", "tf-keras-vis Saliency"):
        agree(made[name], expected)
    guided = gradients.guided_backprop(network, images, 0)
    assert np.abs(guided - expected).max() > 0.1 * guided.max()
    for name in ("guided_backprop", "tf-keras-vis GuidedBackpropagation"):
        agree(made[name], guided)


def test_layers_are_measured_from_the_first_with_maps_to_the_last(images):
    x = inputs = keras.Input((12, 12, 2))
    for number in range(7):
        x = L.Conv2D(3, 2, activation="relu", name=f"maps{number}")(x)
    network = keras.Model(inputs, L.Dense(4)(L.Flatten()(x)))
    calls = bench.layer_calls(network, images)
    agree(calls["forward pass"](), network(images).numpy())
    found = calls["layer_activations of 5 layers"]()
    assert list(found) == ["maps0", "maps2", "maps3", "maps4", "maps6"]
    assert [len(each) for each in found.values()] == [3] * 5


def test_filters_at_once_and_one_by_one_are_the_same_pictures():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 1))
    maps = L.Conv2D(5, 3, name="maps")(inputs)
    network = keras.Model(inputs, L.Dense(4)(L.Flatten()(maps)))
    calls = bench.filter_calls(network, "maps", maps=4, steps=2)
    assert list(calls) == ["maximize_activation of 4 maps", "4 runs of one map"]
    at_once, one_by_one = (call() for call in calls.values())
    assert at_once.shape == (4, 12, 12, 1)
    agree(at_once, one_by_one)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")  # tf-keras-vis
def test_score_cam_is_measured_in_as_many_forward_passes_of_as_many_images(network, images):
    calls = bench.score_cam_calls(network, "maps", images[:1], 37)
    passes = calls["forward passes"]()
    assert [len(scores) for scores in passes] == [32, 5]
    agree(passes[1], network(images[:1]).numpy().repeat(5, 0))
    keras.utils.disable_interactive_logging()
    try:
        heatmaps = [calls[name]() for name in ("score_cam", "tf-keras-vis Scorecam")]
    finally:
        keras.utils.enable_interactive_logging()
    assert [heatmap.shape for heatmap in heatmaps] == [(1, 5, 5)] * 2


def test_the_peer_has_turns_of_its_own(monkeypatch):
    measured = []

    def ratios(calls, turns, repeats):
        measured.append(list(calls))
        return {name: len(name) for name in calls}

    monkeypatch.setattr(bench, "ratios", ratios)
    calls = dict.fromkeys(["forward pass", "ours", "tf-keras-vis theirs"])
    assert list(bench._apart(calls, 7)) == list(calls)
    assert measured == [["forward pass", "ours"], ["forward pass", "tf-keras-vis theirs"]]
    del calls["tf-keras-vis theirs"]
    assert list(bench._apart(calls, 7)) == list(calls)
    assert len(measured) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_that_is_kept_is_seen_and_that_of_a_dropped_model_is_not(monkeypatch):
    now, most = bench.memory("VmRSS"), bench.memory("VmHWM")
    assert most >= now - 1
    block = np.ones(2**26, np.uint8)
    assert bench.memory("VmRSS") == pytest.approx(now + 64, abs=2)
    del block
    assert bench.memory("VmRSS") == pytest.approx(now, abs=2)
    kept = []
    monkeypatch.setattr(bench, "WARM_UP", 1)
    monkeypatch.setattr(models, "fashion_cnn", object)
    monkeypatch.setattr(models, "to_logits", lambda model: model)

    def keep(model):
        kept.append(np.ones(2**23, np.uint8))

    assert bench.growth(keep, 10, True)["growth"] == pytest.approx(80, abs=10)
    assert bench.growth(id, 10, True)["growth"] == pytest.approx(0, abs=10)
