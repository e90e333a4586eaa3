"""What a saved model's configuration tells before Keras builds it, or after it could not.

A configuration is what ``json.loads`` makes of the ``config.json`` in a ``.keras`` file, or of the
attribute ``model_config`` of a ``.h5`` file. It may be anything: nobody promised that it is whole.
"""

from collections.abc import Iterator
import re

from cam_helpers.backend import keras

# Classes whose configuration holds Python code, or names another file that holds a program.
CODE = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper")
SPACES = (
    keras.layers,
    keras.initializers,
    keras.regularizers,
    keras.constraints,
    keras.activations,
    keras.dtype_policies,
)
GRAPHS = ("Functional", "Model", "Sequential")
# What Keras says of a class or a function that it does not know.
UNKNOWN = re.compile(
    r"(?:Could not locate (?:class|function)|Unknown [\w ]+:|identifier:) '?([\w.>]+)"
)


def code_in(config: object) -> str | None:
    """Return the name of a class that carries Python code or a program, or None."""
    for part in _parts(config):
        for key in ("class_name", "registered_name"):
            name = re.split(r"[.>]", str(part.get(key)))[-1]
            if name in CODE:
                return name.strip("_")
    return None


def lacks_an_input(config: object) -> bool:
    """Return whether a layer's input is a call that is not there.

    So it is in Keras 2's models in models, which count calls another way. Keras 3.13 would look
    for it forever.
    """
    for part in _parts(config):
        graph = part.get("layers") if "output_layers" in part else None
        if not isinstance(graph, list) or not all(isinstance(each, dict) for each in graph):
            continue
        calls = {str(each.get("name")): _calls(each) for each in graph}
        for each in graph:
            inputs = _inputs(each.get("inbound_nodes"))
            if any(call >= calls.get(name, 0) for name, call in inputs):
                return True
    return False


def unknown_names(config: object, error: Exception, custom_objects: dict) -> list[str]:
    """Return the classes and functions that a model needs, Keras has not, and nobody gave.

    ``error`` is Keras's, which also names a function that a layer has by its name alone.
    """
    known = {*custom_objects, *keras.saving.get_custom_objects(), *GRAPHS}
    found = []
    for part in _parts(config):
        name, module = part.get("class_name"), str(part.get("module", "keras."))
        name = part.get("config") if name == "function" else name
        if not isinstance(name, str) or "config" not in part or name.startswith("__"):
            continue
        exported = any(hasattr(space, name) for space in SPACES)
        if not exported and (module == "keras." or not module.startswith(("keras.", "tf_keras."))):
            registered = str(part.get("registered_name"))
            found.append(registered if ">" in registered else name)
    for name in UNKNOWN.findall(str(error))[: 0 if found else None]:
        if name.islower() or not hasattr(keras.ops, name.lower()):  # which no .h5 file brings back
            found.append(name)
    return [name for name in dict.fromkeys(found) if name not in known]


def _parts(config) -> Iterator[dict]:
    """Each dictionary of a configuration."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for each in config:
            yield from _parts(each)


def _calls(layer):
    nodes = layer.get("inbound_nodes")
    return max(1, len(nodes)) if isinstance(nodes, list) else 1


def _inputs(value):
    """(layer, call) of each input in a layer's inbound nodes, as .h5 and as .keras write them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        if [type(each) for each in value[:3]] == [str, int, int]:
            yield value[0], value[1]
        for each in value:
            yield from _inputs(each)
