"""The checks of notebook 03."""

from __future__ import annotations

import math
import random

import torch

from ga_utils.checks.check import Check, random_tensor


def _means(z, n_tokens):
    """The mean of z over each prompt's own tokens, without padding: [prompt, column]."""
    return torch.stack([row[:n].mean(0) for row, n in zip(z, n_tokens)])


def _mean(z, n_tokens):
    """The mean of z over all tokens of all prompts, without padding: [column]."""
    return torch.cat([row[:n] for row, n in zip(z, n_tokens)]).mean(0)


def _put(z, head, d_head, mean):
    """z with the head's columns replaced by those of `mean`."""
    z, columns = z.clone(), slice(head * d_head, (head + 1) * d_head)
    z[..., columns] = mean[..., columns]
    return z


def _one_number(z, n_tokens, head, d_head):
    mean = _mean(z, n_tokens)
    return _put(z, head, d_head, torch.full_like(mean, mean[head * d_head : (head + 1) * d_head].mean()))


mean_ablate = Check(
    "mean_ablate",
    reference=lambda z, n_tokens, head, d_head: _put(z, head, d_head, _mean(z, n_tokens)),
    inputs=lambda rng: (
        random_tensor(rng, 3, 6, 8),
        [6, rng.randrange(2, 5), rng.randrange(1, 4)],
        rng.randrange(4),
        2,
    ),
    mistakes={
        "padding counts as tokens in your mean: use only the first n_tokens[i] positions of prompt i": (
            lambda z, n_tokens, head, d_head: _put(z, head, d_head, z.mean((0, 1)))
        ),
        "you averaged the means of prompts, so a short prompt counts too much: average over all tokens": (
            lambda z, n_tokens, head, d_head: _put(z, head, d_head, _means(z, n_tokens).mean(0))
        ),
        "you put in one mean for each position; the head's mean is over all tokens of all prompts": (
            lambda z, n_tokens, head, d_head: _put(z, head, d_head, z.mean(0))
        ),
        "you also averaged over the head's columns: each column keeps its own mean": _one_number,
        "that disables *every* head: only the columns of `head` may change": (
            lambda z, n_tokens, head, d_head: _mean(z, n_tokens).expand_as(z).clone()
        ),
        "those are zeros, as in an earlier exercise; this one asks for the mean": (
            lambda z, n_tokens, head, d_head: _put(z, head, d_head, torch.zeros(z.shape[-1]))
        ),
    },
)


def _all_heads(layers, n_heads):
    return [(layer, head) for layer in sorted(layers) for head in range(n_heads)]


def _named(kept):
    """The layers that have a kept head."""
    return {layer for layer, _ in kept}


def _all_but_one(kept, n_heads):
    """For each kept head, all other heads of its layer."""
    return sorted({(layer, head) for layer, own in kept for head in range(n_heads) if head != own})


to_disable = Check(
    "to_disable",
    reference=lambda kept, n_heads: [pair for pair in _all_heads(_named(kept), n_heads) if pair not in kept],
    inputs=lambda rng: ([(4, rng.randrange(4)), *((3, head) for head in rng.sample(range(4), 2))], 4),
    mistakes={
        "that list *is* what should be kept": (lambda kept, n_heads: sorted(kept)),
        "you also disabled heads in layers that nobody named: layers without a kept head stay whole": (
            lambda kept, n_heads: [pair for pair in _all_heads(range(5), n_heads) if pair not in kept]
        ),
        "if a layer keeps two heads, you disable both, each because of the other: a *pair* is disabled "
        "only if it is not in `kept`": _all_but_one,
        "the kept heads are still in your list": (lambda kept, n_heads: _all_heads(_named(kept), n_heads)),
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
        "that is one standard error (68 %); a 95 % interval reaches 1.96 of them": (
            lambda hits, n: _half_width(hits, n) / 1.96
        ),
        "that is the whole interval; the question asks for half of it, the ± part": (
            lambda hits, n: 2 * _half_width(hits, n)
        ),
        "the square root is missing: you have 1.96 times the variance": (
            lambda hits, n: 1.96 * (hits / n) * (1 - hits / n) / n
        ),
    },
)


def _wilson(hits, n, z=1.96, inside=1.0):
    centre, half = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + inside * z * z / 4)
    return (centre - half) / (n + z * z), (centre + half) / (n + z * z)


def _hits(rng: random.Random) -> tuple[int, int]:
    """Hits and n; a third of the time all are hits."""
    n = rng.randrange(20, 200)
    return rng.choice([n, rng.randrange(1, n), rng.randrange(n // 2, n)]), n


wilson = Check(
    "wilson",
    reference=_wilson,
    inputs=_hits,
    mistakes={
        "that is the simple interval, with the *observed* share under the root; put p itself there": (
            lambda hits, n: (hits / n - _half_width(hits, n), hits / n + _half_width(hits, n))
        ),
        "the other way round: low first, then high": (lambda hits, n: _wilson(hits, n)[::-1]),
        "when you remove the root, 1.96 must be squared": (lambda hits, n: _wilson(hits, n, z=1.96**0.5)),
        "the root of a quadratic has b² - 4ac under it: you lost a part, so that 100 % right again gives "
        "an interval of width 0": (lambda hits, n: _wilson(hits, n, inside=0.0)),
    },
)


def _split(before, after, smaller=min):
    """The smaller of two counts, answers that got worse and answers that got better, and the sum of both."""
    worse = sum(b and not a for b, a in zip(before, after))
    better = sum(a and not b for b, a in zip(before, after))
    return smaller(worse, better), worse + better


def _exactly(k, n):
    """The probability of k heads in n tosses of a fair coin."""
    return math.comb(n, k) / 2**n


def _p_value(k, n, sides=2):
    """The probability of a split at least as uneven as k to n - k."""
    return min(1.0, sides * sum(_exactly(i, n) for i in range(k + 1)))


def _answers(rng: random.Random) -> tuple[list[bool], list[bool]]:
    """Right or wrong before and after a change that nearly always has more flips one way than the other."""
    one = [True] * 5 + [False] * 3 + [rng.random() < 0.7 for _ in range(22)]
    other = [False] * 4 + [True] * 3 + [False] + [right != (rng.random() < 0.25) for right in one[8:]]
    return (one, other) if rng.random() < 0.5 else (other, one)


paired_p = Check(
    "paired_p",
    reference=lambda before, after: _p_value(*_split(before, after)),
    inputs=_answers,
    mistakes={
        "one-sided: a split as uneven the *other* way would surprise you as much; double it, at most 1": (
            lambda before, after: _p_value(*_split(before, after), sides=1)
        ),
        "questions answered alike both times say nothing about a change: n is the number of flips, "
        "worse + better": (lambda before, after: _p_value(_split(before, after)[0], len(before))),
        "that is the probability of exactly this split; add those of the more uneven ones": (
            lambda before, after: min(1.0, 2 * _exactly(*_split(before, after)))
        ),
        "start from the *smaller* of the two counts; from the larger, nearly every split is 'as uneven'": (
            lambda before, after: _p_value(*_split(before, after, smaller=max))
        ),
    },
)
