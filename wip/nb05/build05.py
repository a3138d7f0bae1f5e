"""Scratch: writes notebooks/05 from the list below."""
import sys, nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
PATH = "notebooks/05_hybrid_head_replacement.ipynb"
old = nbformat.read("/tmp/nb05work/old.ipynb", 4)
by_id = {c.id: c for c in old.cells}
cells = []
def md(id, text):
    cells.append(new_markdown_cell(text.strip("\n"), id=id))
def co(id, text, alt=None, hidden=False, tags=None):
    meta = {}
    if alt: meta["alt"] = [alt]
    if hidden: meta |= {"collapsed": True, "jupyter": {"outputs_hidden": True}}
    if tags: meta["tags"] = tags
    cells.append(new_code_cell(text.strip("\n"), id=id, metadata=meta))
def keep(id):
    c = by_id[id]; c.outputs = []; c.execution_count = None; cells.append(c)
def exercise(name, box, stub, hint, solution, ids):
    md(ids[0], box)
    co(ids[1], f"{stub} ...\n\n\nga.checks.{name}({name});")
    md(ids[2], f"<details><summary>Hint</summary>\n\n{hint.strip()}\n\n</details>\n<details><summary>Solution</summary>\n\n```python\n{solution.strip()}\n```\n\n</details>")

exec(open("/tmp/nb05work/cells05.py").read())
nb = nbformat.v4.new_notebook(cells=cells, metadata=old.metadata)
nb.nbformat_minor = old.nbformat_minor
nbformat.validate(nb)
nbformat.write(nb, PATH)
print(len(cells), "cells")
