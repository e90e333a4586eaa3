"""Sanity: which weights are undone in which order, and likeness against SciPy and by hand."""

import gc
import random
import re
import weakref

from cam_helpers import cams, models
from cam_helpers.backend import keras, tf
from cam_helpers.sanity import randomize_layers, rank_correlation, ssim
import numpy as np
import pytest
from scipy.ndimage import uniform_filter
from scipy.stats import spearmanr

L = keras.layers
SIZE = (9, 8, 3)


def trained(model, seed=7):
    """The model with weights that no initializer makes."""
    draws = np.random.default_rng(seed)
    model.set_weights([2 + draws.random(weight.shape) for weight in model.get_weights()])
    return model


def plain():
    inputs = keras.Input(SIZE)
    x = L.Conv2D(4, 3, activation="relu", name="first")(inputs)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Conv2D(5, 3, activation="relu", name="last")(L.Dropout(0.5)(x))
    x = L.GlobalAveragePooling2D()(x)
    return trained(keras.Model(inputs, L.Dense(3, name="logits")(x), name="plain"))


def nested():
    body = plain()
    body = keras.Model(body.input, body.get_layer("last").output, name="body")
    parts = [keras.Input(SIZE), L.Rescaling(0.5), body, L.Flatten(), L.Dense(3, name="logits")]
    return trained(keras.Sequential(parts, name="nested"))


def in_a_sequence_in_a_sequence():
    head = keras.Sequential([L.Flatten(), L.Dense(4, name="hidden"), L.Dense(3, name="logits")])
    head.name = "head"
    convolution = L.Conv2D(4, 3, name="first")
    return trained(keras.Sequential([keras.Input(SIZE), convolution, head]))


def branches():
    """Two ways of different length, joined by an operation that is no layer."""
    inputs = keras.Input(SIZE)
    first = L.Conv2D(4, 3, padding="same", name="first")(inputs)
    way = L.Conv2D(4, 3, padding="same", name="way")(L.ReLU()(first))
    joined = keras.ops.relu(way + first) * 2.0
    return trained(keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(joined))))


def shared():
    """A layer and a model that are each called twice."""
    inputs, inner = keras.Input(SIZE), keras.Input((9, 8, 3))
    inside = keras.Model(inner, L.Conv2D(3, 1, name="inside")(inner), name="inner")
    twice = L.Conv2D(3, 3, padding="same", name="twice")
    x = L.Conv2D(3, 3, padding="same", name="between")(twice(inside(inputs)))
    x = twice(inside(x))
    return trained(keras.Model(inputs, L.Dense(3, name="logits")(L.Flatten()(x))))


MODELS = {
    plain: ["logits", "last", "norm", "first"],
    nested: ["logits", "body/last", "body/norm", "body/first"],
    in_a_sequence_in_a_sequence: ["head/logits", "head/hidden", "first"],
    branches: ["logits", "way", "first"],
    shared: ["logits", "twice", "inner/inside", "between"],
}


def found_by(model, path):
    name, _, rest = path.partition("/")
    layer = model.get_layer(name)
    return found_by(layer, rest) if rest else layer


def weights_by(model, paths):
    return {path: found_by(model, path).get_weights() for path in paths}


def same_weights(found, expected):
    return all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def images(count=3, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *SIZE)).astype(np.float32)


# randomised layers


@pytest.mark.parametrize("make", MODELS)
def test_one_layer_more_is_undone_from_the_output_down_and_no_other(make):
    model, paths, done = make(), MODELS[make], []
    before = last = weights_by(model, paths)
    for path, copy in randomize_layers(model):
        done.append(path)
        now = weights_by(copy, paths)
        for each in paths:
            assert same_weights(now[each], before[each]) == (each not in done)
            assert same_weights(now[each], last[each]) == (each != path)
        last = now
    assert done == paths


@pytest.mark.parametrize("make", MODELS)
def test_the_copy_computes_the_same_but_for_what_is_undone(make):
    model = make()
    for path, copy in randomize_layers(model):
        assert np.abs(copy(images()).numpy() - model(images()).numpy()).max() > 0.01
        found_by(copy, path).set_weights(found_by(model, path).get_weights())
        np.testing.assert_array_equal(copy(images()).numpy(), model(images()).numpy())


