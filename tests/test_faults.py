"""Full disks, signals, killed kernels, silent networks: each one for real.

Run as a program, this file is what happens on a full disk: ``in_a_full_folder``.
"""

import contextlib
import ctypes
import json
import os
from pathlib import Path
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT, HERE = Path(__file__).parents[1], Path(__file__).parent
SIZE = 16 * 2**20  # bytes of the small disk
QUIET = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "TF_CPP_MIN_LOG_LEVEL": "3"}
NO_SPACE = "no space left on the device: free some, then run it again."


# A full disk.


@contextlib.contextmanager
def full(folder, left):
    """Leave so many bytes free on a small disk; where there is none, so many a file."""
    if os.environ["SMALL_DISK"] == "limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - left)))
    yield
    filler.unlink()


def contents(folder):
    """Every file but locks, what fills the disk, and the index, which says what failed."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "filler", "index.html")
    }


def refused(call, folder, left):
    """What a call says on a full disk. It must not change a file."""
    before = contents(folder)
    with full(folder, left):
        try:
            call()
            said = "it fitted"
        except OSError as error:
            said = str(error)
    assert contents(folder) == before, (sorted(contents(folder)), sorted(before))
    return said


def network(kernels=8):
    from cam_helpers.backend import keras

    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(kernels, 3, activation="relu", name="conv"),
        keras.layers.Dropout(0.5),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
    return keras.Sequential(layers)


def garments(count=60):
    from cam_helpers import garments

    return garments.dataset(count, seed=0)


def training_on(folder, epochs):
    from cam_helpers import training

    images, labels = garments()
    model, new = network(), (images[:20], labels[:20])
    options = {"batch_size": 20, "seed": 1, "progress": False}
    log = training.train(
        model, images, labels, folder=folder, validation_data=new, epochs=epochs, **options
    )
    return [{**row, "seconds": 0} for row in log["epochs"]], model.get_weights()


def full_disk_in_training(disk):
    folder, expected = disk / "training", training_on(disk / "undisturbed", 3)
    training_on(folder, 1)
    said = [refused(lambda: training_on(folder, 3), disk, left=0)]
    state = (folder / "state.npz").read_bytes()
    with full(disk, left=50_000), contextlib.suppress(OSError):  # enough for the log
        training_on(folder, 3)
    assert (folder / "state.npz").read_bytes() == state
    assert len(json.loads((folder / "log.json").read_text())["epochs"]) == 2
    rows, weights = training_on(folder, 3)
    assert rows == expected[0]
    for one, other in zip(weights, expected[1], strict=True):
        np.testing.assert_array_equal(one, other)
    return said


def full_disk_in_save_fashion_cnn(disk):
    from cam_helpers import models
    from cam_helpers.backend import keras

    folder, said = disk / "fashion_cnn", []
    old, new = models.fashion_cnn(), models.fashion_cnn()
    models.save_fashion_cnn(old, {"log": "old"}, folder)
    for left in (0, 100_000, 1_000_000):
        call = lambda: models.save_fashion_cnn(new, {"log": "new"}, folder)  # noqa: E731
        said.append(refused(call, disk, left))
    models.save_fashion_cnn(new, {"log": "new"}, folder)
    assert json.loads((folder / models.LOG).read_text()) == {"log": "new"}
    again = models.fashion_cnn()
    again.load_weights(folder / models.WEIGHTS)
    for one, other in zip(again.get_weights(), new.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    keras.backend.clear_session()
    return said


def full_disk_in_ground_truth(disk):
    from cam_helpers import data, ground_truth

    folder, data.folder = data.folder, lambda: disk / "data"
    model = ground_truth.small_cnn("labels")
    ground_truth._save(model, "a.weights.h5")
    said = [refused(lambda: ground_truth._save(model, "a.weights.h5"), disk, left=20_000)]
    ground_truth._save(model, "a.weights.h5")
    data.folder = folder
    return said


def full_disk_in_a_dump(disk):
    from cam_helpers.activations import save_activations

    images, model = garments(100)[0], network()
    call = lambda: save_activations(model, images, ["conv"], disk / "dump", batch_size=25)  # noqa: E731
    expected = save_activations(model, images, ["conv"], disk / "expected", batch_size=25)
    expected = expected["conv"].read_bytes()
    said = []
    # what cannot be written: the first of four pieces, another, the file
    lefts = (0, 3 / 8, 1.3) if os.environ["SMALL_DISK"] == "disk" else (0, 1 / 8, 1 / 2)
    for left in lefts:
        with full(disk, int(left * len(expected))):
            try:
                call()
            except OSError as error:
                said.append(str(error))
        assert not list(disk.rglob("*.part")), "half a file"
        assert not list((disk / "dump").glob("*.npz"))
    assert call()["conv"].read_bytes() == expected
    assert [path.name for path in (disk / "dump").iterdir()] == ["conv.npz"]
    return said


def full_disk_in_the_league(disk):
    from cam_helpers import league, standings

    kept, table, readme = disk / "kept" / "a.json", disk / "league.csv", disk / "README.md"
    rows = [dict.fromkeys(standings.COLUMNS, "0") | {"method": "x" * 5000}]
    measure = lambda: {"deletion": np.arange(999)}  # noqa: E731
    readme.write_text(f"before {standings.START} old {standings.END} after")
    table.write_text("old")
    kept.parent.mkdir()
    shown, standings.shown = standings.shown, lambda _: "x" * 5000
    calls = (
        lambda: league._kept(kept, measure),
        lambda: standings.write(rows, table),
        lambda: standings.into_readme(rows, readme),
    )
    said = [refused(call, disk, left=0) for call in calls]
    for call in calls:
        call()
    standings.shown = shown
    assert standings.read(table) == rows
    np.testing.assert_array_equal(league._kept(kept, None)["deletion"], np.arange(999))
    assert readme.read_text().startswith(f"before {standings.START}\nxxx")
    return said


def full_disk_in_run(disk):
    from cam_helpers import tutorial
    from click.testing import CliRunner

    tutorial.ROOT, out = disk / "project", disk / "build"
    write_notebook("01_draws", DRAW, disk / "project" / "notebooks")

    def run():
        done = CliRunner().invoke(tutorial.main, ["--out", str(out)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        if done.exit_code:
            raise OSError(" | ".join(done.stderr.splitlines()[-2:]))

    run()
    write_notebook("01_draws", DRAW.replace("1, 2", "2, 1"), disk / "project" / "notebooks")
    lefts = (0, 100_000) if os.environ["SMALL_DISK"] == "disk" else (100_000,)
    said = [refused(run, out, left) for left in lefts]  # the page is larger than that
    old = contents(out)
    run()
    new = contents(out)
    assert set(new) == set(old)
    assert all(new[name] != old[name] for name in old)
    return said


FULL_DISKS = [call for name, call in list(globals().items()) if name.startswith("full_disk_in_")]


@pytest.fixture(scope="module")
def on_a_full_disk(tmp_path_factory):
    """What each of ``FULL_DISKS`` said on a disk of its own size, in one process."""
    disk = tmp_path_factory.mktemp("disk")
    program = [sys.executable, __file__, str(disk)]
    script = f"mount -t tmpfs -o size={SIZE} tmpfs '{disk}' && "
    small = ["unshare", "-Urm", "sh", "-c"]
    kind = "limit"
    with contextlib.suppress(OSError):
        tried = subprocess.run([*small, script + "true"], capture_output=True)
        kind = "limit" if tried.returncode else "disk"
    if kind == "disk":
        program = [*small, script + 'exec "$@"', "sh", *program]
    env = {**QUIET, "SMALL_DISK": kind}
    done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    found["stderr"] = done.stderr
    found["reason"] = NO_SPACE if kind == "disk" else "larger than files may be here: raise that "
    return found


FILES = {  # and how often they could not be written
    "full_disk_in_training": ["/training/log.json"],
    "full_disk_in_save_fashion_cnn": ["/fashion_cnn/fashion_cnn.weights.h5"] * 3,
    "full_disk_in_ground_truth": ["/data/a.weights.h5"],
    "full_disk_in_a_dump": ["/dump", "/dump", "/dump/conv.npz"],
    "full_disk_in_the_league": ["/kept/a.json", "/league.csv", "/README.md"],
    "full_disk_in_run": ["/build/01_draws.ipynb"] * 2,
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no files")
@pytest.mark.parametrize("what", FILES)
def test_a_full_disk_loses_nothing_and_the_same_call_finishes_later(what, on_a_full_disk):
    found, said = on_a_full_disk[what], []
    assert found["failure"] == ""
    for sentence, file in zip(found["said"], FILES[what], strict=False):
        assert f"{file}': {on_a_full_disk['reason']}" in sentence
        said.append(sentence)
    assert said
    assert said == found["said"]
    assert "Traceback" not in on_a_full_disk["stderr"]  # as HDF5 leaves them


def in_a_full_folder(disk):
    import traceback

    found = {}
    for call in FULL_DISKS:
        place = disk / call.__name__
        place.mkdir()
        try:
            found[call.__name__] = {"said": call(place), "failure": ""}
        except Exception:
            found[call.__name__] = {"said": [], "failure": traceback.format_exc()}
        shutil.rmtree(place)
    print(json.dumps(found))


# Processes.


@pytest.fixture
def start():
    """Start Python in a group of processes of its own, and with Ctrl-C, as a terminal would."""
    started = []

    def start(code, *arguments):
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                cwd=ROOT,
                env=QUIET,
                process_group=0,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()  # its kernels look for it
        process.communicate()


# Notebooks.

DRAW = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
WAIT = """
import os, pathlib, subprocess, sys, time
here = pathlib.Path({folder!r})
child = subprocess.Popen(["sleep", "60"])
(here / f"{name}.part").write_text(f"{{os.getpid()}} {{child.pid}}")
(here / f"{name}.part").rename(here / "{name}")
while not (here / "go").exists():
    time.sleep(0.05)
