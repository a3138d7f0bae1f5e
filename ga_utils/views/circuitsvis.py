"""`attention_view`: circuitsvis' interactive patterns, offline, its script once per page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from IPython import get_ipython
from IPython.display import HTML

from ga_utils.attention import attention_map
from ga_utils.heads import Head
from ga_utils.models.lm import LM

MAX_HEADS = 8  # 32 heads of 64 tokens make a page of 4 MB
MISSING = (
    "The script of this view came with the first view of the notebook: run that cell again, then this one."
)
_carrier: dict[
    str, str
] = {}  # "cell": the one whose output carries the script for all views of this kernel's notebook


def attention_view(lm: LM, prompt: str, layer: int, heads: Iterable[int] | None = None) -> HTML:
    """circuitsvis' interactive attention patterns of up to 8 heads of a layer, each under its name, usable offline.

    circuitsvis itself would ask a CDN for its script of 1.3 MB. Here the first view of a notebook carries it and the
    others wait for it; in Colab, where every output is a page of its own, each view carries it.

    Raises:
        ValueError: more than 8 heads: the page would become too heavy to open.
    """
    A = attention_map(lm, prompt, layer, heads)
    if len(A) > MAX_HEADS:
        raise ValueError(
            f"{len(A)} heads in one view: choose at most {MAX_HEADS}, such as heads=range({MAX_HEADS})"
        )
    numbers = range(len(A)) if heads is None else heads
    props = {
        "attention": [[[round(float(a), 3) for a in row] for row in head] for head in A],
        "attentionHeadNames": [str(Head(layer, number)) for number in numbers],
        "tokens": [lm.tokenizer.decode([i]).replace("\n", "⏎") for i in lm.tokenizer(prompt).input_ids],
    }
    return HTML(_page(props, carry=_carries()))


def _carries() -> bool:
    """Whether this output has to bring the script: the first cell of the notebook with a view, however often it is run."""
    shell = get_ipython()
    if shell is None or "google.colab" in sys.modules:
        return True
    kernel = getattr(shell, "kernel", None)
    parent = kernel.get_parent("shell") if kernel else {}
    # Not all front ends say which cell is running; the cell's text tells most cells apart.
    cell = parent.get("metadata", {}).get("cellId") or parent.get("content", {}).get("code", "")
    return _carrier.setdefault("cell", cell) == cell


def _page(props: dict, carry: bool) -> str:
    name = f"attention-{uuid4().hex[:12]}"
    # A token that holds "</script>" or "<!--" would end or bend the page's script: JavaScript reads \u003c as "<".
    data = json.dumps(props).replace("<", "\\u003c")
    script = ""
    if carry:
        import circuitsvis

        source = (Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
        source = source.replace("</script>", "").rsplit("//# sourceMappingURL", 1)[0]
        script = f"""<script>if (!window.CircuitsVis) (function () {{ {source}
window.CircuitsVis = CircuitsVis; }})()</script>"""
    return f"""{script}<div id="{name}" role="group" aria-label="attention patterns"></div>
<script>(function draw(left) {{
  if (window.CircuitsVis) CircuitsVis.render("{name}", CircuitsVis.AttentionHeads, {data});
  else if (left) setTimeout(draw, 200, left - 1);
  else document.getElementById("{name}").textContent = "{MISSING}";
}})(50)</script>"""
