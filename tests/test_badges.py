"""The repository's address in notebooks, and the set-up cell in all its situations."""

import os
from pathlib import Path
import shutil
import subprocess
import sys

from cam_helpers import badges
from click.testing import CliRunner
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
needs_timeout = pytest.mark.skipif(
    not shutil.which("timeout"), reason="Colab's system has GNU timeout, this one has not"
)
STAND_IN = ROOT / "tests" / "colab"


def git(*command, cwd):
    identity = ["-c", "user.name=test", "-c", "user.email=test@test.invalid"]
    identity += ["-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *command], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository made from the working tree, with a branch called main."""
    folder = tmp_path_factory.mktemp("origin")
    shutil.copytree(ROOT / "cam_helpers", folder / "cam_helpers")
    git("init", "--quiet", "--initial-branch=main", cwd=folder)
    git("add", "--all", cwd=folder)
    git("commit", "--quiet", "--message=all", cwd=folder)
    return folder.as_uri()


def run_cell(cwd, *, colab, url="https://github.com/OWNER/REPOSITORY", times=1, flags=(), **env):
    """Run the set-up cell in a fresh Python; then say where cam_helpers would come from."""
    cell = badges.setup_cell("https://github.com/OWNER/REPOSITORY", "main")
    where = "import importlib.util as u; print(u.find_spec('cam_helpers').origin)"
    path = {"PYTHONPATH": str(STAND_IN)} if colab else {}
    done = subprocess.run(
        [sys.executable, *flags, "-c", "\n".join([cell] * times + [where])],
        cwd=cwd,
        env={**os.environ, "CAM_HELPERS_URL": url, **path, **env},
        capture_output=True,
        text=True,
    )
    return done.stdout.strip(), done.stderr.strip().splitlines()[-1:]


def test_beside_the_package_it_is_found_and_nothing_is_printed():
    assert run_cell(ROOT / "notebooks", colab=False) == (f"{ROOT}/cam_helpers/__init__.py", [])
    assert run_cell(ROOT, colab=True) == (f"{ROOT}/cam_helpers/__init__.py", [])


def test_elsewhere_without_colab_one_sentence(tmp_path):
    _, error = run_cell(tmp_path, colab=False, url="https://example.org/cam")
    assert error == [
        "RuntimeError: cam_helpers has no address yet: start Jupyter inside a clone of it."
    ]
    assert list(tmp_path.iterdir()) == []


@needs_timeout
def test_on_colab_it_is_cloned_once(tmp_path, repository):
    found = f"{tmp_path}/cam-helpers/cam_helpers/__init__.py"
    assert run_cell(tmp_path, colab=True, url=repository, times=2) == (found, [])
    marker = tmp_path / "cam-helpers" / "marker"
    marker.touch()
    assert run_cell(tmp_path, colab=True, url=repository) == (found, [])  # a restarted kernel
    assert marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cam-helpers"]


@needs_timeout
def test_a_clone_that_was_cut_off_is_made_again(tmp_path, repository):
    (tmp_path / ".part" / "cam_helpers").mkdir(parents=True)
    found, _ = run_cell(tmp_path, colab=True, url=repository)
    assert found == f"{tmp_path}/cam-helpers/cam_helpers/__init__.py"


@needs_timeout
def test_a_branch_that_does_not_exist_is_named(tmp_path, repository):
    _, error = run_cell(tmp_path, colab=True, url=repository, CAM_HELPERS_REF="nowhere")
    assert "Remote branch nowhere not found" in error[0]
    assert not (tmp_path / "cam-helpers").exists()


@needs_timeout
def test_without_network_git_s_reason_is_given(tmp_path):
    _, error = run_cell(tmp_path, colab=True, url="http://127.0.0.1:9/cam.git")
    assert "unable to access 'http://127.0.0.1:9/cam.git/'" in error[0]


def test_a_placeholder_is_never_given_to_git(tmp_path):
    _, error = run_cell(tmp_path, colab=True, PATH="")
    assert error == [
        "RuntimeError: cam_helpers has no address yet: start Jupyter inside a clone of it."
    ]


@needs_timeout
@pytest.mark.parametrize(
    ("stores", "asked"), [(False, "tf-keras-vis==0.8.7"), (True, "zarr>=3.1.3")]
)
def test_what_colab_lacks_is_installed(stores, asked, tmp_path):
    shutil.copytree(STAND_IN, tmp_path / "path")
    pip = tmp_path / "path" / "pip"
    pip.mkdir()
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text("import sys; open('asked', 'w').write(' '.join(sys.argv[1:]))")
    (tmp_path / "cam_helpers").mkdir()
    (tmp_path / "cam_helpers" / "__init__.py").touch()
    cell = badges.setup_cell("https://example.org/cam", "main", stores)
    subprocess.run(  # -S: a Python without site-packages, hence without tf-keras-vis
        [sys.executable, "-S", "-c", f"import google.colab\n{cell}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "path")},
        check=True,
    )
    assert (tmp_path / "asked").read_text() == f"install -q {asked}"


def test_a_notebook_with_stores_of_maps_gets_zarr():
    setup = nbformat.v4.new_code_cell("", metadata={"tags": ["setup"]})
    uses = nbformat.v4.new_code_cell("from cam_helpers.dataset import explain_dataset")
    for cells, wanted in (([setup], "tf-keras-vis"), ([setup, uses], "zarr")):
        notebook = nbformat.v4.new_notebook(cells=cells)
        cell = badges.with_address(notebook, "https://example.org/cam", "main").cells[0]
        assert f"pip install -q {wanted}" in cell.source.replace("'zarr", "zarr")
        assert len(cell.source.splitlines()) <= 25


def test_an_address_is_written_into_badges_and_cell():
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(f"[![x]({badges.BADGE_IMAGE})](https://x/01_a.ipynb)"),
            nbformat.v4.new_code_cell("", metadata={"tags": ["setup"]}),
            nbformat.v4.new_code_cell("untouched"),
        ]
    )
    badge, cell, other = badges.with_address(notebook, "https://github.com/me/cam", "v1").cells
    place = "https://colab.research.google.com/github/me/cam/blob/v1/notebooks/01_a.ipynb"
    assert badge.source == f"[![Open in Colab]({badges.BADGE_IMAGE})]({place})"
    assert '"CAM_HELPERS_URL", "https://github.com/me/cam"' in cell.source
    assert '"CAM_HELPERS_REF", "v1"' in cell.source
    assert "cam_helpers is not here" in cell.source
    assert other.source == "untouched"
    assert notebook.cells[1].source == ""


