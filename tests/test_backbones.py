"""Networks with their weights, what stands in for them, and what they take and say."""

import hashlib
import json
from pathlib import Path
import random
import re
import shutil
import socket
import time

from cam_helpers import backbones, fetch
from cam_helpers.backend import keras, tf
from cam_helpers.layers import final_activation
import numpy as np
import pytest

MEANS = {"BGR": (103.939, 116.779, 123.68), "RGB": (123.675, 116.28, 103.53)}
DEAD = "http://127.0.0.1:9/"
LAYERS = {
    "VGG16": "block5_conv3",
    "ResNet50": "conv5_block3_out",
    "MobileNet": "conv_pw_13_relu",
    "MobileNet-1.0": "conv_pw_13_relu",
    "MobileNetV2": "out_relu",
    "EfficientNetV2B0": "top_activation",
    "ConvNeXtTiny": r"add_\d+",
    "Xception": "block14_sepconv2_act",
    "DenseNet121": "relu",
    "InceptionV3": "mixed10",
}


def md5(path):
    with open(path, "rb") as file:
        return "md5:" + hashlib.file_digest(file, "md5").hexdigest()


def answer_always(model, index):
    """Make a class the likeliest for every image."""
    layer = model.get_layer("conv_preds" if "mobilenet" in model.name else "predictions")
    kernel, bias = layer.get_weights()
    bias[index] = 9
    layer.set_weights([kernel, bias])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Folder with seeded weights, in Keras's old format as its servers have them, and labels."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, index in (("VGG16", 281), ("MobileNet", 967)):
        model = backbones.load_backbone(name, weights=None).model
        answer_always(model, index)
        model.save(folder / backbones.NETWORKS[name][1])
        if name == "MobileNet":
            model.save_weights(folder / "mobilenet.weights.h5")
    labels = {str(k): [f"n{k}", f"label {k}"] for k in range(1000)}
    (folder / backbones.LABELS[0]).write_text(json.dumps(labels), "utf-8")
    yield folder
    shutil.rmtree(folder)  # half a gigabyte


@pytest.fixture(scope="module")
def vgg16(shelf):
    return backbones.load_backbone("VGG16", weights=shelf / backbones.NETWORKS["VGG16"][1])


@pytest.fixture(scope="module")
def unlabelled(shelf):
    """A network whose labels are the test's own affair."""
    return backbones.load_backbone("MobileNet", weights=str(shelf / "mobilenet.weights.h5"))


@pytest.fixture
def web(server, keras_home, shelf, monkeypatch):
    """Empty cache, and a server that has what ``web.serve`` puts there, with its hash known."""
    monkeypatch.setattr(backbones, "WEIGHTS_URL", server.url)
    monkeypatch.setattr(backbones, "LABELS_URL", server.url)
    networks = dict(backbones.NETWORKS)
    monkeypatch.setattr(backbones, "NETWORKS", networks)

    def serve(name, source="MobileNet", known=True):
        module, file, _ = networks[name]
        (server.folder / module).mkdir(exist_ok=True)
        shutil.copy(shelf / networks[source][1], server.folder / module / file)
        networks[name] = (module, file, md5(shelf / networks[source][1]) if known else None)

    def serve_labels():
        shutil.copy(shelf / backbones.LABELS[0], server.folder)
        sums = (backbones.LABELS[0], md5(shelf / backbones.LABELS[0]))
        monkeypatch.setattr(backbones, "LABELS", sums)

    server.serve, server.serve_labels, server.cache = serve, serve_labels, keras_home / "models"
    return server


