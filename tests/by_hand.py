"""A network run forward and backward layer by layer in NumPy: what the methods are tested against.

Nothing here differentiates. Each kind of layer says how values go up and what comes down of what
arrives from above; all in float64, from the layers' weights and options alone.
"""

import itertools

from cam_helpers.backend import keras
import numpy as np

GATES = {
    "backprop": lambda active, down: down * active,
    "deconvnet": lambda active, down: down * (down > 0),
    "guided": lambda active, down: down * active * (down > 0),
}


def run(model, images):
    """Return what each layer of a functional model puts out: name -> array."""
    values = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            values[layer.name] = np.float64(images)
        else:
            values[layer.name] = up(layer, [values[name] for name in before(layer)])
    return values


def send_back(model, values, start, seed, rule="backprop", inside=False):
    """Return what a seed at the output of the layer ``start`` becomes at the pixels.

    With ``inside`` it starts before the ReLU that the layer is, or ends in, if there is one.
    """
    arrived = {start: np.float64(seed)}
    for layer in reversed(model.layers):
        if layer.name not in arrived:
            continue
        if isinstance(layer, keras.layers.InputLayer):
            return arrived[layer.name]
        inputs = [values[name] for name in before(layer)]
        gate = (lambda active, down: down) if inside and layer.name == start else GATES[rule]
        parts = down(layer, inputs, arrived.pop(layer.name), gate)
        for name, part in zip(before(layer), parts, strict=True):
            arrived[name] = arrived.get(name, 0) + part


def before_relu(model, values, name):
    """Return what goes into the ReLU that a layer is, or ends in; else what the layer puts out."""
    layer = model.get_layer(name)
    x = values[before(layer)[0]]
    if type(layer).__name__ in ("ReLU", "Activation"):
        return x
    is_convolution = type(layer).__name__ in ("Conv2D", "DepthwiseConv2D")
    return before_activation(layer, x)[0] if is_convolution else values[name]


def before(layer):
    """Names of the layers whose outputs a layer takes."""
    tensors = layer.input if isinstance(layer.input, list) else [layer.input]
    return [tensor._keras_history.operation.name for tensor in tensors]


def up(layer, inputs):
    kind, x = type(layer).__name__, inputs[0]
    if kind == "Add":
        return sum(inputs)
    if kind == "Dropout":
        return x
    if kind == "Dense":
        return x @ weight(layer, "kernel") + weight(layer, "bias")
    if kind == "Flatten":
        return x.reshape(len(x), -1)
    if kind == "GlobalAveragePooling2D":
        return x.mean(axis=(1, 2))
    if kind == "BatchNormalization":
        return (
            x * scale(layer) + weight(layer, "beta") - weight(layer, "moving_mean") * scale(layer)
        )
    if kind in ("ReLU", "Activation"):
        return np.clip(x, 0, highest(layer))
    if kind == "ZeroPadding2D":
        return np.pad(x, [(0, 0), *layer.padding, (0, 0)])
    if kind in ("Conv2D", "DepthwiseConv2D"):
        return np.clip(*before_activation(layer, x))
    cells, inside = windows(layer, x)
    if kind == "MaxPooling2D":
        return cells.max(axis=0)
    assert kind == "AveragePooling2D"
    return np.where(inside, cells, 0).sum(axis=0) / inside.sum(axis=0)


