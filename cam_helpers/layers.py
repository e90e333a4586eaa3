"""Which layer of a network to explain, and the network cut open there.

A layer inside a nested model has a path: ``"mobilenet/conv_pw_13_relu"``. The additions and
activations that ``keras.ops`` leaves in a network are no layers but have names, and count here.
"""

from collections.abc import Iterator, Sequence
import weakref

from cam_helpers.arrays import brief
from cam_helpers.backend import keras, tf
import numpy as np

KEEP_THE_SCORES = (
    "ActivityRegularization",
    "Cast",
    "Dropout",
    "Flatten",
    "Identity",
    "Reshape",
    "Squeeze",
)
KNOWN_ACTIVATIONS = {
    keras.activations.linear: None,
    keras.activations.softmax: "softmax",
    keras.activations.sigmoid: "sigmoid",
    tf.nn.softmax: "softmax",
    tf.nn.sigmoid: "sigmoid",
}
AFTER_THE_MAPS = (
    "MaxPooling2D",
    "AveragePooling2D",
    "Dropout",
    "SpatialDropout2D",
    "ZeroPadding2D",
    "Cropping2D",
    "UpSampling2D",
)
SAVED_MODEL = (
    ", a SavedModel, which keeps the computation but no layers: save the model as .keras, or build "
    "it in code and load its weights."
)

_LOGITS = weakref.WeakKeyDictionary()  # model -> what to_logits made of it
_MULTI_LABEL = weakref.WeakSet()  # of these, those that had a sigmoid for each of several labels
_CONTRASTS = weakref.WeakKeyDictionary()  # model -> what to_contrast made of it, by graph and pair


def nodes(model: keras.Model) -> Iterator:
    """Yield each call of a layer or operation, in order: with operation, input and output tensors.

    Raises
    ------
    ValueError
        As :func:`graph_of`.
    """
    graph = graph_of(model)
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def graph_of(model: keras.Model) -> keras.Model:
    """Return the functional model that ``model`` is or, if it is ``Sequential``, that it runs.

    Raises
    ------
    ValueError
        If there is none: a subclassed model, or a Sequential one that was never built.
    """
    graph = getattr(model, "_functional", model)
    if not hasattr(graph, "_nodes_by_depth"):
        raise ValueError(
            f"expected a functional model, or a Sequential one with an Input, received "
            f"{type(model).__name__} '{model.name}', which has no graph: rebuild it as "
            "keras.Model(x, model.call(x)) of x = keras.Input(shape)."
        )
    return graph


def is_nested(operation: keras.Operation) -> bool:
    """Return whether a layer is itself a model with a graph to look into."""
    return isinstance(operation, keras.Model) and hasattr(
        getattr(operation, "_functional", operation), "_nodes_by_depth"
    )


def map_layers(model: keras.Model) -> list[str]:
    """Return the paths of the layers whose output is (batch, height, width, maps), in order."""
    paths = []
    for node in nodes(model):
        name, inside = node.operation.name, node.operation
        if is_nested(inside):
            paths += [f"{name}/{path}" for path in map_layers(inside)]
        elif _has_place(node.outputs[0].shape):
            paths.append(name)
    return paths


def explainable_layer(model: keras.Model) -> str:
    """Return the path of the layer to explain: the last whose maps still have a place.

    That is the last output with height and width above 1 that a convolution leads to, after its
    activation, batch normalisation and addition, and before pooling and dropout. The feature maps
    there are the most abstract ones that still know where.

    Raises
    ------
    ValueError
        If there is no such layer, or the model has no graph.

    References
    ----------
    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, section 3. Notebook 04.
    """
    found, convolved = None, False
    for node in nodes(model):
        operation = node.operation
        kind = type(operation).__name__
        convolved |= "Conv" in kind
        if is_nested(operation):
            try:
                found = f"{operation.name}/{explainable_layer(operation)}"
            except ValueError:
                continue  # a nested head, or nested augmentation
        elif convolved and _has_place(node.outputs[0].shape) and kind not in AFTER_THE_MAPS:
            found = operation.name
        convolved |= found is not None
    if found is None:
        if _is_saved_model(model):
            raise ValueError(f"expected a model with layers, received '{model.name}'{SAVED_MODEL}")
        shapes = [f"'{node.operation.name}' {node.outputs[0].shape}" for node in nodes(model)]
        raise ValueError(
            f"expected a convolution with an output (batch, height, width, maps) in "
            f"'{model.name}', received {', '.join(shapes[-8:])}: there is no map to explain."
        )
    return found


