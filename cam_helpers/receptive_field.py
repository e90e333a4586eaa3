"""What the cells of a layer's maps see of the image, found from the layers that lead there."""

from typing import Literal, NamedTuple

from cam_helpers.arrays import brief
from cam_helpers.backend import keras
from cam_helpers.layers import graph_of, is_nested, nodes
from cam_helpers.once import once
from cam_helpers.placement import Placement, ReceptiveField, check_pair

# Names of classes, as not all of them are public. Outside training none of these moves anything.
ELEMENTWISE = """
    Activation ActivityRegularization Dense ELU Identity LayerScale LeakyReLU Normalization PReLU
    ReLU Rescaling Softmax
    AlphaDropout Dropout GaussianDropout GaussianNoise StochasticDepth
    BatchNormalization GroupNormalization LayerNormalization RMSNormalization UnitNormalization
    RandomBrightness RandomContrast RandomFlip RandomRotation RandomTranslation RandomZoom
    Add Average Concatenate CustomScaleLayer Maximum Minimum Multiply Subtract
    Absolute Cast Clip Divide Elu Exp Gelu HardSigmoid HardSilu LeakyRelu Log Negative Power Relu
    Relu6 Selu Sigmoid Silu Softplus Sqrt Square Tanh TrueDivide
"""
SLIDING = """
    AveragePooling2D Conv2D Cropping2D DepthwiseConv2D MaxPooling2D SeparableConv2D ZeroPadding2D
"""


def receptive_field(
    model: keras.Model, layer: str, image_size: tuple[int, int] | None = None
) -> ReceptiveField:
    """Return what the cells of a layer's maps see of the image, and where their centres lie.

    Parameters
    ----------
    model
        Functional or Sequential model of images (batch, height, width, channels).
    layer
        Name of a layer, such as ``"mobilenet/conv_pw_13_relu"`` for one of the nested model
        ``mobilenet``. A layer that is called several times counts as called last.
    image_size
        Height and width in pixels, on which depends what ``same`` pads before a strided layer.
        Default: those of the model's input; needed where these are open.

    Returns
    -------
    ReceptiveField
        In pixels of the model's input. Where branches meet, it spans the fields of all: it is that
        of the largest, which contains the others even where they are centred elsewhere (Xception's
        shortcuts). Of the networks in ``keras.applications``, only NASNet has branches that lie
        side by side. Branches of a single cell (the gates of squeeze-and-excitation) and the
        statistics of normalisations do not count: they scale a map as a whole and move nothing.

    Raises
    ------
    ValueError
        If there is no such layer, or its place is lost on the way: by global pooling, flattening,
        reshaping or another layer that is neither ``ELEMENTWISE`` nor ``SLIDING``, by
        ``channels_first``, by a window larger than the map, by branches that differ in stride. If
        the size of the images is open. If the model has no graph: see :func:`layers.graph_of`.

    References
    ----------
    Araujo, Norris and Sim 2019, https://distill.pub/2019/computing-receptive-fields. Notebook 04.
    """
    places = _places(model, image_size)
    if not isinstance(layer, str):
        raise ValueError(
            f"expected a layer by name or path, received {brief(layer)}: pass layer.name of the "
            "layer."
        )
    place = places.get(layer, f"it is not in model '{model.name}'")
    if isinstance(place, str):
        last = [name for name, other in places.items() if not isinstance(other, str)][-8:]
        raise ValueError(
            f"layer {layer!r} has no receptive field: {place}. The last that have one: "
            f"{', '.join(last) or 'none'}."
        )
    return _field(place)


def receptive_fields(
    model: keras.Model, image_size: tuple[int, int] | None = None
) -> dict[str, ReceptiveField]:
    """Return :func:`receptive_field` of every layer that has one, in the order of the graph.

    A nested model follows its layers and has the field of its output. Operations of ``keras.ops``,
    such as the addition in ``x + y``, count as layers.
    """
    places = _places(model, image_size)
    return {name: _field(place) for name, place in places.items() if not isinstance(place, str)}


def field_of(
    model: keras.Model, layer: str, image_size: tuple[int, int], placement: Placement
) -> ReceptiveField | Literal["resize"]:
    """Return the field that a choice of placement means for a layer's maps.

    Raises
    ------
    ValueError
        For another choice, or if ``"receptive_field"`` is chosen and the layer has none.
    """
    if isinstance(placement, ReceptiveField) or placement == "resize":
        return placement
    if placement == "receptive_field":
        key = ("field", layer, image_size)
        try:
            return once(model, key, lambda: receptive_field(model, layer, image_size))
        except ValueError as error:
            raise ValueError(f"{error} Or choose placement='resize'.") from error
    raise ValueError(
        "expected placement 'receptive_field', 'resize' or a ReceptiveField, received "
        f"{brief(placement)}."
    )