def photo(size=(224, 224), batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def equal_weights(one, other):
    return all(map(np.array_equal, one.model.get_weights(), other.model.get_weights()))


class Imagenet:
    """What stands for a fetched file and makes Keras itself say which one it would load."""

    def __str__(self):
        return "imagenet"

    def is_file(self):
        return True


@pytest.mark.parametrize("name", LAYERS)
def test_every_network_is_the_one_that_keras_would_load(name, monkeypatch):
    ours, keras_own = [], []

    def whole_file(subfolder, file, url, known_hash, what):
        ours.append((subfolder, file, url, known_hash))
        return Imagenet()

    def get_file(file, url, cache_subdir, file_hash=None):
        kind = "sha256" if len(file_hash or "") == 64 else "md5"
        keras_own.append((cache_subdir, file, url, file_hash and f"{kind}:{file_hash}"))

    monkeypatch.setattr(fetch, "whole_file", whole_file)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    monkeypatch.setattr(keras.Model, "load_weights", lambda *_, **__: None)
    backbone = backbones.load_backbone(name, fallback=())
    if name == "MobileNet":  # Keras knows no hash
        assert ours[0][3] == "md5:99674eb21ffb7ceee542db7887d90d69"
        ours[0] = (*ours[0][:3], None)
    assert ours == keras_own
    assert len(ours) == 1
    assert (backbone.name, backbone.weights) == (name, "ImageNet")
    side = 299 if name in ("Xception", "InceptionV3") else 224
    assert backbone.input_size == (side, side)
    assert re.fullmatch(LAYERS[name], backbone.layer)
    assert backbone.model.output_shape == (None, 1000)
    assert final_activation(backbone.model) is None
    images = photo((side, side))
    expected = {
        "VGG16": images[..., ::-1] - np.array(MEANS["BGR"]),
        "ResNet50": images[..., ::-1] - np.array(MEANS["BGR"]),
        "DenseNet121": (images - np.array(MEANS["RGB"])) / (58.395, 57.12, 57.375),
        "EfficientNetV2B0": images,  # these two scale inside the network
        "ConvNeXtTiny": images,
    }.get(name, images / 127.5 - 1)
    np.testing.assert_allclose(backbone.preprocess(images), expected, atol=1e-4)
    with pytest.raises(AttributeError):
        backbone.layer = "another"


def test_alpha_is_part_of_the_name():
    assert set(backbones.NETWORKS) == set(LAYERS)
    small, large = (
        backbones.load_backbone(name, None).model.count_params()
        for name in ("MobileNet", "MobileNet-1.0")
    )
    assert (small, large) == (2_601_976, 4_253_864)  # as published


def test_vgg16_from_a_file_goes_all_the_way(vgg16, keras_home, monkeypatch):
    monkeypatch.setattr(backbones, "LABELS_URL", DEAD)
    assert (vgg16.name, vgg16.weights) == ("VGG16", backbones.NETWORKS["VGG16"][1])
    assert (vgg16.input_size, vgg16.layer) == ((224, 224), "block5_conv3")
    logits = vgg16.model(vgg16.preprocess(photo()))
    assert logits.shape == (2, 1000)
    assert [label for (label, _), *_ in vgg16.decode(logits)] == ["class 281"] * 2


def test_logits_are_what_keras_own_softmax_is_of(unlabelled, shelf):
    images = unlabelled.preprocess(photo())
    logits = np.asarray(unlabelled.model(images), np.float64)
    path = str(shelf / backbones.NETWORKS["MobileNet"][1])
    probabilities = keras.applications.MobileNet(alpha=0.75, weights=path)(images)
    assert np.abs(logits.sum(axis=1) - 1).min() > 1
    odds = np.exp(logits)
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), probabilities, rtol=1e-4)


