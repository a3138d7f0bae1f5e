"""The checks of notebook 02; `ga.checks` has them all."""

from __future__ import annotations

import random

import torch

from ga_utils.checks.check import Check, random_tensor


def _causal(rng: random.Random, length: int) -> torch.Tensor:
    mask = torch.ones(length, length).triu(1).bool()
    return (3 * random_tensor(rng, length, length)).masked_fill(mask, -torch.inf).softmax(-1)


def _zero(z, head, d_head):
    z = z.clone()
    z[..., head * d_head : (head + 1) * d_head] = 0
    return z


def _zero_strided(z, head, d_head):
    z = z.clone()
    z[..., head :: z.shape[-1] // d_head] = 0
    return z


def _zero_from_h(z, head, d_head):
    z = z.clone()
    z[..., head : head + d_head] = 0
    return z


zero_head = Check(
    "zero_head",
    reference=_zero,
    inputs=lambda rng: (random_tensor(rng, 2, 5, 12), rng.randrange(1, 3), 4),
    mistakes={
        "heads lie side by side: head h owns columns h*d_head to (h+1)*d_head, not every n-th column": _zero_strided,
        "head h starts at column h * d_head, not at column h": _zero_from_h,
        "you zeroed *everything but* the head": lambda z, head, d_head: z - _zero(z, head, d_head),
        "you zeroed positions: the heads are in the last dimension, z[..., columns]": lambda z, head, d_head: (
            torch.cat(
                [
                    z[:, : head * d_head],
                    torch.zeros_like(z[:, head * d_head : (head + 1) * d_head]),
                    z[:, (head + 1) * d_head :],
                ],
                1,
            )
        ),
    },
)


def _lines(rng: random.Random) -> tuple[list[str]]:
    words = ["salt", "wind", "bell", "fern", "rose", "wolf", "moon"]
    return (
        [
            token
            for letter in "ABCD"
            for token in (letter, ".", *rng.sample(words, rng.randrange(2, 5)), "\n")
        ],
    )


def _spans(tokens: list[str]) -> list[tuple[int, int]]:
    ends = [i for i, token in enumerate(tokens) if token == "\n"]
    return list(zip([0, *(end + 1 for end in ends)], ends))


segment_spans = Check(
    "segment_spans",
    reference=_spans,
    inputs=_lines,
    mistakes={
        "a segment begins *after* the newline of the one before it, not at it": lambda tokens: [
            (max(0, start - 1), end) for start, end in _spans(tokens)
        ],
        "the newline ends the segment and belongs to it: `end` is the newline's own position": lambda tokens: [
            (start, end - 1) for start, end in _spans(tokens)
        ],
        "`end` is the newline's position itself, not one after it as in a slice": lambda tokens: [
            (start, end + 1) for start, end in _spans(tokens)
        ],
        "those are the newlines only; a segment is a pair (start, end)": lambda tokens: [
            end for _, end in _spans(tokens)
        ],
        "the last segment is missing: nothing begins after its newline, yet it ends there": lambda tokens: (
            _spans(tokens)[:-1]
        ),
    },
)

gather = Check(
    "gather",
    reference=lambda A, close, start, end: A[close, start:end].sum(),
    inputs=lambda rng: (
        _causal(rng, 12),
        (end := rng.randrange(7, 10)) + rng.randrange(2),
        rng.randrange(2, 5),
        end,
    ),
    mistakes={
        "rows are queries, columns are keys: A[query, key], so the closing token comes first": lambda A, close, start, end: (
            A[start:end, close].sum()
        ),
        "leave the newline itself out: the slice start:end ends before it": lambda A, close, start, end: A[
            close, start : end + 1
        ].sum(),
        "start:end already leaves the newline out; end - 1 loses the last word": lambda A, close, start, end: (
            A[close, start : end - 1].sum()
        ),
        "that is everything before the newline, other segments included: the segment begins at `start`": lambda A, close, start, end: (
            A[close, :end].sum()
        ),
        "you averaged over the segment's tokens; the attention *mass* is the sum": lambda A, close, start, end: (
            A[close, start:end].mean()
        ),
    },
)

aggregate = Check(
    "aggregate",
    reference=lambda A, closings, right: A[-1, closings[right]].sum(),
    inputs=lambda rng: (_causal(rng, 16), [[end, end + 1] for end in (3, 6, 9, 12)], rng.randrange(4)),
    mistakes={
        "the Aggregate head works at the *last* token: the query is A[-1]": lambda A, closings, right: A[
            closings[right], -1
        ].sum(),
        "that is the mass on all segments' closing tokens; the score counts only the right one's": lambda A, closings, right: (
            A[-1, sum(closings, [])].sum()
        ),
        "`right` counts segments, not tokens: its positions are closings[right]": lambda A, closings, right: (
            A[-1, right]
        ),
        "two numbers, one for each closing token: add them": lambda A, closings, right: A[
            -1, closings[right]
        ],
    },
)

costs = Check(
    "costs",
    reference=lambda accuracy_without, baseline, heads: {
        head: baseline - accuracy_without(head) for head in heads
    },
    inputs=lambda rng: (
        (table := {f"L{i}H{j}": rng.random() for i in range(2) for j in range(3)}).get,
        rng.random(),
        list(table),
    ),
    mistakes={
        "the other way round: what a head *costs* when disabled is the baseline minus what is left": lambda accuracy_without, baseline, heads: {
            head: accuracy_without(head) - baseline for head in heads
        },
        "that is what is *left* without each head; what it costs is the difference from the baseline": lambda accuracy_without, baseline, heads: {
            head: accuracy_without(head) for head in heads
        },
        "right numbers, but as a list: return a dict from head to cost": lambda accuracy_without, baseline, heads: [
            baseline - accuracy_without(head) for head in heads
        ],
    },
)


def _per_head(change, d_head):
    """Sums of [pos, n_heads * d_head] over positions and over each head's columns: [n_heads]."""
    return change.unflatten(-1, (-1, d_head)).sum((0, 2))


attribution = Check(
    "attribution",
    reference=lambda z, z_other, slope, d_head: _per_head((z_other - z) * slope, d_head),
    inputs=lambda rng: (random_tensor(rng, 5, 12), random_tensor(rng, 5, 12), random_tensor(rng, 5, 12), 3),
    mistakes={
        "signs are reversed: z goes *from* its own value *to* the other prompt's, so the step is z_other - z": lambda z, z_other, slope, d_head: (
            _per_head((z - z_other) * slope, d_head)
        ),
        "slope times z itself is the effect of setting z to *zero* (with a minus); here z becomes z_other": lambda z, z_other, slope, d_head: (
            _per_head(z * slope, d_head)
        ),
        "only the last position: the other prompt's z is put in at *every* position, so add them all": lambda z, z_other, slope, d_head: (
            _per_head(((z_other - z) * slope)[-1:], d_head)
        ),
        "one number for each column; add those that belong to the same head (unflatten the columns to [n_heads, d_head])": lambda z, z_other, slope, d_head: (
            ((z_other - z) * slope).sum(0)
        ),
        "heads lie side by side, [n_heads, d_head]; you took every n-th column": lambda z, z_other, slope, d_head: (
            ((z_other - z) * slope).unflatten(-1, (d_head, -1)).sum((0, 1))
        ),
        "without the signs, steps that cancel each other count twice: add first": lambda z, z_other, slope, d_head: (
            _per_head(((z_other - z) * slope).abs(), d_head)
        ),
    },
)