def test_check_names_stale_files_and_writes_nothing(tmp_path, monkeypatch):
    for name in ("pyproject.toml", "README.md", "notebooks"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / name)
    monkeypatch.setattr(badges, "ROOT", tmp_path)
    assert CliRunner().invoke(badges.main, ["--check"]).exit_code == 0
    project, (old, _) = tmp_path / "pyproject.toml", badges.address(tmp_path)
    project.write_text(project.read_text().replace(old, "https://github.com/me/cam"))
    readme = (tmp_path / "README.md").read_text()
    done = CliRunner().invoke(badges.main, ["--check"])
    assert done.exit_code == 1
    assert "README.md: stale, run make badges" in done.output
    assert (tmp_path / "README.md").read_text() == readme
    assert CliRunner().invoke(badges.main).exit_code == 0
    assert CliRunner().invoke(badges.main, ["--check"]).exit_code == 0
    assert old.removeprefix("https://github.com/") not in (tmp_path / "README.md").read_text()


def test_no_other_file_knows_the_address():
    url, _ = badges.address(ROOT)
    owner = url.removeprefix("https://github.com/")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    knowing = {
        name
        for name in tracked.split()
        if (ROOT / name).is_file() and owner.encode() in (ROOT / name).read_bytes()
    }
    allowed = {"pyproject.toml", "README.md", "tests/test_badges.py"}
    assert "pyproject.toml" in knowing
    assert {name for name in knowing if not name.startswith("notebooks/")} <= allowed


@pytest.mark.parametrize("url", ["git@github.com:me/cam", "https://github.com/me"])
def test_an_address_that_colab_cannot_open_is_refused(tmp_path, url):
    (tmp_path / "pyproject.toml").write_text(
        f'[project.urls]\nRepository = "{url}"\n[tool.cam-helpers]\nref = "main"\n'
    )
    with pytest.raises(ValueError, match=r"expected https://github\.com/owner/name"):
        badges.stale_files(tmp_path)
