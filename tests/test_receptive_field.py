"""What cells see of the image: counted by hand, and asked of the networks themselves."""

from cam_helpers import models
from cam_helpers.backend import keras, tf
from cam_helpers.placement import ReceptiveField
from cam_helpers.receptive_field import receptive_field, receptive_fields
import numpy as np
import pytest

layers, ops = keras.layers, keras.ops
HALF = {"strides": 2, "padding": "same"}


def field(size, stride, start):
    """Return a field from numbers that hold for both axes, or pairs for (rows, columns)."""
    return ReceptiveField(*((it, it) if np.isscalar(it) else it for it in (size, stride, start)))


def stacked(*stack, image_size=(8, 9), **named):
    return keras.Sequential([keras.Input((*image_size, 1)), *stack], **named)


def last_field(model):
    last = keras.Model(model.inputs, model.outputs).operations[-1]
    return receptive_field(model, last.name)


# Counted by hand


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ([layers.Conv2D(1, 3)], field(3, 1, 1)),
        ([layers.Conv2D(1, 3, padding="same")], field(3, 1, 0)),
        ([layers.Conv2D(1, 2, padding="same")], field(2, 1, 0.5)),
        ([layers.Conv2D(1, (1, 5))], field((1, 5), 1, (0, 2))),
        ([layers.Conv2D(1, 3, strides=(1, 2))], field(3, (1, 2), 1)),
        ([layers.Conv2D(1, 3, dilation_rate=2)], field(5, 1, 2)),
        ([layers.Conv2D(1, 2, dilation_rate=3, padding="same")], field(4, 1, 0.5)),
        ([layers.Conv2D(1, 3, **HALF)], field(3, 2, (1, 0))),
        ([layers.Conv2D(1, 1, **HALF)], field(1, 2, 0)),
        ([layers.DepthwiseConv2D(3, strides=2)], field(3, 2, 1)),
        ([layers.SeparableConv2D(1, 3, padding="same")], field(3, 1, 0)),
        ([layers.MaxPooling2D(2)], field(2, 2, 0.5)),
        ([layers.MaxPooling2D(3, strides=1)], field(3, 1, 1)),
        ([layers.AveragePooling2D(3, **HALF)], field(3, 2, (1, 0))),
        ([layers.ZeroPadding2D(((1, 0), (2, 3)))], field(1, 1, (-1, -2))),
        ([layers.Cropping2D(((1, 0), (2, 3)))], field(1, 1, (1, 2))),
        ([layers.Conv2D(1, 3), layers.MaxPooling2D(2), layers.Conv2D(1, 2)], field(6, 2, 2.5)),
        ([layers.Conv2D(1, 3, strides=2), layers.ZeroPadding2D(1)], field(3, 2, -1)),
    ],
)
def test_layers_on_an_image_of_even_height_and_odd_width(stack, expected):
    assert last_field(stacked(*stack)) == expected


def test_what_same_pads_depends_on_the_size_of_the_map_that_it_pads():
    halves = [layers.Conv2D(1, 3, **HALF), layers.Conv2D(1, 3, **HALF)]
    assert last_field(stacked(*halves, image_size=(8, 9))) == field(7, 4, (3, 0))
    assert last_field(stacked(*halves, image_size=(6, 7))) == field(7, 4, (1, 2))
    added = [layers.ZeroPadding2D(((0, 1), (2, 1))), layers.Cropping2D(((0, 0), (1, 2)))]
    assert last_field(stacked(*added, *halves)) == field(7, 4, (0, -1 + 0))


class StochasticDepth(layers.Layer):
    """As in ConvNeXt and other networks that bring their own."""

    def call(self, x):
        return x


