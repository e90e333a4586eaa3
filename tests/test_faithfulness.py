"""Faithfulness: steps at known places, sums by hand, and each error by its message."""

from itertools import permutations
import re

from cam_helpers import compiled
from cam_helpers.backend import keras
from cam_helpers.faithfulness import Curve, average_drop, average_increase, deletion, insertion
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

L = keras.layers
METRICS = [deletion, insertion, average_drop, average_increase]
CURVES = [deletion, insertion]


def switch(size=(4, 4, 1), pixel=(1, 2), strength=80):
    """Says class 1 if one pixel is lit, class 0 if it is dark, and looks at no other."""
    inputs = keras.Input(size)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(inputs)), name="switch")
    kernel = np.zeros((*size, 2), np.float32)
    kernel[pixel] = [0, strength]
    model.layers[-1].set_weights([kernel.reshape(-1, 2), np.array([0, -strength / 2])])
    return model


def lamp(size=(4, 4, 1)):
    """Says class 1 if any one pixel is lit: one logit, the sum of all."""
    inputs = keras.Input(size)
    model = keras.Model(inputs, L.Dense(1)(L.Flatten()(inputs)), name="lamp")
    model.layers[-1].set_weights([np.full((np.prod(size), 1), 80.0), np.array([-40.0])])
    return model


def linear(size=(4, 6, 2), classes=3, seed=0, strength=0.5):
    """Weighs each pixel on its own; the dropout does nothing outside training."""
    random = np.random.default_rng(seed)
    inputs = keras.Input(size)
    x = L.Flatten()(L.Dropout(0.9)(inputs))
    model = keras.Model(inputs, L.Dense(classes, name="logits")(x), name="linear")
    model.layers[-1].set_weights(
        [strength * random.normal(size=(np.prod(size), classes)), random.normal(size=classes)]
    )
    return model


def by_hand(model, images):
    """Probabilities in double precision, by NumPy alone."""
    kernel, bias = (np.float64(weights) for weights in model.layers[-1].get_weights())
    logits = np.reshape(images, (len(images), -1)) @ kernel + bias
    if logits.shape[1] == 1:
        return np.hstack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))])
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def some_images(count=4, size=(4, 6, 2), seed=1):
    return np.random.default_rng(seed).normal(size=(count, *size)).astype(np.float32)


def some_maps(count=4, size=(4, 6), seed=2):
    return np.random.default_rng(seed).normal(size=(count, *size))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# one pixel decides


@pytest.mark.parametrize("rank", [0, 5, 15])
def test_a_network_that_looks_at_one_pixel_makes_a_step_where_that_pixel_has_its_turn(rank):
    order = np.delete(np.arange(16), 6)
    order = np.insert(order, rank, 6)  # pixel (1, 2) is the rank-th
    heatmap = np.empty(16)
    heatmap[order] = np.linspace(3, -3, 16)
    batch = np.ones((1, 4, 4, 1), np.float32), heatmap.reshape(1, 4, 4)
    lost = deletion(switch(), *batch, 1, steps=16)
    assert isinstance(lost, Curve)
    close(lost.fractions, np.arange(17) / 16)
    close(lost.probabilities, [np.arange(17) <= rank])
    close(lost.area, [(rank + 0.5) / 16])
    found = insertion(switch(), *batch, 1, steps=16)
    close(found.probabilities, [np.arange(17) > rank])
    close(found.area, [1 - (rank + 0.5) / 16])
    assert lost.probabilities.dtype == lost.area.dtype == np.float64


def test_points_are_at_equal_distances_as_far_as_pixels_can_be_counted():
    image, heatmap = np.ones((1, 2, 5, 1), np.float32), -np.arange(10.0).reshape(1, 2, 5)
    curve = deletion(switch((2, 5, 1), (1, 0)), image, heatmap, 1, steps=4)
    close(curve.fractions, [0, 0.2, 0.5, 0.7, 1])
    close(curve.probabilities, [[1, 1, 1, 0, 0]])  # the sixth pixel goes
    close(curve.area, [0.5 + 0.2 / 2])


