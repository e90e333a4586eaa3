"""Runs the notebooks in order with papermill and collects what they show.

``python -m cam_helpers.tutorial`` (``make run``) leaves in ``build/`` the executed notebooks, their
HTML, their figures, and ``index.html``, a page of them all.
"""

import base64
from concurrent.futures import ThreadPoolExecutor, as_completed
import contextlib
from dataclasses import dataclass, field
import html
import os
from pathlib import Path
import threading
import time

from cam_helpers import writing
import click
import nbclient
import nbconvert
import nbformat
import papermill
import psutil
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
QUIET = [  # of what a kernel says of itself, also at its end, when logs have nowhere to go
    "--IPKernelApp.log_level=CRITICAL",
    "--IPKernelApp.exec_lines=import logging; logging.raiseExceptions = False",
]


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


def run_notebook(
    path: Path, out: Path, parameters: dict, stopped: threading.Event | None = None
) -> Run:
    """Execute one notebook into ``out``, and say how it went instead of raising.

    The notebook itself is not touched. What ran before a failing cell is kept. Notebook, page and
    figures come to ``out`` together, once they are whole, unless all is ``stopped`` by then; what
    an earlier run left there stays until they come.
    """
    run, started = Run(path.stem), time.perf_counter()
    try:
        with writing.together(out) as hidden, writing.explained(out / path.name):
            _execute(path, hidden / path.name, parameters, run)
            if stopped and stopped.is_set():
                raise InterruptedError("stopped")
            _show(hidden, run)
    except Exception as failure:  # a broken file, a full disk: this notebook's trouble alone
        run.error, run.page, run.figures = f"{type(failure).__name__}: {failure}", "", []
    run.seconds = time.perf_counter() - started
    return run


def _execute(path, executed, parameters, run):
    run.title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")
    known = papermill.inspect_notebook(path)
    try:
        papermill.execute_notebook(
            path,
            executed,
            {name: value for name, value in parameters.items() if name in known},
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},  # where the kernel starts
            progress_bar=False,
            extra_arguments=QUIET,
        )
    except papermill.PapermillExecutionError as failure:
        run.error = f"In [{failure.exec_count}]: {failure.ename}: {failure.evalue}"
    except nbclient.exceptions.DeadKernelError as failure:
        run.error = f"DeadKernelError: {failure}"


def _show(folder, run):
    """Write the page and figures of an executed notebook beside it."""
    notebook = nbformat.read(folder / f"{run.name}.ipynb", as_version=4)
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    (folder / f"{run.name}.html").write_text(page, encoding="utf-8")
    run.figures = _save_figures(notebook, folder, run.name)
    run.page = f"{run.name}.html"


def run_all(paths: list[Path], out: Path, parameters: dict, jobs: int = 1) -> list[Run]:
    """Execute notebooks, ``jobs`` at a time, with a progress bar; return the runs in order.

    However it ends, no kernel is left. OSError if another run is at work in ``out``.
    """
    runs, stopped, others = {}, threading.Event(), set(psutil.Process().children())
    with (
        writing.only_one(out),
        writing.stoppable(
            lambda: f"after {len(runs)} of {len(paths)} notebooks, which are whole: run all again."
        ),
        tqdm(total=len(paths), unit="notebook") as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):
        os.environ["CAM_HELPERS_OUTPUT"] = str(out.resolve())  # for the notebooks' own files
        waiting = {
            pool.submit(run_notebook, path, out, parameters, stopped): path for path in paths
        }
        bar.set_description(paths[0].stem)
        try:
            for done in as_completed(waiting):
                run = runs[waiting[done]] = done.result()
                bar.write(f"{run.name}  {run.seconds:.0f} s  {'FAILED' if run.error else 'ok'}")
                left = [path for future, path in waiting.items() if not future.done()]
                bar.set_description(left[0].stem if left else "done")
                bar.update()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while any(future.running() for future in waiting):
                _kill(set(psutil.Process().children()) - others)
                time.sleep(0.1)
    return [runs[path] for path in paths]


def _kill(kernels):
    """End kernels, which no Ctrl-C reaches in their own sessions, and what they started."""
    for kernel in kernels:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (*kernel.children(recursive=True), kernel):
                process.kill()


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
        title = html.escape(run.title)
        title = f'<a href="{run.page}">{title}</a>' if run.page else title
        sections.append(
            f"<h2>{run.name[:2]} {title} "
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
    (out / "figures").mkdir()
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
    try:
        runs = run_all(paths, out, {"train": True} if full else {}, jobs)
        failed = [run for run in runs if run.error]
        for run in failed:
            click.echo(f"{run.name} failed: {run.error}", err=True)
        with writing.whole(out / "index.html") as page:
            page.write(index_page(runs).encode())
    except KeyboardInterrupt:
        raise SystemExit(writing.INTERRUPTED) from None
    except OSError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out / 'index.html'}: {sum(len(run.figures) for run in runs)} figures")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
