"""Each known cause: a model, images or layer broken in one way get it, and no other."""

import gc
from pathlib import Path
import subprocess
import sys
import weakref

import cam_helpers
from cam_helpers import diagnosis, layers, models, photos, preparation
from cam_helpers.backend import keras, tf
from cam_helpers.symptoms import SYMPTOMS, Cause
import numpy as np
import pytest
import skimage.data

L = keras.layers
SIZE = (12, 10, 3)


def images(count=4, seed=1, size=SIZE):
    """Bright spots on dark, redder than blue."""
    rng = np.random.default_rng(seed)
    pixels = rng.exponential(size=(count, *size)) * np.linspace(0.4, 0.1, size[2])
    return np.minimum(pixels, 1).astype(np.float32)


def network(*head, classes=4, first=None, last=None, middle=(), normalised=True, seed=0):
    """Two convolutions with a batch normalisation that remembers ``images``, and a head."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input(SIZE)
    steps = [first or L.Conv2D(8, 3, activation="relu", name="first")]
    steps += [L.BatchNormalization(name="norm")] if normalised else []
    steps += [*middle, last or L.Conv2D(6, 3, activation="relu", name="last")]
    for layer in [*steps, *(head or [L.GlobalAveragePooling2D()])]:
        x = layer(x)
    model = keras.Model(inputs, L.Dense(classes, name="logits")(x), name="network")
    if normalised:
        maps = layers.cut(model, ["first"])(images(64))
        maps = tf.nest.flatten(maps)[0]
        model.get_layer("norm").moving_mean.assign(np.mean(maps, axis=(0, 1, 2)))
        model.get_layer("norm").moving_variance.assign(np.var(maps, axis=(0, 1, 2)))
    return model


def names(*args, **options):
    return [cause.name for cause in diagnosis.causes(*args, **options)]


def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return network()
    finally:
        keras.config.set_dtype_policy("float32")


HEALTHY = {
    "pooled": network,
    "flattened": lambda: network(L.Flatten(), seed=3),
    "not trained": lambda: network(normalised=False),
    "not trained, normalised": lambda: network(
        normalised=False, middle=[L.BatchNormalization(name="fresh")]
    ),
    "one logit": lambda: network(classes=1),
    "two classes": lambda: network(classes=2),
    "Sequential": lambda: keras.Sequential([keras.Input(SIZE), network()]),
    "half precision": half_precision,
    "dropout": lambda: network(middle=[L.Dropout(0.5), L.GaussianNoise(1.0)]),
    "augmentation": lambda: keras.Sequential(
        [keras.Input(SIZE), keras.Sequential([L.RandomFlip(), L.RandomRotation(0.2)]), network()]
    ),
    "strided": lambda: network(last=L.Conv2D(6, 2, 2, padding="same", name="last")),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_nothing_is_named_where_nothing_is_wrong(case):
    model = HEALTHY[case]()
    assert diagnosis.causes(model, images()) == []
    assert diagnosis.causes(model, images(1), 1 if case == "pooled" else None) == []


def test_what_is_printed(capsys):
    cam_helpers.diagnose(network(), images())
    assert capsys.readouterr().out == "None of the 18 known causes was found.\n"
    broken = ending(L.Softmax())
    diagnosis.diagnose(broken, images(), layer="last")
    softmax, nested = diagnosis.causes(broken, images(), layer="last")[::-1]
    assert capsys.readouterr().out == f"{nested}\n{softmax}\n"
    assert str(nested) == (
        "Error 'Graph disconnected' or 'No such layer': 'last' lies at 'network/last'. The layer "
        "belongs to a nested model, which has a graph of its own. Way out: layer='network/last'."
    )


class Through(L.Layer):
    """A step of the reader's own, with no name that a helper knows."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


class AlwaysDropout(L.Dropout):
    def call(self, x, training=False):
        return super().call(x, training=True)


def ending(*layers_):
    return keras.Sequential([keras.Input(SIZE), network(), *layers_], name="ending")


def with_weights(change, layer="last"):
    model = network()
    model.get_layer(layer).set_weights([change(w) for w in model.get_layer(layer).get_weights()])
    return model


