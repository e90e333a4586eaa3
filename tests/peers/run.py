"""xplique's maps and ours, of the same layer and class, and what each costs: ``make peers``.

xplique returns its maps resized, bicubically, to the size of the image. They are compared before
that, and after with ours resized likewise. Its Grad-CAM++ is another one than equation 19 of the
paper and ours: it has the mean of a map where they have the sum, and the mean of the weights over
the cells where they have the sum. Both the difference and that it comes from there are shown.

So it is with gradients at the pixels. Its saliency is the largest absolute value of the channels.
Its guided backpropagation passes a ReLU6 above 6, where the gradient is 0. Its integrated gradients
follow the trapezoidal rule, both ends included. Its SmoothGrad is left out: the deviation of its
noise is one number for all images, and its draws are its own.

And so with the metrics. For the area xplique takes all steps as equally wide, where ours are as
wide as pixels can be divided: 28 steps divide them, 20 do not. It deletes equally high pixels as
sorting leaves them, we by lot: a little noise leaves none equal. Its average drop and increase see
the image through ``|map|``, stretched from its minimum to its maximum, ours through what is above
0, divided by the maximum: given its mask, ours see the same. Its randomisation of layers draws each
weight from 0 to 1, also variances and biases, and a nested model's at once: no counterpart of ours.
"""

from functools import partial
import json

from cam_helpers import bench, cams, compiled, data, gradients, metrics, models, photos
from cam_helpers.backend import keras, tf
from cam_helpers.placement import place
import numpy as np
from xplique.attributions import (
    DeconvNet,
    GradCAM,
    GradCAMPP,
    GuidedBackprop,
    IntegratedGradients,
    Saliency,
)
from xplique.metrics import AverageDropMetric, AverageIncreaseMetric, Deletion, Insertion
from xplique.metrics.randomization import batched_spearman

STEPS = 50
CURVE_STEPS = 28  # divides 28 · 28 and 224 · 224


def main() -> None:
    tf.get_logger().setLevel("ERROR")  # xplique traces anew for each batch size
    fashion = models.to_logits(models.load_fashion_cnn())
    mobilenet = models.load_backbone("MobileNet", fallback=())
    samples = [photos.fit(photos.sample_photo(name), (224, 224)) for name in photos.SAMPLES]
    samples, garments = mobilenet.preprocess(np.stack(samples)), data.fashion_mnist().test_images
    result = {}
    for name, model, layer, many, count, repeats in (
        ("Fashion-MNIST network", fashion, "final", garments[:200], 8, 20),
        (f"MobileNet ({mobilenet.weights})", mobilenet.model, mobilenet.layer, samples, 2, 4),
    ):
        images = many[:count]
        result[name] = {
            "largest difference of heatmaps": differences(model, layer, images),
            "largest difference of gradients at the pixels": pixel_differences(model, images),
            f"largest difference of metrics of {len(many)} images": metric_differences(
                model, layer, many
            ),
            "time, batch 1": times(model, layer, images[:1], repeats),
            "time, batch 8": times(model, layer, np.resize(images, (8, *images.shape[1:])), 2),
            "time at the pixels, batch 1": pixel_times(model, images[:1], repeats),
        }
        print(name)
        for question, answers in result[name].items():
            print(f"  {question}", *(f"    {k:52}{v:9.3g}" for k, v in answers.items()), sep="\n")
    path = data.output_folder() / "peers.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def differences(model, layer, images):
    """The largest difference of any cell or pixel, relative to the maximum of our heatmap."""
    scores = model(images).numpy()
    classes, targets = scores.argmax(axis=1).astype(np.int32), _one_hot(scores)
    ours = cams.grad_cam(model, images, classes, layer=layer)
    explainer, size = GradCAM(model, conv_layer=layer), images.shape[1:3]
    drawn = explainer(images, targets).numpy()[..., 0]
    resized = tf.image.resize(ours[..., np.newaxis], size, "bicubic").numpy()[..., 0]
    placed = place(ours, size, models.receptive_field(model, layer))
    plus_plus = unresized(GradCAMPP(model, conv_layer=layer), images, targets)
    by_mean = compiled.gradient_map(model, layer, plus_plus_by_mean)(images, classes).numpy()
    ours_plus_plus = cams.grad_cam_plus_plus(model, images, classes, layer=layer)
    return {
        "Grad-CAM": _difference(unresized(explainer, images, targets), ours),
        "Grad-CAM, both resized bicubically": _difference(drawn, resized, ours),
        "Grad-CAM, ours placed where the network looked": _difference(drawn, placed, ours),
        "Grad-CAM++, ours with its formula": _difference(plus_plus, by_mean),
        "Grad-CAM++": _difference(plus_plus, ours_plus_plus),
        "Grad-CAM++, each divided by its maximum": _difference(
            plus_plus / _highest(plus_plus), ours_plus_plus / _highest(ours_plus_plus)
        ),
    }