def test_layers_that_move_nothing():
    still = [
        layers.Activation("gelu"),
        layers.ReLU(6.0),
        layers.LeakyReLU(),
        layers.PReLU(),
        layers.ELU(),
        layers.Softmax(),
        layers.Identity(),
        layers.BatchNormalization(),
        layers.LayerNormalization(),
        layers.GroupNormalization(1),
        layers.RMSNormalization(),
        layers.UnitNormalization(),
        layers.Dropout(0.5),
        layers.SpatialDropout2D(0.5),
        layers.AlphaDropout(0.5),
        layers.GaussianNoise(1.0),
        layers.GaussianDropout(0.5),
        layers.ActivityRegularization(),
        layers.Rescaling(2.0),
        layers.Normalization(mean=0.5, variance=1.0),
        layers.RandomBrightness(0.1),
        layers.RandomContrast(0.1),
        layers.RandomFlip(),
        layers.RandomRotation(0.1),
        layers.RandomTranslation(0.1, 0.1),
        layers.RandomZoom(0.1),
        layers.Dense(2),
        StochasticDepth(),
    ]
    fields = receptive_fields(stacked(layers.Conv2D(3, 3, strides=2), *still))
    assert len(fields) == 1 + len(still)
    assert set(fields.values()) == {field(3, 2, 1)}


def test_operations_that_move_nothing():
    image = keras.Input((8, 9, 2))
    x = layers.Conv2D(2, 3, strides=2)(image)
    unary = [ops.absolute, ops.elu, ops.exp, ops.gelu, ops.hard_sigmoid, ops.hard_silu, ops.log]
    unary += [ops.leaky_relu, ops.negative, ops.relu, ops.relu6, ops.selu, ops.sigmoid, ops.silu]
    unary += [ops.softmax, ops.softplus, ops.sqrt, ops.square, ops.tanh]
    for operation in unary:
        x = operation(x)
    x = ops.cast(ops.clip(x, 0, 1), "float16")
    x = ops.divide(2 * x + x - x * x, x**2) / 3
    x = ops.concatenate([ops.maximum(x, ops.minimum(x, 1)), x], axis=-1)
    fields = receptive_fields(keras.Model(image, x))
    assert len(fields) == 1 + len(unary) + 2 + 7 + 3
    assert set(fields.values()) == {field(3, 2, 1)}


@pytest.mark.parametrize("merge", ["Add", "Average", "Concatenate", "Maximum", "Multiply"])
def test_branches_centred_elsewhere_are_part_of_the_longest(merge):
    image = keras.Input((8, 8, 1))
    main = layers.MaxPooling2D(3, **HALF)(layers.Conv2D(1, 3, padding="same")(image))
    shortcut = layers.Conv2D(1, 1, **HALF)(image)
    assert last_field(keras.Model(image, shortcut)) == field(1, 2, 0)
    for branches in ([main, shortcut], [shortcut, main]):
        merged = getattr(layers, merge)()(branches)
        assert last_field(keras.Model(image, merged)) == field(5, 2, 1)


def test_branches_of_other_shapes_make_a_field_that_holds_them_all():
    image = keras.Input((8, 8, 1))
    tall = layers.Conv2D(1, (7, 1), padding="same")(image)
    wide = layers.Conv2D(1, (1, 4), padding="same")(image)
    assert last_field(keras.Model(image, tall + wide)) == field((7, 4), 1, (0, 0.5))
    even, odd = (layers.Cropping2D(((i, 0), (i, 0)))(image) for i in (0, 1))
    beside = layers.Average()([layers.MaxPooling2D(1, 2)(it) for it in (even, odd)])
    assert last_field(keras.Model(image, beside)) == field(2, 2, 0.5)


