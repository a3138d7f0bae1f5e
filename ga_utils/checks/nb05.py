"""The checks of notebook 05; `ga.checks` has them all."""

from __future__ import annotations

import random

import torch

from ga_utils.checks.check import Check, random_tensor


def _silenced(z, n_tokens, shift=-1):
    z = z.clone()
    for prompt, n in enumerate(n_tokens):
        z[prompt, n + shift] = 0
    return z


def _all_last(z, where):
    z = z.clone()
    z[where] = 0
    return z


silence_last = Check(
    "silence_last",
    reference=_silenced,
    inputs=lambda rng: (random_tensor(rng, 3, 6, 5), [5, rng.randrange(3, 5), rng.randrange(2, 4)]),
    mistakes={
        "z[:, -1] is padding for a prompt shorter than the longest: its last token is at n_tokens[i] - 1": lambda z, n_tokens: (
            _all_last(z, (slice(None), -1))
        ),
        "n tokens are numbered 0 to n - 1: you silenced the place after the last one": lambda z, n_tokens: (
            _silenced(z, n_tokens, shift=0)
        ),
        "z[-1] is the last *prompt* of the batch; positions are the second dimension": lambda z, n_tokens: (
            _all_last(z, -1)
        ),
        "only the last position must be silent: earlier ones may still gather": lambda z, n_tokens: (
            torch.zeros_like(z)
        ),
    },
)

gap_closed = Check(
    "gap_closed",
    reference=lambda student, hybrid, teacher: (hybrid - student) / (teacher - student),
    inputs=lambda rng: (rng.uniform(0.2, 0.5), rng.uniform(0.5, 0.8), rng.uniform(0.9, 1.0)),
    mistakes={
        "that is how many points were won; the question is which share of the gap that is": lambda student, hybrid, teacher: (
            hybrid - student
        ),
        "divided by the teacher's accuracy; the gap is teacher - student": lambda student, hybrid, teacher: (
            (hybrid - student) / teacher
        ),
        "that is the share that is still *open*": lambda student, hybrid, teacher: (
            (teacher - hybrid) / (teacher - student)
        ),
    },
)


def _columns(head, d_head):
    return slice(head * d_head, (head + 1) * d_head)


def _swapped(z, W, z_teacher, W_teacher, head, d_head, keep=False, all_heads=False):
    own, c = z.clone(), _columns(head, d_head)
    if not keep:
        own[..., c] = 0
    borrowed = z_teacher @ W_teacher.T if all_heads else z_teacher[..., c] @ W_teacher[:, c].T
    return own @ W.T + borrowed


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
        "the student's own head still speaks: zero its columns of z": lambda *args: _swapped(
            *args, keep=True
        ),
        "you added *all* of the teacher's heads; only one was asked for": lambda *args: _swapped(
            *args, all_heads=True
        ),
        "the borrowed head must write through the teacher's columns of W, not through the student's": lambda z, W, zt, Wt, head, d_head: (
            _swapped(z, W, zt, W, head, d_head)
        ),
    },
)

best_first = Check(
    "best_first",
    reference=lambda gains, k: sorted(gains, key=lambda head: -gains[head])[:k],
    inputs=lambda rng: ({f"L{i}H{j}": rng.random() for i in range(3) for j in range(3)}, rng.randrange(2, 5)),
    mistakes={
        "those are the *worst* k: sort in descending order": lambda gains, k: sorted(
            gains, key=lambda head: gains[head]
        )[:k],
        "right order, but all of them: keep the first k": lambda gains, k: sorted(
            gains, key=lambda head: -gains[head]
        ),
    },
)


def _covering(rng: random.Random):
    """A score of sets of heads in which the second-best head does what the best one does already."""
    items = [rng.uniform(0.8, 1.2) for _ in range(8)]
    covered = [{0, 1, 2, 3, 4}, {0, 1, 2, 3}, {5, 6}, {7}]
    rng.shuffle(covered)
    heads = [f"L{i}H{rng.randrange(4)}" for i in range(4)]
    covers = dict(zip(heads, covered))
    return (
        lambda kept: sum(items[i] for i in set().union(*(covers[head] for head in kept))),
        heads,
        rng.randrange(2, 4),
    )


def _greedy(score, heads, k, pick=max):
    kept: list = []
    while len(kept) < k:
        kept.append(pick((head for head in heads if head not in kept), key=lambda head: score([*kept, head])))
    return kept


greedy = Check(
    "greedy",
    reference=_greedy,
    inputs=_covering,
    mistakes={
        "each head was scored alone; a head that repeats what is kept already then looks good: score [*kept, head]": lambda score, heads, k: (
            sorted(heads, key=lambda head: -score([head]))[:k]
        ),
        "those add the *least* each time": lambda score, heads, k: _greedy(score, heads, k, pick=min),
        "the right heads, but not in the order in which they were added": lambda score, heads, k: sorted(
            _greedy(score, heads, k), reverse=True
        ),
        "that is one head too many": lambda score, heads, k: _greedy(score, heads, k + 1),
    },
)
