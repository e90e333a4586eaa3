"""Training that can be killed and goes on: the recipe of notebook 01."""

import json
import os
from pathlib import Path
import platform
import time

from cam_helpers.backend import GPUS, keras, tf
import numpy as np
from tqdm import tqdm

LOG = "log.json"


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
    """
    folder = Path(folder)
    recipe = {
        "images": len(images),
        "validation_images": len(validation_data[0]),
        "batch_size": batch_size,
        "seed": seed,
        "parameters": model.count_params(),
    }
    log = _open_log(folder / LOG, recipe, epochs)
    schedule = keras.optimizers.schedules.InverseTimeDecay(1e-4, decay_steps=1, decay_rate=1e-6)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    with tf.device("CPU"):
        epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
    batches = _shuffled_batches(images, labels, batch_size, seed, epoch)
    model.fit(
        batches,
        epochs=epochs,
        validation_data=validation_data,
        validation_batch_size=500,
        shuffle=False,
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_begin=lambda number, _: epoch.assign(number)),
            _Log(folder / LOG, log),  # before the backup: an epoch may be logged twice, never lost
            _Backup(folder / "backup", double_checkpoint=True, delete_checkpoint=False),
            *([_ProgressLine(epochs, len(batches))] if progress else []),
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


def _open_log(path, recipe, epochs):
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
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return fresh
    log = json.loads(path.read_text())
    if log["recipe"] != recipe or len(log["epochs"]) > epochs:
        raise ValueError(
            f"{path.parent} holds {len(log['epochs'])} epochs of {log['recipe']}, expected at most "
            f"{epochs} of {recipe}: name another folder, or delete this one."
        )
    return log


class _Backup(keras.callbacks.BackupAndRestore):
    """Keras's backup, with the two things that it leaves out taken from the optimizer's step count.

    It writes weights and number of the epoch one after the other: a kill between the two would
    train an epoch twice. And it does not keep how often dropout has drawn: once a step.
    """

    def on_train_begin(self, logs=None):
        Path(self.backup_dir, "training_metadata.json").unlink(missing_ok=True)
        try:
            super().on_train_begin(logs)
        except OSError:
            if Path(self.backup_dir, "latest.weights.h5.bkp").exists():
                raise
            Path(self.backup_dir, "latest.weights.h5").unlink()  # half of the first backup
        steps = int(self.model.optimizer.iterations)
        self.model._initial_epoch = steps // self.params["steps"]
        for state in self.model.variables:
            if state.name == "seed_generator_state":
                state.assign([state[0], steps])


class _Log(keras.callbacks.Callback):
    """Writes one row an epoch, beside the old file and then over it."""

    def __init__(self, path, log):
        super().__init__()
        self.path, self.log = path, log

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, **{name: round(float(value), 6) for name, value in logs.items()}}
        row["seconds"] = round(time.perf_counter() - self.started, 1)
        self.log["epochs"] = [*self.log["epochs"][:epoch], row]
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.log, indent=1))
        os.replace(beside, self.path)


class _ProgressLine(keras.callbacks.Callback):
    """One line for the whole training: batches done, the epoch's number, accuracy so far."""

    def __init__(self, epochs, steps):
        super().__init__()
        self.epochs, self.steps = epochs, steps

    def on_train_begin(self, logs=None):
        self.line = tqdm(total=self.epochs * self.steps, unit="batch", mininterval=1)

    def on_epoch_begin(self, epoch, logs=None):
        self.line.n = epoch * self.steps
        self.line.set_description(f"epoch {epoch + 1} of {self.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self.line.update()

    def on_epoch_end(self, epoch, logs=None):
        self.line.set_postfix_str(
            f"accuracy {logs['accuracy']:.3f}, on new images {logs['val_accuracy']:.3f}"
        )

    def on_train_end(self, logs=None):
        self.line.close()