def test_branches_of_a_single_cell_do_not_count():
    image = keras.Input((9, 9, 1))
    maps = layers.Conv2D(2, 3, strides=2)(image)
    pooled = layers.GlobalAveragePooling2D()(maps)
    gates = [
        layers.Dense(2, "sigmoid")(layers.Reshape((1, 1, 2))(pooled)),
        layers.Conv2D(2, 1)(layers.GlobalMaxPooling2D(keepdims=True)(maps)),
        ops.mean(maps, axis=(1, 2), keepdims=True),
        layers.AveragePooling2D(4)(maps),
    ]
    for gate in gates:
        for merged in (maps * gate, layers.Multiply()([gate, maps]), gate + maps):
            assert last_field(keras.Model(image, merged)) == field(3, 2, 1)
    whole = layers.Conv2D(2, 4)(maps) + layers.MaxPooling2D(4, strides=1)(maps)
    assert last_field(keras.Model(image, whole)) == field(9, 2, 4)


# Models in models


def test_nested_models_go_on_where_the_outer_model_stands():
    body = stacked(layers.Conv2D(1, 3, **HALF, name="half"), name="body", image_size=(None, None))
    image = keras.Input((8, 9, 1))
    inside = keras.Input((None, None, 1))
    inner = keras.Model(inside, [body(inside), layers.ReLU(name="relu")(inside)], name="inner")
    outputs = inner(layers.ZeroPadding2D(((0, 1), (1, 0)), name="pad")(image))
    last = layers.Conv2D(1, 2, name="last")(outputs[0])
    assert receptive_fields(keras.Model(image, [last, outputs[1]])) == {
        "pad": field(1, 1, (0, -1)),
        "inner/relu": field(1, 1, (0, -1)),
        "inner/body/half": field(3, 2, (0, 0)),
        "inner/body": field(3, 2, (0, 0)),
        "inner": field(3, 2, (0, 0)),
        "last": field(5, 2, (1, 1)),
    }


def test_a_layer_called_again_counts_as_called_last():
    again = layers.Conv2D(1, 3, name="again")
    assert last_field(stacked(again)) == field(3, 1, 1)
    image = keras.Input((8, 9, 1))
    assert receptive_fields(keras.Model(image, again(again(image)))) == {"again": field(5, 1, 2)}


def test_inputs_that_are_no_images():
    image, row = keras.Input((8, 9, 1)), keras.Input((2,), name="age")
    maps = layers.Conv2D(2, 3, name="maps")(image)
    known = layers.Dense(2, name="known")(row)
    scores = layers.Dense(1, name="scores")(layers.Flatten()(maps)) + known
    model = keras.Model([image, row], scores)
    assert receptive_fields(model) == {"maps": field(3, 1, 1)}
    with pytest.raises(
        ValueError, match=r"layer 'known' has no receptive field: 'age' is no image"
    ):
        receptive_field(model, "known")


# Errors


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        (layers.GlobalAveragePooling2D(), "is a GlobalAveragePooling2D, which cannot"),
        (layers.GlobalMaxPooling2D(keepdims=True), "is a GlobalMaxPooling2D, which cannot"),
        (layers.Flatten(), "is a Flatten, which cannot be followed"),
        (layers.Reshape((3, 14, 4)), "is a Reshape, which cannot be followed"),
        (layers.Conv2DTranspose(2, 2, strides=2), "is a Conv2DTranspose, which cannot"),
        (layers.Lambda(lambda x: x), "is a Lambda, which cannot be followed"),
        (layers.MaxPooling2D(2, data_format="channels_first"), "is channels_first"),
    ],
)
def test_where_the_place_is_lost(gone, reason):
    gone.name = "gone"
    after = layers.Activation("relu", name="after")
    model = stacked(layers.Conv2D(4, 3, name="seen"), gone, after)
    message = rf"^layer 'after' has no receptive field: 'gone' {reason}.* have one: seen\.$"
    with pytest.raises(ValueError, match=message):
        receptive_field(model, "after")
    assert receptive_field(model, "seen") == field(3, 1, 1)
    assert list(receptive_fields(model)) == ["seen"]


