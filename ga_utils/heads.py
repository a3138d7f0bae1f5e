"""Naming heads and disabling them: reversible context managers over forward hooks.

Nothing here edits a weight. A head is disabled where it is still separate, at the input z of the output
projection (see `Mixer` in models/lm.py), so `ablate(mode="zero")` does exactly what zeroing the head's
columns of that projection would do. On exit, also after an exception, all hooks are gone; `ga.reset(lm)`
removes what a broken-off cell may have left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from ga_utils.examples import Example
from ga_utils.models.batches import Row
from ga_utils.models.lm import LM, Mixer
from ga_utils.models.mixers import conv_of
from ga_utils.models.recording import record_z
from ga_utils.segments import Places, Where, padding_behind

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
            raise ValueError(
                f"{text!r} does not name a head: write it like L16H22 (layer 16, head 22, counted from 0)"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self):
        return f"L{self.layer}H{self.head}"

    __repr__ = __str__


def check_heads(lm: LM, heads: Iterable[Head | str]) -> list[Head]:
    """Parse and check names of heads; raises a ValueError that names the first one this model lacks."""
    if isinstance(heads, str | Head):
        raise ValueError(f"expected a list of heads, got the single {heads!r}: write [{str(heads)!r}]")
    heads = [Head.parse(head) if isinstance(head, str) else head for head in heads]
    known = {layer: 0 for layer in range(lm.n_layers)} | {m.layer: m.heads.stop for m in lm.mixers}
    for head in heads:
        if head.layer not in known:
            raise ValueError(f"{head}: this model has layers 0–{lm.n_layers - 1}")
        if not 0 <= head.head < known[head.layer]:
            other = "a short convolution" if conv_of(lm.layers[head.layer]) else "an MLP"
            has = f"heads 0–{known[head.layer] - 1}" if known[head.layer] else f"no heads, only {other}"
            raise ValueError(f"{head}: layer {head.layer} has {has}")
    return heads


def check_mode(mode: str, reference: list[Example] | None) -> None:
    """Raises a ValueError for an unknown mode, or when a mode lacks the reference that it needs."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    if mode != "zero" and not reference:
        raise ValueError(
            f"mode={mode!r} needs reference=examples: the prompts whose activations replace the head's"
        )


def alive_heads(lm: LM) -> list[Head]:
    """All heads that do something; in a pruned model the others have zero output-projection columns."""
    return [Head(mixer.layer, head) for mixer in lm.mixers for head in mixer.alive()]


@contextmanager
def ablate(
    lm: LM,
    heads: Iterable[Head | str],
    mode: str = "zero",
    reference: list[Example] | None = None,
    at: Where | None = None,
    but: Where | None = None,
) -> Iterator[LM]:
    """Disable heads: replace their output z by something that says nothing about the prompt.

    Args:
        mode: "zero": by 0. "mean": by the head's mean over all tokens of the `reference` prompts.
            "resample": at each position, by what the head gave at that position in some `reference` prompt.
            The prompts are drawn once, with a fixed seed, so results do not depend on how prompts are
            batched. When you run the model yourself, positions are counted from the cache's first token on.
        reference: examples whose prompts supply the values for "mean" and "resample".
        at: only at these positions of each text: "last", "closing", or a function from an example to a list
            of positions (see `segments.positions`). All positions by default.
        but: at all other positions of the prompt and the choice.

    When you run the model yourself, "last" is where a text's attention mask ends; other positions depend on
    the example, so only what is given examples (`evaluate`, sweeps, scores) works under them.

    Raises:
        ValueError: a head the model lacks, an unknown mode, no reference where one is needed, or both `at`
            and `but`.
    """
    heads, places = check_heads(lm, heads), Places(lm, at, but)
    check_mode(mode, reference)
    off = {mixer: [h for h in mixer.heads if Head(mixer.layer, h) in heads] for mixer in lm.mixers}
    off = {mixer: numbers for mixer, numbers in off.items() if numbers}
    tables = replacement_tables(lm, list(off), mode, reference)
    with lm.edited(f"disabled: {', '.join(map(str, sorted(set(heads)))) or 'no head'}{places}") as edit:
        places.watch(edit)
        start = [0]  # how many tokens a cache holds when you run the model yourself
        if mode == "resample":
            edit.hook(lm.model.register_forward_pre_hook, partial(_note_start, lm, start), with_kwargs=True)
        for (mixer, numbers), table in zip(off.items(), tables):
            columns = torch.zeros(mixer.n_heads, dtype=torch.bool, device=lm.device)
            columns[[number - mixer.first for number in numbers]] = True
            mixer.hook_z(edit, _replacing(lm, columns.repeat_interleave(mixer.d_head), table, places, start))
        yield lm


@contextmanager
def keep_only(
    lm: LM, heads: Iterable[Head | str], mode: str = "zero", reference: list[Example] | None = None
) -> Iterator[LM]:
    """In each layer that `heads` names, disable every other head; layers not named stay whole.

    `keep_only(lm, ["L16H22", "L17H24"])` is the paper's strictest test: do the two heads carry their layers
    alone?
    """
    kept = check_heads(lm, heads)
    if not kept:
        raise ValueError("keep_only needs at least one head: with none named, no layer would change")
    named = {head.layer for head in kept}
    others = [Head(m.layer, h) for m in lm.mixers if m.layer in named for h in m.heads]
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

    with lm.edited(f"skipped: layers {layers}") as edit:
        for layer in layers:
            edit.hook(lm.layers[layer].register_forward_hook, pass_through, with_kwargs=True, prepend=True)
        yield lm


