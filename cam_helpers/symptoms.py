"""What a wrong heatmap looks like, why, and the way out: the rows of notebook 11's table."""

import re
from typing import NamedTuple


class Cause(NamedTuple):
    """A known cause of a wrong heatmap.

    Attributes
    ----------
    name
        Its key in ``SYMPTOMS``.
    symptom
        What one sees.
    cause
        Why.
    cure
        The way out, with the call.
    measured
        What shows that it applies to a model and its images; empty in ``SYMPTOMS``.
    """

    name: str
    symptom: str
    cause: str
    cure: str
    measured: str = ""

    def __str__(self) -> str:
        """Return it in plain sentences."""
        return f"{self.symptom}: {self.measured}. {self.cause} Way out: {self.cure}"


SYMPTOMS = {
    row.name: row
    for row in (
        Cause(
            "softmax",
            "Blank or faint map, plausible once stretched",
            "The surer the network, the flatter its softmax or sigmoid, and the less gradient "
            "passes.",
            "explain models.to_logits(model), the scores before it.",
        ),
        Cause(
            "dead",
            "Blank map",
            "Where maps are constant or no gradient comes back, nothing can be weighed. Wrongly "
            "scaled images can look the same.",
            "check the images' range; explain a layer that is alive, or train again with a smaller "
            "learning rate.",
        ),
        Cause(
            "place",
            "Map of one colour",
            "A layer without height and width, or of 1×1 cells, no longer knows where.",
            "explain the layer that models.explainable_layer(model) names.",
        ),
        Cause(
            "nan",
            "NaN, drawn as nothing",
            "What is computed from values that are not finite is worth nothing, even if it looks "
            "normal.",
            "mend what is named here; divide by a maximum only if it is above 0, as plots.stretch "
            "does.",
        ),
        Cause(
            "same",
            "The same map for every class",
            "The gradients of all classes point the same way, or the class asked for is not used.",
            "look for a bottleneck or equal weights in the head; in code of your own, index the "
            "scores by the class.",
        ),
        Cause(
            "checkerboard",
            "Checkerboard",
            "A stride larger than its kernel jumps over cells, and no gradient reaches them.",
            "make the kernel at least as large as the stride; with these weights look at the "
            "layer's map, not at the pixels.",
        ),
        Cause(
            "shifted",
            "Map shifted by cells",
            "Resizing spreads the cells evenly over the image, but the network looked elsewhere.",
            "plots.place(heatmap, image_size, models.receptive_field(model, layer)).",
        ),
        Cause(
            "channels",
            "Odd map, colours swapped",
            "The network learned its colours in another order, RGB or BGR.",
            "images[..., ::-1]; load photos with photos.load_photo, which returns RGB.",
        ),
        Cause(
            "range",
            "Odd map, wrong or absurd class",
            "The network learned on pixels of another range: preprocessing was left out, done "
            "twice or done in place.",
            "preprocess a copy, once, with Backbone.preprocess or preprocess_input(images.copy()).",
        ),
        Cause(
            "evidence",
            "Zero everywhere, or all red once stretched",
            "At no cell does the weighted sum of the maps speak for the class; min-max stretching "
            "makes a full picture of that.",
            "draw it with plots.overlay, which says so; try cams.hires_cam or another layer.",
        ),
        Cause(
            "random",
            "Another map at each run",
            "Dropout or noise is on, or noise of your own has no seed.",
            "call layers without training=True, models with training=False (augmentation such as "
            "RandomFlip acts without it), and seed np.random.default_rng(0).",
        ),
        Cause(
            "batch",
            "Another map in another batch",
            "Batch normalisation takes its mean and variance from the batch instead of from "
            "training.",
            "call its layer without training=True and the model with training=False.",
        ),
        Cause(
            "changed",
            "predict says one thing, the model another",
            "The model was changed after predict had been compiled, as ReplaceToLinear does with "
            "clone=False.",
            "load the model again, and explain models.to_logits(model), which changes nothing.",
        ),
        Cause(
            "twice",
            "Flat map, all probabilities alike",
            "Of two softmaxes in a row the second sees only values from 0 to 1.",
            "keep one: models.to_logits(model) takes the last off, for Score-CAM take none.",
        ),
        Cause(
            "nested",
            "Error 'Graph disconnected' or 'No such layer'",
            "The layer belongs to a nested model, which has a graph of its own.",
            "ask for it by its path.",
        ),
        Cause(
            "layer",
            "Error 'No such layer'",
            "The model has no layer of this name.",
            "print models.explainable_layer(model), or layers.map_layers(model) for all.",
        ),
        Cause(
            "memory",
            "Score-CAM runs out of memory",
            "Libraries hold one masked image for each map at once.",
            "cams.score_cam(…, batch_size=32, max_maps=128), which streams.",
        ),
        Cause(
            "request",
            "An error instead of a map",
            "Model, images or class do not fit each other.",
            "what the sentence says.",
        ),
    )
}


def found(name: str, measured: str, cure: str | None = None) -> Cause:
    """Return a row with what was measured and, where it is known better, another way out."""
    row = SYMPTOMS[name]
    return row._replace(measured=measured.rstrip("."), cure=cure or row.cure)


def said_by(error: Exception) -> str:
    """Return what an error says, in one line: Keras puts the cause into the second."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return " ".join([line.strip() for line in plain.splitlines() if line.strip()][:2])
