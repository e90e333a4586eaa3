"""Notebook 13 in JupyterLab, in a real browser: what a reader does with mouse and keyboard."""

from pathlib import Path
import re

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "13_explore_with_the_mouse.ipynb"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"  # of the first cell
MINUTE = 60_000  # ms, for what waits for TensorFlow or for many passes
SLOW = ("for the first time", "gradients")  # the bar is for the others: 300 ms on a quiet machine
TIMES = """() => {
  window.times = {};
  for (const kind of ["change", "click", "keydown"])
    document.addEventListener(kind, () => { times.asked = performance.now(); }, true);
  const look = () => {
    const maps = [...document.querySelectorAll("img[alt*=' of ']")];
    const sums = maps.map((map) => map.src.slice(-60)).join();  // a PNG ends in checksums
    if (sums !== times.sums) Object.assign(times, {sums, shown: performance.now()});
  };
  look();
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true});
}"""


class Reader:
    """Someone before the notebook: what was said on the console, how long pictures took."""

    def __init__(self, browser, lab):
        self.page = page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.errors, self.elsewhere, self.times, self.lab = [], [], {}, lab
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        page.on("request", lambda request: self._hear_of(request.url))
        page.route(BADGE, lambda route: route.fulfill(body="<svg/>", content_type="image/svg+xml"))
        page.goto(f"{lab.url}/doc/tree/{NOTEBOOK.name}?token={lab.token}&reset")
        page.get_by_text("tested | Idle").wait_for(timeout=MINUTE)  # else it asks for a kernel
        self.menu("Run", "Run All( Cells)?")
        self.control("Photo").wait_for(timeout=MINUTE)
        page.get_by_text("tested | Idle").wait_for(timeout=MINUTE)  # the cells after it, too
        self.sees("Grad-CAM of Egyptian cat .*, layer .*, photo cat: highest at the centre")
        page.evaluate(TIMES)

    def _hear_of(self, url):
        if not url.startswith((self.lab.url, "data:", "blob:", BADGE)):
            self.elsewhere.append(url)

    def menu(self, menu, *items):
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        for item in items:
            label = self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}$"))
            label.last.click()

    def control(self, label):
        return self.page.get_by_label(label, exact=True)

    def choose(self, label, value):
        """Take what begins so of a list, by mouse."""
        begins = re.compile("^" + value.replace(" ", r"\s"))  # ipywidgets makes them unbreakable
        option = self.control(label).locator("option", has_text=begins).first
        self.control(label).select_option(option.get_attribute("value"))

    def choose_next(self, steps=1):
        """Take what stands further down, or up, in the list that has the focus, by keyboard."""
        self.page.keyboard.press("Space")
        for _ in range(abs(steps)):
            self.page.keyboard.press("ArrowDown" if steps > 0 else "ArrowUp")
        self.page.keyboard.press("Enter")

    def sees(self, words, what=None):
        """Wait for a picture that says so; note how long it took."""
        self.page.get_by_alt_text(re.compile(f"^{words}")).wait_for(timeout=MINUTE)
        if what:
            self.timed(what)

    def timed(self, what):
        self.page.wait_for_function("times.shown > times.asked")
        self.times[what] = round(self.page.evaluate("times.shown - times.asked"))

    def screenshot(self, name):
        self.control("Photo").scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)  # JupyterLab draws what it scrolls to
        folder = ROOT / "build" / "browser"
        self.page.screenshot(path=folder / f"explorer_{self.lab.widgets}_{name}.png")


@pytest.fixture
def reader(chromium, lab, mobilenet):
    """A reader who has run the notebook, and whose console must stay clean."""
    copy = nbformat.read(NOTEBOOK, as_version=4)
    copy.metadata["kernelspec"] = {"name": "tested", "display_name": "tested", "language": "python"}
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    nbformat.write(copy, lab.folder / NOTEBOOK.name)
    reader = Reader(chromium, lab)
    yield reader
    reader.page.close()
    assert reader.errors == []
    assert reader.elsewhere == []


