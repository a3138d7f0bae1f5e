"""The checks of notebook 05."""

from __future__ import annotations

import random

import torch

from ga_utils.checks.check import Check, random_tensor


def _zero(z, where):
    z = z.clone()
    z[where] = 0
    return z


def _silenced(z, n_tokens, place=-1):
    """z [prompt, pos, column] with one position zeroed in each prompt, counted from the end of its tokens."""
    return _zero(z, (range(len(z)), [n + place for n in n_tokens]))


silence_last = Check(
    "silence_last",
    reference=_silenced,
    inputs=lambda rng: (random_tensor(rng, 3, 6, 5), [5, rng.randrange(3, 5), rng.randrange(2, 4)]),
    mistakes={
        "z[:, -1] is padding in a prompt shorter than the longest: its last token is at n_tokens[i] - 1": (
            lambda z, n_tokens: _zero(z, (slice(None), -1))
        ),
        "n tokens are numbered 0 to n - 1: you silenced the position after the last one": (
            lambda z, n_tokens: _silenced(z, n_tokens, place=0)
        ),
        "z[-1] is the last *prompt* of the batch; positions are the second dimension": (
            lambda z, n_tokens: _zero(z, -1)
        ),
        "silence only the last position: earlier ones may still gather": (
            lambda z, n_tokens: torch.zeros_like(z)
        ),
    },
)

gap_closed = Check(
    "gap_closed",
    reference=lambda student, hybrid, teacher: (hybrid - student) / (teacher - student),
    inputs=lambda rng: (rng.uniform(0.2, 0.5), rng.uniform(0.5, 0.8), rng.uniform(0.9, 1.0)),
    mistakes={
        "those are the points won; the question is what share of the gap they are": (
            lambda student, hybrid, teacher: hybrid - student
        ),
        "you divided by the teacher's accuracy; the gap is teacher - student": (
            lambda student, hybrid, teacher: (hybrid - student) / teacher
        ),
        "that is the share that is still *open*": (
            lambda student, hybrid, teacher: (teacher - hybrid) / (teacher - student)
        ),
    },
)


def _swapped(z, W, z_teacher, W_teacher, head, d_head, keep_own=False, all_heads=False):
    """The mixer's output [pos, d_model] with one head's part taken from the teacher."""
    columns = slice(head * d_head, (head + 1) * d_head)
    own = z if keep_own else _zero(z, (..., columns))
    lent = slice(None) if all_heads else columns
    return own @ W.T + z_teacher[..., lent] @ W_teacher[:, lent].T


swap_head = Check(
    "swap_head",
    reference=_swapped,
    inputs=lambda rng: (
        random_tensor(rng, 3, 8),
        random_tensor(rng, 5, 8),
        random_tensor(rng, 3, 8),
        random_tensor(rng, 5, 8),
        rng.randrange(4),
        2,
    ),
    mistakes={
        "the student's own head still contributes: zero its columns of z": (
            lambda *args: _swapped(*args, keep_own=True)
        ),
        "you added *all* of the teacher's heads; only one was asked for": (
            lambda *args: _swapped(*args, all_heads=True)
        ),
        "the borrowed head must write through the teacher's columns of W, not through the student's": (
            lambda z, W, z_teacher, W_teacher, *head: _swapped(z, W, z_teacher, W, *head)
        ),
    },
)


def _ranked(gains):
    """Heads by what they gain, the best first."""
    return sorted(gains, key=gains.get, reverse=True)


best_first = Check(
    "best_first",
    reference=lambda gains, k: _ranked(gains)[:k],
    inputs=lambda rng: ({f"L{i}H{j}": rng.random() for i in range(3) for j in range(3)}, rng.randrange(2, 5)),
    mistakes={
        "those are the *worst* k: sort in descending order": (lambda gains, k: _ranked(gains)[::-1][:k]),
        "right order, but all of them: keep the first k": (lambda gains, k: _ranked(gains)),
    },
)


def _overlapping(rng: random.Random):
    """A score of sets of heads, the heads, and k. The second-best head only repeats what the best does."""
    weights = [rng.uniform(0.8, 1.2) for _ in range(11)]
    covered = [{0, 1, 2, 3, 4}, {0, 1, 2, 3}, {5, 6, 7}, {8, 9}, {10}]
    rng.shuffle(covered)
    heads = [f"L{i}H{rng.randrange(4)}" for i in range(5)]
    covers = dict(zip(heads, covered))

    def score(kept):
        return sum(weights[i] for i in set().union(*(covers[head] for head in kept)))

    return score, heads, rng.randrange(3, 5)


def _greedy(score, heads, k, pick=max):
    kept: list = []
    while len(kept) < k:
        kept.append(pick((head for head in heads if head not in kept), key=lambda head: score([*kept, head])))
    return kept


greedy = Check(
    "greedy",
    reference=_greedy,
    inputs=_overlapping,
    mistakes={
        "you scored each head alone, so one that repeats what is kept looks good: score [*kept, head]": (
            lambda score, heads, k: sorted(heads, key=lambda head: -score([head]))[:k]
        ),
        "those add the *least* each time": (lambda score, heads, k: _greedy(score, heads, k, pick=min)),
        "the right heads, but not in the order in which they were added": (
            lambda score, heads, k: sorted(_greedy(score, heads, k), reverse=True)
        ),
        "that is one head too many": (lambda score, heads, k: _greedy(score, heads, k + 1)),
    },
)
