"""The explorer without a browser: what each control does to the pictures, and in which order."""

import base64
import io
import re
import threading
import time

from cam_helpers import (
    backbones,
    explorer,
    explorer_controls,
    explorer_maps,
    methods,
    networks,
    photos,
    plots,
)
from cam_helpers.backend import keras
from cam_helpers.explorer_controls import find_classes
from cam_helpers.explorer_pictures import highest, map_html, over
from cam_helpers.progress import passes
from cam_helpers.stored_widgets import WithoutWidgets
import matplotlib.pyplot as plt
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
import numpy as np
from PIL import Image
import pytest

SIZE = (24, 32)
LABELS = ["tiger_cat", "tiger", "polecat", "tub", "cat_food", "crane", "crane"]
CAT = photos.load_photo("cat", SIZE)
NASTY = '<img src=x onerror="x()">&'


def small_network(activation="relu"):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation=activation, name="first")(inputs)
    x = keras.layers.Conv2D(6, 3, activation=activation, name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(len(LABELS))(x))
    return backbones.Backbone("MobileNet", model, "ImageNet", SIZE, "second")


@pytest.fixture(autouse=True)
def labels(monkeypatch):
    monkeypatch.setattr(backbones, "labels", lambda: dict(enumerate(LABELS)))
    monkeypatch.setattr(explorer_maps, "AHEAD", 0)  # nothing behind a test's back


@pytest.fixture(scope="module")
def backbone():
    return small_network()


@pytest.fixture
def shown(backbone):
    return explorer.explore(backbone, {"cat": "cat", "cup": "espresso", NASTY: CAT / 255})


@pytest.fixture
def slow(monkeypatch):
    """A Score-CAM that the test lets go on, by ``slow.go``, and that tells how it fared."""

    class Slow(threading.Event):
        started, ended, passes = threading.Event(), threading.Event(), 0

    slow, real = Slow(), methods.heatmaps

    def heatmaps(name, model, images, class_index, **options):
        if name != "Score-CAM" or "progress" not in options:
            return real(name, model, images, class_index, **options)
        try:
            for _ in options["progress"](range(1000)):
                slow.started.set()
                slow.passes += 1
                slow.wait(0.01)
                if slow.is_set():
                    break
            return np.ones((1, *SIZE), np.float32)
        finally:
            slow.ended.set()

    monkeypatch.setattr(explorer_maps, "heatmaps", heatmaps)
    return slow


def until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError


def pixels(picture):
    png = re.search(r'src="data:image/png;base64,([^"]+)"', picture.value)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(int)


def words(picture):
    found = re.search(r'<img alt="([^"]*)"', picture.value)
    return found and found[1]


