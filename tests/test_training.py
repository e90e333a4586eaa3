"""A training that is killed, for real, and goes on."""

import json
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
keras.utils.set_random_seed(1)
model = keras.Sequential([
    keras.Input((28, 28, 1)), keras.layers.Conv2D(32, 3, activation="relu"),
    keras.layers.BatchNormalization(), keras.layers.MaxPooling2D(4), keras.layers.Dropout(0.5),
    keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")])
images, labels = garments.dataset(600, seed=0)
folder = sys.argv[1]
training.train(model, images, labels, folder=folder, validation_data=(images[:50], labels[:50]),
               epochs={EPOCHS}, batch_size=20, seed=1)
np.savez(folder + "/weights.npz", *model.get_weights())
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)], stderr=subprocess.PIPE, text=True
    )


def rows(folder):
    path = folder / training.LOG
    return json.loads(path.read_text())["epochs"] if path.exists() else []


def test_a_killed_training_ends_like_an_undisturbed_one(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed).wait() == 0

    process = start(killed)
    while process.poll() is None and len(rows(killed)) < 3:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    reached = len(rows(killed))
    assert 3 <= reached < EPOCHS, "the training was over before it could be killed"
    kept = rows(killed)[: reached - 1]

    again = start(killed)
    _, progress = again.communicate()
    assert again.returncode == 0
    assert "epoch 1 of" not in progress  # it went on, and did not start again
    assert rows(killed)[: reached - 1] == kept
    for one, other in zip(rows(undisturbed), rows(killed), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    with np.load(undisturbed / "weights.npz") as one, np.load(killed / "weights.npz") as other:
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


def cut_weights_short(backup):
    path = backup / "latest.weights.h5"
    path.write_bytes(path.read_bytes()[:-500])


def keep_old_number_of_epoch(backup):
    (backup / "training_metadata.json").write_text('{"epoch": 1, "batch": 0}')


def write_half_a_number(backup):
    (backup / "training_metadata.json").write_text('{"epo')


@pytest.mark.parametrize("reached", [1, 2])
@pytest.mark.parametrize(
    "damage", [cut_weights_short, keep_old_number_of_epoch, write_half_a_number]
)
def test_a_kill_while_the_backup_is_written_does_no_harm(tiny, tmp_path, damage, reached):
    model, images, labels = tiny
    first, second = keras.models.clone_model(model), keras.models.clone_model(model)
    for copy in (first, second):
        copy.set_weights(model.get_weights())
    undisturbed = fit(tiny, tmp_path / "undisturbed", epochs=3)

    fit((first, images, labels), tmp_path / "killed", epochs=reached)
    damage(tmp_path / "killed" / "backup")
    log = fit((second, images, labels), tmp_path / "killed", epochs=3)

    for one, other in zip(undisturbed["epochs"], log["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_backup_that_cannot_be_read_at_all_is_not_thrown_away(tiny, tmp_path):
    fit(tiny, tmp_path)
    kept = [tmp_path / "backup" / f"latest.weights.h5{end}" for end in ("", ".bkp")]
    for path in kept:
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(OSError, match=r"truncated file|Unable to"):
        fit(tiny, tmp_path, epochs=3)
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 4}, {"epochs": 1}])
def test_a_folder_with_another_training_is_refused(tiny, tmp_path, other):
    before = fit(tiny, tmp_path)
    with pytest.raises(ValueError, match="name another folder, or delete this one"):
        fit(tiny, tmp_path, **other)
    assert json.loads((tmp_path / training.LOG).read_text()) == before
