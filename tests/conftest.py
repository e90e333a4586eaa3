import functools
import http.server
import threading
from types import SimpleNamespace

from cam_helpers import backbones, data, fetch
import pytest


@pytest.fixture(scope="session")
def fashion_mnist():
    """The real Fashion-MNIST, or a skip that says so."""
    images = data.fashion_mnist()
    if images.source != "Fashion-MNIST":
        pytest.skip("Fashion-MNIST is out of reach here: only drawn garments can be had")
    return images


@pytest.fixture(scope="session")
def mobilenet():
    """MobileNet with its ImageNet weights, or a skip that says so."""
    backbone = backbones.load_backbone("MobileNet", fallback=())
    if backbone.weights != "ImageNet":
        pytest.skip("MobileNet's ImageNet weights are out of reach here")
    return backbone


class LoggingHandler(http.server.SimpleHTTPRequestHandler):
    def log_request(self, *_):
        self.server.requests.append((self.command, self.path))

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine: ``folder`` that it serves, ``url``, and ``requests`` so far."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "_SILENT", {})
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(LoggingHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.requests = []
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/"
        yield SimpleNamespace(folder=folder, url=url, requests=running.requests)
        running.shutdown()


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """An empty Keras cache."""
    home = tmp_path / "keras"
    home.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(home))
    return home
