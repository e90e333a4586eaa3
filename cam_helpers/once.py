"""What is made once for a model, goes with it, and is made anew when the model has changed."""

from collections.abc import Callable
import weakref

from cam_helpers.backend import keras
from cam_helpers.layers import is_nested, nodes

SETTINGS = ("activation", "mean", "lora_enabled")  # of layers, that may change after a first use

_MADE = weakref.WeakKeyDictionary()  # model -> its parts when last looked at, and what was made


def once(model: keras.Model, key: tuple, make: Callable) -> object:
    """Return ``make()``, made once for each model and key. It must not refer to the model."""
    _, made = _MADE.setdefault(model, (None, {}))
    if key not in made:
        made[key] = make()
    return made[key]


def forget_if_changed(model: keras.Model) -> None:
    """Forget what was made of a model that has got other layers or activations since.

    Weights may change at any time: what is made reads them anew.
    """
    parts = _parts(model)
    if model not in _MADE or _MADE[model][0] != parts:
        _MADE[model] = parts, {}


def _parts(model):
    """What a traced function has taken for constant: its layers, and what they are set to."""
    parts = []
    for node in nodes(model):
        operation = node.operation
        if is_nested(operation):
            parts += _parts(operation)
        parts.append(id(operation))
        parts += [id(getattr(operation, name, None)) for name in SETTINGS]
    return parts