@pytest.mark.parametrize("make", MODELS)
def test_the_original_stays_as_it_is(make):
    model = make()
    weights, scores, config = model.get_weights(), model(images()).numpy(), str(model.get_config())
    layers = {id(layer) for layer in model._flatten_layers()}
    for _, copy in randomize_layers(model):
        assert not layers & {id(layer) for layer in copy._flatten_layers()}
        copy.set_weights([0 * weight for weight in copy.get_weights()])
    assert same_weights(model.get_weights(), weights)
    assert str(model.get_config()) == config
    np.testing.assert_array_equal(model(images()).numpy(), scores)


def test_weights_are_as_at_the_start_of_training():
    *_, (_, copy) = randomize_layers(plain())
    for name, fan in [("first", 3 * 9 + 4 * 9), ("last", 4 * 9 + 5 * 9), ("logits", 5 + 3)]:
        kernel, bias = copy.get_layer(name).get_weights()
        limit = np.sqrt(6 / fan)  # Glorot's
        assert 0.6 * limit < np.abs(kernel).max() <= limit
        assert not bias.any()
    gamma, beta, mean, variance = copy.get_layer("norm").get_weights()
    assert [gamma.tolist(), beta.tolist()] == [[1] * 4, [0] * 4]
    assert [mean.tolist(), variance.tolist()] == [[0] * 4, [1] * 4]


def test_the_weights_that_training_began_with_do_not_come_back():
    """As they would with the dice of ``set_random_seed``, and a trained network resembles them."""
    keras.utils.set_random_seed(0)
    model = models.fashion_cnn()
    *_, (_, last) = randomize_layers(model, seed=0)
    for mine, anew in zip(model.layers, last.layers, strict=True):
        if hasattr(mine, "kernel"):
            pair = (np.ravel(layer.kernel) for layer in (mine, anew))
            assert abs(np.corrcoef(*pair)[0, 1]) < 0.2


def test_weights_go_by_the_seed_alone():
    def last_weights(**options):
        return [list(randomize_layers(model, **options))[-1][1].get_weights() for model in both]

    both = plain(), nested()
    expected = last_weights()
    keras.utils.set_random_seed(123)
    assert all(map(same_weights, last_weights(), expected))
    assert all(map(same_weights, last_weights(seed=0), expected))
    keras.utils.set_random_seed(5)
    other = last_weights(seed=1)
    assert not any(map(same_weights, other, expected))
    assert all(map(same_weights, last_weights(seed=1), other))
    kernels = [weight for weight in expected[0] if weight.ndim > 1]
    assert len({round(float(kernel.std()), 6) for kernel in kernels}) == len(kernels)


def test_pythons_dice_lie_as_they_lay_even_after_an_error():
    model, bad = plain(), of_a_layer_that_cannot_be_copied()
    keras.utils.set_random_seed(4)
    state = random.getstate()
    expected = tf.random.uniform((3,)).numpy()
    tf.random.set_seed(4)
    for _ in randomize_layers(model):
        assert random.getstate() == state
    with pytest.raises(TypeError):
        next(randomize_layers(bad))
    assert random.getstate() == state
    np.testing.assert_array_equal(tf.random.uniform((3,)), expected)  # and so TensorFlow's


def test_it_is_the_same_copy_each_time_and_goes_when_dropped():
    model = branches()
    copies = [copy for _, copy in randomize_layers(model)]
    assert len({id(copy) for copy in copies}) == 1
    held = weakref.ref(copies[0]), weakref.ref(copies[0].get_layer("first"))
    del copies
    gc.collect()
    assert [each() for each in held] == [None, None]


@pytest.mark.parametrize("nested", [False, True])
def test_statistics_of_the_data_stay(nested):
    data, first = 5 + 3 * images(20), L.Normalization(name="data")
    first.adapt(data)
    if nested:
        first = keras.Sequential([keras.Input(SIZE), first])
    layers = [keras.Input(SIZE), first, L.Flatten(), L.Dense(3, name="logits")]
    model = keras.Sequential(layers)
    scores = model(data).numpy()
    ((path, copy),) = randomize_layers(model)
    assert path == "logits"
    copy.get_layer("logits").set_weights(model.get_layer("logits").get_weights())
    np.testing.assert_array_equal(copy(data).numpy(), scores)
    np.testing.assert_array_equal(model(data).numpy(), scores)