def test_vgg16_takes_blue_green_red_minus_their_means(vgg16):
    images = np.zeros((1, 224, 224, 3), np.uint8)
    images[0, 0, 1] = (255, 128, 1)
    taken = vgg16.preprocess(images)
    np.testing.assert_allclose(taken[0, 0, 0], [-103.939, -116.779, -123.68], rtol=1e-6)
    np.testing.assert_allclose(
        taken[0, 0, 1], [1 - 103.939, 128 - 116.779, 255 - 123.68], rtol=1e-6
    )
    assert taken.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_preprocess_leaves_its_input_alone(unlabelled, dtype):
    images = photo().astype(dtype)
    before = images.copy()
    taken = unlabelled.preprocess(images)
    np.testing.assert_array_equal(images, before)
    assert taken.dtype == np.float32
    assert not np.shares_memory(taken, images)
    np.testing.assert_allclose(taken, photo() / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(unlabelled.preprocess(tf.constant(images)), taken)


def test_black_images_and_rounding_are_no_error(unlabelled, vgg16):
    black = np.zeros((1, 224, 224, 3), np.float32)
    np.testing.assert_array_equal(unlabelled.preprocess(black), black - 1)
    nearly_black = black.astype(np.uint8) + np.uint8(1)
    np.testing.assert_allclose(
        unlabelled.preprocess(nearly_black), black - 1 + 1 / 127.5, atol=1e-6
    )
    assert unlabelled.preprocess(black + np.float32(255.00002)).max() <= 1.0001
    np.testing.assert_array_equal(vgg16.preprocess(black), vgg16.preprocess(black.astype(np.uint8)))


NAN = np.full((1, 224, 224, 3), np.nan)
SHAPE = r"^expected RGB images \(batch, 224, 224, 3\), received "


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (photo()[0], SHAPE + r"\(224, 224, 3\): photos\.fit\(photo, backbone\.input_size\)\["),
        (photo((224, 225)), SHAPE + r"\(2, 224, 225, 3\)"),
        (photo((225, 224)), SHAPE + r"\(2, 225, 224, 3\)"),
        (photo()[..., :1], SHAPE + r"\(2, 224, 224, 1\)"),
        (photo()[np.newaxis], SHAPE + r"\(1, 2, 224, 224, 3\)"),
        (photo()[:0], SHAPE + r"\(0, 224, 224, 3\)"),
        (photo() > 3, r"^expected uint8 or float images, received bool: convert\.$"),
        (
            photo() / 255,
            r"received 0 to 1, which seem to be scaled already: multiply them by 255\.$",
        ),
        (
            photo() / 127.5 - 1,
            r"^expected values from 0 to 255, received -1 to 1: give the images a",
        ),
        (photo() + 0.5, r"received 0\.5 to 255\.5: give the images as they were loaded\.$"),
        (NAN, "received nan to nan"),
    ],
)
def test_preprocess_refuses_what_the_network_would_misread(unlabelled, images, message):
    with pytest.raises(ValueError, match=message):
        unlabelled.preprocess(images)


def test_decode_says_labels_and_probabilities(unlabelled, web):
    web.serve_labels()
    logits = np.zeros((2, 1000))
    logits[0, [3, 999]] = 1000 + np.log([3, 1])  # exp alone would overflow
    logits[1, 7] = np.log(999)
    first, second = unlabelled.decode(logits, top=2)
    assert [label for label, _ in first] == ["label 3", "label 999"]
    assert [p for _, p in first] == pytest.approx([0.75, 0.25])
    assert second == [("label 7", pytest.approx(0.5)), ("label 0", pytest.approx(0.5 / 999))]
    assert len(unlabelled.decode(logits)[0]) == 5
    assert unlabelled.decode(tf.constant(logits, tf.float32), top=1)[0][0][0] == "label 3"
    assert web.requests == [("GET", f"/{backbones.LABELS[0]}")]
    assert isinstance(first[0][1], float)


def test_decode_without_labels_counts_the_classes(unlabelled, keras_home, monkeypatch):
    monkeypatch.setattr(backbones, "LABELS_URL", DEAD)
    assert unlabelled.decode(np.eye(1000)[[281]] * 9, top=1)[0][0][0] == "class 281"


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (
            np.zeros(1000),
            r"^expected finite logits \(batch, 1000\), received float64 \(1000,\): give",
        ),
        (np.zeros((2, 10)), r"received float64 \(2, 10\)"),
        (np.zeros((1, 7, 7, 1000)), r"received float64 \(1, 7, 7, 1000\)"),
        (np.full((1, 1000), np.nan), "^expected finite logits"),
        (
            np.full((3, 1000), 1e-3),
            r"^expected logits, received probabilities: leave the softmax out",
        ),
    ],
)
def test_decode_refuses_what_are_no_logits(unlabelled, logits, message):
    with pytest.raises(ValueError, match=message):
        unlabelled.decode(logits)


def test_missing_weights_are_fetched_once_and_quietly(web, capfd):
    web.serve("MobileNet")
    web.serve_labels()
    first = backbones.load_backbone("MobileNet")
    said = capfd.readouterr()
    assert said.out == "Fetching MobileNet's ImageNet weights: 11 MB.\n"
    assert "100%" in said.err
    second = backbones.load_backbone("MobileNet")
    logits = second.model(second.preprocess(photo(batch=1)))
    assert second.decode(logits, top=1)[0][0] == ("label 967", pytest.approx(0.89, abs=0.01))
    assert capfd.readouterr() == ("", "")
    path = "/mobilenet/mobilenet_7_5_224_tf.h5"
    labels = ("GET", "/imagenet_class_index.json")
    assert web.requests == [("HEAD", path), ("GET", path), labels]
    assert (first.name, first.weights) == (second.name, second.weights) == ("MobileNet", "ImageNet")
    assert equal_weights(first, second)


