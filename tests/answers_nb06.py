"""The checks of notebook 06: answers of learners, right and wrong, and what each is told."""

import numpy as np
import torch


def parts_by_loop(row, parts):
    shares = {}
    for name, where in parts.items():
        shares[name] = 0.0
        for position in where:
            shares[name] += row[position].item()
    return shares


def parts_by_mask(row, parts):
    found = {}
    for name, where in parts.items():
        mask = torch.zeros_like(row)
        mask[where] = 1
        found[name] = row @ mask
    return found


def in_place(row, parts):
    for name in parts:
        parts[name] = row[parts[name]].sum().item()
    return parts


def traded_lines(pairs, asked, other, what):
    new = [list(pair) for pair in pairs]
    columns = {"value": [1], "key": [0], "place": [0, 1]}[what]
    for column in columns:
        new[asked][column], new[other][column] = pairs[other][column], pairs[asked][column]
    return [tuple(pair) for pair in new], new[asked][0] if what == "key" else pairs[asked][0]


def traded_cases(pairs, asked, other, what):
    (k, v), (k2, v2) = pairs[asked], pairs[other]
    new = list(pairs)
    if what == "value":
        new[asked], new[other] = (k, v2), (k2, v)
    elif what == "place":
        new[asked], new[other] = (k2, v2), (k, v)
    else:
        new[asked], new[other] = (k2, v), (k, v2)
    return new, k2 if what == "key" else k


def traded_dicts(pairs, asked, other, what):
    keys, values = map(list, zip(*pairs))
    order = list(range(len(pairs)))
    order[asked], order[other] = other, asked
    new_keys = [keys[i] for i in order] if what != "value" else keys
    new_values = [values[i] for i in order] if what != "key" else values
    return list(zip(new_keys, new_values)), new_keys[asked] if what == "key" else keys[asked]


def as_lists(pairs, asked, other, what):
    new, key = traded_cases(pairs, asked, other, what)
    return [list(pair) for pair in new], key


def as_tuple(pairs, asked, other, what):
    new, key = traded_cases(pairs, asked, other, what)
    return tuple(new), key


def trade_in_place(pairs, asked, other, what):
    new, key = traded_cases(pairs, asked, other, what)
    pairs[:] = new
    return pairs, key


def no_question(pairs, asked, other, what):
    return traded_cases(pairs, asked, other, what)[0], pairs[asked][0]


def always_other(pairs, asked, other, what):
    return traded_cases(pairs, asked, other, what)[0], pairs[other][0]


def only_lines(pairs, asked, other, what):
    return traded_cases(pairs, asked, other, "place")


def copied_over(pairs, asked, other, what):
    new = list(pairs)
    (k, v), (k2, v2) = pairs[asked], pairs[other]
    new[asked] = {"value": (k, v2), "place": (k2, v2), "key": (k2, v)}[what]
    return new, k2 if what == "key" else k


def moved_by_loop(before, after, right, other):
    total = 0.0
    for b, a, r, o in zip(before, after, right, other):
        total += (a[o] - a[r]) - (b[o] - b[r])
    return total / len(right)


def moved_by_torch(before, after, right, other):
    change = torch.tensor(after) - torch.tensor(before)
    right, other = torch.tensor(right)[:, None], torch.tensor(other)[:, None]
    return (change.gather(1, other) - change.gather(1, right)).mean()


def moved_by_take(before, after, right, other):
    change = after - before
    pick = lambda c: np.take_along_axis(change, np.array(c)[:, None], 1)  # noqa: E731
    return (pick(other) - pick(right)).mean()


def moved_by_diagonal(before, after, right, other):
    change = after - before
    return (np.diag(change[:, other]) - np.diag(change[:, right])).mean()


def odds(logprobs, right, other):
    return logprobs[np.arange(len(right)), other] - logprobs[np.arange(len(right)), right]


