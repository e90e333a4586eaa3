"""Networks of any shape: a map that agrees with the gradient by hand, or one sentence why not."""

import warnings

from cam_helpers import cams, diagnosis, gradients, layers, models
from cam_helpers.backend import keras, tf
from cam_helpers.placement import ReceptiveField
from fuzzing import cases, in_time
import hypothesis
from hypothesis import strategies as st
import numpy as np

L = keras.layers
ACTIVATIONS = st.sampled_from([None, "relu", "relu6", "elu", "silu", "tanh", "leaky_relu"])
CLASS = 0


def window(draw):
    """Kernel, stride, padding and dilation of a convolution."""
    sizes = st.integers(1, 4)
    stride = draw(st.sampled_from([1, 1, 1, 2, 3]))
    dilation = draw(st.integers(1, 2)) if stride == 1 else 1
    same = draw(st.sampled_from(["same", "valid"]))
    kernel = (draw(sizes), draw(sizes))
    return {"kernel_size": kernel, "strides": stride, "padding": same, "dilation_rate": dilation}


def convolution(draw, channels, dtype, **given):
    kind = draw(st.sampled_from(["plain", "plain", "groups", "depthwise", "separable"]))
    options = {**window(draw), "activation": draw(ACTIVATIONS), "dtype": dtype, **given}
    if kind == "depthwise":
        return L.DepthwiseConv2D(depth_multiplier=draw(st.integers(1, 2)), **options)
    if kind == "separable":
        return L.SeparableConv2D(draw(st.integers(1, 4)), **options)
    groups = channels if kind == "groups" else 1
    return L.Conv2D(groups * draw(st.integers(1, 3)), groups=groups, **options)


def between(draw, dtype):
    """A layer that takes maps of any number and keeps them maps."""
    pool = {
        "pool_size": draw(st.integers(1, 3)),
        "padding": draw(st.sampled_from(["same", "valid"])),
    }
    make = draw(
        st.sampled_from(
            [
                lambda: L.MaxPooling2D(**pool, dtype=dtype),
                lambda: L.AveragePooling2D(**pool, dtype=dtype),
                lambda: L.BatchNormalization(dtype=dtype),
                lambda: L.ReLU(dtype=dtype),
                lambda: L.PReLU(shared_axes=[1, 2], dtype=dtype),
                lambda: L.Dropout(0.5, dtype=dtype),
                lambda: L.SpatialDropout2D(0.5, dtype=dtype),
                lambda: L.GaussianNoise(0.5, dtype=dtype),
                lambda: L.ZeroPadding2D(1, dtype=dtype),
                lambda: L.Cropping2D(1, dtype=dtype),
                lambda: L.UpSampling2D(2, dtype=dtype),
                lambda: L.LayerNormalization(dtype=dtype),
                lambda: L.Activation("sigmoid", dtype=dtype),
            ]
        )
    )
    return make()


def body(draw, x, dtype, depth):
    """Some layers after maps: in a row, joined, or in a model of their own."""
    for _ in range(draw(st.integers(1, 2))):
        x = convolution(draw, x.shape[-1], dtype)(x)
        kind = draw(st.sampled_from(["", "between", "add", "join", "plus", "nested"]))
        if kind == "between":
            x = between(draw, dtype)(x)
        elif kind in ("add", "plus"):
            other = L.Conv2D(x.shape[-1], 3, padding="same", dtype=dtype)(x)
            x = x + other if kind == "plus" else L.Add(dtype=dtype)([x, other])
        elif kind == "join":
            x = L.Concatenate(dtype=dtype)([x, L.Conv2D(2, 1, activation="relu", dtype=dtype)(x)])
        elif kind == "nested" and depth < 2:
            inputs = keras.Input(x.shape[1:], dtype=x.dtype)
            x = keras.Model(inputs, body(draw, inputs, dtype, depth + 1))(x)
    return x


def head(draw, is_open, dtype):
    """Layers from maps to scores."""
    ends = [None, None, "softmax", "sigmoid"]
    classes, end = draw(st.integers(1, 3)), draw(st.sampled_from(ends))
    options = {"activation": end, "dtype": dtype}
    kind = draw(st.sampled_from(["mean", "max", "convolution"] + ["flat"] * (not is_open)))
    if kind == "convolution":
        return [L.Conv2D(classes, 1, dtype=dtype), L.GlobalAveragePooling2D(dtype=dtype)]
    first = {"mean": L.GlobalAveragePooling2D, "max": L.GlobalMaxPooling2D, "flat": L.Flatten}
    return [first[kind](dtype=dtype), L.Dense(classes, **options)]


