"""A SavedModel as a functional model of one step, from images to logits."""

from pathlib import Path

from cam_helpers.backend import keras, tf

# What a graph may end in and still return logits, and what only passes them on.
LINEAR = ("Add", "AddV2", "BiasAdd", "Conv2D", "MatMul", "Mean")
PASSES = ("Cast", "Identity", "Reshape", "Squeeze")
CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def load(folder: Path) -> keras.Model:
    """Return what a SavedModel computes, as a functional model; its weights are copied.

    Of several signatures it is ``serving_default``. Its layers are gone: TensorFlow has kept only
    the graph.

    Raises
    ------
    ValueError
        If it is damaged, if the signature has several inputs or outputs, if it does not take float
        images or not batches of any size, or if it ends in anything but logits.

    References
    ----------
    https://keras.io/api/layers/backend_specific_layers/tfsm_layer.
    """
    try:
        signatures = tf.saved_model.load(str(folder)).signatures
    except Exception as error:  # TensorFlow's are of many kinds
        raise _refusal(folder, "is damaged or not whole", "get or save it again") from error
    names = list(signatures)
    name = names[0] if len(names) == 1 else "serving_default"
    if name not in names:
        listed = f"has the signatures {', '.join(names)}" if names else "has no signature"
        raise _refusal(folder, listed, "export it with one, called serving_default")
    _, inputs = signatures[name].structured_input_signature
    outputs = signatures[name].structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        counts = f"has {len(inputs)} inputs and {len(outputs)} outputs"
        raise _refusal(folder, counts, "export a keras.Model of one image and one output")
    (spec,), ((key, _),) = inputs.values(), outputs.items()
    if spec.shape.rank != 4 or spec.shape[0] is not None or spec.dtype != tf.float32:
        takes = f"takes {spec.dtype.name} {spec.shape}"
        raise _refusal(folder, takes, "export it for float32 (None, height, width, channels)")
    if (last := last_operation(signatures[name])) not in LINEAR:
        way_out = (
            "export a model that returns logits, models.to_logits(model), or save it as .keras"
        )
        raise _refusal(folder, f"ends in {last}", way_out)
    images = keras.Input(spec.shape[1:], name="images")
    step = keras.layers.TFSMLayer(str(folder), call_endpoint=name, name="saved_model")
    return keras.Model(images, step(images)[key], name="saved_model")


def last_operation(signature) -> str:
    """Return the type of the last TensorFlow operation that changes a signature's one output."""
    graph = signature.graph.as_graph_def()
    functions = {each.signature.name: each for each in graph.library.function}
    nodes, tensor = graph.node, signature.outputs[0].name
    while True:
        name, *index = tensor.split(":")  # name, name:0 or, inside a function, name:output:0
        node = next((each for each in nodes if each.name == name), None)
        if node is None:
            return "its input"
        if node.op in CALLS:
            function = functions[node.attr["f"].func.name]
            nodes = function.node_def
            tensor = function.ret[function.signature.output_arg[int([0, *index][-1])].name]
        elif node.op in PASSES:
            tensor = node.input[0]
        else:
            return node.op


def _refusal(folder, what, way_out):
    return ValueError(
        f"expected a SavedModel from images to logits, received '{folder}', which {what}: "
        f"{way_out}."
    )
