"""The checks of notebook 03: answers of learners, right and wrong, and what each is told."""

from math import comb
from statistics import mean, stdev

import numpy as np
from scipy.stats import binomtest


def disable(layers, kept, n_heads):
    return sorted({(layer, h) for layer in layers for h in range(n_heads)} - set(kept))


def disable_loop(layers, kept, n_heads):
    out = []
    for layer in sorted(layers):
        for head in range(n_heads):
            if (layer, head) not in kept:
                out.append((layer, head))
    return out


def p_of(team_loss, random_losses):
    return (np.sum(np.array(random_losses) >= team_loss) + 1) / (len(random_losses) + 1)


def p_sorted(team_loss, random_losses):
    every = sorted([team_loss, *random_losses])
    return (len(every) - every.index(team_loss)) / len(every)


def read_off(asked, words, letters):
    return letters[words.index(asked)]


def read_off_loop(asked, words, letters):
    for place in range(len(words)):
        if words[place] == asked:
            return letters[place]


def read_off_dict(asked, words, letters):
    return dict(zip(words, letters))[asked]


def share(before, after, chance):
    d = np.array(before, int) - np.array(after, int)
    skill = np.mean(before) - chance
    return d.mean() / skill, 1.96 * np.std(d, ddof=1) / np.sqrt(len(d)) / skill


def share_by_hand(before, after, chance):
    n = len(before)
    d = [int(b) - int(a) for b, a in zip(before, after)]
    mean = sum(d) / n
    variance = sum((x - mean) ** 2 for x in d) / (n - 1)
    skill = sum(before) / n - chance
    return float(mean / skill), float(1.96 * (variance / n) ** 0.5 / skill)


def mcnemar(before, after):
    worse = sum(b and not a for b, a in zip(before, after))
    better = sum(a and not b for b, a in zip(before, after))
    n = worse + better
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(worse, better) + 1)) / 2**n)


def mcnemar_from_above(before, after):
    b, a = np.array(before), np.array(after)
    n, k = int((b != a).sum()), int(max((b & ~a).sum(), (a & ~b).sum()))
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(comb(n, i) / 2**n for i in range(k, n + 1)))


def mcnemar_both_tails(before, after):
    flips = [bool(b) for b, a in zip(before, after) if b != a]
    n, off = len(flips), abs(sum(flips) - len(flips) / 2)
    return sum(comb(n, k) for k in range(n + 1) if abs(k - n / 2) >= off) / 2**n


def mcnemar_scipy(before, after):
    worse = sum(b and not a for b, a in zip(before, after))
    n = worse + sum(a and not b for b, a in zip(before, after))
    return binomtest(worse, n).pvalue if n else 1.0


def mcnemar_by_steps(before, after):
    flips = [(b, a) for b, a in zip(before, after) if b != a]
    fewer = min(flips.count((True, False)), flips.count((False, True)))
    tail = 0.0
    for k in range(fewer + 1):
        tail += comb(len(flips), k) * 0.5 ** len(flips)
    return np.float64(min(2 * tail, 1))


RIGHT = {
    "to_disable": [
        disable,
        disable_loop,
        lambda layers, kept, n: [list(pair) for pair in disable(layers, kept, n)],
        lambda layers, kept, n: [(np.int64(x), np.int64(h)) for x, h in disable(layers, kept, n)],
        lambda layers, kept, n: [
            (x, h) for x in sorted(set(layers)) for h in range(n) if not any(k == (x, h) for k in kept)
        ],
    ],
    "rank_p": [
        p_of,
        p_sorted,
        lambda t, r: (1 + len([x for x in r if not x < t])) / (1 + len(r)),
        lambda t, r: np.mean(np.append(r, t) >= t),
        lambda t, r: 1 - sum(x < t for x in r) / (len(r) + 1),
    ],
    "answered": [
        read_off,
        read_off_loop,
        read_off_dict,
        lambda a, w, x: x[int(np.argmax(np.array(w) == a))],
        lambda a, w, x: next(letter for word, letter in zip(w, x) if word == a),
    ],
    "loss_share": [
        share,
        share_by_hand,
        lambda b, a, c: list(share(b, a, c)),
        lambda b, a, c: tuple(map(float, share(b, a, c))),
        lambda b, a, c: (
            (mean(b) - mean(a)) / (mean(b) - c),
            1.96 * stdev(x - y for x, y in zip(map(int, b), map(int, a))) / len(b) ** 0.5 / (mean(b) - c),
        ),
    ],
    "paired_p": [mcnemar, mcnemar_from_above, mcnemar_both_tails, mcnemar_scipy, mcnemar_by_steps],
}

