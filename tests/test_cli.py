"""The command line: what it draws and prints, what it refuses, and what it leaves behind."""

import json
import os
from pathlib import Path
import resource
import shutil
import signal
import subprocess
import sys
import time

from cam_helpers import backbones, cli, methods, photos
from cam_helpers.backend import keras
from click.testing import CliRunner
from PIL import Image
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small network in a file, which scales pixels for itself."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255, name="scaled")(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="maps")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    path = tmp_path_factory.mktemp("model") / "mine.keras"
    keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x), name="mine").save(path)
    return path


@pytest.fixture
def album(tmp_path):
    """Three photos, one of them none."""
    folder = tmp_path / "album"
    folder.mkdir()
    Image.fromarray(photos.sample_photo("cat")).save(folder / "cat.jpg")
    Image.fromarray(photos.sample_photo("espresso")).save(folder / "cup.PNG")
    (folder / "dog.jpg").write_text("no photo")
    (folder / "notes.txt").write_text("no photo, and none that was asked for")
    return folder


@pytest.fixture
def explain(model, tmp_path):
    def run(*arguments, out=tmp_path / "out", of=model):
        options = ["--model", str(of), "--out", str(out)]
        return CliRunner().invoke(cli.main, ["explain", *map(str, arguments), *options])

    return run


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "cam_helpers", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def is_whole(path):
    with Image.open(path) as figure:
        figure.load()
    return min(figure.size) > 300


def test_help_comes_without_tensorflow_and_names_every_method():
    code = "import sys; from cam_helpers.cli import main; main(['explain', '-h'], 'c', None, False)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('tensorflow' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("\nFalse\n")
    listed = done.stdout.split("Methods:")[1].split("Examples:")[0].split()
    assert set(listed) - {"(slow)"} == set(methods.BY_FUNCTION)


def test_a_bad_photo_stops_nothing_else(explain, album, tmp_path):
    done = explain(album)
    assert done.exit_code == 1
    figures = [tmp_path / "out" / f"{name}_maps.png" for name in ("cat", "cup")]
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == list(map(str, figures))
    assert all(map(is_whole, figures))
    assert sorted((tmp_path / "out").iterdir()) == figures
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"{album / 'dog.jpg'}: expected a ")


def test_numbers_are_one_json_object_for_each_photo(explain, album, tmp_path):
    done = explain(album, "--json", "--method", "grad_cam,saliency", "--class", "2")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["photo"]).name for row in rows] == ["cat.jpg", "cup.PNG", "dog.jpg"]
    assert list(rows[0]["maps"]) == ["Grad-CAM", "saliency"]
    assert {row["class"]["index"] for row in rows[:2]} == {2}
    assert rows[0]["figure"] == str(tmp_path / "out" / "cat_maps.png")
    assert set(rows[2]) == {"photo", "error"}


def test_patterns_samples_and_equal_names(explain, album, tmp_path):
    shutil.copy(album / "cat.jpg", album / "cat.jpeg")
    done = explain(album / "c*.j*", album / "cat.jpg", "cat", "cat")
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["cat_maps.png", "cat_maps_2.png", "cat_maps_3.png"]


