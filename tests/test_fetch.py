"""Files of Keras's cache from a server in every mood."""

import hashlib
from pathlib import Path
import socket
import time

from cam_helpers import fetch
from cam_helpers.backend import keras
import h5py
import numpy as np
import pytest
import requests

CONTENT = bytes(range(256)) * 4000
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def whole_file(server, keras_home):
    """The function for one file, which the server has."""
    (server.folder / "w.bin").write_bytes(CONTENT)

    def whole_file(known_hash=MD5, url=server.url + "w.bin", **options):
        return fetch.whole_file("models", "weights.bin", url, known_hash, **options)

    return whole_file


@pytest.mark.parametrize("known_hash", [MD5, SHA256])
def test_a_missing_file_is_fetched_and_found_afterwards(whole_file, server, keras_home, known_hash):
    path = whole_file(known_hash)
    assert path == keras_home / "models" / "weights.bin"
    assert path.read_bytes() == CONTENT
    assert whole_file(known_hash) == path
    assert server.requests == [("GET", "/w.bin")]
    assert [each.name for each in path.parent.iterdir()] == ["weights.bin"]


def test_the_size_is_said_before_the_download(whole_file, server, capsys):
    (server.folder / "w.bin").write_bytes(CONTENT * 3)  # 3.072 MB
    whole_file("md5:" + hashlib.md5(CONTENT * 3).hexdigest(), what="VGG16's ImageNet weights")
    said = capsys.readouterr()
    assert said.out == "Fetching VGG16's ImageNet weights: 3 MB.\n"
    assert "100%" in said.err
    assert server.requests == [("HEAD", "/w.bin"), ("GET", "/w.bin")]


@pytest.mark.parametrize(
    ("headers", "size"), [({"Content-Length": "553467096"}, "553 MB"), ({}, "size unknown")]
)
def test_sizes_are_millions_of_bytes(whole_file, monkeypatch, capsys, headers, size):
    answer = requests.Response()
    answer.status_code, answer.headers = 200, headers
    monkeypatch.setattr(requests, "head", lambda *_, **__: answer)
    whole_file(what="VGG16's ImageNet weights")
    assert capsys.readouterr().out == f"Fetching VGG16's ImageNet weights: {size}.\n"


def test_a_damaged_file_is_replaced_by_a_whole_one_only(whole_file, server, keras_home):
    path = keras_home / "models" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    (server.folder / "w.bin").write_bytes(CONTENT[:-2])
    with pytest.raises(OSError, match=r"^a damaged file from 127.0.0.1:\d+$"):
        whole_file()
    assert path.read_bytes() == CONTENT[:-1]
    assert [each.name for each in path.parent.iterdir()] == ["weights.bin"]
    (server.folder / "w.bin").write_bytes(CONTENT)
    assert whole_file().read_bytes() == CONTENT


def test_without_a_known_hash_an_hdf5_file_must_end_where_it_says(whole_file, server, keras_home):
    good = server.folder / "w.bin"
    with h5py.File(good, "w") as file:
        file["weights"] = np.arange(10_000)
    path = keras_home / "models" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(good.read_bytes()[:-100])
    assert whole_file(None).read_bytes() == good.read_bytes()
    whole_file(None)
    assert len(server.requests) == 1
    path.unlink()
    good.write_bytes(b"<html>Log in to this network first</html>")
    with pytest.raises(OSError, match=r"^a damaged file from"):
        whole_file(None)


def test_a_file_that_the_server_lacks(whole_file, server):
    with pytest.raises(OSError, match=r"^no file from 127.0.0.1:\d+: HTTPError$"):
        whole_file(url=server.url + "other.bin", what="weights")
    assert whole_file().is_file()  # the server is not to blame


def test_a_server_that_stalls_costs_seconds_once(whole_file, monkeypatch):
    monkeypatch.setattr(fetch, "SECONDS_TO_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/w.bin"
        for seconds in (2, 0.1):
            started = time.perf_counter()
            with pytest.raises(OSError, match=r"^no file from 127.0.0.1:\d+: ReadTimeout$"):
                whole_file(url=url, what="weights")
            assert time.perf_counter() - started < seconds


def test_a_host_out_of_reach_is_not_tried_again(whole_file, monkeypatch):
    tried, reach = [], fetch._reach
    monkeypatch.setattr(fetch, "_reach", lambda url: (tried.append(url), reach(url)))
    for _ in range(3):
        with pytest.raises(OSError, match=r"^no file from 127.0.0.1:9: ConnectionError$"):
            whole_file(url="http://127.0.0.1:9/w.bin")
    assert len(tried) == 1
    assert whole_file().is_file()  # other hosts are


def test_a_name_that_no_address_belongs_to(whole_file, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(OSError, match=r"^no file from host.invalid: ConnectionError$"):
        whole_file(url="https://host.invalid/w.bin")


def stall(attempt, _):
    time.sleep(attempt.gettimeout())
    raise TimeoutError("timed out")


def test_a_host_of_many_silent_addresses_costs_seconds(monkeypatch):
    monkeypatch.setattr(fetch, "SECONDS_TO_ANSWER", 0.4)
    silent = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [silent] * 50)
    monkeypatch.setattr(socket.socket, "connect", stall)
    started = time.perf_counter()
    with pytest.raises(requests.ConnectionError, match=r"http://192.0.2.1/ is out of reach") as got:
        fetch._reach("http://192.0.2.1/")
    assert isinstance(got.value.__cause__, TimeoutError)
    assert time.perf_counter() - started < 2


def test_a_cache_that_cannot_be_written_to_is_read_where_it_is(whole_file, tmp_path, monkeypatch):
    path = whole_file()
    monkeypatch.setattr(fetch, "_temporary", lambda: tmp_path / "temporary")
    monkeypatch.setattr(fetch.os, "access", lambda *_: False)
    assert whole_file() == path
    path.write_bytes(b"damaged")
    assert whole_file() == tmp_path / "temporary" / ".keras" / "models" / "weights.bin"


def test_the_rule_for_the_cache_is_keras_own():
    assert fetch.keras_home() == Path(keras.src.backend.config.keras_home()).expanduser()
