"""Fashion-MNIST from a cache in every state, and from a server in every mood."""

import ctypes
import gzip
import hashlib
import os
from pathlib import Path
import shutil
import socket
import subprocess
import sys
import time

from cam_helpers import data, fetch
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NAMES = tuple(data.FASHION_MNIST_MD5)


def mini_files(folder):
    """Four files in Fashion-MNIST's format with 5 and 3 images; returns their md5 sums."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, sums = np.random.default_rng(0), {}
    for name in NAMES:
        count = 5 if "train" in name else 3
        if "images" in name:
            raw = bytes(16) + generator.integers(0, 256, count * 784, dtype=np.uint8).tobytes()
        else:
            raw = bytes(8) + bytes(range(count))
        (folder / name).write_bytes(gzip.compress(raw, mtime=0))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return sums


@pytest.fixture
def cache(monkeypatch, server, keras_home):
    """An empty Keras cache whose Fashion-MNIST is the small one that the server has."""
    monkeypatch.setattr(data, "FASHION_MNIST_MD5", mini_files(server.folder))
    monkeypatch.setattr(data, "FASHION_MNIST_URL", server.url)
    return keras_home / "datasets" / "fashion-mnist"


@pytest.fixture
def few_garments(monkeypatch):
    """Draw a handful of stand-ins instead of thousands."""
    draw = data.garments.dataset
    monkeypatch.setattr(data.garments, "dataset", lambda count, seed: draw(count // 500, seed))


def test_missing_files_are_fetched_and_read(cache):
    images = data.fashion_mnist()
    assert images.source == "Fashion-MNIST"
    assert images.train_images.shape == (5, 28, 28, 1)
    assert images.test_images.shape == (3, 28, 28, 1)
    assert images.train_images.dtype == np.float32
    assert images.test_labels.dtype == np.int32
    np.testing.assert_array_equal(images.test_labels, [0, 1, 2])
    raw = gzip.decompress((cache / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    expected = np.frombuffer(raw, np.uint8).reshape(5, 28, 28, 1) / np.float32(255)
    np.testing.assert_array_equal(images.train_images, expected)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def swap(path):
    other = path.with_name(NAMES[0] if path.name != NAMES[0] else NAMES[2])
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [flip_a_bit, truncate, swap])
def test_a_damaged_file_is_fetched_again(cache, server, name, damage):
    mini_files(cache)
    damage(cache / name)
    assert data.fashion_mnist().source == "Fashion-MNIST"
    assert (cache / name).read_bytes() == (server.folder / name).read_bytes()


def test_a_good_cache_needs_no_network(cache, monkeypatch):
    mini_files(cache)
    monkeypatch.setattr(data, "FASHION_MNIST_URL", "http://127.0.0.1:9/")
    assert data.fashion_mnist().source == "Fashion-MNIST"


def test_a_damaged_file_out_of_reach_is_named_in_one_line(cache, monkeypatch, capsys, few_garments):
    mini_files(cache)
    truncate(cache / NAMES[2])
    damaged = (cache / NAMES[2]).read_bytes()
    monkeypatch.setattr(data, "FASHION_MNIST_URL", "http://127.0.0.1:9/")
    assert data.fashion_mnist().source == "drawn garments"
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"{NAMES[2]} is damaged in {cache}" in said
    assert "go online and restart Python, or put the file there" in said
    assert (cache / NAMES[2]).read_bytes() == damaged  # the user's file, whatever it is


def test_a_server_with_the_wrong_file_is_not_believed(cache, server, capsys, few_garments):
    truncate(server.folder / NAMES[0])
    assert data.fashion_mnist().source == "drawn garments"
    said = capsys.readouterr().out
    assert f"{NAMES[0]} is missing" in said
    assert "a damaged file from 127.0.0.1" in said
    assert not (cache / NAMES[0]).exists()


def test_a_server_that_stalls_costs_seconds(cache, monkeypatch, capsys, few_garments):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        port = silent.getsockname()[1]
        monkeypatch.setattr(data, "FASHION_MNIST_URL", f"http://127.0.0.1:{port}/")
        monkeypatch.setattr(fetch, "SECONDS_TO_ANSWER", 0.5)
        started = time.perf_counter()
        images = data.fashion_mnist()
    assert time.perf_counter() - started < 5
    assert images.source == "drawn garments"
    assert images.train_images.shape == (12, 28, 28, 1)
    assert "ReadTimeout" in capsys.readouterr().out


READ = "from cam_helpers import data; print(data.fashion_mnist().source)"


def drop_root_s_right_to_write_anywhere():
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


def test_good_files_of_a_cache_that_cannot_be_written_to_are_copied(cache, tmp_path, monkeypatch):
    mini_files(cache)
    monkeypatch.setattr(fetch, "_temporary", lambda: tmp_path / "temporary")
    monkeypatch.setattr(fetch.os, "access", lambda *_: False)
    monkeypatch.setattr(data, "FASHION_MNIST_URL", "http://127.0.0.1:9/")
    data._check_cache()
    copies = tmp_path / "temporary" / ".keras" / "datasets" / "fashion-mnist"
    assert sorted(path.name for path in copies.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (copies / name).read_bytes() == (cache / name).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="drops a Linux capability")
def test_a_cache_that_cannot_be_written_to_is_read(fashion_mnist, tmp_path):
    fallback = Path("/tmp/.keras/datasets/fashion-mnist")  # where Keras then reads; no choice
    if fallback.exists():
        pytest.skip(f"{fallback} is in use: the test would not see what it is about")
    home = tmp_path / "keras"
    source = fetch.keras_home() / "datasets" / "fashion-mnist"
    target = home / "datasets" / "fashion-mnist"
    target.mkdir(parents=True)
    for name in NAMES:
        (target / name).write_bytes((source / name).read_bytes())
    for folder in (target, target.parent, home):
        folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", READ],
        cwd=ROOT,
        env={**os.environ, "KERAS_HOME": str(home)},
        preexec_fn=drop_root_s_right_to_write_anywhere,
        capture_output=True,
        text=True,
    )
    shutil.rmtree(fallback, ignore_errors=True)
    assert done.stdout.strip() == "Fashion-MNIST", done.stderr
    assert done.stderr == ""


def test_class_names():
    assert len(data.CLASSES) == len(data.CLASSES_ZH) == 10
    assert (data.CLASSES[8], data.CLASSES_ZH[8]) == ("Bag", "背包")


def test_without_a_checkout_the_package_brings_its_weights(tmp_path, monkeypatch):
    assert data.folder() == ROOT / "data"
    monkeypatch.setattr(data, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert data.folder() == ROOT / "cam_helpers" / "committed"
    assert data.output_folder() == tmp_path / "build"


def test_output_folder_is_made_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("CAM_HELPERS_OUTPUT", str(tmp_path / "a" / "b"))
    assert data.output_folder() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
