"""A Dask cluster finds what this process finds, whatever happens to its workers."""

import asyncio
import functools
import logging
import os
from pathlib import Path
import re
import signal
import threading
import time

from cam_helpers import cluster, dataset, layers
from cam_helpers.backend import keras, tf
import distributed
import numpy as np
from PIL import Image
import pytest
import zarr

L = keras.layers
SIZE = (13, 11, 3)
QUIET = {"silence_logs": logging.CRITICAL, "dashboard_address": None}
IN_THREADS = {**QUIET, "processes": False, "dashboard_address": ":0"}
COUNT, BATCH = 22, 4  # the last batch has two


def network(classes=4, seed=0, **options):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(SIZE)
    x = L.Conv2D(5, 3, activation="relu", name="first")(inputs)
    x = L.Conv2D(6, 3, strides=2, activation="relu", name="last")(x)
    return keras.Model(inputs, L.Dense(classes, **options)(L.Flatten()(x)), name="network")


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(COUNT, *SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def workers():
    """Two workers, each a process."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **QUIET) as running:
        yield running


@pytest.fixture
def client(workers):
    with distributed.Client(workers, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        yield client
        # nothing stays behind
        assert client.run(lambda: [*cluster._SENT]) == {each: [] for each in client.nthreads()}
        plugins = client.run(lambda dask_worker: [*dask_worker.plugins])
        assert not [name for each in plugins.values() for name in each if "cam" in name]
        until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))


def until(there, seconds=30):
    limit = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.01)


def explain(model, images, store, method="Grad-CAM", **options):
    options = {"batch_size": BATCH, "progress": False, **options}
    return dataset.explain_dataset(model, images, method, store, **options)


def same(group, expected):
    for name in ("maps", "class_index", "score"):
        np.testing.assert_array_equal(group[name][:], expected[name][:])
    assert dict(group.attrs) == dict(expected.attrs)


def photos(images, folder):
    for number, image in enumerate(images):
        pixels = np.uint8(np.clip(128 + 40 * image, 0, 255))
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "05.png").write_bytes(b"no photo")
    return folder


def on_disk(images, folder):
    zarr.create_array(folder / "images", data=images, chunks=(5, *SIZE))
    return folder / "images"


SOURCES = {
    "array": lambda images, folder: images,
    "Zarr": lambda images, folder: zarr.open_array(on_disk(images, folder), mode="r"),
    "Zarr's path": on_disk,
    "photos": photos,
    "tf.data": lambda images, folder: tf.data.Dataset.from_tensor_slices(images).batch(5),
}


@pytest.mark.filterwarnings("ignore:1 of 22 images could not be read")
@pytest.mark.parametrize("kind", SOURCES)
def test_maps_are_those_of_one_process(kind, model, images, client, tmp_path, capfd):
    (tmp_path / "source").mkdir()
    source = SOURCES[kind](images, tmp_path / "source")
    scale = 1 / 255
    asked = {"class_index": np.arange(COUNT) % 4, "prepare": lambda batch: batch * scale}
    here = explain(model, source, tmp_path / "here", **asked)
    there = explain(model, source, tmp_path / "there", **asked, client=client)
    same(there, here)
    if kind == "photos":
        assert there["class_index"][5] == -1
        assert there["file"][:].tolist() == [f"{number:02}.png" for number in range(COUNT)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "options"), [("Score-CAM", {"max_maps": 2}), ("SmoothGrad", {"samples": 2})]
)
def test_methods_and_labels_are_the_same_there(name, options, images, client, tmp_path):
    model = layers.to_logits(network(3, activation="sigmoid"))  # one for each label
    here = explain(model, images, tmp_path / "here", name, **options)
    same(explain(model, images, tmp_path / "there", name, **options, client=client), here)


def test_a_store_goes_on_here_and_there(model, images, client, tmp_path):
    store = tmp_path / "store"
    explain(model, images, store, client=client)
    whole = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    for lost, where in (("1", None), ("5", client), ("0", None)):
        (store / "score" / "c" / lost).unlink()
        explain(model, images, store, client=where)
        assert {path: path.read_bytes() for path in whole} == whole


def waiting(folder, batch):
    """Prepare a batch: say which process does so, and not before it may go on."""
    (Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return batch


def at_work(folder):
    return {path.name.partition("-")[0] for path in folder.iterdir()} - {"go", str(os.getpid())}


@pytest.fixture
def gate(tmp_path):
    """A folder that holds up what is prepared on workers until it has the file ``go``."""
    folder = tmp_path / "gate"
    folder.mkdir()
    here = os.getpid()

    def prepare(batch):
        return batch if os.getpid() == here else held(batch)

    held = functools.partial(waiting, str(folder))
    yield folder, prepare
    (folder / "go").touch()


def in_a_thread(call):
    """Start a call, and return what waits for its result."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()

    def result():
        thread.join(60)
        assert not thread.is_alive()
        return found[0]

    return result


def test_a_killed_worker_loses_nothing_and_the_next_takes_part(
    model, images, client, gate, tmp_path
):
    folder, prepare = gate
    expected = explain(model, images, tmp_path / "here")
    store = tmp_path / "there"
    result = in_a_thread(lambda: explain(model, images, store, prepare=prepare, client=client))
    until(lambda: len(at_work(folder)) == 2)  # both are in the middle of a batch
    before = at_work(folder)
    os.kill(int(min(before)), signal.SIGKILL)
    until(lambda: at_work(folder) - before)  # Dask has started another
    (folder / "go").touch()
    same(result(), expected)


def test_errors_of_a_method_are_the_same_there(model, images, client, tmp_path):
    huge = images.copy()
    huge[13] = 1e30
    said = []
    for store, where in (("here", None), *((f"there {n}", client) for n in range(4))):
        with pytest.raises(ValueError, match=r"^expected pixels of at most") as raised:
            explain(model, huge, tmp_path / store, client=where)
        said.append(str(raised.value))
        until(lambda: not client.futures)
    assert len({*said}) == 1


def test_an_interrupted_call_leaves_no_task(model, images, client, gate, tmp_path, monkeypatch):
    folder, prepare = gate
    monkeypatch.setattr(distributed.as_completed, "__next__", interrupted(folder))
    with pytest.raises(KeyboardInterrupt):
        explain(model, images, tmp_path / "store", prepare=prepare, client=client)
    until(lambda: not client.futures)
    (folder / "go").touch()
    monkeypatch.undo()
    same(
        explain(model, images, tmp_path / "store", client=client),
        explain(model, images, tmp_path / "here"),
    )


def interrupted(folder):
    def waits(_):
        until(lambda: at_work(folder))
        raise KeyboardInterrupt

    return waits


def test_an_error_of_writing_leaves_no_task(model, images, client, tmp_path, monkeypatch):
    def write(*_):
        raise OSError("full")

    monkeypatch.setattr(dataset.map_stores, "write", write)
    with pytest.raises(OSError, match=r"^full$"):
        explain(model, images, tmp_path / "store", client=client)
    until(lambda: not client.futures)


def test_other_versions_are_refused(model, images, client, tmp_path, monkeypatch):
    theirs = dataset.versions()
    ours = {**theirs, "keras": "3.99"}
    monkeypatch.setattr(dataset, "versions", lambda: ours)
    message = f"expected workers with {ours}, received one with {theirs}: install the same there."
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        explain(model, images, tmp_path / "store", client=client)
    assert np.isnan(zarr.open_group(tmp_path / "store", mode="r")["score"][:]).all()


class Half(L.Layer):
    """Of a module that workers can import."""

    def call(self, x):
        return x / 2


class Forgetful(L.Layer):
    """It comes back from a file with another factor."""

    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {"name": self.name}


def with_layer(layer):
    inputs = keras.Input(SIZE)
    return keras.Model(inputs, network()(layer(inputs)), name="own")


def test_layers_of_ones_own_go_along(images, client, tmp_path):
    class Double(L.Layer):
        """As of a notebook: no module has it."""

        def call(self, x):
            return x * 2

    inputs = keras.Input(SIZE)
    inner = keras.Model(inputs, Double()(inputs), name="inner")
    cases = {
        "module": with_layer(Half()),
        "notebook": with_layer(Double()),
        "registered": with_layer(keras.saving.register_keras_serializable("own")(Double)()),
        "inside": with_layer(inner),
    }
    for name, model in cases.items():
        here = explain(model, images, tmp_path / f"{name} here", placement="resize")
        there = explain(
            model, images, tmp_path / f"{name} there", placement="resize", client=client
        )
        same(there, here)


def test_models_and_functions_that_cannot_be_sent(model, images, client, tmp_path):
    lock = threading.Lock()

    def locked(batch):
        with lock:
            return batch

    class Silent(L.Layer):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def call(self, x):
            return self.function(x)

    asked = {"placement": "resize", "client": client}
    silent = Silent(keras.ops.abs)
    for sent, prepare, message in (
        (with_layer(silent), None, "a model and a prepare that can be sent, received 'own' ("),
        (model, locked, "a model and a prepare that can be sent, received 'network' (TypeError: c"),
        (
            with_layer(Forgetful(3.0)),
            None,
            "a model that can be sent, received 'own', which comes ",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(f"expected {message}")) as raised:
            explain(sent, images, tmp_path / "store", **{**asked, "prepare": prepare})
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "store").exists()


def test_a_batch_that_kills_each_worker_is_named_and_the_others_stay(
    model, images, client, workers, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(workers.scheduler, "allowed_failures", 0)
    here, deadly = os.getpid(), images[8, 0, 0, 0]

    def prepare(batch):
        if batch[0, 0, 0, 0] == deadly and os.getpid() != here:
            os._exit(1)
        return batch

    message = (
        "expected workers that live, received a batch whose workers died one after the other, "
        "perhaps for want of memory: take a smaller batch_size or larger workers, and another "
        "store."
    )
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        explain(model, images, tmp_path / "store", prepare=prepare, client=client)
    there = ~np.isnan(zarr.open_group(tmp_path / "store", mode="r")["score"][:])
    assert not there[8:12].any()
    assert there.any()
    same(
        explain(model, images, tmp_path / "store", prepare=prepare),
        explain(model, images, tmp_path / "here"),
    )
    assert capfd.readouterr() == ("", "")


def test_no_workers(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "SECONDS_TO_FIND_A_WORKER", 0.1)
    message = (
        "expected a cluster with workers, received one that had none for 0.1 s: start some, and "
        "call it again."
    )
    none = distributed.LocalCluster(n_workers=0, **IN_THREADS)
    with none, distributed.Client(none, set_as_default=False) as client:
        with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
            explain(model, images, tmp_path / "store", client=client)
        assert not (tmp_path / "store").exists()


def test_workers_that_are_threads_take_turns(model, images, tmp_path):
    expected = explain(model, images, tmp_path / "here")
    running = distributed.LocalCluster(n_workers=1, threads_per_worker=3, **IN_THREADS)
    with running, distributed.Client(running, set_as_default=False) as client:
        same(explain(model, images, tmp_path / "there", client=client), expected)
    assert not cluster._SENT


@pytest.mark.parametrize("what", ["client", "cluster"])
def test_a_cluster_that_ends_is_told(what, model, images, tmp_path, monkeypatch, capfd):
    running = distributed.LocalCluster(n_workers=1, threads_per_worker=1, **IN_THREADS)
    client = distributed.Client(running, set_as_default=False)
    wait = distributed.as_completed.__next__

    def ends(self):
        (client if what == "client" else running).close()
        return wait(self)

    monkeypatch.setattr(distributed.as_completed, "__next__", ends)
    with running, client, pytest.raises(OSError, match=r"^expected the cluster to last, received"):
        explain(model, images, tmp_path / "store", client=client)
    cluster._SENT.clear()
    assert capfd.readouterr() == ("", "")


def test_a_client_that_does_not_wait_is_refused(model, images, workers, tmp_path):
    message = (
        "expected a client that waits for its results, received an asynchronous one: make it by "
        "distributed.Client(address)."
    )

    async def ask():
        address = workers.scheduler_address
        async with distributed.Client(address, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                explain(model, images, tmp_path / "store", client=client)

    asyncio.run(ask())
    assert not (tmp_path / "store").exists()
