"""The checks of notebook 00; `ga.checks` has them all."""

from __future__ import annotations

import math

import torch

from ga_utils.checks.check import Check, random_tensor

pick_answer = Check(
    "pick_answer",
    reference=lambda logprobs: int(logprobs.argmax()),
    inputs=lambda rng: (random_tensor(rng, 4).log_softmax(-1),),
    mistakes={
        "you return the *highest log-probability*; the question is which choice has it (its index)": lambda logprobs: (
            float(logprobs.max())
        ),
        "you return the *least* likely choice: a log-probability near 0 is likely, -10 is not": lambda logprobs: (
            int(logprobs.argmin())
        ),
        "right choice, but as a tensor: turn it into a plain number with int(...)": lambda logprobs: (
            logprobs.argmax()
        ),
    },
)

accuracy = Check(
    "accuracy",
    reference=lambda logprobs, answers: (logprobs.argmax(-1) == answers).float().mean().item(),
    # as many questions as choices, so that argmax over the wrong dimension runs, too
    inputs=lambda rng: (random_tensor(rng, 4, 4), torch.tensor([rng.randrange(4) for _ in range(4)])),
    mistakes={
        "that is the *number* of right answers; accuracy is their share: use .mean() instead of .sum()": lambda logprobs, answers: (
            float((logprobs.argmax(-1) == answers).sum())
        ),
        "argmax over the wrong dimension: logprobs is [question, choice], so the choice is dim=-1": lambda logprobs, answers: (
            (logprobs.argmax(0) == answers).float().mean().item()
        ),
        "that is the share of *wrong* answers": lambda logprobs, answers: (
            (logprobs.argmax(-1) != answers).float().mean().item()
        ),
        "that is in percent; a share lies between 0 and 1": lambda logprobs, answers: (
            100 * (logprobs.argmax(-1) == answers).float().mean().item()
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
        "the right heads, in another order: keep the order of `heads` (a set has none)": lambda heads, suspects: (
            sorted(set(heads) - set(suspects))
        ),
        "the suspects are still among your controls: a control must not contain what it controls for": lambda heads, suspects: (
            list(heads)
        ),
        "you kept the suspects and dropped everything else: it is the other way round": lambda heads, suspects: [
            head for head in heads if head in suspects
        ],
    },
)

skill_lost = Check(
    "skill_lost",
    reference=lambda before, after, chance: (before - after) / (before - chance),
    inputs=lambda rng: (rng.uniform(0.8, 1.0), rng.uniform(0.4, 0.7), rng.choice([0.25, 1 / 3])),
    mistakes={
        "those are points lost; 60 points are nearly all of a skill, or a part of it, depending on where chance lies": lambda before, after, chance: (
            before - after
        ),
        "you compare with an accuracy of 0, but a model without the skill still guesses: what *could* be lost ends at chance": lambda before, after, chance: (
            (before - after) / before
        ),
        "that is the share that is *left*": lambda before, after, chance: (
            (after - chance) / (before - chance)
        ),
    },
)


def _binomial(counts, n, chance):
    return float(sum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in counts))


by_luck = Check(
    "by_luck",
    reference=lambda hits, n, chance: _binomial(range(hits, n + 1), n, chance),
    inputs=lambda rng: (rng.randrange(6, 12), rng.randrange(24, 33), 0.25),
    mistakes={
        "that is the probability of *exactly* so many hits; ask for so many *or more*, or any single count looks surprising": lambda hits, n, chance: (
            _binomial([hits], n, chance)
        ),
        "you leave out `hits` itself: 'at least as many' begins at hits (range(hits, n + 1))": lambda hits, n, chance: (
            _binomial(range(hits + 1, n + 1), n, chance)
        ),
        "that is the other tail, so many hits or *fewer*": lambda hits, n, chance: _binomial(
            range(hits + 1), n, chance
        ),
        "one order of hits and misses only: there are math.comb(n, k) ways to place k hits among n questions": lambda hits, n, chance: (
            float(sum(chance**k * (1 - chance) ** (n - k) for k in range(hits, n + 1)))
        ),
    },
)
