"""Does the map depend on what the network has learned? Undo the learning, and see it change."""

from collections.abc import Iterator
import random

from cam_helpers import layers
from cam_helpers.arrays import as_numbers, check_heatmaps
from cam_helpers.backend import keras
from cam_helpers.pictures import stretch
import numpy as np
from scipy.stats import rankdata
from skimage.metrics import structural_similarity


def randomize_layers(model: keras.Model, seed: int = 0) -> Iterator[tuple[str, keras.Model]]:
    """Yield a copy of a model in which one layer more, from the output down, has lost its training.

    A layer gets new initial weights, and batch normalisation its initial statistics too; those of
    a ``Normalization`` describe the data and stay. A map that explains the trained network must
    change on the way.

    Parameters
    ----------
    model
        Functional or ``Sequential``, also with models inside. It stays as it is. Layers of your
        own need a ``get_config``.
    seed
        Of the new weights.

    Yields
    ------
    tuple of str and keras.Model
        The path of the layer just randomised, and the copy. It is the same copy each time, so that
        nothing is compiled twice: use it before going on. A layer called twice counts as called
        last.

    Raises
    ------
    ValueError
        If the model has no graph.

    References
    ----------
    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, section 4.1, cascading randomisation.
    Notebook 09.
    """
    copy = _untrained(model, seed)
    steps = []
    for (path, layer), (_, trained) in zip(_weighted(copy), _weighted(model), strict=True):
        steps.append((path, layer, layer.get_weights()))
        layer.set_weights(trained.get_weights())
    for path, layer, initial in reversed(steps):
        layer.set_weights(initial)
        yield path, copy


def rank_correlation(heatmaps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how alike two maps of each image order their cells: Spearman's correlation.

    Parameters
    ----------
    heatmaps, others
        (n, ...) float of the same shape, at least one map; equal values share their rank.

    Returns
    -------
    np.ndarray
        (n,) float64 from -1 to 1; NaN where a map is the same everywhere and has no order.

    Raises
    ------
    ValueError
        If the shapes differ, or a value is not finite.

    References
    ----------
    Adebayo et al. 2018, https://arxiv.org/abs/1810.03292, section 4. Notebook 09.
    """
    pair = _checked_pair(heatmaps, others)
    ranks = [rankdata(each.reshape(len(each), -1), axis=1) for each in pair]
    off = [each - each.mean(axis=1, keepdims=True) for each in ranks]
    lengths = np.sqrt((off[0] ** 2).sum(axis=1) * (off[1] ** 2).sum(axis=1))
    products = (off[0] * off[1]).sum(axis=1)
    return np.divide(products, lengths, out=np.full(len(lengths), np.nan), where=lengths > 0)


def ssim(heatmaps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the structural similarity of two maps of each image, by scikit-image.

    Each map without what is below 0, divided by its maximum: compare maps of evidence.

    Parameters
    ----------
    heatmaps, others
        (n, height, width) float of the same shape, at least 7 pixels high and wide.

    Returns
    -------
    np.ndarray
        (n,) float64 from -1 to 1; 1 for equal maps.

    Raises
    ------
    ValueError
        If the shapes differ or are too small, or a value is not finite.

    References
    ----------
    Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861. Notebook 09.
    """
    pair = _checked_pair(heatmaps, others)
    if pair[0].ndim != 3 or min(pair[0].shape[1:]) < 7:
        raise ValueError(
            "expected heatmaps (n, height, width) of at least 7 × 7 pixels, received "
            f"{pair[0].shape}: place them on the image first."
        )
    alike = zip(*(stretch(np.maximum(each, 0)) for each in pair), strict=True)
    return np.array([structural_similarity(*each, data_range=1) for each in alike])


def _checked_pair(heatmaps, others):
    pair = [as_numbers("heatmaps", each, np.float64) for each in (heatmaps, others)]
    if pair[0].shape != pair[1].shape or pair[0].ndim < 2 or not len(pair[0]):
        raise ValueError(
            f"expected two batches of maps (n, ...) of the same shape, received {pair[0].shape} "
            f"and {pair[1].shape}."
        )
    for each in pair:
        check_heatmaps(each)
    return pair


def _untrained(model, seed):
    """A copy of a model's graph with initial weights that follow from the seed."""
    graph = layers.graph_of(model)
    uncompiled = keras.Model(graph.input, graph.output, name=model.name)
    state = random.getstate()
    # Whence Keras's initializers draw their seeds. Not the stream of random.seed(seed): a network
    # built after keras.utils.set_random_seed(seed) would get back what its training began with.
    random.seed(f"randomize_layers {seed}")
    try:
        return keras.models.clone_model(uncompiled, clone_function=_anew, recursive=True)
    finally:
        random.setstate(state)


def _anew(operation):
    if isinstance(operation, keras.layers.Lambda):
        return operation  # Keras would refuse its function
    config = operation.get_config()
    for value in config.values():
        if isinstance(value, dict) and "seed" in value.get("config", {}):
            value["config"]["seed"] = None  # an initializer would give its first weights again
    anew = type(operation).from_config(config)
    if isinstance(operation, keras.layers.Normalization) and operation.weights:
        anew.build(operation.get_build_config()["input_shape"])
        anew.set_weights(operation.get_weights())  # of the data, not of the training
        anew.finalize_state()
    return anew


def _is_trained(operation):
    weights = getattr(operation, "weights", [])  # operations of keras.ops have none
    return bool(weights) and not isinstance(operation, keras.layers.Normalization)


def _weighted(model):
    """Path and layer of each innermost layer that is trained, once, in order of the last calls."""
    found = {}
    for node in layers.nodes(model):
        operation = node.operation
        if layers.is_nested(operation):
            inside = ((f"{operation.name}/{path}", layer) for path, layer in _weighted(operation))
        else:
            inside = [(operation.name, operation)] if _is_trained(operation) else []
        for path, layer in inside:
            found.pop(id(layer), None)
            found[id(layer)] = path, layer
    return list(found.values())
