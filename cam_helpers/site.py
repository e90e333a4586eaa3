"""The tutorial as web pages: notebooks as they are stored, the reference, the league table.

``python -m cam_helpers.site`` (``make site``) writes them to ``build/site``. Nothing is executed:
Sphinx and MyST-NB make pages of copies of the notebooks, of the README and of the docstrings. Each
warning of theirs is an error. The pages ask no other host for anything.
"""

import ast
from importlib.util import find_spec
from pathlib import Path
import pydoc
import re
import shutil

from cam_helpers import badges, standings, writing
from cam_helpers.tutorial import find_notebooks
import click
from docutils import nodes
import nbformat
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

ROOT = Path(__file__).parents[1]
LOOKS = Path(__file__).parent / "site_files"
GROUPS = {  # heading of the reference to its modules; those that are named nowhere come last
    "Methods": "cams gradients deconvolution filters activations controls methods",
    "Networks": "models backbones networks model_files layers selection receptive_field",
    "Images": "data photos garments class_names",
    "Measuring": "metrics faithfulness localization sanity ground_truth league standings bench",
    "Drawing": "plots pictures placement",
    "A whole dataset, an explorer": "dataset cluster image_sources map_stores explorer",
    "What is wrong": "diagnosis symptoms signs preparation",
    "Commands": "cli explaining tutorial site badges",
    "Inside": "",
}
SETTINGS = {
    "project": "cam_helpers",
    "extensions": [
        "myst_nb",
        "sphinx.ext.autodoc",
        "sphinx.ext.autosummary",
        "sphinx.ext.napoleon",
        "sphinx.ext.mathjax",
    ],
    "nitpicky": True,  # a role that names nothing is a warning
    "nitpick_ignore_regex": [("py:class", ".*")],  # types in signatures, of other packages
    "nb_execution_mode": "off",
    "nb_code_prompt_show": "Show the set-up cell",
    "nb_code_prompt_hide": "Hide the set-up cell",
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_heading_anchors": 3,
    "autodoc_member_order": "bysource",
    "autodoc_preserve_defaults": True,  # as they are written, not their addresses in memory
    "autodoc_typehints_format": "short",
    "napoleon_google_docstring": False,
    "napoleon_attr_annotations": False,  # the signature has them
    "napoleon_use_ivar": True,
    "napoleon_use_param": False,
    "napoleon_use_rtype": False,
    "add_module_names": False,
    "python_maximum_signature_line_length": 80,
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {
        "use_repository_button": True,
        "use_download_button": False,
        "use_fullscreen_button": False,
        "navbar_persistent": [],
        "footer_content_items": [],
    },
    "html_title": "What does a convolutional network look at?",
    "html_static_path": ["_static"],
    "html_css_files": ["site.css"],
    "html_favicon": "_static/icon.svg",
    "html_context": {"default_mode": "auto"},  # light or dark, as the reader's system
    "html_copy_source": False,
    "html_show_copyright": False,
    "html_use_index": False,
    "html_domain_indices": False,
    "mathjax_path": "mathjax/tex-chtml.js",
}
WORTH_A_LINK = re.compile(
    r"(https?://\S*[\w/]|[Nn]otebooks? \d\d(?:(?:, and |, | and | or )\d\d)*)"
)
NUMBER = re.compile(r"((?:[Nn]otebooks? )?\d\d)")