def test_the_default_is_twenty_steps_from_the_image_to_zeros():
    model, images, maps = linear((5, 6, 1)), some_images(size=(5, 6, 1)), some_maps(size=(5, 6))
    curve = deletion(model, images, maps, 2)
    assert curve.probabilities.shape == (4, 21)  # twenty steps
    assert curve.fractions[[0, -1]].tolist() == [0, 1]
    close(curve.probabilities[:, 0], by_hand(model, images)[:, 2])
    close(curve.probabilities[:, -1], by_hand(model, 0 * images)[:, 2])
    found = insertion(model, images, maps, 2)
    close(found.probabilities[:, 0], by_hand(model, 0 * images)[:, 2])
    close(found.probabilities[:, -1], by_hand(model, images)[:, 2])


def test_what_each_pixel_adds_is_the_best_of_all_orders_and_its_inverse_the_worst():
    model, image = linear((2, 3, 1), classes=1), some_images(1, (2, 3, 1))
    orders = np.array(list(permutations(range(6))), float).reshape(-1, 2, 3)
    images = np.repeat(image, len(orders), axis=0)
    adds = image[..., 0] * model.layers[-1].kernel.numpy().reshape(1, 2, 3)
    lost, found = (metric(model, images, orders, 1, steps=6).area for metric in CURVES)
    close(deletion(model, image, adds, 1, steps=6).area, lost.min())
    close(deletion(model, image, -adds, 1, steps=6).area, lost.max())
    close(insertion(model, image, adds, 1, steps=6).area, found.max())
    close(insertion(model, image, -adds, 1, steps=6).area, found.min())
    assert lost.max() - lost.min() > 0.05


def test_curves_of_a_linear_network_by_hand():
    model, images, maps = linear(), some_images(), some_maps()
    curves = [metric(model, images, maps, [0, 1, 2, 0], baseline=0.5, steps=7) for metric in CURVES]
    for index, (image, heatmap) in enumerate(zip(images, maps, strict=True)):
        order = np.argsort(-heatmap.ravel())
        for step, count in enumerate([0, 3, 6, 10, 13, 17, 20, 24]):
            gone = np.isin(np.arange(24), order[:count]).reshape(4, 6, 1)
            mixed = np.stack([np.where(gone, 0.5, image), np.where(gone, image, 0.5)])
            expected = by_hand(model, mixed)[:, [0, 1, 2, 0][index]]
            close([curve.probabilities[index, step] for curve in curves], expected)


def test_insertion_is_deletion_of_the_inverse_map_read_backwards():
    model, images, maps = linear(), some_images(), some_maps()
    lost = deletion(model, images, -maps, 1, steps=24)
    found = insertion(model, images, maps, 1, steps=24)
    close(found.probabilities, lost.probabilities[:, ::-1])
    close(found.area, lost.area)


def test_only_the_order_counts():
    model, images, maps = linear(), some_images(), some_maps()
    expected = deletion(model, images, maps, 1, steps=5)
    for same in (maps * 1e-30, np.exp(maps) * 1e30, maps - 1000):
        assert (deletion(model, images, same, 1, steps=5).area == expected.area).all()


# ties


def lit_one_by_one(size=(4, 4)):
    return np.eye(np.prod(size), dtype=np.float32).reshape(-1, *size, 1)


def test_equal_pixels_go_by_lot_the_same_for_all_images():
    images, flat = lit_one_by_one(), np.full((16, 4, 4), -2.0)
    areas = {seed: deletion(lamp(), images, flat, 1, steps=16, seed=seed).area for seed in (0, 1)}
    ranks = (np.arange(16) + 0.5) / 16
    for area in areas.values():
        close(np.sort(area), ranks)  # so 0.5 on average, what chance would reach
        assert np.abs(area - ranks).max() > 0.2  # and not along the rows
        assert np.abs(area - ranks[::-1]).max() > 0.2
    assert np.abs(areas[0] - areas[1]).max() > 0.2
    again = deletion(lamp(), images, flat, 1, steps=16)
    assert (again.area == areas[0]).all()
    found = insertion(lamp(), images, flat, 1, steps=16)
    close(found.area, 1 - areas[0])


