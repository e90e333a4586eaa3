"""Maps of a dataset: equal to the method's own, resumed after any end, never mixed with others.

Run as a program, this file is what ends: it forks a process for each line of its input.
"""

import collections
import contextlib
import json
import os
from pathlib import Path
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings

from cam_helpers import cams, dataset, layers, methods
from cam_helpers.backend import keras, tf
from cam_helpers.placement import ReceptiveField
import h5py
import numpy as np
from PIL import Image
import pytest
from test_faults import QUIET, full
import xarray
import zarr

ROOT = Path(__file__).parents[1]
L = keras.layers
SIZE = (13, 11)
COUNT, BATCH = 19, 4  # the last batch has three
PARTS = [slice(start, min(start + BATCH, COUNT)) for start in range(0, COUNT, BATCH)]
IMAGES = "other images (or another prepare)"
CHANGED = (
    "expected a tf.data.Dataset with the same images at each pass, received one that has changed: "
    "leave shuffling and random changes out."
)


def network(classes=4, seed=0, channels=3, first=(), activation=None):
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((*SIZE, channels))
    for layer in first:
        x = layer(x)
    x = L.Conv2D(5, 3, activation="relu", name="first")(x)
    x = L.Conv2D(6, 3, strides=2, activation="relu", name="last")(x)
    x = L.Dense(classes, activation=activation, name="logits")(L.Flatten()(x))
    return keras.Model(inputs, x, name="network")


def noise(count=COUNT, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def images():
    images = noise()
    images.flags.writeable = False
    return images


def explain(model, images, store, method="Grad-CAM", **options):
    options = {"batch_size": BATCH, "progress": False, **options}
    return dataset.explain_dataset(model, images, method, store, **options)


def values(group):
    return {name: group[name][:] for name in ("maps", "class_index", "score")}


def same(group, expected):
    expected = expected if isinstance(expected, dict) else values(expected)
    for name, array in values(group).items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name])