def test_a_photo_from_an_address(explain, album, server, tmp_path):
    shutil.copy(album / "cat.jpg", server.folder)
    done = explain(f"{server.url}cat.jpg?size=large/2.png", f"{server.url}none.jpg")
    assert done.exit_code == 1
    assert is_whole(tmp_path / "out" / "cat_maps.png")
    assert done.stderr.startswith(f"{server.url}none.jpg: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("suffix", sorted(set(cli.FIGURES) - {".pdf", ".svg"}))
def test_out_may_be_a_file(explain, tmp_path, suffix):
    done = explain("cat", out=tmp_path / f"figure{suffix}")
    assert done.exit_code == 0, done.output
    assert is_whole(tmp_path / f"figure{suffix}")


def test_out_may_be_a_drawing(explain, tmp_path):
    assert explain("cat", out=tmp_path / "a.pdf").exit_code == 0
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert explain("cat", out=tmp_path / "a.svg").exit_code == 0
    assert (tmp_path / "a.svg").read_text().rstrip().endswith("</svg>")


def test_labels_of_the_readers_own(explain, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("coat\nshirt\nlong dress\n")
    done = explain("cat", "--labels", labels, "--class", "LONG dress", "--json")
    assert json.loads(done.stdout)["class"]["label"] == "long dress"


USAGE = {
    "no photo": ([], "Missing argument 'PHOTO...'"),
    "no such class": (["cat", "--class", "clas 1"], "received 'clas 1': did you mean 'class 1'"),
    "no such index": (["cat", "--class", "3"], "expected a class from 0 to 2, received 3"),
    "no such layer": (
        ["cat", "--layer", "map"],
        "layer 'map' is not in 'mine'. Try one of:",
    ),
    "no such method": (["cat", "--method", "salency"], "did you mean saliency?"),
    "no such labels": (["cat", "--labels", "none.txt"], "'none.txt' (No such file or directory)"),
    "empty pattern": (["none*.jpg"], "received 'none*.jpg', where there are none."),
    "empty folder": ([ROOT / "cam_helpers"], "where there are none."),
    "no such scale": (["cat", "--scale", "1"], "Invalid value for '--scale'"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_has_status_2_and_one_sentence(explain, case):
    arguments, message = USAGE[case]
    done = explain(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 4  # usage, where help is, nothing, the sentence


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("vgg", "received 'vgg': did you mean VGG16?"),
        ("mobilenet", "received 'mobilenet': did you mean MobileNet?"),
        ("xyz", "or one of VGG16, ResNet50, MobileNet, "),
        ("none.keras", "none.keras"),
    ],
)
def test_no_such_model(explain, of, message):
    done = explain("cat", of=of)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 4


def test_a_scale_is_for_ones_own_model(explain, model, tmp_path):
    done = explain("cat", "--scale", "0..1", of="MobileNet")
    assert done.exit_code == 2
    assert "expected --scale and --labels with a file of your own" in done.stderr


def test_a_figure_never_replaces_a_photo(explain, album):
    before = (album / "cat.jpg").read_bytes()
    shutil.copy(album / "cat.jpg", album / "x_maps.png")
    done = explain(album / "x_maps.png", album / "x", out=album)
    assert done.exit_code == 2
    assert "would replace" in done.stderr
    assert explain(album / "cat.jpg", out=album / "cat.jpg").exit_code == 2
    assert (album / "cat.jpg").read_bytes() == (album / "x_maps.png").read_bytes() == before


@pytest.mark.parametrize("out", ["maps.txt", "maps.gif"])
def test_out_must_be_a_folder_or_a_kind_of_picture(explain, out):
    done = explain("cat", out=out)
    assert done.exit_code == 2
    assert "expected --out as a folder, or for one photo a file (.png, " in done.stderr


def test_out_may_have_a_dot(explain, tmp_path):
    assert explain("cat", out=f"{tmp_path}/v1.2").exit_code == 0
    assert explain("cat", out=f"{tmp_path}/maps.png/").exit_code == 0
    for folder in ("v1.2", "maps.png"):
        assert is_whole(tmp_path / folder / "cat_maps.png")


def test_figures_among_the_photos_are_not_explained_again(explain, album):
    for _ in range(2):
        explain(album, out=album)
    assert sorted(path.name for path in album.glob("*_maps*")) == ["cat_maps.png", "cup_maps.png"]


@pytest.mark.parametrize(
    "name", ["$_$.jpg", "a\\b$x\\q$.jpg", "gr\udcfcn.jpg", "猫[1] {x}.jpg", "x" * 240 + ".jpg"]
)
def test_a_photo_may_be_called_anything(explain, album, tmp_path, name):
    (album / "cat.jpg").rename(album / name)
    done = explain(album / name, "cat", "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_an_address_that_is_none_stops_nothing_else(explain):
    done = explain("http://[::1", "cat")
    assert done.exit_code == 1
    assert done.stderr.startswith("http://[::1: expected the address of a photo")
    assert "cat_maps.png" in done.stdout


def test_the_class_that_is_drawn_is_printed(explain):
    assert "class 2 0." in explain("cat", "--class", "2").stdout


def test_what_is_drawn_at_the_pixels_names_no_layer(explain):
    said = json.loads(explain("cat", "--json", "--method", "saliency").stdout)
    assert (said["layer"], said["placement"]) == (None, None)


def test_a_saved_model_is_explained_at_its_pixels(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Flatten()(keras.layers.Conv2D(3, 3, activation="relu")(inputs))
    keras.Model(inputs, keras.layers.Dense(2)(x)).export(tmp_path / "exported", verbose=False)
    options = ["--model", str(tmp_path / "exported"), "--out", str(tmp_path / "out"), "--json"]

    def run(*more):
        return CliRunner().invoke(cli.main, ["explain", "cat", *options, *more])

    assert "--no-safe-mode" in run().stderr
    done = run("--no-safe-mode", "--scale", "0..1", "--method", "all")
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["maps"]) == [
        "saliency",
        "SmoothGrad",
        "integrated gradients",
    ]
    for method in ("grad_cam", "guided_backprop"):
        done = run("--no-safe-mode", "--scale", "0..1", "--method", method)
        assert done.exit_code == 2
    done = CliRunner().invoke(cli.main, ["layers", options[1], "--no-safe-mode"])
    assert done.exit_code == 2
    assert "keeps the computation but no layers" in done.stderr


def test_out_must_be_a_folder_for_several_photos(explain):
    done = explain("cat", "camera", out="maps.png")
    assert done.exit_code == 2
    assert "received 'maps.png' for 2 of them." in done.stderr


def test_layers_of_a_file(model):
    done = CliRunner().invoke(cli.main, ["layers", str(model)])
    assert done.exit_code == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["layer", "output", "cells", "apart", "each", "sees"],
        ["scaled", "32", "×", "32", "×", "3", "1", "×", "1", "1", "×", "1"],
        ["*", "maps", "30", "×", "30", "×", "4", "1", "×", "1", "3", "×", "3"],
    ]


def test_what_is_said_of_a_stand_in_stays_out_of_the_numbers(explain, monkeypatch):
    random_one = backbones.load_backbone("MobileNet", weights=None)

    def stand_in(name):
        print(f"{name}'s ImageNet weights could not be had (no line): random weights stand in.")
        return random_one

    monkeypatch.setattr(backbones, "load_backbone", stand_in)
    done = explain("cat", "--json", of="VGG16")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["network"].endswith("random, seed 0: means nothing")
    assert "random weights stand in" in done.stderr


@pytest.mark.parametrize(("photo", "label"), [("cat", "Egyptian_cat"), ("espresso", "espresso")])
def test_mobilenet_sees_what_the_samples_show(mobilenet, explain, photo, label):
    done = explain(photo, "--json", of="MobileNet")
    said = json.loads(done.stdout)
    assert said["top"][0]["label"] == label
    assert (said["network"], said["layer"]) == ("MobileNet", "conv_pw_13_relu")


def test_run_is_the_tutorial():
    done = CliRunner().invoke(cli.main, ["run", "--only", "99"])
    assert done.exit_code == 2
    assert "expected notebooks like '99…'" in done.stderr
    assert "--full" in CliRunner().invoke(cli.main, ["run", "--help"]).stdout


def test_run_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    monkeypatch.delitem(sys.modules, "cam_helpers.tutorial", raising=False)
    monkeypatch.delattr("cam_helpers.tutorial", raising=False)
    done = CliRunner().invoke(cli.main, ["run"])
    assert done.exit_code == 2
    assert "received no papermill: pip install 'cam-helpers[run]'." in done.stderr


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_leaves_whole_figures_and_one_line(model, tmp_path, stop, status):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(300):
        Image.fromarray(photos.sample_photo("cat")).save(folder / f"{number:03}.jpg")
    running = command(
        "explain",
        folder,
        *("--model", model, "--out", tmp_path / "out"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
    )
    while len(list((tmp_path / "out").glob("*.png"))) < 2:
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    running.send_signal(stop)
    _, said = running.communicate(timeout=60)
    assert running.returncode == status
    figures = list((tmp_path / "out").iterdir())
    assert 2 <= len(figures) < 300
    assert all(map(is_whole, figures))
    (line,) = said.splitlines()
    assert "of 300 photos: their figures are whole." in line


def test_a_full_disk_is_said_and_the_old_figure_stays(model, tmp_path):
    out = tmp_path / "figure.png"
    assert command("explain", "cat", "--model", model, "--out", out).wait() == 0
    before = out.read_bytes()

    def no_file_above_10_kb():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    running = command(
        "explain", "cat", "--model", model, "--out", out, preexec_fn=no_file_above_10_kb
    )
    _, said = running.communicate()
    assert running.returncode == 1
    (line,) = said.splitlines()
    assert line.startswith(f"cat: could not write '{os.path.realpath(out)}': larger than files may")
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
