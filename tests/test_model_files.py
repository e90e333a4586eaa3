"""Models from files: what loads computes the same as before, and all else gets one sentence."""

import contextlib
import io
import json
import os
from pathlib import Path
import time
import warnings
import zipfile

from cam_helpers import cams, faithfulness, gradients, layers, model_files, models, saved_models
from cam_helpers.backend import keras, tf
import h5py
import numpy as np
import pytest

L = keras.layers
FILES = Path(__file__).parent / "files"
KERAS_2 = json.loads((FILES / "keras2.json").read_text())  # what Keras 2 computed of images()


def images(count=2):
    return np.random.default_rng(0).random((count, 8, 8, 3)).astype(np.float32)


def network(*inside, activation=None, **head):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    for layer in inside:
        x = layer(x)
    x = L.Dense(3, activation=activation, name="scores", **head)(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x, name="net")


def nested():
    return keras.Sequential([keras.Input((8, 8, 3)), L.Rescaling(2.0), network(), L.Dense(2)])


def save(model, path):
    with contextlib.redirect_stderr(io.StringIO()):
        model.save(path)
    return path


def refused(path, kind=ValueError, **options):
    """The one sentence that a path gets, and nothing else."""
    with warnings.catch_warnings(action="error"), pytest.raises(kind, match=r"\.$") as error:
        models.load_model(path, **options)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.startswith("expected a ")
    assert f"received '{path}'" in sentence
    return sentence.partition(f"'{path}'")[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with logits, and the SavedModel that Keras 3 makes of it."""
    model, folder = network(), tmp_path_factory.mktemp("exported") / "net"
    model.export(folder, verbose=False)
    return model, folder


# what loads


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("build", [network, nested])
def test_a_saved_model_comes_back_uncompiled(build, suffix, tmp_path, capfd):
    model = build()
    model.compile("adam", "mse")
    path = save(model, tmp_path / f"model{suffix}")
    capfd.readouterr()
    with warnings.catch_warnings(action="error"):
        loaded = models.load_model(str(path))
        np.testing.assert_array_equal(loaded(images()), model(images()))
        assert not loaded.compiled
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("saved", [".keras", ".h5"])
def test_the_content_counts_and_not_the_name(saved, tmp_path):
    path = save(network(), tmp_path / f"model{saved}")
    for name in ("other.keras", "other.h5", "other"):
        renamed = path.rename(tmp_path / name)
        np.testing.assert_array_equal(models.load_model(renamed)(images()), network()(images()))
        path = renamed


@pytest.mark.parametrize(
    "file", ["functional.h5", "sequential.h5", "sequential.keras", "saved_model"]
)
def test_what_keras_3_loads_of_keras_2_computes_the_same(file, capfd):
    with warnings.catch_warnings(action="error"):
        model = models.load_model(FILES / f"keras2_{file}", safe_mode=file != "saved_model")
        scores = model(images())
    name = "functional" if "functional" in file else "sequential"
    np.testing.assert_allclose(scores, KERAS_2[name], atol=1e-6)
    assert capfd.readouterr() == ("", "")


def test_own_layers_are_asked_for_by_name_and_load_when_given(tmp_path):
    class Twice(L.Layer):
        def call(self, x):
            return 2 * x

    @keras.saving.register_keras_serializable("mine")
    class Half(L.Layer):
        def call(self, x):
            return x / 2

    def square(x):
        return x * x

    known = dict(keras.saving.get_custom_objects())
    try:
        model = network(Twice(), Half(), L.Conv2D(2, 1, activation=square))
        for suffix in (".keras", ".h5"):
            path = save(model, tmp_path / f"own{suffix}")
            keras.saving.get_custom_objects().clear()
            sentence = refused(path)
            assert 'custom_objects={"Twice": Twice, "mine>Half": Half' in sentence
            own = {"Twice": Twice, "mine>Half": Half}
            if suffix == ".h5":  # holds the function by its name alone, which is asked for next
                assert '{"square": square} with your code.' in refused(path, custom_objects=own)
            else:
                assert '"square": square} with your code.' in sentence
            loaded = models.load_model(path, custom_objects={**own, "square": square})
            np.testing.assert_array_equal(loaded(images()), model(images()))
            keras.saving.get_custom_objects().update({"mine>Half": Half})
    finally:
        keras.saving.get_custom_objects().clear()
        keras.saving.get_custom_objects().update(known)


# what carries a program


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("where", ["in a model", "in a model in a model", "in a layer"])
def test_a_lambda_is_refused_until_it_is_trusted(where, suffix, tmp_path):
    code = L.Lambda(lambda x: x + 1)
    inside = {
        "in a model": code,
        "in a model in a model": keras.Sequential([keras.Input((6, 6, 4)), code]),
        "in a layer": L.TimeDistributed(code),
    }[where]
    model = network(inside)
    path = save(model, tmp_path / f"code{suffix}")
    sentence = refused(path)
    assert "a model with Lambda in it, by which whoever made the file could run" in sentence
    assert sentence.endswith("safe_mode=False (on the command line --no-safe-mode).")
    loaded = models.load_model(path, safe_mode=False)
    np.testing.assert_array_equal(loaded(images()), model(images()))


def test_code_in_the_training_is_no_matter_as_it_is_left_out(tmp_path):
    model = network()
    model.compile("sgd", lambda true, found: true - found)
    path = save(model, tmp_path / "model.keras")
    np.testing.assert_array_equal(models.load_model(path)(images()), model(images()))


def test_a_function_of_python_itself_is_none_of_keras(tmp_path):
    path = save(network(L.Activation("relu")), tmp_path / "model.keras")
    system = {"class_name": "function", "config": "system", "module": "os"}

    def change(config):
        layer = next(each for each in config["config"]["layers"] if each["name"] == "activation")
        layer["config"]["activation"] = {**system, "registered_name": "system"}

    keras.backend.clear_session()
    path = save(network(L.Activation("relu", name="activation")), path)
    rewrite(path, change)
    for safe_mode in (True, False):
        assert 'needs system: pass custom_objects={"system": sy' in refused(
            path, safe_mode=safe_mode
        )


def rewrite(path, change_config=lambda config: None, version=None):
    """Write a .keras file again with another configuration or version of Keras."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config, metadata = (json.loads(content[name]) for name in ("config.json", "metadata.json"))
    change_config(config)
    metadata["keras_version"] = version or metadata["keras_version"]
    content |= {"config.json": json.dumps(config), "metadata.json": json.dumps(metadata)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


# SavedModels


def test_a_saved_model_is_a_program(exported):
    assert ", a SavedModel, by which whoever made the file could run" in refused(exported[1])


def test_maps_at_the_pixels_of_a_saved_model_are_those_of_the_model(exported):
    model, folder = exported
    step = models.load_model(folder, safe_mode=False)
    batch = images()
    for method, options in [
        (gradients.saliency, {}),
        (gradients.smooth_grad, {"samples": 3}),
        (gradients.integrated_gradients, {"steps": 4}),
    ]:
        expected = method(model, batch, [0, 2], **options)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(method(step, batch, [0, 2], **options), expected, atol=1e-6)
    drawn = np.abs(expected).max(axis=-1)
    np.testing.assert_allclose(
        faithfulness.deletion(step, batch, drawn, 1).probabilities,
        faithfulness.deletion(model, batch, drawn, 1).probabilities,
        atol=1e-6,
    )


def test_a_saved_model_has_no_layers_to_explain_or_to_guide_through(exported):
    step = models.load_model(exported[1], safe_mode=False)
    for layer in (None, "conv"):
        with pytest.raises(ValueError, match="a SavedModel, which keeps the computation but"):
            cams.grad_cam(step, images(), 0, layer=layer)
    for method in (gradients.guided_backprop, gradients.deconvnet):
        with pytest.raises(ValueError, match=r"expected layers without a tf.function of their own"):
            method(step, images(), 0)


@pytest.mark.parametrize("ending", ["softmax", "sigmoid", "tanh"])
def test_a_saved_model_that_ends_in_another_thing_than_logits_is_refused(ending, tmp_path):
    network(activation=ending).export(tmp_path / "net", verbose=False)
    sentence = refused(tmp_path / "net", safe_mode=False)
    assert f"which ends in {ending.title()}: export a model that returns logits" in sentence


def test_the_last_operation_is_found_through_calls_and_reshapes():
    @tf.function
    def inner(x):
        return x + 1, tf.nn.softmax(x)

    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def outer(x):
        return tf.reshape(tf.identity(inner(x)[1]), (-1, 3))

    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def other(x):
        return tf.identity(inner(x)[0])

    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def nothing(x):
        return tf.identity(x)

    found = [saved_models.last_operation(each.get_concrete_function()) for each in (outer, other)]
    assert found == ["Softmax", "AddV2"]
    assert saved_models.last_operation(nothing.get_concrete_function()) == "Placeholder"


def export(folder, *signatures, shape=(None, 8, 8, 3), dtype=tf.float32, outputs=1, inputs=1):
    module, spec = tf.Module(), tf.TensorSpec(shape, dtype)
    module.kernel = tf.Variable(tf.ones((192, 2)))

    def run(*given):
        flat = tf.reshape(tf.cast(sum(given), tf.float32), (-1, 192))
        return {f"out{index}": flat @ module.kernel for index in range(outputs)}

    module.run = tf.function(run, input_signature=[spec] * inputs)
    tf.saved_model.save(module, folder, {name: module.run for name in signatures})
    return folder


def test_a_saved_model_of_tensorflow_computes_what_it_did(tmp_path):
    folder = export(tmp_path / "net", "mine")
    step = models.load_model(folder, safe_mode=False)
    np.testing.assert_allclose(
        step(images()), images().sum(axis=(1, 2, 3))[:, None] * [[1, 1]], 1e-5
    )
    many = models.load_model(export(tmp_path / "two", "a", "serving_default"), safe_mode=False)
    np.testing.assert_array_equal(many(images()), step(images()))


SAVED_MODELS = {
    "signatures": (("a", "b"), {}, "has the signatures a, b: export it with one, called serving_d"),
    "no signature": ((), {}, "has no signature: export it with one, called serving_default."),
    "outputs": (("a",), {"outputs": 2}, "has 1 inputs and 2 outputs: export a keras.Model of one"),
    "inputs": (("a",), {"inputs": 2}, "has 2 inputs and 1 outputs: export a keras.Model of one im"),
    "one batch": (("a",), {"shape": (1, 8, 8, 3)}, "takes float32 (1, 8, 8, 3): export it for"),
    "integers": (("a",), {"dtype": tf.uint8}, "takes uint8 (None, 8, 8, 3): export it for float32"),
    "no images": (("a",), {"shape": (None, 192)}, "takes float32 (None, 192): export it for float"),
}


@pytest.mark.parametrize("case", SAVED_MODELS)
def test_other_saved_models_are_refused(case, tmp_path):
    names, options, sentence = SAVED_MODELS[case]
    folder = export(tmp_path / "net", *names, **options)
    assert f"which {sentence}" in refused(folder, safe_mode=False)


@pytest.mark.parametrize("part", ["saved_model.pb", "variables/variables.index"])
def test_a_damaged_saved_model_is_refused(part, exported, tmp_path):
    for file in exported[1].rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(exported[1])
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    whole = (tmp_path / part).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 100, None):
        (tmp_path / part).unlink() if damaged is None else (tmp_path / part).write_bytes(damaged)
        sentence = refused(tmp_path, safe_mode=False)
        assert "is damaged or not whole" in sentence or "without saved_model.pb" in sentence


# what is no model


def test_no_file_a_folder_a_pipe_and_no_path(tmp_path):
    assert refused(tmp_path / "no.keras", FileNotFoundError).startswith(" (no such file or dir")
    refused(tmp_path / ("a" * 300), OSError)
    assert " is a folder without saved_model.pb: name the" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.h5")
    assert " is no file: save the model to one." in refused(tmp_path / "pipe.h5")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", OSError)
    for path in (None, 3, b"model.keras"):
        with pytest.raises(ValueError, match="expected a model file by its path, rec"):
            models.load_model(path)
    with pytest.raises(
        ValueError, match=r"^expected a model file, received 'a.x00b' .*embedded null"
    ):
        models.load_model("a\0b")


def test_a_file_that_may_not_be_read(tmp_path):
    path = save(network(), tmp_path / "secret.keras")
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        assert refused(path, PermissionError).startswith(" (permission denied): check path and p")
    finally:
        if root:
            os.seteuid(0)


def weights_alone(folder):
    network().save_weights(folder / "net.weights.h5")
    return folder / "net.weights.h5"


def write(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def archive(folder):
    with zipfile.ZipFile(folder / "net.keras", "w") as file:
        file.writestr("archive/data.pkl", b"weights of PyTorch")
    return folder / "net.keras"


def bomb(folder):
    with zipfile.ZipFile(folder / "net.keras", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", bytes(10_000_000))
    return folder / "net.keras"


def bare_layer(folder):
    keras.saving.save_model(network(), folder / "net.keras")
    config = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}}

    def change(old):
        old.clear()
        old.update(config, build_config={"input_shape": [None, 2]}, registered_name=None)

    rewrite(folder / "net.keras", change)
    return folder / "net.keras"


def numbers(folder):
    with h5py.File(folder / "numbers.h5", "w") as file:
        file["numbers"] = np.arange(3)
    return folder / "numbers.h5"


OTHERS = {
    "weights": (weights_alone, "holds weights alone: build the model in code and load_weights fro"),
    "nothing": (write("a.keras", b""), "is empty: get or save it again."),
    "text": (write("a.keras", b"<html>"), "is neither (or no longer whole): save it with model."),
    "half a name": (write("a.h5", b"\x89HD"), "is neither (or no longer whole)"),
    "a header": (write("a.h5", b"\x89HDF\r\n\x1a\n"), "is damaged or not whole: get or save it"),
    "a zip": (archive, "is a zip archive of something else: save it with model.save."),
    "a bomb": (bomb, "unpacks to far more than it is: save it with model.save, uncompressed."),
    "HDF5": (numbers, "is an HDF5 file of something else: save it with model.save."),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_are_refused(case, tmp_path):
    make, sentence = OTHERS[case]
    assert f"which {sentence}" in refused(make(tmp_path))


def test_what_keras_refuses_gets_its_reason(tmp_path):
    path = bare_layer(tmp_path)
    assert "Dense" in refused(path) or "Keras cannot load" in refused(path)
    path = save(network(), path)
    rewrite(path, lambda config: config["config"]["layers"][1]["config"].update(filters=9))
    assert "Keras cannot load (ValueError: Input 0 with name" in refused(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_cut_anywhere_is_refused(suffix, tmp_path):
    path = save(network(), tmp_path / f"cut{suffix}")
    whole = path.read_bytes()
    for share in np.linspace(0, 0.999, 60 if suffix == ".keras" else 5):
        path.write_bytes(whole[: int(share * len(whole))])
        assert "is damaged" in refused(path) or share < 1e-3


def test_a_byte_changed_in_a_keras_file_is_noticed(tmp_path):
    path = save(network(), tmp_path / "changed.keras")
    whole = path.read_bytes()
    weights = zipfile.ZipFile(path).getinfo("model.weights.h5").header_offset
    for place in np.linspace(weights + 60, len(whole) * 0.9, 20).astype(int):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert "is damaged or not whole: get or save it again." in refused(path)


def test_an_hdf5_file_that_hangs_its_library_is_refused(tmp_path, monkeypatch):
    path = save(network(), tmp_path / "hangs.h5")
    content = bytearray(path.read_bytes())
    size = content.index(b"conv/kernel\0") - 8  # of an object in HDF5's heap
    content[size + 1] = 2
    path.write_bytes(content)
    monkeypatch.setattr(model_files, "SECONDS", 2)
    before = time.perf_counter()
    assert "is damaged or not whole" in refused(path)
    assert time.perf_counter() - before < 10


# other versions of Keras


@pytest.mark.parametrize("file", ["functional.keras", "nested.keras", "nested.h5"])
def test_a_file_of_keras_2_that_does_not_load_names_both_versions_and_a_way_out(file):
    path = FILES / f"keras2_{file}"
    assert refused(path) == (
        f", which Keras 2.21.0 saved and Keras {keras.__version__} cannot load: build the model in "
        "code and load_weights from it."
    )
    x = inputs = keras.Input((8, 8, 3))
    if "nested" in file:
        inside = keras.Input((8, 8, 3))
        x = L.Conv2D(3, 3, activation="relu", name="deep")(inside)
        x = keras.Model(inside, x, name="backbone")(inputs)
    else:
        x = L.Conv2D(3, 3, name="conv")(inputs)
        x = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(x))
    x = L.Dense(3, name="scores")(L.GlobalAveragePooling2D(name="average")(x))
    model = keras.Model(inputs, x if "nested" in file else keras.ops.softmax(x))
    model.load_weights(path)
    expected = KERAS_2["nested" if "nested" in file else "functional"]
    np.testing.assert_allclose(model(images()), expected, atol=1e-6)


def test_a_file_of_a_newer_keras_names_both_versions(tmp_path):
    path = save(network(), tmp_path / "newer.keras")
    rewrite(path, version="3.99.0")
    assert layers.explainable_layer(models.load_model(path)) == "conv"  # it loads all the same
    rewrite(path, lambda config: config["config"]["layers"][1]["config"].update(new=1), "3.99.0")
    assert refused(path) == (
        f", which Keras 3.99.0 saved and Keras {keras.__version__} cannot load: update Keras, or "
        "build the model in code and load_weights from it."
    )
