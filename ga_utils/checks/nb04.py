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
        "that is only what is new: the old state, faded, is still there": (
            lambda h, decay, B, x: torch.outer(B, x)
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
        "B @ x is a single number, their dot product; every state stores every channel: take the outer "
        "product": lambda h, decay, B, x: decay * h + B @ x,
    },
)


def _unrolled(decay, B, C, first=1, last=1, causal=True):
    """M[t, s] = C[t] B[s] times the decays from s + first to t - 1 + last."""
    n = len(decay)
    M = torch.zeros(n, n)
    for t in range(n):
        for s in range(t + 1 if causal else n):
            M[t, s] = C[t] * B[s] * decay[s + first : t + last].prod()
    return M


unroll = Check(
    "unroll",
    reference=_unrolled,
    inputs=lambda rng: (random_tensor(rng, 6).sigmoid(), random_tensor(rng, 6), random_tensor(rng, 6)),
    mistakes={
        "x[s] enters *after* the decay of step s, so decay[s] is not one of the factors: start at s + 1": (
            lambda decay, B, C: _unrolled(decay, B, C, first=0)
        ),
        "a slice leaves its end out: decay[s + 1 : t] misses step t's own decay": (
            lambda decay, B, C: _unrolled(decay, B, C, last=0)
        ),
        "you take the decays of steps s to t - 1; x[s] goes through those of steps s + 1 to t": (
            lambda decay, B, C: _unrolled(decay, B, C, first=0, last=0)
        ),
        "transposed: rows are outputs t, columns are inputs s": (
            lambda decay, B, C: _unrolled(decay, B, C).T
        ),
        "B and C are swapped: what was stored at s is weighed by B[s], what is read at t by C[t]": (
            lambda decay, B, C: _unrolled(decay, C, B)
        ),
        "the decays are missing: C[t] B[s] alone would mean that nothing is ever forgotten": (
            lambda decay, B, C: torch.outer(C, B).tril()
        ),
        "above the diagonal, where s is later than t, M is 0: nothing has been stored there yet": (
            lambda decay, B, C: _unrolled(decay, B, C, causal=False)
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
        "exp(0) is 1, so the upper triangle comes back: .tril() belongs *after* .exp()": (
            lambda log_decay: _elapsed(log_decay).tril().exp()
        ),
        "the sign is wrong: old tokens grow. Row t, column s: the sum up to t minus the sum up to s": (
            lambda log_decay: (-_elapsed(log_decay)).exp().tril()
        ),
    },
)


def _convolve(x, taps, shift=0, before=None):
    """y[t, c] = sum_i taps[c, i] x[t - 3 + i - shift, c]; `before` stands in front of the text, or zeros."""
    n_before = taps.shape[1] - 1
    before = x.new_zeros(n_before, x.shape[1]) if before is None else before
    rows = torch.cat([before, x, torch.zeros_like(x)]).roll(shift, 0)
    return sum(taps[:, i] * rows[i : i + len(x)] for i in range(taps.shape[1]))


short_conv = Check(
    "short_conv",
    reference=_convolve,
    inputs=lambda rng: (random_tensor(rng, 7, 4), random_tensor(rng, 4, 4)),
    mistakes={
        "the other way round: the *last* tap is the present token's, the first that of three tokens ago": (
            lambda x, taps: _convolve(x, taps.flip(1))
        ),
        "you look ahead: position t may use x[t - 3] to x[t], so the zeros belong *before* the text": (
            lambda x, taps: _convolve(x, taps, shift=1 - taps.shape[1])
        ),
        "you are off by one: the present token, x[t], is among the four": (
            lambda x, taps: _convolve(x, taps, shift=1)
        ),
        "the text's end comes back at its beginning (.roll does that): before the first token there are "
        "zeros": lambda x, taps: _convolve(x, taps, before=x[1 - taps.shape[1] :]),
        "channels don't mix: each has four taps of its own, and the sum runs over the taps alone": (
            lambda x, taps: _convolve(x, taps).sum(1, keepdim=True).expand_as(x)
        ),
        "taps is [channel, tap], not [tap, channel]: channel c uses the row taps[c]": (
            lambda x, taps: _convolve(x, taps.T)
        ),
        "the first three positions count, too: what lies before the text is zero": (
            lambda x, taps: _convolve(x, taps)[taps.shape[1] - 1 :]
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


def _kept(n_tokens, n_heads, d_head, d_state, per_token=2, channels=None):
    """Numbers kept by attention (a key and a value for each token), and by an SSM."""
    channels = n_heads * d_head if channels is None else channels
    return per_token * n_tokens * n_heads * d_head, channels * d_state


def _instead(attention=None, ssm=None):
    """A mistake: one of the two numbers is counted by another rule."""

    def count(*sizes):
        right = _kept(*sizes)
        return attention(*sizes) if attention else right[0], ssm(*sizes) if ssm else right[1]

    return count


numbers_kept = Check(
    "numbers_kept",
    reference=_kept,
    # No size equals another one, and none divides another, so that no mistake gives the right number.
    inputs=lambda rng: (
        rng.choice([53, 101, 211, 499]),
        rng.choice([3, 4]),
        rng.choice([25, 35]),
        rng.choice([11, 13]),
    ),
    mistakes={
        "attention keeps a key *and* a value for every token": (lambda *sizes: _kept(*sizes, per_token=1)),
        "an SSM's state has the same size however many tokens it has read: leave n_tokens out": (
            _instead(ssm=lambda n_tokens, n_heads, d_head, d_state: n_tokens * n_heads * d_head * d_state)
        ),
        "the other way round: first attention's cache, then the SSM's state": (
            lambda *sizes: _kept(*sizes)[::-1]
        ),
        "that is one head's state: a layer has n_heads of them": (
            lambda *sizes: _kept(*sizes, channels=sizes[2])
        ),
        "a state has d_state numbers for each *channel*, and a head has d_head channels": (
            lambda *sizes: _kept(*sizes, channels=sizes[1])
        ),
        "that is one head's cache: a layer keeps keys and values of all n_heads": (
            _instead(attention=lambda n_tokens, n_heads, d_head, d_state: 2 * n_tokens * d_head)
        ),
        "those are attention's weights, which nobody keeps; what stays is a key and a value for each token": (
            _instead(attention=lambda n_tokens, n_heads, d_head, d_state: n_heads * n_tokens**2)
        ),
        "an SSM keeps no keys and values beside the state: it has only the state": (
            _instead(
                ssm=lambda n_tokens, n_heads, d_head, d_state: (
                    2 * n_tokens * n_heads * d_head + n_heads * d_head * d_state
                )
            )
        ),
        "a state is kept once, not once as key and once as value": (
            _instead(ssm=lambda n_tokens, n_heads, d_head, d_state: 2 * n_heads * d_head * d_state)
        ),
    },
)
