"""What the site is made of, before Sphinx makes pages of it; tests/browser has the pages."""

import hashlib
from pathlib import Path
import re
from types import SimpleNamespace

import pytest

pytest.importorskip("sphinx", reason="the site's builder is not installed")

from cam_helpers import badges, site
from click.testing import CliRunner
from docutils import nodes
import nbformat

ROOT = Path(__file__).parents[1]
ADDRESS = ("https://github.com/me/cam", "v1")
COLAB = "https://colab.research.google.com/github/me/cam/blob/v1/notebooks/03_b.ipynb"
PICTURE = {"image/png": "", "text/plain": "<Figure>"}


def cell(source="", *outputs, tags=()):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def shown(data, metadata=None):
    return nbformat.v4.new_output("display_data", data=data, metadata=metadata or {})


def notebook(*cells):
    first = f"# Look\n\n[![Open in Colab]({badges.BADGE_IMAGE})](https://x/03_b.ipynb)"
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(first), *cells], metadata={"widgets": {"state": {}}}
    )


def alt(of):
    return of.metadata.mystnb.image.alt


def test_a_notebook_s_page_has_its_number_a_plain_link_and_a_folded_set_up():
    stored = notebook(cell("import x", tags=["setup"]), cell("1", shown(PICTURE), tags=["kept"]))
    before = nbformat.writes(stored)
    first, setup, other = site.notebook_page(stored, "03_b.ipynb", *ADDRESS).cells
    assert first.source == f"# 03 Look\n\n[Open in Colab]({COLAB})"
    assert setup.metadata.tags == ["setup", "hide-input"]
    assert other.metadata.tags == ["kept"]
    assert nbformat.writes(stored) == before


def test_figures_have_the_nearest_heading_as_alternative_text_or_their_own():
    own = {"image/png": {"alt": "a cat"}}
    page = site.notebook_page(
        notebook(
            cell("1", shown(PICTURE)),
            nbformat.v4.new_markdown_cell("## 1. The weights $w_k$ of `conv`\n\ntext"),
            nbformat.v4.new_markdown_cell("only text"),
            cell("2", shown(PICTURE)),
            cell("3", shown(PICTURE, own)),
        ),
        "03_b.ipynb",
        *ADDRESS,
    )
    assert [alt(page.cells[i]) for i in (1, 4, 5)] == [
        "03 Look",
        "1. The weights w_k of conv",
        "a cat",
    ]


def test_of_a_widget_the_stored_picture_stays_and_nothing_that_asks_for_a_kernel():
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "a box"}
    page = site.notebook_page(notebook(cell("1", shown(widget))), "03_b.ipynb", *ADDRESS)
    assert page.cells[1].outputs[0].data == {"text/plain": "a box"}
    assert "widgets" not in page.metadata


def test_a_notebook_without_outputs_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^expected a notebook with stored outputs, received 03_b\.ipynb without: "
        r"`make notebooks` stores them\.$",
    ):
        site.notebook_page(notebook(cell("1")), "03_b.ipynb", *ADDRESS)


def test_links_to_the_readme_lead_to_the_start_page():
    text = "[a](../README.md#run-it) [b](README.md) [c](05_c.ipynb) data/README.md"
    assert site.local(text, *ADDRESS) == (
        "[a](../index.md#run-it) [b](index.md) [c](05_c.ipynb) data/README.md"
    )


def test_the_league_s_numbers_with_intervals_and_bold_for_what_beats_every_control():
    row = {"track": "marks", "better": "low", "images": "400", "kind": "method"}
    row |= {"metric": "deletion", "low": "0.1", "high": "0.3"}
    time = row | {"metric": "seconds", "mean": "0.0123", "low": "", "high": "", "beats": ""}
    best = row | {"method": "A", "mean": "0.2", "beats": "; ".join(site.standings.CONTROLS)}
    worst = row | {"method": "edges", "mean": "0.25", "kind": "control", "beats": ""}
    page = site.league_page([best, worst, time | {"method": "A"}])
    assert page.splitlines()[-6:] == [
        "## marks: 400 images",
        "",
        "| | deletion ↓ | time ↓ |",
        "| --- | ---: | ---: |",
        "| A | **0.20** (0.10–0.30) | 12 ms |",
        "| *edges* | 0.25 (0.10–0.30) |  |",
    ]


def test_the_reference_groups_modules_and_lists_what_they_offer_from_others(tmp_path):
    (tmp_path / "cams.py").write_text('"""Maps of\na `class`.\n\nMore."""')
    (tmp_path / "models.py").write_text(
        '"""Networks."""\nfrom cam_helpers.layers import a, b\nfrom cam_helpers.x import c as c\n'
        'import numpy as np\n__all__ = ["a", "own"]\n'
    )
    (tmp_path / "brand_new.py").write_text('"""Unheard of."""')
    (tmp_path / "__init__.py").write_text("")
    pages = site.reference_pages(tmp_path)
    assert set(pages) == {
        f"reference/{name}.rst" for name in ("index", "cams", "models", "brand_new")
    }
    index = pages["reference/index.rst"]
    assert "Methods\n-------\n\n:doc:`cams`\n   Maps of a `class`.\n" in index
    assert "Inside\n------\n\n:doc:`brand_new`\n   Unheard of.\n" in index
    assert "   ~cam_helpers.layers.a\n   ~cam_helpers.x.c\n" in pages["reference/models.rst"]
    assert "layers.b" not in pages["reference/models.rst"]
    assert "Also here" not in pages["reference/cams.rst"]