def changed_behind_your_back():
    model = ending(L.Activation("softmax", name="last_step"))
    model.predict(images(), verbose=0)
    model.get_layer("last_step").activation = keras.activations.linear
    return model


def batch_statistics():
    model = network()
    x = model.get_layer("norm").output
    x = L.BatchNormalization(name="of_the_batch")(x, training=True)
    x = L.GlobalAveragePooling2D()(L.Conv2D(6, 3, activation="relu")(x))
    return keras.Model(model.input, L.Dense(4)(x))


def trained_with_logits():
    model = ending(L.Softmax())
    model.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    return model


def two_outputs():
    model = network()
    return keras.Model(model.input, [model.output, model.get_layer("last").output], name="two")


def first_image_nan():
    batch = images()
    batch[0, 3, 3] = np.nan
    return batch


# what is wrong -> (the one cause that is named, words of what was measured)
BROKEN = {
    "softmax": ({"model": lambda: ending(L.Softmax())}, "softmax", "ends in softmax, which lets"),
    "sigmoid": (
        {"model": lambda: keras.Sequential([network(classes=1), L.Activation("sigmoid")])},
        "softmax",
        "ends in sigmoid, which lets",
    ),
    "hidden softmax": (
        {"model": lambda: ending(Through(lambda x: keras.ops.softmax(x)))},
        "softmax",
        "add up to 1",
    ),
    "dead maps": (
        {"model": lambda: with_weights(lambda w: 0 * w)},
        "dead",
        "every map of 'last' is constant in 4 of 4 images",
    ),
    "dead gradient": (
        {"model": lambda: with_weights(lambda w: 0 * w, "logits")},
        "dead",
        "the gradient at 'last' is 0 in 4 of 4 images",
    ),
    "stopped gradient": (
        {"model": lambda: network(Through(keras.ops.stop_gradient), L.GlobalAveragePooling2D())}
        | {"layer": lambda: "last"},
        "dead",
        "stops gradients",
    ),
    "layer 1×1": (
        {"model": lambda: network(L.GlobalAveragePooling2D(keepdims=True, name="one"), L.Flatten())}
        | {"layer": lambda: "one"},
        "place",
        "'one' has shape (None, 1, 1, 6)",
    ),
    "layer of rank 2": ({"layer": lambda: "logits"}, "place", "'logits' has shape (None, 4)"),
    "no layer at all": (
        {"model": lambda: keras.Sequential([keras.Input(SIZE), L.Flatten(), L.Dense(3)])},
        "place",
        "there is no map to explain",
    ),
    "NaN in an image": ({"images": first_image_nan}, "nan", "in image 0 (1 of 4 images)"),
    "NaN in all images": ({"images": lambda: images() * np.nan}, "nan", "(4 of 4 images)"),
    "NaN in weights": (
        {"model": lambda: with_weights(lambda w: w * np.nan)},
        "nan",
        "weights are not finite, the first of 2 is 'last/kernel'",
    ),
    "NaN in activations": (
        {"model": lambda: network(Through(lambda x: x / 0), L.GlobalAveragePooling2D())},
        "nan",
        "not finite is that of 'through",
    ),
    "NaN in gradients": (
        {
            "model": lambda: network(
                Through(lambda x: tf.sqrt(x - tf.stop_gradient(x))), L.GlobalAveragePooling2D()
            ),
            "layer": lambda: "last",
        },
        "nan",
        "the gradient at 'last' is not finite",
    ),
    "bottleneck": (
        {"model": lambda: network(L.Flatten(), L.Dense(1, name="bottleneck"))},
        "same",
        "the maps of 3 classes correlate by 1.000 or more",
    ),
    "equal classes": (
        {"model": lambda: with_weights(lambda w: 0 * w + w[..., :1], "logits")},
        "same",
        "correlate by 1.000",
    ),
    "stride above kernel": (
        {"model": lambda: network(first=L.Conv2D(8, 1, 2, activation="relu", name="first"))},
        "checkerboard",
        "75% of the pixels get no gradient, 'first' jumps over them",
    ),
    "resized": (
        {"model": lambda: network(middle=[L.Cropping2D(((4, 0), (0, 0)))])}
        | {"placement": lambda: "resize"},
        "shifted",
        "cells of 'last'",
    ),
    "BGR": (
        {"images": lambda: images()[..., ::-1].copy()},
        "channels",
        "as images[..., ::-1] they",
    ),
    "too large": ({"images": lambda: images() * 255}, "range", "as images / 255 they fit"),
    "too small": ({"images": lambda: images() / 255}, "range", "as images * 255 they fit"),
    "rescaled before": (
        {"model": lambda: keras.Sequential([keras.Input(SIZE), L.Rescaling(1 / 255), network()])},
        "range",
        "to 1, but 'rescaling",
    ),
    "preprocessed twice": (
        {"images": lambda: images() / 127.5 - 1},
        "range",
        "as (images + 1) * 127.5 they fit",
    ),
    "of -1 to 1": ({"images": lambda: images() * 2 - 1}, "range", "as (images + 1) / 2 they fit"),
    "inverted": ({"images": lambda: 1 - images()}, "range", "images.min() - images they fit"),
    "no evidence": (
        {"model": lambda: with_weights(lambda w: -np.abs(w), "logits")},
        "evidence",
        "the map of 'last' is 0 in 4 of 4 images",
    ),
    "dropout": (
        {"model": lambda: network(AlwaysDropout(0.5), L.GlobalAveragePooling2D())},
        "random",
        "two calls with the same images differ by",
    ),
    "statistics of the batch": (
        {"model": batch_statistics},
        "batch",
        "the first image alone and in a batch differ by",
    ),
    "changed": (
        {"model": changed_behind_your_back},
        "changed",
        "model.predict(images) and model(images) differ by",
    ),
    "two softmaxes": (
        {"model": lambda: ending(L.Softmax(), L.Activation("softmax"))},
        "twice",
        "ends in softmax of softmax, and no probability can exceed 0.475",
    ),
    "softmax in the loss": ({"model": trained_with_logits}, "twice", "from_logits=True"),
    "nested layer": (
        {"model": lambda: ending(L.ReLU()), "layer": lambda: "last"},
        "nested",
        "'last' lies at 'network/last'",
    ),
    "misspelt layer": (
        {"layer": lambda: "lats"},
        "layer",
        "'lats' is not in 'network', whose nearest are 'last', ",
    ),
    "layer object": (
        {"layer": lambda: network().get_layer("last")},
        "layer",
        "a name is expected, and Conv2D was given",
    ),
    "memory": ({"memory": lambda: 8000}, "memory", "the 6 masks of one image take"),
    "one image": (
        {"images": lambda: images()[0]},
        "request",
        "images[np.newaxis] makes one image a batch",
    ),
    "integers": (
        {
            "model": lambda: network(normalised=False),
            "images": lambda: (100 * np.abs(images())).astype(np.uint8),
        },
        "request",
        "expected float images as 'network' wants them, received uint8",
    ),
    "channels first": (
        {"images": lambda: np.moveaxis(images(), -1, 1)},
        "request",
        "np.moveaxis(images, 1, -1) puts channels last",
    ),
    "another size": ({"images": lambda: images()[:, 1:]}, "request", "received (4, 11, 10, 3)"),
    "no images": ({"images": lambda: images()[:0]}, "request", "received an empty batch"),
    "words": ({"images": lambda: "cat.png"}, "request", "received text"),
    "class out of range": (
        {"class_index": lambda: 4},
        "request",
        "expected class_index from 0 to 3, received 4",
    ),
    "no model": ({"model": lambda: "VGG16"}, "request", "expected a Keras model, received str"),
    "tanh": ({"model": lambda: ending(L.Activation("tanh"))}, "request", "ends in tanh"),
    "two outputs": (
        {"model": two_outputs},
        "request",
        "expected a model with one output, received 'two' with 2",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_in_one_way_has_that_cause_alone(case):
    changes, name, measured = BROKEN[case]
    asked = {"model": network, "images": images, **changes}
    asked = {each: make() for each, make in asked.items()}
    known = diagnosis.causes(**asked)
    assert [cause.name for cause in known] == [name]
    assert measured in known[0].measured
    said = str(known[0])
    assert said.startswith(SYMPTOMS[name].symptom)
    assert ". Way out: " in said
    assert "\n" not in said


def test_every_row_has_a_broken_case():
    assert {name for _, name, _ in BROKEN.values()} == set(SYMPTOMS)


def test_pixels_up_to_255_are_right_for_a_model_that_rescales():
    model = keras.Sequential([keras.Input(SIZE), L.Rescaling(1 / 255, name="to_1"), network()])
    assert diagnosis.causes(model, 255 * images()) == []
    (cause,) = diagnosis.causes(model, images())
    assert cause.measured.endswith("but 'to_1' divides by 255")


def test_images_left_out_take_their_classes_along():
    assert names(network(), first_image_nan(), [0, 1, 2, 3]) == ["nan"]


def test_the_gradient_left_by_a_softmax_is_that_of_the_probability():
    model = ending(L.Softmax())
    logits = tf.constant(network()(images(), training=False))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        probability = tf.nn.softmax(logits)[:, 2]
    left = np.median(tape.gradient(probability, logits).numpy()[:, 2])
    (cause,) = diagnosis.causes(model, images(), 2)
    assert f"lets {left:.0e} of the gradient pass" in cause.measured


def test_one_sigmoid_lets_the_gradient_of_the_probability_pass():
    inner = network(classes=1)
    inner.get_layer("logits").bias.assign([3.0])
    model = keras.Sequential([inner, L.Activation("sigmoid")])
    p = np.median(model(images(1)).numpy().astype(float))
    (cause,) = diagnosis.causes(model, images(1), 1)
    assert f"lets {p * (1 - p):.0e} of" in cause.measured


def test_nothing_of_the_caller_changes():
    model, batch = network(AlwaysDropout(0.5), L.GlobalAveragePooling2D()), images()
    x = L.BatchNormalization(name="of_the_batch")(model.output, training=True)
    model = keras.Model(model.input, x)
    weights, kept = [np.array(v) for v in model.variables], batch.copy()
    state = [np.array(v) for v in model.non_trainable_variables]
    assert "random" in names(model, batch)
    for before, now in zip(weights, model.variables, strict=True):
        np.testing.assert_array_equal(before, now)
    for before, now in zip(state, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, now)
    np.testing.assert_array_equal(batch, kept)
    assert model.predict_function is None


def test_predict_is_not_called_unless_it_was_before(monkeypatch):
    model, calls = network(), []
    monkeypatch.setattr(keras.Model, "predict", lambda *args, **options: calls.append(args))
    diagnosis.causes(model, images())
    assert model.predict_function is None
    assert not calls


def test_a_dropped_model_is_freed():
    model = network()
    diagnosis.diagnose(model, images())
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None


def test_what_a_broken_model_raises_is_named():
    def fail(x):
        if x.shape[0] is not None:
            raise RuntimeError("no such cable\nat line 1")
        return x

    (cause,) = diagnosis.causes(network(Through(fail), L.GlobalAveragePooling2D()), images())
    assert cause.name == "request"
    assert "no such cable" in cause.measured


def test_vgg_is_known_by_its_name():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, name="block1_conv1")(inputs))
    vgg = keras.Model(inputs, L.Dense(1000)(x))
    batch = np.random.default_rng(0).uniform(-120, 140, (2, 8, 8, 3)).astype(np.float32)
    assert preparation.better_prepared(vgg, batch) is None
    for wrong in (batch / 255, batch + 120, batch[..., ::-1] - 110):
        row, measured = preparation.better_prepared(vgg, wrong)
        assert row == "range"
        assert "VGG takes blue" in measured