def test_lots_are_drawn_among_equals_only():
    images, heatmap = lit_one_by_one(), np.zeros((4, 4))
    heatmap[1], heatmap[3] = 1, -0.0
    area = deletion(lamp(), images, np.repeat(heatmap[np.newaxis], 16, axis=0), 1, steps=16).area
    ranks = (np.arange(16) + 0.5) / 16
    close(np.sort(area[4:8]), ranks[:4])
    close(np.sort(np.delete(area, slice(4, 8))), ranks[4:])
    assert ranks[4:12].max() > area[12:].min()  # -0 is 0


@pytest.mark.parametrize("metric", METRICS)
def test_an_image_has_its_number_whatever_else_is_in_the_batch(metric):
    model, images, maps = linear(), some_images(), some_maps().round()
    options = {"steps": 5} if metric in CURVES else {}
    together = metric(model, images, maps, [0, 1, 2, 1], **options)
    for batch_size in (1, 3):
        parted = metric(model, images, maps, [0, 1, 2, 1], batch_size=batch_size, **options)
        for found, expected in zip(parted, together, strict=True):
            close(found, expected)
    if metric in CURVES:
        assert together.probabilities.std(axis=0).min() > 0.01
    for index in range(4):
        one = slice(index, index + 1)
        alone = metric(model, images[one], maps[one], [0, 1, 2, 1][index], **options)
        if metric in CURVES:
            close(alone.probabilities, together.probabilities[one])
        else:
            close(alone, together[one])


# classes


@pytest.mark.parametrize("metric", METRICS)
def test_classes_one_for_all_one_for_each_or_the_images_own_top(metric):
    model, images, maps = linear(), some_images(8), some_maps(8)
    options = {"steps": 5} if metric in CURVES else {}

    def run(*class_index):
        found = metric(model, images, maps, *class_index, **options)
        return found.probabilities if metric in CURVES else found

    top = by_hand(model, images).argmax(axis=1)
    assert set(top) == {0, 1, 2}
    close(run(), run(top))
    close(run(None), run(top.tolist()))
    close(run(2), run([2] * 8))
    assert not np.array_equal(run(0), run(1))


def test_the_class_stays_along_the_curve():
    images = np.ones((1, 4, 4, 1), np.float32)
    curve = deletion(switch(), images, np.arange(16.0).reshape(1, 4, 4), steps=16)
    close(curve.probabilities[0, [0, -1]], [1, 0])


def test_one_logit_is_two_classes():
    model, images, maps = linear(classes=1), some_images(), some_maps()
    for metric in CURVES:
        no, yes = (metric(model, images, maps, index, steps=5) for index in (0, 1))
        close(no.probabilities, 1 - yes.probabilities)
        close(no.area, 1 - yes.area)
    close(yes.probabilities[:, -1], by_hand(model, images)[:, 1])
    through = images * np.maximum(maps / maps.max(axis=(1, 2), keepdims=True), 0)[..., np.newaxis]
    for index in (0, 1):
        whole, seen = (by_hand(model, each)[:, index] for each in (images, through))
        found = average_drop(model, images, maps, index)
        close(found, np.maximum(0, whole - seen) / whole)
        assert (average_increase(model, images, maps, index) == (seen > whole)).all()
    own = np.maximum(by_hand(model, images)[:, 0], by_hand(model, images)[:, 1])
    close(deletion(model, images, maps, steps=5).probabilities[:, 0], own)


# baselines


