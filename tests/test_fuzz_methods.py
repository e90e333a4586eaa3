"""Every method with arrays and requests that nobody promised to be good.

What comes back is what the text promises, finite; else one sentence says why not.
"""

import collections
import functools
import warnings

from cam_helpers import (
    activations,
    cams,
    deconvolution,
    faithfulness,
    filters,
    gradients,
    localization,
    methods,
    pictures,
    placement,
    plots,
    receptive_field,
    sanity,
)
from cam_helpers.backend import keras
from fuzzing import cases, in_time
import hypothesis
from hypothesis import strategies as st
from matplotlib.figure import Figure
import numpy as np

L = keras.layers
SIZE = {"grey": (12, 10, 1), "any": (None, None, 3), "pooled": (9, 9, 2)}
LAYER = {"grey": "last", "any": "inner/last", "pooled": "last"}
REFUSED = (ValueError, TypeError, OSError)


@functools.cache
def network(kind):
    """A tiny network, the same one each time, so that it is compiled once."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input(SIZE[kind])
    if kind == "any":  # of images of any size, in a nested model; one logit
        within = keras.Input(SIZE[kind])
        x = L.Conv2D(4, 3, activation="relu", name="first")(within)
        x = L.Conv2D(5, 3, strides=2, activation="relu", name="last")(x)
        x = keras.Model(within, x, name="inner")(inputs)
        return keras.Model(inputs, L.Dense(1)(L.GlobalMaxPooling2D()(x)), name="any")
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="first")(x)
    x = L.MaxPooling2D(2)(x) if kind == "grey" else L.BatchNormalization()(x)
    x = L.Conv2D(5, 2, activation="relu", name="last")(x)
    x = L.Flatten()(x) if kind == "grey" else L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(4, name="scores")(x), name=kind)


def cells(kind, shape):
    """The height and width of the maps of ``LAYER`` for images of a shape."""
    return {"grey": (5, 4), "pooled": (8, 8), "any": [(n - 3) // 2 for n in shape[1:3]]}[kind]


# what is drawn

DTYPES = "f4 f8 f2 >f4 >f8 g i1 u1 i4 u8 ? c8 c16 U4 S3 O M8[s] m8[s]"
VALUES = (0, -1, 255, np.nan, np.inf, -np.inf, 1e-42, 65504, 3e18, 3e38, -3.4e38, 1e300, -1e308)
OTHERS = (
    None,
    "cat.jpg",
    b"\xff\xd8",
    3,
    True,
    2.5,
    {},
    {"a": 1},
    set(),
    object(),
    iter([1]),
    [[1, 2], [3]],
    [np.zeros((4, 4, 1)), np.zeros((4, 5, 1))],
    [np.zeros((4, 4, 1)), np.zeros((3, 4, 2))],
    [],
    [[[[10**400]]]],
    ["a", 1, None],
    np.float32,
    len,
    range(5),
    1 + 2j,
)


class Odd(np.ndarray):
    """A sub-class, as libraries make them."""


@st.composite
def arrays(draw, usual):
    """An array of the usual shape or another, of any dtype and values; or something else."""
    if not draw(st.integers(0, 11)):
        return draw(st.sampled_from(OTHERS))
    usual = [draw(size) if isinstance(size, st.SearchStrategy) else size for size in usual]
    near = st.permutations(usual) | st.just(usual[1:]) | st.just([1, *usual])
    any_shape = st.lists(st.integers(0, 6), max_size=5)
    shape = draw(st.one_of(*[st.just(usual)] * 6, near, any_shape))
    dtype = draw(st.one_of(*[st.just("f4")] * 4, st.just("f8"), st.sampled_from(DTYPES.split())))
    values = np.asarray(np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape))
    if draw(st.booleans()) and values.size:
        values *= draw(st.sampled_from([1, 1, 0, 1e-30, 1e4, 1e12, 1e25, 1e37, 1e200]))
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, values.size - 1))
            values.flat[at] = draw(st.sampled_from(VALUES))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.asarray(np.nan_to_num(values, posinf=9, neginf=9)).astype(np.int64).astype(dtype)
        if array.dtype.kind in "fc":
            array = values.astype(dtype)
    return draw(st.sampled_from([np.array] * 4 + LAYOUTS))(array)


LAYOUTS = [
    np.asfortranarray,
    lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    lambda array: array[::-1] if array.ndim else array,
    lambda array: array.view(Odd),
    lambda array: np.ma.masked_array(array),
    lambda array: np.broadcast_to(array[:1], array.shape) if array.ndim and len(array) else array,
    lambda array: array.tolist(),
    lambda array: tuple(array) if array.ndim else array,
    lambda array: array.setflags(write=False) or array,
]


@st.composite
def pictures_of(draw, kind):
    """Images for a network, often such as it takes."""
    return draw(arrays([st.integers(1, 3), *(s or st.integers(1, 14) for s in SIZE[kind])]))


def is_good(array, shape):
    """Whether nothing can be said against an array: then it must not be refused."""
    return (
        isinstance(array, np.ndarray)
        and array.dtype.kind == "f"
        and array.ndim == len(shape)
        and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
        and array.size > 0
        and bool(np.isfinite(array).all() and np.abs(array).max() < 1e4)
    )


def frozen(value):
    """What stays the same while an input is not written to."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tobytes(), value.shape, str(value.dtype)
    return repr(value)