def test_what_else_loses_the_place():
    image = keras.Input((4, 4, 1))
    with pytest.raises(ValueError, match=r"'average.*' is a Average, .* have one: none\.$"):
        last_field(keras.Model(image, ops.average(image, axis=-1)))
    drawn = layers.Reshape((4, 4, 1), name="drawn")(layers.Flatten()(image))
    with pytest.raises(ValueError, match=r"'flatten.*' is a Flatten"):
        receptive_field(keras.Model(image, layers.Add(name="sum")([image, drawn])), "sum")
    below = layers.Concatenate(axis=1, name="below")([image, image])
    with pytest.raises(ValueError, match="'below' is a Concatenate"):
        receptive_field(keras.Model(image, below), "below")


def test_branches_that_differ_in_stride():
    image = keras.Input((9, 9, 1))
    maps = layers.Conv2D(1, 3, strides=2)(image)
    for branch in (layers.Conv2D(1, 6)(image), layers.AveragePooling2D((4, 1))(maps)):
        model = keras.Model(image, layers.Add(name="sum")([maps, branch]))
        with pytest.raises(ValueError, match="the branches that 'sum' joins differ in stride"):
            receptive_field(model, "sum")


def test_unknown_layers_tell_the_last_that_are_known():
    model = stacked(*(layers.ReLU(name=f"relu{i}") for i in range(10)), name="toy")
    known = ", ".join(f"relu{i}" for i in range(2, 10))
    message = f"^layer 'relu' .*: it is not in model 'toy'. The last that have one: {known}.$"
    with pytest.raises(ValueError, match=message):
        receptive_field(model, "relu")


def test_open_image_sizes():
    for size in [(None, 9), (8, None), (None, None)]:
        model = stacked(layers.Conv2D(1, 3, **HALF, name="conv"), image_size=size, name="open")
        with pytest.raises(ValueError, match=r"'open' takes images of any size.*pass image_size="):
            receptive_fields(model)
        assert receptive_field(model, "conv", (8, 9)) == field(3, 2, (1, 0))
    small = stacked(layers.Conv2D(1, 3, name="conv"), image_size=(None, None))
    with pytest.raises(ValueError, match="the image is too small for 'conv'"):
        receptive_field(small, "conv", image_size=(9, 2))


class Subclassed(keras.Model):
    def call(self, x):
        return x


def test_models_without_a_graph():
    for model in (keras.Sequential([layers.ReLU()]), Subclassed()):
        with pytest.raises(ValueError, match="expected a functional model"):
            receptive_fields(model)
    model = stacked(layers.Conv2D(1, 3), Subclassed(name="closed"))
    with pytest.raises(ValueError, match="'closed' is a Subclassed, which cannot be followed"):
        receptive_field(model, "closed")


# Asked of the networks themselves


def linear_copy(network, silent=()):
    """Return a linear network that looks where this one does, with one map a layer.

    Every window is the mean of what it covers: positive kernels cannot cancel what is seen. That
    goes for the maximum of a pool, too, which would make the centre of one image's gradient vary by
    10 px from image to image. What moves nothing is left out or made constant. The kernels of
    layers named in ``silent`` are 0.
    """
    left_out = layers.Activation | layers.ReLU | layers.LayerNormalization | layers.Normalization
    one = {"filters": 1, "groups": 1, "units": 1, "projection_dim": 1, "target_shape": (1, 1, 1)}
    one |= {"activation": "linear", "dtype": "float64"}

    def copy(layer):
        if isinstance(layer, keras.Sequential):
            return keras.Sequential([copy(inner) for inner in layer.layers], name=layer.name)
        if not isinstance(layer, layers.Layer):
            return layer
        if isinstance(layer, left_out):
            return layers.Identity(name=layer.name, dtype="float64")
        config = layer.get_config()
        config |= {key: value for key, value in one.items() if key in config}
        pool = isinstance(layer, layers.MaxPooling2D)
        return (layers.AveragePooling2D if pool else type(layer)).from_config(config)

    linear = keras.models.clone_model(network, clone_function=copy)
    for weight in linear.weights:
        owner = weight.path.split("/")[-2]
        if "kernel" in weight.name:
            dark = "_se_" in owner or owner in silent
            weight.assign(np.full(weight.shape, 0 if dark else 1 / np.prod(weight.shape[:-1])))
        elif "_se_" in owner or "layer_scale" in owner:
            weight.assign(np.ones(weight.shape))
    return linear