def z_by_repeat(A, v, head):
    return A[head] @ v.repeat_interleave(len(A) // v.shape[1], 1)[:, head]


def z_by_einsum(A, v, head):
    return torch.einsum("qk,kd->qd", A[head], v[:, head * v.shape[1] // len(A)])


def z_by_loop(A, v, head):
    mine = v[:, head // (A.shape[0] // v.shape[1])]
    return torch.stack([(row[:, None] * mine).sum(0) for row in A[head]])


def z_by_reshape(A, v, head):
    group = len(A) // v.shape[1]
    return (A.reshape(v.shape[1], group, *A.shape[1:]) @ v.transpose(0, 1)[:, None]).flatten(0, 1)[head]


def z_by_expand(A, v, head):
    wide = v[:, :, None].expand(-1, -1, len(A) // v.shape[1], -1).flatten(1, 2)
    return A[head] @ wide[:, head]


def rms(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def ov_by_einsum(residual, gain, W_V, W_O, U):
    return torch.einsum("ti,hi,oh,uo->tu", rms(residual) * gain, W_V, W_O, U)


def ov_product_first(residual, gain, W_V, W_O, U):
    return (rms(residual) * gain) @ (U @ W_O @ W_V).T


def ov_by_loop(residual, gain, W_V, W_O, U):
    return torch.stack([U @ (W_O @ (W_V @ (gain * rms(token)))) for token in residual])


def ov_by_norm(residual, gain, W_V, W_O, U):
    size = residual.norm(dim=-1, keepdim=True) / residual.shape[-1] ** 0.5
    return (gain * residual / size) @ W_V.T @ W_O.T @ U.T


def ov_by_torch(residual, gain, W_V, W_O, U):
    x = torch.nn.functional.rms_norm(residual, gain.shape, gain, 1e-6)
    return x @ W_V.mT @ W_O.mT @ U.mT


RIGHT = {
    "attention_by_part": [
        parts_by_loop,
        parts_by_mask,
        lambda row, parts: {name: sum(row[p].item() for p in where) for name, where in parts.items()},
        lambda row, parts: {name: row.numpy()[where].sum() for name, where in parts.items()},
        lambda row, parts: {name: float(torch.sum(row[where])) for name, where in parts.items()},
    ],
    "trade": [traded_lines, traded_cases, traded_dicts, as_lists, as_tuple],
    "moved": [
        moved_by_loop,
        moved_by_torch,
        moved_by_take,
        moved_by_diagonal,
        lambda before, after, right, other: np.mean(odds(after, right, other) - odds(before, right, other)),
    ],
    "z_of_head": [z_by_repeat, z_by_einsum, z_by_loop, z_by_reshape, z_by_expand],
    "ov_logits": [ov_by_einsum, ov_product_first, ov_by_loop, ov_by_norm, ov_by_torch],
}
WRONG = {
    "attention_by_part": [
        (lambda row, parts: {n: row[w].mean() for n, w in parts.items()}, "mean attention"),
        (lambda row, parts: {n: row[w].mean() if w else 0.0 for n, w in parts.items()}, "a mean, and 0"),
        (lambda row, parts: {n: row[w].max() if w else 0.0 for n, w in parts.items()}, "largest weight"),
        (lambda row, parts: {n: row[w].sum() for n, w in parts.items() if w}, "keep it in the answer"),
        (
            lambda row, parts: {n: sum(row[p] for p in w if p > 0) + 0.0 for n, w in parts.items()},
            "first token",
        ),
        (lambda row, parts: {n: len(w) / len(row) for n, w in parts.items()}, "*number* of tokens"),
        (in_place, "dict you were given"),
    ],
    "trade": [
        (no_question, "trade names"),
        (always_other, "only if keys were traded"),
        (only_lines, '"place" alone'),
        (copied_over, "in a trade the other pair gets something"),
        (lambda pairs, asked, other, what: (pairs, pairs[asked][0]), "as they were"),
        (trade_in_place, "list you were given"),
        (lambda pairs, asked, other, what: traded_cases(pairs, asked, other, what)[0], "expected ("),
    ],
    "moved": [
        (lambda b, a, right, other: odds(a, right, other).mean(), "how far did it *move*"),
        (lambda b, a, right, other: (odds(b, right, other) - odds(a, right, other)).mean(), "the sign"),
        (lambda b, a, right, other: (a - b)[np.arange(len(right)), other].mean(), "what the right one lost"),
        (lambda b, a, right, other: (b - a)[np.arange(len(right)), right].mean(), "what the other one won"),
        (lambda b, a, right, other: odds(a, right, other) - odds(b, right, other), "one number"),
        (lambda b, a, right, other: (odds(a, right, other) - odds(b, right, other)).sum(), "not the sum"),
        (lambda b, a, right, other: (a - b)[:, other].mean() - (a - b)[:, right].mean(), "pair each row"),
    ],
    "z_of_head": [
        (lambda A, v, head: A[head] @ v[:, head % v.shape[1]], "not h % n_kv_heads"),
        (lambda A, v, head: A[head] @ v[:, head], "IndexError"),
        (lambda A, v, head: A[head].T @ v[:, head // (len(A) // v.shape[1])], "without a transpose"),
        (lambda A, v, head: A[head] @ v.mean(1), "averaged"),
        (lambda A, v, head: A[head, -1] @ v[:, head // (len(A) // v.shape[1])], "not for the last one"),
        (lambda A, v, head: v[:, head // (len(A) // v.shape[1])], "right shape, but"),
    ],
    "ov_logits": [
        (lambda x, gain, W_V, W_O, U: x @ W_V.T @ W_O.T @ U.T, "norm comes first"),
        (lambda x, gain, W_V, W_O, U: rms(x) @ W_V.T @ W_O.T @ U.T, "multiply by it"),
        (lambda x, gain, W_V, W_O, U: (gain * x) @ W_V.T @ W_O.T @ U.T, "left the division"),
        (lambda x, gain, W_V, W_O, U: U @ W_O @ W_V @ (rms(x) * gain).T, "[attended, said]"),
        (lambda x, gain, W_V, W_O, U: (rms(x) * gain) @ U.T, "stand between"),
        (
            lambda x, gain, W_V, W_O, U: ov_by_torch(x - x.mean(-1, keepdim=True), gain, W_V, W_O, U),
            "subtract",
        ),
        (lambda x, gain, W_V, W_O, U: (rms(x) * gain) @ W_V.T @ W_O.T, "expected shape"),
    ],
}
