"""Files of Keras's cache, whole, and what an address holds: in seconds or not at all."""

import contextlib
import os
from pathlib import Path
import queue
import socket
import tempfile
import threading
import time
from urllib.parse import urljoin, urlsplit

import h5py
import pooch
import requests

SECONDS_TO_ANSWER = 10
SECONDS_IN_ALL = 30  # for the content of an address
MAX_REDIRECTS = 5
_LATE = "not whole after {} seconds"
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


def content(url: str, limit: int) -> bytes:
    """Return what an http(s) address holds: ``limit`` bytes at most, in ``SECONDS_IN_ALL`` or less.

    Raises OSError with the reason as one clause.
    """
    answer, deadline = queue.SimpleQueue(), time.monotonic() + SECONDS_IN_ALL

    def ask():
        try:
            answer.put(_content(url, limit, deadline))
        except Exception as error:
            answer.put(error)

    # a host that sends its headers byte by byte never meets a time limit of requests
    threading.Thread(target=ask, name=f"asks {url}", daemon=True).start()
    try:
        got = answer.get(timeout=SECONDS_IN_ALL)
    except queue.Empty:
        raise OSError(_LATE.format(SECONDS_IN_ALL)) from None
    if isinstance(got, bytes):
        return got
    if isinstance(got, requests.RequestException | ValueError):
        raise OSError(f"no file: {type(got).__name__}") from got
    raise got


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


def _content(url, limit, deadline):
    with requests.Session() as session:
        onward = session.get_redirect_target
        session.get_redirect_target = lambda _: None  # requests reads all that a redirect holds
        for _ in range(MAX_REDIRECTS + 1):
            if urlsplit(url).scheme not in ("http", "https"):
                raise OSError(f"sent on to an address of {urlsplit(url).scheme}:")
            _reach(url)
            with session.get(
                url, stream=True, timeout=SECONDS_TO_ANSWER, headers={"Accept-Encoding": "identity"}
            ) as answer:
                if onward(answer):
                    url = urljoin(url, onward(answer))
                    continue
                return _body(answer, limit, deadline)
    raise OSError(f"sent on more than {MAX_REDIRECTS} times")


def _body(answer, limit, deadline):
    if answer.status_code != 200:
        raise OSError(f"status {answer.status_code} instead of a file")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise OSError("a compressed answer, which may be of any size")
    body, too_large = bytearray(), OSError(f"more than {limit / 1e6:.0f} MB")
    if (answer.raw.length_remaining or 0) > limit:  # by its own account
        raise too_large
    for piece in answer.iter_content(2**14):
        body += piece
        if len(body) > limit:
            raise too_large
        if time.monotonic() > deadline:
            raise OSError(_LATE.format(SECONDS_IN_ALL))
    return bytes(body)


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