def full_path(model: keras.Model, layer: str) -> str:
    """Return a layer's path, where the name of a nested model means its explainable layer.

    Raises
    ------
    ValueError
        If ``layer`` is no string.
    """
    if not isinstance(layer, str):
        raise ValueError(
            f"expected a layer by name or path, received {brief(layer)}: pass layer.name of the "
            "layer."
        )
    name, _, rest = layer.partition("/")
    named = [node.operation for node in nodes(model) if node.operation.name == name]
    if not named or not is_nested(named[-1]):
        return layer
    inside = full_path(named[-1], rest) if rest else explainable_layer(named[-1])
    return f"{name}/{inside}"


def split(model: keras.Model, layer: str) -> keras.Model:
    """Return a model from images to two outputs: the feature maps of a layer, and the scores.

    It shares every layer with ``model``.

    Parameters
    ----------
    model
        Functional or ``Sequential``, with one output.
    layer
        Name, or path into nested models, of a layer with output (batch, height, width, maps).

    Raises
    ------
    ValueError
        If there is no such layer, or its output has another rank.
    """
    both = cut(model, [full_path(model, layer)], scores=True)
    shape = both.outputs[0].shape
    if len(shape) != 4:
        raise ValueError(
            f"layer '{layer}' has shape {shape}; a map needs (batch, height, width, maps)"
            f"{_try(model)}"
        )
    return both


def cut(model: keras.Model, paths: Sequence[str], scores: bool = False) -> keras.Model:
    """Return a model from images to the outputs of layers, which computes no more than these need.

    It shares every layer with ``model``. A layer that is called twice counts as called last.

    Parameters
    ----------
    model
        Functional or ``Sequential``.
    paths
        Names of layers, or paths into nested models; both also several.
    scores
        Add the output of ``model`` as the last one; all of them, if it has several.

    Raises
    ------
    ValueError
        If there is no such layer, or the model has no graph.
    """
    graph, calls, inner = graph_of(model), {n.operation.name: n for n in nodes(model)}, {}
    for path in paths:
        name, _, rest = path.partition("/")
        if name not in calls or (rest and not is_nested(calls[name].operation)):
            raise ValueError(f"layer {path!r} is not in '{model.name}'{_try(model)}")
        if rest:
            inner.setdefault(name, []).append(rest)
    outputs = {name: node.outputs[0] for name, node in calls.items()}
    opened = {name: cut(calls[name].operation, inner[name], scores=True) for name in inner}

    def call(operation, *args, **kwargs):
        name = operation.name
        if name not in opened:
            output = operation(*args, **kwargs)
        else:
            output = opened[name](_one_or_all(keras.tree.flatten(args)))
            for path in inner[name]:
                outputs[f"{name}/{path}"] = output.pop(0)
        outputs[name] = tf.nest.flatten(output)[0]
        return output

    if opened:  # the same calls once more, with these in place of the nested models
        uncompiled = keras.Model(_one_or_all(graph.inputs), graph.outputs)
        graph = keras.models.clone_model(
            uncompiled, clone_function=lambda each: each, call_function=call
        )
    last = graph.outputs if scores else []
    return keras.Model(_one_or_all(graph.inputs), [*(outputs[path] for path in paths), *last])


def _one_or_all(tensors):
    return tensors[0] if len(tensors) == 1 else tensors