def as_plotted(image, heatmap, opacity):
    """What plots.overlay draws, pixel by pixel."""
    height, width = heatmap.shape
    figure = plt.figure(figsize=(width / 50, height / 50), dpi=50, layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    plots.overlay(image / 255, heatmap, alpha=opacity, ax=ax)
    ax.set_title("")
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    plt.close(figure)
    return drawn


def expected(backbone, name, class_index, layer=None, image=CAT, **options):
    images = backbone.preprocess(image[np.newaxis])
    return methods.heatmaps(name, backbone.model, images, class_index, layer=layer, **options)[0]


# what is shown


@pytest.mark.parametrize(
    ("method", "layer", "class_index", "opacity"),
    [("Grad-CAM", "second", 3, 0.5), ("LayerCAM", "first", 0, 0.9), ("saliency", None, 1, 0.25)],
)
def test_a_choice_shows_the_map_of_the_method_in_the_colours_of_a_plot(
    backbone, shown, method, layer, class_index, opacity
):
    shown.method.value, shown.opacity.value = method, opacity
    if layer:
        shown.layer.value = layer
    shown.search.value = str(class_index)
    heatmap = expected(backbone, method, class_index, layer)
    assert heatmap.max() > 0
    np.testing.assert_array_equal(pixels(shown.pictures[1]), over(CAT, heatmap, opacity))
    drawn = as_plotted(CAT, heatmap, opacity)
    np.testing.assert_allclose(pixels(shown.pictures[1]), drawn, atol=2)
    label, place = LABELS[class_index].replace("_", " "), f", layer {layer}" if layer else ""
    probability = shown.maps.seen("cat").probabilities[class_index]
    assert words(shown.pictures[1]) == (
        f"{method} of {label} ({probability:.2f}){place}, photo cat: {highest(heatmap)}"
    )
    assert f"{heatmap.max():.2g} score per " in shown.pictures[1].value


def test_it_begins_with_the_first_photo_and_its_top_class(backbone, shown):
    probabilities = keras.ops.softmax(backbone.model(backbone.preprocess(CAT[np.newaxis])))[0]
    order = np.argsort(-np.asarray(probabilities))
    assert [value for _, value in shown.classes.options] == order[:5].tolist()
    named = [f"{LABELS[k].replace('_', ' ')} ({probabilities[k]:.2f})" for k in order[:5]]
    assert [label for label, _ in shown.classes.options] == named
    assert shown.classes.value == order[0]
    assert words(shown.pictures[0]) == "Photo cat as MobileNet saw it"
    np.testing.assert_array_equal(pixels(shown.pictures[0]), CAT)
    assert words(shown.pictures[1]).startswith(f"Grad-CAM of {named[0]}, layer second, photo cat:")
    assert shown.pictures[2].value == ""


def test_another_photo_comes_with_its_own_top_class(backbone, shown):
    shown.search.value = "polecat"
    shown.photo.value = "cup"
    cup = photos.load_photo("espresso", SIZE)
    top = int(np.argmax(backbone.model(backbone.preprocess(cup[np.newaxis]))))
    assert (shown.search.value, shown.classes.value) == ("", top)
    np.testing.assert_array_equal(pixels(shown.pictures[0]), cup)
    heatmap = expected(backbone, "Grad-CAM", top, image=cup)
    np.testing.assert_array_equal(pixels(shown.pictures[1]), over(cup, heatmap, 0.5))


def test_two_methods_side_by_side(backbone, shown):
    shown.beside.value = "saliency"
    assert words(shown.pictures[1]).startswith("Grad-CAM of")
    heatmap = expected(backbone, "saliency", shown.classes.value)
    np.testing.assert_array_equal(pixels(shown.pictures[2]), over(CAT, heatmap, 0.5))
    shown.opacity.value = 0
    np.testing.assert_array_equal(pixels(shown.pictures[1]), CAT)
    np.testing.assert_array_equal(pixels(shown.pictures[2]), CAT)
    shown.beside.value = "none"
    shown.opacity.value = 0.5
    assert shown.pictures[2].value == ""


def test_maps_are_placed_by_resizing_only_where_it_is_said(backbone, shown, monkeypatch):
    placed = expected(backbone, "Grad-CAM", 3)

    def unknown(*_):
        raise ValueError

    monkeypatch.setattr(networks, "field_of", unknown)
    shown.search.value = "tub"
    heatmap = expected(backbone, "Grad-CAM", 3, placement="resize")
    assert not np.allclose(heatmap, placed)
    np.testing.assert_array_equal(pixels(shown.pictures[1]), over(CAT, heatmap, 0.5))
    assert "layer second (resized: where its cells look is unknown)" in words(shown.pictures[1])


def test_methods_that_the_network_is_not_fit_for_are_left_out(backbone, shown):
    assert shown.method.options == methods.METHODS
    smooth = explorer.explore(small_network("elu"), ["cat"])
    left_out = {"guided backpropagation", "deconvnet", "guided Grad-CAM"}
    assert set(shown.method.options) - set(smooth.method.options) == left_out


def test_a_class_in_words(shown):
    probabilities = np.array([0.623, 0.01, 0.0099])
    named = [explorer_maps.in_words(shown.maps.network, k, probabilities) for k in range(3)]
    assert named == ["tiger cat (0.62)", "tiger (0.01)", "polecat (under 0.01)"]


@pytest.mark.parametrize(
    ("peak", "place"),
    [
        ((0, 0), "upper left"),
        ((0, 16), "top"),
        ((7, 31), "upper right"),
        ((8, 0), "left"),
        ((12, 16), "centre"),
        ((15, 22), "right"),
        ((16, 10), "lower left"),
        ((23, 11), "bottom"),
        ((23, 31), "lower right"),
    ],
)
def test_words_say_where_a_map_is_highest(peak, place):
    heatmap = np.full(SIZE, 0.1)
    heatmap[peak] = 0.2
    assert highest(heatmap) == f"highest at the {place}"


def test_a_map_that_is_zero_everywhere_says_so():
    html = map_html(CAT, np.zeros(SIZE), 0.5, "Grad-CAM", ["tub"])
    assert 'alt="Grad-CAM of tub: zero everywhere"' in html
    assert "<br>zero everywhere</figcaption>" in html


def test_names_are_escaped(shown):
    shown.photo.value = NASTY
    for picture in shown.pictures[:2]:
        assert "<img src" not in picture.value
        assert "photo &lt;img" in picture.value.lower()
        assert NASTY.split("&")[0] not in picture.value


# the search


def test_find_classes():
    assert find_classes("cat", LABELS) == [0, 4, 2]  # words before parts of words
    assert find_classes("Tiger", LABELS) == [1, 0]  # the label itself first
    assert find_classes("tiger_c", LABELS) == find_classes("tiger c", LABELS) == [0]
    assert find_classes("crane", LABELS) == [5, 6]
    assert find_classes("3", LABELS) == [3]
    with pytest.raises(ValueError, match=r"received 'tigr cat': did you mean 'tiger_cat'"):
        find_classes("tigr cat", LABELS)


def test_typing_narrows_the_list_and_chooses_the_only_one(shown):
    shown.search.value = "polecat"
    shown.search.value = "crane"
    assert [value for _, value in shown.classes.options] == [5, 6]
    assert (shown.classes.value, shown.class_index) == (None, 2)
    shown.classes.value = 6
    assert words(shown.pictures[1]).startswith("Grad-CAM of crane")
    shown.search.value = "tu"
    assert shown.classes.value == 3
    assert words(shown.pictures[1]).startswith("Grad-CAM of tub")
    shown.search.value = "xyz"
    assert shown.classes.options == ()
    assert "received &#x27;xyz&#x27;" in shown.note.value
    assert words(shown.pictures[1]).startswith("Grad-CAM of tub")
    shown.search.value = ""
    assert (len(shown.classes.options), shown.classes.value, shown.note.value) == (6, 3, "")


# what takes long


def test_a_slow_method_shows_its_passes_and_can_be_stopped(shown, slow):
    before = shown.pictures[1].value
    shown.method.value = "Score-CAM"
    assert slow.started.wait(5)
    until(lambda: shown.bar.value > 1)
    assert (shown.bar.max, shown.bar.layout.visibility, shown.stop.layout.visibility) == (
        1000,
        "visible",
        "visible",
    )
    shown.stop.click()
    assert slow.ended.wait(5)
    assert slow.passes < 900
    assert shown.note.value.startswith('<div role="status"')
    assert "Stopped." in shown.note.value
    assert shown.bar.layout.visibility == shown.stop.layout.visibility == "hidden"
    assert shown.pictures[1].value == before
    shown.method.value = "LayerCAM"
    assert words(shown.pictures[1]).startswith("LayerCAM")


def test_another_choice_stops_a_slow_method_too(shown, slow):
    shown.method.value = "Score-CAM"
    assert slow.started.wait(5)
    shown.layer.value, shown.method.value = "first", "Grad-CAM"
    assert slow.ended.wait(5)
    time.sleep(0.05)
    assert slow.passes < 900
    assert words(shown.pictures[1]).startswith("Grad-CAM")
    assert shown.bar.layout.visibility == "hidden"


def test_opacity_does_not_stop_it(shown, slow):
    shown.method.value = "Score-CAM"
    assert slow.started.wait(5)
    shown.opacity.value = 1
    slow.set()
    until(lambda: "Score-CAM" in (words(shown.pictures[1]) or ""))
    np.testing.assert_array_equal(pixels(shown.pictures[1]), over(CAT, np.ones(SIZE), 1))
    until(lambda: shown.bar.layout.visibility == "hidden")


def test_the_fast_one_beside_it_does_not_wait(shown, slow):
    shown.method.value, shown.beside.value = "Score-CAM", "saliency"
    assert words(shown.pictures[2]).startswith("saliency")
    assert slow.started.wait(5)
    assert words(shown.pictures[1]).startswith("Grad-CAM")
    slow.set()
    until(lambda: words(shown.pictures[1]).startswith("Score-CAM"))


def test_the_last_choice_wins(shown, monkeypatch):
    """Even if the map of an older one comes late and nothing could stop it."""
    late, ended, real = threading.Event(), threading.Event(), shown.maps.heatmap

    def heatmap(choice, progress):
        if choice.method == "SmoothGrad":
            late.wait(5)
        try:
            return real(choice, False)
        finally:
            if choice.method == "SmoothGrad":
                ended.set()

    monkeypatch.setattr(shown.maps, "heatmap", heatmap)
    shown.method.value = "SmoothGrad"
    shown.method.value = "LayerCAM"
    late.set()
    assert ended.wait(10)
    time.sleep(0.1)
    assert words(shown.pictures[1]).startswith("LayerCAM")
    assert shown.note.value == ""


def test_the_first_time_is_announced(shown, monkeypatch):
    notes, real = [], explorer_maps.heatmaps

    def heatmaps(*args, **options):
        notes.append(shown.note.value)
        return real(*args, **options)

    monkeypatch.setattr(explorer_maps, "heatmaps", heatmaps)
    shown.method.value = "deconvnet"
    assert "deconvnet, first time here: preparing." in notes[0]
    assert shown.note.value == ""
    shown.search.value = "tub"
    assert notes[-1] == ""


# what fails


def test_an_error_is_one_sentence_and_no_end(shown, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("expected <this>, received that: do so.")

    with monkeypatch.context() as broken:
        broken.setattr(explorer_maps, "heatmaps", refuse)
        shown.method.value = "LayerCAM"
        assert 'role="alert"' in shown.pictures[1].value
        assert "LayerCAM: expected &lt;this&gt;, received that: do so.<" in shown.pictures[1].value
        shown.opacity.value = 0.3
        assert "expected &lt;this&gt;" in shown.pictures[1].value
        shown.method.value = "Score-CAM"
        until(lambda: "Score-CAM: expected" in shown.pictures[1].value)
    shown.method.value = "LayerCAM"
    assert words(shown.pictures[1]).startswith("LayerCAM")


def test_a_photo_that_is_not_there_is_a_sentence(backbone, tmp_path):
    lost = tmp_path / "lost.png"
    shown = explorer.explore(backbone, ["cat", lost])
    shown.photo.value = str(lost)
    assert 'role="alert"' in shown.pictures[0].value
    assert "lost.png" in shown.pictures[0].value
    assert shown.pictures[1].value == ""
    shown.opacity.value = 0.2
    assert shown.pictures[1].value == ""
    shown.photo.value = "cat"
    assert words(shown.pictures[1]).startswith("Grad-CAM")


def test_photos_without_a_name_are_numbered(backbone, tmp_path):
    path = tmp_path / "mine.png"
    Image.fromarray(CAT.astype(np.uint8)).save(path)
    shown = explorer.explore(backbone, [CAT / 255, path, CAT / 255])
    assert shown.photo.options == ("photo 1", str(path), "photo 3")
    shown.photo.value = str(path)
    np.testing.assert_array_equal(pixels(shown.pictures[0]), CAT.astype(np.uint8))


@pytest.mark.parametrize("wrong", ["cat", [], {}, CAT, None])
def test_photos_must_be_several(backbone, wrong):
    with pytest.raises(ValueError, match=r"^expected a list or dict of at least one photo, rec"):
        explorer.explore(backbone, wrong)


# what is kept, and made ahead


def test_maps_are_kept_but_not_all(shown, monkeypatch):
    calls, real = [], explorer_maps.heatmaps

    def heatmaps(name, model, images, class_index, **options):
        calls.append(class_index)
        return real(name, model, images, class_index, **options)

    monkeypatch.setattr(explorer_maps, "heatmaps", heatmaps)
    monkeypatch.setattr(explorer_maps, "KEPT", 3)
    first = shown.class_index
    others = [index for index in range(6) if index != first][:3]
    for index in (others[0], others[1], first, others[0]):
        shown.search.value = str(index)
    assert calls == others[:2]
    shown.search.value = str(others[2])  # others[1] is the one not seen for longest
    shown.search.value = str(first)
    assert calls == others
    shown.search.value = str(others[1])
    assert calls == [*others, others[1]]
    assert len(shown.maps._maps) == 3


def test_the_nearest_is_prepared_first_and_once(shown, monkeypatch):
    monkeypatch.setattr(explorer_maps, "AHEAD", 100)
    steps = []
    while step := shown.maps.to_prepare("second", ("LayerCAM", "none")):
        steps.append(step)
        shown.maps.prepare(*step)
    assert steps[:3] == [("second", "Grad-CAM++"), ("second", "LayerCAM"), ("second", "HiResCAM")]
    assert (None, "deconvnet") in steps
    assert steps[-1] == ("first", "LayerCAM")
    assert len(set(steps)) == len(steps)
    calls = []
    monkeypatch.setattr(explorer_maps, "heatmaps", lambda *args, **_: calls.append(args))
    shown.maps.prepare("first", "LayerCAM")
    assert calls == []
    monkeypatch.setattr(explorer_maps, "AHEAD", len(shown.maps._ready))
    assert shown.maps.to_prepare("first", ("Grad-CAM",)) is None


def test_of_many_layers_the_near_ones_are_prepared(shown, monkeypatch):
    monkeypatch.setattr(explorer_maps, "AHEAD", 1000)
    monkeypatch.setattr(explorer_maps, "NEAR", 4)
    shown.maps.layers, shown.maps.methods = list("abcdefgh"), ["Grad-CAM", "LayerCAM"]
    steps = []
    while step := shown.maps.to_prepare("d", ("LayerCAM", "none")):
        steps.append(step)
        shown.maps._ready.add(step)
    assert steps == [("d", "Grad-CAM"), *((layer, "LayerCAM") for layer in "dceb")]


def test_it_prepares_in_a_thread(backbone, monkeypatch):
    monkeypatch.setattr(explorer_maps, "AHEAD", 100)
    monkeypatch.setattr(explorer_controls, "QUIET", 0)
    shown = explorer.explore(backbone, ["cat"])
    until(lambda: not shown._ahead.is_alive())
    assert shown.maps.is_ready("second", "HiResCAM")
    assert shown.maps.is_ready("first", "Grad-CAM")
    assert not shown.maps.is_ready("first", "HiResCAM")


def test_one_thread_at_a_time_compiles(backbone, shown, monkeypatch):
    other = explorer.explore(backbone, ["cat"])
    inside, most = [], []

    def heatmaps(*_, **__):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return np.ones((1, *SIZE))

    monkeypatch.setattr(explorer_maps, "heatmaps", heatmaps)
    steps = [(layer, method) for layer in ("first", "second") for method in list(methods.CAMS)[1:]]
    threads = [
        threading.Thread(target=lambda maps=each.maps: [maps.prepare(*step) for step in steps])
        for each in (shown, other, shown)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) == 2 * len(steps)


# where there is no browser


def test_its_text_is_always_the_same(shown):
    text = "Explorer of MobileNet: run this cell in JupyterLab or Colab to use it."
    assert repr(shown) == text
    if hasattr(shown, "_repr_mimebundle_"):  # since ipywidgets 8
        assert shown._repr_mimebundle_()["text/plain"] == text


def test_a_notebook_keeps_its_text_but_no_widget():
    view = {"text/plain": "Explorer", "application/vnd.jupyter.widget-view+json": {"model_id": 1}}
    outputs = [new_output("execute_result", data=view), new_output("stream", text="0.5")]
    cells = [new_code_cell("explore()", outputs=outputs), new_markdown_cell("so")]
    notebook = new_notebook(cells=cells, metadata={"widgets": {"state": 1}, "title": "x"})
    stored, _ = WithoutWidgets().preprocess(notebook, {})
    assert stored.metadata == {"title": "x"}
    assert stored.cells[0].outputs[0].data == {"text/plain": "Explorer"}
    assert stored.cells[0].outputs[1].text == "0.5"


def test_the_grid_shows_the_same_maps(backbone):
    named = {"cat": "cat", "cost $1 $2": "espresso"}
    figure = explorer.grid(backbone, named, ("LayerCAM", "saliency"), 2, "first")
    axes = np.reshape(figure.axes, (3, 2))
    for column, (image, title) in zip(
        axes.T, [(CAT, "cat"), (photos.load_photo("espresso", SIZE), r"cost \$1 \$2")], strict=True
    ):
        assert re.fullmatch(re.escape(title) + r"\npolecat \(0\.\d\d\)", column[0].get_title())
        np.testing.assert_array_equal(column[0].images[0].get_array(), image / 255)
        for ax, name in zip(column[1:], ("LayerCAM", "saliency"), strict=True):
            heatmap = expected(backbone, name, 2, "first", image)
            np.testing.assert_allclose(ax.images[-1].get_array(), heatmap, rtol=1e-5)
            assert ax.images[-1].get_clim() == pytest.approx((0, heatmap.max()))
    plt.close(figure)
    figure = explorer.grid(backbone, ["cat"])
    top = int(np.argmax(backbone.model(backbone.preprocess(CAT[np.newaxis]))))
    heatmap = expected(backbone, "Grad-CAM", top, "second")
    np.testing.assert_allclose(figure.axes[1].images[-1].get_array(), heatmap, rtol=1e-5)
    plt.close(figure)


# progress


def test_passes(capfd):
    assert list(passes([1, 2], "passes", False)) == [1, 2]
    assert capfd.readouterr().err == ""
    assert list(passes([1, 2], "passes", True)) == [1, 2]
    assert "passes" in capfd.readouterr().err
    assert passes([1, 2], "passes", lambda steps: [len(steps), *steps]) == [2, 1, 2]


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("SmoothGrad", {"samples": 5}, 2 * 3),  # of all images together
        ("integrated gradients", {"steps": 4}, 2 * 2),
        ("Score-CAM", {"layer": "second"}, 3),  # of each image
    ],
)
def test_slow_methods_go_through_a_callable(backbone, name, options, count):
    images = backbone.preprocess(np.stack([CAT, CAT[::-1]]))
    options = {**options, "batch_size": 2}
    counts, done = [], []

    def progress(steps):
        counts.append(len(steps))
        for step in steps:
            done.append(step)
            yield step

    found = methods.heatmaps(name, backbone.model, images, 1, progress=progress, **options)
    without = methods.heatmaps(name, backbone.model, images, 1, **options)
    np.testing.assert_array_equal(found, without)
    assert set(counts) == {count}
    assert len(done) == sum(counts)

    def stop(steps):
        yield steps[0]
        raise KeyError

    with pytest.raises(KeyError):
        methods.heatmaps(name, backbone.model, images, 1, progress=stop, **options)
