"""The Fashion-MNIST network and its committed weights."""

from cam_helpers import data, models
from cam_helpers.backend import keras
import numpy as np
import pytest


@pytest.fixture(scope="module")
def trained():
    return models.load_fashion_cnn()


def test_architecture_is_the_one_described():
    model = models.fashion_cnn()
    assert model.count_params() == 548_170
    assert model.input_shape == (None, 28, 28, 1)
    assert [layer.name for layer in model.layers][-3:] == ["dropout", "flatten", "Dense_10nb"]
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [32, 32, 64, 64, 128, 128, 256, 256]
    assert {layer.kernel_size for layer in convolutions} == {(2, 2)}
    assert {layer.padding for layer in convolutions} == {"same"}
    assert convolutions[-1].name == "final"
    assert model.get_layer("final").output.shape == (None, 7, 7, 256)
    kinds = [type(layer).__name__ for layer in model.layers]
    after_convolutions = {kinds[i + 1] for i, kind in enumerate(kinds) if kind == "Conv2D"}
    assert after_convolutions == {"BatchNormalization"}
    pooled = [layer.output.shape[1:3] for layer in model.layers if "pool" in layer.name]
    assert pooled == [(14, 14), (7, 7), (3, 3)]
    assert model.get_layer("dropout").rate == 0.5


def test_pooled_head_changes_the_head_alone():
    flattened, pooled = models.fashion_cnn(), models.fashion_cnn(pooled_head=True)
    assert pooled.count_params() == 527_690
    names = [[layer.name for layer in model.layers] for model in (flattened, pooled)]
    assert [*names[0][:-2], "average", "Dense_10nb"] == names[1]
    shapes = [[each.shape for each in model.get_weights()][:-2] for model in (flattened, pooled)]
    assert shapes[0] == shapes[1]
    assert pooled.get_weights()[-2].shape == (256, 10)


def test_same_seed_same_network():
    keras.utils.set_random_seed(3)
    first = models.fashion_cnn().get_weights()
    keras.utils.set_random_seed(3)
    second = models.fashion_cnn().get_weights()
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_committed_weights_are_small_and_of_the_full_training():
    log = models.load_fashion_cnn_log()
    assert (data.folder() / models.WEIGHTS).stat().st_size < 3_000_000
    assert [row["epoch"] for row in log["epochs"]] == list(range(1, 26))
    assert log["recipe"] == {
        "images": 60_000,
        "validation_images": 10_000,
        "batch_size": 150,
        "seed": 0,
        "parameters": 548_170,
    }
    assert set(log["versions"]) == {"python", "tensorflow", "keras", "numpy"}
    assert all(row["seconds"] > 0 for row in log["epochs"])


def test_committed_weights_have_the_accuracy_that_their_log_says(trained, fashion_mnist):
    answers = trained.predict(fashion_mnist.test_images, batch_size=500, verbose=0).argmax(axis=1)
    accuracy = np.mean(answers == fashion_mnist.test_labels)
    assert accuracy == pytest.approx(
        models.load_fashion_cnn_log()["epochs"][-1]["val_accuracy"], abs=5e-4
    )


def test_committed_pooled_weights_are_small_and_good(fashion_mnist):
    assert (data.folder() / models.POOLED_WEIGHTS).stat().st_size < 3_000_000
    model = models.load_fashion_cnn(pooled_head=True)
    answers = model.predict(fashion_mnist.test_images, batch_size=500, verbose=0).argmax(axis=1)
    assert np.mean(answers == fashion_mnist.test_labels) >= 0.90


def test_saved_weights_load_and_carry_no_optimizer(trained, tmp_path):
    model = models.fashion_cnn()
    model.set_weights(trained.get_weights())
    model.compile("adam", "sparse_categorical_crossentropy")
    images = np.random.default_rng(0).random((150, 28, 28, 1), dtype=np.float32)
    model.fit(images, np.arange(150) % 10, batch_size=150, verbose=0)
    models.save_fashion_cnn(model, {"epochs": []}, tmp_path)
    assert (tmp_path / models.WEIGHTS).stat().st_size < 3_000_000
    loaded = models.fashion_cnn()
    loaded.load_weights(tmp_path / models.WEIGHTS)
    np.testing.assert_array_equal(loaded(images[:2]), model(images[:2]))


@pytest.mark.parametrize(
    ("pooled_head", "file"), [(False, models.WEIGHTS), (True, models.POOLED_WEIGHTS)]
)
def test_missing_weights_say_how_to_get_them(pooled_head, file, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "folder", lambda: tmp_path)
    message = f"{file} is missing: restore it with git, or run `make weights`"
    with pytest.raises(FileNotFoundError, match=message):
        models.load_fashion_cnn(pooled_head)