def cell_inside(expected, image_size):
    """Return the cell whose centre is nearest to that of the image."""
    middle = (np.array(image_size) - 1) / 2
    return np.round((middle - expected.start) / expected.stride).astype(int)


def off_centre(linear, layer, expected, image_size, axis):
    """Return by how many pixels a cell of a linear network looks past where it is expected to.

    Its answer is Σ g·x, with g the gradient of the cell with respect to the image: to an image of
    distances Σ g·distance, and to an image of ones Σ g. Also checked is the size: light outside
    the field is not seen, light on its first or last row (or column) is.
    """
    cell = cell_inside(expected, image_size)
    centre = expected.start[axis] + expected.stride[axis] * cell[axis]
    distance = np.arange(image_size[axis]) - centre
    reach = (expected.size[axis] - 1) / 2
    assert reach < min(-distance[0], distance[-1]), "the image must be larger than the field"
    outside, first, last = abs(distance) > reach, distance == -reach, distance == reach
    ruler = np.array([np.ones_like(distance), distance, outside, first, last])
    ruler = ruler[:, :, np.newaxis] if axis == 0 else ruler[:, np.newaxis, :]
    images = np.broadcast_to(ruler[..., np.newaxis], (5, *image_size, linear.inputs[0].shape[-1]))
    maps = keras.Model(linear.inputs[0], linear.get_layer(layer).output)(images).numpy()
    ones, distances, outside, first, last = maps[:, *cell].sum(axis=-1)
    assert outside == 0
    assert first > 0
    assert last > 0
    return distances / ones


BACKBONES = [
    ("VGG16", 224, field(212, 32, 15.5)),
    ("ResNet50", 224, field(483, 32, 0)),
    ("MobileNet", 224, field(315, 32, 31)),
    ("MobileNetV2", 224, field(491, 32, 31)),
    ("EfficientNetV2B0", 224, field(763, 32, 31)),
    ("ConvNeXtTiny", 224, field(1688, 32, 15.5)),
    ("Xception", 299, field(1083, 32, 7)),
    ("DenseNet121", 224, field(2071, 32, 14)),
    ("InceptionV3", 299, field(1311, 32, 37)),
]


@pytest.mark.parametrize(("name", "nominal", "expected"), BACKBONES)
def test_last_maps_of_backbones(name, nominal, expected):
    network = getattr(keras.applications, name)(weights=None, include_top=False)
    *_, last = receptive_fields(network, (nominal, nominal))
    assert receptive_field(network, last, (nominal, nominal)) == expected
    linear = linear_copy(network, silent=shortcuts(network) if name == "Xception" else ())
    for axis in (0, 1):
        image_size = [64 + nominal % 32] * 2
        image_size[axis] += 32 * (expected.size[axis] // 32 + 1)
        assert receptive_field(network, last, image_size) == expected
        off = off_centre(linear, last, expected, image_size, axis)
        assert off == pytest.approx(0, abs=1e-6)


def shortcuts(network):
    return [
        layer.name
        for layer in network.layers
        if isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1) != layer.strides
    ]


def test_shortcuts_of_xception_pull_the_mean_but_stay_inside_the_field():
    network = keras.applications.Xception(weights=None, include_top=False)
    *_, last = receptive_fields(network, (299, 299))
    expected = receptive_field(network, last, (299, 299))
    assert len(shortcuts(network)) == 4
    off = off_centre(linear_copy(network), last, expected, (75, 1195), axis=1)
    assert off == pytest.approx(-2, abs=0.1)