@pytest.mark.parametrize("nested", [False, True])
def test_a_lambda_and_a_loss_of_ones_own_are_no_hindrance(nested):
    inputs, thrice = keras.Input(SIZE), L.Lambda(lambda x: 3 * x, name="thrice")
    if nested:
        thrice = keras.Model(inputs, thrice(inputs))
    x = L.Flatten()(thrice(inputs))
    model = keras.Model(inputs, L.Dense(3, name="logits")(x))
    model.compile("sgd", loss=lambda true, found: tf.reduce_mean(found - true))
    ((path, copy),) = randomize_layers(model)
    assert path == "logits"
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(images()).numpy(), model(images()).numpy())
    assert model.compiled


def of_a_layer_that_cannot_be_copied():
    class Own(L.Layer):
        def __init__(self):
            super().__init__()

        def build(self, shape):
            self.add_weight(shape=(1,))

        def call(self, x):
            return x

    inputs = keras.Input(SIZE)
    return keras.Model(inputs, Own()(inputs))


def test_a_subclassed_model_is_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="expected a functional model, or a Sequential one with"):
        next(randomize_layers(Subclassed()))


def test_the_fashion_network_from_its_last_layer_to_its_first():
    model = models.to_logits(models.fashion_cnn())
    numbers = [name for number in range(8, 0, -1) for name in (f"norm{number}", f"conv{number}")]
    numbers[1] = "final"
    assert [path for path, _ in randomize_layers(model)] == ["Dense_10nb_logits", *numbers]


def test_a_map_changes_with_each_layer_that_it_depends_on():
    model = plain()
    before = cams.grad_cam(model, images(), 1, layer="first")
    for _, copy in randomize_layers(model):
        after = cams.grad_cam(copy, images(), 1, layer="first")
        assert not np.array_equal(after, before)


# rank correlation


def test_rank_correlation_agrees_with_scipy():
    draws = np.random.default_rng(0)
    one, other = draws.normal(size=(2, 6, 5, 7))
    other[:3] += one[:3]
    for digits in (9, 0):  # without ties, and with many
        pair = one.round(digits), other.round(digits)
        expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(*pair, strict=True)]
        found = rank_correlation(*pair)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert found.dtype == np.float64
    for shape in [(6, 35), (6, 5, 7, 1)]:
        np.testing.assert_array_equal(rank_correlation(*(x.reshape(shape) for x in pair)), found)


def test_rank_correlation_is_1_for_the_same_order_and_minus_1_for_the_inverse():
    maps = np.random.default_rng(0).normal(size=(3, 5, 7))
    assert rank_correlation(maps, maps).tolist() == [1] * 3
    assert rank_correlation(maps, np.exp(3 * maps) - 7).tolist() == [1] * 3
    assert rank_correlation(maps, -maps).tolist() == [-1] * 3


def test_rank_correlation_is_nan_where_a_map_has_no_order_and_only_there():
    maps = np.random.default_rng(0).normal(size=(4, 37, 41))
    others = maps.copy()
    maps[0], others[1] = 0.1, -1e9
    maps[2], others[2] = 1 / 3, 2 / 3
    assert np.isnan(rank_correlation(maps, others)).tolist() == [True, True, True, False]
    maps[0, 0, 0] = np.nextafter(0.1, 1)  # one pixel that is hardly higher
    assert np.isfinite(rank_correlation(maps, others)[0])


# structural similarity


def similarity_by_hand(one, other):
    """Equation 13 of the paper in windows of 7 × 7, averaged where they lie inside."""

    def mean(values):
        return uniform_filter(values, 7)[3:-3, 3:-3]

    samples = 49 / 48  # of variances: divided by the number less 1
    means = mean(one), mean(other)
    variances = [samples * (mean(x * x) - m**2) for x, m in zip((one, other), means, strict=True)]
    covariance = samples * (mean(one * other) - means[0] * means[1])
    above = (2 * means[0] * means[1] + 0.01**2) * (2 * covariance + 0.03**2)
    below = (means[0] ** 2 + means[1] ** 2 + 0.01**2) * (sum(variances) + 0.03**2)
    return (above / below).mean()


