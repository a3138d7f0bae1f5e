"""Run the notebooks: `python -m ga_utils.course run` (copies, into build/) or `refresh` (in place)."""

from __future__ import annotations

import argparse
import os
from html import escape
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from tqdm.auto import tqdm

ROOT = Path(__file__).parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path) -> nbformat.NotebookNode:
    """Run one notebook from top to bottom in its own folder; a failing cell raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, record_timing=False, store_widget_state=False,
                   resources={"metadata": {"path": path.parent}}).execute()  # fmt: skip
    return notebook


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what only the running session could show: progress bars, live widgets and their saved state."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {}) and o.get("name") != "stderr"]
    return notebook


def page(notebook: nbformat.NotebookNode) -> str:
    """The notebook as one HTML page that asks nothing of the network; its figures described for who can't see them.

    A notebook's format has no place for that, so a cell keeps its figures' descriptions in its metadata: `alt`, a list.
    """
    # Without these two, a page asks CDNs for scripts that no notebook here uses.
    html, _ = HTMLExporter(require_js_url="", mathjax_url="").from_notebook_node(notebook)
    nothing = 'alt="No description has been provided for this image"'  # nbconvert's words, figure by figure
    for text in (text for cell in notebook.cells for text in cell.metadata.get("alt", ())):
        html = html.replace(nothing, f'alt="{escape(text)}"', 1)
    return html


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["run", "refresh"])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all, in order")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what ships must be enough
    build = ROOT / "build"
    bar = tqdm(args.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb")), unit="notebook")
    for path in bar:
        bar.set_description(path.stem)
        notebook = clean(execute(path))
        if args.action == "refresh":
            nbformat.write(notebook, path)
            continue
        build.mkdir(exist_ok=True)
        nbformat.write(notebook, build / path.name)
        (build / f"{path.stem}.html").write_text(page(notebook))


if __name__ == "__main__":
    main()
