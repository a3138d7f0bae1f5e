"""The checks of notebook 00."""

from __future__ import annotations

import math
import random

import torch

from ga_utils.checks.check import Check, random_tensor


def _some_choices(rng: random.Random) -> tuple[torch.Tensor]:
    """Log-probabilities of four to seven choices; the one after the likeliest is not the least likely."""
    while True:
        logprobs = random_tensor(rng, rng.randrange(4, 8)).mul(3).log_softmax(-1)
        if int(logprobs.argmin()) != int(logprobs.argmax()) + 1:
            return (logprobs,)


pick_answer = Check(
    "pick_answer",
    reference=lambda logprobs: int(logprobs.argmax()),
    inputs=_some_choices,
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
        "you count the choices from 1; an index counts from 0": (lambda logprobs: int(logprobs.argmax()) + 1),
        "that is the letter; return the choice's index, a number": (
            lambda logprobs: "ABCDEFG"[int(logprobs.argmax())]
        ),
    },
)


def _mostly_right(rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of nine or more questions with four choices; four or six answers are missed."""
    logprobs = random_tensor(rng, rng.randrange(9, 13), 4).log_softmax(-1)
    answers = logprobs.argmax(-1)
    for missed in rng.sample(range(len(answers)), rng.choice([4, 6])):
        answers[missed] = (answers[missed] + rng.randrange(1, 4)) % 4
    return logprobs, answers


def _right(logprobs, answers):
    """For each question, whether the likeliest choice is the right one: 1. or 0."""
    return (logprobs.argmax(-1) == answers).float()


accuracy = Check(
    "accuracy",
    reference=lambda logprobs, answers: _right(logprobs, answers).mean().item(),
    inputs=_mostly_right,
    mistakes={
        "that is the *number* of right answers; accuracy is their share: divide by the number of questions": (
            lambda logprobs, answers: _right(logprobs, answers).sum().item()
        ),
        "you divided by the number of *choices*; divide by the number of questions": (
            lambda logprobs, answers: _right(logprobs, answers).sum().item() / logprobs.shape[-1]
        ),
        "you divided by the number of all log-probabilities; divide by the number of questions": (
            lambda logprobs, answers: _right(logprobs, answers).sum().item() / logprobs.numel()
        ),
        "that is the share of *wrong* answers": (
            lambda logprobs, answers: 1 - _right(logprobs, answers).mean().item()
        ),
        "that is in percent; a share lies between 0 and 1": (
            lambda logprobs, answers: 100 * _right(logprobs, answers).mean().item()
        ),
        "you take the *least* likely choice: the likeliest has the highest log-probability": (
            lambda logprobs, answers: _right(-logprobs, answers).mean().item()
        ),
    },
)

skill_lost = Check(
    "skill_lost",
    reference=lambda before, after, chance: (before - after) / (before - chance),
    inputs=lambda rng: (rng.uniform(0.8, 0.97), rng.uniform(0.4, 0.7), rng.choice([0.25, 1 / 3])),
    mistakes={
        "those are points lost; divide them by the points that *could* be lost, from before down to chance": (
            lambda before, after, chance: before - after
        ),
        "a model without the skill still guesses, so it can only fall to chance, not to 0: "
        "divide by before - chance": (lambda before, after, chance: (before - after) / before),
        "that is the share that is *left*": (
            lambda before, after, chance: (after - chance) / (before - chance)
        ),
        "the model had `before`, not 100 %: it can lose before - chance, not 1 - chance": (
            lambda before, after, chance: (before - after) / (1 - chance)
        ),
        "a loss counts as positive: before - after": (
            lambda before, after, chance: (after - before) / (before - chance)
        ),
    },
)


def _steered(rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Answers of a model, options that heads were made to look at, right options.

    Of the questions with a wrong target some follow, some keep the right answer, some do neither; of those
    with the right target some are answered right. The numbers of all these differ.
    """
    kinds = rng.choice([("f" * 7, "k" * 3, "n" * 2, "r" * 4, "w"), ("f" * 5, "k" * 4, "n", "r" * 3, "w")])
    rows = []
    for kind in "".join(kinds):
        answer, wrong, third = rng.sample(range(4), 3)
        target = answer if kind in "rw" else wrong
        rows.append(({"f": target, "k": answer, "n": third, "r": answer, "w": wrong}[kind], target, answer))
    chosen, targets, answers = zip(*rng.sample(rows, len(rows)))
    return torch.tensor(chosen), torch.tensor(targets), torch.tensor(answers)


def _share(of, among) -> float:
    return (of & among).sum().item() / among.sum().item()


follows = Check(
    "follows",
    reference=lambda chosen, targets, answers: _share(chosen == targets, targets != answers),
    inputs=_steered,
    mistakes={
        "you count questions whose target is the right option: there a model that ignores the intervention "
        "'follows', too; leave them out of both counts": (
            lambda chosen, targets, answers: (chosen == targets).float().mean().item()
        ),
        "you left the questions with the right target out of the hits, but still divide by all questions": (
            lambda chosen, targets, answers: (
                ((chosen == targets) & (targets != answers)).float().mean().item()
            )
        ),
        "that is how often the answer is *right*; the hypothesis says that it is the target": (
            lambda chosen, targets, answers: _share(chosen == answers, targets != answers)
        ),
        "you kept the questions whose target *is* the right option; they can't tell the two apart": (
            lambda chosen, targets, answers: _share(chosen == targets, targets == answers)
        ),
        "a wrong answer is not yet a hit: it has to be the target": (
            lambda chosen, targets, answers: _share(chosen != answers, targets != answers)
        ),
        "that is the number; return the share": (
            lambda chosen, targets, answers: ((chosen == targets) & (targets != answers)).sum().item()
        ),
    },
)


def _probability(counts, n, chance):
    """That the number of hits is one of `counts`, if each of n answers is right with probability `chance`."""
    return float(sum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in counts))


def _one_order(hits, n, chance):
    return float(sum(chance**k * (1 - chance) ** (n - k) for k in range(hits, n + 1)))


def _hits(rng: random.Random) -> tuple[int, int, float]:
    """Hits, n, and chance: few questions, so that every single number of hits has some probability."""
    n = rng.randrange(5, 8)
    return rng.randrange(2, n - 1), n, rng.choice([0.3, 1 / 3, 0.4])


by_luck = Check(
    "by_luck",
    reference=lambda hits, n, chance: _probability(range(hits, n + 1), n, chance),
    inputs=_hits,
    mistakes={
        "that is the probability of *exactly* this many hits, and every single number of hits is unlikely: "
        "ask for this many *or more*": (lambda hits, n, chance: _probability([hits], n, chance)),
        "you leave out `hits` itself: 'at least' begins at hits, range(hits, n + 1)": (
            lambda hits, n, chance: _probability(range(hits + 1, n + 1), n, chance)
        ),
        "you leave out n itself: range(hits, n) ends before n": (
            lambda hits, n, chance: _probability(range(hits, n), n, chance)
        ),
        "that is the other tail, this many hits or *fewer*": (
            lambda hits, n, chance: _probability(range(hits + 1), n, chance)
        ),
        "that counts a single order of hits and misses: there are math.comb(n, k) ways to place k hits "
        "among n questions": _one_order,
        "you use 1/4 whatever `chance` says": (
            lambda hits, n, chance: _probability(range(hits, n + 1), n, 0.25)
        ),
    },
)
