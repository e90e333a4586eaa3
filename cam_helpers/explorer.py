"""An explorer: choose photo, class, layer and method by mouse or keyboard, and see the map."""

from collections.abc import Mapping, Sequence
import os
from textwrap import fill

from cam_helpers import explaining, plots
from cam_helpers.arrays import brief
from cam_helpers.backbones import Backbone
from cam_helpers.explorer_controls import Explorer
from cam_helpers.explorer_maps import Maps, in_words, network_of
from cam_helpers.photos import load_photo
import ipywidgets as widgets
from matplotlib.figure import Figure


def explore(backbone: Backbone, photos: Mapping | Sequence) -> widgets.VBox:
    """Return controls for photo, class, layer and method, with the map that they choose.

    Each map is that of ``methods.heatmaps``, in the colours of ``plots.overlay``. It follows at
    once where all is compiled; what is near the choice is compiled ahead, in a thread.

    Parameters
    ----------
    backbone
        From ``backbones.load_backbone``.
    photos
        What ``photos.load_photo`` takes, as in ``["cat", "my_photo.jpg"]``, or names of these, as
        in ``{"mine": array}``. Each is cut to the network's size.

    Raises
    ------
    ValueError
        If there are no photos, or the network is fit for no method.

    References
    ----------
    Notebook 13.
    """
    return Explorer(Maps(network_of(backbone), _named(photos)))


def grid(
    backbone: Backbone,
    photos: Mapping | Sequence,
    methods: Sequence[str] = ("Grad-CAM", "saliency"),
    class_index: int | None = None,
    layer: str | None = None,
) -> Figure:
    """Return a picture of what the explorer shows: a column for each photo, a row for each method.

    The colours of each map go from 0 to its own maximum.

    Parameters
    ----------
    backbone, photos
        As for :func:`explore`.
    methods
        Of ``methods.METHODS``.
    class_index
        None for each photo's top class.
    layer
        As for ``cams.grad_cam``.

    Raises
    ------
    OSError, ValueError
        As ``photos.load_photo`` and ``methods.heatmaps``.
    """
    network, named = network_of(backbone, layer), _named(photos)
    seen = [
        explaining.explain(network, load_photo(source), methods, class_index)
        for source in named.values()
    ]
    titles = [
        f"{name[-20:]}\n{_in_lines(in_words(network, each.class_index, each.probabilities))}"
        for name, each in zip(named, seen, strict=True)
    ]
    return plots.show_maps(
        [each.image / 255 for each in seen],
        {method: [each.maps[method] for each in seen] for method in methods},
        [title.replace("$", r"\$") for title in titles],
        alpha=0.7,
        limits=None,
    )


def _in_lines(words):
    return fill(words.replace("under ", "under\N{NO-BREAK SPACE}"), 20)


def _named(photos):
    """Photos by name; those without one are numbered."""
    kinds = isinstance(photos, Mapping | Sequence) and not isinstance(photos, str | bytes)
    if not kinds or not photos:
        raise ValueError(
            f"expected a list or dict of at least one photo, received {brief(photos)}: "
            "give ['cat'], or {'mine': array}."
        )
    if not isinstance(photos, Mapping):
        photos = {
            os.fspath(each) if isinstance(each, str | os.PathLike) else f"photo {number}": each
            for number, each in enumerate(photos, 1)
        }
    readable = (os.fsencode(str(name)).decode("utf-8", "replace") for name in photos)
    return dict(zip(readable, photos.values(), strict=True))
