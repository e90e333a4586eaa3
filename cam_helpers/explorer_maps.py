"""The explorer's maps, by photo, class, layer and method: kept, and compiled ahead."""

import atexit
from collections.abc import Mapping, Sequence
import threading
from typing import NamedTuple

from cam_helpers import backbones, cams, compiled, explaining, layers
from cam_helpers.backbones import Backbone
from cam_helpers.methods import AT_A_LAYER, heatmaps
from cam_helpers.networks import Network, placement_at
from cam_helpers.photos import load_photo
from cam_helpers.progress import Progress
import numpy as np

SLOW = {  # methods of many passes through the network, and the fewest that they do with
    "Score-CAM": {"max_maps": 1},
    "SmoothGrad": {"samples": 1},
    "integrated gradients": {"steps": 1},
}
A_PASS = 8  # images: so few that a stop is heard within a tenth of a second
KEPT = 100  # maps, of 0.2 MB each, and photos, of 1.2 MB
AHEAD = 48  # functions compiled ahead, of 9 MB each
NEAR = 8  # layers prepared around the one chosen

_COMPILING = threading.Lock()  # one thread at a time
atexit.register(_COMPILING.acquire, timeout=10)  # TensorFlow is not left in the middle of it


class Choice(NamedTuple):
    """What a map is of; ``layer`` is None for a method at the pixels."""

    photo: str
    class_index: int
    layer: str | None
    method: str


class Seen(NamedTuple):
    """A photo as the network sees it.

    Attributes
    ----------
    image
        (height, width, 3) float32 RGB, 0 to 255.
    images
        The same as the network wants it, a batch of one.
    probabilities
        (classes,) float.
    """

    image: np.ndarray
    images: np.ndarray
    probabilities: np.ndarray


class Maps:
    """The maps of a network for photos by name; ``methods`` are those that it is fit for."""

    def __init__(self, network: Network, sources: Mapping):
        self.network, self.sources = network, sources
        self.layers = layers.map_layers(network.model)
        self._seen, self._maps, self._ready = {}, {}, set()
        noise = np.random.default_rng(0).uniform(0, 255, (1, *network.size, 3))
        self._noise = network.prepare(noise.astype(np.float32))
        with _COMPILING:
            self.methods = explaining.find_methods("all", network)
            compiled.scores(network.model)
        tried = {*explaining.KINDS.values()}
        self._ready |= {(layer_for(kind, network.layer), kind) for kind in tried}

    def seen(self, photo: str) -> Seen:
        """Return a photo as the network sees it; OSError or ValueError if it cannot be loaded."""
        return _kept(self._seen, photo, lambda: self._look_at(photo))

    def heatmap(self, choice: Choice, progress: Progress = False) -> np.ndarray:
        """Return a map (height, width) as ``methods.heatmaps`` does.

        ``progress`` is that of a slow method. ValueError as ``methods.heatmaps``.
        """

        def make():
            self.prepare(choice.layer, choice.method)
            slow = {"batch_size": A_PASS, "progress": progress}
            options = slow if choice.method in SLOW else {}
            return self._make(choice, self.seen(choice.photo).images, **options)

        return _kept(self._maps, choice, make)

    def is_ready(self, layer: str | None, method: str) -> bool:
        """Return whether all is compiled that a method needs at a layer."""
        return (layer, method) in self._ready

    def prepare(self, layer: str | None, method: str) -> None:
        """Compile what a method needs at a layer, once; ValueError as ``methods.heatmaps``."""
        if self.is_ready(layer, method):
            return
        with _COMPILING:
            if self.is_ready(layer, method):  # by now
                return
            try:
                self._make(Choice("", 0, layer, method), self._noise, **SLOW.get(method, {}))
            finally:
                self._ready.add((layer, method))  # or refused, as it will be again

    def to_prepare(self, layer: str, chosen: Sequence[str]) -> tuple[str | None, str] | None:
        """Return layer and method of what to compile next, nearest to the choice; None if enough.

        First come all methods at the layer, then those chosen at the layers around it.
        """
        at = self.layers.index(layer)
        near = sorted(self.layers, key=lambda each: abs(self.layers.index(each) - at))[:NEAR]
        pairs = [(layer, method) for method in self.methods]
        pairs += [(each, method) for each in near for method in chosen if method in self.methods]
        steps = [(layer_for(method, each), method) for each, method in pairs]
        left = (step for step in steps if not self.is_ready(*step))
        return next(left, None) if len(self._ready) < AHEAD else None

    def about(self, choice: Choice) -> list[str]:
        """Return in words what a map is of: class, layer, photo."""
        words = [self.class_of(choice.class_index, choice.photo), f"photo {choice.photo}"]
        if choice.layer:
            resized = self._placement(choice.layer) == "resize"
            unknown = " (resized: where its cells look is unknown)" if resized else ""
            words.insert(1, f"layer {choice.layer}{unknown}")
        return words

    def class_of(self, index: int, photo: str) -> str:
        """Return a class in words, with its probability in a photo."""
        return in_words(self.network, index, self.seen(photo).probabilities)

    def _look_at(self, photo):
        seen = explaining.explain(self.network, load_photo(self.sources[photo]), [])
        images = self.network.prepare(seen.image[np.newaxis])
        return Seen(seen.image, images, seen.probabilities)

    def _make(self, choice, images, **options):
        return heatmaps(
            choice.method,
            self.network.model,
            images,
            choice.class_index,
            layer=choice.layer,
            placement=self._placement(choice.layer),
            **options,
        )[0]

    def _placement(self, layer):
        return placement_at(self.network.model, layer, self.network.size)


def network_of(backbone: Backbone, layer: str | None = None) -> Network:
    """Return a backbone as a network; ``layer`` None for the backbone's own."""
    known = backbones.labels()
    layer = cams.layer_path(backbone.model, layer or backbone.layer)
    return Network(
        backbone.name + ("" if backbone.weights == "ImageNet" else f" ({backbone.weights})"),
        backbone.model,
        backbone.input_size,
        backbone.preprocess,
        [known.get(k, f"class {k}") for k in range(backbone.model.output_shape[-1])],
        layer,
        placement_at(backbone.model, layer, backbone.input_size),
    )


def in_words(network: Network, index: int, probabilities: np.ndarray) -> str:
    """Return a class and its probability: ``"tiger cat (0.62)"``."""
    probability = probabilities[index]
    shown = f"{probability:.2f}" if probability >= 0.01 else "under 0.01"
    return f"{network.labels[index].replace('_', ' ')} ({shown})"


def layer_for(method: str, layer: str) -> str | None:
    """Return the layer that a method is asked for: None for one at the pixels."""
    return layer if method in AT_A_LAYER else None


def _kept(cache, key, make):
    value = cache.pop(key, None)
    if value is None:
        value = make()
    cache[key] = value  # the newest
    while len(cache) > KEPT:
        cache.pop(next(iter(cache)), None)
    return value