child.kill()
child.wait()
"""


def write_notebook(name, source, folder):
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    folder.mkdir(parents=True, exist_ok=True)
    cells = [new_markdown_cell(f"# {name}"), new_code_cell("print('began')"), new_code_cell(source)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


RUN = """
import sys
from pathlib import Path
from cam_helpers import tutorial
tutorial.ROOT = Path(sys.argv[1])
tutorial.main(["--jobs", "2", "--out", sys.argv[2]])
"""


def until(there, process=None, seconds=60):
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not happen"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def alive(pids):
    """Which processes are there, and not only waiting to be forgotten."""
    import psutil

    return [
        pid
        for pid in pids
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def project(tmp_path):
    """Notebooks, two of which wait until they may go on; where they say so; what a run left."""
    here, out = tmp_path / "here", tmp_path / "build"
    here.mkdir()
    for name in ("01_waits", "02_waits"):
        source = WAIT.format(folder=str(here), name=name)
        write_notebook(name, source, tmp_path / "project" / "notebooks")
    for name in ("01_waits.ipynb", "01_waits.html", "figures/01_waits-1.png", "index.html"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("of an earlier run")
    return tmp_path / "project", out, here


def kernels_of(here):
    """The processes of both notebooks, once they wait: each kernel and its child."""
    files = [here / "01_waits", here / "02_waits"]
    until(lambda: all(file.exists() for file in files))
    pids = [tuple(map(int, file.read_text().split())) for file in files]
    for file in files:
        file.unlink()
    return pids


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_is_stopped_leaves_no_kernel_and_no_half_file(project, start):
    root, out, here = project
    old = contents(out)
    for number, name, status in (
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGINT, "Ctrl-C", 130),
        (signal.SIGKILL, "", -signal.SIGKILL),
    ):
        process = start(RUN, root, out)
        pids = [pid for pair in kernels_of(here) for pid in pair]
        assert alive(pids) == pids
        if number == signal.SIGTERM:  # meanwhile, a second run
            second = start(RUN, root, out)
            _, said = second.communicate(timeout=20)
            assert second.returncode == 1
            assert said == (
                f"Error: expected to be the only run that writes into '{out}', received a folder "
                "that another one holds: wait for it, or name another folder.\n"
            )
            assert alive(pids) == pids
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        _, said = process.communicate(timeout=20)
        assert process.returncode == status
        assert contents(out) == old or number == signal.SIGKILL
        if number == signal.SIGKILL:
            until(lambda pids=pids: not alive(pids[::2]), seconds=10)  # they look for their parent
            for pid in alive(pids[1::2]):
                os.kill(pid, signal.SIGKILL)
            assert any(".part/" in name for name in files_in(out))
            assert {name: old[name] for name in old} == {
                name: content for name, content in contents(out).items() if ".part/" not in name
            }
        else:
            assert said.splitlines()[-1] == (
                f"Stopped by {name} after 0 of 2 notebooks, which are whole: run all again."
            )
            assert "Traceback" not in said
            assert not alive(pids)
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)

    process = start(RUN, root, out)  # it clears up after the killed one
    kernel, child = kernels_of(here)[0]
    os.kill(kernel, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    (here / "go").touch()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "01_waits failed: DeadKernelError" in said
    assert "02_waits failed" not in said
    assert "began" in (out / "01_waits.ipynb").read_text()  # what ran
    assert not any(".part" in name for name in files_in(out))

    process = start(RUN, root, out)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert files_in(out) >= {"01_waits.html", "02_waits.html", "index.html"}
    assert not any(".part" in name for name in files_in(out))
    assert "earlier" not in (out / "index.html").read_text()


# Dumps.

DUMP = """
import sys
from cam_helpers.activations import save_activations
import test_faults as here
images, model, folder = here.garments(500)[0], here.network(1), sys.argv[1]
try:
    save_activations(model, images, ["conv"], folder, batch_size=1)
