"""Files of activations too large for memory: written piece by piece, whole or not there at all.

Such a file is an ``.npz`` that ``np.load`` opens without pickle. Beside ``activations`` it holds a
label, small strings that say of what they are; a file with another label is never overwritten.
"""

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path
import uuid
import zipfile
import zlib

from cam_helpers.backend import keras
from cam_helpers.layers import graph_of, is_nested, nodes
from cam_helpers.writing import explained
import numpy as np

LEVEL = 1  # zlib's fastest
OTHERS = {"place": "a layer at another place", "images": "other images"}


def digest_of_model(model: keras.Model) -> str:
    """Return the SHA-256 of what a model computes: architecture and weights, not names.

    A layer or function of one's own, of which Keras knows no more than a name, counts as what it
    makes of noise. Another machine may round that otherwise, and so take it for another one.
    """
    calls = _architecture(model, {})
    return hashlib.sha256(json.dumps(calls, sort_keys=True, default=_leaf).encode()).hexdigest()


def _architecture(model, numbers):
    """What is computed of what, without the names, as Keras numbers layers anew in each session."""

    def number(each):
        return f"# {numbers.setdefault(id(each), len(numbers))}"

    graph = graph_of(model)
    calls = [[number(each) for each in graph.inputs]]
    for node in nodes(model):
        operation, given = node.operation, [node.arguments.args, node.arguments.kwargs]
        if is_nested(operation):
            what = _architecture(operation, numbers)
        else:
            what = [type(operation).__name__, _does(node), *getattr(operation, "weights", [])]
        given = keras.tree.map_structure(lambda x: number(x) if id(x) in numbers else x, given)
        calls.append([what, given, [number(each) for each in node.outputs]])
    return [*calls, [number(each) for each in graph.outputs]]


def _does(node):
    """A layer's settings, if they tell all; else what it makes of noise."""
    with contextlib.suppress(NotImplementedError):
        if not _is_own(node.operation):
            settings = node.operation.get_config().items()
            return {key: value for key, value in settings if key not in ("name", "trainable")}
    with contextlib.suppress(Exception):  # its code may ask for anything
        normal, noise = np.random.default_rng(0).normal, {}
        for each in node.input_tensors:
            noise[id(each)] = keras.ops.cast(normal(size=[n or 8 for n in each.shape]), each.dtype)
        args, kwargs = node.arguments.fill_in(noise)
        return keras.tree.flatten(node.operation(*args, **kwargs))
    return uuid.uuid4()  # never the same again


def _is_own(operation):
    """Whether it runs code that is neither Keras's nor TensorFlow's."""
    parts = list(getattr(operation, "_flatten_layers", lambda: [operation])())
    code = [each for part in parts for each in (type(part), *vars(part).values()) if callable(each)]
    places = [str(getattr(each, "__module__", None)) for each in code]
    theirs = all(place.startswith(("keras.", "tensorflow.")) for place in places)
    return not theirs or any(isinstance(part, keras.layers.Lambda) for part in parts)


def _leaf(value):
    """What JSON cannot write: an array as dtype, shape and digest."""
    if not hasattr(value, "__array__"):
        return str(value)
    array = np.asarray(value)
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def is_there(file: Path, label: dict[str, str]) -> bool:
    """Return whether a file with this label is there; FileExistsError if it has another."""
    if not file.exists():
        return False
    try:
        with np.load(file) as saved:
            other = [key for key, value in label.items() if str(saved[key]) != value]
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        other = ["kind"]
    if other:
        raise FileExistsError(
            f"expected '{file.name}' to be missing or to hold the same, received one of "
            f"{' and '.join(OTHERS.get(key, f'another {key}') for key in other)}: choose another "
            "folder, or delete it."
        )
    return True


def write_piece(piece: Path, array: np.ndarray) -> None:
    """Write an array to a file that is there only once it is whole."""
    packed = io.BytesIO()
    np.save(packed, array)
    with contextlib.suppress(FileNotFoundError), _whole(piece, piece) as file:  # or cleared away
        file.write(zlib.compress(packed.getbuffer(), LEVEL))


def is_whole(piece: Path) -> bool:
    """Return whether a piece is there and undamaged."""
    with contextlib.suppress(OSError, EOFError, ValueError, zlib.error):
        return _read(piece) is not None
    return False


def join_pieces(pieces: list[Path], file: Path, count: int, label: dict[str, str]) -> None:
    """Write the array (count, ...) that pieces make up in a row; one at a time is in memory."""
    level = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": LEVEL}
    try:
        with _whole(file, pieces[0]) as whole, zipfile.ZipFile(whole, "w", **level) as archive:
            for key, value in label.items():
                with archive.open(f"{key}.npy", "w") as member:
                    np.save(member, np.array(value))
            with archive.open("activations.npy", "w", force_zip64=True) as member:
                for number, piece in enumerate(pieces):
                    array = _read(piece)
                    if number == 0:
                        header = np.lib.format.header_data_from_array_1_0(array)
                        header["shape"] = (count, *array.shape[1:])
                        np.lib.format.write_array_header_1_0(member, header)
                    member.write(array.tobytes())
    except (FileExistsError, FileNotFoundError):
        if not is_there(file, label):  # another call has written it, and cleared the pieces
            raise


def _read(piece):
    return np.load(io.BytesIO(zlib.decompress(piece.read_bytes())))


def clear(folder: Path, starts: list[str]) -> None:
    """Remove the pieces of what is finished, and their folder unless it holds others."""
    with contextlib.suppress(OSError):
        for start in starts:
            for piece in folder.glob(f"{start}.*"):
                piece.unlink(missing_ok=True)
        folder.rmdir()


@contextlib.contextmanager
def _whole(path, piece):
    """Open a file beside a piece; once it is written, it becomes it, or a file not yet there."""
    beside = piece.with_name(f"{piece.name}.{uuid.uuid4().hex}.part")
    try:
        with explained(piece.parent.parent if path == piece else path):
            piece.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if path == piece:
                os.replace(beside, path)
                return
            try:
                os.link(beside, path)
            except OSError:  # it is there, or this file system has no links
                path.open("xb").close()
                os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
