"""The notebooks: their anatomy, a run with small parameters, and their stored outputs."""

import os
from pathlib import Path
import re
import subprocess
import sys

from cam_helpers import data
import nbformat
import papermill
import pytest

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {
    "01_train_a_fashion_cnn": {
        "train": True,
        "epochs": 2,
        "batch_size": 30,
        "train_images": 150,
        "test_images": 100,
    },
    "02_map_a_class_with_tf_keras_vis": {"count": 20},
    "03_build_cams_by_hand": {"network": "MobileNet", "max_maps": 8},
    "04_explain_resnet50": {"network": "MobileNet", "count": 40},
    "05_follow_the_gradient": {"network": "MobileNet", "samples": 4, "steps": 10, "count": 4},
    "06_look_inside_the_layers": {"network": "MobileNet", "crops": 2, "count": 40},
    "07_draw_what_a_filter_wants": {"network": "MobileNet", "steps": 4, "maps": 2, "count": 40},
    "08_run_the_network_backwards": {"network": "MobileNet", "count": 40},
    "09_doubt_the_map": {"count": 5, "marked_images": 8, "rounds": 4},
    "10_explain_your_own_model": {"images": 4, "tests": 4, "scenes": 2, "count": 20},
    "11_why_is_my_heatmap_wrong": {"samples": ["cat", "espresso"]},
    "12_explain_a_whole_dataset": {"count": 400, "batch_size": 40, "share": 0.5},
    "13_explore_with_the_mouse": {"samples": ["cat", "espresso"]},
}
WITHOUT_GARMENTS = {"13_explore_with_the_mouse"}
KINDS = {"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg"}
SCRIPT = re.compile(r"<\s*(script|iframe|object|embed|svg)|javascript:|\bon\w+\s*=\s*[\"']", re.I)
PATH = re.compile(r"(?<![\w:/.])/(home|root|Users|tmp|work|content|var|opt|usr|mnt)/|\b[A-Z]:\\")
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
# The first ones are short: to end with them keeps both processes at work.
backwards = pytest.mark.parametrize("path", PATHS[::-1], ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tagged(path, tag):
    return [cell for cell in code_cells(path) if tag in cell.metadata.get("tags", [])]


def text_outputs(path):
    return [
        output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for cell in code_cells(path)
        for output in cell.outputs
    ]


def test_every_notebook_has_small_parameters():
    assert set(SMALL) == {path.stem for path in PATHS}


def test_the_table_of_classes_is_that_of_the_helper():
    prose = "\n".join(cell.source for cell in read(PATHS[0]).cells)
    for label, (name, name_zh) in enumerate(zip(data.CLASSES, data.CLASSES_ZH, strict=True)):
        assert f"| {label} | {name} | {name_zh} |" in prose


@each_notebook
def test_anatomy(path):
    notebook, code = read(path), code_cells(path)
    first = notebook.cells[0].source
    assert first.startswith("# ")
    for part in (
        "colab-badge.svg",
        "**What you'll do.**",
        "**What you'll learn**",
        "**What you'll",
    ):
        assert part in first
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = [line for line in prose.splitlines() if line.startswith("## ")]
    assert headings[0] == "## Setup"
    assert headings[-4:] == [
        "## What can mislead you",
        "## Recap",
        "## Exercises",
        "## References",
    ]
    assert code[0].metadata["tags"] == ["setup"]
    assert code[0].outputs == []
    assert len(tagged(path, "parameters")) == 1
    assert tagged(path, "nbval-check-output")
    assert len(code) <= 25
    assert max(len(cell.source.splitlines()) for cell in code) <= 25
    assert path.stat().st_size <= 500_000


@each_notebook
def test_outputs_are_committed_whole_and_from_real_data(path):
    code = code_cells(path)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
    for cell in tagged(path, "nbval-check-output"):
        assert cell.outputs
    text = "\n".join(text_outputs(path))
    assert ("source: Fashion-MNIST" in text) == (path.stem not in WITHOUT_GARMENTS)
    assert "drawn garments" not in text
    assert "random weights" not in text
    assert str(ROOT) not in text
    assert "papermill" not in read(path).metadata


@each_notebook
def test_stored_outputs_hold_no_script_and_no_path_of_a_machine(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert set(output.get("data", {})) <= KINDS
            for text in [output.get("text", ""), *output.get("data", {}).values()]:
                assert not SCRIPT.search(text)
                assert not PATH.search(text)


@pytest.mark.parametrize(
    "text", ["<script>x", "< SCRIPT src=x>", "<img onerror='x()'>", "[a](javascript:x)", "<svg>"]
)
def test_a_script_would_be_found(text):
    assert SCRIPT.search(text)


@pytest.mark.parametrize(
    "text", ["/home/me/x.png", "'/tmp/x'", "(/root/.keras)", "in /Users/me", r"C:\Users", "/work/a"]
)
def test_a_path_would_be_found(text):
    assert PATH.search(text)
    assert not PATH.search("https://keras.io/home/x, a/tmp/b, and/or, 3/usr")


@backwards
def test_smoke_with_small_parameters(path, tmp_path, monkeypatch):
    small = SMALL[path.stem]
    unknown = set(small) - set(papermill.inspect_notebook(path))
    assert not unknown, "papermill would only warn"
    monkeypatch.setenv("CAM_HELPERS_OUTPUT", str(tmp_path))
    done = papermill.execute_notebook(
        path,
        tmp_path / path.name,
        small,
        kernel_name="python3",
        cwd=path.parent,
        progress_bar=False,
        execution_timeout=300,
    )
    assert [cell for cell in done.cells if cell.get("execution_count") is None] == [
        cell for cell in done.cells if cell.cell_type == "markdown"
    ]
    if small.get("train"):
        assert (tmp_path / "fashion_cnn" / "fashion_cnn.weights.h5").exists()
        assert "2 epochs of 150 images" in "\n".join(text_outputs(tmp_path / path.name))


@backwards
def test_stored_outputs_repeat(path, fashion_mnist, mobilenet, tmp_path):
    """nbval, on the processor: the stored numbers are those of the committed weights.

    Where MobileNet stood in for another network, it is asked for by name: elsewhere the other
    network's weights may be had, and have other numbers.
    """
    notebook = read(path)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    if "MobileNet stands in" in "\n".join(text_outputs(path)):
        parameters.source, replaced = re.subn(
            r'^network = "\w+"', 'network = "MobileNet"', parameters.source, flags=re.MULTILINE
        )
        assert replaced == 1
    copy = ROOT / "build" / "check" / path.name  # inside, so that its set-up cell finds the package
    copy.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, copy)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval-lax",
            "--nbval-current-env",
            "--nbval-cell-timeout=300",
            "-p",
            "no:cacheprovider",
            str(copy),
        ],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "CAM_HELPERS_OUTPUT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(code_cells(path))} passed" in done.stdout
