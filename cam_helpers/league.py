"""Which method's maps are true: every method and control, measured on known evidence and on images.

``make league`` writes ``data/league.csv`` and the table of the README. Each track is one network
with its images and metrics. What one method scores, image by image, is kept in ``build/league/``
until the table is written, so that a run that was stopped goes on where it was.
"""

from collections.abc import Callable, Sequence
from functools import partial
import hashlib
import importlib.metadata
from itertools import product
import json
from pathlib import Path
import shutil
import time

from cam_helpers import compiled, data, ground_truth, methods, metrics, models, photos
from cam_helpers.backend import keras
from cam_helpers.standings import ANOTHER, FILE, into_readme, rows_of, write
from cam_helpers.writing import stoppable, whole
import click
import numpy as np
from tqdm import tqdm

STEPS = 14  # of deletion and insertion: 28² and 224² pixels divide by it
# Name of a method or control to the call that measures it: metric to the value of each image (n,),
# and among them "seconds" a map.
Entries = dict[str, Callable[[], dict[str, np.ndarray]]]


def marks(count: int) -> Entries:
    """Return the track of planted evidence: whose maps are highest on the mark that decides."""
    found = ground_truth.marked(count, seed=1)

    def score(maps):
        return {
            "pointing": metrics.pointing_game(maps, found.evidence),
            "pointing at the decoy": metrics.pointing_game(maps, found.decoys),
            "energy inside": metrics.energy_inside(maps, found.evidence),
        }

    model = ground_truth.load("marks")
    return _every_method(model, found.images, found.labels, score)


def mosaics(count: int) -> Entries:
    """Return the track of mosaics: whose maps lie on the garment of their class, of four."""
    canvases, classes = sure_mosaics(count)
    cells = np.arange(count) % 4

    def score(maps):
        return {"grid pointing": metrics.grid_pointing_game(maps, cells)}

    wanted = classes[np.arange(count), cells]
    entries = _every_method(mosaic_network(), canvases, wanted, score)
    del entries[ANOTHER]  # of the mosaic before, whose class is in another cell: always wrong
    return entries


def mosaic_network() -> keras.Model:
    """Return the Fashion-MNIST network with a pooled head, for canvases (batch, 56, 56, 1)."""
    model = models.to_logits(models.load_fashion_cnn(pooled_head=True))
    larger = keras.models.clone_model(model, input_tensors=keras.Input((56, 56, 1), name="input"))
    larger.set_weights(model.get_weights())
    return larger


