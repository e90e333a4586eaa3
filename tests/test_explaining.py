"""One photo explained: the maps are the methods', the numbers the maps', the figure shows both."""

import dataclasses
import json

from cam_helpers import explaining, layers, methods, networks, photos
from cam_helpers.backend import keras
import numpy as np
from PIL import Image
import pytest

PHOTO = photos.sample_photo("cat")


def build(head=None, classes=3, activation="relu"):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((24, 32, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, activation=activation, name="maps")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes, activation=head)(x))


def network_of(model, labels=("a_a", "b", "c"), layer="maps"):
    return networks.Network(
        "toy", model, (24, 32), lambda x: x / 255, labels, layer, "receptive_field"
    )


@pytest.fixture(scope="module")
def network():
    return network_of(build())


def test_maps_are_those_of_the_methods(network):
    names = ["Grad-CAM", "saliency"]
    explained = explaining.explain(network, PHOTO, names, 2)
    image = photos.fit(PHOTO, (24, 32))
    np.testing.assert_array_equal(explained.image, image)
    for name in names:
        expected = methods.heatmaps(name, network.model, image[np.newaxis] / 255, 2, layer="maps")
        np.testing.assert_allclose(explained.maps[name], expected[0], rtol=1e-5)
    assert explained.class_index == 2


def test_the_layer_asked_for_is_the_one_explained():
    inputs = keras.Input((24, 32, 3))
    x = keras.layers.Conv2D(2, 3, activation="relu", name="first")(inputs)
    x = keras.layers.Conv2D(3, 5, activation="relu", name="second")(x)
    model = keras.Model(inputs, keras.layers.GlobalMaxPooling2D()(x))
    explained = explaining.explain(network_of(model, layer="first"), PHOTO, ["Grad-CAM"], 1)
    images = photos.fit(PHOTO, (24, 32))[np.newaxis] / 255
    early = methods.heatmaps("Grad-CAM", model, images, 1, layer="first")[0]
    late = methods.heatmaps("Grad-CAM", model, images, 1, layer="second")[0]
    np.testing.assert_allclose(explained.maps["Grad-CAM"], early, rtol=1e-5)
    assert not np.allclose(early, late)


def test_without_a_class_it_is_the_top_one(network):
    explained = explaining.explain(network, PHOTO, ["Grad-CAM"])
    logits = network.model(photos.fit(PHOTO, (24, 32))[np.newaxis] / 255).numpy()[0]
    odds = np.exp(logits)
    np.testing.assert_allclose(explained.probabilities, odds / odds.sum(), rtol=1e-5)
    assert explained.class_index == logits.argmax()


@pytest.mark.parametrize("classes", [1, 3])
def test_a_sigmoid_gives_its_own_probability(classes):
    model = build("sigmoid", classes)
    explained = explaining.explain(network_of(layers.to_logits(model)), PHOTO, [])
    expected = model(photos.fit(PHOTO, (24, 32))[np.newaxis] / 255).numpy()[0]
    if classes == 1:
        expected = [1 - expected[0], expected[0]]
    np.testing.assert_allclose(explained.probabilities, expected, rtol=1e-4)


def test_numbers_are_those_of_the_maps(network):
    explained = explaining.explain(network, PHOTO, ["Grad-CAM"], 0)
    said = explaining.numbers(network, explained)
    heatmap = explained.maps["Grad-CAM"]
    row, column = said["maps"]["Grad-CAM"]["peak"]
    assert heatmap[row, column] == heatmap.max() > 0
    np.testing.assert_allclose(said["maps"]["Grad-CAM"]["maximum"], heatmap.max(), rtol=1e-5)
    np.testing.assert_allclose(said["maps"]["Grad-CAM"]["mean"], heatmap.mean(), rtol=1e-5)
    assert said["class"]["label"] == "a_a"
    assert [each["index"] for each in said["top"]] == np.argsort(-explained.probabilities).tolist()
    assert said["size"] == [24, 32]
    assert json.loads(json.dumps(said)) == said


def test_the_figure_shows_photo_classes_and_maps(network):
    explained = explaining.explain(network, PHOTO, ["Grad-CAM", "saliency", "LayerCAM"], 0)
    drawing = explaining.figure(network, explained, "cat.jpg")
    panels = {ax.get_title(): ax for ax in drawing.axes}
    for name, heatmap in explained.maps.items():
        np.testing.assert_array_equal(panels[name].images[-1].get_array(), heatmap)
    np.testing.assert_array_equal(
        panels["as the network saw it"].images[0].get_array(), explained.image / 255
    )
    words = [text.get_text() for ax in drawing.axes for text in ax.texts]
    shown = sorted(explained.probabilities, reverse=True)
    assert [float(word.rsplit(" ", 1)[1]) for word in words] == [round(p, 2) for p in shown]
    title = drawing.get_suptitle()
    assert title.startswith("cat.jpg: evidence for a a (")
    assert title.endswith("toy, layer maps")
    hidden = [ax for ax in drawing.axes if not ax.get_title() and not ax.texts and not ax.axison]
    assert len(hidden) == 3  # of two rows of four panels


def test_the_figure_says_where_maps_are_only_stretched():
    stretched = dataclasses.replace(network_of(build()), placement="resize")
    explained = explaining.explain(stretched, PHOTO, ["Grad-CAM"], 0)
    title = explaining.figure(stretched, explained, "cat").get_suptitle()
    assert title.endswith("layer maps, resized: where its cells look is unknown")
    explained = explaining.explain(stretched, PHOTO, ["saliency"], 0)
    assert explaining.figure(stretched, explained, "cat").get_suptitle().endswith("\ntoy")


def test_a_file_gets_its_figure_whole(network, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "cat.png")
    said = explaining.explain_file(
        network, tmp_path / "cat.png", ["Grad-CAM"], None, "crop", tmp_path / "new" / "maps.jpg"
    )
    assert said["figure"] == str(tmp_path / "new" / "maps.jpg")
    with Image.open(tmp_path / "new" / "maps.jpg") as figure:
        assert figure.format == "JPEG"
        assert min(figure.size) > 300
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["maps.jpg"]


def test_methods_by_name(network):
    found = explaining.find_methods("grad_cam, Saliency,grad_cam", network)
    assert found == ["Grad-CAM", "saliency"]
    assert explaining.find_methods("all", network) == list(methods.METHODS)
    with pytest.raises(ValueError, match=r"received 'gradcam': did you mean grad_cam\?"):
        explaining.find_methods("gradcam", network)
    with pytest.raises(
        ValueError, match=r"^expected methods of grad_cam, .*, or all, received ''\.$"
    ):
        explaining.find_methods("", network)


def test_all_leaves_out_what_the_network_is_none_for():
    smooth = network_of(build(activation="elu"))
    assert set(methods.METHODS) - set(explaining.find_methods("all", smooth)) == {
        "guided backpropagation",
        "deconvnet",
        "guided Grad-CAM",
    }
    inputs = keras.Input((24, 32, 3))
    flat = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    flat = network_of(flat, layer=None)
    assert set(explaining.find_methods("all", flat)) == set(methods.AT_THE_PIXELS) - {
        "guided Grad-CAM"
    }
    with pytest.raises(ValueError, match="there is no map to explain"):
        explaining.find_methods("saliency,grad_cam", flat)
    assert explaining.find_methods("saliency", flat) == ["saliency"]