def down(layer, inputs, arriving, gate):
    """What arrives from above, as it leaves to each of the inputs."""
    kind, x = type(layer).__name__, inputs[0]
    if kind in ("Add", "Dropout"):
        return [arriving] * len(inputs)
    if kind == "Dense":
        return [arriving @ weight(layer, "kernel").T]
    if kind == "Flatten":
        return [arriving.reshape(x.shape)]
    if kind == "GlobalAveragePooling2D":
        return [np.broadcast_to(arriving[:, None, None] / (x.shape[1] * x.shape[2]), x.shape)]
    if kind == "BatchNormalization":
        return [arriving * scale(layer)]
    if kind in ("ReLU", "Activation"):
        return [gate((x > 0) & (x < highest(layer)), arriving)]
    if kind == "ZeroPadding2D":
        return [crop(arriving, layer.padding, x.shape)]
    if kind in ("Conv2D", "DepthwiseConv2D"):
        values, low, high = before_activation(layer, x)
        if low == 0:  # a ReLU is part of the layer
            arriving = gate((values > 0) & (values < high), arriving)
        filters = kernel(layer, x)
        return [spread(layer, x, lambda row, column: arriving @ filters[row, column].T)]
    cells, inside = windows(layer, x)
    if kind == "MaxPooling2D":
        won = cells.argmax(axis=0)  # of equal cells the first
        switches = [arriving * (won == number) for number in range(len(cells))]
    else:
        switches = arriving / inside.sum(axis=0) * inside
    width = layer.pool_size[1]
    return [spread(layer, x, lambda row, column: switches[row * width + column])]


def before_activation(layer, x):
    """A convolution's values, and between which two its activation clips them."""
    filters, (cells, inside) = kernel(layer, x), windows(layer, x)
    cells = np.where(inside, cells, 0)
    flat = filters.reshape(-1, *filters.shape[2:])
    values = sum(cell @ each for cell, each in zip(cells, flat, strict=True))
    values = values + (weight(layer, "bias") if layer.use_bias else 0)
    if layer.activation is keras.activations.linear:
        return values, -np.inf, np.inf
    return values, 0, highest(layer)


def kernel(layer, x):
    """Kernels (rows, columns, channels, maps), a depthwise one as a sparse one for all channels."""
    if type(layer).__name__ == "Conv2D":
        return weight(layer, "kernel")
    own = weight(layer, "kernel")
    filters = np.zeros((*own.shape[:3], own.shape[2]))
    for channel in range(own.shape[2]):
        filters[..., channel, channel] = own[..., channel, 0]
    return filters


def places(layer, x):
    """Size of the window, stride, and what is padded before and after, of both axes."""
    size = layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size
    padding = []
    for pixels, window, stride in zip(x.shape[1:3], size, layer.strides, strict=True):
        missing = max((-(-pixels // stride) - 1) * stride + window - pixels, 0)
        missing *= layer.padding == "same"
        padding.append((missing // 2, missing - missing // 2))
    return size, layer.strides, padding


def windows(layer, x):
    """What each output cell sees at each position of its window, and whether that is there."""
    size, strides, padding = places(layer, x)
    padded = np.pad(x, [(0, 0), *padding, (0, 0)], constant_values=-np.inf)
    cells = []
    for row, column in itertools.product(*map(range, size)):
        height, width = (
            (pixels - window) // stride + 1
            for pixels, window, stride in zip(padded.shape[1:3], size, strides, strict=True)
        )
        rows = slice(row, row + height * strides[0], strides[0])
        columns = slice(column, column + width * strides[1], strides[1])
        cells.append(padded[:, rows, columns])
    return np.array(cells), np.isfinite(cells)


def spread(layer, x, share):
    """Add up, where each position of the window lies on the input, what it gives back."""
    size, strides, padding = places(layer, x)
    shape = [n + sum(pad) for n, pad in zip(x.shape[1:3], padding, strict=True)]
    total = np.zeros((len(x), *shape, x.shape[-1]))
    for row, column in itertools.product(*map(range, size)):
        part = share(row, column)
        rows = slice(row, row + part.shape[1] * strides[0], strides[0])
        columns = slice(column, column + part.shape[2] * strides[1], strides[1])
        total[:, rows, columns] += part
    return crop(total, padding, x.shape)


def crop(padded, padding, shape):
    (top, _), (left, _) = padding
    return padded[:, top : top + shape[1], left : left + shape[2]]


def highest(layer):
    """Where a ReLU ends: infinity, or 6."""
    most = getattr(layer, "max_value", None)
    if getattr(layer, "activation", None) is keras.activations.relu6:
        most = 6
    return np.inf if most is None else most


def scale(layer):
    variance = weight(layer, "moving_variance") + layer.epsilon
    return weight(layer, "gamma") / np.sqrt(variance)


def weight(layer, name):
    return np.float64(getattr(layer, name))
