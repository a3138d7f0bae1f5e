"""The checks of notebook 01."""

from __future__ import annotations

import random

import torch

from ga_utils.checks.check import Check, random_tensor

WORDS = ["salt", "wind", "bell", "fern", "rose", "wolf", "moon", "amber"]


def _seen(rng: random.Random) -> tuple[list, int]:
    """What a policy sees of seven options, and which one is right.

    It sees the same of two or three of them, the right one among these. The first shows something else.
    """
    of_right, *others = rng.sample([None, ("salt", "wind"), *WORDS], 4)
    first, *rest = rng.choice([[others[0]] * 3 + others[1:], [*others, others[1], of_right]])
    seen = [first, *rng.sample([*rest, of_right, of_right], 6)]
    return seen, rng.choice([i for i, what in enumerate(seen) if what == of_right])


fair_guess = Check(
    "fair_guess",
    reference=lambda seen, right: 1 / seen.count(seen[right]),
    inputs=_seen,
    mistakes={
        "that is the *number* of options that show the same; with k of them, one guess in k is right": (
            lambda seen, right: seen.count(seen[right])
        ),
        "you guess among all options, whatever the policy sees: leave out those that show something else": (
            lambda seen, right: 1 / len(seen)
        ),
        "you left the right option out of the count; the policy does not know which one it is": (
            lambda seen, right: 1 / max(1, seen.count(seen[right]) - 1)
        ),
        "you divide by how many *different* things are seen; count the options that show what the right one "
        "shows": lambda seen, right: 1 / len(set(seen)),
        "that is the share of options that show the same; it says nothing about a guess among them": (
            lambda seen, right: seen.count(seen[right]) / len(seen)
        ),
        "a policy that is not sure still guesses, and is right at times": (
            lambda seen, right: float(seen.count(seen[right]) == 1)
        ),
        "`right` says which option is the right one; you look at the first": (
            lambda seen, right: 1 / seen.count(seen[0])
        ),
    },
)


def _picked(scores, tokens):
    """[n]: from each row of scores [n, vocabulary], the entry of that row's token."""
    return scores[range(len(tokens)), tokens]


def _choice(rng: random.Random) -> tuple[torch.Tensor, list[int]]:
    """Logits and tokens of a choice of three to five tokens."""
    n = rng.randrange(3, 6)
    return random_tensor(rng, n, 9), [rng.randrange(9) for _ in range(n)]


continuation_logprob = Check(
    "continuation_logprob",
    reference=lambda logits, tokens: _picked(logits.log_softmax(-1), tokens).sum(),
    inputs=_choice,
    mistakes={
        "those are logits, not log-probabilities: apply log_softmax over the vocabulary first": (
            lambda logits, tokens: _picked(logits, tokens).sum()
        ),
        "you normalised over positions: log_softmax goes over the vocabulary, dim=-1": (
            lambda logits, tokens: _picked(logits.log_softmax(0), tokens).sum()
        ),
        "you added probabilities; a text's probability is a product, so add *log*-probabilities": (
            lambda logits, tokens: _picked(logits.softmax(-1), tokens).sum()
        ),
        "you averaged over tokens; the log-probability of the whole text is the sum": (
            lambda logits, tokens: _picked(logits.log_softmax(-1), tokens).mean()
        ),
        "logits[:, tokens] takes every token at every position; take token i at position i: "
        "[range(len(tokens)), tokens]": (lambda logits, tokens: logits.log_softmax(-1)[:, tokens].sum()),
        "that is the probability; return its logarithm (add logarithms instead of multiplying: products "
        "of many small numbers become 0)": (
            lambda logits, tokens: _picked(logits.softmax(-1), tokens).prod()
        ),
        "one token is left out: row i predicts token i, so nothing has to be shifted here": (
            lambda logits, tokens: _picked(logits.log_softmax(-1)[:-1], tokens[1:]).sum()
        ),
    },
)


def _mix(values, scores, scale=10):
    """A mix of the rows of `values`, by the softmax of the scaled scores."""
    return (scale * scores).softmax(0) @ values