def answer(call, *given, **options):
    """What a call returns, or None if it refuses in one line. No input changes, nothing warns."""
    before = [frozen(each) for each in (given, options)]
    before += [frozen(each) for each in given]
    result = None
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            result = call(*given, **options)
        except REFUSED as error:
            if type(error) is TimeoutError:
                raise
            said = str(error)
            hypothesis.event(said[:35])
            if len(said.splitlines()) != 1 or len(said) > 700:
                raise
    after = [frozen(each) for each in (given, options)] + [frozen(each) for each in given]
    assert after == before
    return result


def is_map(found, shape, least=-np.inf):
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    assert found.shape == tuple(shape)
    assert np.isfinite(found).all()
    assert found.min() >= least


# images

CAMS = (cams.grad_cam, cams.grad_cam_plus_plus, cams.hires_cam, cams.layer_cam, cams.score_cam)
AT_THE_PIXELS = (
    gradients.saliency,
    gradients.guided_backprop,
    gradients.deconvnet,
    functools.partial(gradients.smooth_grad, samples=3),
    functools.partial(gradients.integrated_gradients, steps=3),
    gradients.guided_grad_cam,
)


@cases(0.12)
@hypothesis.given(st.data())
def test_images_of_any_kind(data):
    kind = data.draw(st.sampled_from(list(SIZE)))
    model, images = network(kind), data.draw(pictures_of(kind))
    methods_ = [*CAMS, *AT_THE_PIXELS] + [cams.cam] * (kind == "pooled")
    method = data.draw(st.sampled_from(methods_))
    found = answer(method, model, images)
    if found is None:  # 5 is the smallest that "any" has room for
        assert not is_good(images, (None, *SIZE[kind])) or min(images.shape[1:3]) < 5
    elif method in AT_THE_PIXELS:
        is_map(found, np.shape(images))
    else:
        least = -np.inf if method is cams.cam else 0
        is_map(found, (len(images), *cells(kind, np.shape(images))), least)


