"""What a map costs, in forward passes of the network and in memory: ``make bench``.

Times are measured side by side in one process, in turns, because two cores shared with others give
no steady seconds. What is steady is the ratio within a turn. Memory is measured in a process of
its own for each question, on Linux.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
import gc
import json
import logging
import multiprocessing
from pathlib import Path
import sys
import tempfile
import time
import warnings

from cam_helpers import cams, compiled, data, gradients, layers, models, photos
from cam_helpers.activations import layer_activations
from cam_helpers.backend import keras, tf
from cam_helpers.dataset import explain_dataset
from cam_helpers.filters import maximize_activation
from cam_helpers.writing import whole
import distributed
import numpy as np
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
from tf_keras_vis.saliency import Saliency
from tf_keras_vis.scorecam import Scorecam
from tf_keras_vis.utils.model_modifiers import GuidedBackpropagation
from tf_keras_vis.utils.scores import CategoricalScore
from tqdm import tqdm
import zarr

GRADIENT_METHODS = (cams.grad_cam, cams.grad_cam_plus_plus, cams.layer_cam, cams.hires_cam)
PEER = "tf-keras-vis"
UNRESIZED = {"seek_penultimate_conv_layer": False, "expand_cam": False, "normalize_cam": False}
UNREDUCED = {"keepdims": True, "gradient_modifier": None, "normalize_map": False}
MASKS = 32  # that go through the network at once
CHUNK = 100  # images that do so in a dataset
WARM_UP = 10  # uses after which memory has settled


def ratios(calls: dict[str, Callable], turns: int = 9, repeats: int = 1) -> dict[str, float]:
    """Return how many times as long as the first call each call takes.

    Each turn times every call, ``repeats`` times in a row; the result is the median over the turns.
    A turn before the first compiles and is not counted. Python collects garbage between turns only.
    """
    seconds = np.empty((turns + 1, len(calls)))
    gc.collect()
    gc.freeze()  # so that collecting looks at little
    gc.disable()
    try:
        for turn in tqdm(range(turns + 1), unit="turn", leave=False, disable=None):
            gc.collect()
            for column, call in enumerate(calls.values()):
                started = time.perf_counter()
                for _ in range(repeats if turn else 1):
                    call()
                seconds[turn, column] = time.perf_counter() - started
    finally:
        gc.enable()
        gc.unfreeze()
    medians = np.median(seconds[1:] / seconds[1:, :1], axis=0)
    return dict(zip(calls, medians.tolist(), strict=True))


def forward_pass(model: keras.Model) -> Callable:
    """Return the model's prediction as one graph: what every time is measured in."""
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]))
    return tf.function(lambda batch: model(batch, training=False), input_signature=[spec])


def pass_and_back(model: keras.Model) -> Callable:
    """Return the gradient of a score at the pixels as one graph: what its rules are measured in."""
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]))

    def run(batch):
        return tf.gradients(model(batch, training=False)[:, 0], batch)[0]

    return tf.function(run, input_signature=[spec])


def gradient_calls(model: keras.Model, layer: str, images: np.ndarray) -> dict[str, Callable]:
    """Return a forward pass and the methods that add one pass back, ours and the peer's."""
    forward, batch = forward_pass(model), tf.constant(images)
    calls = {"forward pass": lambda: forward(batch).numpy()}
    for method in GRADIENT_METHODS:
        calls[method.__name__] = partial(method, model, images, 0, layer=layer)
    for kind in (Gradcam, GradcamPlusPlus):
        calls[f"{PEER} {kind.__name__}"] = _peer(kind, model, layer, images)
    return calls


def pixel_calls(model: keras.Model, images: np.ndarray) -> dict[str, Callable]:
    """Return a pass forward and back to the pixels and the methods that are one, ours and theirs.

    The peer's guided backpropagation is one of networks whose ReLUs are activations of layers; of
    others, MobileNet's, it is its saliency over again.
    """
    run, batch = pass_and_back(model), tf.constant(images)
    calls = {"forward and backward pass": lambda: run(batch).numpy()}
    for method in (gradients.saliency, gradients.guided_backprop):
        calls[method.__name__] = partial(method, model, images, 0)
    score = CategoricalScore([0] * len(images))
    for name, modifier in (("Saliency", None), ("GuidedBackpropagation", GuidedBackpropagation())):
        theirs = Saliency(model, model_modifier=modifier)
        calls[f"{PEER} {name}"] = lambda theirs=theirs: np.asarray(
            theirs(score, images, **UNREDUCED)
        )
    return calls


def layer_calls(model: keras.Model, images: np.ndarray) -> dict[str, Callable]:
    """Return a forward pass, and what five layers put out, from the first to the last with maps."""
    forward, batch, paths = forward_pass(model), tf.constant(images), layers.map_layers(model)
    five = [paths[i] for i in np.linspace(0, len(paths) - 1, 5).round().astype(int)]
    return {
        "forward pass": lambda: forward(batch).numpy(),
        "layer_activations of 5 layers": partial(layer_activations, model, images, five),
    }


