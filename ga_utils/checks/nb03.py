"""The checks of notebook 03."""

from __future__ import annotations

import math
import random
from itertools import cycle

import numpy as np

from ga_utils.checks.check import Check


def _to_disable(layers, kept, n_heads, among=None):
    """All heads of these layers but the kept ones; `among`: which layers to go through, instead of all."""
    among = sorted(layers) if among is None else among
    return [(layer, head) for layer in among for head in range(n_heads) if (layer, head) not in kept]


def _layers_and_kept(rng: random.Random) -> tuple[list[int], list[tuple[int, int]], int]:
    """Three layers, with gaps, out of order: two heads are kept in one, one in the next, none in the last."""
    n_heads, order = rng.randrange(4, 7), rng.sample(range(3), 3)
    layers = [(1, 4, 7)[i] + rng.randrange(2) for i in order]
    two, one = rng.sample(range(n_heads), 2)
    third = rng.choice([head for head in range(n_heads) if head not in (two, one)])
    return layers, [(layers[0], two), (layers[1], third), (layers[0], one)], n_heads


def _named(kept):
    return sorted({layer for layer, _ in kept})


to_disable = Check(
    "to_disable",
    reference=_to_disable,
    inputs=_layers_and_kept,
    mistakes={
        "that list *is* what should be kept": lambda layers, kept, n_heads: sorted(kept),
        "a layer in which nothing is kept loses all its heads: go through `layers`, not the layers that "
        "`kept` names": lambda layers, kept, n_heads: _to_disable(layers, kept, n_heads, _named(kept)),
        "you also disabled heads of layers that are not in `layers`": (
            lambda layers, kept, n_heads: _to_disable(
                layers, kept, n_heads, range(min(layers), max(layers) + 1)
            )
        ),
        "a head with the same number in *another* layer is another head: ask whether the pair is kept": (
            lambda layers, kept, n_heads: [
                (layer, head)
                for layer in sorted(layers)
                for head in range(n_heads)
                if head not in [number for _, number in kept]
            ]
        ),
        "if a layer keeps two heads, you disable both, each because of the other: a *pair* is disabled "
        "only if it is not in `kept`": (
            lambda layers, kept, n_heads: sorted(
                {(layer, head) for layer, own in kept for head in range(n_heads) if head != own}
                | {(layer, h) for layer in layers if layer not in _named(kept) for h in range(n_heads)}
            )
        ),
        "the kept heads are still in your list": (
            lambda layers, kept, n_heads: _to_disable(layers, [], n_heads)
        ),
        "the right pairs, but not sorted": (
            lambda layers, kept, n_heads: _to_disable(layers, kept, n_heads, layers)
        ),
    },
)


def _rank_p(team_loss, random_losses):
    return (1 + sum(loss >= team_loss for loss in random_losses)) / (1 + len(random_losses))


def _losses(rng: random.Random) -> tuple[float, list[float]]:
    """A team's loss and 20 to 30 others: four to eight are larger, and two or three just as large."""
    n, team = rng.randrange(20, 31), rng.randrange(30, 60)
    above, equal = rng.randrange(4, 9), rng.randrange(2, 4)
    others = [team + rng.randrange(1, 30) for _ in range(above)] + [team] * equal
    others += [team - rng.randrange(1, 30) for _ in range(n - above - equal)]
    return team / 100, [loss / 100 for loss in rng.sample(others, n)]


rank_p = Check(
    "rank_p",
    reference=_rank_p,
    inputs=_losses,
    mistakes={
        "the team itself counts as one of the draws, above and below the line; else 20 draws could give "
        "p = 0": lambda team_loss, random_losses: np.mean([x >= team_loss for x in random_losses]),
        "a draw that costs exactly as much is as costly, too: count ties": (
            lambda team_loss, random_losses: (
                (1 + sum(x > team_loss for x in random_losses)) / (1 + len(random_losses))
            )
        ),
        "the other end: count the draws that cost as much as the team *or more*": (
            lambda team_loss, random_losses: (
                (1 + sum(x <= team_loss for x in random_losses)) / (1 + len(random_losses))
            )
        ),
        "the team counts among all draws (below the line), but also among the costly ones (above it)": (
            lambda team_loss, random_losses: (
                sum(x >= team_loss for x in random_losses) / (1 + len(random_losses))
            )
        ),
        "the team counts among the costly draws (above the line), but also among all draws (below it)": (
            lambda team_loss, random_losses: (
                (1 + sum(x >= team_loss for x in random_losses)) / len(random_losses)
            )
        ),
        "that is a count; the answer is a share of all draws": (
            lambda team_loss, random_losses: float(1 + sum(x >= team_loss for x in random_losses))
        ),
    },
)


def _answered(asked, words, letters):
    return letters[words.index(asked)]


def _mechanism(rng: random.Random) -> tuple[int, list[int], list[int]]:
    """Words and letters at 12 places, both out of order, so that usual mistakes give other answers."""
    while True:
        asked, words, letters = rng.randrange(12), rng.sample(range(12), 12), rng.sample(range(12), 12)
        given = {f(asked, words, letters) for f in (_answered, *_MISREAD.values())}
        if len(given) == 1 + len(_MISREAD):
            return asked, words, letters