def _pairs(rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values, and a query that matches several keys: a hard lookup gives something else."""
    n = rng.randrange(4, 7)
    return 0.05 * random_tensor(rng, n, 8), random_tensor(rng, n, 3), random_tensor(rng, 8)


soft_lookup = Check(
    "soft_lookup",
    reference=lambda keys, values, query: _mix(values, keys @ query),
    inputs=_pairs,
    mistakes={
        "the match is not sharp enough: multiply the scores by 10 before the softmax": (
            lambda keys, values, query: _mix(values, keys @ query, scale=1)
        ),
        "the softmax is missing: raw scores are not weights that sum to 1": (
            lambda keys, values, query: 10 * (keys @ query) @ values
        ),
        "multiply by 10 *before* the softmax: ten times the weights no longer sum to 1": (
            lambda keys, values, query: 10 * _mix(values, keys @ query, scale=1)
        ),
        "you mixed the *keys*; a lookup returns a mix of the values": (
            lambda keys, values, query: _mix(keys, keys @ query)
        ),
        "that takes the best pair alone; a *soft* lookup mixes all values by their weights": (
            lambda keys, values, query: values[(keys @ query).argmax()]
        ),
        "those are the weights of the pairs; mix the values with them": (
            lambda keys, values, query: (10 * keys @ query).softmax(0)
        ),
    },
)


def _lines(rng: random.Random) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Rows of 20 tokens, and the ends of three lines of different lengths, with tokens between them."""
    lengths = rng.sample([2, 3, 4, 5], 3)
    starts = [1, 1 + lengths[0] + 2, 1 + lengths[0] + lengths[1] + 3]
    return random_tensor(rng, 20, 6), [(start, start + n) for start, n in zip(starts, lengths)]


def _rows(x, lines, last=0, unit=True):
    """The sum of each line's rows, scaled to length 1 if `unit`."""
    rows = torch.stack([x[start : end + last].sum(0) for start, end in lines])
    return rows / rows.norm(dim=-1, keepdim=True) if unit else rows


condense = Check(
    "condense",
    reference=_rows,
    inputs=_lines,
    mistakes={
        "the rows are not of length 1: divide each by its norm, or a longer line matches everything better": (
            lambda x, lines: _rows(x, lines, unit=False)
        ),
        "a mean still has another length for each line: divide each row by its own norm": (
            lambda x, lines: torch.stack([x[start:end].mean(0) for start, end in lines])
        ),
        "`end` is the position after the line's last token, so x[start:end] has all of it": (
            lambda x, lines: _rows(x, lines, last=1)
        ),
        "the last token of each line is missing: x[start:end] already leaves out `end` itself": (
            lambda x, lines: _rows(x, lines, last=-1)
        ),
        "you took only the last token of each line; all of them have to be in its row": (
            lambda x, lines: _rows(x, [(end - 1, end) for _, end in lines])
        ),
        "each row has a length of its own: norm(dim=-1, keepdim=True) instead of one norm for all": (
            lambda x, lines: _rows(x, lines, unit=False) / _rows(x, lines, unit=False).norm()
        ),
        "you divide by the sum of the row; its length is the root of the sum of squares": (
            lambda x, lines: _rows(x, lines, unit=False) / _rows(x, lines, unit=False).sum(-1, keepdim=True)
        ),
    },
)


def _scores(q, k):
    return q @ k.T / q.shape[-1] ** 0.5


def _masked(scores):
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)


def _qkv(rng: random.Random) -> tuple[torch.Tensor, ...]:
    n = rng.randrange(4, 7)
    return random_tensor(rng, n, 8), random_tensor(rng, n, 8), random_tensor(rng, n, 3)


causal_attention = Check(
    "causal_attention",
    reference=lambda q, k, v: _masked(_scores(q, k)).softmax(-1) @ v,
    inputs=_qkv,
    mistakes={
        "every position also looks at later ones: put -inf above the diagonal of the scores": (
            lambda q, k, v: _scores(q, k).softmax(-1) @ v
        ),
        "you removed the future *after* the softmax, so rows no longer sum to 1: mask the scores instead": (
            lambda q, k, v: _scores(q, k).softmax(-1).tril() @ v
        ),
        "you set the scores of the future to 0, but exp(0) is 1: to mean 'never', a score must be -inf": (
            lambda q, k, v: _scores(q, k).tril().softmax(-1) @ v
        ),
        "not scaled: scores of d-dimensional vectors grow with d, so divide them by the square root of d": (
            lambda q, k, v: _masked(q @ k.T).softmax(-1) @ v
        ),
        "you divide by d; divide by its *square root*, and the scores keep a spread of about 1": (
            lambda q, k, v: _masked(q @ k.T / q.shape[-1]).softmax(-1) @ v
        ),
        "you divide by the square root of the number of positions; d is the width of q and k": (
            lambda q, k, v: _masked(q @ k.T / len(q) ** 0.5).softmax(-1) @ v
        ),
        "softmax over the wrong dimension: each *query* (row) shares its attention among the keys, dim=-1": (
            lambda q, k, v: _masked(_scores(q, k)).softmax(0) @ v
        ),
        "queries and keys are swapped: rows are those who look, so scores are q @ k.T": (
            lambda q, k, v: _masked(_scores(k, q)).softmax(-1) @ v
        ),
        "the diagonal is masked, too; a position may look at itself: triu(1), not triu(0)": (
            lambda q, k, v: (
                _scores(q, k)
                .masked_fill(torch.ones_like(_scores(q, k)).triu().bool(), -torch.inf)
                .softmax(-1)
                .nan_to_num()
                @ v
            )
        ),
    },
)
