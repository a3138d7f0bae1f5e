"""The checks of notebook 01: answers of learners, right and wrong, and what each is told."""

from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F


def loop_condense(x, lines):
    rows = []
    for start, end in lines:
        total = torch.zeros(x.shape[1])
        for i in range(start, end):
            total = total + x[i]
        rows.append(total / total.pow(2).sum().sqrt())
    return torch.stack(rows)


def in_place_condense(x, lines):
    x *= 2
    return loop_condense(x, lines)


def loop_attention(q, k, v):
    rows = []
    for t in range(len(q)):
        scores = k[: t + 1] @ q[t] / q.shape[1] ** 0.5
        rows.append(scores.softmax(0) @ v[: t + 1])
    return torch.stack(rows)


def attention(q, k, v, scale=None, mask=0.0, diagonal=1, dim=-1):
    scores = q @ k.T * (q.shape[-1] ** -0.5 if scale is None else scale)
    future = torch.ones_like(scores).triu(diagonal).bool()
    return scores.masked_fill(future, mask or -torch.inf).softmax(dim) @ v


def summed(x, lines):
    return torch.stack([x[a:b].sum(0) for a, b in lines])


def logp(logits, tokens):
    return logits.log_softmax(-1)[range(len(tokens)), tokens]


def weights(keys, query):
    return (10 * keys @ query).softmax(0)


RIGHT = {
    "fair_guess": [
        lambda seen, right: 1 / seen.count(seen[right]),
        lambda seen, right: 1 / sum(what == seen[right] for what in seen),
        lambda seen, right: 1 / len([what for what in seen if what == seen[right]]),
        lambda seen, right: 1 / Counter(seen)[seen[right]],
        lambda seen, right: np.float64(1) / seen.count(seen[right]),
        lambda seen, right: torch.tensor(1.0 / seen.count(seen[right])),
    ],
    "continuation_logprob": [
        lambda logits, tokens: logp(logits, tokens).sum(),
        lambda logits, tokens: sum(logits[i].log_softmax(0)[t] for i, t in enumerate(tokens)),
        lambda logits, tokens: -F.cross_entropy(logits, torch.tensor(tokens), reduction="sum"),
        lambda logits, tokens: logits.softmax(-1)[range(len(tokens)), tokens].log().sum().item(),
        lambda logits, tokens: logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum(),
        lambda logits, tokens: logits.log_softmax(-1)[:, tokens].diagonal().sum(),
    ],
    "soft_lookup": [
        lambda keys, values, query: weights(keys, query) @ values,
        lambda keys, values, query: (keys @ query * 10).softmax(-1) @ values,
        lambda keys, values, query: (weights(keys, query)[:, None] * values).sum(0),
        lambda keys, values, query: values.T @ (10 * (query @ keys.T)).softmax(0),
        lambda keys, values, query: sum(w * v for w, v in zip(weights(keys, query), values)),
        lambda keys, values, query: torch.einsum("p,pe->e", weights(keys, query), values).numpy(),
    ],
    "condense": [
        lambda x, lines: F.normalize(summed(x, lines), dim=-1),
        lambda x, lines: summed(x, lines) / summed(x, lines).norm(dim=1, keepdim=True),
        lambda x, lines: torch.stack([x[a:b].sum(0) / x[a:b].sum(0).norm() for a, b in lines]),
        lambda x, lines: F.normalize(torch.stack([x[a:b].mean(0) for a, b in lines])),
        loop_condense,
    ],
    "causal_attention": [
        lambda q, k, v: F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0],
        attention,
        lambda q, k, v: attention(q, k, v, mask=-1e9),
        lambda q, k, v: (
            (q @ k.T / q.shape[1] ** 0.5 + torch.full((len(q), len(q)), -torch.inf).triu(1)).softmax(1) @ v
        ),
        loop_attention,
    ],
}

