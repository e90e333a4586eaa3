"""A training that is killed and stopped, for real, and goes on."""

import json
import re
import signal
import subprocess
import sys
import time

from cam_helpers import training
from cam_helpers.backend import keras
import numpy as np
import pytest

EPOCHS = 8
RUN = f"""
import sys
from cam_helpers import garments, training
from cam_helpers.backend import keras, tf
import numpy as np
tf.config.experimental.enable_op_determinism()
images, labels = garments.dataset(600, seed=0)
def run(folder):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([
        keras.Input((28, 28, 1)), keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.BatchNormalization(), keras.layers.MaxPooling2D(4), keras.layers.Dropout(0.5),
        keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")])
    training.train(model, images, labels, folder=folder, validation_data=(images[:50], labels[:50]),
                   epochs={EPOCHS}, batch_size=20, seed=1)
    np.savez(folder + "/weights.npz", *model.get_weights())
for folder in sys.argv[1:]:
    try:
        run(folder)
    except KeyboardInterrupt:
        print("the caller knows", flush=True)
        run(folder)
"""


def start(*folders):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, folders)],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(folder):
    path = folder / training.LOG
    return json.loads(path.read_text())["epochs"] if path.exists() else []


def stop(process, number, folder, reached):
    """Send a signal once so many epochs are logged."""
    while process.poll() is None and len(rows(folder)) < reached:
        time.sleep(0.01)
    assert process.poll() is None, "the training was over before it could be stopped"
    process.send_signal(number)


def test_a_training_that_is_stopped_and_killed_ends_like_an_undisturbed_one(tiny, tmp_path):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"

    process = start(stopped)
    stop(process, signal.SIGKILL, stopped, 2)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = rows(stopped)[:1]
    (stopped / ".state.npz.1234.part").write_text("half a sta")

    process = start(stopped)
    stop(process, signal.SIGINT, stopped, 3)
    assert process.stdout.readline() == "the caller knows\n"
    assert sorted(path.name for path in stopped.iterdir()) == [".lock", "log.json", "state.npz"]
    before = (stopped / training.LOG).read_bytes()
    stop(process, 0, stopped, 4)  # it is at it again
    message = f"expected to be the only run that writes into '{stopped}', received a folder"
    with pytest.raises(BlockingIOError, match=message):
        fit(tiny, stopped)
    assert process.poll() is None
    stop(process, signal.SIGTERM, stopped, 5)
    _, said = process.communicate()
    assert process.returncode == 143
    assert "Traceback" not in said
    for line, name in zip(
        [line for line in said.splitlines() if line.startswith("Stopped")],
        ("Ctrl-C", "SIGTERM"),
        strict=True,
    ):
        words = rf"^Stopped by {name} in epoch (\d) of 8: the same call goes on after epoch (\d)\.$"
        now, after = map(int, re.match(words, line).groups())
        assert now - after == 1
    assert json.loads(before)["epochs"][:1] == kept
    assert sorted(path.name for path in stopped.iterdir()) == [".lock", "log.json", "state.npz"]

    process = start(stopped, undisturbed)
    _, progress = process.communicate()
    assert process.returncode == 0
    assert "epoch 1 of" not in progress.split("epoch 8 of")[0]  # it went on, and did not start anew
    assert rows(stopped)[:1] == kept
    for one, other in zip(rows(undisturbed), rows(stopped), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    with np.load(undisturbed / "weights.npz") as one, np.load(stopped / "weights.npz") as other:
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture
def tiny():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    )
    images = np.random.default_rng(0).random((12, 4, 4, 1), dtype=np.float32)
    labels = np.arange(12, dtype=np.int32) % 2
    return model, images, labels


def fit(tiny, folder, **options):
    model, images, labels = tiny
    options = {"epochs": 2, "batch_size": 5, "progress": False, **options}
    return training.train(
        model, images, labels, folder=folder, validation_data=(images, labels), **options
    )


def test_log_says_what_was_done(tiny, tmp_path):
    log = fit(tiny, tmp_path)
    assert log["recipe"] == {
        "images": 12,
        "validation_images": 12,
        "batch_size": 5,
        "seed": 0,
        "parameters": 34,
    }
    assert [row["epoch"] for row in log["epochs"]] == [1, 2]
    assert set(log["epochs"][0]) == {
        "epoch",
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "seconds",
    }
    assert json.loads((tmp_path / training.LOG).read_text()) == log


