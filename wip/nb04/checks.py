p="ga_utils/checks/nb04.py"; s=open(p).read()
# next_state
s=s.replace('''        "nothing is forgotten: multiply the old state by the decay": (
            lambda h, decay, B, x: h + torch.outer(B, x)
        ),
''','''        "nothing is forgotten: multiply the old state by the decay": (
            lambda h, decay, B, x: h + torch.outer(B, x)
        ),
        "that is only what is new: the old state, faded, is still there": (
            lambda h, decay, B, x: torch.outer(B, x)
        ),
''')
s=s.replace('''            lambda h, decay, B, x: decay * h + B * x
        ),
    },
)
''','''            lambda h, decay, B, x: decay * h + B * x
        ),
        "B @ x is a single number, their dot product; every state stores every channel: take the outer "
        "product": lambda h, decay, B, x: decay * h + B @ x,
    },
)
''')
# unroll
a=s.index("def _unrolled"); b=s.index("def _elapsed")
s=s[:a]+'''def _unrolled(decay, B, C, first=1, last=1, causal=True):
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


'''+s[b:]
s=s.replace('''            lambda log_decay: _elapsed(log_decay, first=0).exp().tril()
        ),
    },
)
''','''            lambda log_decay: _elapsed(log_decay, first=0).exp().tril()
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
''')
# row_shares away
a=s.index("row_shares = Check("); b=s.index("def _kept(")
s=s[:a]+s[b:]
a=s.index("def _kept(")
s=s[:a]+'''def _kept(n_tokens, n_heads, d_head, d_state, per_token=2, channels=None):
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
        "those are attention's weights, which nobody keeps: what stays is a key and a value for every token": (
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
'''
open(p,"w").write(s)
p="ga_utils/checks/__init__.py"; s=open(p).read()
s=s.replace("from ga_utils.checks.nb04 import decay_mask, implicit_attention, next_state, numbers_kept, row_shares, unroll","from ga_utils.checks.nb04 import decay_mask, implicit_attention, next_state, numbers_kept, short_conv, unroll")
s=s.replace('[next_state, unroll, decay_mask, implicit_attention, row_shares, numbers_kept]','[next_state, unroll, decay_mask, short_conv, implicit_attention, numbers_kept]')
open(p,"w").write(s)
