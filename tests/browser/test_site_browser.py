"""The site in a real browser: every page, every link, and what a reader does there."""

import functools
import http.server
import os
from pathlib import Path
import re
import subprocess
import sys
import threading
from urllib.parse import unquote, urldefrag, urljoin

import filelock
import pytest

pytest.importorskip("sphinx_book_theme", reason="the site's builder is not installed")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = [f"notebooks/{path.stem}.html" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
PHONE = {"width": 375, "height": 812}
LOOK = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const brightness = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((each) => {
      const part = each / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = brightness(getComputedStyle(document.body).backgroundColor);
  const contrast = (node) => {
    const ink = brightness(getComputedStyle(node).color);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  };
  const prose = document.querySelector("main").cloneNode(true);
  prose.querySelectorAll("code, pre, script, mjx-container").forEach((node) => node.remove());
  return {
    links: all("a[href]").map((a) => a.getAttribute("href")),
    ids: all("[id]").map((node) => node.id),
    broken: all("img").filter((img) => !img.naturalWidth).map((img) => img.src),
    mute: all("main img").filter((img) => !img.alt).map((img) => img.src),
    maths: all(".math").filter((node) => !node.querySelector("mjx-container")).length,
    raw: prose.textContent.match(/\\\\\\(|\\\\\\[|\\$\\$|\\\\frac/),
    pale: all("main h1, main h2, main h3").filter((node) => contrast(node) < 4.5).length,
    width: document.documentElement.scrollWidth,
  };
}"""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site, built once for all workers; or CAM_HELPERS_SITE, as it is."""
    if given := os.environ.get("CAM_HELPERS_SITE"):
        return Path(given)
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    out = shared / "site"
    with filelock.FileLock(shared / "site.lock"):
        if not out.exists():
            command = [sys.executable, "-m", "cam_helpers.site", "--out", str(out)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def url(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(chromium, url):
    """A page in a light browser; ``page.faults`` has what console and network complain of."""
    context = chromium.new_context(base_url=url, color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(f"error: {error}"))
    page.on(
        "console",
        lambda message: (
            message.type in ("error", "warning")
            and page.faults.append(f"console {message.type}: {message.text}")
        ),
    )
    page.on(
        "request",
        lambda request: (
            request.url.startswith((url, "data:", "blob:"))
            or page.faults.append(f"asked {request.url}")
        ),
    )
    page.on(
        "response",
        lambda got: got.status < 400 or page.faults.append(f"{got.status}: {got.url}"),
    )
    yield page
    context.close()


def opened(page, name):
    """Go to a page of the site and wait until its maths are typeset, or five seconds."""
    answer = page.goto(name)
    page.evaluate("""async () => {
      const late = () => document.querySelector(".math") && !window.MathJax?.startup?.promise;
      for (let i = 0; i < 100 && late(); i++) await new Promise((done) => setTimeout(done, 50));
      await window.MathJax?.startup?.promise;
    }""")
    return answer


def pages_of(site):
    return sorted(
        path.relative_to(site).as_posix()
        for path in site.rglob("*.html")
        if "_static" not in path.parts
    )


def test_every_page_is_whole_and_every_link_leads_somewhere(page, site):
    names, looks, faults = pages_of(site), {}, []
    for name in names:
        page.faults.clear()
        page.set_viewport_size({"width": 1280, "height": 800})
        page.emulate_media(color_scheme="light")
        status = opened(page, name).status
        look = looks[name] = page.evaluate(LOOK)
        found = {
            "status": status != 200 and status,
            "title": not page.title(),
            "complaints": list(page.faults),
            "broken images": look["broken"],
            "images without alternative text": look["mute"],
            "formulas that are not typeset": look["maths"],
            "formulas in their source": look["raw"],
            "pale headings": look["pale"],
        }
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size(PHONE)
        phone = page.evaluate(LOOK)
        found["pale headings in the dark"] = phone["pale"]
        found["scrolls sideways"] = phone["width"] > PHONE["width"] and phone["width"]
        faults += [f"{name}: {what}: {found[what]}" for what in found if found[what]]
    for name in names:
        for link in looks[name]["links"]:
            target, anchor = urldefrag(urljoin(f"/{name}", link))
            if re.match(r"https?:|mailto:", target):
                continue
            target, anchor = unquote(target).split("?")[0].lstrip("/"), unquote(anchor)
            if not (site / target).is_file():
                faults.append(f"{name}: dead link: {link}")
            elif anchor and target in looks and anchor not in looks[target]["ids"]:
                faults.append(f"{name}: dead anchor: {link}")
    assert not faults, "\n".join(faults)
    assert {"index.html", "league.html", "reference/cams.html", *NOTEBOOKS} <= set(names)


def test_previous_and_next_walk_through_all_notebooks_in_order(page, url):
    def walked(name, direction):
        names = []
        page.goto(name)
        while names[-1:] not in (["league.html"], ["index.html"]):
            page.goto(page.locator(direction).evaluate("a => a.href"))
            names.append(page.url.removeprefix(url))
        return names

    assert walked("index.html", "a.right-next") == [*NOTEBOOKS, "league.html"]
    assert walked("league.html", "a.left-prev") == [*reversed(NOTEBOOKS), "index.html"]


def test_each_notebook_opens_in_colab_and_its_set_up_is_folded(page):
    for name in NOTEBOOKS:
        page.goto(name)
        target = page.get_by_role("link", name="Open in Colab").get_attribute("href")
        assert re.fullmatch(
            r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/[\w./-]+/"
            + re.escape(name.replace(".html", ".ipynb")),
            target,
        )
        cell = page.get_by_text("# Finds cam_helpers")
        assert not cell.is_visible()
        page.locator("details.hide summary").first.click()
        assert cell.is_visible()


def test_answers_open_and_their_maths_and_code_are_set(page):
    opened(page, NOTEBOOKS[0])
    answer = page.get_by_text("The training accuracy reaches about")
    assert not answer.is_visible()
    page.get_by_text("Answers", exact=True).click()
    assert answer.is_visible()
    assert answer.locator("mjx-container").first.bounding_box()["width"] > 20
    assert answer.locator("code").count() == 1


def test_search_finds_grad_cam(page):
    page.goto("index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("Grad-CAM")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=Grad-CAM*")
    page.wait_for_function("/found \\d+ page/.test(document.querySelector('main').innerText)")
    found = page.locator("#search-results li a").evaluate_all("all => all.map((a) => a.href)")
    assert len(found) >= 5
    assert any("03_build_cams_by_hand" in each for each in found)
    assert page.faults == []


def test_light_and_dark_are_switched_and_kept(page):
    page.goto("index.html")
    ground, grounds = "getComputedStyle(document.body).backgroundColor", []
    for mode in ("light", "dark"):
        page.get_by_role("button", name="Color mode").click()
        page.locator(f"button.theme-change-button[data-mode={mode}]").click()
        grounds.append(page.evaluate(ground))
    page.goto(NOTEBOOKS[0])
    grounds.append(page.evaluate(ground))
    assert grounds == ["rgb(255, 255, 255)", grounds[2], grounds[1]]
    assert grounds[0] != grounds[1]
    figure = page.locator(".cell_output img").first
    assert figure.evaluate("img => getComputedStyle(img).filter") == "none"
    assert figure.evaluate("img => getComputedStyle(img).backgroundColor") != "rgba(0, 0, 0, 0)"


def test_wide_code_and_tables_scroll_in_themselves_on_a_phone(page):
    page.set_viewport_size(PHONE)
    page.goto("league.html")
    scrolls = """node => {
      for (; node !== document.body; node = node.parentElement)
        if (getComputedStyle(node).overflowX === "auto" && node.scrollWidth > node.clientWidth)
          return true;
      return false;
    }"""
    assert page.locator("main table").nth(2).evaluate(scrolls)
    page.goto(NOTEBOOKS[0])
    assert page.locator(".cell_input pre").evaluate_all(f"all => all.some({scrolls})")