def test_ssim_agrees_with_its_definition():
    one, other = np.random.default_rng(0).normal(size=(2, 4, 9, 12))
    other[:2] += 2 * one[:2]
    pair = [np.maximum(x, 0) / x.max(axis=(1, 2), keepdims=True) for x in (one, other)]
    expected = [similarity_by_hand(*each) for each in zip(*pair, strict=True)]
    found = ssim(one, 100 * other)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found.dtype == np.float64


def test_ssim_is_1_for_equal_maps_whatever_their_height():
    maps = np.random.default_rng(0).normal(size=(3, 9, 12))
    maps[2] = 0
    np.testing.assert_allclose(ssim(maps, maps), 1)
    np.testing.assert_allclose(ssim(maps, 1e6 * maps), 1)
    assert (ssim(maps[:2], maps[1::-1]) < 0.5).all()
    assert (ssim(maps[:2], 0 * maps[:2]) < 0.5).all()


# what comes in


@pytest.mark.parametrize("metric", [rank_correlation, ssim])
def test_other_kinds_of_numbers_and_nothing_changes(metric):
    one, other = np.random.default_rng(0).normal(size=(2, 3, 9, 12)).astype(np.float16)
    expected = metric(one.astype(np.float64), other.astype(np.float64))
    kept = one.copy()
    one.flags.writeable = False
    for kind in (np.asarray, lambda x: x.astype(np.float32), np.ndarray.tolist):
        np.testing.assert_array_equal(metric(kind(one), kind(other)), expected)
    np.testing.assert_array_equal(one, kept)
    for index in range(3):
        alone = metric(one[index : index + 1], other[index : index + 1])
        np.testing.assert_array_equal(alone, expected[index : index + 1])


@pytest.mark.parametrize("metric", [rank_correlation, ssim])
@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (
            [(2, 9, 12), (2, 12, 9)],
            "expected two batches of maps (n, ...) of the same shape, received (2, 9, 12) and "
            "(2, 12, 9).",
        ),
        ([(9,), (9,)], "received (9,) and (9,)."),
        ([(0, 9, 9), (0, 9, 9)], "received (0, 9, 9) and (0, 9, 9)."),
    ],
)
def test_maps_of_different_shapes_are_refused(metric, shapes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        metric(*map(np.ones, shapes))


@pytest.mark.parametrize("metric", [rank_correlation, ssim])
def test_values_that_are_not_finite_are_named(metric):
    good = np.random.default_rng(0).random((3, 9, 12))
    bad = good.copy()
    bad[1, 0, 0] = np.nan
    sentence = "expected finite heatmaps, received NaN or infinite values in map 1 (1 of 3)"
    for pair in [(good, bad), (bad, good)]:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            metric(*pair)


@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 9, 6), (2, 81), (1, 2, 9, 9)])
def test_ssim_takes_maps_that_a_window_fits_into(shape):
    sentence = (
        f"expected heatmaps (n, height, width) of at least 7 × 7 pixels, received {shape}: place "
        "them on the image first."
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ssim(np.ones(shape), np.ones(shape))
    ssim(np.ones((1, 7, 7)), np.ones((1, 7, 7)))


def test_a_copy_with_statistics_goes_when_dropped():
    inputs = keras.Input(SIZE)
    scaled = L.Normalization(mean=1.0, variance=4.0, name="scaled")
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(scaled(inputs))))
    adapted = L.Normalization(name="adapted")
    adapted.adapt(images())
    second = keras.Model(inputs, L.Dense(2)(L.Flatten()(adapted(inputs))))
    for each in (model, second):
        ((_, copy),) = randomize_layers(each)
        np.testing.assert_allclose(copy.layers[1](images()), each.layers[1](images()), rtol=1e-6)
        left = weakref.ref(copy)
        del copy
        gc.collect()
        assert left() is None
        assert len(each.layers[1]._inbound_nodes) == 1


def test_a_seed_of_an_initializer_does_not_bring_the_first_weights_back():
    inputs = keras.Input(SIZE)
    first = L.Conv2D(4, 3, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(first(inputs))))
    *_, (_, copy) = randomize_layers(model)
    assert abs(np.corrcoef(np.ravel(copy.layers[1].kernel), np.ravel(first.kernel))[0, 1]) < 0.3
