"""The checks of notebook 00."""

from __future__ import annotations

import math
import random

import torch

from ga_utils.checks.check import Check, random_tensor

pick_answer = Check(
    "pick_answer",
    reference=lambda logprobs: int(logprobs.argmax()),
    inputs=lambda rng: (random_tensor(rng, 4).log_softmax(-1),),
    mistakes={
        "you return the *highest log-probability*; return the index of the choice that has it": (
            lambda logprobs: float(logprobs.max())
        ),
        "you return the *least* likely choice: a log-probability near 0 is likely, -10 is not": (
            lambda logprobs: int(logprobs.argmin())
        ),
        "right choice, but as a tensor: turn it into a plain number with int(...)": (
            lambda logprobs: logprobs.argmax()
        ),
    },
)


def _mostly_right(rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of eight questions with eight choices each; two or three of the answers are missed.

    As many questions as choices, so that argmax over the wrong dimension does not raise.
    """
    logprobs = random_tensor(rng, 8, 8).log_softmax(-1)
    answers = logprobs.argmax(-1)
    for missed in rng.sample(range(8), rng.randrange(2, 4)):
        answers[missed] = (answers[missed] + rng.randrange(1, 8)) % 8
    return logprobs, answers


def _right(logprobs, answers, dim=-1):
    """For each question, whether the likeliest choice is the right one: 1. or 0."""
    return (logprobs.argmax(dim) == answers).float()


accuracy = Check(
    "accuracy",
    reference=lambda logprobs, answers: _right(logprobs, answers).mean().item(),
    inputs=_mostly_right,
    mistakes={
        "that is the *number* of right answers; accuracy is their share: use .mean() instead of .sum()": (
            lambda logprobs, answers: _right(logprobs, answers).sum().item()
        ),
        "argmax over the wrong dimension: logprobs is [question, choice], so choices are dim=-1": (
            lambda logprobs, answers: _right(logprobs, answers, dim=0).mean().item()
        ),
        "that is the share of *wrong* answers": (
            lambda logprobs, answers: 1 - _right(logprobs, answers).mean().item()
        ),
        "that is in percent; a share lies between 0 and 1": (
            lambda logprobs, answers: 100 * _right(logprobs, answers).mean().item()
        ),
    },
)

control_heads = Check(
    "control_heads",
    reference=lambda heads, suspects: [head for head in heads if head not in suspects],
    inputs=lambda rng: (
        rng.sample([f"L{i}H{j}" for i in range(3) for j in range(3)], 9),
        [f"L{rng.randrange(3)}H0", f"L{rng.randrange(3)}H1"],
    ),
    mistakes={
        "the right heads in another order: keep the order of `heads` (a set has no order)": (
            lambda heads, suspects: sorted(set(heads) - set(suspects))
        ),
        "the suspects are still in your list: a control must not contain what it controls for": (
            lambda heads, suspects: list(heads)
        ),
        "the other way round: you kept the suspects and dropped all others": (
            lambda heads, suspects: [head for head in heads if head in suspects]
        ),
    },
)

skill_lost = Check(
    "skill_lost",
    reference=lambda before, after, chance: (before - after) / (before - chance),
    inputs=lambda rng: (rng.uniform(0.8, 1.0), rng.uniform(0.4, 0.7), rng.choice([0.25, 1 / 3])),
    mistakes={
        "those are points lost; divide them by the points that *could* be lost, from before down to chance": (
            lambda before, after, chance: before - after
        ),
        "a model without the skill still guesses, so it can only fall to chance, not to 0: "
        "divide by before - chance": (lambda before, after, chance: (before - after) / before),
        "that is the share that is *left*": (
            lambda before, after, chance: (after - chance) / (before - chance)
        ),
    },
)


def _probability(counts, n, chance):
    """That the number of hits is one of `counts`, if each of n answers is right with probability `chance`."""
    return float(sum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in counts))


def _one_order(hits, n, chance):
    return float(sum(chance**k * (1 - chance) ** (n - k) for k in range(hits, n + 1)))


by_luck = Check(
    "by_luck",
    reference=lambda hits, n, chance: _probability(range(hits, n + 1), n, chance),
    inputs=lambda rng: (rng.randrange(6, 12), rng.randrange(24, 33), 0.25),
    mistakes={
        "that is the probability of *exactly* this many hits, and every single number of hits is unlikely: "
        "ask for this many *or more*": (lambda hits, n, chance: _probability([hits], n, chance)),
        "you leave out `hits` itself: 'this many or more' begins at hits, range(hits, n + 1)": (
            lambda hits, n, chance: _probability(range(hits + 1, n + 1), n, chance)
        ),
        "that is the other tail, this many hits or *fewer*": (
            lambda hits, n, chance: _probability(range(hits + 1), n, chance)
        ),
        "that counts a single order of hits and misses: there are math.comb(n, k) ways to place k hits "
        "among n questions": _one_order,
    },
)
