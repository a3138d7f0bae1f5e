"""The checks of notebook 04: answers of learners, right and wrong, and what each is told."""

import numpy as np
import torch
import torch.nn.functional as F


def step_by_entry(h, decay, B, x):
    new = torch.zeros_like(h)
    for n in range(len(B)):
        for d in range(len(x)):
            new[n, d] = decay * h[n, d] + B[n] * x[d]
    return new


def unroll_loops(decay, B, C, first=1):
    n = len(decay)
    M = torch.zeros(n, n)
    for t in range(n):
        for s in range(t + 1):
            M[t, s] = C[t] * B[s]
            for step in range(s + first, t + 1):
                M[t, s] = M[t, s] * decay[step]
    return M


def unroll_as_impulses(decay, B, C):
    """Column s is what the recurrence gives for a single 1 at s."""
    columns = []
    for s in range(len(decay)):
        h, y = torch.tensor(0.0), []
        for t in range(len(decay)):
            h = decay[t] * h + B[t] * float(t == s)
            y.append(C[t] * h)
        columns.append(torch.stack(y))
    return torch.stack(columns, dim=1)


def unroll_logs(decay, B, C):
    total = decay.log().cumsum(0)
    return torch.outer(C, B) * (total[:, None] - total[None, :]).exp().tril()


def unroll_row_by_row(decay, B, C):
    kept, rows = torch.zeros(len(decay)), []
    for t in range(len(decay)):
        kept = kept * decay[t]
        kept[t] = B[t]
        rows.append(C[t] * kept)
    return torch.stack(rows)


def mask_loops(log_decay, first=1):
    n = len(log_decay)
    L = torch.zeros(n, n)
    for t in range(n):
        for s in range(t + 1):
            L[t, s] = torch.exp(log_decay[s + first : t + 1].sum())
    return L


def mask_infinity(log_decay):
    total = log_decay.cumsum(0)
    later = torch.ones(len(total), len(total)).triu(1).bool()
    return (total.unsqueeze(1) - total.unsqueeze(0)).masked_fill(later, -torch.inf).exp()


def mask_products(log_decay):
    decay, rows, row = log_decay.exp(), [], torch.zeros(len(log_decay))
    for t in range(len(decay)):
        row = row * decay[t]
        row[t] = 1
        rows.append(row)
    return torch.stack(rows)


def difference(log_decay):
    total = log_decay.cumsum(0)
    return total[:, None] - total[None, :]


def conv_loops(x, taps):
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for i in range(4):
            if t - 3 + i >= 0:
                y[t] += taps[:, i] * x[t - 3 + i]
    return y


def conv_torch(x, taps):
    return F.conv1d(F.pad(x.T, (3, 0))[None], taps[:, None], groups=len(taps))[0].T


def conv_shifts(x, taps):
    y = taps[:, 3] * x
    for back in (1, 2, 3):
        y = y + taps[:, 3 - back] * torch.cat([torch.zeros(back, x.shape[1]), x[:-back]])
    return y


def conv_windows(x, taps):
    windows = F.pad(x, (0, 0, 3, 0)).unfold(0, 4, 1)  # [pos, channel, tap]
    return (windows * taps).sum(-1)


def conv_numpy(x, taps):
    columns = [np.convolve(x[:, c], taps[c].flip(0))[: len(x)] for c in range(x.shape[1])]
    return np.stack(columns, 1)


def implicit_loops(A, dt, B, C, of=lambda dt, t, s: dt[s]):
    n = len(dt)
    M = torch.zeros(n, n)
    for t in range(n):
        for s in range(t + 1):
            M[t, s] = (A * dt[s + 1 : t + 1].sum()).exp() * (C[t] @ B[s]) * of(dt, t, s)
    return M


def implicit_matrix(A, dt, B, C):
    total = dt.cumsum(0)
    return torch.tril((A * (total[:, None] - total)).exp() * (C @ B.T) * dt)


def implicit_einsum(A, dt, B, C):
    total = A * dt.cumsum(0)
    L = (total[:, None] - total[None, :]).tril().exp().tril()
    return torch.einsum("ts,tn,sn,s->ts", L, C, B, dt)


def implicit_stored_first(A, dt, B, C):
    stored, total = dt[:, None] * B, (A * dt).cumsum(0)
    return ((total[:, None] - total[None, :]).exp() * (C @ stored.T)).tril()


