"""The runner, on notebooks made for the purpose."""

from cam_helpers import tutorial
from click.testing import CliRunner
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
import pytest

DRAW = """\
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()"""
AS_JPEG = """from matplotlib_inline.backend_inline import set_matplotlib_formats
set_matplotlib_formats("jpeg")
"""


def write(folder, name, *sources):
    parameters = new_code_cell("train = None\nsize = 1", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(f"# Title of {name}"), parameters]
    cells += [new_markdown_cell("## A picture & more")] + [new_code_cell(s) for s in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


LOGS_AT_ITS_END = """import atexit, logging, sys
to_the_notebook = logging.StreamHandler()

def log_late():
    to_the_notebook.stream.close()
    sys.stderr = sys.__stderr__
    to_the_notebook.handle(logging.makeLogRecord({}))

atexit.register(log_late)"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    notebooks = root / "notebooks"
    notebooks.mkdir()
    write(notebooks, "01_fine", DRAW, "print(train)", AS_JPEG + DRAW)
    write(notebooks, "02_broken", DRAW, "1 / 0", "print('never')")
    write(notebooks, "03_dies", "import os; os._exit(1)")
    (notebooks / "05_no_notebook.ipynb").write_text("half a noteb")
    write(notebooks, "04_fine", "print(size, __import__('pathlib').Path.cwd())")
    return root


@pytest.fixture
def invoke(project, tmp_path, monkeypatch):
    monkeypatch.setattr(tutorial, "ROOT", project)
    return lambda *options: CliRunner().invoke(tutorial.main, [*options, "--out", str(tmp_path)])


def outputs(path):
    return "".join(
        output.get("text", "")
        for cell in nbformat.read(path, 4).cells
        for output in cell.get("outputs", [])
    )


def test_a_failing_notebook_stops_nothing_else(invoke, project, tmp_path):
    before = {path: path.read_bytes() for path in project.rglob("*.ipynb")}
    done = invoke("--jobs", "2")
    assert done.exit_code == 1
    assert "02_broken failed: In [3]: ZeroDivisionError: division by zero" in done.stderr
    assert "03_dies failed: DeadKernelError" in done.stderr
    assert "05_no_notebook failed: NotJSONError" in done.stderr
    assert "01_fine failed" not in done.output + done.stderr
    assert f"1 {project}/notebooks" in outputs(tmp_path / "04_fine.ipynb")
    assert "never" not in outputs(tmp_path / "02_broken.ipynb")
    assert {path: path.read_bytes() for path in before} == before
    page = (tmp_path / "index.html").read_text()
    for name in ("01_fine", "02_broken", "03_dies", "04_fine"):
        assert f"Title of {name}" in page
        assert f'href="{name}.html"' in page
        assert (tmp_path / f"{name}.html").exists()
    assert 'src="figures/02_broken-1.png" alt="A picture &amp; more"' in page
    assert (tmp_path / "figures" / "01_fine-1.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures" / "01_fine-2.jpeg").read_bytes().startswith(b"\xff\xd8")
    assert "ZeroDivisionError" in page


def test_only_and_full(invoke, tmp_path):
    done = invoke("--only", "01", "--full")
    assert done.exit_code == 0, done.output
    assert outputs(tmp_path / "01_fine.ipynb") == "True\n"
    assert sorted(path.name for path in tmp_path.glob("*.ipynb")) == ["01_fine.ipynb"]


def test_only_says_what_there_is(invoke):
    done = invoke("--only", "7")
    assert done.exit_code == 2
    assert "expected notebooks like '7…'" in done.stderr
    assert "found 01_fine, 02_broken, 03_dies, 04_fine, 05_no_notebook" in done.stderr


def test_what_a_kernel_says_at_its_end_reaches_no_reader(tmp_path, capfd):
    write(tmp_path, "01_late", LOGS_AT_ITS_END)
    assert tutorial.run_notebook(tmp_path / "01_late.ipynb", tmp_path / "out", {}).error == ""
    assert capfd.readouterr() == ("", "")