WRONG = {
    "fair_guess": [
        (lambda seen, right: seen.count(seen[right]), "*number*"),
        (lambda seen, right: 1 / len(seen), "among all options"),
        (lambda seen, right: 1 / max(1, seen.count(seen[right]) - 1), "left the right option out"),
        (lambda seen, right: 1 / len(set(seen)), "*different*"),
        (lambda seen, right: seen.count(seen[right]) / len(seen), "share of options"),
        (lambda seen, right: 1.0 if seen.count(seen[right]) == 1 else 0.0, "still guesses"),
        (lambda seen, right: 1 / seen.count(seen[0]), "you look at the first"),
        (lambda seen, right: 0.5, "expected"),
        (lambda seen, right: 1 / seen.count(right), "raised"),
    ],
    "continuation_logprob": [
        (lambda logits, tokens: logits[range(len(tokens)), tokens].sum(), "those are logits"),
        (lambda logits, tokens: logits.log_softmax(0)[range(len(tokens)), tokens].sum(), "over positions"),
        (lambda logits, tokens: logits.softmax(-1)[range(len(tokens)), tokens].sum(), "added probabilities"),
        (lambda logits, tokens: logp(logits, tokens).mean(), "averaged"),
        (lambda logits, tokens: logits.log_softmax(-1)[:, tokens].sum(), "every token at every position"),
        (lambda logits, tokens: logp(logits, tokens).exp().prod(), "that is the probability"),
        (lambda logits, tokens: logp(logits[:-1], tokens[1:]).sum(), "left out"),
        (lambda logits, tokens: logp(logits, tokens), "shape"),
        (lambda logits, tokens: logits.log_softmax(-1).amax(-1).sum(), "differ"),
    ],
    "soft_lookup": [
        (lambda keys, values, query: (keys @ query).softmax(0) @ values, "not sharp enough"),
        (lambda keys, values, query: 10 * (keys @ query) @ values, "softmax is missing"),
        (lambda keys, values, query: 10 * (keys @ query).softmax(0) @ values, "*before* the softmax"),
        (lambda keys, values, query: weights(keys, query) @ keys, "mixed the *keys*"),
        (lambda keys, values, query: values[(keys @ query).argmax()], "best pair alone"),
        (lambda keys, values, query: weights(keys, query), "weights of the pairs"),
        (lambda keys, values, query: weights(keys, query).softmax(0) @ values, "differ"),
    ],
    "condense": [
        (summed, "not of length 1"),
        (lambda x, lines: torch.stack([x[a:b].mean(0) for a, b in lines]), "mean"),
        (lambda x, lines: loop_condense(x, [(a, b + 1) for a, b in lines]), "position after"),
        (
            lambda x, lines: loop_condense(x, [(a, b - 1) for a, b in lines]),
            "last token of each line is missing",
        ),
        (lambda x, lines: loop_condense(x, [(b - 1, b) for a, b in lines]), "only the last token"),
        (lambda x, lines: summed(x, lines) / summed(x, lines).norm(), "length of its own"),
        (lambda x, lines: summed(x, lines) / summed(x, lines).sum(-1, keepdim=True), "sum of squares"),
        (lambda x, lines: loop_condense(x, lines[::-1]), "differ"),
        (lambda x, lines: list(loop_condense(x, lines)), ""),
        (in_place_condense, "changed the tensor"),
    ],
    "causal_attention": [
        (lambda q, k, v: (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v, "later ones"),
        (lambda q, k, v: (q @ k.T / q.shape[-1] ** 0.5).softmax(-1).tril() @ v, "*after* the softmax"),
        (lambda q, k, v: (q @ k.T / q.shape[-1] ** 0.5).tril().softmax(-1) @ v, "exp(0) is 1"),
        (lambda q, k, v: attention(q, k, v, scale=1), "not scaled"),
        (lambda q, k, v: attention(q, k, v, scale=1 / q.shape[-1]), "*square root*"),
        (lambda q, k, v: attention(q, k, v, scale=len(q) ** -0.5), "number of positions"),
        (lambda q, k, v: attention(q, k, v, dim=0), "wrong dimension"),
        (lambda q, k, v: attention(k, q, v), "swapped"),
        (lambda q, k, v: attention(q, k, v, diagonal=0).nan_to_num(), "diagonal"),
    ],
}