def to_logits(model: keras.Model) -> keras.Model:
    """Return a model whose scores are logits: ``model`` without its final softmax or sigmoid.

    The activation may belong to a last ``Dense`` or convolution, or be a layer of its own. Every
    layer before it is shared with ``model``, which stays as it is; the last one's weights are
    copied, at each call anew. A model that ends in logits is returned as it is. Of several labels
    with a sigmoid each, it is remembered that their probabilities do not add up to 1.

    Raises
    ------
    ValueError
        If the model ends in another activation, has no graph or more than one output.

    References
    ----------
    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, section 3: the score is the one before
    the softmax. Notebook 02 shows what becomes of the map otherwise.
    """
    activation = final_activation(model)
    if activation is None:
        return model
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(
            f"expected a model that ends in softmax, sigmoid or logits, received '{model.name}', "
            f"which ends in {activation}: give its last layer activation=None."
        )
    last, after = _last_scoring_node(model)
    operation, (before, *_) = last.operation, last.input_tensors
    graph = graph_of(model)
    if model not in _LOGITS or _LOGITS[model][0]() is not graph:  # Sequential may be rebuilt
        head, scores = None, before
        if is_nested(operation):
            scores = to_logits(operation)(before)
        elif hasattr(operation, "kernel"):
            linear = {"activation": "linear", "name": f"{operation.name}_logits"}
            head = type(operation).from_config({**operation.get_config(), **linear})
            scores = head(before)
        for each in after:
            scores = type(each).from_config(each.get_config())(scores)
        logits = keras.Model(graph.inputs[0], scores, name=model.name)
        _LOGITS[model] = weakref.ref(graph), logits, head
        if activation == "sigmoid" and logits.outputs[0].shape[-1] != 1:
            mark_multi_label(logits)
    _, logits, head = _LOGITS[model]
    if head:
        head.set_weights(operation.get_weights())
    elif is_nested(operation):
        to_logits(operation)  # copies its weights anew
    return logits


def is_multi_label(logits: keras.Model) -> bool:
    """Return whether :func:`to_logits` made a model of one with a sigmoid for each of its labels.

    Of a model that was built with logits nobody can tell; it counts as one of exclusive classes.
    """
    return logits in _MULTI_LABEL


def mark_multi_label(logits: keras.Model) -> None:
    """Remember of a copy of logits that the model had a sigmoid for each of several labels."""
    _MULTI_LABEL.add(logits)


def to_contrast(model: keras.Model, a: int, b: int) -> keras.Model:
    """Return a model whose one logit says how much more ``model`` is for class a than for class b.

    The logit of a less that of b, in float32. Every method explains it as it explains a single
    logit: class 1 is "a rather than b", class 0 "b rather than a", and its probability is that of a
    where only a and b are possible. Every layer is shared with ``model``, which stays as it is; the
    same pair gives the same model again.

    Parameters
    ----------
    model
        Functional or ``Sequential``, one output (batch, classes) of logits; see :func:`to_logits`.
    a, b
        Two different classes.

    Raises
    ------
    ValueError
        If the model has another output, has no graph or ends in an activation, or if a and b are
        the same or no classes of it.

    References
    ----------
    Prabhushankar et al. 2020, https://arxiv.org/abs/2008.00178, asks a map "why a rather than b".
    Notebook 10.
    """
    activation, graph = final_activation(model), graph_of(model)
    shape = graph.outputs[0].shape
    if activation is not None:
        raise ValueError(
            f"expected a model that returns logits, received '{model.name}', which ends in "
            f"{activation}: contrast models.to_logits(model)."
        )
    if len(shape) != 2 or shape[1] is None or shape[1] < 2:
        raise ValueError(
            f"expected a model with two logits (batch, classes) or more, received '{model.name}' "
            f"with {shape}: a single logit is a contrast already, of class 1 with class 0."
        )
    for name, value in (("a", a), ("b", b)):
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_integer or not 0 <= value < shape[1]:
            raise ValueError(
                f"expected {name} as an integer from 0 to {shape[1] - 1}, received {brief(value)}: "
                f"'{model.name}' has {shape[1]} classes."
            )
    if a == b:
        raise ValueError(f"expected two different classes, received {a} twice: choose another b.")
    made, key = _CONTRASTS.setdefault(model, {}), (int(a), int(b))
    if key not in made or made[key][0]() is not graph:  # Sequential may be rebuilt
        logits = keras.ops.cast(graph.outputs[0], "float32")
        contrast = logits[:, a : a + 1] - logits[:, b : b + 1]
        contrast = keras.Model(graph.inputs[0], contrast, name=f"{model.name}_{a}_or_{b}")
        made[key] = weakref.ref(graph), contrast
    return made[key][1]