def test_each_baseline_is_where_deletion_ends_and_insertion_starts():
    model, maps = linear((8, 12, 2), strength=0.2), some_maps(3, (8, 12))
    images = some_images(3, (8, 12, 2)) + np.float32([0.5, -0.2])
    blurred = [gaussian_filter(each, (1, 1, 0), mode="nearest", truncate=4) for each in images]
    array = np.float32([0.25, -1])
    for baseline, expected in [
        ("zeros", np.zeros_like(images)),
        ("mean", images.mean(axis=(1, 2), keepdims=True) + 0 * images),
        ("blur", np.stack(blurred)),
        (0.25, np.full_like(images, 0.25)),
        (1, np.ones_like(images)),
        (array, array + 0 * images),
        (images[::-1], images[::-1]),
        ([0.25, -1], array + 0 * images),
    ]:
        probabilities = by_hand(model, expected)[:, 1]
        lost, found = (metric(model, images, maps, 1, baseline=baseline) for metric in CURVES)
        close(lost.probabilities[:, -1], probabilities)
        close(found.probabilities[:, 0], probabilities)
        blank = average_drop(model, images, 0 * maps, 1, baseline=baseline)
        whole = by_hand(model, images)[:, 1]
        close(blank, np.maximum(0, whole - probabilities) / whole)
        raised = average_increase(model, images, 0 * maps, 1, baseline=baseline)
        assert (raised == (probabilities > whole)).all()


# average drop and increase


def test_average_drop_and_increase_by_hand():
    model, images, maps = linear(), some_images(8), some_maps(8)
    light = np.stack([np.clip(each / each.max(), 0, None) for each in maps])[..., np.newaxis]
    whole = by_hand(model, images)[:, 1]
    seen = by_hand(model, images * light + 0.5 * (1 - light))[:, 1]
    assert 0 < (seen > whole).sum() < 8
    found = average_drop(model, images, maps, 1, baseline=0.5)
    close(found, np.maximum(0, 1 - seen / whole))
    assert found.dtype == np.float64
    raised = average_increase(model, images, maps, 1, baseline=0.5)
    assert raised.tolist() == (seen > whole).tolist()
    assert raised.dtype == bool
    close(average_drop(model, images, 1e9 * maps, 1, baseline=0.5), found)


def test_the_one_pixel_network_loses_nothing_through_its_pixel_and_all_through_the_others():
    images, inverse = np.ones((1, 4, 4, 1), np.float32), np.ones((1, 4, 4))
    inverse[0, 1, 2] = 0
    close(average_drop(switch(), images, 1 - inverse, 1), [0])
    close(average_drop(switch(), images, inverse, 1), [1])
    assert not average_increase(switch(), images, 1 - inverse, 1).any()
    assert average_increase(switch(), images, inverse, 0).all()
    half = 1 - inverse + 0.5 * inverse  # bright at the pixel, half as bright elsewhere
    close(average_drop(switch(), images, half, 1), [0])
    dim = inverse + 0.5 * (1 - inverse)  # the pixel seen at half its light
    close(average_drop(switch(), images, dim, 1), [0.5])


def test_a_map_that_is_bright_everywhere_loses_nothing_and_gains_nothing():
    model, images = linear(), some_images()
    for level in (1e-3, 1, 1e6):
        flat = np.full((4, 4, 6), level)
        for baseline in ("zeros", "blur", 9):
            assert average_drop(model, images, flat, 1, baseline=baseline).tolist() == [0] * 4
            assert not average_increase(model, images, flat, 1, baseline=baseline).any()


def test_a_map_with_nothing_above_zero_shows_the_baseline_alone():
    model, images = linear(), some_images()
    whole, nothing = (by_hand(model, each)[:, 1] for each in (images, 0 * images))
    for dark in (np.zeros((4, 4, 6)), -1 - np.abs(some_maps())):
        found = average_drop(model, images, dark, 1)
        close(found, np.maximum(0, whole - nothing) / whole)


def test_nothing_is_lost_of_no_probability():
    dark = np.zeros((1, 4, 4, 1), np.float32)
    model, flat = switch(strength=10_000), np.ones((1, 4, 4))
    assert average_drop(model, dark, flat, 1).tolist() == [0]
    assert average_drop(model, dark, 0 * flat, 1, baseline=1.0).tolist() == [0]
    assert average_increase(model, dark, 0 * flat, 1, baseline=1.0).tolist() == [True]


def test_large_logits_make_probabilities_of_0_and_1():
    images, maps = np.ones((1, 4, 4, 1), np.float32), np.arange(16.0).reshape(1, 4, 4)
    curve = deletion(switch(strength=1e30), images, maps, 1, steps=16)
    assert set(curve.probabilities.ravel()) == {0, 1}


