"""Networks trained on ImageNet, with what an explanation needs to know about each."""

from dataclasses import dataclass
import json
from pathlib import Path
import random
import warnings

from cam_helpers import fetch
from cam_helpers.backend import keras
from cam_helpers.layers import explainable_layer
import numpy as np

WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
LABELS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/"
LABELS = ("imagenet_class_index.json", "md5:c2c37ea517e94d9795004a39431a14cb")

_END = "_weights_tf_dim_ordering_tf_kernels.h5"
# Keras's module, which is also the folder below WEIGHTS_URL; the file; its hash, None if Keras has
# none. The one of "MobileNet" is that of the served file.
NETWORKS = {
    "VGG16": ("vgg16", f"vgg16{_END}", "md5:64373286793e3c8b2b4e3219cbf3544b"),
    "ResNet50": ("resnet", f"resnet50{_END}", "md5:2cb95161c43110f7111970584f804107"),
    "MobileNet": ("mobilenet", "mobilenet_7_5_224_tf.h5", "md5:99674eb21ffb7ceee542db7887d90d69"),
    "MobileNet-1.0": ("mobilenet", "mobilenet_1_0_224_tf.h5", None),
    "MobileNetV2": ("mobilenet_v2", f"mobilenet_v2{_END[:-3]}_1.0_224.h5", None),
    "EfficientNetV2B0": (
        "efficientnet_v2",
        "efficientnetv2-b0.h5",
        "md5:21ecbf6da12460d5c40bb2f29ceb2188",
    ),
    "ConvNeXtTiny": (
        "convnext",
        "convnext_tiny.h5",
        "sha256:8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
    ),
    "Xception": ("xception", f"xception{_END}", "md5:0a58e3b7378bc2990ea3b43d5981f1f6"),
    "DenseNet121": ("densenet", f"densenet121{_END}", "md5:9d60b8095a5708f2dcce2bca79d332c7"),
    "InceptionV3": ("inception_v3", f"inception_v3{_END}", "md5:9a0d58056eeedaa3f26cb7ebd46da564"),
}


@dataclass(frozen=True)
class Backbone:
    """A network trained on ImageNet, from :func:`load_backbone`.

    Attributes
    ----------
    name
        What the network is; another one than asked for where that one stands in.
    model
        Input as :meth:`preprocess` returns it, output (batch, 1000) logits.
    weights
        ``"ImageNet"``, ``"random, seed 0"``, or the name of the weights file.
    input_size
        Height and width in pixels.
    layer
        The layer to explain, as :func:`layers.explainable_layer` finds it.
    """

    name: str
    model: keras.Model
    weights: str
    input_size: tuple[int, int]
    layer: str

    def preprocess(self, images: np.ndarray) -> np.ndarray:
        """Return (batch, height, width, 3) float32 as the network wants it, always a copy.

        For VGG16 and ResNet50 that is blue, green and red minus their ImageNet means, in units of
        0 to 255. ``images`` is (batch, height, width, 3) RGB of the input size, uint8 or float,
        0 to 255; ValueError for anything else, also for values that seem to be in [0, 1].
        """
        images, (height, width) = np.asarray(images), self.input_size
        if images.shape[1:] != (height, width, 3) or not len(images):
            raise ValueError(
                f"expected RGB images (batch, {height}, {width}, 3), received {images.shape}: "
                "photos.fit(photo, backbone.input_size)[np.newaxis] makes them of a photo."
            )
        if images.dtype.kind not in "uif":
            raise ValueError(f"expected uint8 or float images, received {images.dtype}: convert.")
        low, high = images.min(), images.max()
        if not (low >= -1e-3 and high <= 255 + 1e-3):  # resizing may give 255.00002
            raise ValueError(
                f"expected values from 0 to 255, received {low:g} to {high:g}: "
                "give the images as they were loaded."
            )
        if images.dtype.kind == "f" and 0 < high <= 1:
            raise ValueError(
                f"expected values from 0 to 255, received {low:g} to {high:g}, which seem to be "
                "scaled already: multiply them by 255."
            )
        module = getattr(keras.applications, NETWORKS[self.name][0])
        return np.ascontiguousarray(module.preprocess_input(images.astype(np.float32)))

    def decode(self, logits: np.ndarray, top: int = 5) -> list[list[tuple[str, float]]]:
        """Return for each image its ``top`` likeliest classes as (label, probability).

        ``logits`` is (batch, 1000) float, the model's output; ValueError for anything else, also
        for probabilities. The label is ``"class 281"`` where Keras's list cannot be had.
        """
        logits, classes = np.asarray(logits, np.float64), self.model.output_shape[-1]
        if logits.ndim != 2 or logits.shape[1] != classes or not np.isfinite(logits).all():
            raise ValueError(
                f"expected finite logits (batch, {classes}), received {logits.dtype} "
                f"{logits.shape}: give the model's output for a batch of images."
            )
        if len(logits) and logits.min() >= 0 and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
            raise ValueError("expected logits, received probabilities: leave the softmax out.")
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = odds / odds.sum(axis=1, keepdims=True)
        order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        known = labels()
        return [
            [(known.get(int(k), f"class {k}"), float(row[k])) for k in likeliest]
            for row, likeliest in zip(probabilities, order, strict=True)
        ]