def pixel_differences(model, images):
    """The largest difference of any pixel, relative to the largest absolute value of ours."""
    scores = model(images).numpy()
    classes, targets = scores.argmax(axis=1).astype(np.int32), _one_hot(scores)
    ours = {
        method: method(model, images, classes)
        for method in (gradients.saliency, gradients.guided_backprop, gradients.deconvnet)
    }
    largest = np.abs(ours[gradients.saliency]).max(axis=-1, keepdims=True)
    guided = GuidedBackprop(model, reducer=None)(images, targets).numpy()
    integrated = IntegratedGradients(model, steps=STEPS, baseline_value=0.0, reducer=None)
    integrated = integrated(images, targets).numpy()
    own_integrated = gradients.integrated_gradients(model, images, classes, steps=STEPS)
    return {
        "saliency": _off(Saliency(model)(images, targets).numpy(), largest),
        "guided backpropagation, ours open above 6": _off(
            guided, open_above_6(model, tf.constant(images), classes).numpy()
        ),
        "guided backpropagation": _off(guided, ours[gradients.guided_backprop]),
        "deconvnet": _off(
            DeconvNet(model, reducer=None)(images, targets).numpy(), ours[gradients.deconvnet]
        ),
        "integrated gradients, ours with its rule": _off(
            integrated, trapezoidal(model, images, classes)
        ),
        "integrated gradients": _off(integrated, own_integrated),
    }


@tf.RegisterGradient("guided, open above 6")
def _guided_open_above_6(operation, gradient):
    return tf.nn.relu(gradient) * tf.cast(operation.inputs[0] > 0, gradient.dtype)


@tf.function
def open_above_6(model, images, classes):
    """xplique's guided backpropagation, whose gate at a ReLU6 is that of a ReLU."""
    names = dict.fromkeys(("Relu", "Relu6"), "guided, open above 6")
    with tf.compat.v1.get_default_graph().gradient_override_map(names):
        scores = model(images, training=False)
    return tf.gradients(tf.gather(scores, classes, batch_dims=1), images)[0]


def trapezoidal(model, images, classes):
    """xplique's integrated gradients from black, by our gradients."""
    maps = []
    for image, class_index in zip(images, classes, strict=True):
        points = np.linspace(0, 1, STEPS, dtype=np.float32)[:, None, None, None] * image
        found = gradients.saliency(model, points, class_index)
        maps.append(image * (found[:-1] + found[1:]).mean(axis=0) / 2)
    return np.stack(maps)


def metric_differences(model, layer, images):
    """The largest difference of any point of a curve, of an area, and of what one image loses.

    Of Grad-CAM's maps where the network looked. What increases is right or wrong: the share of
    images for which the answers differ.
    """
    scores, size = model(images).numpy(), images.shape[1:3]
    classes, targets = scores.argmax(axis=1), _one_hot(scores)
    sure = keras.Sequential([model, keras.layers.Softmax()])  # xplique takes what comes out of it
    maps = cams.grad_cam(model, images, classes, layer=layer)
    maps = place(maps, size, models.receptive_field(model, layer))
    noise = np.random.default_rng(0).random(maps.shape, np.float32)
    untied = maps + 1e-3 * _highest(maps) * noise
    found = {}
    for peer, own in ((Deletion, metrics.deletion), (Insertion, metrics.insertion)):
        ours = own(model, images, untied, classes, steps=CURVE_STEPS)
        theirs = peer(sure, images, targets, batch_size=100, steps=CURVE_STEPS)
        curve = np.array(list(theirs.detailed_evaluate(untied).values()))  # the images' mean
        areas = [
            peer(sure, images[one], targets[one], steps=CURVE_STEPS).evaluate(untied[one])
            for one in compiled.parts(4, 1)
        ]
        usual = peer(sure, images, targets, batch_size=100, steps=20).evaluate(maps)
        found |= {
            f"{own.__name__}, mean curve": np.abs(curve - ours.probabilities.mean(axis=0)).max(),
            f"{own.__name__}, areas of four images": np.abs(areas - ours.area[:4]).max(),
            f"{own.__name__}, mean area, 20 steps and ties": abs(
                usual - own(model, images, maps, classes).area.mean()
            ),
        }
    lowest = maps.min(axis=(1, 2), keepdims=True)
    mask = (maps - lowest) / (_highest(maps) - lowest + 1e-8)
    for peer, own in (
        (AverageDropMetric, metrics.average_drop),
        (AverageIncreaseMetric, metrics.average_increase),
    ):
        theirs = peer(sure, images, targets).detailed_evaluate(images, targets, maps)
        for name, heatmaps in (("", maps), (", ours through its mask", mask)):
            off = np.abs(theirs - own(model, images, heatmaps, classes))
            found[own.__name__ + name] = (off.max if "drop" in own.__name__ else off.mean)()
    flat, others = (x.reshape(len(x), -1) for x in (maps, images.mean(axis=-1)))
    theirs = batched_spearman(tf.constant(flat), tf.constant(others)).numpy()
    found["rank correlation"] = np.abs(theirs - metrics.rank_correlation(flat, others)).max()
    return {name: float(value) for name, value in found.items()}