@contextmanager
def truncate(lm: LM, n_layers: int) -> Iterator[LM]:
    """The minimal model: only the first `n_layers` layers, then the final norm and the output head."""
    if not 1 <= n_layers <= lm.n_layers:
        raise ValueError(
            f"truncate to {n_layers} layers: this model has {lm.n_layers}, keep 1 or more of them"
        )
    with lm.edited(f"truncated: {n_layers} of {lm.n_layers} layers") as edit:
        edit.swap(lm.decoder, "layers", lm.layers[:n_layers])
        yield lm


@contextmanager
def mask_last_row(lm: LM, kind: str = "attention", rows: int = 1) -> Iterator[LM]:
    """All mixers of one kind give nothing to the last position; everywhere else they work as ever.

    The last row of the attention matrix is what aggregates: with it masked, earlier positions may still
    gather, but the answer's position can no longer fetch anything through these mixers (the paper's test on
    Zamba2-7B). When you run the model yourself, a text ends where its attention mask ends.

    Args:
        kind: "attention", or "mamba1" / "mamba2" / "deltanet" for the contrast.
        rows: how many positions from the end are masked. A choice of k tokens is predicted at k positions:
            rows=k is the strict test there, rows=1 masks only the last of them.

    Raises:
        ValueError: the model has no mixer of that kind (the message says which it has), or `rows` is not
            positive.
    """
    mixers = [mixer for mixer in lm.mixers if mixer.kind == kind]
    if not mixers:
        kinds = sorted({mixer.kind for mixer in lm.mixers})
        raise ValueError(f"{lm.name} has no {kind!r} mixers to mask: it has {', '.join(kinds)}")
    if rows < 1:
        raise ValueError(f"rows={rows}: mask at least the last row, rows=1")
    padding = [torch.zeros(1, 1, dtype=torch.long)]  # tokens after each prompt of the batch, [batch, 1]

    def find_padding(module, args, kwargs):
        padding[0] = padding_behind(args, kwargs)

    def silence(z):
        position = torch.arange(z.shape[1], device=z.device)[None]
        end = z.shape[1] - padding[0].to(
            z.device
        )  # z ends where the text does, also when a cache holds what came before
        if lm.running:
            end = lm.running.ends.repeat(len(z) // len(lm.running.ends)).unsqueeze(1).to(z.device)
        return z.masked_fill(((position < end) & (position >= end - rows)).unsqueeze(-1), 0)

    with lm.edited(f"last {'row' if rows == 1 else f'{rows} rows'} masked: {kind}") as edit:
        edit.last_rows = rows
        edit.hook(lm.model.register_forward_pre_hook, find_padding, with_kwargs=True)
        for mixer in mixers:
            mixer.hook_z(edit, silence)
        yield lm


def _note_start(lm: LM, start: list[int], module, args: tuple, kwargs: dict) -> None:
    """A pre-hook of the model, for passes of your own: how many tokens come before those of this one.

    Raises:
        ValueError: an SSM's cache, which has no length.
    """
    cache = kwargs.get("past_key_values", kwargs.get("cache_params"))
    if lm.running:
        return
    try:
        start[0] = cache.get_seq_length() if cache is not None else 0
    except (AttributeError, ValueError) as error:
        raise ValueError(
            "this cache does not tell its length, which resampled heads need: use_cache=False"
        ) from error


def _replacing(lm: LM, columns: torch.Tensor, table: torch.Tensor, places: Places, start: list[int]):
    """A hook on z [batch, pos, n_heads * d_head] that takes the given columns from a table instead, which
    `replacement_tables` describes, at the places given. start: [0] is the text's position at which a pass of
    your own begins."""

    def replace(z):
        first = lm.running.start if lm.running else start[0]
        return torch.where(columns.to(z.device) & places.mask(z), rows_of_table(table, first, z), z)

    return replace


def rows_of_table(table: torch.Tensor, start: int, z: torch.Tensor) -> torch.Tensor:
    """Rows of a replacement table for the positions of z [..., pos, n_heads * d_head], from `start` on. Past
    the longest reference prompt the table begins again, so that a prompt of any length can be ablated."""
    return table[torch.arange(start, start + z.shape[-2], device=table.device) % len(table)].to(z)


def replacement_tables(
    lm: LM, mixers: list[Mixer], mode: str, reference: list[Example] | None
) -> list[torch.Tensor]:
    """For each mixer what replaces z in a mode of `ablate`: [period, n_heads * d_head], row t for position
    t.
    """
    if mode == "zero":
        return [torch.zeros(1, mixer.n_heads * mixer.d_head, device=lm.device) for mixer in mixers]
    ids = lm.tokenize([example.prompt for example in reference])
    recorded = record_z(lm, mixers, [Row(i, e, part, []) for i, (e, part) in enumerate(zip(reference, ids))])
    if mode == "mean":
        return [torch.cat(prompts).mean(0, keepdim=True) for prompts in recorded]
    return [_drawn(prompts) for prompts in recorded]


def _drawn(recorded: list[torch.Tensor]) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    donors = [[z for z in recorded if len(z) > pos] for pos in range(max(map(len, recorded)))]
    return torch.stack([d[torch.randint(len(d), (1,), generator=rng)][pos] for pos, d in enumerate(donors)])
