"""The checks of notebook 03; `ga.checks` has them all."""

from __future__ import annotations

import math

import torch

from ga_utils.checks.check import Check, random_tensor


def _real(z, n_tokens):
    return torch.cat([row[:n] for row, n in zip(z, n_tokens)])


def _put(z, head, d_head, mean):
    z = z.clone()
    z[..., head * d_head : (head + 1) * d_head] = mean[..., head * d_head : (head + 1) * d_head]
    return z


mean_ablate = Check(
    "mean_ablate",
    reference=lambda z, n_tokens, head, d_head: _put(z, head, d_head, _real(z, n_tokens).mean(0)),
    inputs=lambda rng: (
        random_tensor(rng, 3, 6, 8),
        [6, rng.randrange(2, 5), rng.randrange(1, 4)],
        rng.randrange(4),
        2,
    ),
    mistakes={
        "padding counts as tokens in your mean: use only the first n_tokens[i] positions of prompt i": lambda z, n_tokens, head, d_head: (
            _put(z, head, d_head, z.mean((0, 1)))
        ),
        "you averaged prompts' means: a short prompt then weighs as much as a long one; average over all tokens": lambda z, n_tokens, head, d_head: (
            _put(z, head, d_head, torch.stack([row[:n].mean(0) for row, n in zip(z, n_tokens)]).mean(0))
        ),
        "you put in one mean for each position; the head's mean is over all tokens of all prompts": lambda z, n_tokens, head, d_head: (
            _put(z, head, d_head, z.mean(0))
        ),
        "you averaged over the head's columns as well: each column keeps a mean of its own": lambda z, n_tokens, head, d_head: (
            _put(
                z,
                head,
                d_head,
                torch.ones(z.shape[-1]) * _real(z, n_tokens)[:, head * d_head : (head + 1) * d_head].mean(),
            )
        ),
        "that disables *every* head: only the columns of `head` may change": lambda z, n_tokens, head, d_head: (
            _real(z, n_tokens).mean(0).expand_as(z).clone()
        ),
        "those are zeros: that question was asked already; put the mean in": lambda z, n_tokens, head, d_head: (
            _put(z, head, d_head, torch.zeros(z.shape[-1]))
        ),
    },
)

to_disable = Check(
    "to_disable",
    reference=lambda kept, n_heads: sorted(
        (layer, head)
        for layer in {layer for layer, _ in kept}
        for head in range(n_heads)
        if (layer, head) not in kept
    ),
    inputs=lambda rng: ([(4, rng.randrange(4)), *((3, head) for head in rng.sample(range(4), 2))], 4),
    mistakes={
        "that list *is* what should be kept": lambda kept, n_heads: sorted(kept),
        "you disabled heads in layers that nobody named, too: layers without a kept head stay whole": lambda kept, n_heads: (
            sorted(
                (layer, head) for layer in range(5) for head in range(n_heads) if (layer, head) not in kept
            )
        ),
        "where two heads of one layer are kept, you disable each because of the other: ask whether the *pair* is in `kept`": lambda kept, n_heads: (
            sorted({(layer, head) for layer, own in kept for head in range(n_heads) if head != own})
        ),
        "the kept heads are still in your list": lambda kept, n_heads: sorted(
            (layer, head) for layer in {layer for layer, _ in kept} for head in range(n_heads)
        ),
    },
)


def _half_width(hits, n):
    p = hits / n
    return 1.96 * math.sqrt(p * (1 - p) / n)


half_width = Check(
    "half_width",
    reference=_half_width,
    inputs=lambda rng: (rng.randrange(20, 80), 100 * rng.randrange(1, 5)),
    mistakes={
        "that is one standard error (68 %); a 95 % interval reaches 1.96 of them": lambda hits, n: (
            _half_width(hits, n) / 1.96
        ),
        "that is the whole interval; the question asks for half of it, the ± part": lambda hits, n: (
            2 * _half_width(hits, n)
        ),
        "the square root is missing: you have 1.96 times the variance": lambda hits, n: (
            1.96 * (hits / n) * (1 - hits / n) / n
        ),
    },
)


def _wilson(hits, n, z=1.96, inside=1.0):
    centre, half = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + inside * z * z / 4)
    return (centre - half) / (n + z * z), (centre + half) / (n + z * z)


wilson = Check(
    "wilson",
    reference=_wilson,
    inputs=lambda rng: (
        rng.choice([n := rng.randrange(20, 200), rng.randrange(1, n), rng.randrange(n // 2, n)]),
        n,
    ),
    mistakes={
        "that is the simple interval, with the *observed* share under the root; here p itself stands there": lambda hits, n: (
            hits / n - _half_width(hits, n),
            hits / n + _half_width(hits, n),
        ),
        "the other way round: low first, then high": lambda hits, n: _wilson(hits, n)[::-1],
        "1.96 must be squared when the root is removed": lambda hits, n: _wilson(hits, n, 1.96**0.5),
        "a quadratic's root has b² - 4ac under it: you lost a part, and 100 % right would again give no width at 1": lambda hits, n: (
            _wilson(hits, n, inside=0.0)
        ),
    },
)


def _flips(before, after):
    return sum(b and not a for b, a in zip(before, after)), sum(a and not b for b, a in zip(before, after))


def _uneven(fewer, n, sides=2):
    return min(1.0, sides * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


paired_p = Check(
    "paired_p",
    reference=lambda before, after: _uneven(min(_flips(before, after)), sum(_flips(before, after))),
    inputs=lambda rng: (
        before := [True] * 3 + [False] * 3 + [rng.random() < 0.7 for _ in range(24)],
        [False] * 2 + [True] * 3 + [False] + [b != (rng.random() < 0.25) for b in before[6:]],
    ),
    mistakes={
        "one-sided: a split as uneven in the *other* direction would have surprised you as much; double it, at most 1": lambda before, after: (
            _uneven(min(_flips(before, after)), sum(_flips(before, after)), sides=1)
        ),
        "questions answered alike both times say nothing about a change: count the flips only, n = worse + better": lambda before, after: (
            _uneven(min(_flips(before, after)), len(before))
        ),
        "that is the probability of exactly this split; add the more uneven ones": lambda before, after: min(
            1.0,
            2
            * math.comb(sum(_flips(before, after)), min(_flips(before, after)))
            / 2 ** sum(_flips(before, after)),
        ),
        "start from the *smaller* of the two counts; from the larger one, nearly every split is 'as uneven'": lambda before, after: (
            _uneven(max(_flips(before, after)), sum(_flips(before, after)))
        ),
    },
)
