"""What layers put out: against Keras and by hand, through kills on disk, and what excites most."""

import gc
import os
from pathlib import Path
import signal
import subprocess
import sys
import tracemalloc
import weakref
import zlib

from cam_helpers import activations, archives
from cam_helpers.activations import layer_activations, save_activations, strongest_activations
from cam_helpers.backend import keras
from cam_helpers.selection import select
import numpy as np
import pytest

L = keras.layers
SIZE = (12, 10, 2)


def network(seed=0, size=SIZE):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(size, name="image")
    x = L.Conv2D(5, 3, activation="relu", name="block1_conv1")(inputs)
    x = L.Conv2D(4, 3, activation="relu", name="block1_conv2")(x)
    x = L.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="block2_conv1")(x)
    x = L.BatchNormalization(name="norm")(x)
    x = L.Dense(3, activation="softmax", name="scores")(L.Flatten(name="flatten")(x))
    return keras.Model(inputs, x, name="network")


def images(count=5, seed=1, size=SIZE):
    return np.random.default_rng(seed).normal(size=(count, *size)).astype(np.float32)


def nested():
    """Two models in a model, one of them in another one."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, name="conv_1")(inputs)
    deep = keras.Model(inputs, L.ReLU(name="relu_1")(x), name="deep")
    left = keras.Sequential([keras.Input((8, 8, 3)), L.Rescaling(2.0), deep], name="left")
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(2, 3, name="conv_1")(inputs)
    right = keras.Model(inputs, L.ReLU(name="relu_1")(x), name="right")
    inputs = keras.Input((8, 8, 3))
    x = L.Concatenate(name="both")([left(inputs), right(inputs)])
    x = L.Dense(3, name="scores")(L.GlobalAveragePooling2D(name="mean")(x))
    return keras.Model(inputs, x, name="outer")


# layer_activations


def test_every_layer_is_what_the_layers_up_to_it_make():
    model, batch = network(), images()
    found, x = layer_activations(model, batch, "*"), batch
    for layer in model.layers[1:]:
        x = layer(x).numpy()
        assert found[layer.name].dtype == np.float32
        np.testing.assert_allclose(found[layer.name], x, atol=1e-6)
    assert list(found) == [layer.name for layer in model.layers[1:]]
    assert found["scores"].shape == (5, 3)
    assert found["block2_conv1"].max() > 0.1


def test_a_batch_is_its_images_one_by_one():
    model = network()
    for path, whole in layer_activations(model, images(), "*").items():
        for batch_size in (1, 2):
            found = layer_activations(model, images(), path, batch_size=batch_size)[path]
            np.testing.assert_allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("norm", ["norm"]),
        ("block*_conv1", ["block1_conv1", "block2_conv1"]),
        (1, ["block1_conv1"]),
        (-1, ["scores"]),
        (np.int64(-2), ["flatten"]),
        (["scores", "block1*", 1, "scores"], ["scores", "block1_conv1", "block1_conv2"]),
        (("block?_conv[2]",), ["block1_conv2"]),
        ((name for name in ["norm", "flatten"]), ["norm", "flatten"]),
    ],
)
def test_layers_by_name_index_and_pattern(wanted, expected):
    assert select(network(), wanted) == expected


def test_layers_come_in_the_order_asked_for():
    wanted = ["scores", "block1*", 1, "scores"]
    expected = ["scores", "block1_conv1", "block1_conv2"]
    assert list(layer_activations(network(), images(), wanted)) == expected


def test_patterns_and_paths_reach_into_models_in_models():
    model, batch = nested(), images(2, size=(8, 8, 3))
    wanted = ["right/relu_1", "left/deep/*_1", "left", "both", "scores"]
    found = layer_activations(model, batch, wanted)
    expected = ["right/relu_1", "left/deep/conv_1", "left/deep/relu_1", "left", "both", "scores"]
    assert list(found) == expected
    left, right = model.get_layer("left"), model.get_layer("right")
    deep = left.get_layer("deep")
    by_hand = {
        "right/relu_1": right(batch),
        "left/deep/conv_1": deep.get_layer("conv_1")(2 * batch),
        "left/deep/relu_1": deep(2 * batch),
        "left": left(batch),
        "both": np.concatenate([left(batch), right(batch)], axis=-1),
        "scores": model(batch),
    }
    for path, values in by_hand.items():
        np.testing.assert_allclose(found[path], values, atol=1e-6)
    assert found["left/deep/conv_1"].min() < 0
    assert list(layer_activations(model, batch, "left*"))[1:] == [
        "left/deep/conv_1",
        "left/deep/relu_1",
        "left/deep",
        "left",
    ]


def test_every_layer_of_a_nested_model_with_two_outputs():
    inputs = keras.Input((8, 8, 3))
    inner = keras.Model(inputs, [L.ReLU(name="relu")(inputs), L.Softmax(name="soft")(inputs)])
    inner.name = "inner"
    inputs = keras.Input((8, 8, 3))
    model, batch = keras.Model(inputs, L.Add(name="sum")(inner(inputs))), images(2, size=(8, 8, 3))
    found = layer_activations(model, batch, "*")
    relu, soft = np.maximum(batch, 0), keras.ops.softmax(batch)
    expected = {"inner/relu": relu, "inner/soft": soft, "inner": relu, "sum": relu + soft}
    assert sorted(found) == sorted(expected)
    for path, values in expected.items():
        np.testing.assert_allclose(found[path], values, atol=1e-6)


def test_an_operation_without_a_layer_has_a_name_too():
    inputs = keras.Input(SIZE)
    doubled = inputs * 2
    model = keras.Model(inputs, L.Flatten()(doubled))
    name = doubled._keras_history.operation.name
    np.testing.assert_array_equal(layer_activations(model, images(), name)[name], 2 * images())


def test_images_in_a_list_are_images():
    found = layer_activations(network(), list(images()), "norm")["norm"]
    np.testing.assert_array_equal(found, layer_activations(network(), images(), "norm")["norm"])


class OnDisk:
    """Images that are read as they are asked for."""

    shape, ndim, asked = (1000, *SIZE), 4, 0

    def __len__(self):
        return 1000

    def __getitem__(self, part):
        batch = images(1000)[part]
        self.asked += len(batch)
        batch[6 if part.start else 0, 0, 0, 0] = np.nan if part.start else 0
        return batch


def test_no_more_images_are_read_than_up_to_the_bad_one():
    several = OnDisk()
    with pytest.raises(ValueError, match=r"infinite ones in image 16: mend or leave it out\.$"):
        layer_activations(network(), several, "norm", batch_size=10)
    assert several.asked == 1 + 10 + 10


def test_images_of_any_size_and_any_precision():
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, L.Rescaling(3.0, name="three", dtype="float16")(inputs))
    for batch in (images(), images(2, size=(3, 4, 2)).astype(np.float64)):
        found = layer_activations(model, batch, "three")["three"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, 3 * batch, rtol=2e-3)


def test_nothing_is_changed_and_nothing_is_random():
    inputs = keras.Input(SIZE)
    x = L.Dropout(0.5, name="dropout")(L.BatchNormalization(momentum=0.5)(inputs))
    model, batch = keras.Model(inputs, x), images()
    weights, config = [w.copy() for w in model.get_weights()], str(model.get_config())
    found = layer_activations(model, batch, "dropout")["dropout"]
    np.testing.assert_allclose(found, batch / np.sqrt(1.001), atol=1e-6)
    np.testing.assert_array_equal(batch, images())
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert str(model.get_config()) == config


def test_weights_are_those_of_now():
    model = network()
    layer_activations(model, images(), "block1_conv1")
    model.get_layer("block1_conv1").bias.assign_add([1.0] * 5)
    expected = model.get_layer("block1_conv1")(images())
    found = layer_activations(model, images(), "block1_conv1")["block1_conv1"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_compiled_once_for_all_layers_and_only_up_to_the_deepest(monkeypatch):
    model = network()
    layer_activations(model, images(), "block1*")
    run = activations._compiled(model, ["block1_conv1", "block1_conv2"])
    monkeypatch.setattr(activations, "cut", None)  # would be called to compile anything
    layer_activations(model, images(), ["block1_conv2", "block1_conv1"])  # in another order
    kinds = [operation.type for operation in run.graph.get_operations()]
    assert kinds.count("Conv2D") == 2
    assert "MatMul" not in kinds


def test_a_dropped_model_takes_all_along():
    for make, size in ((network, SIZE), (nested, (8, 8, 3))):
        model = make()
        layer_activations(model, images(2, size=size), ["*conv*", "scores"])
        held = weakref.ref(model)
        del model
        gc.collect()
        assert held() is None


# save_activations


def test_what_is_saved_can_be_loaded_without_pickle(tmp_path):
    model, batch = nested(), images(7, size=(8, 8, 3))
    wanted = ["left/deep/relu_1", "scores"]
    files = save_activations(model, batch, wanted, tmp_path / "new" / "folder", batch_size=3)
    assert {path: file.name for path, file in files.items()} == {
        "left/deep/relu_1": "left__deep__relu_1.npz",
        "scores": "scores.npz",
    }
    expected = layer_activations(model, batch, wanted, batch_size=3)
    for path, file in files.items():
        with np.load(file, allow_pickle=False) as saved:
            assert str(saved["layer"]) == path
            assert saved["activations"].dtype == np.float32
            np.testing.assert_array_equal(saved["activations"], expected[path])
            assert {len(str(saved[key])) for key in ("model", "images")} == {64}
    assert sorted(path.name for path in files["scores"].parent.iterdir()) == [
        "left__deep__relu_1.npz",
        "scores.npz",
    ]


def test_half_precision_is_saved_as_float32(tmp_path):
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, L.Rescaling(3.0, name="three", dtype="float16")(inputs))
    file = save_activations(model, images(), "three", tmp_path)["three"]
    assert np.load(file)["activations"].dtype == np.float32
    with pytest.raises(FileExistsError, match="of other images"):  # the same bytes in another shape
        save_activations(model, images().reshape(5, 6, 20, 2), "three", tmp_path)


def test_it_is_compressed(tmp_path):
    nothing = np.zeros((20, *SIZE), np.float32)
    file = save_activations(network(), nothing, "block1_conv1", tmp_path)["block1_conv1"]
    assert file.stat().st_size < 20 * 10 * 8 * 5 * 4 / 10


def written(file):
    """Which file it is, and when it was written; reading it changes neither."""
    return file.stat().st_ino, file.stat().st_mtime_ns


def test_what_is_there_is_kept_and_the_rest_added(tmp_path, monkeypatch):
    first = save_activations(network(), images(), "norm", tmp_path)["norm"]
    before = written(first)
    both = save_activations(network(), images(), ["norm", "scores"], tmp_path)
    assert written(both["norm"]) == before
    alone = save_activations(network(), images(), "scores", tmp_path / "alone")["scores"]
    assert both["scores"].read_bytes() == alone.read_bytes()
    monkeypatch.setattr(archives, "write_piece", None)  # would be called to save anything
    assert save_activations(network(), images(), ["norm", "scores"], tmp_path) == both


def test_the_names_that_keras_makes_up_do_not_matter(tmp_path):
    def unnamed(scale=1.0):
        keras.utils.set_random_seed(0)
        inputs = keras.Input(SIZE)
        x = L.Conv2D(3, 3, name="conv")(inputs * scale)
        return keras.Model(inputs, L.Dense(2)(L.Dropout(0.5)(x)))

    first, again = unnamed(), unnamed()
    assert first.name != again.name
    file = save_activations(first, images(), "conv", tmp_path)["conv"]
    before = written(file)
    assert written(save_activations(again, images(), "conv", tmp_path)["conv"]) == before
    with pytest.raises(FileExistsError):
        save_activations(unnamed(scale=2.0), images(), "conv", tmp_path)


def interrupt(monkeypatch, model, layer, folder):
    """Leave all pieces of a layer's file in the folder, and no file."""
    with monkeypatch.context() as patch:
        patch.setattr(archives, "join_pieces", None)
        with pytest.raises(TypeError):
            save_activations(model, images(), layer, folder, batch_size=2)