def test_the_first_network_of_the_fallback_that_can_be_had_stands_in(web, capfd):
    web.serve("MobileNet")
    host = web.url.split("/")[2]
    damaged = web.cache / backbones.NETWORKS["VGG16"][1]
    damaged.parent.mkdir()
    damaged.write_bytes(b"half a file")
    backbone = backbones.load_backbone("VGG16", fallback=("MobileNetV2", "MobileNet", "ResNet50"))
    assert (backbone.name, backbone.weights) == ("MobileNet", "ImageNet")
    assert backbone.layer == "conv_pw_13_relu"
    assert backbone.preprocess(photo()).max() == 1
    assert capfd.readouterr().out == (
        "Fetching MobileNet's ImageNet weights: 11 MB.\n"
        f"VGG16's ImageNet weights could not be had ({damaged} is damaged, and no file from "
        f"{host}: HTTPError): MobileNet stands in.\n"
    )
    assert [(kind, path.split("/")[1]) for kind, path in web.requests] == [
        ("HEAD", "vgg16"),
        ("HEAD", "mobilenet_v2"),
        ("HEAD", "mobilenet"),
        ("GET", "mobilenet"),
    ]


def test_at_last_random_weights_stand_in_and_the_dead_host_is_asked_once(
    keras_home, monkeypatch, capfd
):
    asked, reach = [], fetch._reach
    monkeypatch.setattr(fetch, "_SILENT", {})
    monkeypatch.setattr(fetch, "_reach", lambda url: (asked.append(url), reach(url)))
    monkeypatch.setattr(backbones, "WEIGHTS_URL", DEAD)
    monkeypatch.setattr(backbones, "LABELS_URL", DEAD)
    backbone = backbones.load_backbone("MobileNetV2", fallback="MobileNet")
    assert backbone.decode(np.eye(1000)[[281]] * 9, top=1)[0][0][0] == "class 281"
    assert asked == [DEAD + "mobilenet_v2/" + backbones.NETWORKS["MobileNetV2"][1]]
    assert (backbone.name, backbone.weights) == ("MobileNetV2", "random, seed 0")
    said = capfd.readouterr()
    assert said.err == ""
    assert said.out == (
        "MobileNetV2's ImageNet weights could not be had (no file from 127.0.0.1:9: "
        "ConnectionError): random weights stand in, so the maps mean nothing.\n"
    )
    assert equal_weights(backbone, backbones.load_backbone("MobileNetV2", weights=None))
    assert capfd.readouterr().out == ""


