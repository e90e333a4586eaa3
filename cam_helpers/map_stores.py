"""Maps in a Zarr store: made with a recipe, filled chunk by chunk, never mixed with others.

The scores of a chunk are written last: where they are, the chunk is whole.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
from pathlib import Path
import warnings

from cam_helpers import writing
from cam_helpers.cams import Scored
import numpy as np
import zarr

Store = str | Path | zarr.abc.store.Store
ARRAYS = {"maps": np.float32, "class_index": np.int32, "score": np.float32}
NOTHING = {"maps": np.nan, "class_index": -1, "score": np.nan}
DIMENSIONS = ("image", "row", "column")
WHAT = {
    "images": "other images (or another prepare)",
    "left_out": "other images (or another prepare)",
    "image_size": "another size of images",
    "class_index": "other classes",
    "batch_size": "another size of batches",
    "options": "other options of the method",
    "field": "another placement",
}


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """Hold a store in a folder for this run alone; BlockingIOError if another one holds it."""
    folder = _folder(store)
    if folder is None:
        yield
        return
    new = not folder.exists() or (
        folder.is_dir() and all(path.suffix == ".partial" for path in folder.iterdir())
    )
    if not new and not (folder / "zarr.json").exists():
        raise FileExistsError(
            f"expected a new store or one to go on with, received '{folder}', which is something "
            "else: name another."
        )
    real = folder.resolve()
    with writing.only_one(folder, real.parent / f".{real.name}.lock"):
        yield


def opened(
    store: Store,
    recipe: dict,
    versions: dict[str, str],
    shape: tuple[int, int, int],
    files: list[str] | None = None,
) -> zarr.Group:
    """Return the store that a recipe has made, or make it, without any map yet.

    Parameters
    ----------
    recipe
        What JSON can hold: what maps must have in common to lie in one store, ``batch_size`` and
        what names and numbers it takes to make them again.
    versions
        Of the libraries. A store can hold maps of several, which its attribute lists.
    shape
        Of all maps: (images, rows, columns).
    files
        One for each image.

    Raises
    ------
    FileExistsError
        If the store holds something else.
    """
    try:
        group = zarr.open_group(store, mode="a")
    except zarr.errors.ContainsArrayError as error:
        raise FileExistsError(_other(store, "an array")) from error
    recipe = json.loads(json.dumps(recipe))  # tuples are lists there
    there = dict(group.attrs)
    made = there.pop("versions", [])
    if len(group.attrs) and not {*recipe} <= {*there}:
        raise FileExistsError(_other(store, "a group with other attributes"))
    if there and there != recipe:
        keys = [key for key in there if there[key] != recipe.get(key)]
        if "batch_size" in keys:  # the first and the last batch tell images apart
            keys = [key for key in keys if key not in ("images", "left_out")]
        other = dict.fromkeys(WHAT.get(key, f"another {key}") for key in keys)
        raise FileExistsError(
            f"expected '{store}' to be new or to hold the same, received one of "
            f"{' and '.join(other)}: name another store, or delete it."
        )
    if not there:
        if strangers := _strangers(group):
            raise FileExistsError(_other(store, f"a group of {', '.join(sorted(strangers))}"))
        _make(group, shape, recipe["batch_size"], files)
    group = zarr.open_group(store, mode="r+")
    if folder := _folder(store):
        for left in folder.rglob("*.partial"):  # of a killed run
            left.unlink(missing_ok=True)
    if versions not in made and np.isnan(group["score"][:]).any():
        group.attrs.put({**recipe, "versions": [*made, versions]})
    return group


def left_out(store: Store) -> list[int]:
    """Return the images that could not be read when the store was made, none for a new one."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [*zarr.open_group(store, mode="r").attrs.get("left_out", [])]
    return []


def missing(group: zarr.Group, parts: list[slice]) -> list[slice]:
    """Return those parts of which some image has no score yet."""
    there = ~np.isnan(group["score"][:])
    return [part for part in parts if not there[part].all()]


def write(
    arrays: Mapping[str, zarr.Array], part: slice, good: np.ndarray, found: Scored | None
) -> None:
    """Write a chunk: what was found for its good images (bool), and nothing for the others."""
    for number, (name, nothing) in enumerate(NOTHING.items()):
        array = arrays[name]
        chunk = np.full((len(good), *array.shape[1:]), nothing, array.dtype)
        if found is not None:
            chunk[good] = found[number]
        array[part] = chunk


def _folder(store):
    """The folder that a store is, None if it is elsewhere."""
    if isinstance(store, zarr.storage.LocalStore):
        return store.root
    return Path(store) if isinstance(store, str | Path) and "://" not in str(store) else None


def _other(store, what):
    return f"expected '{store}' to be new or to hold maps, received {what}: name another store."


def _strangers(group):
    """What is in a group without attributes, unless a killed run left it: arrays without maps."""
    with warnings.catch_warnings(action="ignore"):  # of files that are not Zarr's
        names = {*group.keys()}
    full = [name for name in names - {"file"} if getattr(group[name], "nchunks_initialized", 1)]
    ours = names <= {*ARRAYS, "file"} and ("maps" in names or not names) and not full
    return {} if ours else names


def _make(group, shape, batch_size, files):
    for name, dtype in ARRAYS.items():
        dimensions = DIMENSIONS[: 3 if name == "maps" else 1]
        group.create_array(
            name,
            shape=shape[: len(dimensions)],
            chunks=(min(batch_size, shape[0]), *shape[1 : len(dimensions)]),
            dtype=dtype,
            fill_value=NOTHING[name],
            compressors=zarr.codecs.ZstdCodec(level=1, checksum=True),
            dimension_names=dimensions,
            config={"write_empty_chunks": True},
            overwrite=True,
        )
    if files:
        array = group.create_array(
            "file", shape=(len(files),), dtype=str, dimension_names=("image",), overwrite=True
        )
        array[:] = np.array(files, dtype=object)
    with warnings.catch_warnings(action="ignore"):  # that version 3 of the format does not name it
        zarr.consolidate_metadata(group.store)  # so that xarray opens it without a question
