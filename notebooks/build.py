"""Run the notebooks: `python notebooks/build.py run` puts copies and a web site into build/, `refresh` works
in place.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
CELL_SECONDS = 900  # a cell that takes longer stops the run
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path, report_every: float = 30) -> nbformat.NotebookNode:
    """Run one notebook from top to bottom in its own folder and return it with its outputs.

    Every `report_every` seconds a line says which cell is running and for how long. A cell that fails raises
    nbclient's CellExecutionError; one that takes more than CELL_SECONDS raises its CellTimeoutError.
    """
    notebook = nbformat.read(path, as_version=4)
    began = time.monotonic()
    current = {"number": 0, "began": began}
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": path.parent}},
        on_cell_execute=lambda cell, cell_index: current.update(
            number=cell_index + 1, began=time.monotonic()
        ),
    )

    async def report() -> None:
        while True:
            await asyncio.sleep(report_every)
            seconds = time.monotonic() - current["began"]
            where = f"cell {current['number']} of {len(notebook.cells)}"
            print(f"{path.stem}: {where} has been running for {seconds:.0f} s", flush=True)

    async def run() -> None:
        reporter = asyncio.create_task(report())
        try:
            await client.async_execute()
        finally:
            reporter.cancel()

    asyncio.run(run())
    print(f"{path.stem}: done in {time.monotonic() - began:.0f} s", flush=True)
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


def site(target: Path) -> None:
    """Write the course as web pages to the folder `target`, with Sphinx and the settings in site/conf.py.

    The pages show the runs in build/, and the committed outputs of a notebook that has not been run.
    """
    settings = ROOT / "notebooks" / "site"
    with tempfile.TemporaryDirectory() as scratch:
        pages = Path(scratch) / "site"
        command = [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-c",
            settings,
            "-d",
            f"{scratch}/cache",
            ROOT,
            pages,
        ]
        subprocess.run(command, check=True)
        shutil.copy(pages / "README.html", pages / "index.html")
        # The theme's icons are a font. This script of 1.5 MB, for icons that a site adds, we do not need.
        (pages / "_static" / "scripts" / "fontawesome.js").write_text("")
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(pages, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["run", "refresh"])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all, in order")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what ships must be enough
    build = ROOT / "build"
    for path in args.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = clean(execute(path.resolve()))
        if args.action == "refresh":
            nbformat.write(notebook, path)
        else:
            build.mkdir(exist_ok=True)
            nbformat.write(notebook, build / path.name)
    if args.action == "run":
        site(build / "site")
        print(f"The web site: {build / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
