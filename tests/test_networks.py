"""Networks to show a photo to: how pixels, labels and layers are found out."""

from cam_helpers import backbones, networks
from cam_helpers.backend import keras
import numpy as np
import pytest

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3)).astype(np.float32)


def small(channels=3, head="softmax", classes=3, before=(), size=(12, 16)):
    """A network of one convolution, whose scores tell what its input is."""
    inputs = x = keras.Input((*size, channels))
    for layer in before:
        x = layer(x)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="maps")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes, activation=head)(x), name="small")


@pytest.fixture
def saved(tmp_path):
    def save(**options):
        keras.utils.set_random_seed(0)
        path = tmp_path / "mine.keras"
        small(**options).save(path)
        return path

    return save


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("0..255", IMAGES),
        ("0..1", IMAGES / 255),
        ("-1..1", IMAGES / 127.5 - 1),
        ("caffe", IMAGES[..., ::-1] - np.float32([103.939, 116.779, 123.68])),
        (
            "torch",
            (IMAGES / 255 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]),
        ),
    ],
)
def test_pixels_are_scaled_as_asked_for(saved, scale, expected):
    before = IMAGES.copy()
    prepared = networks.own_network(saved(), scale=scale).prepare(IMAGES)
    np.testing.assert_allclose(prepared, expected, atol=1e-4)
    assert prepared.dtype == np.float32
    np.testing.assert_array_equal(IMAGES, before)


def test_the_command_line_knows_the_scales():
    from cam_helpers import cli

    assert tuple(networks.SCALES) == cli.SCALES


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Normalization(mean=127.0, variance=3600.0),
        keras.Sequential([keras.Input((12, 16, 3)), keras.layers.Rescaling(1 / 255)]),
    ],
    ids=["Rescaling", "Normalization", "nested"],
)
def test_a_network_that_scales_for_itself_gets_pixels_as_they_are(saved, layer):
    network = networks.own_network(saved(before=[layer]))
    np.testing.assert_array_equal(network.prepare(IMAGES), IMAGES)


def test_a_scale_must_be_known(saved):
    with pytest.raises(ValueError, match=r"how the training of 'small' scaled pixels.*: give --sc"):
        networks.own_network(saved())


def test_a_grey_network_sees_what_pillow_makes_of_colours(saved):
    from PIL import Image

    network = networks.own_network(saved(channels=1), scale="0..255")
    grey = [np.asarray(Image.fromarray(image.astype(np.uint8)).convert("L")) for image in IMAGES]
    np.testing.assert_allclose(network.prepare(IMAGES)[..., 0], grey, atol=1)
    with pytest.raises(ValueError, match="expected a scale for grey images, received 'torch'"):
        networks.own_network(saved(channels=1), scale="torch")


def test_other_channels_are_refused(saved):
    with pytest.raises(ValueError, match=r"expected a model of grey or RGB images.*takes 4 c"):
        networks.own_network(saved(channels=4), scale="0..1")


def test_labels_are_one_for_each_class(saved):
    path = saved()
    assert networks.own_network(path, scale="0..1").labels == ["class 0", "class 1", "class 2"]
    labels = ["a", "b", "c"]
    assert networks.own_network(path, scale="0..1", labels=labels).labels == labels
    with pytest.raises(ValueError, match="expected 3 labels, one for each class, received 2"):
        networks.own_network(path, scale="0..1", labels=labels[:2])
    one = saved(head="sigmoid", classes=1)
    assert networks.own_network(one, scale="0..1").labels == ["class 0", "class 1"]


def test_size_layer_and_name(saved):
    path = saved()
    network = networks.own_network(path, scale="0..1")
    assert network.size == (12, 16)
    assert network.layer == "maps"
    assert network.placement == "receptive_field"
    assert network.name == "mine.keras"
    with pytest.raises(ValueError, match=r"layer 'map' is not in 'small'\. Try one of: 'maps'"):
        networks.own_network(path, "map", scale="0..1")
    assert networks.own_network(saved(size=(None, None)), scale="0..1").size == (224, 224)


def test_without_maps_there_is_no_layer(tmp_path):
    inputs = keras.Input((8, 8, 3))
    scores = keras.layers.Dense(2)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, scores).save(tmp_path / "flat.keras")
    assert networks.own_network(tmp_path / "flat.keras", scale="0..1").layer is None


def test_where_the_field_is_unknown_maps_are_stretched(saved):
    strange = keras.layers.Permute((2, 1, 3))
    assert networks.own_network(saved(before=[strange]), scale="0..1").placement == "resize"


def test_a_network_by_name(mobilenet):
    network = networks.known_network("MobileNet")
    assert (network.name, network.layer) == ("MobileNet", "conv_pw_13_relu")
    assert network.labels[281] == "tabby"
    images = np.full((1, 224, 224, 3), 200, np.float32)
    np.testing.assert_array_equal(network.prepare(images), mobilenet.preprocess(images))


def test_random_weights_are_named(monkeypatch):
    def random_one(name):
        return backbones.Backbone(name, small(head=None), "random, seed 0", (12, 16), "maps")

    monkeypatch.setattr(backbones, "load_backbone", random_one)
    assert networks.known_network("VGG16").name == "VGG16, random, seed 0: means nothing"


@pytest.mark.parametrize(
    "text",
    [
        "a\n b b\n\nc\n",
        "\N{BYTE ORDER MARK}a\r\nb b\r\nc",
        '["a", "b b", "c"]',
        '{"c": 2, "a": 0, "b b": 1}',
    ],
)
def test_labels_from_a_file(tmp_path, text):
    path = tmp_path / "labels"
    path.write_text(text, "utf-8")
    assert networks.read_labels(path) == ["a", "b b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"0": "a"}', "with another kind of JSON: list them in the order"),
        (b"[1, 2]", "with another kind of JSON"),
        (b'{"a": 0, "b": 2}', "with another kind of JSON"),
        (b'{"a": [], "b": {}}', "with another kind of JSON"),
        (b"\xff\xfe\x00", "which is no text: save it as UTF-8"),
    ],
)
def test_what_holds_no_labels_is_refused(tmp_path, content, message):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        networks.read_labels(path)


def test_a_label_may_begin_like_json(tmp_path):
    (tmp_path / "labels").write_text("[a]\n{b}")
    assert networks.read_labels(tmp_path / "labels") == ["[a]", "{b}"]


def test_no_file_of_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"received '.*none' \(No such file .*\): check"):
        networks.read_labels(tmp_path / "none")


def test_the_table_of_layers_has_what_the_helpers_say():
    keras.utils.set_random_seed(0)
    inside = small(head=None)
    inputs = keras.Input((24, 16, 3))
    x = keras.layers.Conv2D(3, 3, strides=(2, 1), padding="same", name="first")(inputs)
    model = keras.Model(inputs, inside(x))
    network = networks.Network(
        "n", model, (24, 16), lambda x: x, ["a", "b", "c"], "small/maps", "receptive_field"
    )
    assert networks.layer_table(network) == [
        ["", "layer", "output", "cells apart", "each sees"],
        ["", "first", "12 × 16 × 3", "2 × 1", "3 × 3"],
        ["*", "small/maps", "10 × 14 × 4", "2 × 1", "7 × 5"],
    ]