def implicit_as_impulses(A, dt, B, C):
    columns = []
    for s in range(len(dt)):
        h, y = torch.zeros(B.shape[1]), []
        for t in range(len(dt)):
            h = (A * dt[t]).exp() * h + (dt[t] * B[t] if t == s else 0)
            y.append(C[t] @ h)
        columns.append(torch.stack(y))
    return torch.stack(columns, 1)


def kept(n_tokens, n_heads, d_head, d_state):
    width = n_heads * d_head
    return 2 * n_tokens * width, width * d_state


def kept_list(n_tokens, n_heads, d_head, d_state):
    keys = values = n_tokens * n_heads * d_head
    return [keys + values, n_heads * (d_head * d_state)]


def kept_tensors(n_tokens, n_heads, d_head, d_state):
    cache = torch.zeros(2, n_tokens, n_heads, d_head)
    return cache.numel(), torch.zeros(n_heads, d_head, d_state).numel()


def kept_numpy(n_tokens, n_heads, d_head, d_state):
    return np.prod([2, n_tokens, n_heads, d_head]), np.prod([n_heads, d_head, d_state])


def kept_counting(n_tokens, n_heads, d_head, d_state):
    attention = sum(2 * d_head for _ in range(n_tokens) for _ in range(n_heads))
    return attention, sum(d_state for _ in range(n_heads) for _ in range(d_head))


RIGHT = {
    "next_state": [
        step_by_entry,
        lambda h, decay, B, x: decay * h + torch.outer(B, x),
        lambda h, decay, B, x: h * decay + B[:, None] * x,
        lambda h, decay, B, x: torch.einsum("n,d->nd", B, x) + h * decay,
        lambda h, decay, B, x: B.reshape(-1, 1) @ x.reshape(1, -1) + decay * h,
    ],
    "unroll": [
        unroll_loops,
        unroll_as_impulses,
        unroll_logs,
        unroll_row_by_row,
        lambda decay, B, C: torch.diag(C) @ unroll_loops(decay, torch.ones(6), torch.ones(6)) @ torch.diag(B),
    ],
    "decay_mask": [
        mask_loops,
        mask_infinity,
        mask_products,
        lambda log_decay: difference(log_decay).exp().tril(),
        lambda log_decay: difference(log_decay).tril().exp().tril(),
    ],
    "short_conv": [conv_loops, conv_torch, conv_shifts, conv_windows, conv_numpy],
    "implicit_attention": [
        implicit_loops,
        implicit_matrix,
        implicit_einsum,
        implicit_stored_first,
        implicit_as_impulses,
    ],
    "numbers_kept": [kept, kept_list, kept_tensors, kept_numpy, kept_counting],
}

