"""Files that are there whole or not at all, and runs that can be stopped at any time."""

from collections.abc import Callable, Iterator
import contextlib
import errno
import os
from pathlib import Path
import shutil
import signal
import sys
import tempfile
import threading
from typing import BinaryIO
import uuid

import filelock

INTERRUPTED, TERMINATED = 130, 143  # exit statuses: 128 and the signal's number
_FREE = "free some, then run it again."
_ELSEWHERE = "name another folder, or change who may write there."
REASONS = {  # why nothing can be written, and the way out
    errno.ENOSPC: f"no space left on the device: {_FREE}",
    getattr(errno, "EDQUOT", errno.ENOSPC): f"no space left in this user's share: {_FREE}",
    errno.EFBIG: "larger than files may be here: raise that limit, then run it again.",
    errno.EIO: "the device fails: name a folder on another one.",
    errno.EACCES: f"this user may not write there: {_ELSEWHERE}",
    errno.EPERM: f"this user may not write there: {_ELSEWHERE}",
    errno.ENAMETOOLONG: "its name is too long: choose a shorter one.",
    errno.EROFS: f"nobody may write there: {_ELSEWHERE}",
}


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that becomes ``path`` once it is whole; until then, what was there stays.

    It is written beside ``path``, under a hidden name of its own. If the block fails or is stopped,
    it is removed. The folder is made if need be.

    Parameters
    ----------
    path
        What to write, or to replace. Of a link, what it points to.

    Yields
    ------
    BinaryIO
        To be written in the block.

    Raises
    ------
    OSError
        If it cannot be written, with the file and the reason in one sentence.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"could not write '{path}': it is no ordinary file: choose another name.")
    beside = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with explained(path):
            _make(path.parent, path)
            with beside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                shutil.copymode(path, beside)
            os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def together(folder: str | Path) -> Iterator[Path]:
    """Yield a hidden folder in ``folder``; what is in it moves there once all of it is whole.

    For writers that want a path. If the block fails or is stopped, nothing in ``folder`` changes.
    Raises OSError as :func:`whole` does.
    """
    folder = Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=folder) as hidden:
            yield Path(hidden)
            for beside in [path for path in Path(hidden).rglob("*") if path.is_file()]:
                with beside.open("rb+") as file:
                    os.fsync(file.fileno())
                path = folder / beside.relative_to(hidden)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(beside, path)


def save_weights(model, path: Path) -> None:
    """Let Keras write a model's weights, if there is room: HDF5 crashes on a full disk.

    It comes back to what it could not write when the program ends.
    """
    with tempfile.TemporaryFile(dir=path.parent, suffix=".part") as file:
        file.write(bytes(4 * model.count_params() + 2**20))
        file.flush()
        os.fsync(file.fileno())
    model.save_weights(path)


def _make(folder, path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise OSError(
            f"could not write '{path}': '{folder}' is no folder, and cannot be made one: name "
            "another folder."
        ) from error


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Say that ``path`` could not be written, why, and the way out, in place of an OSError.

    That is where the reason is one of ``REASONS``, which stays in ``errno``, and the error names
    no other file.
    """
    try:
        yield
    except OSError as error:
        about, path = Path(os.fsdecode(error.filename or path)), Path(path)
        ours = about.is_relative_to(path) or path.is_relative_to(about) or about.suffix == ".part"
        if not ours or error.errno not in REASONS or error.strerror is None:  # None: explained
            raise
        mended = OSError(f"could not write '{path}': {REASONS[error.errno]}")
        mended.errno = error.errno
        raise mended from error


@contextlib.contextmanager
def only_one(folder: str | Path, lock: Path | None = None) -> Iterator[None]:
    """Hold a folder for this run alone, and clear away what a killed one left half written in it.

    The lock is the system's, on the file ``lock``, or else on the folder's file ``.lock``: a run
    that is killed leaves none.

    Raises
    ------
    BlockingIOError
        If another run holds the folder.
    OSError
        If nothing can be written there.
    """
    folder = Path(folder)
    held = filelock.FileLock(lock or folder / ".lock")
    try:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with explained(lock or folder):
            held.acquire(blocking=False)
    except filelock.Timeout as error:
        raise BlockingIOError(
            f"expected to be the only run that writes into '{folder}', received a folder that "
            "another one holds: wait for it, or name another folder."
        ) from error
    try:
        for left in folder.glob(".*.part"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        yield
    finally:
        held.release()


@contextlib.contextmanager
def stoppable(message: str | Callable[[], str], exits: bool = False) -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does, clearing up; say in one line on stderr what is lost.

    In another thread than the main one, signals stay what they were; and so they do where the
    program has a handler of its own.

    Parameters
    ----------
    message
        What follows on "Stopped by Ctrl-C": where, and how to go on. Or a call that returns it.
    exits
        For programs: Ctrl-C, too, ends in SystemExit. Else the caller gets its KeyboardInterrupt.

    Raises
    ------
    SystemExit
        With status 143 after SIGTERM and, where the block ``exits``, 130 after Ctrl-C.
    """

    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: now it clears up
        raise SystemExit(TERMINATED)

    def say(cause):
        print(f"Stopped by {cause} {message() if callable(message) else message}", file=sys.stderr)

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        say("Ctrl-C")
        if exits:
            raise SystemExit(INTERRUPTED) from None
        raise
    except SystemExit as ending:
        if ending.code == TERMINATED:
            say("SIGTERM")
        raise
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