def test_one_image_is_evidence_of_its_scale_only():
    model = network()
    twice = images(1) / 127.5 - 1
    assert preparation.better_prepared(model, twice)[0] == "range"
    for change in (lambda x: x[..., ::-1].copy(), lambda x: x * 2 - 1, lambda x: 1 - x):
        wrong = change(images())
        assert preparation.better_prepared(model, wrong)
        for alone in (wrong[:1], wrong[[0, 0, 0, 0]]):
            assert preparation.better_prepared(model, alone) is None


def test_a_network_whose_averages_lag_raises_no_alarm():
    model = network()
    norm = model.get_layer("norm")
    batch = images(8)
    for kept in (0.9, 0.5, 0.3):  # of 0 and 1, which the averages started from
        fresh = network()
        fresh.get_layer("norm").moving_mean.assign((1 - kept) * norm.moving_mean)
        fresh.get_layer("norm").moving_variance.assign((1 - kept) * norm.moving_variance + kept)
        for some in (batch, batch[:1], batch[1:2]):
            assert preparation.better_prepared(fresh, some) is None
        assert preparation.better_prepared(fresh, 255 * batch)[0] == "range"


def test_the_last_step_between_swapped_and_inverted_is_where_the_network_is_surer(mobilenet):
    samples = [photos.sample_photo(name) for name in photos.SAMPLES]
    batch = mobilenet.preprocess(np.stack([photos.fit(each, (224, 224)) for each in samples]))
    assert preparation.better_prepared(mobilenet.model, batch) is None
    for row, wrong in {
        "channels": [batch[..., ::-1]],
        "range": [-batch],
    }.items():
        for each in wrong:
            assert preparation.better_prepared(mobilenet.model, each)[0] == row
    clock = photos.load_photo(Path(skimage.data.__file__).parent / "clock_motion.png")
    clock = mobilenet.preprocess(photos.fit(clock, (224, 224))[np.newaxis])
    for alone in (clock, batch[3:, ..., ::-1]):
        assert preparation.better_prepared(mobilenet.model, alone) is None