class _Axis(NamedTuple):
    """One axis of maps: the first and the last pixel that cell 0 sees, and how the cells go on."""

    first: int
    last: int
    stride: int
    cells: int


def _field(axes):
    return ReceptiveField(
        size=tuple(axis.last - axis.first + 1 for axis in axes),
        stride=tuple(float(axis.stride) for axis in axes),
        start=tuple((axis.first + axis.last) / 2 for axis in axes),
    )


def _places(model, image_size):
    """Return the place of every layer: two axes, or a string that says how it was lost."""
    inputs, places = [], {}
    if image_size is not None:
        image_size = check_pair("image_size", image_size)
    for tensor in graph_of(model).inputs:
        size = tensor.shape[1:-1] if image_size is None else image_size
        if len(tensor.shape) != 4:
            inputs.append(f"'{tensor.name}' is no image")
        elif None in size:
            raise ValueError(
                f"model '{model.name}' takes images of any size, and where its cells look can "
                "depend on it: pass image_size=(height, width)."
            )
        else:
            inputs.append(tuple(_Axis(0, 0, 1, pixels) for pixels in size))
    _walk(model, inputs, places)
    return places


def _walk(model, inputs, places, prefix=""):
    """Add the layers' places to those known, given the inputs'; return the outputs'."""
    graph = graph_of(model)
    at = dict(zip(map(id, graph.inputs), inputs, strict=True))
    for node in nodes(model):
        layer, arriving = node.operation, [at[id(tensor)] for tensor in node.input_tensors]
        if is_nested(layer):
            leaving = _walk(layer, arriving, places, f"{prefix}{layer.name}/")
        else:
            leaving = [_through(node, arriving)] * len(node.outputs)
        at.update(zip(map(id, node.outputs), leaving, strict=True))
        places[prefix + layer.name] = leaving[0]
    return [at[id(tensor)] for tensor in graph.outputs]


def _through(node, places):
    """Return the place of what a layer makes of tensors at these places."""
    layer = node.operation
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    single = [set(tensor.shape[1:-1]) <= {1} for tensor in node.input_tensors]
    places = [place for place, one in zip(places, single, strict=True) if all(single) or not one]
    for place in places:
        if isinstance(place, str):
            return place
    if getattr(layer, "data_format", None) == "channels_first":
        return f"'{layer.name}' is channels_first"
    if len(node.outputs[0].shape) == 4:
        if kinds.intersection(SLIDING.split()):
            axes = tuple(_slide(layer, kinds, *numbered) for numbered in enumerate(places[0]))
            fits = min(axis.cells for axis in axes) > 0
            return axes if fits else f"the image is too small for '{layer.name}'"
        joins_maps = "Concatenate" not in kinds or layer.axis in (-1, 3)
        if kinds.intersection(ELEMENTWISE.split()) and joins_maps:
            if len({tuple(axis.stride for axis in place) for place in places}) > 1:
                return f"the branches that '{layer.name}' joins differ in stride"
            return tuple(
                axes[0]._replace(first=min(a.first for a in axes), last=max(a.last for a in axes))
                for axes in zip(*places, strict=True)
            )
    return f"'{layer.name}' is a {type(layer).__name__}, which cannot be followed"


def _slide(layer, kinds, i, axis):
    """Return axis i of the maps after a window slid over it, or after mere padding or cropping."""
    kernel = stride = 1
    if "ZeroPadding2D" in kinds:
        before, after = layer.padding[i]
    elif "Cropping2D" in kinds:
        before, after = (-cells for cells in layer.cropping[i])
    else:
        size = layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size
        dilation = layer.dilation_rate if hasattr(layer, "dilation_rate") else (1, 1)
        kernel = (size[i] - 1) * dilation[i] + 1
        stride = layer.strides[i]
        missing = (-(-axis.cells // stride) - 1) * stride + kernel - axis.cells
        padded = max(missing, 0) if layer.padding == "same" else 0
        before, after = padded // 2, padded - padded // 2
    return _Axis(
        first=axis.first - before * axis.stride,
        last=axis.last + (kernel - 1 - before) * axis.stride,
        stride=axis.stride * stride,
        cells=(axis.cells + before + after - kernel) // stride + 1,
    )