def test_a_reader_explores(reader, record_property):
    page = reader.page
    reader.screenshot("start")

    # another class, from the list and by search
    reader.choose("Class", "lynx")
    reader.sees("Grad-CAM of lynx .*, photo cat", "class")
    reader.control("Find class").fill("eraser")
    reader.sees("Grad-CAM of rubber eraser .under 0.01., layer conv_pw_13_relu", "class found")
    reader.control("Find class").fill("cup")
    reader.choose("Class", "measuring cup")
    reader.sees("Grad-CAM of measuring cup", "class found")

    # another photo, method and layer, and two maps side by side
    reader.choose("Photo", "espresso")
    reader.sees("Grad-CAM of espresso .0.97.*, photo espresso: highest at the top", "photo")
    assert page.get_by_alt_text("Photo espresso as MobileNet saw it").is_visible()
    reader.choose("Method", "LayerCAM")
    reader.sees("LayerCAM of espresso", "method, for the first time")
    reader.choose("Layer", "conv_pw_11_relu")
    reader.sees("LayerCAM of espresso .*, layer conv_pw_11_relu", "layer, for the first time")
    reader.choose("Beside it", "saliency")
    reader.sees("saliency of espresso .*, photo espresso: highest", "beside it")
    assert page.get_by_alt_text(re.compile("^LayerCAM of espresso")).is_visible()
    reader.screenshot("two")
    reader.choose("Beside it", "none")

    # what is prepared by now follows at once
    page.wait_for_timeout(6000)
    for layer in ("conv_pw_12_relu", "conv_pw_11_relu"):
        reader.choose("Layer", layer)
        reader.sees(f"LayerCAM of espresso .*, layer {layer}", "layer")
    reader.choose("Method", "HiResCAM")
    reader.sees("HiResCAM of espresso", "method")

    # a slow method shows how far it has come, can be stopped, and stops for another choice
    reader.choose("Layer", "conv_pw_13_relu")
    reader.choose("Method", "Score-CAM")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert not page.get_by_role("button", name="Stop").is_visible()
    assert page.get_by_alt_text(re.compile("^HiResCAM of espresso")).is_visible()
    reader.choose("Method", "Grad-CAM")
    reader.sees("Grad-CAM of espresso")
    reader.choose("Method", "Score-CAM")
    page.get_by_role("button", name="Stop").wait_for()
    reader.screenshot("slow")
    reader.choose("Method", "integrated gradients")
    reader.sees("integrated gradients of espresso", "integrated gradients")
    reader.choose("Method", "LayerCAM")
    reader.sees("LayerCAM of espresso .*, layer conv_pw_13_relu")

    # by keyboard alone
    reader.control("Photo").focus()
    reader.choose_next(-1)
    reader.sees("LayerCAM of Egyptian cat")
    page.keyboard.press("Tab")
    page.keyboard.type("cup")
    page.locator("option", has_text="measuring cup").wait_for(state="attached")
    page.keyboard.press("Tab")
    reader.choose_next(2)
    reader.sees("LayerCAM of measuring cup")
    page.keyboard.press("Tab")
    reader.choose_next(-3)
    reader.sees("LayerCAM of measuring cup .*, layer conv_dw_13_relu")
    page.keyboard.press("Tab")
    reader.choose_next()
    reader.sees("HiResCAM of measuring cup .*, photo cat")
    page.keyboard.press("Tab")
    reader.choose_next()
    reader.sees("Grad-CAM of measuring cup")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("0.9")
    page.keyboard.press("Enter")
    reader.timed("opacity")

    # on a phone, and in the dark
    page.set_viewport_size({"width": 375, "height": 812})
    reader.screenshot("phone")
    page.set_viewport_size({"width": 1280, "height": 900})
    reader.menu("Settings", "Theme", "JupyterLab Dark")
    page.wait_for_timeout(1000)
    reader.screenshot("dark")
    print(f"ipywidgets {reader.lab.widgets}, milliseconds from choice to picture:", reader.times)
    record_property("milliseconds", reader.times)
    assert all(ms < 3000 for what, ms in reader.times.items() if not what.endswith(SLOW))
