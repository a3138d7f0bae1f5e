"""The checks of notebook 06."""

from __future__ import annotations

import random

import torch

from ga_utils.checks.check import Check, random_tensor


def _by_part(row, parts):
    return {name: float(row[where].sum()) for name, where in parts.items()}


def _row_and_parts(rng: random.Random) -> tuple[torch.Tensor, dict[str, list[int]]]:
    """The last row of a pattern [key], and which positions belong to which part; one part may be empty."""
    n = rng.randrange(12, 20)
    owner = [rng.randrange(3) for _ in range(n)]
    owner[:4] = 0, 1, 2, 2
    names = ("first token", "asked key", "rest")
    parts = {name: [p for p in range(n) if owner[p] == i] for i, name in enumerate(names)}
    return random_tensor(rng, n).softmax(0), parts | {"right value": []}


attention_by_part = Check(
    "attention_by_part",
    reference=_by_part,
    inputs=_row_and_parts,
    mistakes={
        "that is the mean attention of a part's tokens: a part's share is the sum over all of them": (
            lambda row, parts: {name: float(row[where].mean()) for name, where in parts.items()}
        ),
        "a mean, and 0 for an empty part? A part's share is the sum over its tokens": (
            lambda row, parts: {
                name: float(row[where].mean()) if where else 0.0 for name, where in parts.items()
            }
        ),
        "that is the largest weight of a part; add all of them up": (
            lambda row, parts: {
                name: float(row[where].max()) if where else 0.0 for name, where in parts.items()
            }
        ),
        "the first token is a part like the others: don't leave its attention out": (
            lambda row, parts: {
                name: float(row[[p for p in where if p]].sum()) for name, where in parts.items()
            }
        ),
        "a part without tokens has a share of 0; keep it in the answer": (
            lambda row, parts: {name: float(row[where].sum()) for name, where in parts.items() if where}
        ),
        "those are counts of tokens: add up row[position]": (
            lambda row, parts: {name: float(len(where)) for name, where in parts.items()}
        ),
        "that is every token's part of the *number* of tokens: add up row[position]": (
            lambda row, parts: {name: len(where) / len(row) for name, where in parts.items()}
        ),
    },
)


def _traded(pairs, asked, other, what, question=True):
    """The pairs with one thing traded between two of them, and the key to ask for."""
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    if what in ("place", "key"):
        keys[asked], keys[other] = keys[other], keys[asked]
    if what in ("place", "value"):
        values[asked], values[other] = values[other], values[asked]
    key = pairs[other if what == "key" and question else asked][0]
    return list(zip(keys, values)), key


def _trades(rng: random.Random):
    """A dictionary, the places of the asked pair and of another one, and what is traded."""
    n = rng.randrange(4, 7)
    names = rng.sample("apple lamp boat fish kite drum bell rose".split(), n)
    asked, other = rng.sample(range(n), 2)
    pairs = list(zip(names, rng.sample(range(10), n)))
    return pairs, asked, other, rng.choice(("value", "place", "key"))


def _shifted(pairs, asked, other, what):
    """Only the asked pair's part is changed, the other pair keeps its own."""
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    if what in ("place", "key"):
        keys[asked] = keys[other]
    if what in ("place", "value"):
        values[asked] = values[other]
    return list(zip(keys, values)), pairs[other if what == "key" else asked][0]


def _as_place(pairs, asked, other, what):
    return _traded(pairs, asked, other, "place")


trade = Check(
    "trade",
    reference=_traded,
    inputs=_trades,
    mistakes={
        'with "key" the two pairs trade names, so it is the *other* name that asks for the asked pair\'s '
        "place and value now": lambda pairs, asked, other, what: _traded(
            pairs, asked, other, what, question=False
        ),
        "you copied from the other pair to the asked one; in a trade the other pair gets something, too": (
            _shifted
        ),
        "the key asked for changes only if keys were traded": lambda pairs, asked, other, what: (
            _traded(pairs, asked, other, what)[0],
            pairs[other][0],
        ),
        'you traded whole lines each time: that is "place" alone': _as_place,
        "the pairs came back as they were: is the trade made on a copy that you did not return?": (
            lambda pairs, asked, other, what: (list(pairs), pairs[asked][0])
        ),
        'a "place" is traded by trading whole lines, key and value together': (
            lambda pairs, asked, other, what: _traded(
                pairs, asked, other, "value" if what == "place" else what
            )
        ),
    },
)


def _log_odds(logprobs, right, other):
    rows = range(len(right))
    return logprobs[rows, other] - logprobs[rows, right]


def _moved(before, after, right, other):
    return float((_log_odds(after, right, other) - _log_odds(before, right, other)).mean())


def _two_runs(rng: random.Random):
    """Log-probabilities [n, n_choices] before and after a patch, and two choices for each example."""
    n, n_choices = rng.randrange(3, 6), rng.randrange(3, 6)
    before, after = (random_tensor(rng, n, n_choices).log_softmax(1).numpy() for _ in range(2))
    both = [rng.sample(range(n_choices), 2) for _ in range(n)]
    return before, after, [right for right, _ in both], [other for _, other in both]


