"""The checks of notebooks 04 and 05; `ga.checks` has them all."""

from __future__ import annotations

import torch

from ga_utils.exercise import Check, random_tensor

# ---------------------------------------------------------------- notebook 04


def _unrolled(decay, B, C, first=1):
    """M[t, s] = C[t] B[s] times the decays from s + first to t."""
    n = len(decay)
    M = torch.zeros(n, n)
    for t in range(n):
        for s in range(t + 1):
            M[t, s] = C[t] * B[s] * decay[s + first : t + 1].prod()
    return M


unroll = Check(
    "unroll",
    reference=_unrolled,
    inputs=lambda rng: (random_tensor(rng, 6).sigmoid(), random_tensor(rng, 6), random_tensor(rng, 6)),
    mistakes={
        "x[s] enters *after* the state has decayed at step s, so decay[s] is not among the factors: start at s + 1":
            lambda decay, B, C: _unrolled(decay, B, C, first=0),
        "rows are outputs t and columns are inputs s: yours is transposed": lambda decay, B, C: _unrolled(decay, B, C).T,
        "the decays are missing: C[t] B[s] alone would mean that nothing is ever forgotten":
            lambda decay, B, C: torch.outer(C, B).tril(),
    },
)  # fmt: skip


def _decay_mask(log_decay):
    total = log_decay.cumsum(0)
    return (total[:, None] - total[None, :]).exp().tril()


decay_mask = Check(
    "decay_mask",
    reference=_decay_mask,
    inputs=lambda rng: (-random_tensor(rng, 7).abs(),),
    mistakes={
        "those are still logarithms: a product of decays is exp of the *sum* of their logarithms":
            lambda log_decay: (log_decay.cumsum(0)[:, None] - log_decay.cumsum(0)[None, :]).tril(),
        "above the diagonal must be zeros: position t knows nothing of later positions (.tril())":
            lambda log_decay: (log_decay.cumsum(0)[:, None] - log_decay.cumsum(0)[None, :]).exp(),
        "you count the decay of step s itself; from s to t only the steps s + 1 to t have decayed x[s]":
            lambda log_decay: (log_decay.cumsum(0)[:, None] - (log_decay.cumsum(0) - log_decay)[None, :]).exp().tril(),
    },
)  # fmt: skip

row_shares = Check(
    "row_shares",
    reference=lambda A: A.abs() / A.abs().sum(-1, keepdim=True),
    inputs=lambda rng: (random_tensor(rng, 5, 5).tril(),),
    mistakes={
        "implicit attention may be negative: take A.abs() first, or shares cancel out": lambda A: A / A.sum(-1, keepdim=True),
        "you divided by the sums of the columns; a row is one query's attention: sum over the last dimension":
            lambda A: A.abs() / A.abs().sum(0, keepdim=True),
    },
)  # fmt: skip

numbers_kept = Check(
    "numbers_kept",
    reference=lambda n_tokens, n_heads, d_head, d_state: (2 * n_tokens * n_heads * d_head, n_heads * d_head * d_state),
    inputs=lambda rng: (rng.randrange(50, 500), rng.choice([4, 8]), rng.choice([32, 64]), rng.choice([4, 16])),
    mistakes={
        "attention keeps a key *and* a value for every token": lambda n_tokens, n_heads, d_head, d_state: (
            n_tokens * n_heads * d_head, n_heads * d_head * d_state),
        "an SSM keeps the same state however many tokens it has read: n_tokens has no place in it":
            lambda n_tokens, n_heads, d_head, d_state: (2 * n_tokens * n_heads * d_head, n_tokens * n_heads * d_head * d_state),
        "the other way round: first attention's cache, then the SSM's state": lambda n_tokens, n_heads, d_head, d_state: (
            n_heads * d_head * d_state, 2 * n_tokens * n_heads * d_head),
    },
)  # fmt: skip

# ---------------------------------------------------------------- notebook 05


def _silenced(z, where):
    z = z.clone()
    z[where] = 0
    return z


silence_last = Check(
    "silence_last",
    reference=lambda z: _silenced(z, (slice(None), -1)),
    inputs=lambda rng: (random_tensor(rng, 2, 5, 6),),
    mistakes={
        "z[-1] is the last *prompt* of the batch; the last position is z[:, -1]": lambda z: _silenced(z, -1),
        "that is the last channel; the last position is z[:, -1]": lambda z: _silenced(z, (..., -1)),
        "only the last position must be silent: earlier ones may still gather": lambda z: torch.zeros_like(z),
    },
)  # fmt: skip

gap_closed = Check(
    "gap_closed",
    reference=lambda student, hybrid, teacher: (hybrid - student) / (teacher - student),
    inputs=lambda rng: (rng.uniform(0.2, 0.5), rng.uniform(0.5, 0.8), rng.uniform(0.9, 1.0)),
    mistakes={
        "that is how many points were won; the question is which share of the gap that is":
            lambda student, hybrid, teacher: hybrid - student,
        "divided by the teacher's accuracy; the gap is teacher - student":
            lambda student, hybrid, teacher: (hybrid - student) / teacher,
        "that is the share that is still *open*":
            lambda student, hybrid, teacher: (teacher - hybrid) / (teacher - student),
    },
)  # fmt: skip


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
        random_tensor(rng, 3, 8), random_tensor(rng, 5, 8), random_tensor(rng, 3, 8), random_tensor(rng, 5, 8),
        rng.randrange(4), 2,
    ),
    mistakes={
        "the student's own head still speaks: zero its columns of z": lambda *args: _swapped(*args, keep=True),
        "you added *all* of the teacher's heads; only one was asked for": lambda *args: _swapped(*args, all_heads=True),
        "the borrowed head must write through the teacher's columns of W, not through the student's":
            lambda z, W, zt, Wt, head, d_head: _swapped(z, W, zt, W, head, d_head),
    },
)  # fmt: skip

best_first = Check(
    "best_first",
    reference=lambda gains, k: sorted(gains, key=lambda head: -gains[head])[:k],
    inputs=lambda rng: ({f"L{i}H{j}": rng.random() for i in range(3) for j in range(3)}, rng.randrange(2, 5)),
    mistakes={
        "those are the *worst* k: sort in descending order": lambda gains, k: sorted(gains, key=lambda head: gains[head])[:k],
        "right order, but all of them: keep the first k": lambda gains, k: sorted(gains, key=lambda head: -gains[head]),
    },
)  # fmt: skip
