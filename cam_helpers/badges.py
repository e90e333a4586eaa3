"""Writes the repository's address, which ``pyproject.toml`` alone knows, into notebooks and README.

Two things in a notebook depend on it: the Colab badge, and the set-up cell that finds
``cam_helpers`` or, on Colab, fetches it. ``python -m cam_helpers.badges`` (``make badges``) writes
both; with ``--check`` it only names the files that are stale.
"""

from pathlib import Path
import re
import tomllib

from cam_helpers.writing import whole
import click
import nbformat

ROOT = Path(__file__).parents[1]
PLACEHOLDER = "/OWNER/"
SETUP_CELL = """\
# Finds cam_helpers; on Colab, fetches it first. `make badges` wrote this cell.
from importlib.util import find_spec
import os
from pathlib import Path
import subprocess
import sys

url = os.environ.get("CAM_HELPERS_URL", "<url>")
ref = os.environ.get("CAM_HELPERS_REF", "<ref>")
colab, here, clone = "google.colab" in sys.modules, Path.cwd(), Path.cwd() / "cam-helpers"
home = next((p for p in (here, *here.parents, clone) if (p / "cam_helpers").is_dir()), None)
if home is None and (not colab or "<placeholder>" in url):
    raise RuntimeError("cam_helpers <lack>: start Jupyter inside a clone of it.")
commands = []
if home is None:
    home, get = clone, "rm -rf .part && GIT_TERMINAL_PROMPT=0 timeout 120 git clone -q --depth=1"
    commands += [f"{get} -b '{ref}' '{url}' .part && mv .part '{clone}'"]
if colab and find_spec("tf_keras_vis") is None:
    commands += [f"timeout 120 '{sys.executable}' -m pip install -q tf-keras-vis==0.8.7"]
for command in commands:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{command}` failed ({done.returncode}): {done.stderr.strip()}")
if str(home) not in sys.path:
    sys.path.insert(0, str(home))"""
BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
BADGE = re.compile(rf"\[!\[[^]]*\]\({re.escape(BADGE_IMAGE)}\)\]\([^)]*/(?P<name>[\w-]+\.ipynb)\)")


def address(root: Path) -> tuple[str, str]:
    """Return the repository's https address and the branch or tag that Colab opens."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["urls"]["Repository"], project["tool"]["cam-helpers"]["ref"]


def setup_cell(url: str, ref: str, stores: bool = False) -> str:
    """Return the source of the set-up cell for a repository.

    Colab lacks tf-keras-vis; and Zarr, which a notebook with ``stores`` of maps needs instead.
    """
    lack = "has no address yet" if PLACEHOLDER in url else "is not here"
    cell = SETUP_CELL.replace("<url>", url).replace("<ref>", ref)
    if stores:
        cell = cell.replace("tf_keras_vis", "zarr").replace("tf-keras-vis==0.8.7", "'zarr>=3.1.3'")
    return cell.replace("<placeholder>", PLACEHOLDER).replace("<lack>", lack)


def with_badges(text: str, url: str, ref: str) -> str:
    """Return Markdown with each Colab badge pointing to its notebook in the repository."""
    place = url.replace("https://github.com", "https://colab.research.google.com/github")
    link = rf"[![Open in Colab]({BADGE_IMAGE})]({place}/blob/{ref}/notebooks/\g<name>)"
    return BADGE.sub(link, text)


def with_address(notebook: nbformat.NotebookNode, url: str, ref: str) -> nbformat.NotebookNode:
    """Return a copy of a notebook whose badge and set-up cell know the repository."""
    notebook = nbformat.from_dict(notebook)
    stores = any("cam_helpers.dataset" in cell.source for cell in notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_badges(cell.source, url, ref)
        elif "setup" in cell.metadata.get("tags", []):
            cell.source = setup_cell(url, ref, stores)
    return notebook


def stale_files(root: Path) -> dict[Path, str]:
    """Return the files that disagree with ``pyproject.toml``, each with the text it should have."""
    url, ref = address(root)
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise ValueError(
            f"expected https://github.com/owner/name in pyproject.toml, received {url}"
        )
    wanted = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        wanted[path] = nbformat.writes(with_address(notebook, url, ref)) + "\n"
    readme = root / "README.md"
    wanted[readme] = with_badges(readme.read_text(encoding="utf-8"), url, ref)
    return {path: text for path, text in wanted.items() if path.read_text(encoding="utf-8") != text}


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file is stale.")
def main(check: bool) -> None:
    stale = stale_files(ROOT)
    for path, text in stale.items():
        click.echo(f"{path.relative_to(ROOT)}: {'stale, run make badges' if check else 'written'}")
        if not check:
            with whole(path) as file:
                file.write(text.encode())
    raise SystemExit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
