"""Which layers someone asks for: by name, path, pattern or index."""

from collections.abc import Iterable, Sequence
import difflib
import fnmatch

from cam_helpers.arrays import brief
from cam_helpers.backend import keras
from cam_helpers.layers import is_nested, nodes
import numpy as np

Wanted = str | int | Sequence[str | int]


def select(model: keras.Model, wanted: Wanted) -> list[str]:
    """Return the paths of the layers that are asked for, each once.

    Parameters
    ----------
    model
        Functional or ``Sequential``.
    wanted
        A name, a path into nested models, an index into ``model.layers``, or a pattern of names
        and paths as of ``fnmatch`` (``"block*_conv1"``), which stands for all that match, in the
        order of the graph. Or several of these, in the order to return.

    Raises
    ------
    ValueError
        If something matches no layer, or is none of these.
    """
    several = isinstance(wanted, Iterable) and not isinstance(wanted, str)
    wanted, known, found = list(wanted) if several else [wanted], every_path(model), []
    if not wanted:
        raise ValueError("expected at least one layer, received none: '*' stands for all.")
    for each in wanted:
        if isinstance(each, keras.Operation):
            raise ValueError(
                f"expected the name of a layer, received the {type(each).__name__} itself: pass "
                f"layer.name, which is '{each.name}'."
            )
        if isinstance(each, int | np.integer) and not isinstance(each, bool):
            found.append(_name_at(model, int(each), known))
        elif not isinstance(each, str):
            raise ValueError(
                f"expected a layer by name, path, pattern or index, received {brief(each)}."
            )
        else:
            matching = [path for path in known if path == each]
            matching = matching or [path for path in known if fnmatch.fnmatchcase(path, each)]
            if not matching:
                near = difflib.get_close_matches(each, known, 5, 0.5) or known[-8:]
                raise ValueError(
                    f"expected a layer of '{model.name}', received {each!r}, which none matches. "
                    f"Try one of: {', '.join(map(repr, near))}."
                )
            found += matching
    return list(dict.fromkeys(found))


def every_path(model: keras.Model) -> list[str]:
    """Return the paths of all that is called, in order, a nested model's after those inside it."""
    paths = []
    for node in nodes(model):
        name = node.operation.name
        if is_nested(node.operation):
            paths += [f"{name}/{path}" for path in every_path(node.operation)]
        paths.append(name)
    return paths


def _name_at(model, index, known):
    count = len(model.layers)
    if not -count <= index < count:
        raise ValueError(
            f"expected an index from {-count} to {count - 1} into the layers of '{model.name}', "
            f"received {index}."
        )
    name = model.layers[index].name
    if name not in known:
        raise ValueError(
            f"expected a layer that puts something out, received index {index}, which is the "
            f"input '{name}' of '{model.name}': what it holds are the images."
        )
    return name
