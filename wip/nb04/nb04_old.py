"""The checks of notebook 04."""

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
        "what is new has not decayed yet: the decay multiplies only the *old* state": (
            lambda h, decay, B, x: decay * (h + torch.outer(B, x))
        ),
        "nothing is forgotten: multiply the old state by the decay": (
            lambda h, decay, B, x: h + torch.outer(B, x)
        ),
        "that is a running mean; an SSM does not weigh the new value by 1 - decay, because B does that": (
            lambda h, decay, B, x: decay * h + (1 - decay) * torch.outer(B, x)
        ),
        "transposed: rows of h are states (B), columns are channels (x)": (
            lambda h, decay, B, x: decay * h + torch.outer(x, B)
        ),
        "B * x multiplies entry by entry; every state stores every channel: take the outer product": (
            lambda h, decay, B, x: decay * h + B * x
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
        "x[s] enters *after* the decay of step s, so decay[s] is not one of the factors: start at s + 1": (
            lambda decay, B, C: _unrolled(decay, B, C, first=0)
        ),
        "transposed: rows are outputs t, columns are inputs s": (
            lambda decay, B, C: _unrolled(decay, B, C).T
        ),
        "the decays are missing: C[t] B[s] alone would mean that nothing is ever forgotten": (
            lambda decay, B, C: torch.outer(C, B).tril()
        ),
    },
)


def _elapsed(steps, first=1):
    """[t, s]: the sum of the steps from s + first to t, negative above the diagonal."""
    total = steps.cumsum(0)
    return total[:, None] - (total if first else total - steps)[None, :]


decay_mask = Check(
    "decay_mask",
    reference=lambda log_decay: _elapsed(log_decay).exp().tril(),
    inputs=lambda rng: (-random_tensor(rng, 7).abs(),),
    mistakes={
        "those are still logarithms: a product of decays is exp of the *sum* of their logarithms": (
            lambda log_decay: _elapsed(log_decay).tril()
        ),
        "put zeros above the diagonal, because position t knows nothing of later positions: .tril()": (
            lambda log_decay: _elapsed(log_decay).exp()
        ),
        "you count the decay of step s itself; x[s] has decayed only in the steps s + 1 to t": (
            lambda log_decay: _elapsed(log_decay, first=0).exp().tril()
        ),
    },
)


def _implicit(A, dt, B, C, first=1, sign=1):
    """[t, s]: C[t] · B[s] dt[s], decayed from s to t; above the diagonal not yet zero."""
    return (sign * A * _elapsed(dt, first)).exp() * (C @ B.T) * dt


implicit_attention = Check(
    "implicit_attention",
    reference=lambda A, dt, B, C: _implicit(A, dt, B, C).tril(),
    inputs=lambda rng: (
        -random_tensor(rng).exp(),
        random_tensor(rng, 6).exp() / 4,
        random_tensor(rng, 6, 3),
        random_tensor(rng, 6, 3),
    ),
    mistakes={
        "what is stored at s is dt[s] * B[s] * x[s]: the step size dt[s] is missing": (
            lambda A, dt, B, C: (_implicit(A, dt, B, C) / dt).tril()
        ),
        "you multiply by dt[t], the *reader's* step size; the value was stored at s, with dt[s]": (
            lambda A, dt, B, C: (_implicit(A, dt, B, C) / dt * dt[:, None]).tril()
        ),
        "you count the decay of step s itself; x[s] enters after it": (
            lambda A, dt, B, C: _implicit(A, dt, B, C, first=0).tril()
        ),
        "A is negative, so exp(A * time) is a decay already; with another minus, old tokens grow": (
            lambda A, dt, B, C: _implicit(A, dt, B, C, sign=-1).tril()
        ),
        "B and C are swapped: rows are readers (C at t), columns are what was stored (B at s)": (
            lambda A, dt, B, C: _implicit(A, dt, C, B).tril()
        ),
        "put zeros above the diagonal, because position t knows nothing of later positions: .tril()": (
            lambda A, dt, B, C: _implicit(A, dt, B, C)
        ),
        "the decays are missing: that is linear attention, which forgets nothing": (
            lambda A, dt, B, C: ((C @ B.T) * dt).tril()
        ),
    },
)

row_shares = Check(
    "row_shares",
    reference=lambda A: A.abs() / A.abs().sum(-1, keepdim=True),
    inputs=lambda rng: (random_tensor(rng, 5, 5).tril(),),
    mistakes={
        "implicit attention may be negative: take A.abs() first, or shares cancel out": (
            lambda A: A / A.sum(-1, keepdim=True)
        ),
        "you divided by the sums of columns; a row is one query's attention: sum over the last dimension": (
            lambda A: A.abs() / A.abs().sum(0, keepdim=True)
        ),
    },
)


def _kept(n_tokens, n_heads, d_head, d_state, per_token=2):
    """Numbers kept by attention (a key and a value for each token), and by an SSM."""
    return per_token * n_tokens * n_heads * d_head, n_heads * d_head * d_state


def _state_for_each_token(n_tokens, n_heads, d_head, d_state):
    attention, ssm = _kept(n_tokens, n_heads, d_head, d_state)
    return attention, n_tokens * ssm


numbers_kept = Check(
    "numbers_kept",
    reference=_kept,
    inputs=lambda rng: (
        rng.randrange(50, 500),
        rng.choice([4, 8]),
        rng.choice([32, 64]),
        rng.choice([4, 16]),
    ),
    mistakes={
        "attention keeps a key *and* a value for every token": (lambda *sizes: _kept(*sizes, per_token=1)),
        "an SSM's state has the same size however many tokens it has read: leave n_tokens out": (
            _state_for_each_token
        ),
        "the other way round: first attention's cache, then the SSM's state": (
            lambda *sizes: _kept(*sizes)[::-1]
        ),
    },
)
