"""Reading a text in several passes: what a model keeps of the tokens that it has read, for every family.

Attention keeps keys and values, an SSM its state and the last inputs of its convolution. Hugging Face holds
both in a `Cache`, our Llamba in a list of layer states. A cache of some texts becomes one of more texts,
each of which continues one of them, by selecting rows: that is how several choices continue the same prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers import Cache

from ga_utils.examples import Example
from ga_utils.models.lm import LM, UNLIMITED


@dataclass
class Span:
    """A stretch of several texts that runs through the model in one forward pass.

    ids: [row, pos], padded on the right where texts end. start: how many tokens of each text come before.
    parents: [row], the row of the span before that each text continues; None at the beginning of the texts.
    n_before: how many rows the span before has.
    ends: [row], the position here at which each text ends; far away where it goes on in another span.
    reads: [2, read], row and position of each place at which answers are read off.
    picks: [4, pick], read, token, example and choice of each log-probability that makes up an answer.
    examples: [row], whose text it is. indices: [row], their numbers in the list that is scored; -1 for a text
        that all begin with.
    residual: layer -> [row, pos, d_model], what enters it; filled by a sweep's recording pass.
    """

    ids: torch.Tensor
    start: int
    parents: torch.Tensor | None
    n_before: int
    ends: torch.Tensor
    reads: torch.Tensor
    picks: torch.Tensor
    examples: list[Example]
    indices: list[int]
    residual: dict[int, torch.Tensor] = field(default_factory=dict)


def run(lm: LM, span: Span, cache=None, copies: int = 1, keep: bool = False, shortened: bool = False):
    """Run a span, `copies` times over in one batch: rows 0, 1, ... of the first copy, then of the second.

    Hooks find the span as `lm.running`. Logits are made only where answers are read, row by row: with a
    vocabulary of 128,000 they would be the largest tensor by far.

    Args:
        cache: of the span before, with its own rows in as many copies.
        keep: whether a span continues this one.
        shortened: whether the residual stream holds the read positions alone by the time it comes to the
            logits.

    Returns: logits [copy, read, vocabulary], and the cache, None unless `keep`.
    """
    row, position = span.reads.to(lm.device)
    n_rows = len(span.ids)
    rows = torch.cat([row + copy * n_rows for copy in range(copies)])

    def only_read(module, args):
        where = args[0].device
        return args[0][rows.to(where), position.repeat(copies).to(where)][None], *args[1:]

    if span.parents is not None:
        cache = select(cache, torch.cat([span.parents + copy * span.n_before for copy in range(copies)]))
    with lm.at_work(span), lm.edited() as edit:
        if not shortened:
            edit.hook(lm.model.get_output_embeddings().register_forward_pre_hook, only_read)
        logits, cache = read(lm, span.ids.repeat(copies, 1), span.start, cache, keep)
    return logits[0].unflatten(0, (copies, len(row))), cache


@contextmanager
def running(
    lm: LM, ids: torch.Tensor, ends: torch.Tensor, examples: list[Example], start: int = 0
) -> Iterator[None]:
    """Tell hooks whose texts are in a pass whose answers nobody reads: all as in `Span`."""
    nothing = torch.zeros(4, 0, dtype=torch.long)
    span = Span(ids, start, None, 1, ends, nothing[:2], nothing, examples, list(range(len(examples))))
    with lm.at_work(span):
        yield


PROBE = 8  # tokens that are read in one pass and in several, to see whether a model can continue
WAYS = {"block": (3, PROBE - 3), "steps": (PROBE - 3, 1, 1, 1)}  # lengths of the passes


@torch.no_grad()
def how_to_continue(lm: LM) -> str | None:
    """How this model can take up a text where an earlier pass has ended.

    "block": any number of tokens at a time. "steps": one token at a time (Hugging Face's Mamba-1 begins
    longer passes without a state). None: not at all, its texts must be read whole. Found out by trying, once
    a model.
    """
    if lm.continues == "unknown":
        ids = torch.arange(PROBE, device=lm.device)[None] % lm.model.config.get_text_config().vocab_size
        whole = _probe(lm, ids)[0].float().log_softmax(-1)
        found = next((how for how, sizes in WAYS.items() if _agrees(lm, ids, sizes, whole)), None)
        if found is None and lm.edits:  # an edit such as `mask_last_row` may be the reason: ask again later
            return None
        lm.continues = found
    return lm.continues


def _probe(lm: LM, ids: torch.Tensor, start: int = 0, *args, **kwargs):
    """`read` a text that is nobody's example and that goes on: no position in it has a name for hooks."""
    with lm.edited("reading"), running(lm, ids, torch.full((1,), UNLIMITED, device=ids.device), [], start):
        return read(lm, ids, start, *args, **kwargs)


def _agrees(lm: LM, ids: torch.Tensor, sizes: tuple[int, ...], whole: torch.Tensor) -> bool:
    """Whether the last pass gives what the whole text gives, measured by what forgetting the rest would
    cost.
    """
    cache, start = None, 0
    for part in ids.split(sizes, dim=1):
        try:
            logits, cache = _probe(lm, part, start, cache, keep=True)
        except ValueError:  # Hugging Face's cache can't tell its length where no layer is attention
            return False
        if not isinstance(cache, list | Cache):
            return False  # an older class of caches, whose rows can't be selected
        cache = select(cache, torch.zeros(1, dtype=torch.long, device=lm.device))
        start += part.shape[1]
    forgetful = _probe(lm, part)[0]
    gap, loss = (
        (some.float().log_softmax(-1) - whole[:, -part.shape[1] :]).abs().mean()
        for some in (logits, forgetful)
    )
    return bool(gap < 0.1 * loss)


def read(lm: LM, ids: torch.Tensor, start: int = 0, cache=None, keep: bool = False):
    """One forward pass over ids [row, pos], the first of which are token number `start` of their texts.

    Args:
        cache: what an earlier pass kept of the tokens before, in the same rows; it is extended in place.
        keep: whether what this pass leaves behind is wanted.

    Returns: logits [row, pos, vocabulary], and the cache, None unless `keep`.
    """
    parameters = inspect.signature(lm.model.forward).parameters
    name = "cache_params" if "cache_params" in parameters else "past_key_values"
    past = {} if cache is None else {name: cache}
    if "position_ids" in parameters:  # not every family counts on by itself
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        past["position_ids"] = positions.expand(len(ids), -1)
    with lm.evaluating():
        out = lm.model(input_ids=ids, use_cache=keep or cache is not None, **past)
    return out.logits, out[name] if keep else None


def select(cache, rows: torch.Tensor):
    """A cache of its own for the texts `rows`, [row], of another one; a text may be chosen several times."""
    if isinstance(cache, list):
        return [state.select(rows) for state in cache]
    chosen = deepcopy(cache)
    chosen.reorder_cache(rows)
    return chosen
