"""Interactive views. Each notebook shows a PNG beside them, so that a page without scripts loses nothing."""

from __future__ import annotations

from collections.abc import Iterable

from IPython.display import HTML

from ga_utils.attention import attention_map
from ga_utils.models import LM

MAX_HEADS = 8  # 32 heads of 64 tokens make a page of 4 MB


def attention_view(lm: LM, prompt: str, layer: int, heads: Iterable[int] | None = None) -> HTML:
    """circuitsvis' interactive attention patterns of up to 8 heads of a layer, usable offline.

    circuitsvis would ask a CDN for its script when the view is shown; `local_src` carries the script along.

    Raises:
        ValueError: more than 8 heads: the page would become too heavy to open.
    """
    from circuitsvis.attention import attention_patterns

    A = attention_map(lm, prompt, layer, heads)
    if len(A) > MAX_HEADS:
        raise ValueError(f"{len(A)} heads in one view: choose at most {MAX_HEADS}, such as heads=range({MAX_HEADS})")
    tokens = [lm.tokenizer.decode([i]).replace("\n", "⏎") for i in lm.tokenizer(prompt).input_ids]
    # A token that holds "</script>" would end the page's script: "<\/" means the same to JavaScript.
    safe = [token.replace("</", "<\\/") for token in tokens]
    return HTML(attention_patterns(tokens=safe, attention=A.cpu().numpy().round(3)).local_src)
