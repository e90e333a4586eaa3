"""Pictures draw what they are given, and nothing else."""

from cam_helpers import plots
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
