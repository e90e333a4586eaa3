"""The explorer's controls, and the pictures that follow them."""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import threading
import time

from cam_helpers.class_names import find_class
from cam_helpers.explorer_maps import SLOW, Choice, Maps, layer_for
from cam_helpers.explorer_pictures import map_html, photo_html, sentence_html
import ipywidgets as widgets
import numpy as np

TOP, FOUND = 5, 50  # classes listed without a search and with one
QUIET = 0.5  # seconds without a choice before more is compiled


class Stopped(Exception):
    """Another choice was made, or Stop pressed."""


def find_classes(text: str, labels: Sequence[str]) -> list[int]:
    """Return the classes whose label has this text in it: a label, a word's begin, others.

    A number is an index. ValueError, which has the nearest labels, if there is none.
    """
    part = text.replace("_", " ").strip().lower()
    spaced = [f" {label.replace('_', ' ').lower()}" for label in labels]
    found = [index for index, label in enumerate(spaced) if part in label]
    found.sort(key=lambda index: (spaced[index] != f" {part}", f" {part}" not in spaced[index]))
    return found[:FOUND] or [find_class(text, labels)]


class Explorer(widgets.VBox):
    """What :func:`explore` returns: the controls, and the pictures that follow them."""

    def __init__(self, maps: Maps):
        self.maps, self.class_index = maps, 0
        self._turn, self._last, self._lock = 0, 0.0, threading.RLock()
        self._drawn, self._listing, self._ahead = {}, False, threading.Thread()

        self.photo = _control(widgets.Dropdown, "Photo", options=list(maps.sources))
        self.search = _control(widgets.Text, "Find class", placeholder="part of its name")
        self.classes = _control(widgets.Dropdown, "Class")
        layers = {"options": maps.layers, "value": maps.network.layer}
        self.layer = _control(widgets.Dropdown, "Layer", **layers)
        self.method = _control(widgets.Dropdown, "Method", options=maps.methods)
        self.beside = _control(widgets.Dropdown, "Beside it", options=["none", *maps.methods])
        self.opacity = _control(widgets.FloatSlider, "Opacity", value=0.5, max=1, step=0.05)
        self.bar = _control(widgets.IntProgress, "Passes")
        self.stop = widgets.Button(description="Stop")
        self.note = widgets.HTML()
        self.pictures = [widgets.HTML(layout={"width": "240px"}) for _ in range(3)]

        self.photo.observe(self._choose_photo, "value")
        self.search.observe(self._list_classes, "value")
        self.classes.observe(self._choose_class, "value")
        for control in (self.layer, self.method, self.beside):
            control.observe(self._look, "value")
        self.opacity.observe(self._draw_again, "value")
        self.stop.on_click(lambda _: self._begin("Stopped."))

        controls = [self.photo, self.search, self.classes, self.layer, self.method, self.beside]
        controls += [self.opacity, self.bar, self.stop, self.note]
        wrapped = {"flex_flow": "row wrap"}
        left = widgets.VBox(controls, layout={"width": "300px", "max_width": "100%"})
        right = widgets.HBox(self.pictures, layout={**wrapped, "flex": "1 1 240px"})
        super().__init__([widgets.HBox([left, right], layout=wrapped)])
        self._choose_photo()

    def __repr__(self):
        name = self.maps.network.name
        return f"Explorer of {name}: run this cell in JupyterLab or Colab to use it."

    def _choose_photo(self, _=None):
        self._begin()
        try:
            seen = self.maps.seen(self.photo.value)
        except Exception as error:  # whatever it is, a callback's error would go unseen
            self._drawn.clear()
            for picture, html in zip(self.pictures, (_sorry(error), "", ""), strict=True):
                picture.value = html
            return
        name = self.maps.network.name
        self.pictures[0].value = photo_html(seen.image, self.photo.value, name)
        self.class_index = int(seen.probabilities.argmax())
        self.search.value = ""
        self._list_classes()
        self._look()

    def _list_classes(self, _=None):
        self.note.value = ""
        try:
            likely = np.argsort(-self.maps.seen(self.photo.value).probabilities, kind="stable")
            found = likely[:TOP].tolist()
            if self.search.value.strip():
                found = find_classes(self.search.value, self.maps.network.labels)
            elif self.class_index not in found:
                found.append(self.class_index)
        except Exception as error:  # no such class, no such photo
            found, self.note.value = [], sentence_html(str(error))
        self._listing = True
        self.classes.options = [
            (self.maps.class_of(index, self.photo.value), index) for index in found
        ]
        self.classes.value = self.class_index if self.class_index in found else None
        self._listing = False
        if len(found) == 1:
            self.classes.value = found[0]

    def _choose_class(self, change):
        if not self._listing and change["new"] is not None:
            self.class_index = change["new"]
            self._look()

    def _look(self, _=None):
        """Show what is chosen: fast methods at once, slow ones in a thread."""
        turn, slow = self._begin(), []
        for picture, method in zip(self.pictures[1:], self._chosen(), strict=True):
            layer = layer_for(method, self.layer.value)
            choice = Choice(self.photo.value, self.class_index, layer, method)
            if method == "none":
                self._put(turn, picture, lambda opacity: "")
            elif method in SLOW:
                slow.append((picture, choice))
            else:
                self._show(turn, picture, choice)
        if slow:
            threading.Thread(target=self._show_slowly, args=(turn, slow), daemon=True).start()
        if not self._ahead.is_alive():
            self._ahead = threading.Thread(target=self._prepare, daemon=True)
            self._ahead.start()

    def _chosen(self):
        return self.method.value, self.beside.value

    def _begin(self, note=""):
        """Begin a turn, which ends the one before; return its number."""
        with self._lock:
            self._turn, self._last = self._turn + 1, time.monotonic()
            self._show_bar(False, note)
            return self._turn

    def _show(self, turn, picture, choice):
        if not self.maps.is_ready(choice.layer, choice.method):
            with self._lock:
                if turn == self._turn:
                    self.note.value = sentence_html(f"{choice.method}, first time here: preparing.")
        try:
            heatmap = self.maps.heatmap(choice, functools.partial(self._passes, turn))
            about = {"method": choice.method, "about": self.maps.about(choice)}
            image = self.maps.seen(choice.photo).image
        except Stopped:
            return
        except Exception as error:
            sorry = _sorry(f"{choice.method}: {error}")
            self._put(turn, picture, lambda opacity: sorry)
        else:
            self._put(turn, picture, functools.partial(map_html, image, heatmap, **about))

    def _put(self, turn, picture, draw):
        with self._lock:
            if turn == self._turn:
                self._drawn[picture] = draw
                picture.value, self.note.value = draw(opacity=self.opacity.value), ""

    def _draw_again(self, _=None):
        with self._lock:
            self._last = time.monotonic()
            for picture, draw in self._drawn.items():
                picture.value = draw(opacity=self.opacity.value)

    def _show_slowly(self, turn, slow):
        for picture, choice in slow:
            self._show(turn, picture, choice)
        with self._lock:
            if turn == self._turn:
                self._show_bar(False)

    def _passes(self, turn, steps) -> Iterator:
        """Go through the passes of a slow method as long as its turn lasts."""
        for done, step in enumerate(steps):
            with self._lock:
                if turn != self._turn:
                    raise Stopped
                self.bar.max, self.bar.value = len(steps), done
                self._show_bar(True)
            yield step

    def _show_bar(self, running, note=""):
        self._running, self.note.value = running, sentence_html(note) if note else ""
        for each in (self.bar, self.stop):
            each.layout.visibility = "visible" if running else "hidden"

    def _prepare(self):
        """Compile what may be chosen next, while nothing else happens."""
        while step := self.maps.to_prepare(self.layer.value, self._chosen()):
            pause = self._last + QUIET - time.monotonic()
            if pause > 0 or self._running:
                time.sleep(max(pause, 0.1))
                continue
            with contextlib.suppress(Exception):  # which comes again when it is chosen
                self.maps.prepare(*step)


def _control(kind, description, **options):
    style = {"description_width": "5.5em"}
    return kind(description=description, style=style, layout={"width": "auto"}, **options)


def _sorry(error):
    return sentence_html(str(error), "alert")
