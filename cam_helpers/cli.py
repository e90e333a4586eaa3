"""The command ``cam-helpers``: explain photos, list a network's layers, run the tutorial.

TensorFlow is imported by the commands that need it, so that ``--help`` comes at once.
"""

from collections import Counter
from collections.abc import Iterator
import contextlib
import difflib
import glob
import json
import os
from pathlib import Path
import re
import sys

from cam_helpers import __version__
from cam_helpers.photo_files import SUFFIXES as PHOTOS
import click
from tqdm import tqdm

FIGURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")
NO_FIGURES = (".gif", ".bmp", ".tif", ".tiff", ".eps", ".ps", ".txt", ".json")
SCALES = ("0..255", "0..1", "-1..1", "caffe", "torch")

safe_mode_option = click.option(
    "--safe-mode/--no-safe-mode",
    default=True,
    show_default=True,
    help="Refuse a model file that carries code. Without it, whoever made the file can run any "
    "program here.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """See what a convolutional network looks at."""


@main.command()
@click.argument("photos", nargs=-1, required=True, metavar="PHOTO...")
@click.option(
    "--model",
    default="MobileNet",
    show_default=True,
    metavar="NAME|FILE",
    help="VGG16, ResNet50, ..., or a file of your own: .keras, .h5, a SavedModel folder.",
)
@click.option(
    "--method",
    default="grad_cam",
    show_default=True,
    metavar="NAME,...",
    help="One or several of those below, or 'all'.",
)
@click.option(
    "--class",
    "class_name",
    default="top",
    show_default=True,
    metavar="NAME|INDEX",
    help="The class whose evidence is drawn: a label such as 'tiger cat', or an index.",
)
@click.option("--layer", help="The layer whose maps are used; `cam-helpers layers` lists them.")
@click.option(
    "--fit",
    "how",
    default="crop",
    show_default=True,
    type=click.Choice(["crop", "letterbox", "stretch"]),
    help="How a photo is brought to the network's size.",
)
@click.option(
    "--out",
    default="maps",
    show_default=True,
    metavar="FILE|FOLDER",
    help="Where the figures go.",
)
@click.option("--json", "as_json", is_flag=True, help="Print numbers: one JSON object a photo.")
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    help="How the training of your own model scaled pixels; not needed if a layer of it does.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The classes of your own model: a JSON list, or one on each line.",
)
@safe_mode_option
def explain(
    photos, model, method, class_name, layer, how, out, as_json, scale, labels, safe_mode
) -> None:
    """Draw where a network sees a class in photos: a figure for each.

    PHOTO is a file, a folder, a pattern, an address (https://...), or one of the samples cat,
    espresso, camera and motorcycle. A photo that cannot be read does not stop the others.

    \b
    Methods:
      grad_cam  grad_cam_plus_plus  layer_cam  hires_cam  score_cam (slow)
      saliency  smooth_grad  integrated_gradients  guided_backprop  deconvnet
      guided_grad_cam

    \b
    Examples:
      cam-helpers explain cat.jpg
      cam-helpers explain holiday/ --method grad_cam,saliency --out figures
      cam-helpers explain "*.png" --model VGG16 --class "tiger cat" --json
      cam-helpers explain x.png --model mine.keras --scale 0..1 --labels classes.txt

    Exit status: 0 all well, 1 some photos failed, 2 wrong usage.
    """
    files = _figure_files(_sources(photos), out)
    with _usage_errors():
        from cam_helpers import explaining
        from cam_helpers.class_names import find_class
        from cam_helpers.writing import stoppable

        network = _network(model, layer, scale, labels, safe_mode)
        names = explaining.find_methods(method, network)
        wanted = None if class_name == "top" else find_class(class_name, network.labels)
    done, failed = 0, 0
    with stoppable(lambda: f"after {done} of {len(files)} photos: their figures are whole.", True):
        for source in tqdm(files, unit="photo", leave=False, disable=None):
            said = {"photo": source}
            try:
                said |= explaining.explain_file(network, source, names, wanted, how, files[source])
            except Exception as error:  # this photo's trouble alone
                expected = isinstance(error, OSError | ValueError)
                kind = "" if expected else f"{type(error).__name__}: "
                failed += 1
                said["error"] = kind + " ".join(str(error).split())
                _say(f"{source}: {said['error']}", err=True)
            if as_json:
                _say(json.dumps(said))
            elif "figure" in said:
                shown = said["class"]
                _say(f"{said['figure']}  {shown['label']} {shown['probability']:.2f}")
            done += 1
    raise SystemExit(1 if failed else 0)


@main.command("layers")
@click.argument("model", metavar="NAME|FILE")
@safe_mode_option
def list_layers(model: str, safe_mode: bool) -> None:
    """List the layers of a network that have maps, in order.

    Each with its output (height, width and maps), how far apart its cells are and how much each
    sees, in pixels. The star marks the layer that is explained unless you name another.

    \b
    Examples:
      cam-helpers layers VGG16
      cam-helpers layers mine.keras
    """
    with _usage_errors():
        from cam_helpers import backbones, networks

        scale = None if model in backbones.NETWORKS else "0..255"  # nothing is shown to it
        rows = networks.layer_table(_network(model, scale=scale, safe_mode=safe_mode))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(arguments: tuple[str, ...]) -> None:
    """Run the tutorial's notebooks, in a clone of the repository."""
    try:
        from cam_helpers import tutorial
    except ModuleNotFoundError as error:
        raise click.UsageError(
            f"expected what runs notebooks, received no {error.name}: "
            "pip install 'cam-helpers[run]'."
        ) from error
    tutorial.main(list(arguments), prog_name="cam-helpers run")


def _sources(photos):
    """Files, addresses and names of samples, each once; folders and patterns opened."""
    sources = {}
    for each in photos:
        found = [each]
        if Path(each).is_dir():
            inside = sorted(Path(each).iterdir())
            found = [str(path) for path in inside if path.suffix.lower() in PHOTOS]
        elif glob.has_magic(each) and not Path(each).exists() and "://" not in each:
            found = sorted(path for path in glob.glob(each, recursive=True) if Path(path).is_file())
        stems = {Path(path).stem for path in found}
        found = [path for path in found if _of_figure(path) not in stems]  # of an earlier run
        if not found:
            raise click.UsageError(
                f"expected photos ({', '.join(PHOTOS)}), received '{each}', where there are none."
            )
        for source in found:
            sources.setdefault(os.path.realpath(source), source)
    return list(sources.values())


def _of_figure(path):
    """The stem of the photo that a figure of this name is of; None if it is no figure's name."""
    found = re.fullmatch(r"(.+)_maps(_\d+)?", Path(path).stem)
    return found and found[1]


def _figure_files(sources, out):
    """Each photo with the file that its figure goes to: no two share one, and no photo is one."""
    suffix, folder = Path(out).suffix.lower(), Path(out)
    is_file = suffix in FIGURES + NO_FIGURES and not folder.is_dir() and not out.endswith("/")
    if is_file and (suffix not in FIGURES or len(sources) > 1):
        raise click.UsageError(
            f"expected --out as a folder, or for one photo a file ({', '.join(FIGURES)}), received "
            f"'{out}' for {len(sources)} of them."
        )
    files, taken, photos = {}, Counter(), {os.path.realpath(source) for source in sources}
    for source in sources:
        stem = Path(re.split(r"[?#]", source)[0] if "://" in source else source).stem or "photo"
        taken[stem] += 1
        number = f"_{taken[stem]}" if taken[stem] > 1 else ""
        files[source] = folder if is_file else folder / f"{stem}_maps{number}.png"
        if os.path.realpath(files[source]) in photos:
            raise click.UsageError(
                f"expected --out apart from the photos, received '{out}', where the figure would "
                f"replace '{files[source]}'."
            )
    return files


def _network(model, layer=None, scale=None, labels=None, safe_mode=True):
    from cam_helpers import backbones, networks

    if model in backbones.NETWORKS and (scale or labels):
        raise ValueError(
            f"expected --scale and --labels with a file of your own, received '{model}', which "
            "needs neither: leave them out."
        )
    if model in backbones.NETWORKS:
        with contextlib.redirect_stdout(sys.stderr):  # what it says of a stand-in
            return networks.known_network(model, layer)
    if not Path(model).exists() and not Path(model).suffix:
        near = difflib.get_close_matches(model.lower(), map(str.lower, backbones.NETWORKS), 1)
        known = [name for name in backbones.NETWORKS if name.lower() in near]
        raise ValueError(
            f"expected a file or one of {', '.join(backbones.NETWORKS)}, received '{model}'"
            f"{f': did you mean {known[0]}?' if known else '.'}"
        )
    labels = networks.read_labels(labels) if labels else None
    return networks.own_network(model, layer, scale=scale, labels=labels, safe_mode=safe_mode)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Make a wrong request one sentence and exit status 2."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise click.UsageError(" ".join(str(error).split())) from error


def _say(line, err=False):
    """Print a line past the progress bar; what the terminal has no character for is a mark."""
    with tqdm.external_write_mode(file=sys.stderr if err else sys.stdout):
        click.echo(os.fsencode(line).decode("utf-8", "replace"), err=err)


if __name__ == "__main__":
    main()