def test_probabilities_are_kept_far_below_what_single_precision_can_hold():
    dark, model = np.zeros((1, 4, 4, 1), np.float32), switch(strength=280)
    curve = deletion(model, dark, np.ones((1, 4, 4)), 1, baseline=-0.1, steps=1)
    np.testing.assert_allclose(curve.probabilities, np.exp([[-140, -168]]), rtol=1e-4)
    lost = average_drop(model, dark, np.zeros((1, 4, 4)), 1, baseline=-0.01)
    np.testing.assert_allclose(lost, 1 - np.exp(-2.8), rtol=1e-4)


# what comes in, and what is kept


@pytest.mark.parametrize("metric", METRICS)
def test_other_kinds_of_float_and_lists(metric):
    model, images, maps = linear(), some_images().astype(np.float16), some_maps()
    maps = maps.astype(np.float16)
    expected = metric(model, images.astype(np.float32), maps.astype(np.float64), 1, baseline=0.5)
    for kinds in [
        (images, maps),
        (images.astype(np.float64), maps.astype(np.float32)),
        (images.astype(np.float32).tolist(), maps.tolist()),
    ]:
        found = metric(model, *kinds, 1, baseline=np.float64(0.5))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("baseline", ["zeros", "mean", "blur", np.float32([0.5, 1])])
def test_nothing_of_the_caller_changes(metric, baseline):
    model, images, maps = linear(), some_images(), some_maps()
    kept = [*model.get_weights(), images.copy(), maps.copy()]
    images.flags.writeable = maps.flags.writeable = False
    metric(model, images, maps, baseline=baseline)
    for now, before in zip([*model.get_weights(), images, maps], kept, strict=True):
        np.testing.assert_array_equal(now, before)


def test_traced_once_for_all_batch_sizes_and_metrics(monkeypatch):
    model, traced, real = linear(), [], compiled.two_sided
    monkeypatch.setattr(compiled, "two_sided", lambda scores: traced.append(1) or real(scores))
    for count in (1, 4, 3):
        for metric in METRICS:
            metric(model, some_images(count), some_maps(count), batch_size=2)
    assert len(traced) == 1


def test_no_more_images_at_once_than_asked_for(monkeypatch):
    model, seen, real = linear(), [], compiled.scores
    monkeypatch.setattr(
        compiled,
        "scores",
        lambda model: lambda batch: seen.append(len(batch)) or real(model)(batch),
    )
    for metric in METRICS:
        metric(model, some_images(5), some_maps(5), batch_size=2)
    assert set(seen) == {1, 2}


def test_sequential_nested_and_of_any_size():
    inner = linear()
    sequential = keras.Sequential([keras.Input((4, 6, 2)), inner])
    inputs = keras.Input((None, None, 2))
    pooled = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(inputs)))
    images, maps = some_images(), some_maps()
    for metric in METRICS:
        for found, expected in zip(
            metric(sequential, images, maps, 1), metric(inner, images, maps, 1), strict=True
        ):
            close(found, expected)
        metric(pooled, images, maps, 1)
        metric(pooled, some_images(2, (7, 5, 2)), some_maps(2, (7, 5)), 1)


def test_weights_that_change_change_the_curve():
    model, images, maps = linear(), some_images(), some_maps()
    before = deletion(model, images, maps, 1, steps=5).area
    model.layers[-1].kernel.assign(-model.layers[-1].kernel)
    assert np.abs(deletion(model, images, maps, 1, steps=5).area - before).max() > 0.01


@pytest.mark.parametrize("metric", CURVES)
def test_progress_is_shown_when_asked(metric, capfd):
    metric(linear(), some_images(), some_maps(), steps=5)
    assert capfd.readouterr().err == ""
    metric(linear(), some_images(), some_maps(), steps=5, progress=True)
    assert "steps" in capfd.readouterr().err


# errors