@pytest.mark.parametrize(
    ("name", "size", "layer", "expected"),
    [
        ("VGG16", 224, "block5_conv3", field(196, 16, 7.5)),
        ("InceptionResNetV2", 299, "conv_7b_ac", field(3039, 32, 37)),
    ],
)
def test_backbones_with_inputs_of_a_fixed_size(name, size, layer, expected):
    shape = {"include_top": False, "input_shape": (size, size, 3)}
    network = getattr(keras.applications, name)(weights=None, **shape)
    assert receptive_field(network, layer) == expected


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "stride"), [(1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("height", [12, 13, 14])
def test_max_pools_see_the_ends_of_their_fields(height, size, stride, padding):
    network = stacked(layers.MaxPooling2D(size, stride, padding), image_size=(height, 12))
    expected = last_field(network)
    rows = np.broadcast_to(np.arange(1.0, height + 1)[:, np.newaxis, np.newaxis], (height, 12, 1))
    largest, smallest = network(np.array([rows, -rows])).numpy()[:, 2, 2, 0] * (1, -1) - 1
    assert (largest + smallest) / 2 == expected.start[0] + 2 * expected.stride[0]
    assert largest - smallest + 1 == expected.size[0]


def test_windows_in_random_order():
    rng = np.random.default_rng(0)

    def window():
        size, strides = rng.integers(1, 5, 2).tolist(), rng.integers(1, 4, 2).tolist()
        padding, sides = str(rng.choice(["same", "valid"])), rng.integers(0, 4, (2, 2)).tolist()
        return [
            layers.Conv2D(1, size, strides, padding),
            layers.Conv2D(1, size, padding=padding, dilation_rate=strides),
            layers.DepthwiseConv2D(size, strides[0], padding),
            layers.SeparableConv2D(1, size, strides[0], padding),
            layers.MaxPooling2D(size, strides, padding),
            layers.ZeroPadding2D(sides),
            layers.Cropping2D(sides),
        ][rng.integers(7)]

    for _ in range(40):
        image_size = rng.integers(150, 250, 2).tolist()
        network = stacked(*(window() for _ in range(4)), image_size=image_size)
        expected = last_field(network)
        linear = linear_copy(network)
        for axis in (0, 1):
            off = off_centre(linear, network.layers[-1].name, expected, image_size, axis)
            assert off == pytest.approx(0, abs=1e-6), network.get_config()


@pytest.mark.parametrize("layer", ["conv4", "final"])
def test_gradient_of_the_fashion_mnist_network(layer):
    model = models.fashion_cnn()
    expected = receptive_field(model, layer)
    assert expected == {"conv4": field(5, 1, 2), "final": field(20, 4, 9.5)}[layer]
    for weight in model.weights:
        if "kernel" in weight.name:
            weight.assign(np.full(weight.shape, 1 / np.prod(weight.shape[:-1])))
    cell = cell_inside(expected, (28, 28))
    part = keras.Model(model.input, model.get_layer(layer).output)
    images = tf.constant(np.random.default_rng(0).random((64, 28, 28, 1), dtype=np.float32))
    with tf.GradientTape() as tape:
        tape.watch(images)
        answers = part(images)[:, *cell]
    seen = abs(tape.gradient(answers, images).numpy()).sum(axis=(0, 3))
    for axis in (0, 1):
        profile, pixels = seen.sum(axis=1 - axis), np.arange(28)
        centre = np.average(pixels, weights=profile)
        assert centre == pytest.approx(
            expected.start[axis] + expected.stride[axis] * cell[axis], abs=0.1
        )
        assert np.ptp(np.flatnonzero(profile)) + 1 == expected.size[axis]


def test_a_size_of_unsigned_integers_is_a_size():
    inputs = keras.Input((None, None, 1))
    outputs = keras.layers.Conv2D(1, 3, strides=2, padding="same", name="conv")(inputs)
    model = keras.Model(inputs, outputs)
    expected = receptive_field(model, "conv", (7, 6))
    assert receptive_field(model, "conv", np.uint64([7, 6])) == expected
