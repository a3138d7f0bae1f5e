"""`attention_view`: circuitsvis' interactive attention patterns, usable offline.

circuitsvis would fetch its script of 1.3 MB from a CDN. Here the notebook carries the script, but only once:

    <script> circuitsvis, unless the page has it already            only in the first cell that shows a view
    <div class="attention-3f..."> a sentence for readers who see no patterns </div>
    <script> draw into every such div, now or as soon as circuitsvis is there

A page may show one output twice, for example when two cells display the same view. That is why a div only
gets its id in the page, when it is drawn into.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import circuitsvis
from IPython import get_ipython
from IPython.display import HTML

from ga_utils.attention import attention_map
from ga_utils.heads import Head
from ga_utils.models.lm import LM

MAX_HEADS = 8
MAX_WEIGHTS = 200_000  # in one view, about 1.3 MB
INSTEAD = (
    "Interactive attention patterns appear here where scripts may run. The script comes with the notebook's "
    "first view: if nothing appears, run that view's cell again, or restart the kernel and run this one."
)
# "cell": the first cell of this kernel that displayed a view. "run": the last run of that cell.
_shown: dict[str, str] = {}


def attention_view(lm: LM, prompt: str, layer: int, heads: Iterable[int] | None = None) -> HTML:
    """circuitsvis' interactive attention patterns of up to 8 heads of a layer, each under its name.

    The first cell of a notebook that shows a view carries the script for all of them. In Colab, where every
    output is a page of its own, each view carries it.

    Args:
        heads: which heads of the layer, in this order; by default all.

    Raises:
        ValueError: a layer or head that the model lacks; more than 8 heads; a prompt that is empty, or so
            long that the page would become slow.
    """
    numbers = [h for m in lm.mixers if m.layer == layer for h in m.heads] if heads is None else list(heads)
    (ids,) = lm.tokenize([prompt])
    if len(numbers) > MAX_HEADS:
        raise ValueError(
            f"{len(numbers)} heads in one view: choose at most {MAX_HEADS}, such as heads=range({MAX_HEADS})"
        )
    if not ids:
        raise ValueError("the prompt has no tokens: write something")
    if len(numbers) * len(ids) ** 2 > MAX_WEIGHTS:
        raise ValueError(
            f"{len(numbers)} heads on {len(ids)} tokens are too many weights for one view: "
            "choose fewer heads, or shorten the prompt"
        )
    A = attention_map(lm, prompt, layer, None if heads is None else numbers)
    props = {
        "attention": [[[round(float(a), 3) for a in row] for row in head] for head in A],
        "attentionHeadNames": [str(Head(layer, number)) for number in numbers],
        "tokens": [lm.tokenizer.decode([i]).replace("\n", "⏎") for i in ids],
    }
    return _View(_drawing(props))


class _View(HTML):
    """A view, with its script in `data`. Whether a cell needs the script is clear when it shows the view."""

    def __init__(self, drawing: str):
        super().__init__(_script() + drawing)
        self.drawing = drawing

    def _repr_html_(self) -> str:
        return self.data if _carries() else self.drawing

    def __repr__(self) -> str:
        return repr(HTML(""))  # in plain text, the same as other HTML


def _carries() -> bool:
    """Whether the view being displayed carries the script: once in each run of the first cell with views."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None or "google.colab" in sys.modules:
        return True
    request = kernel.get_parent("shell")
    # Not every front end says which cell is running; the code tells most cells apart.
    cell = request.get("metadata", {}).get("cellId") or request.get("content", {}).get("code", "")
    run = request.get("header", {}).get("msg_id", "")
    if _shown.setdefault("cell", cell) != cell or _shown.get("run") == run:
        return False
    _shown["run"] = run
    return True


def _script() -> str:
    """circuitsvis, as `window.CircuitsVis`. A second copy in a page does nothing."""
    source = (Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    source = source.replace("</script>", "<\\/script>").rsplit("//# sourceMappingURL", 1)[0]
    return f"""<script>if (!window.CircuitsVis) (function () {{ {source}
window.CircuitsVis = CircuitsVis;
window.dispatchEvent(new Event("circuitsvis")); }})()</script>"""


def _drawing(props: dict) -> str:
    """A place in the page, and a script that has circuitsvis draw there."""
    name = f"attention-{uuid4().hex[:12]}"
    # A token with "</script>" or "<!--" in it would end or change the script; JavaScript reads \u003c as "<".
    data = json.dumps(props).replace("<", "\\u003c")
    return f"""<div class="{name}" role="group" aria-label="attention patterns">{INSTEAD}</div>
<script>(function draw() {{
  if (!window.CircuitsVis) return window.addEventListener("circuitsvis", draw, {{ once: true }});
  for (const place of document.querySelectorAll(".{name}:not([id])")) {{
    place.id = "attention-" + Math.random().toString(36).slice(2);
    CircuitsVis.render(place.id, CircuitsVis.AttentionHeads, {data});
  }}
}})()</script>"""