ERRORS = {
    "softmax": (
        {"model": lambda: keras.Sequential([linear(), L.Softmax()], name="sure")},
        "expected a model that returns logits, received 'sure', which ends in softmax: explain "
        "models.to_logits(model).",
    ),
    "another size of images": (
        {"images": lambda: some_images(size=(6, 4, 2))},
        "expected images (None, 4, 6, 2), received (4, 6, 4, 2)",
    ),
    "no such class": ({"class_index": lambda: 3}, "expected class_index from 0 to 2, received 3"),
    "no batch": (
        {"batch_size": lambda: 0},
        "expected batch_size as an integer of 1 or more, received 0.",
    ),
    "maps of a layer": (
        {"heatmaps": lambda: some_maps(size=(2, 2))},
        "expected heatmaps (4, 4, 6), as large as the images, received (4, 2, 2): plots.place puts "
        "those of a layer on the image.",
    ),
    "maps of the channels": (
        {"heatmaps": lambda: some_images()},
        "expected heatmaps (4, 4, 6), as large as the images, received (4, 4, 6, 2)",
    ),
    "fewer maps": ({"heatmaps": lambda: some_maps(3)}, "received (3, 4, 6)"),
    "NaN in a map": (
        {"heatmaps": lambda: np.where(np.arange(6) == 1, np.nan, some_maps())},
        "expected finite heatmaps, received NaN or infinite values in map 0 (4 of 4): do not "
        "divide a blank map by its maximum.",
    ),
    "infinity in a map": (
        {"heatmaps": lambda: some_maps() * np.array([1, 1, np.inf, 1])[:, None, None]},
        "in map 2 (1 of 4)",
    ),
    "an unknown baseline": (
        {"baseline": lambda: "black"},
        "expected a baseline 'zeros', 'blur' or 'mean', one value, or an array that broadcasts to "
        "(4, 4, 6, 2), all finite, received 'black'.",
    ),
    "a baseline of another size": (
        {"baseline": lambda: np.zeros((3, 4, 6, 2))},
        "(4, 4, 6, 2), all finite, received an array (3, 4, 6, 2).",
    ),
    "more than the images": (
        {"baseline": lambda: np.zeros((2, 1, 1, 1, 1))},
        "received an array (2, 1, 1, 1, 1).",
    ),
    "no baseline": ({"baseline": lambda: None}, "received None."),
    "NaN as the baseline": ({"baseline": lambda: np.nan}, "received nan."),
    "infinity in the baseline": (
        {"baseline": lambda: np.array([0, np.inf])},
        "all finite, received an array (2,).",
    ),
    "a ragged baseline": ({"baseline": lambda: [[1], [2, 3]]}, "received [[1], [2, 3]]."),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_gets_one_sentence(metric, case):
    changed, sentence = ERRORS[case]
    good = {"model": linear, "images": some_images, "heatmaps": some_maps}
    options = {name: make() for name, make in {**good, **changed}.items()}
    with pytest.raises(ValueError, match=re.escape(sentence)):
        metric(**options)


@pytest.mark.parametrize("metric", CURVES)
def test_steps_are_at_least_one_and_at_most_one_for_each_pixel(metric):
    model, images, maps = linear(), some_images(), some_maps()
    assert metric(model, images, maps, steps=24).fractions.tolist() == (np.arange(25) / 24).tolist()
    assert metric(model, images, maps, steps=1).fractions.tolist() == [0, 1]
    sentence = "expected at most one step for each of 24 pixels, received 25."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        metric(model, images, maps, steps=25)
    for steps in (0, 2.0, True):
        sentence = f"expected steps as an integer of 1 or more, received {steps!r}."
        with pytest.raises(ValueError, match=re.escape(sentence)):
            metric(model, images, maps, steps=steps)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_that_are_no_numbers_are_named(metric):
    inputs = keras.Input((4, 6, 2))
    whole = keras.ops.sum(inputs**2, axis=(1, 2, 3), keepdims=True)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(inputs / whole)), name="shares")
    sentence = (
        "expected scores that are numbers, received NaN from 'shares': try another "
        "baseline, or look for the layer that makes NaN."
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        metric(model, some_images(), 0 * some_maps(), 1)
    assert np.isfinite(metric(model, some_images(), some_maps(), 1, baseline="mean")[0]).all()
