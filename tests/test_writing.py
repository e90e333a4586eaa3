"""Files whole or not at all, one run a folder, and signals that end a block in order."""

import ctypes
import errno
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

from cam_helpers import writing
import pytest

ROOT = Path(__file__).parents[1]


def start(code, *arguments, **options):
    """Start Python as a terminal would: with Ctrl-C that reaches it."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_is_there_once_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for content in (b"one", b"another"):
        before = path.read_bytes() if path.exists() else None
        with writing.whole(path) as file:
            file.write(content)
            assert (path.read_bytes() if path.exists() else None) == before
            (beside,) = set(path.parent.iterdir()) - {path}
            assert beside.name.startswith(".")
            assert beside.suffix == ".part"
        assert path.read_bytes() == content
        assert names(path.parent) == ["file.txt"]
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_ends_early_changes_nothing(stop, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def one():
        with writing.whole(path) as file:
            file.write(b"half a fi")
            raise stop

    def several():
        with writing.together(tmp_path) as hidden:
            (hidden / "file.txt").write_text("half a fi")
            raise stop

    for write in (one, several):
        with pytest.raises(stop):
            write()
    assert names(tmp_path) == ["file.txt"]
    assert path.read_text() == "old"


def test_all_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, call=call: done.append(n) or call(*a))
    with writing.whole(tmp_path / "file") as file:
        file.write(b"x")
    with writing.together(tmp_path) as hidden:
        (hidden / "other").write_text("x")
    assert done == ["fsync", "replace"] * 2


def test_a_link_keeps_pointing(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with writing.whole(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_pipes_devices_and_folders_are_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "folder", tmp_path / "pipe"):
        message = f"^could not write '{path}': it is no ordinary file: choose another name.$"
        with pytest.raises(OSError, match=message), writing.whole(path):
            pass


def test_what_is_written_together_comes_together(tmp_path):
    (tmp_path / "a").write_text("old")
    with writing.together(tmp_path) as hidden:
        (hidden / "a").write_text("new")
        (hidden / "inner").mkdir()
        (hidden / "inner" / "b").write_text("new")
        assert hidden.parent == tmp_path
        assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a", "inner", "inner/b"]
    assert (tmp_path / "a").read_text() == (tmp_path / "inner" / "b").read_text() == "new"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no space left on the device: free some, then run it again."),
        (errno.EDQUOT, "no space left in this user's share: free some, then run it again."),
        (errno.EIO, "the device fails: name a folder on another one."),
        (
            errno.EROFS,
            "nobody may write there: name another folder, or change who may write there.",
        ),
    ],
)
def test_errors_of_the_system_become_one_sentence(number, reason, tmp_path):
    path = tmp_path / "file"
    with (
        pytest.raises(OSError, match=r"^could not write ") as got,
        writing.whole(path) as file,
        writing.explained(tmp_path / "inner"),  # of two the inner one speaks
    ):
        raise OSError(number, os.strerror(number), file.name)
    assert str(got.value) == f"could not write '{tmp_path / 'inner'}': {reason}"
    assert got.value.errno == number
    assert not names(tmp_path)


def test_errors_of_other_files_stay_what_they_are(tmp_path):
    for error in (
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "other")),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        OSError("of another kind"),
    ):
        message = str(error).replace("[", r"\[")
        with pytest.raises(OSError, match=message) as got, writing.whole(tmp_path / "file"):
            raise error
        assert got.value is error


def drop_root_s_right_to_write_anywhere():
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


FORBIDDEN = """
import sys
from pathlib import Path
from cam_helpers import writing
folder = Path(sys.argv[1])
for enter in (writing.whole, writing.together, writing.only_one):
    for path in (folder / "new", folder / "new" / "inner"):
        try:
            with enter(path):
                print("entered")
        except OSError as error:
            print(error)
try:
    with writing.only_one(folder):
        print("entered")
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="drops a Linux capability")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, str(tmp_path)],
        cwd=ROOT,
        preexec_fn=drop_root_s_right_to_write_anywhere,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [tmp_path / "new", tmp_path / "new" / "inner"] * 3 + [tmp_path]
    assert done.stdout.splitlines() == [
        f"could not write '{path}': this user may not write there: name another folder, or change "
        "who may write there."
        for path in paths
    ]