def sure_mosaics(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`ground_truth.mosaics` of test images whose label is more probable than 0.9."""
    garments = data.fashion_mnist()
    images, labels = garments.test_images[:1000], garments.test_labels[:1000]
    model = models.load_fashion_cnn(pooled_head=True)
    probabilities = model.predict(images, batch_size=500, verbose=0)
    sure = probabilities[np.arange(len(labels)), labels] > 0.9
    return ground_truth.mosaics(images[sure], labels[sure], count, seed=0)


def fashion(count: int) -> Entries:
    """Return the track of faithfulness on the first test images of Fashion-MNIST."""
    model = models.to_logits(models.load_fashion_cnn())
    return _faithfulness(model, data.fashion_mnist().test_images[:count])


def four_photos(count: int) -> Entries:
    """Return the track of faithfulness on the sample photos with MobileNet, four at most.

    Raises
    ------
    OSError
        If MobileNet's weights cannot be had.
    """
    backbone = models.load_backbone("MobileNet", fallback=())
    if backbone.weights != "ImageNet":
        raise OSError("the table is measured with MobileNet's ImageNet weights: go online.")
    shown = [photos.fit(photos.sample_photo(name), backbone.input_size) for name in photos.SAMPLES]
    return _faithfulness(backbone.model, backbone.preprocess(np.stack(shown))[:count])


def heads(count: int) -> Entries:
    """Return the track of drawing and head: two heads, three layers, three methods, two drawings.

    What counts is the deletion less that of another image's map, drawn alike: 0 for a map that
    knows nothing of its image.
    """
    images, entries = data.fashion_mnist().test_images[:count], {}
    placements = {"placed": "receptive_field", "resized": "resize"}

    def score(model, classes, maps):
        own, others = (
            metrics.deletion(model, images, each, classes, steps=STEPS // 2).area
            for each in (maps, np.roll(maps, 1, axis=0))
        )
        return {"deletion": own, "deletion less another's": own - others}

    for head in ("flattened", "pooled"):
        model = models.to_logits(models.load_fashion_cnn(pooled_head=head == "pooled"))
        classes = _top(model, images)
        for layer, method, drawn in product(
            ("final", "norm8", "pool3"), ("Grad-CAM", "HiResCAM", "LayerCAM"), placements
        ):
            how = {"layer": layer, "placement": placements[drawn]}
            make = partial(methods.heatmaps, method, model, **how)
            entries[f"{head}, {layer}, {method}, {drawn}"] = partial(
                _measure, make, images, classes, partial(score, model, classes)
            )
    return entries


TRACKS = {  # name to its images and the call that makes it
    "marks": (400, marks),
    "mosaics": (60, mosaics),
    "Fashion-MNIST": (200, fashion),
    "photos": (4, four_photos),
    "heads": (200, heads),
}


def _faithfulness(model, images):
    classes = _top(model, images)

    def score(maps):
        asked, scores = (model, images, maps, classes), {}
        for name, baseline in (("", "zeros"), (", blur", "blur")):
            for curve in (metrics.deletion, metrics.insertion):
                found = curve(*asked, baseline=baseline, steps=STEPS, batch_size=50)
                scores[curve.__name__ + name] = found.area
        scores["empty"] = maps.max(axis=(1, 2)) == 0
        for share in (metrics.average_drop, metrics.average_increase):
            scores[share.__name__.replace("_", " ")] = share(*asked, batch_size=50)
        return scores

    return _every_method(model, images, classes, score)


def _every_method(model, images, classes, score):
    calls = {
        name: partial(methods.heatmaps, name, model)
        for name in (*methods.METHODS, *methods.CONTROLS)
    }
    calls[ANOTHER] = lambda *asked: np.roll(methods.heatmaps("Grad-CAM", model, *asked), 1, axis=0)
    return {name: partial(_measure, call, images, classes, score) for name, call in calls.items()}


def _measure(make, images, classes, score):
    make(images[:1], classes[:1])  # compiles
    started = time.perf_counter()
    maps = make(images, classes)
    seconds = (time.perf_counter() - started) / len(images)
    return {**score(maps), "seconds": np.full(len(images), seconds)}


def _top(model, images):
    run, parts = compiled.scores(model), compiled.parts(len(images), 100)
    return np.concatenate([run(images[part]).numpy().argmax(axis=1) for part in parts])


def run(
    tracks: Sequence[str] = tuple(TRACKS), images: int | None = None, folder: Path | None = None
) -> list[dict[str, str]]:
    """Return the rows of the table, measured, or taken from what a stopped run left in a folder.

    Parameters
    ----------
    tracks
        Names of ``TRACKS``.
    images
        At most so many a track; None for as many as ``TRACKS`` says.
    folder
        Where results are kept as they come, and those found are taken; None for :func:`kept_in`.
    """
    folder = folder or kept_in(tracks, images)
    rows = []
    for name in tracks:
        count, make = TRACKS[name]
        entries, scores = make(min(count, images or count)), {}
        for entry, measure in tqdm(entries.items(), name, unit="map", disable=None):
            scores[entry] = _kept(folder / f"{name}-{_slug(entry)}.json", measure)
        rows += rows_of(name, scores)
    return rows


def kept_in(tracks: Sequence[str], images: int | None) -> Path:
    """Return the folder for the results of a run: another for all that may change the numbers.

    That is what is asked for, the code, the committed weights and the versions of libraries.
    """
    digest = hashlib.sha256(str((tuple(tracks), images)).encode())
    package, committed = Path(__file__).parent, data.folder()
    for path in (*sorted(package.glob("*.py")), *sorted(committed.glob("*.weights.h5"))):
        digest.update(path.read_bytes())
    for name in ("tensorflow", "keras", "numpy", "scipy", "scikit-image"):
        digest.update(importlib.metadata.version(name).encode())
    return data.output_folder() / "league" / digest.hexdigest()[:12]


def _kept(path, measure):
    """What a call measures, or what it measured before; whole or not at all."""
    if not path.exists():
        measured = {name: values.astype(float).tolist() for name, values in measure().items()}
        with whole(path) as file:
            file.write(json.dumps(measured).encode())
    kept = json.loads(path.read_text(encoding="utf-8"))
    return {name: np.array(values) for name, values in kept.items()}


def _slug(name):
    return "".join(letter if letter.isalnum() else "-" for letter in name)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(TRACKS)), help="Only this track.")
@click.option("--images", type=click.IntRange(min=2), help="At most so many images a track.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the table here, and no README.")
def main(only: tuple[str, ...], images: int | None, out: Path | None) -> None:
    """Measure every method and control, and write data/league.csv and the table of the README."""
    keras.config.disable_interactive_logging()
    if (only or images) and not out:
        raise click.UsageError("a part of the table goes to a file of its own: add --out FILE.")
    if data.fashion_mnist().source != "Fashion-MNIST":
        raise click.UsageError("the table is measured on Fashion-MNIST, which cannot be had here.")
    tracks, path = only or tuple(TRACKS), out or data.folder() / FILE
    readme = data.CHECKOUT / "README.md"
    if not path.parent.is_dir() or not (out or readme.is_file()):
        raise click.UsageError(f"expected the folder of {path}, and {readme} without --out.")
    folder = kept_in(tracks, images)
    try:
        with stoppable("and keeps what it has measured: the same command goes on.", exits=True):
            rows = run(tracks, images, folder)
            write(rows, path)
            if not out:
                into_readme(rows, readme)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    shutil.rmtree(folder)
    click.echo(f"{len(rows)} rows in {path}")


if __name__ == "__main__":
    main()