def sources(root: Path, folder: Path) -> None:
    """Write what Sphinx reads into a folder, from a repository, which stays as it is.

    Raises
    ------
    ValueError
        If there are no notebooks, or one has no stored outputs.
    """
    for name in ("notebooks", "reference", "data", "_static/mathjax"):
        (folder / name).mkdir(parents=True)
    address, paths = badges.address(root), find_notebooks(root / "notebooks")
    for path in paths:
        notebook = notebook_page(nbformat.read(path, as_version=4), path.name, *address)
        nbformat.write(notebook, folder / "notebooks" / path.name)
    readme = (root / "README.md").read_text(encoding="utf-8")
    pages = {
        "index.md": start_page(local(readme, *address), [path.stem for path in paths]),
        "league.md": league_page(standings.read(root / "data" / standings.FILE)),
        **reference_pages(root / "cam_helpers"),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in [*re.findall(r"!\[[^]]*\]\((data/[^)]+)\)", readme), f"data/{standings.FILE}"]:
        shutil.copy(root / name, folder / name)
    shutil.copytree(LOOKS, folder / "_static", dirs_exist_ok=True)
    mathjax = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    shutil.copy(mathjax / "tex-chtml.js", folder / "_static" / "mathjax")
    fonts = "output/chtml/fonts"
    shutil.copytree(mathjax / fonts, folder / "_static" / "mathjax" / fonts)


def local(text: str, url: str, ref: str) -> str:
    """Return Markdown that asks no other host: Colab badges as links, README as the start page."""
    text = badges.with_badges(text, url, ref)
    text = text.replace(f"![Open in Colab]({badges.BADGE_IMAGE})", "Open in Colab")
    return re.sub(r"(\]\((?:\.\./)?)README\.md", r"\1index.md", text)


def notebook_page(notebook: nbformat.NotebookNode, name: str, url: str, ref: str):
    """Return a copy of a notebook for the site.

    Its number stands in its title, its set-up cell is folded, its figures have the heading above as
    alternative text if they had none, and of a widget, which only a kernel moves, is left what is
    stored beside it.
    """
    if not any(cell.get("outputs") for cell in notebook.cells):
        raise ValueError(
            f"expected a notebook with stored outputs, received {name} without: `make notebooks` "
            "stores them."
        )
    notebook, heading = nbformat.from_dict(notebook), ""
    notebook.metadata.pop("widgets", None)
    notebook.cells[0].source = re.sub("^# ", f"# {name[:2]} ", notebook.cells[0].source)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = local(cell.source, url, ref)
            heading = (re.findall("^##? (.+)", cell.source, re.M) or [heading])[-1]
        else:
            if "setup" in cell.metadata.get("tags", []):
                cell.metadata.tags.append("hide-input")
            known = [
                each["alt"]
                for output in cell.outputs
                for each in output.get("metadata", {}).values()
                if "alt" in each
            ]
            alt = [*known, re.sub("[`$*]", "", heading)][0]
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


def start_page(readme: str, notebooks: list[str]) -> str:
    """Return the README with the table of contents of the site, which only the margin shows."""
    contents = {
        "Notebooks": [f"notebooks/{name}" for name in notebooks],
        "Look up": ["league", "reference/index"],
    }
    return readme + "".join(
        "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```\n"])
        for caption, names in contents.items()
    )


def league_page(rows: list[dict[str, str]]) -> str:
    """Return all of the league's numbers: a table for each track, a column for each metric."""
    text = """\
# Which maps are true?

All that was measured; the start page has [a short table and what it
means](index.md#which-maps-are-true). For each network and its images: the mean and, in brackets,
the interval that it is known to (95 %, bootstrap over images). Bold is what surely beats every
control; the controls are in italics. ↓: less is better. The [same as CSV](data/league.csv) also
says which methods are as good as the best.
"""
    for track in dict.fromkeys(row["track"] for row in rows):
        chosen = [row for row in rows if row["track"] == track]
        metrics = dict.fromkeys(row["metric"] for row in chosen)
        of = {(row["metric"], row["method"]): row for row in chosen}
        arrows = {"high": "↑", "low": "↓"}
        heads = [f"{each} {arrows[standings.BETTER[each]]}" for each in metrics]
        lines = [
            f"\n## {track}: {chosen[0]['images']} images\n",
            "| | " + " | ".join(heads).replace("seconds", "time") + " |",
            "| --- |" + " ---: |" * len(metrics),
        ]
        for method in dict.fromkeys(row["method"] for row in chosen):
            row = of[next(iter(metrics)), method]
            name = f"*{method}*" if row["kind"] == "control" else method
            cells = [_cell(of.get((metric, method))) for metric in metrics]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        text += "\n".join(lines) + "\n"
    return text


def _cell(row):
    if row is None:
        return ""
    if not row["low"]:
        return f"{1000 * float(row['mean']):.2g} ms"
    mean, low, high = (f"{float(row[name]):.2f}" for name in ("mean", "low", "high"))
    return (f"**{mean}**" if standings.beats_all(row) else mean) + f" ({low}–{high})"


def reference_pages(package: Path) -> dict[str, str]:
    """Return reStructuredText: a page for each public module, and one that lists them in groups."""
    trees = {
        path.stem: ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(package.glob("[!_]*.py"))
    }
    pages, rest = {}, list(trees)
    index = "Reference\n=========\n"
    for group, names in GROUPS.items():
        modules = [name for name in names.split() if name in trees] if names else rest
        rest = [name for name in rest if name not in modules]
        index += f"\n{group}\n{'-' * len(group)}\n\n"
        for name in modules:
            summary = " ".join(ast.get_docstring(trees[name]).split("\n\n")[0].split())
            index += f":doc:`{name}`\n   {summary}\n"
            pages[f"reference/{name}.rst"] = _module_page(name, trees[name])
        index += "\n.. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in modules)
    return {"reference/index.rst": index} | pages


def _module_page(name, tree):
    text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: cam_helpers.{name}\n"
    text += "   :members:\n   :ignore-module-all:\n"
    if offered := _re_exported(tree):
        text += "\nAlso here\n---------\n\n.. autosummary::\n   :nosignatures:\n\n"
        text += "".join(f"   ~{each}\n" for each in offered)
    return text