def test_every_module_has_one_page_and_every_group_names_modules():
    index = site.reference_pages(ROOT / "cam_helpers")["reference/index.rst"]
    modules = [path.stem for path in sorted((ROOT / "cam_helpers").glob("[!_]*.py"))]
    assert sorted(re.findall(r":doc:`(\w+)`", index)) == modules
    assert set(" ".join(site.GROUPS.values()).split()) <= set(modules)


def test_the_sources_are_whole_and_the_notebooks_stay_as_they_are(tmp_path):
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    before = [hashlib.md5(path.read_bytes()).digest() for path in paths]
    site.sources(ROOT, tmp_path)
    assert [hashlib.md5(path.read_bytes()).digest() for path in paths] == before
    assert [path.name for path in sorted(tmp_path.glob("notebooks/*"))] == [
        path.name for path in paths
    ]
    start = (tmp_path / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^notebooks/(\w+)$", start, re.M)
    assert listed == [path.stem for path in paths]
    for target in re.findall(r"\]\(((?:notebooks|data)/[^)#]+)", start):
        assert (tmp_path / target).is_file()
    for path in (
        *tmp_path.glob("*.md"),
        *tmp_path.glob("notebooks/*"),
        *tmp_path.glob("_static/*.css"),
    ):
        assert badges.BADGE_IMAGE not in path.read_text(encoding="utf-8")
    assert "url(" not in (tmp_path / "_static" / "site.css").read_text()
    assert (tmp_path / "_static" / "mathjax" / "tex-chtml.js").stat().st_size > 1e6


def linked(text, page="reference/cams"):
    """Return what becomes of a paragraph, with links as [words](address)."""
    docs = {"notebooks/03_build", "notebooks/06_look", "notebooks/11_why", "reference/cams"}
    home = SimpleNamespace(docname="reference/placement")
    app = SimpleNamespace(
        env=SimpleNamespace(
            found_docs=docs,
            get_domain=lambda _: SimpleNamespace(objects={"cam_helpers.placement.place": home}),
        ),
        builder=SimpleNamespace(get_relative_uri=lambda _, target: target),
    )
    paragraph = nodes.paragraph()
    for i, part in enumerate(text.split("``")):
        paragraph += nodes.literal("", part) if i % 2 else nodes.Text(part)
    document = nodes.section("", nodes.title("", "", nodes.literal("", "plots.place")), paragraph)
    site.link_names(app, document, page)
    assert not list(document[0].findall(nodes.reference))
    return "".join(
        f"[{part.astext()}]({part['refuri']})" if "refuri" in part else part.astext()
        for part in (
            each if isinstance(each, nodes.Element) else nodes.inline("", "", each)
            for each in paragraph
        )
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see notebook 03.", "see [notebook 03](notebooks/03_build)."),
        (
            "Notebooks 03, 06 and 11 (11 MB)",
            "[Notebooks 03](notebooks/03_build), [06](notebooks/06_look) and "
            "[11](notebooks/11_why) (11 MB)",
        ),
        ("notebook 99 and section 06", "notebook 99 and section 06"),
        ("``plots.place``", "[plots.place](reference/placement#cam_helpers.placement.place)"),
        (
            "``cam_helpers.placement.place()``",
            "[cam_helpers.placement.place()](reference/placement#cam_helpers.placement.place)",
        ),
        ("``np.array`` and ``place``, ``cams.nothing``", "np.array and place, cams.nothing"),
        ("at https://arxiv.org/abs/1.", "at [https://arxiv.org/abs/1](https://arxiv.org/abs/1)."),
    ],
)
def test_names_of_notebooks_and_functions_and_addresses_become_links(text, expected):
    assert linked(text) == expected


def test_no_page_links_to_itself():
    assert linked("notebook 03 and notebook 06", "notebooks/03_build") == (
        "notebook 03 and [notebook 06](notebooks/06_look)"
    )


class Builder:
    """Stands in for Sphinx: writes one page."""

    statuscode = 0

    def __init__(self, outdir, **_):
        self.outdir = outdir

    def connect(self, *_):
        pass

    def build(self):
        self.outdir.mkdir()
        (self.outdir / "objects.inv").touch()
        (self.outdir / "index.html").write_text("new")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(site, "Sphinx", Builder)
    monkeypatch.setattr(site, "sources", lambda root, folder: folder.mkdir())


def test_a_new_site_takes_the_place_of_the_old_one(tmp_path, quick):
    out = tmp_path / "site"
    for _ in range(2):
        site.build(ROOT, out)
        assert (out / "index.html").read_text() == "new"
        assert not (out / "left").exists()
        (out / "left").touch()


def test_after_a_warning_the_old_site_stays(tmp_path, quick, monkeypatch):
    out = tmp_path / "site"
    site.build(ROOT, out)
    (out / "index.html").write_text("old")
    monkeypatch.setattr(Builder, "statuscode", 1)
    done = CliRunner().invoke(site.main, ["--out", str(out)])
    assert done.exit_code == 1
    assert done.output == (
        "Error: expected pages without a warning, received those above: mend them.\n"
    )
    assert (out / "index.html").read_text() == "old"


@pytest.mark.parametrize("name", ["site", "site-source"])
def test_a_folder_that_holds_other_things_is_left_alone(tmp_path, quick, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"received '.*{name}', which holds other things: name"):
        site.build(ROOT, tmp_path / "site")
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