def load_backbone(
    name: str,
    weights: str | Path | None = "imagenet",
    fallback: tuple[str, ...] = ("MobileNet",),
) -> Backbone:
    """Return a network with its ImageNet weights or, said in one line, what stands in for it.

    The weights come from Keras's cache, and are fetched where they are missing or damaged. If they
    cannot be had, the first network of ``fallback`` whose weights can stands in; if there is none,
    the network asked for gets random weights. A host that did not answer is not asked again: once
    online, restart Python.

    Parameters
    ----------
    name
        One of ``NETWORKS``. ``"MobileNet"`` has alpha 0.75, ``"MobileNet-1.0"`` alpha 1.
    weights
        ``"imagenet"``, the path of a ``.weights.h5`` or ``.h5`` file with weights of this very
        network, or None for random ones without complaint, each time the same.
    fallback
        Networks to try in turn.

    Raises
    ------
    ValueError
        For an unknown name, or a file that does not hold this network's weights.
    FileNotFoundError
        If ``weights`` is a path where no file is.

    References
    ----------
    https://keras.io/api/applications. Notebook 03.
    """
    fallback = (fallback,) if isinstance(fallback, str) else fallback
    for each in (name, *fallback):
        if each not in NETWORKS:
            raise ValueError(f"expected one of {', '.join(NETWORKS)}, received {each!r}.")
    if weights is None:
        return _load(name, None, "random, seed 0")
    if weights != "imagenet":
        return _load(name, Path(weights), Path(weights).name)
    reasons = []
    for candidate in dict.fromkeys((name, *fallback)):
        try:
            backbone = _load(candidate, _imagenet_file(candidate), "ImageNet")
        except (OSError, ValueError) as error:
            reasons.append(str(error).rstrip("."))
            continue
        if reasons:
            _say(name, reasons[0], f"{candidate} stands in.")
        return backbone
    _say(name, reasons[0], "random weights stand in, so the maps mean nothing.")
    return _load(name, None, "random, seed 0")


def labels() -> dict[int, str]:
    """Return ImageNet's label of each class, as Keras lists it; empty where it cannot be had."""
    name, known_hash = LABELS
    try:
        path = fetch.whole_file("models", name, LABELS_URL + name, known_hash, bar=False)
    except OSError:
        return {}
    listed = json.loads(path.read_text("utf-8"))
    return {int(index): label for index, (_, label) in listed.items()}


def _say(name, reason, instead):
    print(f"{name}'s ImageNet weights could not be had ({reason}): {instead}")


def _load(name, path, weights):
    if path is not None and not path.is_file():
        raise FileNotFoundError(
            f"expected 'imagenet', None or a weights file, received '{path}', which is no file."
        )
    build = getattr(keras.applications, name.partition("-")[0])
    options = {"alpha": 0.75} if name == "MobileNet" else {}
    state = random.getstate()
    random.seed(0)  # whence Keras's initializers draw their seeds
    try:
        with warnings.catch_warnings(action="ignore"):  # Keras warns on the way to its error
            model = build(weights=path and str(path), classifier_activation=None, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"expected weights of {name}, received {path}, which does not hold them: "
            "name the network that they are of, or give another file."
        ) from error
    finally:
        random.setstate(state)
    return Backbone(name, model, weights, model.input_shape[1:3], explainable_layer(model))


def _imagenet_file(name):
    module, file, known_hash = NETWORKS[name]
    what = f"{name}'s ImageNet weights"
    try:
        return fetch.whole_file("models", file, f"{WEIGHTS_URL}{module}/{file}", known_hash, what)
    except OSError as error:
        path = fetch.folder("models") / file
        raise OSError(f"{path} is damaged, and {error}" if path.exists() else error) from error