def _re_exported(tree):
    """Return what a module offers from others: named in its __all__, or imported "x as x"."""
    offered = []
    for each in tree.body:
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__all__":
            offered = ast.literal_eval(each.value)
    return [
        f"{each.module}.{alias.name}"
        for each in tree.body
        if isinstance(each, ast.ImportFrom) and each.module.startswith("cam_helpers.")
        for alias in each.names
        if alias.name in offered or alias.asname == alias.name
    ]


def link_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Link "notebook 03", ``cams.grad_cam`` and addresses wherever a page only names them."""
    objects = app.env.get_domain("py").objects
    notebooks = {Path(name).name[:2]: name for name in app.env.found_docs if "notebooks/" in name}

    def linked(child, target, anchor=""):
        uri = app.builder.get_relative_uri(page, target) + anchor
        return nodes.reference("", "", child, internal=True, refuri=uri)

    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()").removeprefix("cam_helpers.")
        home = _home(f"cam_helpers.{name}")
        if home in objects and not isinstance(literal.parent, nodes.reference | nodes.title):
            literal.replace_self(linked(literal.deepcopy(), objects[home].docname, f"#{home}"))
    for text in list(doctree.findall(nodes.Text)):
        if isinstance(text.parent, nodes.paragraph) and WORTH_A_LINK.search(text):
            parts = []
            for words in WORTH_A_LINK.split(text):
                if words.startswith("http"):
                    parts.append(nodes.reference("", words, refuri=words))
                    continue
                named = WORTH_A_LINK.fullmatch(words)
                for part in NUMBER.split(words) if named else [words]:
                    target = notebooks.get(part[-2:], page) if named else page
                    part = nodes.Text(part)
                    parts.append(part if target == page else linked(part, target))
            text.parent.replace(text, parts)


def _home(name):
    """Return the full name that something in the package has where it is defined, or None."""
    found = pydoc.locate(name) if re.fullmatch(r"cam_helpers(\.\w+){2,3}", name) else None
    return f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else None


def resolve(app: Sphinx, env, node: nodes.Element, child: nodes.Element):
    """Return the link of a role that names what only one module has: ``layers.graph_of``."""
    domain, page, name = env.get_domain("py"), node["refdoc"], node["reftarget"]
    homes = [
        home
        for home, found in domain.objects.items()
        if home.endswith(f".{name}") and found.objtype != "module"
    ]
    if len(homes) == 1:
        return domain.resolve_xref(env, page, app.builder, "obj", homes[0], node, child)
    return None


def is_field(app: Sphinx, kind: str, name: str, member: object, skip: bool, options) -> bool | None:
    """Return True for a named tuple's fields, which its own docstring describes."""
    return True if type(member).__name__ == "_tuplegetter" else None


def build(root: Path, out: Path) -> None:
    """Build the site of a repository: ``out`` is then whole, or what it was before.

    Raises
    ------
    ValueError
        If a notebook has no outputs, if Sphinx warns of anything, or if ``out`` holds anything
        else than a site.
    """
    work = out.with_name(f"{out.name}-source")
    for folder, sign in ((out, "objects.inv"), (work, ".lock")):
        if folder.exists() and any(folder.iterdir()) and not (folder / sign).exists():
            raise ValueError(
                f"expected a folder for the site alone, received '{folder}', which holds other "
                "things: name another one."
            )
    with writing.only_one(work), writing.explained(out):
        for left in [path for path in work.iterdir() if path.is_dir()]:
            shutil.rmtree(left)
        sources(root, work / "pages")
        theme = SETTINGS["html_theme_options"] | {"repository_url": badges.address(root)[0]}
        app = Sphinx(
            srcdir=work / "pages",
            confdir=None,
            outdir=work / "html",
            doctreedir=work / "doctrees",
            buildername="html",
            confoverrides=SETTINGS | {"html_theme_options": theme},
            status=None,
            warningiserror=True,
        )
        app.connect("doctree-resolved", link_names)
        app.connect("missing-reference", resolve)
        app.connect("autodoc-skip-member", is_field)
        app.build()
        if app.statuscode:
            raise ValueError("expected pages without a warning, received those above: mend them.")
        if out.exists():
            out.rename(work / "former")
        (work / "html").rename(out)


@click.command(help=__doc__)
@click.option(
    "--out", default=ROOT / "build" / "site", type=click.Path(path_type=Path, file_okay=False)
)
def main(out: Path) -> None:
    try:
        with writing.stoppable("before the site was whole: run it again.", exits=True):
            build(ROOT, out.resolve())
    except (OSError, ValueError, SphinxError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(out / "index.html")


if __name__ == "__main__":
    main()
