"""What a map costs, in forward passes of the network: ``make bench``.

Everything runs side by side in one process, in turns, because two cores shared with others give
no steady seconds. What is steady is the ratio within a turn.
"""

from collections.abc import Callable
import json
import time

from cam_helpers import data, models
from cam_helpers.backend import tf
import numpy as np
from tf_keras_vis.gradcam import Gradcam, GradcamPlusPlus
from tf_keras_vis.utils.model_modifiers import ReplaceToLinear
from tf_keras_vis.utils.scores import CategoricalScore
from tqdm import tqdm


def ratios(calls: dict[str, Callable], turns: int = 9) -> dict[str, float]:
    """Return how many times as long as the first call each call takes.

    Each turn times every call once; the result is the median over the turns. A turn before the
    first compiles and is not counted.
    """
    seconds = np.empty((turns + 1, len(calls)))
    for turn in tqdm(range(turns + 1), unit="turn", leave=False):
        for column, call in enumerate(calls.values()):
            started = time.perf_counter()
            call()
            seconds[turn, column] = time.perf_counter() - started
    medians = np.median(seconds[1:] / seconds[1:, :1], axis=0)
    return dict(zip(calls, medians.tolist(), strict=True))


def main() -> None:
    model = models.load_fashion_cnn()
    images = data.fashion_mnist().test_images
    forward = tf.function(lambda batch: model(batch, training=False))
    methods = [Gradcam(model, ReplaceToLinear()), GradcamPlusPlus(model, ReplaceToLinear())]
    table = {}
    for size in (1, 32):
        batch, score = tf.constant(images[:size]), CategoricalScore([0] * size)
        calls = {"forward pass": lambda batch=batch: forward(batch).numpy()}
        for method in methods:
            name = f"tf-keras-vis {type(method).__name__}"
            calls[name] = lambda method=method, batch=batch, score=score: method(
                score, batch, penultimate_layer="final"
            )
        table[f"Fashion-MNIST network, batch {size}"] = ratios(calls)
    for name, row in table.items():
        print(name)
        for call, ratio in row.items():
            print(f"  {call:32} {ratio:6.2f} ×")
    path = data.output_folder() / "bench.json"
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
