"""The notebooks on this machine: do they run, and do they print what the committed ones print?"""

from __future__ import annotations

import difflib
import sys
import time
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "notebooks"))
from build import execute  # noqa: E402

CHECKED = "NBVAL_CHECK_OUTPUT"  # marks cells whose output must be the same everywhere


def printed(cell: nbformat.NotebookNode) -> list[str]:
    """The lines that a cell prints."""
    streams = [output.text for output in cell.get("outputs", []) if output.get("name") == "stdout"]
    return "".join(streams).splitlines()


def differences(committed: nbformat.NotebookNode, run: nbformat.NotebookNode) -> tuple[list[str], bool]:
    """Lines that differ, "-" as committed and "+" as run, and whether all checked cells agree.

    Cells without the mark may differ: they print times, or what the machine is.
    """
    lines, agree = [], True
    for number, (before, after) in enumerate(zip(committed.cells, run.cells), 1):
        changed = [
            line
            for line in difflib.unified_diff(printed(before), printed(after), lineterm="", n=0)
            if not line.startswith(("---", "+++", "@@"))
        ]
        checked = CHECKED in before.source
        agree = agree and not (changed and checked)
        lines += [f"cell {number}{' (checked)' if checked else ''}: {line}" for line in changed]
    return lines, agree


def notebooks(paths: list[Path] | None = None) -> list[dict]:
    """A row for each notebook."""
    rows = []
    for path in paths or sorted((ROOT / "notebooks").glob("*.ipynb")):
        start = time.perf_counter()
        try:
            lines, agree = differences(nbformat.read(path, as_version=4), execute(path))
        except (CellExecutionError, CellTimeoutError) as error:
            lines, agree = [f"stopped: {str(error).strip().splitlines()[-1]}"], False
        seconds = time.perf_counter() - start
        rows.append({"what": path.stem, "ok": agree, "seconds": seconds, "note": "<br>".join(lines)})
    return rows