@cases(0.05)
@hypothesis.given(st.data())
def test_images_of_any_kind_for_all_else_that_takes_them(data):
    kind = data.draw(st.sampled_from(list(SIZE)))
    model, images, layer = network(kind), data.draw(pictures_of(kind)), LAYER[kind]
    call = data.draw(st.sampled_from(["activations", "strongest", "deconvolve", "heatmaps"]))
    if call == "activations":
        found = answer(activations.layer_activations, model, images, layer)
        if found is not None:
            assert found[layer].shape == (len(images), *cells(kind, np.shape(images)), 5)
            assert found[layer].dtype == np.float32
    elif call == "strongest":
        found = answer(activations.strongest_activations, model, images, layer, count=1)
        if found is not None:
            is_map(found.value, (5, 1))
            assert found.image.max() < len(images)
            assert (found.cell < cells(kind, np.shape(images))).all()
    elif call == "deconvolve":
        found = answer(deconvolution.deconvolve, model, images, layer, 2)
        if found is not None:
            is_map(found, np.shape(images))
    else:
        name = data.draw(st.sampled_from([*methods.METHODS, *methods.CONTROLS]))
        options = {"samples": 2} if name == "SmoothGrad" else {}
        options |= {"steps": 2} if name == "integrated gradients" else {}
        found = answer(methods.heatmaps, name, model, images, **options)
        if found is not None:
            is_map(found, np.shape(images)[:3], 0)
    if found is None:  # 5 is the smallest that "any" has room for
        assert not is_good(images, (None, *SIZE[kind])) or min(images.shape[1:3]) < 5


# heatmaps


@cases(0.06)
@hypothesis.given(st.data())
def test_heatmaps_of_any_kind(data):
    model = network("grey")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 12, 10, 1)).astype(np.float32)
    heatmaps = data.draw(arrays([2, 12, 10]))
    masks = rng.random((2, 12, 10)) > 0.5
    if not data.draw(st.integers(0, 3)):
        masks = data.draw(arrays([2, 12, 10]))
    calls = {
        "deletion": lambda: answer(faithfulness.deletion, model, images, heatmaps, steps=3),
        "insertion": lambda: answer(faithfulness.insertion, model, images, heatmaps, steps=3),
        "drop": lambda: answer(faithfulness.average_drop, model, images, heatmaps),
        "increase": lambda: answer(faithfulness.average_increase, model, images, heatmaps),
        "pointing": lambda: answer(localization.pointing_game, heatmaps, masks),
        "energy": lambda: answer(localization.energy_inside, heatmaps, masks),
        "grid": lambda: answer(localization.grid_pointing_game, heatmaps, [0, 3]),
        "rank": lambda: answer(sanity.rank_correlation, heatmaps, heatmaps),
        "ssim": lambda: answer(sanity.ssim, heatmaps, heatmaps),
    }
    call = data.draw(st.sampled_from(list(calls)))
    found = calls[call]()
    if found is None:
        with_masks = call in ("pointing", "energy")
        assert not is_good(heatmaps, (2, 12, 10)) or (with_masks and not usable(masks))
        return
    values = found.area if call in ("deletion", "insertion") else found
    assert len(values) == len(heatmaps)
    if call == "rank":
        values = values[~np.isnan(values)]  # of maps without an order, as the text says
    assert np.isfinite(values).all()
    low = -1 if call in ("rank", "ssim") else 0
    np.testing.assert_array_less(low - 1e-9, values)
    np.testing.assert_array_less(values, 1 + 1e-9)


def usable(masks):
    masks = np.asarray(masks) if isinstance(masks, np.ndarray) else np.zeros(0)
    fits = masks.dtype == bool and masks.shape[-2:] == (12, 10) and masks.ndim in (2, 3)
    return fits and bool(masks.any(axis=(-2, -1)).all())


