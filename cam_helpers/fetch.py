"""Files of Keras's cache: whole, and fetched in seconds or not at all, which Keras cannot."""

import contextlib
import os
from pathlib import Path
import socket
import tempfile
import time
from urllib.parse import urlsplit

import h5py
import pooch
import requests

SECONDS_TO_ANSWER = 10
_SILENT = {}  # host: why no file came from it


def whole_file(
    subfolder: str, name: str, url: str, known_hash: str | None, what: str = "", bar: bool = True
) -> Path:
    """Return the path of a whole file of Keras's cache, fetched where it is missing or damaged.

    ``known_hash`` is ``"md5:…"`` or ``"sha256:…"``, or None for an HDF5 file without a published
    one. ``what`` is printed with the size before a download, ``bar`` shows its progress. Raises
    OSError with the reason as one clause; what lay there before then still does. A host that did
    not answer is not asked again.
    """
    target = folder(subfolder) / name
    for path in (target, keras_home() / subfolder / name):
        if _is_whole(path, known_hash):
            return path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{name}.{os.getpid()}")
    try:
        _download(url, part, what, bar)
        if not _is_whole(part, known_hash):
            raise OSError(f"a damaged file from {urlsplit(url).netloc}")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def folder(subfolder: str) -> Path:
    """Return where Keras reads: in its cache or, if that cannot be written to, a temporary one."""
    home = keras_home()
    return (home if os.access(home, os.W_OK) else _temporary() / ".keras") / subfolder


def keras_home() -> Path:
    """Return the folder of Keras's cache, by Keras's own rule; it has no public name."""
    user = Path.home() if os.access(Path.home(), os.W_OK) else _temporary()
    return Path(os.environ.get("KERAS_HOME", user / ".keras")).expanduser()


def _temporary():
    return Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir())


def _is_whole(path, known_hash):
    if known_hash is None:
        with contextlib.suppress(OSError), h5py.File(path):  # fails where the file ends too early
            return True
        return False
    kind, _, value = known_hash.partition(":")
    return path.is_file() and pooch.file_hash(str(path), alg=kind) == value


def _download(url, path, what, bar):
    host = urlsplit(url).netloc
    if host in _SILENT:
        raise OSError(_SILENT[host])
    try:
        _reach(url)
        if what:
            answer = requests.head(url, timeout=SECONDS_TO_ANSWER, allow_redirects=True)
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0)) / 1e6
            print(f"Fetching {what}: {f'{size:.0f} MB' if size else 'size unknown'}.", flush=True)
        get = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=SECONDS_TO_ANSWER)
        get(url, str(path), None)
    except requests.RequestException as error:
        reason = f"no file from {host}: {type(error).__name__}"
        if isinstance(error, requests.ConnectionError | requests.Timeout):
            _SILENT[host] = reason
        raise OSError(reason) from error


def _reach(url):
    """Fail if no address of a host answers in time; requests would try them all in full."""
    if requests.utils.get_environ_proxies(url):
        return
    place, started, failure = urlsplit(url), time.monotonic(), OSError(f"{url} has no address")
    port = place.port or {"http": 80, "https": 443}[place.scheme]
    try:
        addresses = socket.getaddrinfo(place.hostname, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in addresses:
            with socket.socket(family, kind, protocol) as attempt:
                attempt.settimeout(SECONDS_TO_ANSWER / 4)
                try:
                    return attempt.connect(address)
                except OSError as error:
                    failure = error
            if time.monotonic() - started > SECONDS_TO_ANSWER:
                break
    except OSError as error:  # no such name
        failure = error
    raise requests.ConnectionError(f"{url} is out of reach") from failure
