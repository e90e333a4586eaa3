"""Networks to show a photo to: a known one by name, or the reader's own from a file."""

from collections.abc import Callable, Sequence
import contextlib
from dataclasses import dataclass
import json
from pathlib import Path

from cam_helpers import backbones, cams, layers, model_files
from cam_helpers.backend import keras
from cam_helpers.checks import check_input, check_model
from cam_helpers.placement import Placement
from cam_helpers.receptive_field import field_of, receptive_fields
import numpy as np

SCALES = {  # what a network was trained on, of pixels from 0 to 255
    "0..255": lambda images: images,
    "0..1": lambda images: images / 255,
    "-1..1": lambda images: images / 127.5 - 1,
    "caffe": lambda images: _as_imagenet_had_it(images, "caffe"),
    "torch": lambda images: _as_imagenet_had_it(images, "torch"),
}
OPEN_SIZE = 224  # pixels, where a model leaves height or width open
GREY = np.array([[0.299], [0.587], [0.114]], np.float32)  # ITU-R 601, as Pillow converts


@dataclass(frozen=True)
class Network:
    """A network and what is needed to show it a photo.

    Attributes
    ----------
    name
        What figures call it.
    model
        From images as ``prepare`` makes them to logits.
    size
        Height and width of its images in pixels.
    prepare
        From (batch, height, width, 3) float32 RGB, 0 to 255, to what the network wants.
    labels
        One for each class.
    layer
        Path of the layer that class activation maps explain; None if no layer has maps.
    placement
        ``"resize"`` where it cannot be told what the layer's cells see.
    """

    name: str
    model: keras.Model
    size: tuple[int, int]
    prepare: Callable[[np.ndarray], np.ndarray]
    labels: Sequence[str]
    layer: str | None
    placement: Placement


def known_network(name: str, layer: str | None = None) -> Network:
    """Return a network by name, as ``backbones.load_backbone`` finds it or what stands in for it.

    Raises
    ------
    ValueError
        If there is no such layer.
    """
    backbone = backbones.load_backbone(name)
    known = backbones.labels()
    labels = [known.get(index, f"class {index}") for index in range(1000)]
    weights = "" if backbone.weights == "ImageNet" else f", {backbone.weights}: means nothing"
    return Network(
        backbone.name + weights,
        backbone.model,
        backbone.input_size,
        backbone.preprocess,
        labels,
        *_layer(backbone.model, layer, backbone.input_size),
    )


def own_network(
    path: str | Path,
    layer: str | None = None,
    *,
    scale: str | None = None,
    labels: Sequence[str] | None = None,
    safe_mode: bool = True,
) -> Network:
    """Return a network from a file of the reader's.

    Parameters
    ----------
    path, safe_mode
        As for ``model_files.load_model``.
    layer
        As for ``cams.grad_cam``.
    scale
        What its training made of pixels from 0 to 255, one of ``SCALES``. None if the network
        does that itself, in a layer ``Rescaling`` or ``Normalization``.
    labels
        One for each class; None for their numbers.

    Raises
    ------
    OSError, ValueError
        As ``model_files.load_model``; and if the model takes no RGB or grey images, if scale or
        labels do not fit it, or if there is no such layer.
    """
    model = model_files.load_model(path, safe_mode=safe_mode)
    check_input(model)
    classes = check_model(model)
    *size, channels = (side for side in model.inputs[0].shape[1:])
    if channels not in (None, 1, 3):
        raise ValueError(
            f"expected a model of grey or RGB images, received '{model.name}', which takes "
            f"{channels} channels: explain it in Python, where images can be any array."
        )
    if scale is None and not rescales(model):
        raise ValueError(
            f"expected to know how the training of '{model.name}' scaled pixels, received no "
            f"scale: give --scale, one of {', '.join(SCALES)}."
        )
    if labels is not None and len(labels) != classes:
        raise ValueError(
            f"expected {classes} labels, one for each class, received {len(labels)}: the order is "
            "that of the model's outputs."
        )
    if labels is None:
        labels = [f"class {index}" for index in range(classes)]

    if channels == 1 and scale in ("caffe", "torch"):
        raise ValueError(
            f"expected a scale for grey images, received '{scale}', which is for three channels: "
            "give 0..255, 0..1 or -1..1."
        )

    def prepare(images):
        images = images @ GREY if channels == 1 else images
        return SCALES[scale or "0..255"](images).astype(np.float32)

    size = tuple(side or OPEN_SIZE for side in size)
    logits = layers.to_logits(model)
    return Network(Path(path).name, logits, size, prepare, labels, *_layer(logits, layer, size))