@cases(0.04)
@hypothesis.given(st.data())
def test_arrays_on_their_way_to_a_picture(data):
    heatmap, photo = data.draw(arrays([5, 4])), data.draw(arrays([12, 10, 3]))
    call = data.draw(st.sampled_from(["place", "stretch", "grey", "largest", "photo"]))
    if call == "place":
        size = data.draw(st.just((12, 10)) | st.lists(st.integers(-1, 40), max_size=3))
        numbers = st.lists(st.sampled_from([3.0, 2, 0, -1, np.nan, 1e-9, "a"]), max_size=3)
        usual = placement.ReceptiveField((3, 3), (2.0, 2.0), (1.0, 1.0))
        odd = st.builds(placement.ReceptiveField, numbers, numbers, numbers)
        field = data.draw(st.sampled_from(["resize", usual]) | odd | st.sampled_from(OTHERS))
        found = answer(placement.place, heatmap, size, field)
        if found is not None:
            assert found.dtype == np.float32
            assert found.shape == (*np.shape(heatmap)[:-2], *size)
            assert np.isfinite(found).all() or not is_good(heatmap, [None] * np.ndim(heatmap))
        else:
            assert not (is_good(heatmap, (5, 4)) and field == "resize" and tuple(size) == (12, 10))
        return
    if call == "photo":
        alike = data.draw(st.just(np.ones((12, 10)) / 2) | st.just(heatmap))
        strength = data.draw(st.sampled_from([0.8, 0, -1, np.nan, 1e300, "much", None]))
        found = answer(pictures.superimpose, photo, alike, strength)
        if found is not None:
            assert found.shape == (12, 10, 3)
            assert found.min() >= 0
            assert found.max() <= 1
        return
    function = {
        "stretch": pictures.stretch,
        "grey": pictures.around_grey,
        "largest": pictures.largest_channel,
    }[call]
    found = answer(function, photo)
    if found is None:
        assert not is_good(photo, (12, 10, 3))
    elif is_good(photo, [None] * np.ndim(photo)):
        assert np.isfinite(found).all()


@cases(0.03)
@hypothesis.given(st.data())
def test_overlays_of_any_kind(data):
    ax = Figure().subplots()
    image = np.ones((12, 10, 3)) / 2
    heatmap, field = data.draw(arrays([5, 4])), data.draw(st.sampled_from(["resize", None, 3]))
    if data.draw(st.booleans()):
        image, heatmap, field = data.draw(arrays([12, 10, 3])), np.ones((12, 10)), None
    found = answer(functools.partial(plots.overlay, ax=ax), image, heatmap, field=field)
    if found is None:
        size = (None, None) if field == "resize" else (12, 10)
        assert not (is_good(image, (12, 10, 3)) and is_good(heatmap, size))
    else:
        assert found is ax


# requests

PATHS = (
    "first last scores inner inner/last inner/first inner/scores / // inner/ /last . .. * block*"
    " ../../etc/passwd C:\\x first/last LAST nan"
)
NAMES = st.sampled_from(PATHS.split()) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=20
)
NO_NAMES = st.sampled_from(OTHERS)
NUMBERS = (
    st.integers(-3, 9)
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**400, True, False, None, "1", 1.0, 0.5])
    | st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -0.0, 1j, (), [], [1], "all", object])
    | st.sampled_from([np.int8(1), np.uint64(2), np.float32(1), np.bool_(True), np.array(1)])
)
CLASSES = (
    NUMBERS
    | st.lists(NUMBERS, max_size=4)
    | arrays([2])
    | st.sampled_from([[0, 1], [3, 0], (1, 1), np.array([1, 0], np.uint8), range(2)])
)


@cases(0.1)
@hypothesis.given(st.data())
def test_classes_layers_and_batches_of_any_kind(data):
    kind = data.draw(st.sampled_from(list(SIZE)))
    model, batch = network(kind), [2, *(size or 8 for size in SIZE[kind])]
    images = np.random.default_rng(0).normal(size=batch).astype(np.float32)
    wanted, layer, size = None, None, 32
    for which in data.draw(st.sets(st.sampled_from(["class", "layer", "size"]), min_size=1)):
        wanted = data.draw(CLASSES) if which == "class" else wanted
        layer = data.draw(NAMES | NO_NAMES) if which == "layer" else layer
        size = data.draw(NUMBERS) if which == "size" else size
    method = data.draw(st.sampled_from([*CAMS, *AT_THE_PIXELS, gradients.guided_grad_cam]))
    options = {"batch_size": size}
    if method in CAMS or method is gradients.guided_grad_cam:
        options["layer"] = layer
    found = answer(method, model, images, wanted, **options)
    if found is not None and method in AT_THE_PIXELS:
        is_map(found, images.shape)
    elif found is not None:
        assert found.shape[0] == 2
        is_map(found, found.shape, 0)
    if found is not None and np.size(wanted) == 1:
        (only,) = np.ravel(wanted)
        assert only is None or 0 <= only < (2 if kind == "any" else 4)