def test_the_fashion_network(fashion_mnist):
    model = models.load_fashion_cnn()
    logits, batch = models.to_logits(model), fashion_mnist.test_images
    assert names(model, batch[:8]) == ["softmax"]
    assert names(logits, batch[:8]) == []
    assert names(logits, batch[[1]]) == []
    assert names(logits, batch[[19]], 0, "conv6") == ["evidence"]
    assert names(logits, batch[:1], layer="final", placement="resize") == ["shifted"]
    for wrong in (batch * 255, batch / 255, batch * 2 - 1, 1 - batch):
        assert names(logits, wrong[:8]) == ["range"]


def test_the_package_imports_without_tensorflow():
    look = "import sys, cam_helpers; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
    with pytest.raises(AttributeError, match="module 'cam_helpers' has no attribute 'diagnos'"):
        cam_helpers.diagnos  # noqa: B018


def test_a_row_without_measurement_is_complete():
    for name, row in SYMPTOMS.items():
        assert row == Cause(name, row.symptom, row.cause, row.cure)
        assert row.cause.endswith(".")
        assert row.cure.endswith(".")
        assert not row.symptom.endswith(".")


def test_a_sigmoid_for_each_label_is_measured_by_itself():
    inputs = keras.Input((12, 12, 3))
    x = L.Conv2D(4, 3, activation="relu")(inputs)
    sure = keras.initializers.Constant(8.0)
    head = L.Dense(3, "sigmoid", kernel_initializer="zeros", bias_initializer=sure)
    model = keras.Model(inputs, head(L.GlobalAveragePooling2D()(x)))
    pixels = np.random.default_rng(0).random((4, 12, 12, 3), np.float32)
    softmax = next(c for c in diagnosis.causes(model, pixels) if c.name == "softmax")
    assert "lets 3e-04 of the gradient pass" in softmax.measured  # p (1 - p) at a logit of 8


def test_images_of_another_size_are_named_once_even_with_nan_or_whole_numbers():
    model = models.fashion_cnn()
    broken = np.full((2, 32, 32, 1), np.nan, np.float32)
    for pixels in (broken, np.zeros((2, 32, 32, 1), np.uint8)):
        named = [c.name for c in diagnosis.causes(model, pixels)]
        assert named == ["request"]


def test_a_misspelt_placement_is_named():
    model, pixels = models.fashion_cnn(), np.random.default_rng(0).random((4, 28, 28, 1))
    named = diagnosis.causes(models.to_logits(model), pixels, placement="rezise")
    assert [c.name for c in named] == ["request"]
    assert "placement is 'rezise'" in str(named[0])