WRONG = {  # name -> [(the answer, a part of what the learner is told)]
    "next_state": [
        (lambda h, decay, B, x: decay * (h + torch.outer(B, x)), "has not decayed yet"),
        (lambda h, decay, B, x: h + torch.outer(B, x), "nothing is forgotten"),
        (lambda h, decay, B, x: B[:, None] * x, "only what is new"),
        (lambda h, decay, B, x: decay * h + (1 - decay) * torch.outer(B, x), "running mean"),
        (lambda h, decay, B, x: decay * h + torch.outer(x, B), "transposed"),
        (lambda h, decay, B, x: decay * h + B * x, "entry by entry"),
        (lambda h, decay, B, x: decay * h + torch.dot(B, x), "a single number"),
        (lambda h, decay, B, x: decay * h + B[:, None] + x, ""),
        (lambda h, decay, B, x: decay * h, ""),
    ],
    "unroll": [
        (lambda decay, B, C: unroll_loops(decay, B, C, first=0), "start at s + 1"),
        (lambda decay, B, C: unroll_loops(decay, B, C).T, "transposed"),
        (lambda decay, B, C: unroll_loops(decay, C, B), "swapped"),
        (lambda decay, B, C: torch.outer(C, B).tril(), "the decays are missing"),
        (
            lambda decay, B, C: torch.stack(
                [torch.stack([C[t] * B[s] * decay[s + 1 : t].prod() for s in range(6)]) for t in range(6)]
            ).tril(),
            "leaves its end out",
        ),
        (
            lambda decay, B, C: torch.stack(
                [torch.stack([C[t] * B[s] * decay[s:t].prod() for s in range(6)]) for t in range(6)]
            ).tril(),
            "steps s to t - 1",
        ),
        (
            lambda decay, B, C: torch.stack(
                [torch.stack([C[t] * B[s] * decay[s + 1 : t + 1].prod() for s in range(6)]) for t in range(6)]
            ),
            "above the diagonal",
        ),
        (lambda decay, B, C: unroll_loops(decay, B, C).sum(1), "expected shape"),
        (lambda decay, B, C: unroll_loops(decay, B, torch.ones(6)), ""),
    ],
    "decay_mask": [
        (lambda log_decay: difference(log_decay).tril(), "still logarithms"),
        (lambda log_decay: difference(log_decay).exp(), "zeros above the diagonal"),
        (lambda log_decay: mask_loops(log_decay, first=0), "step s itself"),
        (lambda log_decay: difference(log_decay).tril().exp(), "*after* .exp()"),
        (lambda log_decay: difference(log_decay).T.exp().tril(), "old tokens grow"),
        (lambda log_decay: mask_loops(log_decay).T, ""),
        (lambda log_decay: torch.ones(7, 7).tril(), ""),
    ],
    "short_conv": [
        (lambda x, taps: conv_loops(x, taps.flip(1)), "the *last* tap is the present token's"),
        (lambda x, taps: F.conv1d(F.pad(x.T, (0, 3))[None], taps[:, None], groups=4)[0].T, "look ahead"),
        (lambda x, taps: F.conv1d(F.pad(x.T, (4, 0))[None], taps[:, None], groups=4)[0].T[:7], "off by one"),
        (lambda x, taps: sum(taps[:, i] * x.roll(3 - i, 0) for i in range(4)), "comes back"),
        (lambda x, taps: F.conv1d(F.pad(x.T, (3, 0))[None], taps.expand(4, 4, 4))[0].T, ""),
        (lambda x, taps: conv_loops(x, taps.T), "[channel, tap]"),
        (lambda x, taps: conv_torch(x, taps)[3:], "the first three positions count"),
        (lambda x, taps: conv_torch(x, taps).sum(1, keepdim=True).repeat(1, 4), "channels don't mix"),
        (lambda x, taps: x * taps[:, 3], ""),
    ],
    "implicit_attention": [
        (lambda A, dt, B, C: implicit_loops(A, dt, B, C, lambda dt, t, s: 1), "dt[s] is missing"),
        (lambda A, dt, B, C: implicit_loops(A, dt, B, C, lambda dt, t, s: dt[t]), "*reader's* step size"),
        (lambda A, dt, B, C: implicit_loops(-A, dt, B, C), "old tokens grow"),
        (lambda A, dt, B, C: implicit_loops(A, dt, C, B), "swapped"),
        (lambda A, dt, B, C: ((C @ B.T) * dt).tril(), "the decays are missing"),
        (
            lambda A, dt, B, C: (A * (dt.cumsum(0)[:, None] - dt.cumsum(0))).exp() * (C @ B.T) * dt,
            "zeros above the diagonal",
        ),
        (lambda A, dt, B, C: implicit_loops(A, dt, B, C).T, ""),
        (lambda A, dt, B, C: implicit_loops(A, dt, B, C).softmax(-1), ""),
    ],
    "numbers_kept": [
        (lambda n, heads, d, state: (n * heads * d, heads * d * state), "a key *and* a value"),
        (lambda n, heads, d, state: (2 * n * heads * d, n * heads * d * state), "leave n_tokens out"),
        (lambda n, heads, d, state: (heads * d * state, 2 * n * heads * d), "the other way round"),
        (lambda n, heads, d, state: (2 * n * heads * d, d * state), "one head's state"),
        (lambda n, heads, d, state: (2 * n * heads * d, heads * state), "for each *channel*"),
        (lambda n, heads, d, state: (2 * n * d, heads * d * state), "one head's cache"),
        (lambda n, heads, d, state: (heads * n * n, heads * d * state), "attention's weights"),
        (lambda n, heads, d, state: (2 * n * heads * d, heads * d * (2 * n + state)), "beside the state"),
        (lambda n, heads, d, state: (2 * n * heads * d, 2 * heads * d * state), "kept once"),
        (lambda n, heads, d, state: (2 * n * heads * d, state), ""),
        (lambda n, heads, d, state: 2 * n * heads * d, ""),
    ],
}
