"""Draws the ten Fashion-MNIST classes, each garment from parts whose place is known.

Drawn garments stand in for Fashion-MNIST where it cannot be downloaded. They are also ground truth
for heatmaps: what makes a class is its parts, and ``draw`` says which pixels each part covers.
"""

from itertools import chain
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 28
# Garments are drawn this many times larger, then averaged: edges come out anti-aliased. Odd, so
# that no two parts can cover half a pixel each.
FINER = 7
TRIM = 0.2  # a part of at least this contrast is trim: plain, whatever the fabric's texture


class _Part(NamedTuple):
    """A shape; lengths in pixels of the image, x from its left and y from its top."""

    name: str
    points: np.ndarray
    contrast: float = 0.0  # so much darker than a bright garment, or brighter than a dark one
    line: float = 0.0  # width of a line through the points; 0: the polygon is filled
    grow: tuple = (0, 1, 1)  # y, least, most: heights below or above y vary by such a factor


def _one(name, points, **look):
    """Return the part with these points, written as in SVG: "x,y x,y ..."."""
    return (_Part(name, np.array([p.split(",") for p in points.split()], float), **look),)


def _whole(name, points, **look):
    """Return the part of which these points are the left half."""
    (half,) = _one(name, points, **look)
    return (half._replace(points=np.vstack([half.points, _mirrored(half.points)[::-1]])),)


def _pair(name, points, **look):
    """Return the part with these points and its mirror image; "{}" is the side in their names."""
    (part,) = _one(name, points, **look)
    right = part._replace(name=name.format("right"), points=_mirrored(part.points))
    return part._replace(name=name.format("left")), right


def _row(name, points, count, step, **look):
    """Return the part ``count`` times, each moved on by ``step``."""
    (part,) = _one(name, points, **look)
    return tuple(part._replace(points=part.points + i * np.array(step)) for i in range(count))


def _mirrored(points):
    return [SIZE, 0] + points * [-1, 1]


# What makes each class. A part covers those before it; parts of one name count as one.
_GARMENTS = {
    "T-shirt/top": (
        _pair("{}_sleeve", "10,2.4 5,4.2 1.6,10 5.6,12.4 10,9", contrast=0.08, grow=(3, 0.7, 1.2)),
        _whole("body", "14,5 12.4,4.3 11,2 8,3.2 7.8,10 7.6,26.4 14,26.6"),
        _whole("neckline", "10.6,2.4 12.2,4.8 14,5.6", contrast=0.25, line=1.3),
    ),
    "Trouser": (
        _pair("{}_leg", "9,3.6 14,3.6 14,9 12.6,27 8.2,27 8.2,12"),
        _whole("waist", "9.2,1 8.9,4 14,4 14,1", contrast=0.25),
    ),
    "Pullover": (
        _pair("{}_sleeve", "10,2.8 5.4,4.8 3.2,14 1.8,24 5,24.6 7,15 10,10", contrast=0.08),
        _pair("ribbing", "2,22.8 1.6,25.6 4.9,26 5.4,23.2", contrast=0.22),
        _whole("body", "14,4 12.4,3.6 11,2.2 8,3.4 7.9,10 7.8,24 14,24"),
        _whole("ribbing", "7.8,23.4 8.2,26 14,26 14,23.4", contrast=0.22),
        _whole("neckline", "10.6,2.2 12.2,4 14,4.5", contrast=0.22, line=1.6),
    ),
    "Dress": (
        _whole("skirt", "14,10 10.6,10 6.2,26 14,27", grow=(11, 0.8, 1.03)),
        _whole("bodice", "14,6 12.4,5.4 11.8,1 10.4,1 9.6,6 10.6,11.4 14,11.4"),
        _whole("belt", "10.4,11.2 14,11.2", contrast=0.3, line=1.5),
    ),
    "Coat": (
        _pair("{}_sleeve", "10,2.2 5,4.2 3,13 1.4,21.5 4.8,22.4 6.6,14 10,9", contrast=0.08),
        _whole("body", "14,1.6 11.4,1.2 8,2.8 7.4,10 6,27 14,27"),
        _whole("opening", "11.6,1.2 13.3,11 12.8,27.2 14,27.2 14,1.2", contrast=0.55),
        _pair("collar", "11.8,0.8 10,2 9.2,7 10.8,7.2 13.4,13 12.6,4", contrast=0.25),
    ),
    "Sandal": (
        _one("toe_strap", "4.5,20 7,15.4 9.6,15 13,19.4", line=1.8, grow=(19.5, 0.8, 1.6)),
        _one("ankle_strap", "16,19 19,12 24.6,11 24.8,18", line=1.6, grow=(19, 0.7, 1.6)),
        _one("sole", "1,19.6 10,19.4 17,18 26.2,16.4 26.6,20.6 19,20.8 12,22 1.6,22", contrast=0.2),
    ),
    "Shirt": (
        _pair("{}_sleeve", "10,3 5,5 3,14 2,25 5,25 7,15 10,10", contrast=0.08, grow=(3, 0.4, 1)),
        _whole("body", "14,3 11.4,2 8,3.2 7.8,10 7.6,25.6 14,26.6"),
        _row("buttons", "13.2,7 14.8,7", 5, (0, 4), contrast=0.5, line=1.6),
        _pair("collar", "11.4,1 14,3.6 12.4,6.2 9.8,3", contrast=0.3),
    ),
    "Sneaker": (
        _one("upper", "1.2,20.4 1.6,18 5.6,16.2 10,14 14,10.4 17,11.8 22,12.4 25.4,10.2 26.4,20.4"),
        _row("laces", "8.6,14.8 10.6,17.8", 3, (2.2, -1.5), contrast=0.45, line=1.3),
        _one("sole", "0.8,19.8 26.6,19.4 26.9,22.6 25.6,23 2,23", contrast=0.4),
    ),
    "Bag": (
        _whole("handle", "8,12 8.4,7 10.6,3.4 14,2.4", line=1.7, grow=(11.5, 0.6, 1.1)),
        _whole("body", "14,11 4,11 2,26 14,26"),
        _whole("flap", "14,11 4,11 4.6,16.4 14,18.6", contrast=0.2),
        _whole("clasp", "12.8,16.8 12.8,20 14,20", contrast=0.5),
    ),
    "Ankle boot": (
        _one("shaft", "13.4,4.4 25.6,3.6 25.8,16 12.4,16", grow=(14, 0.75, 1.1)),
        _one("foot", "1.4,23.4 1.6,20 5,17.4 10,15.4 13,13 25.6,14 25.8,23.4", contrast=0.08),
        _one("sole", "1,22.6 18.6,22.6 18.2,25 1.6,25", contrast=0.35),
        _one("heel", "18.4,22.4 26.2,22.4 25.6,27 19,27", contrast=0.35),
    ),
}
_PARTS = tuple(tuple(chain.from_iterable(groups)) for groups in _GARMENTS.values())
# Class index to the names of the class's parts.
PARTS = {index: tuple(dict.fromkeys(p.name for p in parts)) for index, parts in enumerate(_PARTS)}