def filter_calls(
    model: keras.Model, layer: str, maps: int = 16, steps: int = 20
) -> dict[str, Callable]:
    """Return pictures of so many maps, drawn at once and one by one."""

    def draw(which):
        return maximize_activation(model, layer, which, steps=steps, batch_size=maps)

    return {
        f"maximize_activation of {maps} maps": lambda: draw(range(maps)),
        f"{maps} runs of one map": lambda: np.concatenate([draw([each]) for each in range(maps)]),
    }


def score_cam_calls(
    model: keras.Model, layer: str, image: np.ndarray, maps: int
) -> dict[str, Callable]:
    """Return so many forward passes, and Score-CAM of so many maps, ours and the peer's.

    ``image`` is a batch of one. Score-CAM adds one pass, that makes the maps.
    """
    forward = forward_pass(model)
    batches = [tf.constant(image.repeat(maps, 0)[part]) for part in compiled.parts(maps, MASKS)]
    own = {"layer": layer, "max_maps": maps, "batch_size": MASKS}
    return {
        "forward passes": lambda: [forward(batch).numpy() for batch in batches],
        "score_cam": partial(cams.score_cam, model, image, 0, **own),
        f"{PEER} Scorecam": _peer(Scorecam, model, layer, image, max_N=maps, batch_size=MASKS),
    }


def into_a_store(model: keras.Model, images: np.ndarray, **options) -> None:
    """Map images into a store, and throw it away."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"batch_size": CHUNK, "progress": False, **options}
        explain_dataset(model, images, "Grad-CAM", f"{folder}/maps.zarr", **options)


def dataset_calls(model: keras.Model, images: np.ndarray) -> dict[str, Callable]:
    """Return the forward passes of many images, and their maps in a store."""
    forward = forward_pass(model)
    batches = [tf.constant(images[part]) for part in compiled.parts(len(images), CHUNK)]
    return {
        "forward passes": lambda: [forward(batch).numpy() for batch in batches],
        "explain_dataset": partial(into_a_store, model, images),
    }


def on_clusters(model: keras.Model, images: np.ndarray, turns: int = 3) -> dict[str, float]:
    """Return how long two workers of one thread take, in times of what one of them takes.

    The batches are large, as giving one out and writing what comes back takes some milliseconds of
    the same two cores. Only one cluster is there at a time: a worker that waits takes its share,
    too.
    """
    seconds = [[_on_a_cluster(model, images, count) for count in (1, 2)] for _ in range(turns)]
    ratio = float(np.median([two / one for one, two in seconds]))
    return {"one worker": 1.0, "two workers": ratio}


def _on_a_cluster(model, images, workers):
    """The seconds of a call, after a first one in which the workers load their libraries."""
    quiet = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    size = 500
    with (
        distributed.LocalCluster(n_workers=workers, **quiet) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(workers)
        into_a_store(model, images[: 4 * size], client=client, batch_size=size)
        started = time.perf_counter()
        into_a_store(model, images, client=client, batch_size=size)
        return time.perf_counter() - started


def speed() -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the ratios on each network: batch size by batch size, of Score-CAM, of filters."""
    fashion = models.to_logits(models.load_fashion_cnn())
    fashion = models.Backbone("Fashion-MNIST network", fashion, "trained", (28, 28), "final")
    for network, sizes, turns, maps in (
        (models.load_backbone("MobileNet", fallback=()), {1: 4, 8: 1}, 15, 64),
        (models.load_backbone("VGG16", weights=None), {1: 1}, 7, 16),  # as fast as with real ones
        (fashion, {1: 20, 32: 2}, 15, 128),
    ):
        name, model, layer = f"{network.name} ({network.weights})", network.model, network.layer
        images = data.fashion_mnist().test_images if network is fashion else _cat(network)
        for size, repeats in sizes.items():
            batch = np.resize(images, (size, *images.shape[1:]))
            for what, calls in (
                ("maps", gradient_calls(model, layer, batch)),
                ("pixels", pixel_calls(model, batch)),
                ("layers", layer_calls(model, batch)),
            ):
                yield f"{name}, batch {size}, {what}", _apart(calls, turns, repeats)
        calls = score_cam_calls(model, layer, images[:1], maps)
        if network.name == "VGG16":
            del calls[f"{PEER} Scorecam"]  # would take minutes
        yield f"{name}, {maps} maps, at most {MASKS} at once", _apart(calls, 7)
    yield f"{name}, filters", ratios(filter_calls(model, layer), 5)
    images = data.fashion_mnist().test_images
    yield f"{name}, {len(images)} maps in a store", ratios(dataset_calls(model, images), 5)
    images = data.fashion_mnist().train_images
    yield f"{name}, {len(images)} maps by a cluster", on_clusters(model, images)


