"""What a filter wants to see: pictures that drive a map of a layer, or a class score, up."""

from collections.abc import Callable, Sequence

from cam_helpers import compiled, layers
from cam_helpers.arrays import brief, check_count, check_number, check_range
from cam_helpers.backend import keras, tf
from cam_helpers.checks import (
    check_finite,
    check_input,
    check_logits,
    check_maps,
    check_model,
    check_size,
    check_weights,
)
from cam_helpers.once import once
import numpy as np
from tqdm import tqdm

AT_ONCE = 10  # steps between two moves of the progress bar
GREY = 0.5


def maximize_activation(
    model: keras.Model,
    layer: str | None,
    maps: int | Sequence[int],
    *,
    steps: int = 60,
    step_size: float = 0.05,
    jitter: int = 4,
    total_variation: float = 0.2,
    l2: float = 0.1,
    seed: int = 0,
    preprocess: Callable | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> np.ndarray:
    r"""Return a picture for each map that drives the mean of the map up, before its ReLU.

    Gradient ascent from grey noise, the same for every map:
    :math:`u \leftarrow clip(u + \eta (\hat g - \lambda_{TV} \nabla TV(u) - \lambda_2 (u - 1/2)))`,
    with the gradient g of the map's mean, divided by its root mean square over the picture.

    Parameters
    ----------
    model
        Functional or ``Sequential``, one input (batch, height, width, 1 or 3).
    layer
        Name, or path into nested models. None for the class scores, which must be logits.
    maps
        Which maps of the layer, or which classes.
    steps, step_size
        How many steps, and how far each goes: the root mean square of its change, in units of the
        picture's values, without the regularisers.
    jitter
        Each step shows the network the picture moved by up to so many pixels in both directions;
        what leaves at one side comes in at the other. 0 for no move.
    total_variation
        Weight of the differences between neighbouring pixels. 0 for none.
    l2
        Weight of the pull to grey. 0 for none.
    seed
        Of the noise and the moves.
    preprocess
        Makes of RGB images (batch, height, width, 3), 0 to 255, what the model takes, affine in the
        pixel, such as ``backbone.preprocess``. None for a model that takes 0 to 1 as it is.
    size
        Height and width in pixels, for a model that takes any.
    batch_size
        Pictures that are drawn at once.
    progress
        Show a progress bar.

    Returns
    -------
    np.ndarray
        (maps, height, width, channels) float32 RGB or grey in [0, 1], whole, nothing cropped. A map
        that no pixel can change keeps its noise. The same request gives the same bits. On another
        computer, or in another batch, rounding differs, and many steps magnify that.

    Raises
    ------
    ValueError
        If layer, maps, size or preprocessing do not fit the model, if a number is out of range, or
        if class scores are no logits.

    References
    ----------
    Erhan et al. 2009, *Visualizing Higher-Layer Features of a Deep Network*; Olah et al. 2017,
    https://distill.pub/2017/feature-visualization. Notebook 07.
    """
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    for name, value in {
        "step_size": step_size,
        "total_variation": total_variation,
        "l2": l2,
    }.items():
        check_number(name, value)
        check_range(name, np.array(value))
    if not isinstance(jitter, int | np.integer) or not 0 <= jitter < 2**30:
        raise ValueError(f"expected jitter in whole pixels, 0 or more, received {brief(jitter)}.")
    shape = _picture_shape(model, size)
    path, count = _layer_and_maps(model, layer)
    check_size(model, (None, *shape), [path] if path else [])
    maps = check_maps(maps, count, layer or "class scores")
    colours, offset = _affine(preprocess, shape)
    rng, jitter = np.random.default_rng(seed), int(jitter)
    noise = rng.uniform(GREY - 0.1, GREY + 0.1, shape).astype(np.float32)
    moves = rng.integers(-jitter, jitter, (steps, 2), np.int32, endpoint=True)
    ascend = once(model, ("ascend", path), lambda: _ascent(model, path))
    parts, pictures = list(compiled.parts(len(maps), batch_size)), []
    with tqdm(total=len(parts) * steps, desc="steps", disable=not progress, leave=False) as bar:
        for part in parts:
            u = tf.repeat(noise[np.newaxis], len(maps[part]), axis=0)
            for some in compiled.parts(steps, AT_ONCE if progress else steps):
                weights = (step_size, total_variation, l2)
                u = ascend(u, maps[part], moves[some], colours, offset, np.float32(weights))
                bar.update(len(moves[some]))
            pictures.append(u.numpy())
    return check_finite(model, np.concatenate(pictures))


def _ascent(model, path):
    """Compile (pictures, maps, moves, colours, offset, weights) -> pictures some steps later."""
    network = layers.cut(model, [path] if path else [], scores=path is None)
    pictures = (None, *network.inputs[0].shape[1:])
    shapes = [pictures, (None,), (None, 2), (pictures[-1],) * 2, (pictures[-1],), (3,)]
    kinds = [tf.float32, tf.int32, tf.int32, tf.float32, tf.float32, tf.float32]

    @tf.function(autograph=False, input_signature=list(map(tf.TensorSpec, shapes, kinds)))
    def ascend(u, maps, moves, colours, offset, weights):
        step_size, total_variation, l2 = tf.unstack(weights)

        def step(number, u):
            seen = tf.tensordot(tf.roll(u, moves[number], axis=(1, 2)), colours, 1) + offset
            values = compiled.before_relu(*tf.nest.flatten(network(seen, training=False)))
            if path is None:
                values = compiled.two_sided(values)[:, tf.newaxis, tf.newaxis]
            sums = tf.reduce_sum(tf.cast(values, tf.float32), axis=(1, 2))  # (batch, maps)
            (up,) = tf.gradients(tf.reduce_sum(sums * tf.one_hot(maps, sums.shape[-1])), u)
            if up is None:
                raise ValueError(
                    f"expected a layer that can be derived by the image, received '{path}': a step "
                    "before it stops gradients."
                )
            largest = tf.reduce_max(tf.abs(up), axis=(1, 2, 3), keepdims=True)
            up = tf.math.divide_no_nan(up, largest)  # else the square of a small one may be 0
            size = tf.sqrt(tf.reduce_mean(up**2, axis=(1, 2, 3), keepdims=True))
            (roughness,) = tf.gradients(tf.image.total_variation(u), u)
            up = tf.math.divide_no_nan(up, size) - total_variation * roughness - l2 * (u - GREY)
            return number + 1, tf.clip_by_value(u + step_size * up, 0, 1)

        start, count = tf.constant(0), tf.shape(moves)[0]
        return tf.while_loop(lambda number, _: number < count, step, (start, u))[1]

    return ascend.get_concrete_function()


def _layer_and_maps(model, layer):
    """The path of the layer, or None for the scores, and how many maps it has."""
    if layer is None:
        count = once(model, ("classes",), lambda: check_model(model))
        check_logits(model)  # each time: the caller may have set an activation since
        return None, count

    path = layers.full_path(model, layer)
    count = once(model, ("maps of", path), lambda: layers.split(model, path).outputs[0].shape[-1])
    return path, count


def _picture_shape(model, size):
    check_input(model)
    check_weights(model)
    *wanted, channels = layers.graph_of(model).inputs[0].shape[1:]
    if channels not in (1, 3):
        raise ValueError(
            f"expected a model of grey or RGB images, received '{model.name}', which takes "
            f"{channels} channels: put a layer before it that makes them of 1 or 3."
        )
    size = wanted if size is None else size
    if np.shape(size) != (2,) or None in size or min(size) < 1:
        received = "none" if size is wanted else brief(size)
        raise ValueError(
            f"expected size=(height, width) of at least 1 pixel, received {received}: "
            f"'{model.name}' takes {tuple(wanted)}, where None is any."
        )
    if any(want not in (None, have) for want, have in zip(wanted, size, strict=True)):
        raise ValueError(
            f"expected size {tuple(wanted)}, received {brief(tuple(size))}: "
            f"'{model.name}' takes no other."
        )
    return (*size, channels)


def _affine(preprocess, shape):
    """Colours (channels, channels) and offset: what preprocessing makes of a picture in [0, 1]."""
    channels = shape[-1]
    if preprocess is None:
        return np.eye(channels, dtype=np.float32), np.zeros(channels, np.float32)
    pure = np.zeros((channels + 2, *shape), np.float32)
    for channel in range(channels):
        pure[channel, ..., channel] = 255  # the next one is black
    pure[-1] = np.random.default_rng(0).uniform(0, 255, shape)
    mixed = pure[-1] / 255
    try:
        made = np.asarray(preprocess(pure), np.float32)
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"expected a preprocess for images {shape}, received one that refuses them: {error}"
        ) from error
    if made.shape == pure.shape:
        offset = made[channels, 0, 0]
        colours = made[:channels, 0, 0] - offset
        scale = max(1, np.abs(made).max())
        if np.abs(mixed @ colours + offset - made[-1]).max() <= 1e-5 * scale:
            return colours, offset
    raise ValueError(
        "expected a preprocess that is affine in each pixel and keeps the size, as those of "
        "keras.applications, received another: leave it out and build it into the model."
    )