def unresized(explainer, images, targets):
    """xplique's maps, taken before it resizes them."""
    feature_maps, gradients = explainer._gradient(tf.constant(images), tf.constant(targets))
    weights = explainer._compute_weights(gradients, feature_maps)
    return explainer._apply_weights(weights, feature_maps).numpy()


def plus_plus_by_mean(feature_maps, gradients):
    """xplique's Grad-CAM++, as a formula for ``compiled.gradient_map``."""
    mean = tf.reduce_mean(feature_maps, axis=(1, 2), keepdims=True)
    alpha = tf.math.divide_no_nan(1.0, 2 + mean * gradients)
    weights = tf.reduce_mean(alpha * tf.nn.relu(gradients), axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * feature_maps, axis=-1))


def times(model, layer, images, repeats):
    """Forward passes that a map takes: ours bare and in the size of the image, then xplique's."""
    forward, batch = bench.forward_pass(model), tf.constant(images)
    scores, size = model(images).numpy(), images.shape[1:3]
    classes, targets = scores.argmax(axis=1), _one_hot(scores)
    base = {"forward pass": lambda: forward(batch).numpy()}
    grad_cam = partial(cams.grad_cam, model, images, classes, layer=layer)
    plus_plus = partial(cams.grad_cam_plus_plus, model, images, classes, layer=layer)
    ours = {
        "grad_cam": grad_cam,
        "grad_cam, resized": lambda: place(grad_cam(), size, "resize"),
        "grad_cam_plus_plus, resized": lambda: place(plus_plus(), size, "resize"),
    }
    explainers = (GradCAM(model, conv_layer=layer), GradCAMPP(model, conv_layer=layer))
    theirs = {
        f"xplique {type(each).__name__}, resized": lambda each=each: each(images, targets).numpy()
        for each in explainers
    }
    return bench.ratios(base | ours, 9, repeats) | bench.ratios(base | theirs, 9, repeats)


def pixel_times(model, images, repeats):
    """Passes forward and back that a gradient takes: ours, then xplique's."""
    scores, calls = model(images).numpy(), bench.pixel_calls(model, images)
    ours = {name: call for name, call in calls.items() if bench.PEER not in name}
    (name, one_pass), *_ = ours.items()
    theirs = {
        f"xplique {type(each).__name__}": lambda each=each: each(images, _one_hot(scores)).numpy()
        for each in (Saliency(model), GuidedBackprop(model))
    }
    theirs = {name: one_pass} | theirs
    return bench.ratios(ours, 9, repeats) | bench.ratios(theirs, 9, repeats)


def _off(found, expected):
    highest = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    return float((np.abs(found.reshape(expected.shape) - expected) / highest).max())


def _one_hot(scores):
    return np.eye(scores.shape[1], dtype=np.float32)[scores.argmax(axis=1)]


def _difference(found, expected, heatmaps=None):
    highest = _highest(expected if heatmaps is None else heatmaps)
    return float((np.abs(found - expected) / highest).max())


def _highest(heatmaps):
    return heatmaps.max(axis=(1, 2), keepdims=True)


if __name__ == "__main__":
    main()