_Y, _X = np.mgrid[:SIZE, :SIZE]
_TEXTURES = (  # how far each pixel is darkened, 0 to 1
    lambda rng: 0 * _Y,  # plain
    lambda rng: _Y // rng.uniform(1.5, 3) % 2,  # stripes across
    lambda rng: _X // rng.uniform(1.5, 3) % 2,  # stripes down
    lambda rng: 0.6 * ((_X + _Y) % 2),  # knit
    lambda rng: rng.random((SIZE, SIZE)),  # melange
    lambda rng: _Y / SIZE,  # darker at the hem
    lambda rng: 1 - _Y / SIZE,  # darker at the shoulders
)


def draw(class_index: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a garment of a class, and where each of its parts is.

    Size, place, proportions, tone and texture follow from the seed alone. Left and right are those
    of the image; shoes point left, as in Fashion-MNIST.

    Parameters
    ----------
    class_index
        0 to 9, in the order of Fashion-MNIST.
    seed
        0 or more; another seed is another garment.

    Returns
    -------
    image
        (28, 28, 1) float32 in [0, 1], garment bright on a background of 0.
    parts
        Part name, as in ``PARTS[class_index]``, to a (28, 28) bool mask: the pixels at least half
        of which show this part. No mask is empty, and no two overlap: a part that covers another
        takes its pixels.

    Raises
    ------
    TypeError, ValueError
        If ``class_index`` is not an integer, or not one from 0 to 9.
    """
    message = f"class_index must be an integer from 0 to 9; received {class_index!r}."
    if not isinstance(class_index, int | np.integer):
        raise TypeError(message)
    if class_index not in PARTS:
        raise ValueError(message)
    rng = np.random.default_rng([seed, class_index])
    tone = rng.uniform(0.3, 1)
    depth, texture = rng.uniform(0.15, 0.45), _TEXTURES[rng.integers(len(_TEXTURES))]
    fabric = 1 - depth * texture(rng)
    labels = _labels(_PARTS[class_index], rng)
    image = np.zeros((SIZE, SIZE))
    coverage = dict.fromkeys(PARTS[class_index], 0)
    for label, part in enumerate(_PARTS[class_index], start=1):
        fine = (labels == label).reshape(SIZE, FINER, SIZE, FINER)
        covered = fine.mean(axis=1, dtype=np.float32).mean(axis=2)
        shade = np.clip(tone - np.copysign(part.contrast, tone - 0.55), 0.1, 1)
        image += covered * shade * (fabric if part.contrast < TRIM else 1)
        coverage[part.name] += covered
    parts = {name: covered >= 0.5 for name, covered in coverage.items()}
    return image[..., np.newaxis].astype(np.float32), parts


def dataset(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return garments of all classes in random order, the classes equally many to within one.

    Parameters
    ----------
    count
        How many, 0 or more.
    seed
        0 or more; another seed gives other garments, to test on those not trained on.

    Returns
    -------
    images
        (count, 28, 28, 1) float32 in [0, 1].
    labels
        (count,) int32, 0 to 9.

    Raises
    ------
    ValueError
        If ``count`` or ``seed`` is negative.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count, dtype=np.int32) % len(_PARTS))
    seeds = rng.integers(2**63, size=count)
    images = [draw(label, seed)[0] for label, seed in zip(labels, seeds, strict=True)]
    return np.array(images, np.float32).reshape(count, SIZE, SIZE, 1), labels


def _labels(parts, rng):
    """Return the parts at one random size and place, enlarged: 0 background, 1 the first part."""
    width, height, growth = rng.uniform([0.8, 0.9, 0], [1.03, 1, 1])
    flare, lean, right, down = rng.uniform(-1, 1, 4) * [0.007, 0.03, 0.8, 0.5]
    drawing = Image.new("L", (SIZE * FINER, SIZE * FINER))
    pen = ImageDraw.Draw(drawing)
    for label, part in enumerate(parts, start=1):
        start, least, most = part.grow
        x, y = part.points.T
        y = start + (y - start) * (least + growth * (most - least)) - SIZE / 2
        x = (x - SIZE / 2) * width * (1 + flare * y) + lean * y
        points = (np.stack([x + right, y * height + down], axis=1) + SIZE / 2) * FINER
        if part.line:
            pen.line(points.ravel().tolist(), label, round(part.line * FINER), joint="curve")
        else:
            pen.polygon(points.ravel().tolist(), label)
    return np.asarray(drawing)
