"""Fashion-MNIST and its class names, and where the project keeps its files."""

from dataclasses import dataclass
import os
from pathlib import Path
import shutil

from cam_helpers import fetch, garments
from cam_helpers.backend import keras
from cam_helpers.photos import load_photo as load_photo
import numpy as np

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CLASSES_ZH = (
    "T卹/上衣",
    "褲子",
    "套頭衫",
    "連衣裙",
    "外套",
    "涼鞋",
    "襯衫",
    "運動鞋",
    "背包",
    "短靴",
)

FASHION_MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
CHECKOUT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Images:
    """Garments to train on and garments to test on.

    Attributes
    ----------
    train_images, test_images
        (n, 28, 28, 1) float32 in [0, 1], garment bright on black.
    train_labels, test_labels
        (n,) int32, the index into ``CLASSES``.
    source
        ``"Fashion-MNIST"`` or ``"drawn garments"``: what every figure and number is about.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str


def fashion_mnist() -> Images:
    """Return Fashion-MNIST (60,000 and 10,000 images), or drawn garments where it cannot be had.

    The four files are checked in Keras's cache, fetched where they are missing or damaged (30 MB),
    and read by ``keras.datasets``. If that fails, one printed line says why, and 6,000 and 1,000
    drawn garments take their place: look at ``source``.

    Returns
    -------
    Images
        Float images and integer labels.

    References
    ----------
    Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747. Notebook 01.
    """
    try:
        _check_cache()
        (train_images, train_labels), (test_images, test_labels) = (
            keras.datasets.fashion_mnist.load_data()
        )
    except OSError as error:
        print(f"{error} Drawn garments stand in for Fashion-MNIST.")
        return Images(
            *garments.dataset(6_000, seed=0), *garments.dataset(1_000, seed=1), "drawn garments"
        )
    return Images(
        _to_unit_range(train_images),
        train_labels.astype(np.int32),
        _to_unit_range(test_images),
        test_labels.astype(np.int32),
        "Fashion-MNIST",
    )


def folder() -> Path:
    """Return the folder with the committed weights and their training log."""
    return CHECKOUT / "data" if _in_checkout() else Path(__file__).parent / "committed"


def output_folder() -> Path:
    """Return the folder that notebooks write to, made if need be.

    The environment's ``CAM_HELPERS_OUTPUT``; else ``build/`` of the checkout; else, where the
    package is installed without one, ``build/`` of the current folder.
    """
    default = (CHECKOUT if _in_checkout() else Path.cwd()) / "build"
    chosen = Path(os.environ.get("CAM_HELPERS_OUTPUT", default))
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


def _in_checkout():
    return (CHECKOUT / "pyproject.toml").is_file()


def _to_unit_range(images):
    return images.astype(np.float32)[..., np.newaxis] / np.float32(255)


def _check_cache():
    """Leave four whole files where Keras will read them, or raise OSError with one sentence."""
    folder = fetch.folder("datasets/fashion-mnist")
    for name, md5 in FASHION_MNIST_MD5.items():
        try:
            path = fetch.whole_file(
                "datasets/fashion-mnist", name, FASHION_MNIST_URL + name, f"md5:{md5}"
            )
            if path.parent != folder:  # the cache cannot be written to: Keras will not look there
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / f"{name}.{os.getpid()}")
                os.replace(folder / f"{name}.{os.getpid()}", folder / name)
        except OSError as error:
            state = "is damaged" if (folder / name).exists() else "is missing"
            raise OSError(
                f"{name} {state} in {folder} and could not be fetched from {FASHION_MNIST_URL} "
                f"({error}): go online and restart Python, or put the file there."
            ) from error
