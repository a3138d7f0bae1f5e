"""The checks of notebook 01."""

from __future__ import annotations

import random

import torch

from ga_utils.checks.check import Check, random_tensor


def _options(rng: random.Random) -> tuple[list[list[str]], int]:
    """Four options of three words. Of the right one's words, one is its own and two also stand in others."""
    words = ["salt", "wind", "bell", "fern", "rose", "wolf", "moon", "amber"]
    own, shared, other, *rest = rng.sample(words, 8)
    options = [[own, shared, other], [shared, rest[0], rest[1]], [rest[2], other, rest[0]], rest[1:4]]
    options = [rng.sample(option, 3) for option in options]
    right = options[0]
    rng.shuffle(options)
    return options, options.index(right)


def _elsewhere(word, options, right):
    """In how many options, leaving out the right one, a word stands."""
    return sum(word in option for i, option in enumerate(options) if i != right)


giveaways = Check(
    "giveaways",
    reference=lambda options, right: [w for w in options[right] if not _elsewhere(w, options, right)],
    inputs=_options,
    mistakes={
        "you search the right option as well, which has all of its words: search only the *others*": (
            lambda options, right: [w for w in options[right] if not _elsewhere(w, options, None)]
        ),
        "a word gives the answer away only if *all* other options lack it; for yours, one is enough": (
            lambda options, right: [w for w in options[right] if _elsewhere(w, options, right) < 3]
        ),
        "the other way round: those words also stand in another option, so they give nothing away": (
            lambda options, right: [w for w in options[right] if _elsewhere(w, options, right)]
        ),
    },
)


def _pairs(rng: random.Random) -> tuple[list[tuple[str, str]], str]:
    keys = rng.sample(["apple", "lamp", "key", "boat", "drum", "nest"], 4)
    pairs = [(key, str(rng.randrange(100))) for key in keys]
    return pairs, rng.choice(keys[:-1])


def _dictionary(pairs, query, end="\n", last="\n"):
    """The prompt, with `end` after every pair but the last and `last` after that one."""
    lines = end.join(f"{key}: {value}" for key, value in pairs)
    return f"Dictionary:\n{lines}{last}Question: what is the value of {query}?\nAnswer:"


kv_prompt = Check(
    "kv_prompt",
    reference=_dictionary,
    inputs=_pairs,
    mistakes={
        "the *last* pair needs its newline, too": (lambda pairs, query: _dictionary(pairs, query, last="")),
        "each pair needs a line of its own: end every pair with a newline, the last one included": (
            lambda pairs, query: _dictionary(pairs, query, end=" ")
        ),
        "a space follows the final 'Answer:'; the choices begin with one, so the prompt ends in the colon": (
            lambda pairs, query: _dictionary(pairs, query) + " "
        ),
        "you gave the answer away: the prompt must end in 'Answer:'": (
            lambda pairs, query: f"{_dictionary(pairs, query)} {dict(pairs)[query]}"
        ),
    },
)


def _picked(scores, tokens):
    """[n]: from each row of scores [n, vocabulary], the entry of that row's token."""
    return scores[range(len(tokens)), tokens]


continuation_logprob = Check(
    "continuation_logprob",
    reference=lambda logits, tokens: _picked(logits.log_softmax(-1), tokens).sum(),
    inputs=lambda rng: (random_tensor(rng, 3, 9), [rng.randrange(9) for _ in range(3)]),
    mistakes={
        "those are logits, not log-probabilities: apply log_softmax over the vocabulary first": (
            lambda logits, tokens: _picked(logits, tokens).sum()
        ),
        "you normalised over positions: log_softmax goes over the vocabulary, dim=-1": (
            lambda logits, tokens: _picked(logits.log_softmax(0), tokens).sum()
        ),
        "you added probabilities; a sequence's probability is a product, so add *log*-probabilities": (
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
    },
)


def _mix(values, scores, scale=10):
    """A mix of the rows of `values`, by the softmax of the scaled scores."""
    return (scale * scores).softmax(0) @ values


soft_lookup = Check(
    "soft_lookup",
    reference=lambda keys, values, query: _mix(values, keys @ query),
    inputs=lambda rng: (random_tensor(rng, 5, 8), random_tensor(rng, 5, 3), random_tensor(rng, 8)),
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
    },
)


def _scores(q, k):
    return q @ k.T / q.shape[-1] ** 0.5


def _masked(scores):
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)


causal_attention = Check(
    "causal_attention",
    reference=lambda q, k, v: _masked(_scores(q, k)).softmax(-1) @ v,
    inputs=lambda rng: (random_tensor(rng, 5, 8), random_tensor(rng, 5, 8), random_tensor(rng, 5, 3)),
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
        "softmax over the wrong dimension: each *query* (row) shares its attention among the keys, dim=-1": (
            lambda q, k, v: _masked(_scores(q, k)).softmax(0) @ v
        ),
        "queries and keys are swapped: rows are those who look, so scores are q @ k.T": (
            lambda q, k, v: _masked(_scores(k, q)).softmax(-1) @ v
        ),
    },
)
