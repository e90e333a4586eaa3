"""What is made once for a model, and goes with it."""

from collections.abc import Callable
import weakref

from cam_helpers.backend import keras

_MADE = weakref.WeakKeyDictionary()


def once(model: keras.Model, key: tuple, make: Callable) -> object:
    """Return ``make()``, made once for each model and key. It must not refer to the model."""
    made = _MADE.setdefault(model, {})
    if key not in made:
        made[key] = make()
    return made[key]
