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


def _zero_at_last(z, head, d_head):
    z = z.clone()
    z[:, -1:] = _zero_head(z[:, -1:], head, d_head)
    return z


def _heads_outputs(rng: random.Random) -> tuple[torch.Tensor, int, int]:
    """z [batch, pos, n_heads * d_head] in which no two sizes are alike, a head but the first, and d_head."""
    n_heads, d_head = rng.choice([(3, 4), (5, 3), (3, 6), (4, 5)])
    return random_tensor(rng, 2, 17, n_heads * d_head), rng.randrange(1, n_heads), d_head


zero_head = Check(
    "zero_head",
    reference=_zero_head,
    inputs=_heads_outputs,
    mistakes={
        "heads lie side by side: head h owns columns h*d_head to (h+1)*d_head, not every n-th column": (
            lambda z, head, d_head: _zero(z, slice(head, None, z.shape[-1] // d_head))
        ),
        "head h starts at column h * d_head, not at column h": (
            lambda z, head, d_head: _zero(z, slice(head, head + d_head))
        ),
        "heads are counted from 0: head h starts at column h * d_head": (
            lambda z, head, d_head: _zero_head(z, head - 1, d_head)
        ),
        "you zeroed *everything but* the head": (lambda z, head, d_head: z - _zero_head(z, head, d_head)),
        "you zeroed positions: the heads are in the last dimension, z[..., columns]": _zero_positions,
        "that is the last position only; the head is to be zero at all of them": _zero_at_last,
        "a slice leaves its end out: it ends at (h+1)*d_head, with nothing subtracted": (
            lambda z, head, d_head: _zero(z, slice(head * d_head, (head + 1) * d_head - 1))
        ),
    },
)


def _pattern(rng: random.Random, n: int) -> torch.Tensor:
    """A causal attention pattern [query, key] of n tokens."""
    future = torch.ones(n, n).triu(1).bool()
    return (3 * random_tensor(rng, n, n)).masked_fill(future, -torch.inf).softmax(-1)


def _pattern_with_segments(rng: random.Random) -> tuple[torch.Tensor, list[list[int]], int]:
    """A pattern, two closing tokens for each of three to five segments, and which segment is right."""
    ends = rng.sample(range(2, 22, 3), rng.randrange(3, 6))
    return _pattern(rng, 24), [[end, end + 1] for end in sorted(ends)], rng.randrange(1, len(ends))


def _flat(closings):
    return [position for closing in closings for position in closing]


def _closer_share(A, closings, right):
    return A[-1, closings[right]].sum() / A[-1, _flat(closings)].sum()


closer_share = Check(
    "closer_share",
    reference=_closer_share,
    inputs=_pattern_with_segments,
    mistakes={
        "that is the right segment's share of *all* attention; divide by what the closing tokens of all "
        "segments get": lambda A, closings, right: A[-1, closings[right]].sum(),
        "that is the mass on the closing tokens of all segments: it belongs below the line": (
            lambda A, closings, right: A[-1, _flat(closings)].sum()
        ),
        "rows are queries and columns are keys, A[query, key]: the last token looks, so the row is A[-1]": (
            lambda A, closings, right: A[closings[right], -1].sum() / A[_flat(closings), -1].sum()
        ),
        "you compared the right segment with the *others*; a share is a part of the whole, the right one "
        "included": (
            lambda A, closings, right: (
                A[-1, closings[right]].sum() / A[-1, _flat(closings[:right] + closings[right + 1 :])].sum()
            )
        ),
        "a segment has two closing tokens: add up both": (
            lambda A, closings, right: A[-1, closings[right][0]] / A[-1, [c[0] for c in closings]].sum()
        ),
        "`right` counts segments, not tokens: its positions are closings[right]": (
            lambda A, closings, right: A[-1, right] / A[-1, _flat(closings)].sum()
        ),
        "a mean over two tokens divided by a mean over all of them is no share: add up both": (
            lambda A, closings, right: A[-1, closings[right]].mean() / A[-1, _flat(closings)].mean()
        ),
        "those are two numbers, one for each closing token: add them": (
            lambda A, closings, right: A[-1, closings[right]] / A[-1, _flat(closings)].sum()
        ),
    },
)


def _loss_of_teams(rng: random.Random):
    """What sets of heads cost, the candidates, and what would be enough.

    Two heads stand in for each other: each costs little, both cost the skill. A third is the costliest by
    itself and needless in the team, a fourth costs more alone than the second partner.
    """
    names = rng.sample([f"L{layer}H{head}" for layer in range(3) for head in range(4)], 6)
    decoy, first, between, second, *idle = names
    own = {decoy: 9, first: 6, between: 5, second: 3, idle[0]: 1, idle[1]: 0.5}
    own = {head: points + rng.uniform(0, 0.4) for head, points in own.items()}

    def loss(heads):
        heads = {str(head) for head in heads}
        return sum(own[head] for head in heads) + (60 if {first, second} <= heads else 0)

    return loss, rng.sample(names, 6), 60 + rng.uniform(0, 3)


def _added(loss, heads, enough):
    """Heads in the order in which they are added, each the one that makes the loss largest."""
    team = []
    while loss(team) < enough and len(team) < len(heads):
        team.append(max((head for head in heads if head not in team), key=lambda head: loss([*team, head])))
    return team


def _needed(team, loss, enough):
    for head in list(team):
        rest = [other for other in team if other != head]
        if loss(rest) >= enough:
            team = rest
    return team


def _by_rank(loss, heads, enough):
    ranked, team = sorted(heads, key=lambda head: -loss([head])), []
    while loss(team) < enough:
        team.append(ranked[len(team)])
    return team


team = Check(
    "team",
    reference=lambda loss, heads, enough: set(_needed(_added(loss, heads, enough), loss, enough)),
    inputs=_loss_of_teams,
    mistakes={
        "right so far, but one of them is needless: take each out in turn, and leave it out if the rest "
        "still cost enough": lambda loss, heads, enough: set(_added(loss, heads, enough)),
        "you ranked the heads once, by what each costs alone; look again after every choice: "
        "loss([*team, head])": lambda loss, heads, enough: set(_by_rank(loss, heads, enough)),
        "no head costs enough alone, and that is the point: try them together": (
            lambda loss, heads, enough: {head for head in heads if loss([head]) >= enough}
        ),
        "that is only the costliest single head": (
            lambda loss, heads, enough: {max(heads, key=lambda head: loss([head]))}
        ),
        "those are all candidates; stop as soon as the loss is enough": (
            lambda loss, heads, enough: set(heads)
        ),
        "the right heads, but as a list: return a set": (
            lambda loss, heads, enough: _needed(_added(loss, heads, enough), loss, enough)
        ),
    },
)


def _two_of_four(rng: random.Random) -> tuple[list[list[int]], int, int]:
    """Two closing tokens for each of four segments, and two different segments."""
    end, closings = rng.randrange(4, 8), []
    for _ in range(4):
        closings.append([end, end + 1])
        end += rng.randrange(6, 9)
    return closings, *rng.sample(range(4), 2)


def _exchanged(closings, right, other):
    a, b = closings[right], closings[other]
    return dict(zip([*a, *b], [*b, *a]))


swapped = Check(
    "swapped",
    reference=_exchanged,
    inputs=_two_of_four,
    mistakes={
        "that only copies: both options would then hold the same. The other one's closing tokens must read "
        "from the right one's, too": (
            lambda closings, right, other: dict(zip(closings[right], closings[other]))
        ),
        "copied in the other direction, and only copied: each option must read from the other": (
            lambda closings, right, other: dict(zip(closings[other], closings[right]))
        ),
        "every position reads from itself: nothing is swapped": (
            lambda closings, right, other: {p: p for p in closings[right] + closings[other]}
        ),
        "newline must read from newline, and the token after it from the token after it: keep the order": (
            lambda closings, right, other: _exchanged([closings[right], closings[other][::-1]], 0, 1)
        ),
        "that is only the first closing token of each: a segment has two": (
            lambda closings, right, other: _exchanged([c[:1] for c in closings], right, other)
        ),
        "that is only the second closing token of each: a segment has two": (
            lambda closings, right, other: _exchanged([c[1:] for c in closings], right, other)
        ),
        "`right` and `other` count segments; the positions are closings[right] and closings[other]": (
            lambda closings, right, other: {right: other, other: right}
        ),
        "a position may read from a whole list only if it is one number: pair them, one to one": (
            lambda closings, right, other: {
                **{p: closings[other] for p in closings[right]},
                **{p: closings[right] for p in closings[other]},
            }
        ),
    },
)


def _written(z, W, d_head):
    """What each head adds to the residual stream: [n_heads, d_model]."""
    return (z * W).unflatten(-1, (-1, d_head)).sum(-1).T


def _interleaved(z, W, readout, d_head):
    return (z * W).unflatten(-1, (d_head, -1)).sum(-2).T @ readout.T


letter_logits = Check(
    "letter_logits",
    reference=lambda z, W, readout, d_head: _written(z, W, d_head) @ readout.T,
    inputs=lambda rng: (
        random_tensor(rng, 12),
        random_tensor(rng, 10, 12) / 3,
        random_tensor(rng, 4, 10) / 3,
        rng.choice([2, 6]),
    ),
    mistakes={
        "that is all heads together: each head gets a row of its own": (
            lambda z, W, readout, d_head: readout @ (W @ z)
        ),
        "transposed: [n_heads, n_letters], a row for each head": (
            lambda z, W, readout, d_head: (_written(z, W, d_head) @ readout.T).T
        ),
        "heads lie side by side, [n_heads, d_head]; you took every n-th column": _interleaved,
        "you stopped at what each head writes to the residual stream; now read it: times readout": (
            lambda z, W, readout, d_head: _written(z, W, d_head)
        ),
        "what a head *prefers* comes later; return the logits themselves": (
            lambda z, W, readout, d_head: (_written(z, W, d_head) @ readout.T).softmax(-1)
        ),
        "those are the weights without z: what the head could write, not what it wrote": (
            lambda z, W, readout, d_head: _written(torch.ones_like(z), W, d_head) @ readout.T
        ),
    },
)
