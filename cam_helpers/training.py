"""Training that can be killed and goes on: the recipe of notebook 01."""

import io
import json
from pathlib import Path
import platform
import time
import zipfile
import zlib

from cam_helpers import writing
from cam_helpers.backend import GPUS, keras, tf
import numpy as np
from tqdm import tqdm

LOG, STATE = "log.json", "state.npz"


def train(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    folder: str | Path,
    validation_data: tuple[np.ndarray, np.ndarray],
    epochs: int = 25,
    batch_size: int = 150,
    seed: int = 0,
    progress: bool = True,
) -> dict:
    """Train ``model`` in place with the tutorial's recipe, going on where an earlier run stopped.

    Sparse categorical cross-entropy on probabilities; Adam with a learning rate of
    1e-4 / (1 + 1e-6 · step). Weights and optimizer are kept after each epoch. The order of the
    images follows from ``seed`` and the epoch, and dropout's draws from the step. So a run that was
    killed ends with the same weights as one that was left in peace.

    Parameters
    ----------
    model
        Classifier with softmax output, built after ``keras.utils.set_random_seed(seed)``.
    images, labels
        (n, height, width, channels) float32 and (n,) int.
    folder
        Where the state after each epoch and the log are kept. One training a folder.
    validation_data
        Images and labels to measure after each epoch. Nothing is chosen by them.
    epochs, batch_size, seed
        Length of the training, images a step, order of the images.
    progress
        Draw a progress line on stderr.

    Returns
    -------
    dict
        ``recipe``, ``versions``, ``device`` and one row an epoch in ``epochs``: number, loss and
        accuracy on the images seen in training, ``val_loss`` and ``val_accuracy`` on
        ``validation_data``, seconds.

    Raises
    ------
    ValueError
        If ``folder`` holds a training with another recipe, or a longer one.
    OSError
        If another training is at work in ``folder``, or nothing can be written there.
    """
    folder = Path(folder)
    recipe = {
        "images": len(images),
        "validation_images": len(validation_data[0]),
        "batch_size": batch_size,
        "seed": seed,
        "parameters": model.count_params(),
    }
    with writing.only_one(folder):
        log = _open_log(folder, recipe, epochs)
        schedule = keras.optimizers.schedules.InverseTimeDecay(1e-4, decay_steps=1, decay_rate=1e-6)
        model.compile(
            optimizer=keras.optimizers.Adam(schedule),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        with tf.device("CPU"):
            epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        batches = _shuffled_batches(images, labels, batch_size, seed, epoch)
        done = _restore(model, folder / STATE, len(batches))
        keep = _Keep(model, folder, log, epochs, done)
        line = tqdm(total=epochs * len(batches), unit="batch", mininterval=1, disable=not progress)
        with writing.stoppable(keep.where), line:
            model.fit(
                batches,
                initial_epoch=done,
                epochs=epochs,
                validation_data=validation_data,
                validation_batch_size=500,
                shuffle=False,
                verbose=0,
                callbacks=[
                    keras.callbacks.LambdaCallback(on_epoch_begin=lambda i, _: epoch.assign(i)),
                    keep,
                    _ProgressLine(line, epochs, len(batches)),
                ],
            )
    return log


def _shuffled_batches(images, labels, batch_size, seed, epoch):
    """Batches in an order that follows from seed and epoch: a restart has nothing to look up."""
    with tf.device("CPU"):
        images, labels = tf.constant(images), tf.constant(labels)

    def indices(_):
        order = tf.random.experimental.stateless_shuffle(tf.range(len(images)), seed=[seed, epoch])
        return tf.data.Dataset.from_tensor_slices(order)

    batches = tf.data.Dataset.range(1).flat_map(indices).batch(batch_size)
    batches = batches.map(lambda i: (tf.gather(images, i), tf.gather(labels, i)))
    steps = -(-len(images) // batch_size)
    return batches.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)


def _open_log(folder, recipe, epochs):
    versions = {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }
    fresh = {
        "recipe": recipe,
        "versions": versions,
        "device": "GPU" if GPUS else "CPU",
        "epochs": [],
    }
    if not (folder / LOG).exists():
        (folder / STATE).unlink(missing_ok=True)  # of which training, nobody knows
        return fresh
    try:
        log = json.loads((folder / LOG).read_text())
        kept, epochs_done = log["recipe"], len(log["epochs"])
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(
            f"expected a training's log, received '{folder / LOG}', which is damaged: delete "
            f"'{folder}' to start anew."
        ) from error
    if kept != recipe or epochs_done > epochs:
        raise ValueError(
            f"{folder} holds {epochs_done} epochs of {kept}, expected at most "
            f"{epochs} of {recipe}: name another folder, or delete this one."
        )
    return log


def _state(model):
    return [*model.weights, *model.optimizer.variables]


def _restore(model, path, steps):
    """Take up what the last whole epoch left; return how many epochs that makes.

    The state holds no draws of dropout: there is one a step.
    """
    model.optimizer.build(model.trainable_variables)
    if path.exists():
        try:
            with np.load(path) as saved:
                values = [saved[name] for name in saved]
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise OSError(
                f"expected a training's state, received '{path}', which is damaged: delete it to "
                "start anew."
            ) from error
        for variable, value in zip(_state(model), values, strict=True):
            variable.assign(value)
    done = int(model.optimizer.iterations)
    for variable in model.variables:
        if variable.name == "seed_generator_state":
            variable.assign([variable[0], done])
    return done // steps


class _Keep(keras.callbacks.Callback):
    """Writes one row an epoch, then the state: an epoch may be logged twice, never lost."""

    def __init__(self, model, folder, log, epochs, done):
        super().__init__()
        self.folder, self.log, self.epochs, self.done, self.epoch = folder, log, epochs, done, done
        if not done:
            self.write(model)  # from where the same call starts anew, with the same model

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.started = epoch, time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, **{name: round(float(value), 6) for name, value in logs.items()}}
        row["seconds"] = round(time.perf_counter() - self.started, 1)
        self.log["epochs"] = [*self.log["epochs"][:epoch], row]
        self.write(self.model)
        self.done = self.epoch = epoch + 1

    def write(self, model):
        with writing.whole(self.folder / LOG) as file:
            file.write(json.dumps(self.log, indent=1).encode())
        state = io.BytesIO()
        np.savez(state, *[variable.numpy() for variable in _state(model)])
        with writing.whole(self.folder / STATE) as file:
            file.write(state.getbuffer())

    def where(self):
        way_on = f"goes on after epoch {self.done}" if self.done else "starts anew"
        epoch = min(self.epoch + 1, self.epochs)
        return f"in epoch {epoch} of {self.epochs}: the same call {way_on}."


class _ProgressLine(keras.callbacks.Callback):
    """One line for the whole training: batches done, the epoch's number, accuracy so far."""

    def __init__(self, line, epochs, steps):
        super().__init__()
        self.line, self.epochs, self.steps = line, epochs, steps

    def on_epoch_begin(self, epoch, logs=None):
        self.line.n = epoch * self.steps
        self.line.set_description(f"epoch {epoch + 1} of {self.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self.line.update()

    def on_epoch_end(self, epoch, logs=None):
        self.line.set_postfix_str(
            f"accuracy {logs['accuracy']:.3f}, on new images {logs['val_accuracy']:.3f}"
        )
