"""The checks of notebook 02."""

from __future__ import annotations

import random

import torch

from ga_utils.checks.check import Check, random_tensor


def _zero(z, columns):
    z = z.clone()
    z[..., columns] = 0
    return z


def _zero_head(z, head, d_head):
    return _zero(z, slice(head * d_head, (head + 1) * d_head))


def _zero_positions(z, head, d_head):
    return _zero_head(z.transpose(1, 2), head, d_head).transpose(1, 2)


zero_head = Check(
    "zero_head",
    reference=_zero_head,
    inputs=lambda rng: (random_tensor(rng, 2, 5, 12), rng.randrange(1, 3), 4),
    mistakes={
        "heads lie side by side: head h owns columns h*d_head to (h+1)*d_head, not every n-th column": (
            lambda z, head, d_head: _zero(z, slice(head, None, z.shape[-1] // d_head))
        ),
        "head h starts at column h * d_head, not at column h": (
            lambda z, head, d_head: _zero(z, slice(head, head + d_head))
        ),
        "you zeroed *everything but* the head": (lambda z, head, d_head: z - _zero_head(z, head, d_head)),
        "you zeroed positions: the heads are in the last dimension, z[..., columns]": _zero_positions,
    },
)


def _lines(rng: random.Random) -> tuple[list[str]]:
    words = ["salt", "wind", "bell", "fern", "rose", "wolf", "moon"]
    lines = [[letter, ".", *rng.sample(words, rng.randrange(2, 5)), "\n"] for letter in "ABCD"]
    return (sum(lines, []),)


def _spans(tokens: list[str]) -> list[tuple[int, int]]:
    ends = [i for i, token in enumerate(tokens) if token == "\n"]
    return list(zip([0, *(end + 1 for end in ends)], ends))


segment_spans = Check(
    "segment_spans",
    reference=_spans,
    inputs=_lines,
    mistakes={
        "a segment begins *after* the newline of the one before it, not at it": (
            lambda tokens: [(max(0, start - 1), end) for start, end in _spans(tokens)]
        ),
        "the newline ends the segment and belongs to it: `end` is the newline's own position": (
            lambda tokens: [(start, end - 1) for start, end in _spans(tokens)]
        ),
        "`end` is the newline's own position, not one more as in a slice": (
            lambda tokens: [(start, end + 1) for start, end in _spans(tokens)]
        ),
        "those are only the newlines; a segment is a pair (start, end)": (
            lambda tokens: [end for _, end in _spans(tokens)]
        ),
        "the last segment is missing: nothing follows its newline, but it is a segment all the same": (
            lambda tokens: _spans(tokens)[:-1]
        ),
    },
)


def _pattern(rng: random.Random, n: int) -> torch.Tensor:
    """A causal attention pattern [query, key] of n tokens."""
    future = torch.ones(n, n).triu(1).bool()
    return (3 * random_tensor(rng, n, n)).masked_fill(future, -torch.inf).softmax(-1)


def _pattern_with_segment(rng: random.Random) -> tuple[torch.Tensor, int, int, int]:
    """A pattern, a closing token, and the segment start:end that it closes."""
    start, end = rng.randrange(2, 5), rng.randrange(7, 10)
    return _pattern(rng, 12), end + rng.randrange(2), start, end


gather = Check(
    "gather",
    reference=lambda A, close, start, end: A[close, start:end].sum(),
    inputs=_pattern_with_segment,
    mistakes={
        "rows are queries and columns are keys, A[query, key], so the closing token comes first": (
            lambda A, close, start, end: A[start:end, close].sum()
        ),
        "leave the newline itself out: the slice start:end ends before it": (
            lambda A, close, start, end: A[close, start : end + 1].sum()
        ),
        "start:end already leaves the newline out; with end - 1 you lose the last word": (
            lambda A, close, start, end: A[close, start : end - 1].sum()
        ),
        "that is everything before the newline, other segments included: begin at `start`": (
            lambda A, close, start, end: A[close, :end].sum()
        ),
        "you averaged over the segment's tokens; the attention *mass* is the sum": (
            lambda A, close, start, end: A[close, start:end].mean()
        ),
    },
)

aggregate = Check(
    "aggregate",
    reference=lambda A, closings, right: A[-1, closings[right]].sum(),
    inputs=lambda rng: (_pattern(rng, 16), [[end, end + 1] for end in (3, 6, 9, 12)], rng.randrange(4)),
    mistakes={
        "the Aggregate head works at the *last* token, so the query is A[-1]": (
            lambda A, closings, right: A[closings[right], -1].sum()
        ),
        "that is the mass on the closing tokens of all segments; the score counts only the right one's": (
            lambda A, closings, right: A[-1, sum(closings, [])].sum()
        ),
        "`right` counts segments, not tokens: its positions are closings[right]": (
            lambda A, closings, right: A[-1, right]
        ),
        "those are two numbers, one for each closing token: add them": (
            lambda A, closings, right: A[-1, closings[right]]
        ),
    },
)


def _accuracies(rng: random.Random):
    """A function from a head to the accuracy without it, the baseline, and the heads."""
    table = {f"L{i}H{j}": rng.random() for i in range(2) for j in range(3)}
    return table.get, rng.random(), list(table)


costs = Check(
    "costs",
    reference=lambda accuracy_without, baseline, heads: {h: baseline - accuracy_without(h) for h in heads},
    inputs=_accuracies,
    mistakes={
        "the other way round: a head's cost is the baseline minus the accuracy without the head": (
            lambda accuracy_without, baseline, heads: {h: accuracy_without(h) - baseline for h in heads}
        ),
        "that is what is *left* without each head; its cost is the difference from the baseline": (
            lambda accuracy_without, baseline, heads: {h: accuracy_without(h) for h in heads}
        ),
        "right numbers, but as a list: return a dict from head to cost": (
            lambda accuracy_without, baseline, heads: [baseline - accuracy_without(h) for h in heads]
        ),
    },
)


def _per_head(effects, d_head):
    """[n_heads]: effects [pos, n_heads * d_head], added over positions and over each head's columns."""
    return effects.unflatten(-1, (-1, d_head)).sum((0, 2))


attribution = Check(
    "attribution",
    reference=lambda z, z_other, slope, d_head: _per_head((z_other - z) * slope, d_head),
    inputs=lambda rng: (random_tensor(rng, 5, 12), random_tensor(rng, 5, 12), random_tensor(rng, 5, 12), 3),
    mistakes={
        "the sign is reversed: z changes *to* the other prompt's value, so the step is z_other - z": (
            lambda z, z_other, slope, d_head: _per_head((z - z_other) * slope, d_head)
        ),
        "slope times z is the effect of setting z to *zero* (with a minus sign); here z becomes z_other": (
            lambda z, z_other, slope, d_head: _per_head(z * slope, d_head)
        ),
        "that is the last position only: z is replaced at *every* position, so add them all": (
            lambda z, z_other, slope, d_head: _per_head(((z_other - z) * slope)[-1:], d_head)
        ),
        "that is one number for each column; add up each head's columns (unflatten to [n_heads, d_head])": (
            lambda z, z_other, slope, d_head: ((z_other - z) * slope).sum(0)
        ),
        "heads lie side by side, [n_heads, d_head]; you took every n-th column": (
            lambda z, z_other, slope, d_head: ((z_other - z) * slope).unflatten(-1, (d_head, -1)).sum((0, 1))
        ),
        "you dropped the signs before adding, so effects that cancel each other count twice: add first": (
            lambda z, z_other, slope, d_head: _per_head(((z_other - z) * slope).abs(), d_head)
        ),
    },
)