moved = Check(
    "moved",
    reference=_moved,
    inputs=_two_runs,
    mistakes={
        "that is where the answer stands after the patch; how far did it *move*? Take off what was before": (
            lambda before, after, right, other: float(_log_odds(after, right, other).mean())
        ),
        "the sign: positive should mean towards the other pair": (
            lambda before, after, right, other: -_moved(before, after, right, other)
        ),
        "that is what the other choice won; what the right one lost counts as well": (
            lambda before, after, right, other: float((after - before)[range(len(right)), other].mean())
        ),
        "that is what the right choice lost; what the other one won counts as well": (
            lambda before, after, right, other: float((before - after)[range(len(right)), right].mean())
        ),
        "one number: the mean over the examples": lambda before, after, right, other: (
            _log_odds(after, right, other) - _log_odds(before, right, other)
        ),
        "the mean over the examples, not the sum": lambda before, after, right, other: (
            len(right) * _moved(before, after, right, other)
        ),
        "before[:, right] takes these columns of *all* rows; pair each row with its own choice: "
        "before[range(n), right]": lambda before, after, right, other: float(
            ((after[:, other] - after[:, right]) - (before[:, other] - before[:, right])).mean()
        ),
    },
)


def _grouped(A, v, head):
    group = len(A) // v.shape[1]
    return A[head] @ v[:, head // group]


def _grouped_inputs(rng: random.Random):
    """Patterns A [n_heads, query, key], values v [key, n_kv_heads, d_head], and a head."""
    n_kv, group = rng.choice([(2, 3), (3, 2), (3, 3), (2, 4)])
    n_heads, n = n_kv * group, rng.randrange(4, 8)
    future = torch.ones(n, n).triu(1).bool()
    A = random_tensor(rng, n_heads, n, n).masked_fill(future, -torch.inf).softmax(-1)
    return A, random_tensor(rng, n, n_kv, 5), rng.randrange(n_kv, n_heads)


z_of_head = Check(
    "z_of_head",
    reference=_grouped,
    inputs=_grouped_inputs,
    mistakes={
        "neighbouring heads share values: head h reads number h // (n_heads / n_kv_heads), not "
        "h % n_kv_heads": (lambda A, v, head: A[head] @ v[:, head % v.shape[1]]),
        "there are fewer values than heads: divide by the number of heads that share one, "
        "n_heads / n_kv_heads": lambda A, v, head: A[head] @ v[:, head // v.shape[1] % v.shape[1]],
        "A[query, key] mixes values over *keys*: A[head] @ v, without a transpose": (
            lambda A, v, head: A[head].T @ v[:, head // (len(A) // v.shape[1])]
        ),
        "that is the first head of the group: values are shared, patterns are not": lambda A, v, head: (
            _grouped(A, v, head - head % (len(A) // v.shape[1]))
        ),
        "you averaged the group's values: each head reads one set of values": (
            lambda A, v, head: A[head] @ v.mean(1)
        ),
        "for all queries, [query, d_head], not for the last one alone": (
            lambda A, v, head: _grouped(A, v, head)[-1]
        ),
    },
)


def _normed(residual, gain, eps=1e-6, root=True):
    size = residual.square().mean(-1, keepdim=True) + eps
    return gain * residual / (size.sqrt() if root else size)


def _copied(residual, gain, W_V, W_O, U):
    return _normed(residual, gain) @ W_V.T @ W_O.T @ U.T


def _circuit(rng: random.Random):
    """residual [token, d_model], the norm's gain, one head's W_V [d_head, d_model] and W_O [d_model, d_head],
    and rows U [token, d_model] of the output head."""
    d_model, d_head, n = 12, rng.randrange(3, 6), rng.randrange(4, 8)
    return (
        3 * random_tensor(rng, n, d_model),
        1 + 0.5 * random_tensor(rng, d_model),
        random_tensor(rng, d_head, d_model),
        random_tensor(rng, d_model, d_head),
        random_tensor(rng, n, d_model),
    )


ov_logits = Check(
    "ov_logits",
    reference=_copied,
    inputs=_circuit,
    mistakes={
        "the layer's norm comes first: divide each token's residual by its root mean square": (
            lambda residual, gain, W_V, W_O, U: residual @ W_V.T @ W_O.T @ U.T
        ),
        "after the division the norm has a gain: multiply by it": (
            lambda residual, gain, W_V, W_O, U: _copied(residual, torch.ones_like(gain), W_V, W_O, U)
        ),
        "you applied the gain and left the division by the root mean square out": (
            lambda residual, gain, W_V, W_O, U: (gain * residual) @ W_V.T @ W_O.T @ U.T
        ),
        "RMSNorm divides by the *root* of the mean square": (
            lambda residual, gain, W_V, W_O, U: _normed(residual, gain, root=False) @ W_V.T @ W_O.T @ U.T
        ),
        "RMSNorm does not subtract the mean": lambda residual, gain, W_V, W_O, U: (
            _normed(residual - residual.mean(-1, keepdim=True), gain) @ W_V.T @ W_O.T @ U.T
        ),
        "rows are tokens that are attended to and columns what is said: [attended, said], so transpose": (
            lambda residual, gain, W_V, W_O, U: _copied(residual, gain, W_V, W_O, U).T
        ),
        "that is U without the head: W_V and W_O stand between": (
            lambda residual, gain, W_V, W_O, U: _normed(residual, gain) @ U.T
        ),
        "root mean square over d_model, for each token by itself": lambda residual, gain, W_V, W_O, U: (
            (gain * residual / residual.square().mean().sqrt()) @ W_V.T @ W_O.T @ U.T
        ),
    },
)