def test_recipe_is_adam_with_inverse_time_decay(tiny, tmp_path):
    fit(tiny, tmp_path)
    schedule = tiny[0].optimizer._learning_rate
    assert isinstance(tiny[0].optimizer, keras.optimizers.Adam)
    assert int(tiny[0].optimizer.iterations) == 6  # two epochs of ceil(12 / 5) steps
    assert float(schedule(0)) == pytest.approx(1e-4)
    assert float(schedule(10_000)) == pytest.approx(1e-4 / 1.01)


def test_each_epoch_sees_each_image_once_in_another_order():
    epoch = training.tf.Variable(0, dtype="int64")
    numbers = np.arange(12, dtype=np.int32)
    batches = training._shuffled_batches(numbers, numbers, 5, 0, epoch)
    orders = []
    for number in (0, 1, 0):
        epoch.assign(number)
        orders.append(np.concatenate([labels for _, labels in batches]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == numbers.tolist()
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_more_epochs_go_on_from_a_finished_training(tiny, tmp_path):
    fit(tiny, tmp_path)
    log = fit(tiny, tmp_path, epochs=3)
    assert [row["epoch"] for row in log["epochs"]] == [1, 2, 3]
    assert int(tiny[0].optimizer.iterations) == 9


@pytest.mark.parametrize("reached", [1, 2])
def test_a_kill_between_log_and_state_does_no_harm(tiny, tmp_path, reached):
    model, images, labels = tiny
    first, second = keras.models.clone_model(model), keras.models.clone_model(model)
    for copy in (first, second):
        copy.set_weights(model.get_weights())
    undisturbed = fit(tiny, tmp_path / "undisturbed", epochs=3)

    folder, old = tmp_path / "killed", None
    if reached == 2:
        fit((first, images, labels), folder, epochs=1)
        old = (folder / training.STATE).read_bytes()
    fit((first, images, labels), folder, epochs=reached)
    (folder / training.STATE).write_bytes(old) if old else (folder / training.STATE).unlink()
    log = fit((second, images, labels), folder, epochs=3)

    for one, other in zip(undisturbed["epochs"], log["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_the_same_call_with_the_same_model_starts_anew(tiny, tmp_path, monkeypatch, capsys):
    model, images, labels = tiny
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    undisturbed = fit((copy, images, labels), tmp_path / "undisturbed")

    def interrupt(self, batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training._ProgressLine, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny, tmp_path / "stopped")
    line = "Stopped by Ctrl-C in epoch 1 of 2: the same call starts anew.\n"
    assert capsys.readouterr().err.endswith(line)
    log = fit(tiny, tmp_path / "stopped")
    for one, other in zip(undisturbed["epochs"], log["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_state_without_its_log_is_not_taken_up(tiny, tmp_path):
    fit(tiny, tmp_path)
    (tmp_path / training.LOG).unlink()
    log = fit(tiny, tmp_path, epochs=1, seed=1)
    assert [row["epoch"] for row in log["epochs"]] == [1]
    assert int(tiny[0].optimizer.iterations) == 3


def test_a_state_that_cannot_be_read_is_not_thrown_away(tiny, tmp_path):
    fit(tiny, tmp_path)
    state = tmp_path / training.STATE
    half = state.read_bytes()[:-500]
    for damaged in (half, b"", half[:2000] + bytes(1000) + half[3000:]):
        state.write_bytes(damaged)
        message = f"^expected a training's state, received '{state}', which is damaged: delete it"
        with pytest.raises(OSError, match=message):
            fit(tiny, tmp_path, epochs=3)
        assert state.read_bytes() == damaged


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 4}, {"epochs": 1}])
def test_a_folder_with_another_training_is_refused(tiny, tmp_path, other):
    before = fit(tiny, tmp_path)
    with pytest.raises(ValueError, match="name another folder, or delete this one"):
        fit(tiny, tmp_path, **other)
    assert json.loads((tmp_path / training.LOG).read_text()) == before
