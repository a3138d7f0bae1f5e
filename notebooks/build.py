"""Run the notebooks: `python notebooks/build.py run` (copies and a web site, into build/) or `refresh` (in place)."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from html import escape
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from tqdm.auto import tqdm

ROOT = Path(__file__).parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
DOCUMENTS = {"README.md": "index.html", "notebooks/README.md": "teaching.html", "data/README.md": "data.html"}
# A phone is narrower than a table, a code cell or a figure: figures shrink, the others scroll by themselves.
STYLE = """<style>
main { max-width: 62rem; margin: 0 auto; padding: 0 .5rem }
.ga-nav { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .8rem; max-width: 62rem; margin: 0 auto;
          padding: .2rem .6rem; font: 16px/1.4 system-ui, sans-serif }
.ga-nav a { padding: .5rem .2rem; color: #1456a0 } .ga-nav a[aria-current] { font-weight: bold; color: inherit }
img, svg, canvas { max-width: 100% !important; height: auto }
.jp-RenderedHTMLCommon table { display: block; overflow-x: auto; max-width: 100% }
.jp-OutputArea-output, .highlight pre, .jp-RenderedHTMLCommon pre, .jp-RenderedText pre { overflow-x: auto }
.jp-Cell-inputWrapper, .jp-InputArea, .jp-OutputArea-child, .jp-RenderedHTMLCommon { min-width: 0 }
.jp-RenderedHTMLCommon { overflow-wrap: break-word }
@media (max-width: 50rem) {
  .jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none !important }
  .jp-Cell { padding: 4px 0 !important }
}
</style>"""


def execute(path: Path) -> nbformat.NotebookNode:
    """Run one notebook from top to bottom in its own folder; a failing cell raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": path.parent}},
    ).execute()
    return notebook


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what only the running session could show: progress bars, live widgets and their saved state."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                o for o in cell.outputs if WIDGET not in o.get("data", {}) and o.get("name") != "stderr"
            ]
    return notebook


def title(notebook: nbformat.NotebookNode) -> str:
    """Its first heading, such as "02 · Finding the Gather heads"; without one, "Notebook"."""
    heading = re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE)
    return heading[1] if heading else "Notebook"


def page(notebook: nbformat.NotebookNode) -> str:
    """The notebook as one HTML page that asks nothing of the network; its figures described for who can't see them.

    A notebook's format has no place for that, so a cell keeps its figures' descriptions in its metadata: `alt`, a list.
    """
    # Without these two, a page asks CDNs for scripts that no notebook here uses.
    exporter = HTMLExporter(require_js_url="", mathjax_url="")
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title(notebook)}})
    nothing = 'alt="No description has been provided for this image"'  # nbconvert's words, figure by figure
    for text in (text for cell in notebook.cells for text in cell.metadata.get("alt", ())):
        html = html.replace(nothing, f'alt="{escape(text)}"', 1)
    return html.replace("</head>", STYLE + "</head>", 1)


def site(notebooks: dict[Path, nbformat.NotebookNode], build: Path) -> None:
    """Write a page for each notebook, in their order, and for the README files; the main one is the index.

    Links between them lead from page to page. Other files of the project that they link to are copied.
    """
    sources = dict(notebooks)
    for name in DOCUMENTS:
        if (ROOT / name).exists():
            cell = nbformat.v4.new_markdown_cell((ROOT / name).read_text(encoding="utf-8"))
            sources[ROOT / name] = nbformat.v4.new_notebook(cells=[cell])
    pages = {
        path: (DOCUMENTS.get(str(path.relative_to(ROOT)), f"{path.stem}.html"), title(sources[path]))
        for path in sources
    }
    for path, notebook in sources.items():
        top, bottom = _navigation(path, list(notebooks), pages)
        html = _relink(page(notebook), path.parent, pages, build)
        html = re.sub("<body[^>]*>", lambda body, top=top: body[0] + top, html, count=1)
        head, end = html.rsplit("</body>", 1)
        (build / pages[path][0]).write_text(f"{head}{bottom}</body>{end}", encoding="utf-8")


def _relink(html: str, folder: Path, pages: dict[Path, tuple[str, str]], build: Path) -> str:
    """Links of a document in `folder`, as they must be in `build`; files that are no page are copied there."""

    def replace(link: re.Match) -> str:
        target = (folder / link[1]).resolve()
        if target in pages:
            return f'href="{pages[target][0]}{link[2]}"'
        if not target.is_file() or ROOT not in target.parents:
            return link[0]
        shutil.copy(target, build / target.name)
        return f'href="{target.name}"'

    return re.sub(r'href="([^"#:]+)(#[^"]*|)"', replace, html)


def _navigation(here: Path, order: list[Path], pages: dict[Path, tuple[str, str]]) -> tuple[str, str]:
    """The top bar, with all pages, and the bottom bar, with the notebooks before and after `here`."""

    def link(path: Path, text: str) -> str:
        current = ' aria-current="page"' if path == here else ""
        return f'<a href="{pages[path][0]}"{current}>{escape(text)}</a>'

    words = {"index.html": "Course", "teaching.html": "Teaching", "data.html": "Data"}
    documents = [path for path in pages if path not in order]
    first = [link(path, words[pages[path][0]]) for path in documents]
    numbers = [link(path, pages[path][1].split(" ")[0]) for path in order]
    bottom = ["<span></span>", *first[:1], "<span></span>"]
    if here in order:
        i = order.index(here)
        if i:
            bottom[0] = link(order[i - 1], "← " + pages[order[i - 1]][1])
        if i + 1 < len(order):
            bottom[-1] = link(order[i + 1], pages[order[i + 1]][1] + " →")
    elif order:
        bottom[-1] = link(order[0], pages[order[0]][1] + " →")
    nav = '<nav class="ga-nav" aria-label="{}">{}</nav>'
    return nav.format("Course", " ".join(first[:1] + numbers + first[1:])), nav.format(
        "Pages", " ".join(bottom)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["run", "refresh"])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all, in order")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what ships must be enough
    build = ROOT / "build"
    every = [path.resolve() for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    chosen = [path.resolve() for path in args.notebooks] or every
    done = {}
    for path in (bar := tqdm(chosen, unit="notebook")):
        bar.set_description(path.stem)
        done[path] = clean(execute(path))
        if args.action == "refresh":
            nbformat.write(done[path], path)
        else:
            build.mkdir(exist_ok=True)
            nbformat.write(done[path], build / path.name)
    if args.action == "run":  # a site is whole: the notebooks that were not run are shown as they are
        shown = sorted({*every, *chosen}, key=lambda path: path.name)
        site({path: done.get(path) or nbformat.read(path, as_version=4) for path in shown}, build)


if __name__ == "__main__":
    main()