def a_network(draw):
    """A network, and two images for it."""
    keras.utils.set_random_seed(draw(st.integers(0, 9)))
    dtype = draw(st.sampled_from(["float32"] * 5 + ["mixed_float16", "float64"]))
    size = draw(st.integers(1, 33)), draw(st.integers(1, 33)), draw(st.integers(1, 4))
    is_open = draw(st.sampled_from([False, False, True]))
    inputs = keras.Input((None, None, size[2]) if is_open else size)
    try:
        if draw(st.sampled_from([False, False, True])):
            steps = [convolution(draw, size[2], dtype), between(draw, dtype)]
            model = keras.Sequential([inputs, *steps, *head(draw, is_open, dtype)])
        else:
            x = body(draw, inputs, dtype, 0)
            for layer in head(draw, is_open, dtype):
                x = layer(x)
            model = keras.Model(inputs, x)
    except ValueError:  # Keras's: a window larger than its maps
        hypothesis.reject()
    images = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    return model, images, dtype


def said(call, *given, **options):
    """What a call returns, or None if it refuses in one line."""
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return call(*given, **options)
        except ValueError as error:
            hypothesis.event(str(error)[:35])
            if len(str(error).splitlines()) != 1:
                raise
    return None


def forward(model, inputs, path, tape, found):
    """Run a model call by call, and take down what the layer at a path puts out last."""
    graph, (name, _, rest) = layers.graph_of(model), path.partition("/")
    at = dict(zip(map(id, graph.inputs), inputs, strict=True))
    for node in layers.nodes(model):
        args, kwargs = node.arguments.fill_in(at)
        if rest and node.operation.name == name:
            outputs = forward(node.operation, tf.nest.flatten(args), rest, tape, found)
        else:
            outputs = tf.nest.flatten(node.operation(*args, **kwargs))
        if not rest and node.operation.name == name:
            tape.watch(outputs[0])
            found.append(outputs[0])
        at.update(zip(map(id, node.outputs), outputs, strict=True))
    return [at[id(tensor)] for tensor in graph.outputs]


def by_hand(model, images, path):
    """Grad-CAM before its ReLU, eagerly."""
    found = []
    with tf.GradientTape() as tape:
        inputs = [tf.cast(images, layers.graph_of(model).inputs[0].dtype)]
        (scores,) = forward(model, inputs, path, tape, found)
        sign = -1 if scores.shape[1] == 1 else 1  # of one score, class 0 is what speaks against it
        score = sign * tf.cast(scores, tf.float32)[:, CLASS]
    slopes, maps = (np.float64(each) for each in (tape.gradient(score, found[-1]), found[-1]))
    return (slopes.mean(axis=(1, 2), keepdims=True) * maps).sum(axis=-1)


@cases(0.02)
@hypothesis.given(st.data())
def test_networks_of_any_shape(data):
    model, images, dtype = a_network(data.draw)
    if layers.final_activation(model):
        assert said(cams.grad_cam, model, images) is None
        model = models.to_logits(model)
    path = said(models.explainable_layer, model)
    heatmaps = said(cams.grad_cam, model, images, CLASS)
    field = said(models.receptive_field, model, path, images.shape[1:3])
    assert path or (heatmaps is None and field is None)
    assert field is None or type(field) is ReceptiveField
    assert model.inputs[0].shape[1] is None or path is None or heatmaps is not None
    if heatmaps is None:
        return

    expected = by_hand(model, images, path)
    assert heatmaps.shape == expected.shape
    tolerance = (3e-2 if dtype == "mixed_float16" else 1e-4) * np.abs(expected).max()
    np.testing.assert_allclose(heatmaps, np.maximum(expected, 0), atol=tolerance + 1e-30)
    other = data.draw(st.sampled_from(["cam", "saliency", "diagnose"]))
    if other == "cam":
        methods = [cams.grad_cam_plus_plus, cams.hires_cam, cams.layer_cam, cams.score_cam]
        found = said(data.draw(st.sampled_from(methods)), model, images, CLASS)
        assert found.shape == heatmaps.shape
    elif other == "saliency":
        found = said(gradients.saliency, model, images, CLASS)
        assert found.shape == images.shape
    else:
        assert isinstance(diagnosis.causes(model, images), list)
        return
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
