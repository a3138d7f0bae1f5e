"""Naming heads and disabling them: reversible context managers over forward hooks.

Nothing here edits a weight. A head is disabled where it is still separate, at the input z of the output
projection (`Mixer` in models.py), so `ablate(mode="zero")` is exactly the same as zeroing
the head's columns of that projection. On exit, also after an exception, all hooks are gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from ga_utils.items import Example
from ga_utils.models import LM, Mixer

MODES = ("zero", "mean", "resample")


@dataclass(frozen=True, order=True)
class Head:
    """One head, written as in the paper: `Head(16, 22)` is L16H22, both counted from 0."""

    layer: int
    head: int

    @classmethod
    def parse(cls, text: str) -> Head:
        found = re.fullmatch(r"L(\d+)H(\d+)", text)
        if not found:
            raise ValueError(f"{text!r} does not name a head: write it like L16H22 (layer 16, head 22, counted from 0)")
        return cls(int(found[1]), int(found[2]))

    def __str__(self):
        return f"L{self.layer}H{self.head}"

    __repr__ = __str__


def check_heads(lm: LM, heads: Iterable[Head | str]) -> list[Head]:
    """Parse and check names of heads; raises a ValueError that names the first one this model lacks."""
    if isinstance(heads, str | Head):
        raise ValueError(f"expected a list of heads, got the single {heads!r}: write [{str(heads)!r}]")
    heads = [Head.parse(head) if isinstance(head, str) else head for head in heads]
    mixers = lm.mixers
    for head in heads:
        if not 0 <= head.layer < len(mixers):
            raise ValueError(f"{head}: this model has layers 0–{len(mixers) - 1}")
        if not 0 <= head.head < mixers[head.layer].n_heads:
            raise ValueError(f"{head}: layer {head.layer} has heads 0–{mixers[head.layer].n_heads - 1}")
    return heads


def alive_heads(lm: LM) -> list[Head]:
    """All heads that do something; in a pruned model the others have zero output-projection columns."""
    return [Head(m.layer, h) for m in lm.mixers for h in range(m.n_heads) if m.is_alive(h)]


@contextmanager
def ablate(
    lm: LM, heads: Iterable[Head | str], mode: str = "zero", reference: list[Example] | None = None
) -> Iterator[LM]:
    """Disable heads: replace their output z by something that says nothing about the prompt.

    Args:
        mode: "zero": by 0. "mean": by the head's mean over all tokens of the `reference` prompts.
            "resample": at each position, by what the head gave at that position in some `reference` prompt
            (drawn once, with a fixed seed, so that results do not depend on how prompts are batched).
        reference: examples whose prompts supply the values for "mean" and "resample".

    Raises:
        ValueError: a head the model lacks, an unknown mode, or no reference where one is needed.
    """
    heads = check_heads(lm, heads)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    if mode != "zero" and not reference:
        raise ValueError(f"mode={mode!r} needs reference=examples: the prompts whose activations replace the head's")
    mixers = {head.layer: lm.mixers[head.layer] for head in heads}
    outputs = _record(lm, mixers.values(), reference) if mode != "zero" else {}
    with ExitStack() as hooks:
        for layer, mixer in mixers.items():
            columns = torch.zeros(mixer.n_heads, dtype=torch.bool, device=lm.device)
            columns[[head.head for head in heads if head.layer == layer]] = True
            columns = columns.repeat_interleave(mixer.d_head)
            instead = _replacement(mode, outputs.get(layer))
            handle = mixer.out_proj.register_forward_pre_hook(_replacing(columns, instead))
            hooks.callback(handle.remove)
        yield lm


@contextmanager
def keep_only(
    lm: LM, heads: Iterable[Head | str], mode: str = "zero", reference: list[Example] | None = None
) -> Iterator[LM]:
    """In each layer that `heads` names, disable every other head; layers not named stay whole.

    `keep_only(lm, ["L16H22", "L17H24"])` is the paper's strictest test: do the two heads carry their layers alone?
    """
    kept = check_heads(lm, heads)
    if not kept:
        raise ValueError("keep_only needs at least one head: with none named, no layer would change")
    named = {head.layer for head in kept}
    others = [Head(m.layer, h) for m in lm.mixers if m.layer in named for h in range(m.n_heads)]
    with ablate(lm, [head for head in others if head not in kept], mode, reference):
        yield lm


@contextmanager
def skip_layers(lm: LM, layers: Iterable[int]) -> Iterator[LM]:
    """Turn whole layers (mixer and MLP) into the identity on the residual stream."""
    layers = list(layers)
    for layer in layers:
        if not 0 <= layer < lm.n_layers:
            raise ValueError(f"layer {layer}: this model has layers 0–{lm.n_layers - 1}")

    def pass_through(module, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(lm.layers[layer].register_forward_hook(pass_through, with_kwargs=True).remove)
        yield lm


@contextmanager
def truncate(lm: LM, n_layers: int) -> Iterator[LM]:
    """The minimal model: only the first `n_layers` layers, then the final norm and the output head."""
    if not 1 <= n_layers <= lm.n_layers:
        raise ValueError(f"truncate to {n_layers} layers: this model has {lm.n_layers}, keep 1 or more of them")
    decoder, whole = lm.decoder, lm.layers
    decoder.layers = whole[:n_layers]
    try:
        yield lm
    finally:
        decoder.layers = whole


def _replacing(columns: torch.Tensor, instead):
    """A pre-hook on out_proj that swaps the given columns of z [batch, pos, n_heads * d_head]."""

    def hook(module, args):
        (z,) = args
        return (torch.where(columns, instead(z), z),)

    return hook


def _replacement(mode: str, recorded: list[torch.Tensor] | None):
    """A function from z to what stands in for it, broadcastable to z."""
    if mode == "zero":
        return torch.zeros_like
    if mode == "mean":
        mean = torch.cat(recorded).mean(0)
        return lambda z: mean
    rng = torch.Generator().manual_seed(0)
    longest = max(map(len, recorded))
    donors = [[z for z in recorded if len(z) > pos] for pos in range(longest)]
    drawn = torch.stack([d[torch.randint(len(d), (1,), generator=rng)][pos] for pos, d in enumerate(donors)])

    # Past the longest reference prompt the draws start over, so that any prompt can be ablated.
    return lambda z: drawn[torch.arange(z.shape[1]) % longest]


@torch.no_grad()
def _record(lm: LM, mixers: Iterable[Mixer], examples: list[Example]) -> dict[int, list[torch.Tensor]]:
    """Each mixer's z on each reference prompt: {layer: one [pos, n_heads * d_head] per example}."""
    seen: dict[int, list[torch.Tensor]] = {}
    with ExitStack() as hooks:
        for mixer in mixers:
            kept = seen[mixer.layer] = []
            handle = mixer.out_proj.register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0][0]))
            hooks.callback(handle.remove)
        for example in examples:
            ids = lm.tokenizer(example.prompt, return_tensors="pt").input_ids.to(lm.device)
            lm.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return seen