WRONG = {  # name -> [(the answer, a part of what the learner is told)]
    "to_disable": [
        (lambda layers, kept, n: sorted(kept), "*is* what should be kept"),
        (lambda layers, kept, n: disable({layer for layer, _ in kept}, kept, n), "loses all its heads"),
        (lambda layers, kept, n: disable(range(min(layers), max(layers) + 1), kept, n), "not in `layers`"),
        (lambda layers, kept, n: disable(layers, [], n), "still in your list"),
        (
            lambda layers, kept, n: [
                (x, h) for x in sorted(layers) for h in range(n) if h not in dict(kept).values()
            ],
            "",
        ),
        (
            lambda layers, kept, n: [(x, h) for x in layers for h in range(n) if (x, h) not in kept],
            "not sorted",
        ),
        (lambda layers, kept, n: disable(layers, kept, n)[:-1], ""),
        (lambda layers, kept, n: [], ""),
    ],
    "rank_p": [
        (lambda t, r: np.mean(np.array(r) >= t), "counts as one of the draws"),
        (lambda t, r: (1 + sum(x > t for x in r)) / (1 + len(r)), "count ties"),
        (lambda t, r: (1 + sum(x <= t for x in r)) / (1 + len(r)), "the other end"),
        (lambda t, r: sum(x >= t for x in r) / (1 + len(r)), "also among the costly ones"),
        (lambda t, r: (1 + sum(x >= t for x in r)) / len(r), "also among all draws"),
        (lambda t, r: 1 + sum(x >= t for x in r), "a count"),
        (lambda t, r: 1 / (1 + len(r)), ""),
        (lambda t, r: 0.05, ""),
    ],
    "answered": [
        (lambda a, w, x: x[w[a]], "*at* the asked option's own"),
        (lambda a, w, x: x[a], "wherever its words have gone"),
        (lambda a, w, x: w.index(a), "the letter that stands there"),
        (lambda a, w, x: w[x.index(a)], "the other way round"),
        (lambda a, w, x: x.index(a), "looked it up in `letters`"),
        (lambda a, w, x: a, "if nothing had been exchanged"),
        (lambda a, w, x: w[a], ""),
    ],
    "loss_share": [
        (lambda b, a, c: (share(b, a, c)[0], share(b, a, c)[1] / 1.96), "one standard error"),
        (lambda b, a, c: (share(b, a, c)[0], share(b, a, c)[1] * 2), "whole interval"),
        (lambda b, a, c: (share(b, a, c)[0], share(b, a, c)[1] * len(b) ** 0.5), "root of n"),
        (lambda b, a, c: share(b, a, 0), "above chance"),
        (lambda b, a, c: (share(b, a, c)[0], share(b, a, c)[1] * (np.mean(b) - c)), "still in points"),
        (lambda b, a, c: tuple(x * (np.mean(b) - c) for x in share(b, a, c)), "points of accuracy"),
        (lambda b, a, c: (share(b, a, c)[0], share(b, a, c)[1] * ((len(b) - 1) / len(b)) ** 0.5), "ddof=1"),
        (
            lambda b, a, c: (
                share(b, a, c)[0],
                1.96 * ((np.var(b, ddof=1) + np.var(a, ddof=1)) / len(b)) ** 0.5 / (np.mean(b) - c),
            ),
            "question by question",
        ),
        (lambda b, a, c: share(a, b, c), ""),
        (lambda b, a, c: share(b, a, c)[0], ""),
    ],
    "paired_p": [
        (lambda b, a: mcnemar(b, a) / 2, ""),
        (
            lambda b, a: (
                2
                * sum(
                    comb(n := sum(x != y for x, y in zip(b, a)), k)
                    for k in range(
                        min(sum(x and not y for x, y in zip(b, a)), sum(y and not x for x, y in zip(b, a)))
                        + 1
                    )
                )
                / 2**n
            ),
            "a probability above 1",
        ),
        (
            lambda b, a: min(
                1.0,
                2
                * sum(
                    comb(n := sum(x != y for x, y in zip(b, a)), k)
                    for k in range(sum(y and not x for x, y in zip(b, a)) + 1)
                )
                / 2**n,
            ),
            "always count the same direction",
        ),
        (
            lambda b, a: min(
                1.0,
                2
                * sum(
                    comb(len(b), k)
                    for k in range(
                        min(sum(x and not y for x, y in zip(b, a)), sum(y and not x for x, y in zip(b, a)))
                        + 1
                    )
                )
                / 2 ** len(b),
            ),
            "say nothing about a change",
        ),
        (lambda b, a: abs(np.mean(b) - np.mean(a)), ""),
        (lambda b, a: 1.0, ""),
        (lambda b, a: 0.05, ""),
    ],
}
