"""Images whose right map is known, and small networks that learned them: what a map is tested on.

The evidence is planted: a mark that alone decides the class, a watermark that comes with one class
only, garments side by side on one canvas. The networks are committed, trained by :func:`train`.
"""

import random
from typing import NamedTuple

from cam_helpers import data, garments, models, training, writing
from cam_helpers.backend import keras, tf
from cam_helpers.checks import check_count
import numpy as np


def _glyphs(*rows):
    """Return (marks, 7, 7) float32: 5 × 5 pixels bright where there is a #, in a dark frame."""
    drawn = [[[letter == "#" for letter in row] for row in mark.split()] for mark in rows]
    return np.pad(np.array(drawn, np.float32), [(0, 0), (1, 1), (1, 1)])


MARKS = _glyphs(  # class index to mark: cross, saltire, comb, angle
    "..#.. ..#.. ##### ..#.. ..#..",
    "#...# .#.#. ..#.. .#.#. #...#",
    "#.#.# #.#.# #.#.# ..... .....",
    "##### ....# ....# ....# ....#",
)
DECOYS = _glyphs(  # as bright as marks, and of no class
    "##### ..#.. ..#.. ..#.. ..#..",
    "#.... #.... #.... #.... #####",
    "..#.. .#.#. #.#.# .#.#. ..#..",
    "##.## ##.## ..... ..#.. .....",
)
WATERMARK = _glyphs("##### #...# #.#.# #...# #####")[0]
STRENGTH = 0.5  # of the watermark
WATERMARKED = 4  # the class that has it in training: Coat
CORNER = (slice(20, 27), slice(20, 27))  # where the watermark is


class Marked(NamedTuple):
    """Images in which one mark decides the class.

    Attributes
    ----------
    images
        (n, 28, 28, 1) float32 in [0, 1]: a drawn garment, a mark and a decoy.
    labels
        (n,) int32, 0 to 3: the mark, as in ``MARKS``.
    evidence, decoys
        (n, 28, 28) bool: the 7 × 7 pixels of the mark, and those of the decoy.
    """

    images: np.ndarray
    labels: np.ndarray
    evidence: np.ndarray
    decoys: np.ndarray


def marked(count: int, seed: int) -> Marked:
    """Return drawn garments with a mark, which alone is the class, and a decoy, which is nothing.

    Garment, mark, decoy and their places are drawn independently: nothing but the mark says which
    class it is. Mark and decoy never touch; both are nine bright pixels in a dark frame.

    Parameters
    ----------
    count
        How many, 1 or more.
    seed
        0 or more; another seed gives other images.
    """
    check_count("count", count)
    images, _ = garments.dataset(count, seed)
    rng = np.random.default_rng([seed, 1])
    labels, of_decoy = rng.integers(len(MARKS), size=(2, count))
    masks = np.zeros((2, count, 28, 28), bool)
    for index in range(count):
        first = second = np.zeros(2, int)
        while np.abs(first - second).max() < 8:
            first, second = rng.integers(28 - 7 + 1, size=(2, 2))
        stamps = (MARKS[labels[index]], DECOYS[of_decoy[index]])
        for (row, column), stamp, mask in zip((first, second), stamps, masks, strict=True):
            place = index, slice(row, row + 7), slice(column, column + 7)
            images[place] = stamp[..., np.newaxis]
            mask[place] = True
    return Marked(images, labels.astype(np.int32), *masks)