def contents(folder):
    """Every file; of the folders that there are, too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def by_hand(name, model, images, class_index=None, batch_size=BATCH, **options):
    """The method itself batch by batch, and the scores of the model."""
    maps, classes, scores = [], [], []
    for start in range(0, len(images), batch_size):
        part = slice(start, min(start + batch_size, len(images)))
        asked = class_index[part] if np.ndim(class_index) else class_index
        own = {"batch_size": len(images[part]), **options}
        function = {**methods.CAMS, **methods.AT_THE_PIXELS}[name]
        found = function(model, images[part], asked, **own)
        maps.append(found if name in methods.CAMS else np.abs(found).max(axis=-1))
        logits = model(images[part], training=False).numpy()
        logits = np.concatenate([-logits, logits], axis=1) if logits.shape[1] == 1 else logits
        chosen = logits.argmax(axis=1) if asked is None else np.broadcast_to(asked, len(logits))
        classes.append(chosen)
        scores.append(logits[np.arange(len(logits)), chosen])
    return [np.concatenate(each) for each in (maps, classes, scores)]


def check(group, name, model, images, class_index=None, batch_size=BATCH, **options):
    maps, classes, scores = by_hand(name, model, images, class_index, batch_size, **options)
    found = values(group)
    assert found["maps"].dtype == found["score"].dtype == np.float32
    assert found["class_index"].dtype == np.int32
    assert found["maps"].max() > 0
    np.testing.assert_array_equal(found["maps"], maps)
    np.testing.assert_array_equal(found["class_index"], classes)
    np.testing.assert_allclose(found["score"], scores, rtol=1e-5, atol=1e-6)


# the maps


def generated(images, sizes):
    """A tf.data.Dataset of batches of these sizes, which does not know how many they are."""

    def batches():
        start = 0
        for size in sizes:
            yield images[start : start + size]
            start += size

    spec = tf.TensorSpec((None, *images.shape[1:]), tf.float32)
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def hdf5(images, folder):
    file = h5py.File(folder / "images.h5", "w")
    file["images"] = images
    return file["images"]


def memmap(images, folder):
    np.save(folder / "images.npy", images)
    return np.load(folder / "images.npy", mmap_mode="r")


def zarr_array(images, folder):
    return zarr.create_array(folder / "images", data=images, chunks=(5, *images.shape[1:]))


def tf_data(images):
    return tf.data.Dataset.from_tensor_slices(images)


SOURCES = {
    "array": lambda images, folder: images,
    "list": lambda images, folder: list(images),
    "tensor": lambda images, folder: tf.constant(images),
    "memmap": memmap,
    "h5py": hdf5,
    "Zarr": zarr_array,
    "Zarr's path": lambda images, folder: folder / zarr_array(images, folder).store.root.name,
    "path as text": lambda images, folder: str(zarr_array(images, folder).store.root),
    "tf.data": lambda images, folder: tf_data(images),
    "tf.data, batches": lambda images, folder: tf_data(images).batch(BATCH),
    "tf.data, other batches": lambda images, folder: tf_data(images).batch(7),
    "tf.data, with labels": lambda images, folder: tf_data((images, np.arange(COUNT))),
    "tf.data, batches with labels": lambda images, folder: tf_data(
        (images, {"label": np.arange(COUNT)})
    ).batch(3),
    "tf.data, filtered": lambda images, folder: tf_data(images).filter(lambda image: True),
    "tf.data, ragged": lambda images, folder: generated(images, [5, 1, 8, 2, 3]),
}


@pytest.fixture(scope="module")
def undisturbed(model, images, tmp_path_factory):
    """The maps of the array, on which each other form and each end is measured."""
    group = explain(model, images, tmp_path_factory.mktemp("undisturbed") / "store")
    check(group, "Grad-CAM", model, images)
    return group


@pytest.mark.parametrize("kind", SOURCES)
def test_maps_are_the_methods_own_whatever_the_images_are_in(
    kind, model, images, undisturbed, tmp_path
):
    source = SOURCES[kind](images, tmp_path)
    group = explain(model, source, tmp_path / "store")
    same(group, undisturbed)
    # what is missing at the end, in the middle, and nothing
    for lost in ("4", "1", None):
        if lost:
            (tmp_path / "store" / "score" / "c" / lost).unlink()
        same(explain(model, source, tmp_path / "store"), undisturbed)
    if kind.startswith("tf.data"):
        assert group.attrs["images"] != undisturbed.attrs["images"]  # knows no last batch
    else:
        assert dict(group.attrs) == dict(undisturbed.attrs)


ASKED = [
    ("Grad-CAM", None, {}),
    ("Grad-CAM", 2, {"layer": "first"}),
    ("Grad-CAM++", [n % 4 for n in range(COUNT)], {"normalize_alpha": True}),
    ("HiResCAM", np.arange(COUNT, dtype=np.uint8) % 3, {}),
    ("LayerCAM", np.int64(1), {}),
    ("Score-CAM", None, {"max_maps": 3, "placement": "resize"}),
    ("Score-CAM", 1, {"weighting": "softmax"}),
    ("saliency", None, {}),
    ("SmoothGrad", np.arange(COUNT) % 4, {"samples": 2, "noise": 0.2}),
    ("integrated gradients", 3, {"steps": 3, "baseline": np.ones(3, np.float32)}),
    ("guided backpropagation", None, {}),
    ("deconvnet", 0, {}),
    ("guided Grad-CAM", None, {"layer": "first"}),
]


@pytest.mark.parametrize(("name", "class_index", "options"), ASKED)
def test_every_method_and_class(name, class_index, options, model, images, tmp_path):
    before = np.copy(class_index)
    group = explain(model, images, tmp_path / "a", name, class_index=class_index, **options)
    check(group, name, model, images, class_index, **options)
    np.testing.assert_array_equal(class_index, before)
    function = {**methods.CAMS, **methods.AT_THE_PIXELS}[name]
    again = explain(model, images, tmp_path / "b", function, class_index=class_index, **options)
    same(again, group)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    # the same, asked for otherwise
    other = class_index if class_index is None else np.asarray(class_index, np.int16)
    explain(model, images, tmp_path / "a", name, class_index=other, **options)


@pytest.mark.parametrize("name", ["Grad-CAM", "Score-CAM", "saliency"])
@pytest.mark.parametrize("class_index", [None, 0, 1])
def test_one_logit_is_two_classes(name, class_index, images, tmp_path):
    model = network(1)
    group = explain(model, images, tmp_path / "store", name, class_index=class_index)
    check(group, name, model, images, class_index)
    if class_index is None:
        assert {*group["class_index"][:].tolist()} == {0, 1}


def test_several_labels_have_probabilities_of_their_own(images, tmp_path):
    model = layers.to_logits(network(3, activation="sigmoid"))
    group = explain(model, images, tmp_path / "store", "Score-CAM", class_index=1)
    check(group, "Score-CAM", model, images, 1)


@pytest.mark.parametrize("batch_size", [1, COUNT, np.int64(50)])
def test_batches_of_any_size(batch_size, model, images, tmp_path):
    for kind in ("array", "tf.data"):
        group = explain(
            model, SOURCES[kind](images, tmp_path), tmp_path / kind, batch_size=batch_size
        )
        check(group, "Grad-CAM", model, images, batch_size=int(batch_size))
        assert group["maps"].chunks[0] == min(batch_size, COUNT)


def test_one_image(model, images, tmp_path):
    for kind in ("array", "tf.data"):
        group = explain(model, SOURCES[kind](images[:1], tmp_path), tmp_path / kind)
        check(group, "Grad-CAM", model, images[:1])


def test_prepare_makes_what_the_model_takes(model, images, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    group = explain(model, pixels, tmp_path / "store", prepare=lambda x: x / np.float32(255))
    check(group, "Grad-CAM", model, pixels / np.float32(255))
    with pytest.raises(ValueError, match=r"^expected float images .*, received uint8: preprocess"):
        explain(model, pixels, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_prepare_may_change_the_batch_it_gets(model, images, tmp_path):
    def halved(batch):
        batch *= 0.5
        return batch

    mine = images.copy()
    group = explain(model, mine, tmp_path / "store", prepare=halved)
    np.testing.assert_array_equal(mine, images)
    check(group, "Grad-CAM", model, images * np.float32(0.5))


def test_prepare_may_change_the_size(model, images, tmp_path):
    large = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    for kind in ("array", "tf.data"):
        group = explain(
            model,
            SOURCES[kind](large, tmp_path),
            tmp_path / kind,
            "saliency",
            prepare=lambda x: x[:, ::2, ::2],
        )
        check(group, "saliency", model, images)
        assert group.attrs["image_size"] == [*SIZE]


def test_nothing_of_the_callers_changes(images, tmp_path):
    model, mine = network(), images.copy()
    before, names = [np.copy(x) for x in model.get_weights()], sorted(vars(model))
    classes = np.arange(COUNT) % 4
    explain(model, mine, tmp_path / "store", class_index=classes)
    np.testing.assert_array_equal(mine, images)
    np.testing.assert_array_equal(classes, np.arange(COUNT) % 4)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted(vars(model)) == names


# the store


@pytest.mark.parametrize("placement", ["receptive_field", "resize", "own"])
@pytest.mark.parametrize("name", ["Grad-CAM", "Score-CAM", "saliency", "guided Grad-CAM"])
def test_placed_maps_are_the_heatmaps_of_the_method(name, placement, model, images, tmp_path):
    own = ReceptiveField(size=(7, 7), stride=np.array([2.5, 2.0]), start=(np.float32(1.5), 2))
    placement = own if placement == "own" else placement
    group = explain(model, images, tmp_path / "store", name, placement=placement)
    expected = np.concatenate(
        [
            methods.heatmaps(
                name, model, images[part], placement=placement, batch_size=len(images[part])
            )
            for part in PARTS
        ]
    )
    found = dataset.place_maps(group["maps"][:], group.attrs)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    opened = xarray.open_zarr(tmp_path / "store")
    some = dataset.place_maps(opened.maps[3:5], opened.attrs)
    np.testing.assert_allclose(some, expected[3:5], rtol=1e-6, atol=1e-7 * expected.max())


def test_xarray_opens_the_store_and_it_says_what_is_in_it(model, images, undisturbed):
    with warnings.catch_warnings(action="error"):
        opened = xarray.open_zarr(undisturbed.store.root).load()
    assert {name: each.dims for name, each in opened.variables.items()} == {
        "maps": ("image", "row", "column"),
        "class_index": ("image",),
        "score": ("image",),
    }
    assert dict(opened.sizes) == {"image": COUNT, "row": 5, "column": 4}
    np.testing.assert_array_equal(opened.maps, undisturbed["maps"][:])
    np.testing.assert_array_equal(opened.class_index, undisturbed["class_index"][:])
    digests = [opened.attrs.pop(name) for name in ("model", "images")]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert opened.attrs == {
        "method": "Grad-CAM",
        "layer": "last",
        "options": {},
        "field": {"size": [5, 5], "stride": [2.0, 2.0], "start": [2.0, 2.0]},
        "image_size": [13, 11],
        "class_index": "top class",
        "batch_size": 4,
        "left_out": [],
        "versions": [dataset.versions()],
    }


def test_attributes_of_other_requests(model, images, tmp_path):
    said = {"samples": 2, "noise": np.float64(0.25), "seed": 3}
    group = explain(model, images, tmp_path / "a", "SmoothGrad", class_index=np.int8(2), **said)
    found = dict(group.attrs)
    assert [found[key] for key in ("method", "layer", "field", "class_index")] == [
        "SmoothGrad",
        None,
        None,
        2,
    ]
    assert found["options"] == said
    group = explain(model, images, tmp_path / "b", "Score-CAM", layer="first", placement="resize")
    assert group.attrs["options"] == {"placement": "resize"}
    assert group.attrs["layer"] == "first"
    assert group.attrs["field"] == "resize"


def test_stores_of_zarr_take_the_same(model, images, undisturbed, tmp_path, monkeypatch):
    memory = zarr.storage.MemoryStore()
    same(explain(model, images, memory), undisturbed)
    same(explain(model, images, memory), undisturbed)
    with pytest.raises(FileExistsError, match="received one of another method: name another"):
        explain(model, images, memory, "LayerCAM")
    local = zarr.storage.LocalStore(tmp_path / "local")
    same(explain(model, images, local), undisturbed)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local" / "score" / "c" / "2").unlink()
    same(explain(model, images, "local"), undisturbed)
    assert (tmp_path / ".local.lock").exists()


# resumed


def counting(images):
    """Count how often each batch is prepared."""
    calls = collections.Counter()
    first = {float(images[part][0, 0, 0, 0]): number for number, part in enumerate(PARTS)}

    def prepare(batch):
        calls[first[float(batch[0, 0, 0, 0])]] += 1
        return batch

    return prepare, calls


@pytest.mark.parametrize("arrays", [["score"], ["class_index", "score"], ["*"]])
def test_only_what_is_missing_is_explained_again(arrays, model, images, undisturbed, tmp_path):
    prepare, calls = counting(images)
    store = tmp_path / "store"
    group = explain(model, images, store, prepare=prepare)
    same(group, undisturbed)
    looks = calls[0] - 1
    assert [calls[number] for number in (1, 2, 3)] == [1, 1, 1]
    before = {name: file.stat().st_mtime_ns for name in ("0", "2") for file in _chunks(store, name)}
    for lost in ("1", "3"):
        for array in arrays:
            for chunk in _chunks(store, lost, array):
                chunk.unlink()
    for left in ("maps/c/3/0/0.abc.partial", "zarr.123.partial"):
        (store / left).write_bytes(b"half")
    calls.clear()
    same(explain(model, images, store, prepare=prepare), undisturbed)
    assert [calls[number] for number in (1, 2, 3)] == [1, 0, 1]
    assert calls[0] == looks
    after = {name: file.stat().st_mtime_ns for name in ("0", "2") for file in _chunks(store, name)}
    assert after == before
    assert not list(store.rglob("*.partial"))
    before = contents(store)
    same(explain(model, images, store, prepare=prepare), undisturbed)
    assert contents(store) == before


def _chunks(store, number, array="*"):
    return [path for path in store.glob(f"{array}/c/{number}/**/*") if path.is_file()] + [
        path for path in store.glob(f"{array}/c/{number}") if path.is_file()
    ]


def test_a_store_that_was_hardly_begun_is_made_again(model, images, undisturbed, tmp_path):
    """After each step of its making."""
    made = []
    create, consolidate = zarr.Group.create_array, zarr.consolidate_metadata
    for stop in range(5):
        store, steps = tmp_path / f"store {stop}", iter(range(9))

        def step(call, steps=steps, stop=stop):
            def stepped(*arguments, **options):
                if next(steps) == stop:
                    raise KeyboardInterrupt
                return call(*arguments, **options)

            return stepped

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(zarr.Group, "create_array", step(create))
            patch.setattr(zarr, "consolidate_metadata", step(consolidate))
            patch.setattr(zarr.core.attributes.Attributes, "put", step(None))
            with pytest.raises(KeyboardInterrupt):
                explain(model, images, store)
        made.append(sorted(path.name for path in store.iterdir()))
        same(explain(model, images, store), undisturbed)
        assert dict(zarr.open_group(store).attrs) == dict(undisturbed.attrs)
        with warnings.catch_warnings(action="error"):
            xarray.open_zarr(store)
    assert made[0] == ["zarr.json"]
    assert made[4] == ["class_index", "maps", "score", "zarr.json"]
    # and before the first: what Zarr leaves where it is killed while it writes
    store = tmp_path / "none"
    store.mkdir()
    (store / "zarr.0f3c.partial").write_bytes(b"{")
    same(explain(model, images, store), undisturbed)


def test_another_version_that_goes_on_is_named_once(model, images, tmp_path, monkeypatch):
    store, ours = tmp_path / "store", dataset.versions()
    other = {**ours, "keras": "3.99"}
    explain(model, images, store)

    def versions(after, lost):
        for chunk in lost:
            (store / "score" / "c" / chunk).unlink()
        monkeypatch.setattr(dataset, "versions", lambda: after)
        before = contents(store)
        found = explain(model, images, store).attrs["versions"]
        assert lost or contents(store) == before
        return found

    assert versions(other, []) == [ours]  # which made no map of them
    assert versions(other, ["1"]) == [ours, other]
    assert versions(other, ["2"]) == [ours, other]
    assert versions(ours, ["2"]) == [ours, other]


# refused


def shifted(batch):
    return batch + np.float32(1)


OTHERS = {
    "another method": lambda: {"method": "LayerCAM"},
    "another model": lambda: {"model": network(seed=7)},
    "another layer and another placement": lambda: {"layer": "first"},
    "another placement": lambda: {"placement": "resize"},
    "another size of batches": lambda: {"batch_size": 5},
    "other classes": lambda: {"class_index": 1},
    IMAGES: lambda: {"prepare": shifted},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_store_of_another_request_is_refused_and_stays(what, model, images, tmp_path):
    _refused(what, {"model": model, "images": images}, OTHERS[what](), tmp_path / "store")


def _refused(what, first, then, store):
    if not store.exists():
        explain(**first, store=store)
    before = contents(store)
    message = (
        f"expected '{store}' to be new or to hold the same, received one of {what}: name another "
        "store, or delete it."
    )
    with pytest.raises(FileExistsError, match=f"^{re.escape(message)}$"):
        explain(**{**first, **then}, store=store)
    assert contents(store) == before


def test_other_images_are_refused(model, images, tmp_path):
    first, kept = {"model": model, "images": images}, images.copy()
    for changed in (0, BATCH - 1, COUNT - 1, PARTS[-1].start):
        other = images.copy()
        other[changed, 3, 3, 0] += 1
        _refused(IMAGES, first, {"images": other}, tmp_path / "store")
    _refused(IMAGES, first, {"images": images[:-1]}, tmp_path / "store")
    broken = kept.copy()
    broken[2, 0, 0, 0] = np.nan
    _refused(IMAGES, first, {"images": broken}, tmp_path / "store")
    in_a_row = {"model": model, "images": tf_data(images)}
    other = images.copy()
    other[0] += 1
    _refused(IMAGES, in_a_row, {"images": tf_data(other)}, tmp_path / "row")
    _refused(IMAGES, in_a_row, {"images": tf_data(images[:-1])}, tmp_path / "row")


def test_other_options_and_classes_are_refused(model, images, tmp_path):
    first = {"model": model, "images": images, "method": "SmoothGrad", "samples": 2}
    first["class_index"] = np.arange(COUNT) % 4
    what = "other options of the method"
    _refused(what, first, {"samples": 3}, tmp_path / "store")
    _refused(what, first, {"seed": 1}, tmp_path / "store")
    _refused("other classes", first, {"class_index": None}, tmp_path / "store")
    _refused(
        "other classes", first, {"class_index": (np.arange(COUNT) + 1) % 4}, tmp_path / "store"
    )
    first = {"model": model, "images": images, "method": "integrated gradients", "steps": 2}
    first["baseline"] = np.zeros(3, np.float32)
    _refused(what, first, {"baseline": np.ones(3, np.float32)}, tmp_path / "other")


def foreign_array(store, images):
    zarr.create_array(store, data=images)


def foreign_group(store, images):
    zarr.open_group(store).create_array("pictures", data=images)


def foreign_attributes(store, images):
    zarr.open_group(store, attributes={"method": "mine", "versions": 3})


def foreign_versions(store, images):
    zarr.open_group(store, attributes={"versions": 3})


def foreign_xarray(store, images):
    maps = (("image", "row", "column"), images[..., 0])
    xarray.Dataset({"maps": maps, "score": ("image", images[:, 0, 0, 0])}).to_zarr(
        store, consolidated=False
    )


def foreign_files(store, images):
    xarray.Dataset({"file": ("image", np.arange(3))}).to_zarr(store, consolidated=False)


def foreign_groups(store, images):
    zarr.open_group(store).create_group("maps")


def foreign_format(store, images):
    zarr.open_group(store, zarr_format=2).create_array("maps", data=images)


def a_folder(store, images):
    store.mkdir()
    (store / "letter.txt").write_text("dear")


def a_file(store, images):
    store.write_text("dear")


ELSE = "'{store}', which is something else: name another."
FOREIGN = {
    foreign_array: "received an array: name another store.",
    foreign_group: "received a group of pictures: name another store.",
    foreign_attributes: "received a group with other attributes: name another store.",
    foreign_versions: "received a group with other attributes: name another store.",
    foreign_xarray: "received a group of maps, score: name another store.",
    foreign_files: "received a group of file: name another store.",
    foreign_groups: "received a group of maps: name another store.",
    foreign_format: ELSE,
    a_folder: ELSE,
    a_file: ELSE,
}
FOREIGN_STORES = [(make, "path") for make in FOREIGN]
FOREIGN_STORES += [(make, "store") for make in FOREIGN if make not in (a_file, foreign_format)]


@pytest.mark.parametrize(("make", "kind"), FOREIGN_STORES)
def test_what_is_none_of_ours_stays(make, kind, model, images, tmp_path):
    store = tmp_path / "store"
    make(store, images)
    if store.is_dir():
        (store / "of another writer.partial").write_text("just now")
    before = contents(tmp_path)
    asked = store if kind == "path" else zarr.storage.LocalStore(store)
    message = re.escape(FOREIGN[make].format(store=store)) + "$"
    with pytest.raises(FileExistsError, match=message) as raised:
        explain(model, images, asked)
    assert str(raised.value).startswith("expected ")
    after = contents(tmp_path)
    after.pop(".store.lock", None)
    assert after == before


def test_one_run_at_a_time(model, images, tmp_path):
    seen = []

    def prepare(batch):
        if (tmp_path / "store" / "maps").exists() and not seen:
            for store in (
                tmp_path / "link",
                tmp_path / "store",
                zarr.storage.LocalStore(tmp_path / "store"),
            ):
                with pytest.raises(BlockingIOError) as raised:
                    explain(model, images, store)
                seen.append(str(raised.value))
        return batch

    (tmp_path / "link").symlink_to(tmp_path / "store")
    explain(model, images, tmp_path / "store", prepare=prepare)
    sentence = (
        f"expected to be the only run that writes into '{tmp_path / 'store'}', received a folder "
        "that another one holds: wait for it, or name another folder."
    )
    assert seen[1:] == [sentence] * 2
    assert "link" in seen[0]


# photos


def photo(path, seed, size=(20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


NAMES = ["a/z.PNG", "a/à la café.png", "b c.png", "é.jpg", "ü/1/2.bmp"]


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(NAMES):
        photo(
            tmp_path / "photos" / name, seed, size=(20 + seed, 30), mode="L" if seed == 1 else "RGB"
        )
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    (tmp_path / "photos" / "album.jpg").mkdir()
    return tmp_path / "photos"


def loaded(folder):
    from cam_helpers import photos

    return np.stack([photos.load_photo(folder / name, SIZE) for name in NAMES])


def scaled(batch):
    return batch / np.float32(255)


def test_photos_come_in_the_order_of_their_paths(folder, model, tmp_path, monkeypatch):
    with warnings.catch_warnings(action="error"):
        group = explain(model, folder, tmp_path / "store", prepare=scaled, batch_size=2)
    check(group, "Grad-CAM", model, scaled(loaded(folder)), batch_size=2)
    with warnings.catch_warnings(action="error"):
        opened = xarray.open_zarr(tmp_path / "store").load()
    assert opened.file.dims == ("image",)
    assert opened.file.values.tolist() == NAMES
    monkeypatch.chdir(tmp_path)
    same(explain(model, "photos", "again", prepare=scaled, batch_size=2), group)


def test_names_that_are_no_text_are_kept_readable(model, tmp_path):
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    photo(tmp_path / "photos" / "a.png", 0)
    try:
        os.rename(os.path.join(folder, b"a.png"), os.path.join(folder, b"caf\xe9.png"))
    except OSError:
        pytest.skip("names are text here")
    group = explain(model, tmp_path / "photos", tmp_path / "store", prepare=scaled)
    assert group["file"][:].tolist() == [r"caf\udce9.png"]


def test_grey_networks_get_grey_photos(folder, tmp_path):
    model = network(channels=1)
    group = explain(model, folder, tmp_path / "store", prepare=scaled, batch_size=2)
    grey = loaded(folder) @ np.array([[0.299], [0.587], [0.114]], np.float32)
    check(group, "Grad-CAM", model, scaled(grey), batch_size=2)


def test_networks_that_rescale_need_no_prepare(folder, model, tmp_path):
    own = network(first=[L.Rescaling(1 / 255)])
    group = explain(own, folder, tmp_path / "store", batch_size=2)
    check(group, "Grad-CAM", own, loaded(folder), batch_size=2)
    with pytest.raises(
        ValueError, match=r"^expected prepare for photos, as 'network' does not resc"
    ):
        explain(model, folder, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_photo_that_cannot_be_read_is_tried_again(batch_size, folder, model, tmp_path):
    expected = explain(model, folder, tmp_path / "good", prepare=scaled, batch_size=batch_size)
    expected = values(expected)
    for broken in (0, 3, 4):  # in the first batch, in the middle, in the last
        path, store = folder / NAMES[broken], tmp_path / f"store {broken}"
        content = path.read_bytes()
        path.write_bytes(content[:40])
        asked = {"prepare": scaled, "batch_size": batch_size}
        for _ in range(2):
            with pytest.warns(UserWarning, match=r"^1 of 5 ") as said:
                group = explain(model, folder, store, **asked)
            assert [str(each.message) for each in said] == [
                "1 of 5 images could not be read or are not finite, and have no map: "
                + NAMES[broken]
            ]
            assert said[0].filename == __file__
            found = values(group)
            assert np.isnan(found["maps"][broken]).all()
            assert np.isnan(found["score"][broken])
            assert found["class_index"][broken] == -1
            for name, array in found.items():
                kept = np.arange(5) != broken
                np.testing.assert_allclose(array[kept], expected[name][kept], rtol=1e-4, atol=1e-6)
        path.write_bytes(content)
        with warnings.catch_warnings(action="error"):
            group = explain(model, folder, store, **asked)
        same(group, expected)


def test_images_that_are_not_finite_have_no_map(model, images, undisturbed, tmp_path):
    bad = images.copy()
    bad[[2, 9, 10, 18], 5, 5, 1] = [np.nan, np.inf, -np.inf, np.nan]
    bad[12:16] = np.nan  # a whole batch
    with pytest.warns(UserWarning, match=r"^8 of 19 ") as said:
        group = explain(model, bad, tmp_path / "store", class_index=np.arange(COUNT) % 4)
    assert [str(each.message) for each in said] == [
        "8 of 19 images could not be read or are not finite, and have no map: "
        "image 2, image 9, image 10, …"
    ]
    lost = np.isin(np.arange(COUNT), [2, 9, 10, 12, 13, 14, 15, 18])
    np.testing.assert_array_equal(np.isnan(group["maps"][:]).all(axis=(1, 2)), lost)
    np.testing.assert_array_equal(np.isnan(group["score"][:]), lost)
    np.testing.assert_array_equal(group["class_index"][:], np.where(lost, -1, np.arange(COUNT) % 4))
    mended = explain(model, images, tmp_path / "store", class_index=np.arange(COUNT) % 4)
    check(mended, "Grad-CAM", model, images, np.arange(COUNT) % 4)
    with pytest.raises(ValueError, match=r"^expected images, received none that can be read"):
        explain(model, np.full_like(images, np.nan), tmp_path / "none")


# bad input


def endless(images):
    return tf_data(images).repeat()


def of_vectors(images):
    return tf_data(images.reshape(COUNT, -1))


def twice_different(images):
    return tf_data(images).shuffle(COUNT, seed=3)


def shrinking(images):
    left = iter([COUNT, COUNT, COUNT, COUNT, 6])

    def some():
        yield from images[: next(left)]

    spec = tf.TensorSpec(images.shape[1:], tf.float32)
    return tf.data.Dataset.from_generator(some, output_signature=spec)


BAD = [
    (lambda x: {"images": x[:0]}, r"expected images (n, height, width, channels), received (0, "),
    (lambda x: {"images": x[0]}, "expected images (n, height, width, channels), received (13, 11"),
    (lambda x: {"images": x[:, :9]}, "expected images (None, 13, 11, 3), received (1, 9, 11, 3)"),
    (lambda x: {"images": [x[0], x[1, :9]]}, "expected images of one shape, received some of seve"),
    (lambda x: {"images": (x * 9).astype(int)}, "expected float images as 'network' wants them, r"),
    (lambda x: {"images": x.astype(object)}, "expected images as an array of real numbers, recei"),
    (lambda x: {"images": (each for each in x)}, "expected images as an array of real numbers, r"),
    (lambda x: {"batch_size": 0}, "expected batch_size as an integer of 1 or more, received 0."),
    (lambda x: {"batch_size": 2.5}, "expected batch_size as an integer of 1 or more, received 2.5"),
    (lambda x: {"class_index": 4}, "expected class_index from 0 to 3, received 4: there are 4."),
    (lambda x: {"class_index": [1, 2]}, "expected one class_index for all images or one for each"),
    (lambda x: {"class_index": "cat"}, "expected class_index as an integer, one for each image, "),
    (lambda x: {"method": "grad_cam"}, "expected one of Grad-CAM, Grad-CAM++, LayerCAM, HiResCAM"),
    (lambda x: {"method": "edges"}, "expected one of Grad-CAM, Grad-CAM++, LayerCAM, HiResCAM, Sc"),
    (lambda x: {"method": cams.cam}, "expected one of Grad-CAM, Grad-CAM++, LayerCAM, HiResCAM, S"),
    (lambda x: {"method": ["saliency"]}, "expected one of Grad-CAM, Grad-CAM++, LayerCAM, HiResCA"),
    (lambda x: {"model": network(activation="softmax")}, "expected a model that returns logits, r"),
    (lambda x: {"model": "network"}, "expected a Keras model, received str: load or build one fi"),
    (lambda x: {"layer": "middle"}, "layer 'middle' is not in 'network'. Try one of"),
    (lambda x: {"placement": "stretch"}, "expected placement 'receptive_field', 'resize' or a Re"),
    (lambda x: {"images": endless(x)}, "expected a tf.data.Dataset that ends, received one that r"),
    (lambda x: {"images": twice_different(x)}, CHANGED),
    (lambda x: {"images": tf_data(x).take(0)}, "expected images, received an empty tf.data.Datas"),
    (lambda x: {"images": of_vectors(x)}, "expected a tf.data.Dataset of images (height, width, c"),
    (lambda x: {"prepare": lambda x: x[:1]}, "expected prepare to return an image for each of 4, "),
    (lambda x: {"prepare": lambda x: None}, "expected images as an array of real numbers, receive"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_is_answered_in_a_sentence(number, model, images, tmp_path):
    change, message = BAD[number]
    request = {"model": model, "images": images, **change(images)}
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        explain(**request, store=tmp_path / "store")
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")
    assert not list(tmp_path.iterdir())


def test_a_function_of_the_same_name_is_another(model, images, tmp_path):
    def grad_cam(*_):
        raise AssertionError

    with pytest.raises(
        ValueError, match=r"^expected one of Grad-CAM, .* or its function, received"
    ):
        explain(model, images, tmp_path / "store", grad_cam)


def test_a_dataset_that_ends_early_later_is_told(model, images, tmp_path):
    with pytest.raises(ValueError, match=re.escape(CHANGED)):
        explain(model, shrinking(images), tmp_path / "store")


def test_errors_in_the_middle_come_through_and_leave_what_is_done(
    model, images, undisturbed, tmp_path
):
    huge = images.copy()
    huge[9] = 1e30
    with pytest.raises(ValueError, match=r"^expected pixels of at most"):
        explain(model, huge, tmp_path / "store")
    group = zarr.open_group(tmp_path / "store", mode="r")
    np.testing.assert_array_equal(np.isnan(group["score"][:]), np.arange(COUNT) >= 8)
    same(explain(model, images, tmp_path / "store"), undisturbed)


def test_paths_that_are_no_images(model, images, tmp_path):
    (tmp_path / "empty").mkdir()
    zarr.open_group(tmp_path / "group").create_array("pictures", data=images)
    zarr.create_array(tmp_path / "array of none", shape=(0, *SIZE, 3), dtype="f4")
    (tmp_path / "file.npy").touch()
    before, store = contents(tmp_path), tmp_path / "store"
    with pytest.raises(FileNotFoundError) as raised:
        explain(model, tmp_path / "nowhere", store, prepare=scaled)
    assert str(raised.value) == (
        f"expected a folder of photos or a Zarr array, received '{tmp_path / 'nowhere'}': check "
        "its name."
    )
    with pytest.raises(FileNotFoundError, match="a folder of photos or a Zarr array, received"):
        explain(model, tmp_path / "file.npy", store, prepare=scaled)
    with pytest.raises(
        ValueError, match=r"^expected photos \(\.jpg, .*\) in '.*empty', found none"
    ):
        explain(model, tmp_path / "empty", store, prepare=scaled)
    message = r"^expected a Zarr array of images, received the group '.*' of pictures: give the pat"
    with pytest.raises(ValueError, match=message):
        explain(model, tmp_path / "group", store)
    message = r"^expected images \(n, height, width, channels\), received \(0, 13, 11, 3\)"
    with pytest.raises(ValueError, match=message):
        explain(model, tmp_path / "array of none", store)
    assert contents(tmp_path) == before


# what is said


def test_the_bar_counts_images_and_nothing_else_is_said(model, images, tmp_path, capfd):
    explain(model, images, tmp_path / "store")
    assert capfd.readouterr() == ("", "")
    (tmp_path / "store" / "score" / "c" / "4").unlink()
    explain(model, images, tmp_path / "store", progress=True)
    out, said = capfd.readouterr()
    assert out == ""
    assert said.split("\r")[1].startswith(" 84%")
    assert "16/19" in said.split("\r")[1]
    assert "19/19" in said.split("\r")[-1]
    assert said.rstrip().count("\n") == 0


# stopped


def slow(batch):
    time.sleep(0.02)
    return batch


def run(store, count=300):
    """As a program: batches of one, slow enough to be met in the middle."""
    explain(network(), noise(count), store, batch_size=1, prepare=slow)


def memory(place, count):
    """As a program: write by how many MB memory grows with images of a generator, or of Zarr."""
    size, place, count = (64, 64, 3), Path(place), int(count)
    keras.utils.set_random_seed(0)
    inputs = keras.Input(size)
    x = L.Conv2D(4, 3, strides=8, activation="relu", name="last")(inputs)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
    one = np.random.default_rng(0).normal(size=size).astype(np.float32)
    spec = tf.TensorSpec(size, tf.float32)
    made = tf.data.Dataset.from_generator(
        lambda: (one for _ in range(count)), output_signature=spec
    )
    stored = zarr.create_array(
        place / "images", shape=(count, *size), chunks=(50, *size), dtype="f4", fill_value=0.5
    )
    explain(model, made.take(100), place / "warm up", batch_size=50)
    explain(model, stored[:100], place / "warm up too", batch_size=50)
    peak, grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for images, store in ((made, "tf.data"), (stored, "Zarr")):
        explain(model, images, place / store, batch_size=50)
        grown.append((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024)
    (place / "grown.json").write_text(json.dumps(grown))


def full_disk(place, disk):
    """As a program: what is said on a full disk, while the store is made and later."""
    disk, model, images = Path(disk), network(), noise(300)
    said, undisturbed = [], explain(model, images, Path(place) / "undisturbed")
    # for lack of a small disk: a file of that length; the maps of a batch are longer
    lefts = (0, 100_000) if os.environ["SMALL_DISK"] == "disk" else (0, 900)
    store = disk / "store"
    for left in lefts:
        with full(disk, left):
            try:
                explain(model, images, store)
            except OSError as error:
                said.append(str(error))
        assert store.exists()
    group = zarr.open_group(store, mode="r")
    done = int((~np.isnan(group["score"][:])).sum())
    same(explain(model, images, store), undisturbed)
    (Path(place) / "said.json").write_text(json.dumps([said, done]))


def serve():
    """Fork for each line [name, arguments…, file for stderr]: say the process, then its status."""
    for line in sys.stdin:
        name, *arguments, errors = json.loads(line)
        process = os.fork()
        if not process:
            os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = 1
            try:
                globals()[name](*arguments)
                status = 0
            except SystemExit as ending:
                status = ending.code
            except KeyboardInterrupt:
                status = 130
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process that forks, in which a small disk is mounted if that can be."""
    disk = tmp_path_factory.mktemp("disk")
    program, kind = [sys.executable, __file__], "limit"
    script = f"mount -t tmpfs -o size=4M tmpfs '{disk}' && "
    small = ["unshare", "-Urm", "sh", "-c"]
    with contextlib.suppress(OSError):
        if not subprocess.run([*small, script + "true"], capture_output=True).returncode:
            program, kind = [*small, script + 'exec "$@"', "sh", *program], "disk"
    env = {**QUIET, "SMALL_DISK": kind, "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, cwd=ROOT, env=env, **pipes) as process:
        process.disk, process.kind = disk, kind
        yield process
        process.stdin.close()


@pytest.fixture
def fork(server, tmp_path):
    """Start one of the programs above: its process, and a call for its status and its stderr."""
    limits = []

    def start(name, *arguments):
        errors = tmp_path / "stderr"
        line = json.dumps([name, *map(str, arguments), str(errors)])
        print(line, file=server.stdin, flush=True)
        process = int(server.stdout.readline())
        limits.append(threading.Timer(60, os.kill, (process, signal.SIGKILL)))
        limits[-1].start()
        return process, lambda: (int(server.stdout.readline()), errors.read_text())

    yield start
    for limit in limits:
        limit.cancel()


def done(store):
    return len(list(store.glob("score/c/*[0-9]")))


def until(store, count):
    limit = time.monotonic() + 60
    while done(store) < count:
        assert time.monotonic() < limit, done(store)
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    store = tmp_path_factory.mktemp("whole") / "store"
    return explain(model, noise(300), store, batch_size=1, prepare=lambda batch: batch)


def finish(store, whole):
    group = explain(network(), noise(300), store, batch_size=1, prepare=lambda batch: batch)
    assert dict(group.attrs) == dict(whole.attrs)
    folder = whole.store.root
    assert contents(store) == contents(folder)  # byte by byte


def test_a_run_that_is_killed_goes_on(fork, whole, tmp_path):
    random, store, reached = np.random.default_rng(8), tmp_path / "store", 0
    for _ in range(3):
        process, ended = fork("run", store)
        until(store, reached + random.integers(1, 60))
        time.sleep(random.uniform(0, 0.03))
        os.kill(process, signal.SIGKILL)
        assert ended() == (-signal.SIGKILL, "")
        assert reached < done(store) < 300
        reached = done(store)
        assert (store.parent / ".store.lock").exists()
    finish(store, whole)


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)]
)
def test_a_run_that_is_stopped_says_so_and_goes_on(number, name, status, fork, whole, tmp_path):
    store = tmp_path / "store"
    process, ended = fork("run", store)
    until(store, 20)
    os.kill(process, number)
    code, said = ended()
    assert code == status
    found = re.fullmatch(rf"Stopped by {name} after (\d+) images of 300: call it again.\n", said)
    assert found, said
    assert done(store) - 1 <= int(found[1]) <= done(store) < 300
    finish(store, whole)


def test_a_full_disk_loses_nothing(fork, server, tmp_path):
    _, ended = fork("full_disk", tmp_path, server.disk)
    assert ended() == (0, "")
    said, done = json.loads((tmp_path / "said.json").read_text())
    reason = "no space left on the device: free some, then run it again."
    if server.kind == "limit":
        reason = "larger than files may be here: raise that limit, then run it again."
    assert said == [f"could not write '{server.disk / 'store'}': {reason}"] * 2
    assert 0 < done < 300 or server.kind == "limit"


def test_memory_does_not_grow_with_the_images(fork, tmp_path):
    count = 2000  # 98 MB
    _, ended = fork("memory", tmp_path, count)
    assert ended() == (0, "")
    from_generator, from_zarr = json.loads((tmp_path / "grown.json").read_text())
    assert from_generator < 30
    assert from_zarr < 30


if __name__ == "__main__":
    serve()
