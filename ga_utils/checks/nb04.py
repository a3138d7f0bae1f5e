"""The checks of notebook 04; `ga.checks` has them all."""

from __future__ import annotations

import torch

from ga_utils.checks.check import Check, random_tensor


def _step(h, decay, B, x):
    return decay * h + torch.outer(B, x)


next_state = Check(
    "next_state",
    reference=_step,
    inputs=lambda rng: (
        random_tensor(rng, 4, 4),
        random_tensor(rng).sigmoid(),
        random_tensor(rng, 4),
        random_tensor(rng, 4),
    ),
    mistakes={
        "what comes in new is not faded yet: the decay multiplies the *old* state only": lambda h, decay, B, x: (
            decay * (h + torch.outer(B, x))
        ),
        "nothing is forgotten: the old state must be multiplied by the decay": lambda h, decay, B, x: (
            h + torch.outer(B, x)
        ),
        "that is a running mean; an SSM need not weigh the new value by 1 - decay, B does it": lambda h, decay, B, x: (
            decay * h + (1 - decay) * torch.outer(B, x)
        ),
        "transposed: rows of h are states (B), columns are channels (x)": lambda h, decay, B, x: (
            decay * h + torch.outer(x, B)
        ),
        "B * x multiplies entry by entry; every state stores every channel: an outer product": lambda h, decay, B, x: (
            decay * h + B * x
        ),
    },
)


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
        "x[s] enters *after* the state has decayed at step s, so decay[s] is not among the factors: start at s + 1": lambda decay, B, C: (
            _unrolled(decay, B, C, first=0)
        ),
        "rows are outputs t and columns are inputs s: yours is transposed": lambda decay, B, C: (
            _unrolled(decay, B, C).T
        ),
        "the decays are missing: C[t] B[s] alone would mean that nothing is ever forgotten": lambda decay, B, C: (
            torch.outer(C, B).tril()
        ),
    },
)


def _decay_mask(log_decay):
    total = log_decay.cumsum(0)
    return (total[:, None] - total[None, :]).exp().tril()


decay_mask = Check(
    "decay_mask",
    reference=_decay_mask,
    inputs=lambda rng: (-random_tensor(rng, 7).abs(),),
    mistakes={
        "those are still logarithms: a product of decays is exp of the *sum* of their logarithms": lambda log_decay: (
            (log_decay.cumsum(0)[:, None] - log_decay.cumsum(0)[None, :]).tril()
        ),
        "above the diagonal must be zeros: position t knows nothing of later positions (.tril())": lambda log_decay: (
            (log_decay.cumsum(0)[:, None] - log_decay.cumsum(0)[None, :]).exp()
        ),
        "you count the decay of step s itself; from s to t only the steps s + 1 to t have decayed x[s]": lambda log_decay: (
            (log_decay.cumsum(0)[:, None] - (log_decay.cumsum(0) - log_decay)[None, :]).exp().tril()
        ),
    },
)


def _implicit(A, dt, B, C, stored=None, skip=0, sign=1):
    total = dt.cumsum(0) - skip * dt
    elapsed = dt.cumsum(0)[:, None] - total[None, :]
    return ((sign * A * elapsed).exp() * (C @ B.T) * (dt[None, :] if stored is None else stored)).tril()


implicit_attention = Check(
    "implicit_attention",
    reference=_implicit,
    inputs=lambda rng: (
        -random_tensor(rng).exp(),
        random_tensor(rng, 6).exp() / 4,
        random_tensor(rng, 6, 3),
        random_tensor(rng, 6, 3),
    ),
    mistakes={
        "what is stored at s is dt[s] * B[s] * x[s]: the step size dt[s] is missing": lambda A, dt, B, C: (
            _implicit(A, dt, B, C, stored=1.0)
        ),
        "you multiply by the *reader's* step size dt[t]; storing is done at s": lambda A, dt, B, C: _implicit(
            A, dt, B, C, stored=dt[:, None]
        ),
        "you count the decay of step s itself; x[s] enters after it": lambda A, dt, B, C: _implicit(
            A, dt, B, C, skip=1
        ),
        "A is negative, so exp(A * time) fades already; with another minus old tokens grow": lambda A, dt, B, C: (
            _implicit(A, dt, B, C, sign=-1)
        ),
        "rows are readers (C at t), columns are what was stored (B at s): yours has them swapped": lambda A, dt, B, C: (
            _implicit(A, dt, C, B)
        ),
        "above the diagonal must be zeros: position t knows nothing of later positions (.tril())": lambda A, dt, B, C: (
            (A * (dt.cumsum(0)[:, None] - dt.cumsum(0)[None, :])).exp() * (C @ B.T) * dt[None, :]
        ),
        "the decays are missing: that is linear attention, which forgets nothing": lambda A, dt, B, C: (
            (C @ B.T) * dt[None, :]
        ).tril(),
    },
)

row_shares = Check(
    "row_shares",
    reference=lambda A: A.abs() / A.abs().sum(-1, keepdim=True),
    inputs=lambda rng: (random_tensor(rng, 5, 5).tril(),),
    mistakes={
        "implicit attention may be negative: take A.abs() first, or shares cancel out": lambda A: (
            A / A.sum(-1, keepdim=True)
        ),
        "you divided by the sums of the columns; a row is one query's attention: sum over the last dimension": lambda A: (
            A.abs() / A.abs().sum(0, keepdim=True)
        ),
    },
)

numbers_kept = Check(
    "numbers_kept",
    reference=lambda n_tokens, n_heads, d_head, d_state: (
        2 * n_tokens * n_heads * d_head,
        n_heads * d_head * d_state,
    ),
    inputs=lambda rng: (
        rng.randrange(50, 500),
        rng.choice([4, 8]),
        rng.choice([32, 64]),
        rng.choice([4, 16]),
    ),
    mistakes={
        "attention keeps a key *and* a value for every token": lambda n_tokens, n_heads, d_head, d_state: (
            n_tokens * n_heads * d_head,
            n_heads * d_head * d_state,
        ),
        "an SSM keeps the same state however many tokens it has read: n_tokens has no place in it": lambda n_tokens, n_heads, d_head, d_state: (
            2 * n_tokens * n_heads * d_head,
            n_tokens * n_heads * d_head * d_state,
        ),
        "the other way round: first attention's cache, then the SSM's state": lambda n_tokens, n_heads, d_head, d_state: (
            n_heads * d_head * d_state,
            2 * n_tokens * n_heads * d_head,
        ),
    },
)