def test_a_name_at_another_place_is_another_layer(tmp_path, monkeypatch):
    def two(*names):  # as Keras numbers them, one further in another session
        keras.utils.set_random_seed(0)
        layers = [L.Conv2D(2, 3, padding="same", name=name) for name in names]
        return keras.Sequential([keras.Input(SIZE), *layers])

    first, again = two("conv", "conv_1"), two("conv_1", "conv_2")
    assert archives.digest_of_model(first) == archives.digest_of_model(again)
    interrupt(monkeypatch, first, "conv_1", tmp_path)
    file = save_activations(again, images(), "conv_1", tmp_path, batch_size=2)["conv_1"]
    expected = again.get_layer("conv_1")(images())
    np.testing.assert_allclose(np.load(file)["activations"], expected, atol=1e-6)
    with pytest.raises(FileExistsError, match=r"received one of a layer at another place: choose"):
        save_activations(first, images(), "conv_1", tmp_path)


class Times(L.Layer):
    """It has no config, as an array is no JSON."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.times = factor, np.multiply

    def call(self, inputs):
        return self.times(1, self.factor) * inputs


@keras.saving.register_keras_serializable("test_activations")
class Plus(L.Layer):
    """Its config does not tell what it does."""

    more = 1

    def call(self, inputs):
        return inputs + self.more


def of_calls(call):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((40, 40, 3))
    return keras.Model(inputs, call(inputs))


def with_constant(value):
    constant = np.zeros((40, 40, 3), np.float32)
    constant[20, 20] = value
    return of_calls(lambda x: keras.ops.subtract(x, constant))


def shared_in_order(order):
    layers = [L.Conv2D(3, 3, padding="same") for _ in range(2)]
    return of_calls(lambda x: layers[0](layers[order](layers[0](layers[1](x)))))


def swapped_outputs(swap):
    inputs = keras.Input((40, 40, 3))
    relu = L.ReLU()(inputs)
    both = [relu, L.Softmax()(relu)]
    inner = keras.Model(inputs, both[::-1] if swap else both)
    return of_calls(lambda x: keras.ops.subtract(*inner(x)))


def of_function(value, layer=L.Lambda):
    def times(x):
        return x * value

    return of_calls(layer(times))


MODELS = {
    "constant": with_constant,
    "shared layers": shared_in_order,
    "outputs of a nested model": swapped_outputs,
    "argument": lambda axis: of_calls(lambda x: keras.ops.mean(x, axis=axis + 1)),
    "without config": lambda factor: of_calls(Times(np.array(factor + 1.0, np.float32))),
    "function": of_function,
    "activation": lambda value: of_function(value, L.Activation),
    "activation inside": lambda value: of_function(
        value, lambda times: L.TimeDistributed(L.Dense(2, activation=times, name="dense"))
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_the_digest_tells_models_apart_and_equal_ones_not(case):
    digests = [archives.digest_of_model(MODELS[case](which)) for which in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_of_a_saved_model_is_that_of_the_model_until_its_code_changes(
    tmp_path, monkeypatch
):
    def call(x):
        conv = L.Conv2D(3, 3, padding="same")
        x = Plus()(conv(L.Normalization(mean=[1, 2, 3.0], variance=[1, 2, 3])(conv(x))))
        x = L.Lambda(lambda x: 2 * x)(keras.ops.clip(x * np.ones(3, np.float32), 0, 1)[:, 1:])
        return L.TimeDistributed(L.Dense(2))(keras.Sequential([L.Dropout(0.5), L.ReLU(6.0)])(x))

    model = of_calls(call)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    digest = archives.digest_of_model(model)
    assert archives.digest_of_model(loaded) == digest
    monkeypatch.setattr(Plus, "more", 2)
    assert archives.digest_of_model(loaded) != digest


def test_a_layer_of_ones_own_can_be_saved(tmp_path):
    class Own(L.Layer):
        def __init__(self, anything, **options):
            super().__init__(**options)

        def call(self, inputs):
            return 2 * inputs

    inputs = keras.Input(SIZE)
    model = keras.Model(inputs, L.Lambda(lambda x: x + 1)(Own(object(), name="own")(inputs)[:, 1:]))
    for _ in range(2):
        file = save_activations(model, images(), "own", tmp_path)["own"]
    np.testing.assert_array_equal(np.load(file)["activations"], 2 * images())


def other_weights():
    model = network()
    model.get_layer("scores").bias.assign_add([0, 0, 1e-3])
    return model


def other_activation():
    model = network()
    model.get_layer("block1_conv1").activation = keras.activations.elu
    return model


OTHERS = {
    "seed": (lambda: network(seed=1), images, "another model:"),
    "weights": (other_weights, images, "another model:"),
    "activation": (other_activation, images, "another model:"),
    "images": (network, lambda: images(seed=2), "other images:"),
    "fewer images": (network, lambda: images()[:4], "other images:"),
    "order of images": (network, lambda: images()[::-1], "other images:"),
    "both": (lambda: network(seed=1), lambda: images(6), "another model and other images:"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_file_of_something_else_is_never_overwritten(case, tmp_path):
    model, batch, what = OTHERS[case]
    file = save_activations(network(), images(), "norm", tmp_path)["norm"]
    before = file.read_bytes()
    with pytest.raises(FileExistsError) as error:
        save_activations(model(), batch(), ["block1_conv1", "norm"], tmp_path)
    assert str(error.value) == (
        f"expected 'norm.npz' to be missing or to hold the same, received one of {what} "
        "choose another folder, or delete it."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["norm.npz"]
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"PK\3\4 half", b"\x93NUMPY", "array", "archive"])
def test_a_file_of_another_kind_is_never_overwritten(content, tmp_path):
    file = tmp_path / "norm.npz"
    if content == "array":
        with file.open("wb") as opened:
            np.save(opened, np.zeros(3))
    elif content == "archive":
        np.savez(file, activations=np.zeros(3))
    else:
        file.write_bytes(content)
    with pytest.raises(FileExistsError, match=r"received one of another kind: choose another fold"):
        save_activations(network(), images(), "norm", tmp_path)


def test_a_file_damaged_inside_is_of_another_kind(tmp_path):
    file = save_activations(network(), images(), "norm", tmp_path)["norm"]
    content = bytearray(file.read_bytes())
    start = 30 + content[26] + content[28]  # of the first label, after a header with two lengths
    content[start] = 0xFF
    file.write_bytes(content)
    with pytest.raises(FileExistsError, match=r"received one of another kind: choose another fold"):
        save_activations(network(), images(), "norm", tmp_path)


def meanwhile(monkeypatch, module, name, when, act):
    """Let something happen just before a function is called for the ``when``-th time."""
    function, calls = getattr(module, name), []

    def wrapped(*args, **options):
        calls.append(args)
        if len(calls) == when:
            act()
        return function(*args, **options)

    monkeypatch.setattr(module, name, wrapped)


def save(layers, folder, seed=0):
    return save_activations(network(seed), images(), layers, folder, batch_size=2)


@pytest.mark.parametrize(
    ("when", "other"),
    [
        ("write", "block1_conv1"),  # the same
        ("written", "block1_conv1"),
        ("join", "block1_conv1"),
        ("written", "norm"),  # all of it is there
        ("join", "scores"),
    ],
)
def test_another_call_at_the_same_time_does_no_harm(when, other, tmp_path, monkeypatch):
    expected = save(["block1_conv1"], tmp_path / "alone")["block1_conv1"].read_bytes()
    save(["norm"], tmp_path / "both")
    module, name, time = {
        "write": (zlib, "compress", 2),  # in the middle of a piece
        "written": (archives, "write_piece", 2),
        "join": (zlib, "decompress", 3),
    }[when]
    meanwhile(monkeypatch, module, name, time, lambda: save([other], tmp_path / "both"))
    file = save(["block1_conv1"], tmp_path / "both")["block1_conv1"]
    assert file.read_bytes() == expected
    names = {path.name for path in (tmp_path / "both").iterdir()}
    assert names == {"norm.npz", "block1_conv1.npz", f"{other}.npz"}


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_in_the_meantime_is_not_overwritten(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    meanwhile(monkeypatch, zlib, "decompress", 1, lambda: save(["norm"], tmp_path, seed=1))
    with pytest.raises(FileExistsError, match=r"received one of another model: choose another"):
        save(["norm"], tmp_path)
    assert str(np.load(tmp_path / "norm.npz")["model"]) == archives.digest_of_model(network(1))
    assert save(["norm"], tmp_path, seed=1)
    (tmp_path / "usual").touch()
    assert (tmp_path / "norm.npz").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_all_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace", "link"):
        function = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, call=function: done.append(name) or call(*a)
        )
    save(["norm"], tmp_path)
    assert done == ["fsync", "replace"] * 3 + ["fsync", "link"]


def test_a_complete_folder_is_not_written_to(tmp_path):
    save(["norm"], tmp_path)
    before = tmp_path.stat().st_mtime_ns
    save(["norm"], tmp_path)
    assert tmp_path.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [b"", "half", None])
def test_a_damaged_piece_is_computed_again(content, tmp_path, monkeypatch):
    expected = save(["norm"], tmp_path / "whole")["norm"].read_bytes()
    interrupt(monkeypatch, network(), "norm", tmp_path)
    piece = next(tmp_path.glob(".*/*.2-4"))
    half = piece.read_bytes()[: piece.stat().st_size // 2]
    piece.unlink() if content is None else piece.write_bytes(half if content else b"")
    assert save(["norm"], tmp_path)["norm"].read_bytes() == expected


def test_nothing_half_written_is_left_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(zlib, "compress", None)
    with pytest.raises(TypeError):
        save(["norm"], tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from cam_helpers import archives
import test_activations as here

calls = 0
def killed(call):
    def wrapped(*args):
        global calls
        calls += 1
        if calls == {when}:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    return wrapped

{module}.{name} = killed({module}.{name})
here.save_activations(here.network(), here.images(7), ["block1_conv1", "norm"], {folder!r},
                      batch_size=2)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows knows no SIGKILL")
def test_killed_again_and_again_it_ends_with_equal_files(tmp_path, monkeypatch):
    request = network(), images(7), ["block1_conv1", "norm"]
    expected = save_activations(*request, tmp_path / "whole", batch_size=2)
    folder = tmp_path / "killed"
    seen = []
    for module, name, when in (
        ("os", "replace", 4),  # when 1½ batches of two layers are there, and a piece without a name
        ("archives.zlib", "decompress", 10),  # in the middle of the second file
    ):
        code = KILLED.format(
            tests=str(Path(__file__).parent),
            module=module,
            name=name,
            when=when,
            folder=str(folder),
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        (unfinished,) = (path for path in folder.iterdir() if path.name.startswith("."))
        seen.append(
            (
                sorted(path.name for path in folder.glob("*.npz")),
                sum(path.suffix != ".part" for path in unfinished.iterdir()),
                [path.suffix for path in unfinished.iterdir()].count(".part"),
            )
        )
    assert seen == [([], 3, 1), (["block1_conv1.npz"], 8, 2)]
    monkeypatch.setattr(archives, "write_piece", None)  # all are there: nothing is computed again
    files = save_activations(*request, folder, batch_size=2)
    for path, file in files.items():
        assert file.read_bytes() == expected[path].read_bytes()
    assert sorted(folder.iterdir()) == sorted(files.values())


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    model, peaks = network(), {}
    for count in (40, 40, 1280):
        many = np.broadcast_to(images(1), (count, *SIZE))
        tracemalloc.start()
        save_activations(model, many, ["block1_conv1"], tmp_path / str(count), batch_size=20)
        strongest_activations(model, many, "block1_conv1", batch_size=20)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        saved = count * 10 * 8 * 5 * 4
    assert peaks[1280] < peaks[40] + 0.4 * saved  # Python's garbage; saved is 2 MB


def test_a_progress_bar_on_request(tmp_path, capsys):
    save_activations(network(), images(), "norm", tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    save_activations(network(), images(), "norm", tmp_path / "bar", batch_size=2, progress=True)
    assert "/4" in capsys.readouterr().err  # three batches and a file


# strongest_activations


def test_strongest_activations_are_those_of_all_activations():
    model, batch = network(), images(40)
    found = strongest_activations(model, batch, "block2_conv1", [4, 1], count=7, batch_size=6)
    every = layer_activations(model, batch, "block2_conv1")["block2_conv1"]
    assert (found.image.dtype, found.cell.dtype) == (np.int64, np.int64)
    assert found.value.dtype == np.float32
    assert (found.image.shape, found.cell.shape) == ((2, 7), (2, 7, 2))
    for row, k in enumerate([4, 1]):
        order = sorted(range(40), key=lambda index: -every[index, ..., k].max())[:7]
        assert found.image[row].tolist() == order
        np.testing.assert_allclose(found.value[row], every[order, ..., k].max(axis=(1, 2)), 1e-6)
        for index, cell in zip(order, found.cell[row], strict=True):
            assert tuple(cell) == np.unravel_index(every[index, ..., k].argmax(), (4, 3))


def test_of_equal_activations_the_first_image_and_cell_come_first():
    inputs = keras.Input((3, 4, 2))
    model = keras.Model(inputs, L.ReLU(name="relu")(inputs))
    batch = np.zeros((6, 3, 4, 2), np.float32)
    batch[2, 1, 3, 0] = batch[4, 0, 2, 0] = batch[4, 2, 1, 0] = 5
    found = strongest_activations(model, batch, "relu", count=4, batch_size=3)
    assert found.image.tolist() == [[2, 4, 0, 1], [0, 1, 2, 3]]
    assert found.cell[0].tolist() == [[1, 3], [0, 2], [0, 0], [0, 0]]
    assert found.value.tolist() == [[5, 5, 0, 0], [0, 0, 0, 0]]


def test_as_many_as_there_are_images_and_all_below_zero():
    inputs = keras.Input((2, 2, 1))
    model = keras.Model(inputs, L.Rescaling(-1.0, name="minus")(inputs))
    batch = np.arange(1, 13, dtype=np.float32).reshape(3, 2, 2, 1)
    found = strongest_activations(model, batch, "minus", count=3)
    assert (found.image.tolist(), found.value.tolist()) == ([[0, 1, 2]], [[-1, -5, -9]])


def test_a_nested_model_alone_means_its_explainable_layer():
    model, batch = nested(), images(4, size=(8, 8, 3))
    both = [strongest_activations(model, batch, path, count=2) for path in ("left", "left/deep")]
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one, other)


# errors


def two_inputs():
    a, b = keras.Input(SIZE), keras.Input(SIZE)
    return keras.Model([a, b], L.Add(name="sum")([a, b]), name="two")


def one_for_a_window():
    inputs = keras.Input((8, 8, 3))
    windows = keras.ops.reshape(inputs, (-1, 4, 4, 3))  # four of an image
    x = keras.ops.reshape(L.ReLU(name="win")(windows), (-1, 8, 8, 3))
    return keras.Model(inputs, x)


def one_for_a_batch():
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, L.ReLU(name="batch_mean")(keras.ops.mean(inputs, 0, keepdims=True)))


def with_a_nan():
    batch = images(70)
    batch[65, 1, 2, 0] = np.nan
    return batch


def call(function, *args, model=network, batch=images, **options):
    return lambda folder: function(
        model(), batch(), *args, *([folder] if function is save_activations else []), **options
    )


FOLDED = {
    f"{name} of {function.__name__}": (
        call(
            function,
            name,
            model=model,
            batch=lambda: images(6, size=(8, 8, 3)),
            batch_size=4,
            **({"count": 1} if function is strongest_activations else {}),
        ),
        f"expected one output for each image, received {count} of '{name}' for 4 images: choose a "
        "layer before or after it.",
    )
    for function in (layer_activations, save_activations, strongest_activations)
    for name, model, count in (("win", one_for_a_window, 16), ("batch_mean", one_for_a_batch, 1))
}

ERRORS = FOLDED | {
    "unknown": (
        call(layer_activations, "block1_con1"),
        "expected a layer of 'network', received 'block1_con1', which none matches. Try one of: "
        "'block1_conv1', 'block2_conv1', 'block1_conv2'.",
    ),
    "unlike any": (
        call(layer_activations, "?"),
        "Try one of: 'block1_conv1', 'block1_conv2', 'block2_conv1', 'norm', 'flatten', 'scores'.",
    ),
    "inside a nested model": (
        call(layer_activations, "relu_1", model=nested, batch=lambda: images(size=(8, 8, 3))),
        "expected a layer of 'outer', received 'relu_1', which none matches. Try one of: "
        "'right/relu_1'",
    ),
    "index": (
        call(layer_activations, ["norm", 7]),
        "expected an index from -7 to 6 into the layers of 'network', received 7.",
    ),
    "input": (
        call(layer_activations, 0),
        "received index 0, which is the input 'image' of 'network': what it holds are the images.",
    ),
    "no layer": (
        call(layer_activations, []),
        "expected at least one layer, received none: '*' stands for all.",
    ),
    "object": (
        call(layer_activations, L.ReLU(name="relu")),
        "expected the name of a layer, received the ReLU itself: pass layer.name, which is 'relu'.",
    ),
    "bool": (
        call(layer_activations, True),
        "expected a layer by name, path, pattern or index, received True.",
    ),
    "no images": (
        call(layer_activations, "norm", batch=lambda: images(0)),
        "expected at least one image, received an empty batch (0, 12, 10, 2).",
    ),
    "one image": (
        call(layer_activations, "norm", batch=lambda: images()[0]),
        "expected images (batch, height, width, channels), received (12, 10, 2): "
        "images[np.newaxis] makes one image a batch.",
    ),
    "not finite": (
        call(layer_activations, "norm", batch=with_a_nan),
        "received NaN or infinite ones in image 65: mend or leave it out.",
    ),
    "not finite, to save": (
        call(save_activations, "norm", batch=with_a_nan),
        "received NaN or infinite ones in image 65: mend or leave it out.",
    ),
    "batch size": (
        call(layer_activations, "norm", batch_size=0),
        "expected batch_size as an integer of 1 or more, received 0.",
    ),
    "two inputs": (
        call(layer_activations, "sum", model=two_inputs),
        "expected a model with one input, received 'two' with 2: rebuild it as a keras.Model of "
        "the image alone.",
    ),
    "no graph": (
        call(layer_activations, "norm", model=lambda: keras.Sequential([L.Dense(3)], name="bare")),
        "received Sequential 'bare', which has no graph",
    ),
    "count": (
        call(strongest_activations, "norm", count=6),
        "expected a count of at most 5 images, received 6.",
    ),
    "map": (
        call(strongest_activations, "norm", [0, 6], count=2),
        "expected maps from 0 to 5 of 'norm', received 6.",
    ),
    "a map by name": (
        call(strongest_activations, "norm", "3", count=2),
        "expected maps as an integer or a sequence of integers, received '3'.",
    ),
    "no maps": (
        call(strongest_activations, "scores", count=2),
        "expected a layer with an output (batch, height, width, maps), received one with "
        "(None, 3): layers.map_layers(model) lists those with maps.",
    ),
    "unknown, strongest": (
        call(strongest_activations, "nom", count=2),
        "layer 'nom' is not in 'network'. Try one of: 'block1_conv1'",
    ),
    "object, strongest": (
        call(strongest_activations, L.ReLU(name="relu"), count=2),
        "expected a layer by name or path, received <ReLU name=relu, built=True>: pass layer.name",
    ),
    "index, strongest": (
        call(strongest_activations, 3, count=2),
        "expected a layer by name or path, received 3: pass layer.name of the layer.",
    ),
    "None, strongest": (
        call(strongest_activations, None, count=2),
        "expected a layer by name or path, received None: pass layer.name of the layer.",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_there_is(case, tmp_path):
    ask, sentence = ERRORS[case]
    with pytest.raises(ValueError, match=r".+") as error:
        ask(tmp_path)
    assert sentence in str(error.value)
    assert not list(tmp_path.iterdir())


def test_two_layers_never_share_a_file(tmp_path):
    inputs = keras.Input(SIZE)
    inner = keras.Sequential([inputs, L.ReLU(name="relu")], name="a")
    model = keras.Model(inputs, L.ReLU(name="a__relu")(inner(inputs)))
    with pytest.raises(ValueError, match=r"expected layers with files of their own, received \['a"):
        save_activations(model, images(), ["a/relu", "a__relu"], tmp_path)


def test_the_ceiling_of_relu6_does_not_hide_which_cell_is_strongest():
    inputs = keras.Input((2, 2, 1))
    maps = L.Conv2D(1, 1, use_bias=False, name="conv")(inputs)
    model = keras.Model(inputs, L.ReLU(6, name="relu6")(maps))
    model.get_layer("conv").set_weights([np.ones((1, 1, 1, 1))])
    pictures = np.array([[[7, 0], [0, 8]], [[9, 0], [0, 0]], [[-1, -3], [-2, -4]]], np.float32)
    found = strongest_activations(model, pictures[..., np.newaxis], "relu6", count=3)
    np.testing.assert_array_equal(found.image, [[1, 0, 2]])
    np.testing.assert_array_equal(found.cell, [[[0, 0], [1, 1], [0, 0]]])
    np.testing.assert_array_equal(found.value, [[9, 8, -1]])
