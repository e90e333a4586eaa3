"""Files of arrays too large for memory: written piece by piece, whole or not there at all.

Such a file is an ``.npz`` that ``np.load`` opens without pickle. Beside the array it holds a label,
small strings that say of what the array is; a file with another label is never overwritten.
"""

from collections.abc import Iterable
import contextlib
import hashlib
import io
import json
import os
from pathlib import Path
import zipfile
import zlib

from cam_helpers.backend import keras
from cam_helpers.layers import graph_of, is_nested, nodes
import numpy as np

LEVEL = 1  # zlib's fastest


def digest_of_model(model: keras.Model) -> str:
    """Return the SHA-256 of what a model computes: architecture and weights, not names."""
    digest = hashlib.sha256(json.dumps(_architecture(model), sort_keys=True, default=str).encode())
    for weight in model.weights:
        digest.update(f"{weight.dtype} {weight.shape}".encode())
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()


def _architecture(model):
    """What is computed of what, without the names, as Keras numbers layers anew in each session."""
    numbers, calls = {}, []
    for tensor in graph_of(model).inputs:
        numbers[id(tensor)] = f"tensor {len(numbers)}"
    for node in nodes(model):
        operation = node.operation
        if is_nested(operation):
            what = _architecture(operation)
        else:
            config = operation.get_config().items()
            what = {key: value for key, value in config if key not in ("name", "trainable")}
        given = keras.tree.flatten([node.arguments.args, node.arguments.kwargs])
        given = [numbers.get(id(each), each) for each in given]
        calls.append([type(operation).__name__, what, given])
        for tensor in node.outputs:
            numbers[id(tensor)] = f"tensor {len(numbers)}"
    return calls


def is_there(file: Path, label: dict[str, str]) -> bool:
    """Return whether a file with this label is there; FileExistsError if it has another."""
    if not file.exists():
        return False
    try:
        with np.load(file) as saved:
            other = [key for key, value in label.items() if str(saved[key]) != value]
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        other = ["kind"]
    if other:
        raise FileExistsError(
            f"expected '{file.name}' to be missing or to hold the same, received one of another "
            f"{' and another '.join(other)}: choose another folder, or delete it."
        )
    return True


def write_piece(piece: Path, array: np.ndarray) -> None:
    """Write an array to a file that is there only once it is whole."""
    packed = io.BytesIO()
    np.save(packed, array)
    with _whole(piece, piece.parent) as file:
        file.write(zlib.compress(packed.getbuffer(), LEVEL))


def join_pieces(
    pieces: Iterable[Path], file: Path, name: str, count: int, label: dict[str, str]
) -> None:
    """Write the array (count, ...) that pieces make up in a row, with one in memory at a time."""
    options = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": LEVEL}
    pieces = list(pieces)
    with (
        _whole(file, pieces[0].parent) as whole,
        zipfile.ZipFile(whole, "w", **options) as archive,
    ):
        for key, value in label.items():
            with archive.open(f"{key}.npy", "w") as member:
                np.save(member, np.array(value))
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            for number, piece in enumerate(pieces):
                array = np.load(io.BytesIO(zlib.decompress(piece.read_bytes())))
                if number == 0:
                    header = np.lib.format.header_data_from_array_1_0(array)
                    shape = (count, *array.shape[1:])
                    np.lib.format.write_array_header_1_0(member, {**header, "shape": shape})
                member.write(array.tobytes())


@contextlib.contextmanager
def _whole(path, folder):
    """Open a file to write in a folder beside; it moves to its place once it is written."""
    beside = folder / f"{os.getpid()}.part"
    with beside.open("wb") as file:
        yield file
    os.replace(beside, path)
