"""The networks that the tutorial explains, and what one needs to know of any network."""

import json
from pathlib import Path

from cam_helpers import data, writing
from cam_helpers.backbones import Backbone, load_backbone
from cam_helpers.backend import keras
from cam_helpers.layers import explainable_layer, to_contrast, to_logits
from cam_helpers.model_files import load_model
from cam_helpers.receptive_field import receptive_field, receptive_fields

__all__ = [
    "Backbone",
    "explainable_layer",
    "fashion_cnn",
    "load_backbone",
    "load_fashion_cnn",
    "load_fashion_cnn_log",
    "load_model",
    "receptive_field",
    "receptive_fields",
    "save_fashion_cnn",
    "to_contrast",
    "to_logits",
]

WEIGHTS = "fashion_cnn.weights.h5"
POOLED_WEIGHTS = "fashion_cnn_pooled.weights.h5"
LOG = "fashion_cnn.log.json"


def fashion_cnn(pooled_head: bool = False) -> keras.Model:
    """Return the untrained Fashion-MNIST network of notebook 01, with 548,170 parameters.

    Eight 2×2 convolutions, each followed by batch normalisation, in three stages closed by 2×2 max
    pooling. The last convolution is called ``final``; its output is (7, 7, 256). Call
    ``keras.utils.set_random_seed`` first to get the same initial weights again.

    Parameters
    ----------
    pooled_head
        Average the last maps over their cells instead of flattening them: 527,690 parameters. The
        network that notebook 09 compares.

    Returns
    -------
    keras.Model
        Functional model, input ``input`` (batch, 28, 28, 1) float32 in [0, 1], output
        ``Dense_10nb`` (batch, 10) probabilities.
    """
    stages = [[32, 32, 64, 64], [128, 128], [256, 256]]
    inputs = x = keras.Input((28, 28, 1), name="input")
    number = 0
    for stage, filters in enumerate(stages, start=1):
        for maps in filters:
            number += 1
            name = "final" if number == 8 else f"conv{number}"
            x = keras.layers.Conv2D(maps, 2, padding="same", activation="relu", name=name)(x)
            x = keras.layers.BatchNormalization(name=f"norm{number}")(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool{stage}")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(x)
    if pooled_head:
        x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    else:
        x = keras.layers.Flatten(name="flatten")(x)
    outputs = keras.layers.Dense(10, activation="softmax", name="Dense_10nb")(x)
    return keras.Model(inputs, outputs, name="fashion_cnn")


def load_fashion_cnn(pooled_head: bool = False) -> keras.Model:
    """Return :func:`fashion_cnn` with the committed weights, trained by the recipe of notebook 01.

    ``pooled_head`` is as for :func:`fashion_cnn`; the same seed, images and epochs.

    Raises
    ------
    FileNotFoundError
        If ``data.folder()`` does not hold the weights.
    """
    path = data.folder() / (POOLED_WEIGHTS if pooled_head else WEIGHTS)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: restore it with git, or run `make weights`")
    model = fashion_cnn(pooled_head)
    model.load_weights(path)
    return model


def load_fashion_cnn_log() -> dict:
    """Return the log of the committed weights' training, as :func:`training.train` returned it."""
    return json.loads((data.folder() / LOG).read_text(encoding="utf-8"))


def save_fashion_cnn(model: keras.Model, log: dict, folder: str | Path) -> None:
    """Save the weights of a :func:`fashion_cnn`, without the optimizer's state, and their log.

    Weights alone load in every Keras from 3.13 on; a whole model saved by 3.15 does not. What was
    there stays until both are whole; OSError says why they cannot be written.
    """
    bare, folder = fashion_cnn(), Path(folder)
    bare.set_weights(model.get_weights())
    with writing.together(folder) as hidden, writing.explained(folder / WEIGHTS):
        writing.save_weights(bare, hidden / WEIGHTS)
        (hidden / LOG).write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
