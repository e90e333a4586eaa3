"""A whole model from a file, to be explained: ``.keras``, ``.h5``, or the folder of a SavedModel.

What the file is, its content says, not its name. Each failure is one sentence that names the file.
"""

import contextlib
import io
import json
import logging
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile

from cam_helpers import model_configs, saved_models
from cam_helpers.backend import keras
import h5py

ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"  # how the two kinds of file begin
UNPACKED = 100  # times its size on disk: Keras itself does not compress

# A damaged HDF5 file can make its library run in circles or crash: another process goes first.
READ_ALL = """
import h5py, sys
def read(name, item):
    dict(item.attrs)
with h5py.File(sys.argv[1]) as file:
    read("", file)
    file.visititems(read)
"""
SECONDS = 20


def load_model(
    path: str | os.PathLike, *, safe_mode: bool = True, custom_objects: dict | None = None
) -> keras.Model:
    """Return the model that a file holds, as it was saved, but not compiled for training.

    A ``.keras`` file has checksums, and a flipped byte is noticed; in the weights of a ``.h5`` file
    it is not. A SavedModel comes back as one step from images to scores. Methods at the pixels and
    those that only run the network explain it; it has no layers, so there is no CAM, and no guided
    backpropagation, of it.

    Parameters
    ----------
    path
        A ``.keras`` or ``.h5`` file, or the folder of a SavedModel.
    safe_mode
        Refuse what may hold a program of whoever made the file: a ``Lambda`` layer in ``.keras``
        and ``.h5``, and every SavedModel, as TensorFlow's graphs can read and write files. False
        is for files that you trust as you trust a program.
    custom_objects
        Layers and functions of your own that the model needs, by name.

    Returns
    -------
    keras.Model
        Uncompiled. Of a SavedModel, a functional one whose output is (batch, classes) of logits.

    Raises
    ------
    OSError
        If there is no such file, or it may not be read.
    ValueError
        If it holds no whole model: weights alone, something else, or a damaged one; if safe_mode
        refuses it; if it needs custom_objects that are not given, or another Keras; or if a
        SavedModel ends in softmax, or has several inputs or outputs.

    References
    ----------
    https://keras.io/guides/serialization_and_saving; on programs in files,
    https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md. Notebook 10.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"expected a model file by its path, received {type(path).__name__}: pass a string or "
            "a pathlib.Path."
        )
    path = Path(path)
    head = _beginning(path)
    if head is None:
        if safe_mode:
            raise _unsafe(path, "a SavedModel")
        with _quiet():
            return saved_models.load(path)
    try:
        read = _of_zip if head.startswith(ZIP) else _of_hdf5
        config, version, *problem = read(path)
    except Exception as error:  # h5py's and zipfile's are of many kinds
        raise _refusal(path, "is damaged or not whole", "get or save it again") from error
    if problem:
        raise _refusal(path, *problem)
    if safe_mode and (code := model_configs.code_in(config)):
        raise _unsafe(path, f"a model with {code} in it")
    try:
        if model_configs.lacks_an_input(config):
            raise ValueError("a layer's input is missing")
        with _quiet(), _named(path, ".keras" if head.startswith(ZIP) else ".h5") as named:
            model = keras.models.load_model(
                named, custom_objects=custom_objects, compile=False, safe_mode=safe_mode
            )
    except Exception as error:
        unknown = model_configs.unknown_names(config, error, custom_objects or {})
        raise _refused_by_keras(path, version, error, unknown) from error
    if not isinstance(model, keras.Model):
        raise _refusal(path, f"holds a {type(model).__name__}", "save a keras.Model")
    if isinstance(getattr(model, "input", None), list) and len(model.inputs) == 1:
        # Keras 2's, which would warn at each call that the image is in no list.
        return keras.Model(
            model.inputs[0],
            model.outputs[0] if len(model.outputs) == 1 else model.outputs,
            name=model.name,
        )
    return model


def _beginning(path):
    """The first bytes of a file, or None for the folder of a SavedModel."""
    try:
        path.stat()
        head = b""
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(len(HDF5))
    except (OSError, ValueError) as error:
        kind = type(error) if isinstance(error, OSError) else ValueError
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise kind(
            f"expected a model file, received {str(path)!r} ({reason}): check path and permissions."
        ) from error
    if (path / "saved_model.pb").is_file():
        return None
    if path.is_dir():
        raise _refusal(path, "is a folder without saved_model.pb", "name the file inside it")
    if not path.is_file():
        raise _refusal(path, "is no file", "save the model to one")
    if not head:
        raise _refusal(path, "is empty", "get or save it again")
    if not head.startswith((ZIP, HDF5)):
        raise _refusal(path, "is neither (or no longer whole)", "save it with model.save")
    return head


def _of_zip(path):
    """Configuration and Keras version of a .keras archive whose checksums are right.

    If it is another archive, also what it is and the way out.
    """
    with zipfile.ZipFile(path) as archive:
        if "config.json" not in archive.namelist():
            return None, "", "is a zip archive of something else", "save it with model.save"
        if sum(each.file_size for each in archive.infolist()) > UNPACKED * path.stat().st_size:
            return (
                None,
                "",
                "unpacks to far more than it is",
                "save it with model.save, uncompressed",
            )
        if archive.testzip() is not None:
            raise zipfile.BadZipFile
        metadata = json.loads(archive.read("metadata.json"))
        config = json.loads(archive.read("config.json"))
        config.pop("compile_config", None)  # of the training, which is left out
        return config, str(metadata["keras_version"])


def _of_hdf5(path):
    """Configuration and Keras version of a .h5 file; else also what it is and the way out."""
    command = [sys.executable, "-c", READ_ALL, str(path.absolute())]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    with h5py.File(path) as file:
        config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
        weights = {"layers", "_layer_checkpoint_dependencies", "vars", "model_weights"} & {*file}
        weights = weights or "layer_names" in file.attrs
    if config is None and weights:
        return None, "", "holds weights alone", "build the model in code and load_weights from it"
    if config is None:
        return None, "", "is an HDF5 file of something else", "save it with model.save"
    return json.loads(config), version.decode() if isinstance(version, bytes) else str(version)


def _refused_by_keras(path, version, error, unknown):
    """The likeliest reason why Keras did not load a file that is whole, in one sentence."""
    if unknown:
        names = ", ".join(f'"{name}": {name.rpartition(">")[2]}' for name in unknown)
        way_out = f"pass custom_objects={{{names}}} with your code"
        return _refusal(path, f"needs {', '.join(unknown)}", way_out)
    theirs, ours = (
        [int(number) for number in re.findall(r"\d+", each)[:2]]
        for each in (version, keras.__version__)
    )
    rebuild = "build the model in code and load_weights from it"
    if theirs > ours or theirs[:1] < ours[:1]:
        what = f"Keras {version} saved and Keras {keras.__version__} cannot load"
        return _refusal(path, what, f"update Keras, or {rebuild}" if theirs > ours else rebuild)
    said = " ".join(str(error).split())[:100].rstrip(".")
    return _refusal(
        path, f"Keras cannot load ({type(error).__name__}: {said})", f"save it again, or {rebuild}"
    )


def _refusal(path, what, way_out):
    return ValueError(
        f"expected a whole model (.keras, .h5 or a SavedModel folder), received '{path}', which "
        f"{what}: {way_out}."
    )


def _unsafe(path, what):
    return ValueError(
        f"expected a model without code of its own, received '{path}', {what}, by which whoever "
        "made the file could run any program on your machine: if you trust them, pass "
        "safe_mode=False (on the command line --no-safe-mode)."
    )


@contextlib.contextmanager
def _quiet():
    """Keep what Keras prints, logs and warns of from the reader."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _named(path, suffix):
    """The file under a name that tells Keras what it is."""
    if path.name.endswith(suffix):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(path, Path(folder) / f"model{suffix}"))