def peak_of_score_cam(maps: int) -> dict[str, float]:
    """Return the MiB that this process took at most, also beyond those for one batch of maps."""
    backbone, peaks = models.load_backbone("MobileNet", fallback=()), []
    for count in (MASKS, maps):
        cams.score_cam(backbone.model, _cat(backbone), 0, max_maps=count, batch_size=MASKS)
        peaks.append(memory("VmHWM"))
    return {"at most": peaks[1], "beyond one batch": peaks[1] - peaks[0]}


def peak_of_a_dataset(count: int) -> dict[str, float]:
    """Return the MiB that this process took at most to map so many images from disk to disk."""
    model = models.to_logits(models.load_fashion_cnn())
    with tempfile.TemporaryDirectory() as folder:
        shape, chunks = (count, 28, 28, 1), (CHUNK, 28, 28, 1)
        path = f"{folder}/images.zarr"
        images = zarr.create_array(path, shape=shape, chunks=chunks, dtype="float32")
        rng = np.random.default_rng(0)
        for part in compiled.parts(count, CHUNK):
            images[part] = rng.random((CHUNK, 28, 28, 1), np.float32)
        into_a_store(model, path)
    return {"at most": memory("VmHWM")}


def growth(use: Callable, times: int, new_model: bool) -> dict[str, float]:
    """Return the MiB that stay taken after using a model so often, or as many models once."""
    model = None
    for turn in range(WARM_UP + times):
        if turn == WARM_UP:
            before = memory("VmRSS")
        model = model or models.to_logits(models.fashion_cnn())
        use(model)
        if new_model:
            model = None
            gc.collect()
    return {"growth": memory("VmRSS") - before}


def explain(model: keras.Model) -> None:
    """Explain an image with a method of either kind."""
    image = np.random.default_rng(0).random((1, *model.input_shape[1:]), np.float32)
    cams.grad_cam(model, image, 0)
    cams.score_cam(model, image, 0, max_maps=4)


def predict(model: keras.Model) -> None:
    """Call a model through a ``tf.function`` of its own: what of the growth is TensorFlow's."""
    forward_pass(model).get_concrete_function()(tf.zeros((1, *model.input_shape[1:])))


def memory(field: str) -> float:
    """Return the MiB that this process takes (``"VmRSS"``) or took at most (``"VmHWM"``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


QUESTIONS = {
    "score_cam, 128 maps": (peak_of_score_cam, 128),
    "score_cam, 512 maps": (peak_of_score_cam, 512),
    "1,000 images into a store": (peak_of_a_dataset, 1_000),
    "10,000 images into a store": (peak_of_a_dataset, 10_000),
    "one model explained 200 times": (growth, explain, 200, False),
    "50 models explained and dropped": (growth, explain, 50, True),
    "50 models called and dropped": (growth, predict, 50, True),
}


def main() -> None:
    keras.utils.disable_interactive_logging()  # tf-keras-vis predicts with a progress bar
    warnings.filterwarnings("ignore", "The structure of `inputs`")  # so it does, with a list
    result = {"ratios": {}, "MiB": {}}
    for name, row in speed():
        result["ratios"][name] = row
        print(name, *(f"  {each:32}{ratio:7.2f} ×" for each, ratio in row.items()), sep="\n")
    if sys.platform == "linux":
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, spawn, max_tasks_per_child=1) as pool:
            asked = {name: pool.submit(*question) for name, question in QUESTIONS.items()}
            result["MiB"] = {name: answer.result() for name, answer in asked.items()}
    for name, answer in result["MiB"].items():
        print(f"{name:34}", *(f"{what} {mib:.1f} MiB" for what, mib in answer.items()), sep="  ")
    with whole(data.output_folder() / "bench.json") as file:
        file.write(json.dumps(result, indent=1).encode() + b"\n")


def _apart(calls, turns, repeats=1):
    """Ratios, the peer's in turns of their own: what it leaves behind slows the next call down."""
    base, *_ = calls
    ours = {name: call for name, call in calls.items() if PEER not in name}
    peer = {name: call for name, call in calls.items() if PEER in name or name == base}
    return ratios(ours, turns, repeats) | (ratios(peer, 7, repeats) if len(peer) > 1 else {})


def _peer(kind, model, layer, images, **options):
    explain_with, options = kind(model), {**UNRESIZED, **options, "penultimate_layer": layer}
    return lambda: np.asarray(explain_with(CategoricalScore([0] * len(images)), images, **options))


def _cat(backbone):
    return backbone.preprocess(photos.fit(photos.sample_photo("cat"), backbone.input_size)[None])


if __name__ == "__main__":
    main()
