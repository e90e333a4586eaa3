"""Files of Keras's cache from a server in every mood."""

import contextlib
import hashlib
from pathlib import Path
import socket
import threading
import time
import tracemalloc

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


@pytest.fixture
def mood(monkeypatch):
    """A function that starts a server which does to each caller what it is told to."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "SECONDS_IN_ALL", 1)
    sockets = []

    def start(answer):
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def serve():
            while True:
                try:
                    caller, _ = listening.accept()
                except OSError:
                    return
                with caller:
                    try:
                        if caller.recv(2**16):  # not the one that only looks who is there
                            answer(caller)
                    except OSError:  # it has gone
                        pass

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/photo.jpg"

    yield start
    for listening in sockets:
        listening.close()


def says(*parts, seconds=0):
    def answer(caller):
        for part in parts:
            caller.sendall(part)
            time.sleep(seconds)

    return answer


OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def forever(part, seconds=0.0, start=OK + b"\r\n"):
    def answer(caller):
        caller.sendall(start)
        while True:
            caller.sendall(part)
            time.sleep(seconds)

    return answer


def test_the_content_of_an_address(mood, server):
    (server.folder / "w.bin").write_bytes(CONTENT)
    assert fetch.content(server.url + "w.bin", len(CONTENT)) == CONTENT
    assert fetch.content(mood(says(OK + b"\r\nphoto")), 5) == b"photo"
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\npho\r\n2\r\nto\r\n0\r\n\r\n"
    assert fetch.content(mood(says(chunked)), 5) == b"photo"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda caller: time.sleep(3), "not whole after 1 seconds"),
        (forever(b"x", 0.05), "not whole after 1 seconds"),
        (forever(b"X: y\r\n", 0.05, OK), "not whole after 1 seconds"),
        (forever(b"x", 0.05, b"HTTP/1.1 200 "), "not whole after 1 seconds"),
        (forever(b"1\r\nx\r\n", 0.05, OK + b"Transfer-Encoding: chunked\r\n\r\n"), "not whole aft"),
        (says(OK + b"Content-Length: 99\r\n\r\nphoto"), r"no file: Chunked"),
        (says(OK + b"Content-Length: 99000000\r\n\r\nphoto"), "more than 1 MB"),
        (says(OK + b"Content-Encoding: gzip\r\n\r\nphoto"), "a compressed answer, which may be of"),
        (says(b"HTTP/1.1 503 Busy\r\n\r\n"), "status 503 instead of a file"),
        (says(b"HTTP/1.1 204 Empty\r\n\r\n"), "status 204 instead of a file"),
        (
            says(b"HTTP/1.1 302 Found\r\nLocation: ftp://a/\r\n\r\n"),
            "sent on to an address of ftp:",
        ),
        (
            says(b"HTTP/1.1 302 Found\r\nLocation: file:///a\r\n\r\n"),
            "sent on to an address of fil",
        ),
        (says(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), "sent on more than 5 times"),
        (says(b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n"), r"no file: ValueError"),
        (says(b"not HTTP at all"), r"no file: ConnectionError"),
        (says(OK + b"X: y\r\n" * 5000), r"no file: ConnectionError"),
        (says(b""), r"no file: ConnectionError"),
    ],
)
def test_servers_that_give_no_content(mood, answer, reason):
    started = time.perf_counter()
    with pytest.raises(OSError, match=f"^{reason}"):
        fetch.content(mood(answer), 1_000_000)
    assert time.perf_counter() - started < 1.9


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: /photo.jpg\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        forever(bytes(2**20)),
        forever(
            b"100000\r\n" + bytes(2**20) + b"\r\n", 0, OK + b"Transfer-Encoding: chunked\r\n\r\n"
        ),
        says(OK + b"Content-Length: 5\r\n\r\n" + bytes(10**8)),
        forever(bytes(2**20), 0, REDIRECT),
        forever(bytes(2**20), 0, b"HTTP/1.1 404 No\r\n\r\n"),
        forever(bytes(2**20), 0, b"HTTP/1.1 200 "),
    ],
)
def test_never_more_than_the_limit_is_in_memory(mood, answer):
    url = mood(answer)
    tracemalloc.start()
    with contextlib.suppress(OSError):
        assert fetch.content(url, 3_000_000) == bytes(5)  # the length that the server gave
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6  # of which the server's own megabytes


def test_what_still_listens_to_a_host_keeps_python_from_nothing(mood):
    url = mood(forever(b"x", 0.05))  # never the end of a first line
    with pytest.raises(OSError, match=r"^not whole after"):
        fetch.content(url, 1000)
    (asking,) = [thread for thread in threading.enumerate() if thread.name == f"asks {url}"]
    assert asking.daemon


def test_a_server_that_sends_on_to_the_file(mood, server):
    (server.folder / "w.bin").write_bytes(CONTENT)
    sends_on = f"HTTP/1.1 301 Moved\r\nLocation: {server.url}w.bin\r\n\r\n".encode()
    assert fetch.content(mood(says(sends_on)), len(CONTENT)) == CONTENT