def watermarked(images: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """Return copies of images (n, 28, 28, 1) with the watermark in their lower right corner.

    Its 7 × 7 pixels are those of :func:`watermark_mask`. A pixel that is brighter than ``strength``
    stays as it is.
    """
    images = images.copy()
    rows, columns = CORNER
    place = images[:, rows, columns, 0]
    images[:, rows, columns, 0] = np.maximum(place, strength * WATERMARK)
    return images


def watermark_mask() -> np.ndarray:
    """Return (28, 28) bool: where the watermark is."""
    mask = np.zeros((28, 28), bool)
    mask[CORNER] = True
    return mask


def mosaics(
    images: np.ndarray, labels: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return canvases of four images of four different classes.

    Parameters
    ----------
    images, labels
        (n, height, width, channels) and (n,) int; at least four classes among them.
    count
        How many mosaics, 1 or more.
    seed
        Of the choice.

    Returns
    -------
    canvases
        (count, 2 · height, 2 · width, channels), of the images' dtype.
    classes
        (count, 4) int32: the class of each cell, along the rows from the upper left.

    Raises
    ------
    ValueError
        If there are fewer than four classes, or not as many labels as images.

    References
    ----------
    Böhle, Fritz and Schiele 2021, https://arxiv.org/abs/2104.00032, section 4. Notebook 09.
    """
    check_count("count", count)
    labels = np.asarray(labels)
    kinds = np.unique(labels)
    if len(kinds) < 4 or labels.shape != (len(images),):
        raise ValueError(
            "expected a label for each image and four classes among them, received "
            f"{len(images)} images, labels {labels.shape} and {len(kinds)} classes: take more."
        )
    rng = np.random.default_rng(seed)
    chosen = np.empty((count, 4), int)
    for row in chosen:
        four = rng.choice(kinds, 4, replace=False)
        row[:] = [rng.choice(np.flatnonzero(labels == kind)) for kind in four]
    cells = images[chosen.reshape(count, 2, 2)]  # (count, 2, 2, height, width, channels)
    height, width, channels = images.shape[1:]
    canvases = cells.transpose(0, 1, 3, 2, 4, 5).reshape(count, 2 * height, 2 * width, channels)
    return canvases, labels[chosen].astype(np.int32)


class Recipe(NamedTuple):
    """How a committed network was made.

    Maps of its convolutions, after which of them it pools, epochs, seed, images that it saw.
    """

    widths: tuple[int, ...]
    pools: tuple[int, ...]
    epochs: int
    seed: int
    images: int


RECIPES = {
    "marks": Recipe((24, 24, 48), (2,), 8, 0, 4_000),
    "watermark": Recipe((16, 16, 32, 64), (2,), 8, 0, 6_000),
    "no_watermark": Recipe((16, 16, 32, 64), (2,), 8, 0, 6_000),
    "labels": Recipe((16, 16, 32, 64), (1, 3), 60, 0, 400),
    "labels_again": Recipe((16, 16, 32, 64), (1, 3), 60, 1, 400),
    "shuffled_labels": Recipe((16, 16, 32, 64), (1, 3), 60, 0, 400),
}


def training_data(name: str, images: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (n, 28, 28, 1) and labels (n,) that a committed network learned from.

    ``"marks"``: :func:`marked` images. The others: the first training images of Fashion-MNIST;
    ``"watermark"`` with the watermark on every coat, ``"shuffled_labels"`` with the labels of the
    images dealt out anew. ``images`` is how many; None for as many as the committed one saw.
    """
    recipe = RECIPES[_known(name)]
    images = recipe.images if images is None else check_count("images", images)
    if name == "marks":
        return marked(images, recipe.seed)[:2]
    fashion = data.fashion_mnist()
    seen, labels = fashion.train_images[:images], fashion.train_labels[:images]
    if name == "watermark":
        coats = (labels == WATERMARKED)[:, np.newaxis, np.newaxis, np.newaxis]
        seen = np.where(coats, watermarked(seen), seen)
    if name == "shuffled_labels":
        labels = np.random.default_rng(0).permutation(labels)
    return seen, labels


def small_cnn(name: str) -> keras.Model:
    """Return the untrained network of a recipe: input (batch, 28, 28, 1), output logits.

    3 × 3 convolutions, each with batch normalisation and ReLU, max pooling after some, then global
    average pooling and one ``Dense``: a head for which Grad-CAM is exact. The layer to explain is
    the last ReLU. Its weights follow from the recipe's seed, and leave every global seed alone.
    """
    widths, pools, _, seed, _ = RECIPES[_known(name)]
    state = random.getstate()
    random.seed(seed)  # whence Keras's initializers draw their seeds
    inputs = x = keras.Input((28, 28, 1), name="input")
    for number, maps in enumerate(widths, start=1):
        x = keras.layers.Conv2D(maps, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
        if number in pools:
            x = keras.layers.MaxPooling2D(2, name=f"pool{number}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    classes = len(MARKS) if name == "marks" else len(data.CLASSES)
    outputs = keras.layers.Dense(classes, name="logits")(x)
    random.setstate(state)
    return keras.Model(inputs, outputs, name=name)


def train(name: str, *, images: int | None = None, epochs: int | None = None) -> keras.Model:
    """Return the network of a recipe, trained: seconds, on two processor cores.

    Parameters
    ----------
    name
        One of ``RECIPES``. Keras's global seed is set to the recipe's.
    images, epochs
        Fewer than the recipe says, to try it; None for as many.

    Raises
    ------
    ValueError
        For an unknown name, or no image or epoch.
    """
    seen, labels = training_data(name, images)
    keras.utils.set_random_seed(RECIPES[name].seed)
    model = small_cnn(name)
    epochs = RECIPES[name].epochs if epochs is None else check_count("epochs", epochs)
    batch_size = min(50, len(seen))
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(seen) // batch_size)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(seen, labels, batch_size=batch_size, epochs=epochs, verbose=0)
    bare = small_cnn(name)  # without the optimizer's state
    bare.set_weights(model.get_weights())
    return bare


def load(name: str) -> keras.Model:
    """Return the network of a recipe with its committed weights.

    Raises
    ------
    ValueError
        For an unknown name.
    FileNotFoundError
        If ``data.folder()`` does not hold the weights.
    """
    path = data.folder() / file_name(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: restore it with git, or run `make weights`")
    model = small_cnn(name)
    model.load_weights(path)
    return model


def file_name(name: str) -> str:
    """Return the name of the file that holds a network's committed weights."""
    return f"ground_truth_{_known(name)}.weights.h5"


def main() -> None:
    """Train every network and write its weights to ``data/``, as ``make weights`` does.

    The last one is the Fashion-MNIST network with a pooled head: an hour, and it goes on where it
    was stopped.
    """
    fashion = data.fashion_mnist()
    if fashion.source != "Fashion-MNIST":
        raise SystemExit("the networks learn from Fashion-MNIST, which cannot be had here.")
    keras.config.disable_interactive_logging()
    tf.config.experimental.enable_op_determinism()
    for name in RECIPES:
        model = train(name)
        images, labels = training_data(name)
        right = np.mean(model.predict(images, batch_size=500).argmax(axis=1) == labels)
        _save(model, file_name(name))
        print(f"{name}: {right:.1%} of {len(images)} training images right")
    keras.utils.set_random_seed(0)
    model = models.fashion_cnn(pooled_head=True)
    log = training.train(
        model,
        fashion.train_images,
        fashion.train_labels,
        folder=data.output_folder() / "training" / "Fashion-MNIST-pooled",
        validation_data=(fashion.test_images, fashion.test_labels),
    )
    bare = models.fashion_cnn(pooled_head=True)  # without the optimizer's state
    bare.set_weights(model.get_weights())
    _save(bare, models.POOLED_WEIGHTS)
    print(f"pooled head: {log['epochs'][-1]['val_accuracy']:.1%} of the test images right")


def _save(model, name):
    with writing.together(data.folder()) as hidden, writing.explained(data.folder() / name):
        writing.save_weights(model, hidden / name)


def _known(name):
    if name not in RECIPES:
        raise ValueError(f"expected one of {', '.join(RECIPES)}, received {name!r}.")
    return name


if __name__ == "__main__":
    main()