def test_a_server_that_stalls_costs_seconds_once(keras_home, monkeypatch):
    monkeypatch.setattr(fetch, "_SILENT", {})
    monkeypatch.setattr(fetch, "SECONDS_TO_ANSWER", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(backbones, "WEIGHTS_URL", url)
        started = time.perf_counter()
        backbones.load_backbone("MobileNet-1.0", fallback=("VGG16", "ResNet50", "MobileNet"))
        assert 1 < time.perf_counter() - started < 3


@pytest.mark.parametrize("known", [True, False])
def test_a_damaged_file_is_fetched_anew(web, known, capfd):
    web.serve("MobileNet", known=known)
    path = web.cache / "mobilenet_7_5_224_tf.h5"
    path.parent.mkdir()
    path.write_bytes((web.folder / "mobilenet" / path.name).read_bytes()[:-1000])
    assert backbones.load_backbone("MobileNet").weights == "ImageNet"
    assert path.stat().st_size == (web.folder / "mobilenet" / path.name).stat().st_size
    assert capfd.readouterr().out == "Fetching MobileNet's ImageNet weights: 11 MB.\n"


@pytest.mark.parametrize("known", [True, False])
def test_a_damaged_file_out_of_reach_is_named_and_left_alone(web, shelf, monkeypatch, capfd, known):
    web.serve("MobileNet-1.0", known=known)
    monkeypatch.setattr(backbones, "WEIGHTS_URL", DEAD)
    path = web.cache / "mobilenet_1_0_224_tf.h5"
    path.parent.mkdir()
    path.write_bytes(b"half a file")
    backbone = backbones.load_backbone("MobileNet-1.0")
    assert (backbone.name, backbone.weights) == ("MobileNet-1.0", "random, seed 0")
    assert capfd.readouterr().out == (
        f"MobileNet-1.0's ImageNet weights could not be had ({path} is damaged, and no file from "
        "127.0.0.1:9: ConnectionError): random weights stand in, so the maps mean nothing.\n"
    )
    assert path.read_bytes() == b"half a file"


def test_another_network_s_weights_in_the_cache_are_told_in_the_line(web, shelf, capfd):
    web.serve("MobileNet")
    path = web.cache / "mobilenet_1_0_224_tf.h5"  # no hash would tell, the shapes do
    path.parent.mkdir()
    shutil.copy(shelf / "mobilenet_7_5_224_tf.h5", path)
    backbone = backbones.load_backbone("MobileNet-1.0")
    assert (backbone.name, backbone.weights) == ("MobileNet", "ImageNet")
    assert capfd.readouterr().out.splitlines()[-1] == (
        "MobileNet-1.0's ImageNet weights could not be had (expected weights of MobileNet-1.0, "
        f"received {path}, which does not hold them: name the network that they are of, or give "
        "another file): MobileNet stands in."
    )


def test_random_weights_are_the_same_and_disturb_no_seed(capfd):
    draws = [
        lambda: random.random(),
        lambda: np.random.random(),  # noqa: NPY002 - the global state is what it is about
        lambda: float(tf.random.normal(())),
        lambda: float(keras.random.normal(())),
    ]
    keras.utils.set_random_seed(7)
    undisturbed = [draw() for draw in draws]
    keras.utils.set_random_seed(7)
    first = backbones.load_backbone("MobileNet", weights=None)
    assert [draw() for draw in draws] == undisturbed
    keras.utils.set_random_seed(8)
    second = backbones.load_backbone("MobileNet", weights=None)
    assert (first.name, first.weights) == ("MobileNet", "random, seed 0")
    assert equal_weights(first, second)
    kernels = [w for w in first.model.get_weights() if w.ndim == 4]
    assert len({float(kernel.ravel()[0]) for kernel in kernels}) == len(kernels)  # not all alike
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("file", ["mobilenet.weights.h5", "mobilenet_7_5_224_tf.h5"])
def test_weights_from_a_path_are_that_file_s(shelf, file):
    backbone = backbones.load_backbone("MobileNet", weights=shelf / file)
    assert backbone.weights == file
    assert np.argmax(backbone.model(backbone.preprocess(photo(batch=1)))) == 967


def test_paths_that_hold_no_weights_are_refused(shelf, tmp_path, capfd, recwarn):
    with pytest.raises(
        FileNotFoundError,
        match=r"^expected 'imagenet', None or a weights file, received 'no\.h5', which is no f",
    ):
        backbones.load_backbone("VGG16", weights="no.h5")
    with pytest.raises(FileNotFoundError, match=re.escape(f"received '{tmp_path}', which is no")):
        backbones.load_backbone("VGG16", weights=tmp_path)
    whole = (shelf / "mobilenet.weights.h5").read_bytes()
    wrong = {"half.weights.h5": whole[:100_000], "text.h5": b"text", "text.txt": b"text"}
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in wrong]
    for path in [*files, shelf / "mobilenet.weights.h5", shelf / "mobilenet_7_5_224_tf.h5"]:
        with pytest.raises(
            ValueError,
            match=rf"^expected weights of MobileNet-1\.0, received {re.escape(str(path))}, which d"
            r"oes not hold them: name the network that they are of, or give another file\.$",
        ):
            backbones.load_backbone("MobileNet-1.0", weights=path)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_an_unknown_name_lists_the_names():
    names = ", ".join(LAYERS)
    with pytest.raises(ValueError, match=f"^expected one of {names}, received 'VGG61'.$"):
        backbones.load_backbone("VGG61")
    with pytest.raises(ValueError, match="received 'mobilenet'"):
        backbones.load_backbone("VGG16", fallback=("mobilenet",))


def test_the_real_mobilenet_is_the_one_published(mobilenet):
    assert (mobilenet.name, mobilenet.weights) == ("MobileNet", "ImageNet")
    assert mobilenet.decode(np.eye(1000)[[285]] * 9, top=1)[0][0][0] == "Egyptian_cat"
    assert (
        md5(fetch.folder("models") / Path("mobilenet_7_5_224_tf.h5"))
        == (backbones.NETWORKS["MobileNet"][2])
    )