def is_endless(value):
    return isinstance(value, int | np.integer) and value > 1000


@cases(0.08)
@hypothesis.given(st.data())
def test_options_of_any_kind(data):
    model = network("grey")
    images = np.random.default_rng(0).normal(size=(2, 12, 10, 1)).astype(np.float32)
    heatmaps, shape = images[..., 0], images.shape
    fields = st.sampled_from(["receptive_field", "resize", "?"]) | st.sampled_from(OTHERS)
    weightings = st.sampled_from(["probability", "increase", "softmax"]) | st.sampled_from(OTHERS)
    baselines = st.sampled_from(["zeros", "mean", "blur"]) | NUMBERS | arrays([12, 10, 1])
    maps = NUMBERS | st.lists(NUMBERS, max_size=3) | arrays([2])
    Call = collections.namedtuple("Call", "function given options shape")
    calls = [
        Call(
            cams.score_cam,
            (model, images),
            {"weighting": weightings, "max_maps": NUMBERS, "placement": fields},
            (2, 5, 4),
        ),
        Call(gradients.smooth_grad, (model, images), {"samples": NUMBERS, "noise": NUMBERS}, shape),
        Call(
            gradients.integrated_gradients,
            (model, images),
            {"steps": NUMBERS, "baseline": baselines, "complete": st.booleans()},
            shape,
        ),
        Call(gradients.guided_grad_cam, (model, images), {"placement": fields}, shape),
        Call(
            faithfulness.deletion,
            (model, images, heatmaps),
            {"steps": NUMBERS, "baseline": baselines},
            None,
        ),
        Call(faithfulness.average_drop, (model, images, heatmaps), {"baseline": baselines}, None),
        Call(
            deconvolution.deconvolve,
            (model, images),
            {
                "layer": NAMES,
                "map_index": maps,
                "rule": st.sampled_from(["guided", "backprop", "deconvnet", "?", None, [1], 3]),
            },
            shape,
        ),
        Call(
            activations.strongest_activations,
            (model, images),
            {"layer": NAMES, "maps": maps, "count": NUMBERS},
            None,
        ),
        Call(
            activations.layer_activations,
            (model, images),
            {"layers": NAMES | NUMBERS | st.lists(NAMES | NUMBERS, max_size=3)},
            None,
        ),
        Call(
            filters.maximize_activation,
            (model,),
            {
                "layer": st.just("last") | NAMES,
                "maps": st.just(1) | maps,
                "steps": st.just(3),
                "jitter": st.just(1) | NUMBERS,
                "l2": NUMBERS,
                "step_size": NUMBERS,
                "size": st.none() | st.just((12, 10)) | st.lists(NUMBERS, max_size=3),
            },
            None,
        ),
        Call(
            localization.grid_pointing_game,
            (heatmaps,),
            {"cells": maps, "grid": st.lists(NUMBERS, max_size=3) | NUMBERS},
            None,
        ),
        Call(
            receptive_field.receptive_field,
            (model,),
            {"layer": NAMES | NO_NAMES, "image_size": st.none() | maps},
            None,
        ),
    ]
    call = data.draw(st.sampled_from(calls))
    required = {"layer", "map_index", "maps", "layers", "cells"} & set(call.options)
    asked = data.draw(st.sets(st.sampled_from(sorted(call.options)), min_size=1)) | required
    options = {name: data.draw(call.options[name], label=name) for name in sorted(asked)}
    if call.function is not faithfulness.deletion:  # which takes no more steps than pixels
        hypothesis.assume(not any(is_endless(options.get(each)) for each in ("samples", "steps")))
    found = answer(call.function, *call.given, **options)
    if found is None:
        return
    if call.shape:
        is_map(found, call.shape)
    elif call.function is filters.maximize_activation:
        assert found.dtype == np.float32
        assert found.min() >= 0
        assert found.max() <= 1
    elif call.function is faithfulness.deletion:
        assert np.isfinite(found.probabilities).all()
    elif call.function is faithfulness.average_drop:
        assert np.isfinite(found).all()
