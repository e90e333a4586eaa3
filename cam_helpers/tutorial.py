"""Runs the notebooks in order with papermill and collects what they show.

``python -m cam_helpers.tutorial`` (``make run``) leaves in ``build/`` the executed notebooks, their
HTML, their figures, and ``index.html``, a page of them all.
"""

import base64
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
import html
import multiprocessing
import os
from pathlib import Path
import time

import click
import nbconvert
import nbformat
import papermill
from tqdm import tqdm

ROOT = Path(__file__).parents[1]


@dataclass
class Run:
    """One executed notebook: its title, seconds, figures, and the error that stopped it."""

    name: str
    title: str = "(no title)"
    seconds: float = 0
    error: str = ""
    page: str = ""
    figures: list[tuple[str, str]] = field(default_factory=list)


def find_notebooks(folder: Path, only: tuple[str, ...] = ()) -> list[Path]:
    """Return the notebooks of a folder in order, or those whose name starts as ``only`` says.

    Raises
    ------
    ValueError
        If there is no such notebook; the message lists what there is.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    names = ", ".join(path.stem for path in paths) or "none"
    for start in only or ("",):
        if not any(path.name.startswith(start) for path in paths):
            raise ValueError(f"expected notebooks like '{start}…' in {folder}, found {names}")
    return [path for path in paths if not only or path.name.startswith(only)]


def run_notebook(path: Path, out: Path, parameters: dict) -> Run:
    """Execute one notebook into ``out``, and say how it went instead of raising.

    The notebook itself is not touched. What ran before a failing cell is kept.
    """
    executed = out / path.name
    executed.unlink(missing_ok=True)
    run, started = Run(path.stem), time.perf_counter()
    try:
        run.title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")
        known = papermill.inspect_notebook(path)
        papermill.execute_notebook(
            path,
            executed,
            {name: value for name, value in parameters.items() if name in known},
            kernel_name="python3",
            cwd=path.parent,
            progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # what a kernel says of itself
        )
    except papermill.PapermillExecutionError as failure:
        run.error = f"In [{failure.exec_count}]: {failure.ename}: {failure.evalue}"
    except Exception as failure:  # a dead kernel, a broken file: this notebook's trouble alone
        run.error = f"{type(failure).__name__}: {failure}"
    run.seconds = time.perf_counter() - started
    if executed.exists():
        notebook = nbformat.read(executed, as_version=4)
        page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
        run.page = f"{path.stem}.html"
        (out / run.page).write_text(page, encoding="utf-8")
        run.figures = _save_figures(notebook, out, path.stem)
    return run


def run_all(paths: list[Path], out: Path, parameters: dict, jobs: int = 1) -> list[Run]:
    """Execute notebooks, ``jobs`` at a time, with a progress bar; return the runs in order."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    os.environ["CAM_HELPERS_OUTPUT"] = str(out.resolve())  # for the notebooks' own files
    runs = {}
    clean = multiprocessing.get_context("spawn")  # a fork of a process that runs TensorFlow may die
    with ProcessPoolExecutor(jobs, clean) as pool, tqdm(total=len(paths), unit="notebook") as bar:
        waiting = {pool.submit(run_notebook, path, out, parameters): path for path in paths}
        bar.set_description(paths[0].stem)
        for done in as_completed(waiting):
            run = runs[waiting[done]] = done.result()
            bar.write(f"{run.name}  {run.seconds:.0f} s  {'FAILED' if run.error else 'ok'}")
            left = [path for future, path in waiting.items() if not future.done()]
            bar.set_description(left[0].stem if left else "done")
            bar.update()
    return [runs[path] for path in paths]


def index_page(runs: list[Run]) -> str:
    """Return the HTML page with each notebook's title, pictures and a link to the whole of it."""
    sections = []
    for run in runs:
        error = f"<p class=error>Stopped: {html.escape(run.error)}</p>" if run.error else ""
        pictures = "".join(
            f'<figure><img src="{file}" alt="{html.escape(heading)}">'
            f"<figcaption>{html.escape(heading)}</figcaption></figure>"
            for file, heading in run.figures
        )
        sections.append(
            f'<h2>{run.name[:2]} <a href="{run.page}">{html.escape(run.title)}</a> '
            f"<small>{run.seconds:.0f} s</small></h2>{error}<div>{pictures}</div>"
        )
    return _PAGE.replace("SECTIONS", "\n".join(sections))


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What a convolutional network looks at</title>
<style>
body {font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem}
div {display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: start}
figure {margin: 0} img {max-width: 100%; height: auto}
small, figcaption {color: #666; font-weight: normal} .error {color: #b00020}
</style>
<h1>What a convolutional network looks at</h1>
SECTIONS
</html>
"""


def _save_figures(notebook, out, name):
    """Write each picture to a file; return the files with the headings that they stand under."""
    figures, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1].lstrip("# ") if headings else heading
        for output in cell.get("outputs", []):
            for kind in ("png", "jpeg"):
                if picture := output.get("data", {}).get(f"image/{kind}"):
                    file = f"figures/{name}-{len(figures) + 1}.{kind}"
                    (out / file).write_bytes(base64.b64decode(picture))
                    figures.append((file, heading))
    return figures


@click.command()
@click.option("--only", multiple=True, metavar="NUMBER", help="Run this notebook; may be repeated.")
@click.option("--full", is_flag=True, help="Train all 25 epochs instead of loading the weights.")
@click.option("--jobs", default=1, type=click.IntRange(1), help="Notebooks at a time.")
@click.option("--out", default=ROOT / "build", type=click.Path(path_type=Path, file_okay=False))
def main(only: tuple[str, ...], full: bool, jobs: int, out: Path) -> None:
    """Run the notebooks in order into build/, and draw a page of their figures."""
    try:
        paths = find_notebooks(ROOT / "notebooks", only)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    runs = run_all(paths, out, {"train": True} if full else {}, jobs)
    (out / "index.html").write_text(index_page(runs), encoding="utf-8")
    click.echo(f"{out / 'index.html'}: {sum(len(run.figures) for run in runs)} figures")
    failed = [run for run in runs if run.error]
    for run in failed:
        click.echo(f"{run.name} failed: {run.error}", err=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
