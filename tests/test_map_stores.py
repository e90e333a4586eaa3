"""Stores of maps: made once, filled chunk by chunk in any order, whole or absent, never mixed."""

from cam_helpers import map_stores
from cam_helpers.cams import Scored
import numpy as np
import pytest
import xarray
import zarr

RECIPE = {"method": "Grad-CAM", "batch_size": 4, "image_size": (9, 8), "images": "a"}
ONE, OTHER = {"keras": "3.15"}, {"keras": "3.14"}
SHAPE = (10, 3, 2)
PARTS = [slice(0, 4), slice(4, 8), slice(8, 10)]


def found(part):
    number = np.arange(part.start, part.stop)
    maps = np.full((len(number), *SHAPE[1:]), number[:, None, None], np.float32)
    return Scored(maps, number.astype(np.int32), np.float32(number / 2))


def good(part):
    return np.ones(part.stop - part.start, bool)


def test_chunks_come_in_any_order_and_are_missing_until_they_are_whole(tmp_path):
    group = map_stores.opened(tmp_path / "store", RECIPE, ONE, SHAPE)
    assert map_stores.missing(group, PARTS) == PARTS
    for done, part in enumerate([PARTS[2], PARTS[0], PARTS[1]], start=1):
        map_stores.write(group, part, good(part), found(part))
        assert len(map_stores.missing(group, PARTS)) == 3 - done
        files = [path for path in (tmp_path / "store" / "maps" / "c").rglob("*") if path.is_file()]
        assert len(files) == done
    whole = found(slice(0, 10))
    for name, expected in zip(("maps", "class_index", "score"), whole, strict=True):
        np.testing.assert_array_equal(group[name][:], expected)
        assert group[name].dtype == expected.dtype


@pytest.mark.parametrize("lost", ["maps", "class_index", "score"])
def test_the_scores_come_last(lost, tmp_path, monkeypatch):
    group = map_stores.opened(tmp_path / "store", RECIPE, ONE, SHAPE)
    write = zarr.Array.__setitem__

    def killed(array, part, values):
        if array.basename == lost:
            raise KeyboardInterrupt
        write(array, part, values)

    monkeypatch.setattr(zarr.Array, "__setitem__", killed)
    with pytest.raises(KeyboardInterrupt):
        map_stores.write(group, PARTS[0], good(PARTS[0]), found(PARTS[0]))
    assert map_stores.missing(group, PARTS) == PARTS
    monkeypatch.undo()
    map_stores.write(group, PARTS[0], good(PARTS[0]), found(PARTS[0]))
    assert map_stores.missing(group, PARTS) == PARTS[1:]


def test_maps_of_zeros_are_there_like_others(tmp_path):
    group = map_stores.opened(tmp_path / "store", RECIPE, ONE, SHAPE)
    nothing = Scored(np.zeros((4, 3, 2), np.float32), np.zeros(4, np.int32), np.zeros(4))
    map_stores.write(group, PARTS[0], good(PARTS[0]), nothing)
    assert map_stores.missing(group, PARTS) == PARTS[1:]
    np.testing.assert_array_equal(group["maps"][:4], 0)
    assert np.isnan(group["maps"][4:]).all()


def test_images_that_are_not_good_have_nothing(tmp_path):
    group = map_stores.opened(tmp_path / "store", RECIPE, ONE, SHAPE)
    some = np.array([True, False, True, True])
    map_stores.write(group, PARTS[0], some, Scored(*(each[some] for each in found(PARTS[0]))))
    map_stores.write(group, PARTS[1], ~good(PARTS[1]), None)
    np.testing.assert_array_equal(group["class_index"][:], [0, -1, 2, 3, *[-1] * 6])
    np.testing.assert_array_equal(group["score"][:4], [0, np.nan, 1, 1.5])
    np.testing.assert_array_equal(group["maps"][:4, 0, 0], [0, np.nan, 2, 3])
    assert np.isnan(group["maps"][1]).all()
    assert np.isnan(group["maps"][4:8]).all()
    assert map_stores.missing(group, PARTS) == PARTS


def test_versions_are_those_that_made_a_map(tmp_path):
    store = tmp_path / "store"
    group = map_stores.opened(store, RECIPE, ONE, SHAPE)
    assert group.attrs["versions"] == [ONE]
    for part in PARTS:
        map_stores.write(group, part, good(part), found(part))
        if part != PARTS[2]:
            group = map_stores.opened(store, RECIPE, OTHER, SHAPE)
        assert group.attrs["versions"] == [ONE, OTHER]
    group = map_stores.opened(store, RECIPE, {"keras": "4"}, SHAPE)
    assert group.attrs["versions"] == [ONE, OTHER]  # nothing was missing


def test_a_store_keeps_its_recipe_and_opens_in_xarray(tmp_path):
    names = [f"é {number}.png" for number in range(10)]
    map_stores.opened(tmp_path / "store", RECIPE, ONE, SHAPE, names)
    opened = xarray.open_zarr(tmp_path / "store")
    assert opened.attrs == {**RECIPE, "image_size": [9, 8], "versions": [ONE]}
    assert opened.file.values.tolist() == names
    again = map_stores.opened(tmp_path / "store", RECIPE, ONE, SHAPE, names)
    assert again["file"][:].tolist() == names


def test_left_out_is_empty_where_there_is_no_store(tmp_path):
    assert map_stores.left_out(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    zarr.create_array(tmp_path / "array", shape=(3,), dtype="f4")
    assert map_stores.left_out(tmp_path / "array") == []
    map_stores.opened(tmp_path / "store", {**RECIPE, "left_out": [2, 9]}, ONE, SHAPE)
    assert map_stores.left_out(tmp_path / "store") == [2, 9]


def test_one_run_holds_a_store_under_any_of_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("store")
    (tmp_path / "inner").mkdir()
    names = [tmp_path / "store", "store", "./inner/../store", tmp_path / "link"]
    names.append(zarr.storage.LocalStore(tmp_path / "store"))
    for name in names:
        with map_stores.alone(name):
            for other in names:
                with pytest.raises(BlockingIOError), map_stores.alone(other):
                    pass
    with map_stores.alone(tmp_path / "another"), map_stores.alone(tmp_path / "store"):
        pass
    memory = zarr.storage.MemoryStore()
    with map_stores.alone(memory), map_stores.alone(memory):  # none but this process has it
        pass
