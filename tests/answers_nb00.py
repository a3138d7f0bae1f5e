"""The checks of notebook 00: answers of learners, right and wrong, and what each is told."""

from math import comb

import numpy as np
import torch


def right_row(logprobs, answers):
    return (logprobs.argmax(-1) == answers).float()


def loop_pick(logprobs):
    best = 0
    for i in range(len(logprobs)):
        if logprobs[i] > logprobs[best]:
            best = i
    return best


def loop_accuracy(logprobs, answers):
    hits = 0
    for row, answer in zip(logprobs, answers):
        hits += int(row.argmax() == answer)
    return hits / len(answers)


def loop_follows(chosen, targets, answers):
    hits = [c == t for c, t, a in zip(chosen, targets, answers) if t != a]
    return sum(map(bool, hits)) / len(hits)


def shifting(answers):
    """Changes the tensor that it was given."""
    answers -= answers
    return answers


def binomial(hits, n, p):
    return comb(n, hits) * p**hits * (1 - p) ** (n - hits)


def at_least(hits, n, p):
    return 1 - sum(binomial(k, n, p) for k in range(hits))


RIGHT = {
    "pick_answer": [
        lambda x: int(x.argmax()),
        lambda x: x.argmax().item(),
        lambda x: x.numpy().argmax(),
        lambda x: max(range(len(x)), key=lambda i: x[i]),
        lambda x: x.tolist().index(max(x.tolist())),
        lambda x: int(x.exp().argmax()),
        loop_pick,
    ],
    "accuracy": [
        lambda x, a: right_row(x, a).mean().item(),
        lambda x, a: right_row(x, a).mean(),
        lambda x, a: float((x.argmax(1) == a).sum()) / len(a),
        lambda x, a: np.mean(x.numpy().argmax(-1) == a.numpy()),
        lambda x, a: sum(int(row.argmax()) == int(b) for row, b in zip(x, a)) / x.shape[0],
        loop_accuracy,
    ],
    "skill_lost": [
        lambda b, a, c: (b - a) / (b - c),
        lambda b, a, c: 1 - (a - c) / (b - c),
        lambda before, after, chance: (after - before) / (chance - before),
        lambda b, a, c: np.float64(b - a) / (b - c),
        lambda b, a, c: ((b - c) - (a - c)) / (b - c),
    ],
    "follows": [
        lambda c, t, a: (c == t)[t != a].float().mean().item(),
        lambda c, t, a: (c[t != a] == t[t != a]).float().mean(),
        lambda c, t, a: ((c == t) & (t != a)).sum().item() / (t != a).sum().item(),
        lambda c, t, a: np.mean((c == t).numpy()[(t != a).numpy()]),
        loop_follows,
    ],
    "by_luck": [
        lambda h, n, p: sum(binomial(k, n, p) for k in range(h, n + 1)),
        at_least,
        lambda h, n, p: float(np.sum([binomial(k, n, p) for k in np.arange(h, n + 1)])),
        lambda h, n, p: sum(binomial(misses, n, 1 - p) for misses in range(n - h + 1)),
        lambda h, n, p: torch.tensor([binomial(k, n, p) for k in range(h, n + 1)]).sum().item(),
    ],
}

WRONG = {
    "pick_answer": [
        (lambda x: float(x.max()), "highest log-probability"),
        (lambda x: x.max(), "highest log-probability"),
        (lambda x: int(x.argmin()), "least"),
        (lambda x: int(x.abs().argmax()), "least"),
        (lambda x: x.argmax(), "int(...)"),
        (lambda x: int(x.argmax()) + 1, "from 1"),
        (lambda x: "ABCDEFG"[int(x.argmax())], "letter"),
        (lambda x: int(x[:4].argmax()), "expected"),
        (lambda x: int(x.sort().indices[0]), "least"),
    ],
    "accuracy": [
        (lambda x, a: right_row(x, a).sum().item(), "*number*"),
        (lambda x, a: right_row(x, a).sum().item() / x.shape[1], "number of *choices*"),
        (lambda x, a: right_row(x, a).sum().item() / x.numel(), "all log-probabilities"),
        (lambda x, a: 1 - right_row(x, a).mean().item(), "*wrong*"),
        (lambda x, a: 100 * right_row(x, a).mean().item(), "percent"),
        (lambda x, a: (x.argmin(-1) == a).float().mean().item(), "*least*"),
        (lambda x, a: (x.argmax(0) == a).float().mean().item(), "raised"),
        (lambda x, a: (x.argmax(-1) == shifting(a)).float().mean().item(), ""),
        (lambda x, a: right_row(x, a), "expected"),
    ],
    "skill_lost": [
        (lambda b, a, c: b - a, "points lost"),
        (lambda b, a, c: (b - a) / b, "still guesses"),
        (lambda b, a, c: (a - c) / (b - c), "*left*"),
        (lambda b, a, c: (b - a) / (1 - c), "1 - chance"),
        (lambda b, a, c: (a - b) / (b - c), "counts as positive"),
        (lambda b, a, c: (b - a) / (b - 0.25), "expected"),
        (lambda b, a, c: 100 * (b - a) / (b - c), "expected"),
    ],
    "follows": [
        (lambda c, t, a: (c == t).float().mean().item(), "ignores the intervention"),
        (lambda c, t, a: ((c == t) & (t != a)).float().mean().item(), "divide by all"),
        (lambda c, t, a: (c == a)[t != a].float().mean().item(), "*right*"),
        (lambda c, t, a: (c == t)[t == a].float().mean().item(), "can't tell the two apart"),
        (lambda c, t, a: (c != a)[t != a].float().mean().item(), "not yet a hit"),
        (lambda c, t, a: ((c == t) & (t != a)).sum().item(), "number"),
        (lambda c, t, a: (c == t)[c != a].float().mean().item(), "expected"),
    ],
    "by_luck": [
        (binomial, "*exactly*"),
        (lambda h, n, p: sum(binomial(k, n, p) for k in range(h + 1, n + 1)), "leave out `hits`"),
        (lambda h, n, p: sum(binomial(k, n, p) for k in range(h, n)), "leave out n"),
        (lambda h, n, p: sum(binomial(k, n, p) for k in range(h + 1)), "other tail"),
        (lambda h, n, p: sum(p**k * (1 - p) ** (n - k) for k in range(h, n + 1)), "single order"),
        (lambda h, n, p: at_least(h, n, 0.25), "whatever `chance`"),
        (lambda h, n, p: p**h, "expected"),
    ],
}
