"""A real browser, and JupyterLab on this machine for it to open."""

import json
import os
from pathlib import Path
import secrets
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
import urllib.request

import pytest

ROOT = Path(__file__).parents[2]
QUIET = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update
"""
# Lab 4 and 3.6 ask for news on the network; the extension manager asks for extensions.
NO_NEWS = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDGETS_7 = ROOT / ".venv-widgets7"


@pytest.fixture(scope="session")
def chromium():
    """Chromium, started, or a skip that says what lacks."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"there is no {' or '.join(BROWSERS)} on the PATH")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=["8", "7.7.1"])
def lab(request, tmp_path_factory):
    """JupyterLab with ipywidgets 8, or 3.6 with 7.7.1 as in Colab: ``url``, ``token``, ``folder``.

    Its folder is in the repository, so that a notebook's set-up cell finds the package. All of its
    own settings are in a temporary folder.
    """
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    python, kernel = sys.executable, {}
    if request.param == "7.7.1":
        python, kernel = WIDGETS_7 / "bin" / "python", {"PYTHONPATH": str(WIDGETS_7 / "kernel")}
        if not (WIDGETS_7 / "ready").exists():
            pytest.skip("ipywidgets 7.7.1 has an environment of its own: make .venv-widgets7/ready")
    home = tmp_path_factory.mktemp("lab")
    folder = ROOT / "build" / "browser" / request.param
    folder.mkdir(parents=True, exist_ok=True)
    _write(home / "config" / "labconfig" / "page_config.json", NO_NEWS)
    launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": launch, "display_name": "tested", "language": "python", "env": kernel}
    _write(home / "data" / "kernels" / "tested" / "kernel.json", spec)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    own = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    env = {**os.environ, **{name: str(home / place) for name, place in own.items()}}
    options = f"""
        --no-browser --allow-root --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0
        --ServerApp.token={token} --LabApp.extension_manager=readonly
    """
    command = [python, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={folder}"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/api?token={token}", server, home / "log")
        yield SimpleNamespace(url=url, token=token, folder=folder, widgets=request.param)
    finally:
        server.terminate()
        server.wait(20)


def _write(path, content):
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def _wait_for(url, server, log):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(300):
        try:
            return direct.open(url, timeout=5).close()
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
    raise TimeoutError(log.read_text())