def read_labels(path: str | Path) -> list[str]:
    """Return labels from a file: one on each line, or JSON.

    JSON is a list, or Keras's ``class_indices``, which has the index of each label.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, is no text, or is JSON of another kind.
    """
    received = f"expected labels, a JSON list or one on each line, received '{path}'"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise type(error)(f"{received} ({error.strerror}): check its name and folder.") from error
    except ValueError as error:
        raise ValueError(f"{received}, which is no text: save it as UTF-8.") from error
    labels = text.splitlines()
    with contextlib.suppress(ValueError):  # text that begins like JSON
        labels = json.loads(text) if text.lstrip().startswith(("[", "{")) else labels
    if isinstance(labels, dict):
        each_once = {*map(repr, labels.values())} == {*map(repr, range(len(labels)))}
        labels = sorted(labels, key=labels.get) if each_once else labels
    if not isinstance(labels, list) or not all(isinstance(each, str) for each in labels):
        raise ValueError(
            f"{received} with another kind of JSON: list them in the order of the model's outputs."
        )
    return [label.strip() for label in labels if label.strip()]


def layer_table(network: Network) -> list[list[str]]:
    """Return rows of text: a star for the layer explained, path, output, distance and size.

    ValueError if the network has no layer to explain.
    """
    if network.layer is None:
        layers.explainable_layer(network.model)  # says why there is none
    rows = [["", "layer", "output", "cells apart", "each sees"]]
    sizes = receptive_fields(network.model, network.size)
    shapes = _shapes(network.model)
    for path in layers.map_layers(network.model):
        height, width, maps = (side or "?" for side in shapes[path][1:])
        field = sizes.get(path)
        rows.append(
            [
                "*" if path == network.layer else "",
                path,
                f"{height} × {width} × {maps}",
                " × ".join(f"{side:g}" for side in field.stride) if field else "?",
                " × ".join(f"{side}" for side in field.size) if field else "?",
            ]
        )
    return rows


def placement_at(model: keras.Model, layer: str | None, size: tuple[int, int]) -> Placement:
    """Return where the map of a layer is drawn: where it looked or, if unknown, ``"resize"``."""
    try:
        field_of(model, layer, size, "receptive_field")
    except ValueError:
        return "resize"
    return "receptive_field"


def rescales(model: keras.Model) -> bool:
    """Return whether a model has a layer, also inside another model, that scales pixels itself."""
    return any(
        rescales(node.operation)
        if layers.is_nested(node.operation)
        else type(node.operation).__name__ in ("Rescaling", "Normalization")
        for node in layers.nodes(model)
    )


def _shapes(model):
    """The output's shape of each layer by its path."""
    shapes = {}
    for node in layers.nodes(model):
        name = node.operation.name
        shapes[name] = node.outputs[0].shape
        if layers.is_nested(node.operation):
            inside = _shapes(node.operation)
            shapes |= {f"{name}/{path}": shape for path, shape in inside.items()}
    return shapes


def _layer(model, layer, size):
    """The path of the layer to explain, None if there is none, and how its maps are placed."""
    try:
        layer = layer or layers.explainable_layer(model)
    except ValueError:
        return None, "resize"
    layers.split(model, layer)
    path = cams.layer_path(model, layer)
    return path, placement_at(model, path, size)


def _as_imagenet_had_it(images, mode):
    return keras.applications.imagenet_utils.preprocess_input(images.copy(), mode=mode)