except KeyboardInterrupt:
    print("the caller knows", flush=True)
save_activations(model, images, ["conv"], folder, batch_size=1, progress=True)
"""


def test_a_dump_that_is_stopped_goes_on_with_equal_files(start, tmp_path):
    from cam_helpers.activations import save_activations

    folder, images, model = tmp_path / "stopped", garments(500)[0], network(1)
    process, reached = start(DUMP, folder), []
    for number, count in ((signal.SIGINT, 20), (signal.SIGTERM, 60)):
        until(lambda count=count: len(list(folder.glob(".*/*[0-9]"))) > count, process)
        process.send_signal(number)
        if number == signal.SIGINT:
            assert process.stdout.readline() == "the caller knows\n"
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "Traceback" not in said
    for name in ("Ctrl-C", "SIGTERM"):
        (batch,) = re.findall(
            rf"Stopped by {name} in batch (\d+) of 500: the same call goes on there\.\n", said
        )
        reached.append(int(batch))
    assert 20 < reached[0] < reached[1] < 500
    assert not list(folder.rglob("*.part"))
    assert not list(folder.glob("*.npz"))
    assert len(list(folder.glob(".*/*"))) in (reached[1] - 1, reached[1])
    file = save_activations(model, images, ["conv"], folder, batch_size=1)["conv"]
    expected = save_activations(model, images, ["conv"], tmp_path / "alone", batch_size=1)["conv"]
    assert file.read_bytes() == expected.read_bytes()
    assert list(folder.iterdir()) == [file]


# Caches and networks.

SILENT = """
import hashlib, pathlib, sys, time
from cam_helpers import backbones, data, fetch, garments
home, other, answers_never, accepts_never = sys.argv[1:]
fetch.SECONDS_TO_ANSWER, fetch._temporary = 2, lambda: pathlib.Path(other)
data.FASHION_MNIST_URL, backbones.WEIGHTS_URL = answers_never, accepts_never
dataset = garments.dataset
garments.dataset = lambda count, seed: dataset(min(count, 20), seed)
started = time.perf_counter()
print(data.fashion_mnist().source)
backbone = backbones.load_backbone("MobileNet", fallback="MobileNet-1.0")
print(backbone.name, backbone.weights)
print(time.perf_counter() - started)
good = pathlib.Path(home, "models", "good.bin")
known = "md5:" + hashlib.md5(good.read_bytes()).hexdigest()
print(fetch.whole_file("models", "good.bin", accepts_never, known))
"""


def drop_root_s_right_to_write_anywhere():
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


@pytest.mark.skipif(sys.platform != "linux", reason="drops a Linux capability")
def test_silent_networks_and_a_cache_that_cannot_be_written_to(tmp_path):
    home = tmp_path / "keras"
    (home / "models").mkdir(parents=True)
    (home / "models" / "good.bin").write_bytes(b"whole")
    for folder in (home / "models", home):
        folder.chmod(0o555)

    nobody = socket.create_server(("127.0.0.1", 0), backlog=0)  # accepts nobody, once it is full
    waiting = [socket.socket() for _ in range(4)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(nobody.getsockname())
    with nobody, socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        answers_never, accepts_never = (
            f"http://127.0.0.1:{server.getsockname()[1]}/" for server in (silent, nobody)
        )
        done = subprocess.run(
            [sys.executable, "-c", SILENT, home, tmp_path / "other", answers_never, accepts_never],
            cwd=ROOT,
            env={**QUIET, "KERAS_HOME": str(home), "no_proxy": "127.0.0.1"},
            preexec_fn=drop_root_s_right_to_write_anywhere,
            capture_output=True,
            text=True,
            timeout=60,
        )
    for each in waiting:
        each.close()
    assert done.stderr == ""
    garments_line, source, weights_line, weights, seconds, good = done.stdout.splitlines()
    assert garments_line.startswith("train-images-idx3-ubyte.gz is missing in ")
    assert "ReadTimeout" in garments_line
    assert garments_line.endswith("Drawn garments stand in for Fashion-MNIST.")
    assert source == "drawn garments"
    host = accepts_never.split("/")[2]
    assert weights_line == (
        f"MobileNet's ImageNet weights could not be had (no file from {host}: ConnectionError): "
        "random weights stand in, so the maps mean nothing."
    )
    assert weights == "MobileNet random, seed 0"
    assert 2 < float(seconds) < 20
    assert good == str(home / "models" / "good.bin")


if __name__ == "__main__":
    in_a_full_folder(Path(sys.argv[1]))