def final_activation(model: keras.Model) -> str | None:
    """Return the name of what a model's scores have gone through, or None for nothing."""
    operation = _last_scoring_node(model)[0].operation
    if is_nested(operation):
        return final_activation(operation)
    activation = getattr(operation, "activation", keras.activations.linear)
    if isinstance(operation, keras.layers.Softmax) or isinstance(activation, keras.layers.Softmax):
        return "softmax"
    if type(operation).__name__ in ("Softmax", "Sigmoid", "LogSoftmax", "LogSigmoid"):
        return type(operation).__name__.lower()  # of keras.ops
    name = getattr(activation, "__name__", type(activation).__name__)
    return KNOWN_ACTIVATIONS.get(activation, name)


def head_weights(model: keras.Model, layer: str) -> np.ndarray:
    """Return the weights (maps, classes) of a head of global average pooling and one ``Dense``.

    Raises
    ------
    ValueError
        If anything else lies between the layer's maps and the scores.
    """
    dense, _ = _last_scoring_node(model)
    kind, kernel = type(dense.operation).__name__, getattr(dense.operation, "kernel", None)
    is_linear = final_activation(model) is None and (
        kind == "Dense" or (kind == "Conv2D" and dense.operation.groups == 1)
    )
    pool = _maker(model, dense.input_tensors[0])
    while pool is not None and _keeps_the_scores(pool.operation):
        pool = _maker(model, pool.input_tensors[0])
    is_pool = pool is not None and type(pool.operation).__name__ == "GlobalAveragePooling2D"
    if not is_linear or not is_pool or _innermost(model, pool.input_tensors[0]) != layer:
        raise ValueError(
            f"expected global average pooling and one Dense between '{layer}' and the scores of "
            f"'{model.name}', received another head: use grad_cam, which takes any."
        )
    return np.reshape(kernel, (pool.input_tensors[0].shape[-1], -1))


def _last_scoring_node(model):
    """The last call that changes the scores, and the operations that only reshape them after it."""
    graph = graph_of(model)
    if len(graph.outputs) != 1:
        raise ValueError(
            f"expected a model with one output, received {len(graph.outputs)}: choose one with "
            "keras.Model(model.input, model.outputs[0])."
        )
    after = []
    node = _maker(model, graph.outputs[0])
    while _keeps_the_scores(node.operation) and _maker(model, node.input_tensors[0]) is not None:
        after.insert(0, node.operation)
        node = _maker(model, node.input_tensors[0])
    return node, after


def _maker(model, tensor):
    """The node that a tensor of the model comes out of; None for its input."""
    made = (node for node in nodes(model) if any(tensor is output for output in node.outputs))
    return next(made, None)


def _innermost(model, tensor):
    """The path of the layer that a tensor comes out of, through nested models."""
    node = _maker(model, tensor)
    if node is None:
        return None
    operation = node.operation
    if is_nested(operation):
        return f"{operation.name}/{_innermost(operation, graph_of(operation).outputs[0])}"
    return operation.name


def _keeps_the_scores(operation):
    linear = getattr(operation, "activation", None) is keras.activations.linear
    kind = type(operation).__name__
    return kind in KEEP_THE_SCORES or (kind == "Activation" and linear)


def _has_place(shape):
    return len(shape) == 4 and 1 not in shape[1:3]


def _is_saved_model(model):
    return any(isinstance(node.operation, keras.layers.TFSMLayer) for node in nodes(model))


def _try(model):
    paths = map_layers(model)
    if not paths and _is_saved_model(model):
        return SAVED_MODEL
    if not paths:
        return ": no layer of it has a map."
    listed = ", ".join(f"'{path}'" for path in paths[-8:])
    return f". Try one of: {'…, ' if len(paths) > 8 else ''}{listed}."
