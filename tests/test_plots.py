"""Pictures draw what they are given, and nothing else."""

import re

from cam_helpers import plots
from cam_helpers.placement import ReceptiveField
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

IMAGE = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4, 1)
HEATMAP = np.arange(12.0).reshape(3, 4)


@pytest.fixture(autouse=True)
def clean():
    with matplotlib.rc_context():
        matplotlib.use("agg")
        yield
        plt.close("all")


def test_overlay_draws_image_and_heatmap_unchanged():
    image, heatmap = IMAGE.copy(), HEATMAP.copy()
    ax = plots.overlay(image, heatmap, "title", cmap="jet", alpha=0.4)
    below, above = ax.images
    np.testing.assert_array_equal(below.get_array(), IMAGE[..., 0])
    np.testing.assert_array_equal(above.get_array(), HEATMAP)
    assert (above.get_cmap().name, above.get_alpha(), above.get_clim()) == ("jet", 0.4, (0, 11))
    assert ax.get_title() == "title"
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(heatmap, HEATMAP)


def test_overlay_paints_the_highest_value_in_the_last_colour():
    ax = plots.overlay(IMAGE, HEATMAP, cmap="inferno", alpha=1.0)
    painted = ax.images[1].to_rgba(HEATMAP)
    np.testing.assert_allclose(painted[2, 3], matplotlib.colormaps["inferno"](1.0))
    np.testing.assert_allclose(painted[0, 0], matplotlib.colormaps["inferno"](0.0))


def test_a_map_of_zeros_says_so():
    ax = plots.overlay(IMAGE, np.zeros((3, 4)), "coat")
    assert ax.get_title() == "coat\n(zero everywhere)"
    assert ax.images[1].get_clim() == (0, 1)


def test_overlay_refuses_a_heatmap_of_another_size():
    message = r"expected a heatmap of the image's height and width \(3, 4\), received \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        plots.overlay(IMAGE, HEATMAP.T)


def test_show_maps_gives_every_row_the_same_colours_and_a_bar():
    rows = {"one": [HEATMAP, HEATMAP / 2], "two": [HEATMAP / 3, HEATMAP * 0]}
    figure = plots.show_maps([IMAGE, IMAGE], rows, ["a", "b"], limits=(0, 11), colour_bar="score")
    drawn = [ax.images[1] for ax in figure.axes if len(ax.images) == 2]
    assert {image.get_clim() for image in drawn} == {(0, 11)}
    np.testing.assert_array_equal(drawn[1].get_array(), HEATMAP / 2)
    np.testing.assert_array_equal(drawn[2].get_array(), HEATMAP / 3)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["a", "b"]
    assert [ax.texts[0].get_text() for ax in figure.axes if ax.texts] == ["one", "two"]
    assert figure.axes[-1].get_ylabel() == "score"


def test_show_maps_refuses_one_bar_for_many_scales():
    with pytest.raises(ValueError, match=r"expected limits with a colour_bar, received None"):
        plots.show_maps([IMAGE], {"one": [HEATMAP]}, limits=None, colour_bar="score")


def test_show_images_fills_rows_and_leaves_the_rest_empty():
    figure = plots.show_images([IMAGE] * 5, ["t"] * 5, columns=3)
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1, 1, 0]
    assert figure.axes[0].images[0].get_clim() == (0, 1)


def test_confusion_writes_the_counts_that_are_not_zero():
    counts = np.array([[90, 3], [0, 7]])
    ax = plots.confusion(counts, ["coat", "bag"])
    written = {text.get_position()[::-1]: text.get_text() for text in ax.texts}
    assert written == {(0, 0): "90", (0, 1): "3", (1, 1): "7"}
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("true class", "predicted class")


def test_show_source_is_the_function_s_own_text():
    shown = plots.show_source(plots.overlay).data
    assert shown.startswith("```python\ndef overlay(")
    assert shown.endswith("    return ax\n```")


FIELD = ReceptiveField(size=(9, 9), stride=(4, 4), start=(2, 6))


def test_overlay_places_a_map_and_frames_what_is_known():
    image, heatmap = np.zeros((12, 16)), HEATMAP[:, :3]
    ax = plots.overlay(image, heatmap, field=FIELD)
    np.testing.assert_array_equal(ax.images[1].get_array(), plots.place(heatmap, (12, 16), FIELD))
    frame = ax.patches[0]
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((6, 2), 8, 8)
    assert frame.get_linestyle() == ":"
    ax = plots.overlay(image, heatmap, field="resize")
    resized = plots.place(heatmap, (12, 16), "resize")
    np.testing.assert_array_equal(ax.images[1].get_array(), resized)