_MISREAD = {
    "words[asked] is what stands *at* the asked option's own tokens; the Aggregate heads look for the place "
    "where the asked option's words *are*": lambda asked, words, letters: letters[words[asked]],
    "that is the letter at the asked option's own tokens, wherever its words have gone": (
        lambda asked, words, letters: letters[asked]
    ),
    "that is the place where the words are found; what is answered is the letter that stands there": (
        lambda asked, words, letters: words.index(asked)
    ),
    "you looked for the place where the asked option's *letter* is, and read the words there; it is the "
    "other way round": lambda asked, words, letters: words[letters.index(asked)],
    "the question names words, so look the place up in `words`; you looked it up in `letters`": (
        lambda asked, words, letters: letters.index(asked)
    ),
    "that would be the answer if nothing had been exchanged": lambda asked, words, letters: asked,
}
answered = Check("answered", reference=_answered, inputs=_mechanism, mistakes=_MISREAD)


def _loss_share(before, after, chance, ddof=1, reach=1.96):
    flips = np.array(before, float) - np.array(after, float)
    skill = np.mean(before) - chance
    return flips.mean() / skill, reach * flips.std(ddof=ddof) / len(flips) ** 0.5 / skill


def _answers(rng: random.Random) -> tuple[list[bool], list[bool], float]:
    """Right or wrong on the same questions: most right before, fewer after, some the other way round."""
    n, chance = rng.randrange(40, 80), rng.choice([0.5, 0.25, 0.125])
    before = [True] * 6 + [False] * 2 + [rng.random() < 0.85 for _ in range(n - 8)]
    after = [False] * 4 + [True] * 3 + [False] + [right and rng.random() < 0.7 for right in before[8:]]
    return before, after, chance


def _unpaired(before, after, chance):
    variance = np.var(before, ddof=1) + np.var(after, ddof=1)
    skill = np.mean(before) - chance
    return (np.mean(before) - np.mean(after)) / skill, 1.96 * (variance / len(before)) ** 0.5 / skill


loss_share = Check(
    "loss_share",
    reference=_loss_share,
    inputs=_answers,
    mistakes={
        "you treat the two runs as if each had its own questions; take the difference *question by "
        "question*, then its standard deviation": _unpaired,
        "the skill is what lies above chance: divide by the accuracy before minus chance": (
            lambda before, after, chance: _loss_share(before, after, 0)
        ),
        "those are points of accuracy; divide by the skill, the accuracy before minus chance": (
            lambda before, after, chance: tuple(
                x * (np.mean(before) - chance) for x in _loss_share(before, after, chance)
            )
        ),
        "the half width is still in points of accuracy: divide it by the skill, too": (
            lambda before, after, chance: (
                _loss_share(before, after, chance)[0],
                _loss_share(before, after, chance)[1] * (np.mean(before) - chance),
            )
        ),
        "that is the spread of single questions; the mean of n of them strays less, by the root of n": (
            lambda before, after, chance: (
                _loss_share(before, after, chance)[0],
                _loss_share(before, after, chance)[1] * len(before) ** 0.5,
            )
        ),
        "that is one standard error; a 95 % interval reaches 1.96 of them to each side": (
            lambda before, after, chance: _loss_share(before, after, chance, reach=1)
        ),
        "nearly: the standard deviation of a sample divides by n - 1, np.std(..., ddof=1)": (
            lambda before, after, chance: _loss_share(before, after, chance, ddof=0)
        ),
        "that is the whole interval; the question asks for half of it, the ± part": (
            lambda before, after, chance: _loss_share(before, after, chance, reach=2 * 1.96)
        ),
    },
)


def _split(before, after, smaller=min):
    """The smaller of two counts, answers that got worse and answers that got better, and the sum of both."""
    worse = sum(bool(b and not a) for b, a in zip(before, after))
    better = sum(bool(a and not b) for b, a in zip(before, after))
    return smaller(worse, better), worse + better


def _exactly(k, n):
    """The probability of k heads in n tosses of a fair coin."""
    return math.comb(n, k) / 2**n


def _p_value(k, n, sides=2):
    """The probability of a split at least as uneven as k to n - k."""
    return min(1.0, sides * sum(_exactly(i, n) for i in range(k + 1)))


def _better(before, after):
    """How many answers got better."""
    return sum(a and not b for b, a in zip(before, after))


def _flips(worse: int, better: int, alike: int, rng: random.Random) -> tuple[list[bool], list[bool]]:
    pairs = [(True, False)] * worse + [(False, True)] * better
    pairs += [(right, right) for right in rng.choices([True, False], k=alike)]
    before, after = zip(*rng.sample(pairs, len(pairs)))
    return list(before), list(after)


# Every run of five trials meets each kind: mostly worse or better, no flips, an even split, one way.
_KINDS = cycle([(9, 3), (3, 10), (0, 0), (4, 4), (6, 0)])

paired_p = Check(
    "paired_p",
    reference=lambda before, after: _p_value(*_split(before, after)),
    inputs=lambda rng: _flips(*next(_KINDS), rng.randrange(12, 20), rng),
    mistakes={
        "one-sided: a split as uneven the *other* way would surprise you as much; double it, at most 1": (
            lambda before, after: _p_value(*_split(before, after), sides=1)
        ),
        "you always count the same direction: the change may as well have been for the better": (
            lambda before, after: min(
                1.0, 2 * _p_value(_better(before, after), _split(before, after)[1], sides=1)
            )
        ),
        "a probability above 1: for an even split, twice the tail counts the middle twice; stop at 1": (
            lambda before, after: 2 * _p_value(*_split(before, after), sides=1)
        ),
        "questions answered alike both times say nothing about a change: n is the number of flips, "
        "worse + better": lambda before, after: _p_value(_split(before, after)[0], len(before)),
        "that is the probability of exactly this split; add those of the more uneven ones": (
            lambda before, after: min(1.0, 2 * _exactly(*_split(before, after)))
        ),
        "start from the *smaller* of the two counts; from the larger, nearly every split is 'as uneven'": (
            lambda before, after: _p_value(*_split(before, after, smaller=max))
        ),
    },
)