HOLD = """
import sys, time
from cam_helpers import writing
with writing.only_one(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer_and_a_killed_one_leaves_no_lock(tmp_path):
    holder = start(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    left = tmp_path / ".figure.png.1234.part"
    left.write_text("half a fig")
    (tmp_path / ".abc.part").mkdir()
    (tmp_path / ".abc.part" / "page.html").touch()
    (tmp_path / "good.part").touch()  # not ours
    message = (
        rf"^expected to be the only run that writes into '{tmp_path}', received a folder that "
    )
    message += "another one holds: wait for it, or name another folder.$"
    with pytest.raises(BlockingIOError, match=message), writing.only_one(tmp_path):
        pass
    assert left.exists()  # may be the other's
    holder.kill()
    holder.communicate()
    with writing.only_one(tmp_path):
        assert names(tmp_path) == [".lock", "good.part"]
        with pytest.raises(BlockingIOError), writing.only_one(tmp_path):
            pass
    with writing.only_one(tmp_path):  # free again
        pass


def test_a_lock_may_lie_beside_the_folder(tmp_path):
    folder, lock = tmp_path / "new" / "folder", tmp_path / "new" / "lock"
    with writing.only_one(folder, lock):
        assert names(tmp_path) == ["new", "new/folder", "new/lock"]
        message = f"writes into '{folder}', received a folder"
        with pytest.raises(BlockingIOError, match=message), writing.only_one(folder, lock):
            pass
        with writing.only_one(folder):  # another lock
            pass
    (folder / ".a.part").touch()
    with writing.only_one(folder, lock):  # free again
        assert names(folder) == [".lock"]


BESIDE = """
import sys
from pathlib import Path
from cam_helpers import writing
folder = Path(sys.argv[1])
try:
    with writing.only_one(folder / "there", folder / ".lock"):
        print("entered")
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="drops a Linux capability")
def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "there").mkdir()
    tmp_path.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", BESIDE, str(tmp_path)],
        cwd=ROOT,
        preexec_fn=drop_root_s_right_to_write_anywhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        f"could not write '{tmp_path / '.lock'}': this user may not write there: name another "
        "folder, or change who may write there.\n"
    )


STOPPED = """
import signal, sys, time
from cam_helpers import writing
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
work = "at"
try:
    with writing.stoppable(lambda: f"{work} work: start again.", exits=sys.argv[1] == "True"):
        with writing.stoppable("never said"):
            work = "in the middle of"
            pass
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            time.sleep(0.2)
            print("cleared up")
finally:
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
"""


@pytest.mark.parametrize(
    ("number", "name", "exits", "status"),
    [
        (signal.SIGINT, "Ctrl-C", True, 130),
        (signal.SIGTERM, "SIGTERM", True, 143),
        (signal.SIGTERM, "SIGTERM", False, 143),
        (signal.SIGINT, "Ctrl-C", False, -signal.SIGINT),  # a KeyboardInterrupt that nobody caught
    ],
)
def test_a_stopped_block_clears_up_and_says_so_in_one_line(number, name, exits, status):
    process = start(STOPPED, exits)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    if number == signal.SIGTERM:
        time.sleep(0.1)
        process.send_signal(number)  # once more: it is clearing up already
    out, said = process.communicate(timeout=10)
    assert process.returncode == status
    assert out == "cleared up\n"
    line = f"Stopped by {name} in the middle of work: start again.\n"
    assert said == line if status > 0 else said.startswith(line)
    assert ("KeyboardInterrupt" in said) == (status < 0)


def test_a_handler_of_the_program_and_other_threads_stay(monkeypatch):
    seen = []

    def note():
        with writing.stoppable("never said"):
            seen.append(signal.getsignal(signal.SIGTERM))

    ours = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, ours)
    try:
        note()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        thread = threading.Thread(target=note)
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [ours, signal.SIG_DFL]


def test_what_ends_by_itself_is_not_said_to_be_stopped(capsys):
    with writing.stoppable("never said"):
        pass
    with pytest.raises(SystemExit), writing.stoppable("never said"):
        raise SystemExit(1)
    with pytest.raises(KeyboardInterrupt), writing.stoppable("here."):
        raise KeyboardInterrupt
    assert capsys.readouterr() == ("", "Stopped by Ctrl-C here.\n")