def test_show_maps_passes_colours_and_opacity_on():
    figure = plots.show_maps([IMAGE], {"one": [HEATMAP]}, cmap="jet", alpha=0.3)
    drawn = figure.axes[1].images[1]
    assert (drawn.get_cmap().name, drawn.get_alpha(), drawn.get_clim()) == ("jet", 0.3, (0, 1))


def test_a_map_of_the_images_size_has_no_frame():
    assert not plots.overlay(IMAGE, HEATMAP).patches


def test_show_maps_takes_one_field_or_one_for_each_row():
    image, rows = np.zeros((12, 16)), {"where it looked": [HEATMAP], "resized": [HEATMAP]}
    fields = {"where it looked": FIELD, "resized": "resize"}
    figure = plots.show_maps([image], rows, field=fields, limits=(0, 11))
    drawn = [ax.images[1].get_array() for ax in figure.axes[1:]]
    for found, field in zip(drawn, fields.values(), strict=True):
        np.testing.assert_array_equal(found, plots.place(HEATMAP, (12, 16), field))
    figure = plots.show_maps([image], rows, field=FIELD, limits=(0, 11))
    np.testing.assert_array_equal(*(ax.images[1].get_array() for ax in figure.axes[1:]))


def test_stretch_divides_each_map_by_its_maximum_and_leaves_empty_ones():
    maps = np.array([HEATMAP, 0 * HEATMAP, -HEATMAP])
    kept = maps.copy()
    np.testing.assert_allclose(plots.stretch(maps), [HEATMAP / 11, 0 * HEATMAP, -HEATMAP])
    np.testing.assert_array_equal(maps, kept)


def test_superimpose_adds_the_colours_and_stops_at_white():
    photo = np.full((1, 3, 3), 0.5)
    heatmap = np.array([[0.0, 0.5, 1.0]])
    jet = matplotlib.colormaps["jet"](heatmap)[..., :3]
    np.testing.assert_allclose(plots.superimpose(photo, heatmap), np.minimum(0.8 * jet + 0.5, 1))
    assert plots.superimpose(photo, heatmap).max() == 1
    whole = plots.superimpose(photo, np.array([[0, 0, 1]]))
    np.testing.assert_array_equal(whole[0, 2], plots.superimpose(photo, heatmap)[0, 2])
    red = plots.superimpose(photo, heatmap, strength=0.4)[0, 2]
    assert red[0] > red[2] == 0.5  # the highest value is red, not blue


def test_emphasis_is_the_sigmoid_around_one_half():
    heatmap = np.array([[0.0, 0.5, 0.52, 1.0]])
    emphasized = plots.superimpose(np.zeros((1, 4, 3)), heatmap, 1.0, True, "gray")[0, :, 0]
    expected = 1 / (1 + np.exp([25, 0, -1, -25]))
    np.testing.assert_allclose(emphasized, expected, atol=1 / 255)


@pytest.mark.parametrize(
    ("photo", "heatmap", "sentence"),
    [
        (np.zeros((3, 4, 3)), HEATMAP, "expected a heatmap with values from 0 to 1, received 0 to"),
        (np.full((3, 4, 3), 255), HEATMAP / 11, "expected a photo with values from 0 to 1, receiv"),
        (
            np.zeros((3, 4, 3)),
            HEATMAP * np.nan,
            "expected a heatmap with values from 0 to 1, received",
        ),
        (np.zeros((4, 3, 3)), HEATMAP / 11, "image's height and width (4, 3), received (3, 4)"),
    ],
)
def test_superimpose_refuses(photo, heatmap, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        plots.superimpose(photo, heatmap)


def test_a_figure_is_saved_whole_or_not_at_all(tmp_path):
    figure, path = plt.figure(figsize=(1, 1)), tmp_path / "new" / "figure.png"
    plots.save(figure, path, dpi=30)
    assert plt.imread(path).shape[:2] == (30, 30)
    before = path.read_bytes()

    def fail(file, **_):
        file.write(b"half")
        raise OSError("stop")

    figure.savefig = fail
    with pytest.raises(OSError, match=r"^stop$"):
        plots.save(figure, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
