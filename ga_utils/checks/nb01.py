"""The checks of notebook 01; `ga.checks` has them all."""

from __future__ import annotations

import random

import torch

from ga_utils.checks.check import Check, random_tensor


def _options(rng: random.Random) -> tuple[list[list[str]], int]:
    """Four options of three words; one word of the right one is its own, two stand in others, too."""
    own, shared, other, *rest = rng.sample(
        ["salt", "wind", "bell", "fern", "rose", "wolf", "moon", "amber"], 8
    )
    options = [[own, shared, other], [shared, rest[0], rest[1]], [rest[2], other, rest[0]], rest[1:4]]
    options = [rng.sample(option, 3) for option in options]
    right = options[0]
    rng.shuffle(options)
    return options, options.index(right)


giveaways = Check(
    "giveaways",
    reference=lambda options, right: [
        word for word in options[right] if all(word not in o for i, o in enumerate(options) if i != right)
    ],
    inputs=_options,
    mistakes={
        "you search the right option, too, and there every word is found: compare with the *other* options only": lambda options, right: [
            word for word in options[right] if all(word not in o for o in options)
        ],
        "a word gives the answer away only if it is missing from *all* other options; yours need be missing from one only": lambda options, right: (
            list(options[right])
        ),
        "the other way round: those words also stand in another option, so they give nothing away": lambda options, right: [
            word for word in options[right] if any(word in o for i, o in enumerate(options) if i != right)
        ],
    },
)


def _pairs(rng: random.Random) -> tuple[list[tuple[str, str]], str]:
    keys = rng.sample(["apple", "lamp", "key", "boat", "drum", "nest"], 4)
    pairs = [(key, str(rng.randrange(100))) for key in keys]
    return pairs, rng.choice(keys[:-1])


def _dictionary_text(pairs, query):
    return (
        "Dictionary:\n"
        + "".join(f"{k}: {v}\n" for k, v in pairs)
        + f"Question: what is the value of {query}?\nAnswer:"
    )


kv_prompt = Check(
    "kv_prompt",
    reference=_dictionary_text,
    inputs=_pairs,
    mistakes={
        "the *last* pair needs its newline, too": lambda pairs, query: _dictionary_text(pairs, query).replace(
            "\nQ", "Q"
        ),
        "each pair needs its own line: a newline ends every pair, the last one included": lambda pairs, query: (
            "Dictionary:\n"
            + " ".join(f"{k}: {v}" for k, v in pairs)
            + f"\nQuestion: what is the value of {query}?\nAnswer:"
        ),
        "a space follows the final 'Answer:' - the choices bring their own, so the prompt must end in the colon": lambda pairs, query: (
            _dictionary_text(pairs, query) + " "
        ),
        "you gave the answer away: the prompt must end in 'Answer:'": lambda pairs, query: (
            _dictionary_text(pairs, query) + f" {dict(pairs)[query]}"
        ),
    },
)

continuation_logprob = Check(
    "continuation_logprob",
    reference=lambda logits, tokens: logits.log_softmax(-1)[range(len(tokens)), tokens].sum(),
    inputs=lambda rng: (random_tensor(rng, 3, 9), [rng.randrange(9) for _ in range(3)]),
    mistakes={
        "those are logits, not log-probabilities: apply log_softmax over the vocabulary first": lambda logits, tokens: (
            logits[range(len(tokens)), tokens].sum()
        ),
        "you normalised over positions: log_softmax goes over the vocabulary, dim=-1": lambda logits, tokens: (
            logits.log_softmax(0)[range(len(tokens)), tokens].sum()
        ),
        "you added probabilities; the probability of a sequence is a product, so *log*-probabilities are added": lambda logits, tokens: (
            logits.softmax(-1)[range(len(tokens)), tokens].sum()
        ),
        "you averaged over tokens; the log-probability of the whole text is the sum": lambda logits, tokens: (
            logits.log_softmax(-1)[range(len(tokens)), tokens].mean()
        ),
        "logits[:, tokens] takes every token at every position; you want token i at position i: [range(len(tokens)), tokens]": lambda logits, tokens: (
            logits.log_softmax(-1)[:, tokens].sum()
        ),
        "that is the probability; its logarithm is asked for (add logarithms instead of multiplying: products underflow)": lambda logits, tokens: (
            logits.softmax(-1)[range(len(tokens)), tokens].prod()
        ),
    },
)


def _match(keys, query, values):
    return (keys @ query).softmax(0) @ values


soft_lookup = Check(
    "soft_lookup",
    reference=lambda keys, values, query: _match(10 * keys, query, values),
    inputs=lambda rng: (random_tensor(rng, 5, 8), random_tensor(rng, 5, 3), random_tensor(rng, 8)),
    mistakes={
        "the match must be sharpened: multiply the scores by 10 before the softmax": lambda keys, values, query: (
            _match(keys, query, values)
        ),
        "no softmax: raw scores are not weights that sum to 1": lambda keys, values, query: (
            (10 * keys @ query) @ values
        ),
        "sharpen *before* the softmax: ten times the weights no longer sum to 1": lambda keys, values, query: (
            10 * _match(keys, query, values)
        ),
        "you mixed the *keys*; what a lookup returns is a mix of the values": lambda keys, values, query: (
            _match(10 * keys, query, keys)
        ),
    },
)


def _attend(
    scores,
    v,
    before=lambda scores: scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf),
    after=lambda weights: weights,
    dim=-1,
):
    return after(before(scores).softmax(dim)) @ v


causal_attention = Check(
    "causal_attention",
    reference=lambda q, k, v: _attend(q @ k.T / q.shape[-1] ** 0.5, v),
    inputs=lambda rng: (random_tensor(rng, 5, 8), random_tensor(rng, 5, 8), random_tensor(rng, 5, 3)),
    mistakes={
        "every position also looks at later ones: put -inf above the diagonal of the scores": lambda q, k, v: (
            _attend(q @ k.T / q.shape[-1] ** 0.5, v, before=lambda scores: scores)
        ),
        "you cut off the future *after* the softmax, so rows no longer sum to 1: mask the scores instead": lambda q, k, v: (
            _attend(q @ k.T / q.shape[-1] ** 0.5, v, lambda scores: scores, torch.tril)
        ),
        "you set the future's scores to 0, and exp(0) is 1: 'never' is a score of -inf": lambda q, k, v: (
            _attend(q @ k.T / q.shape[-1] ** 0.5, v, torch.tril)
        ),
        "unscaled: scores of d-dimensional vectors grow with d; divide them by the square root of d": lambda q, k, v: (
            _attend(q @ k.T, v)
        ),
        "you divide by d; by its *square root* the scores keep a spread of about 1": lambda q, k, v: _attend(
            q @ k.T / q.shape[-1], v
        ),
        "softmax over the wrong dimension: each *query* (row) shares its attention among the keys, dim=-1": lambda q, k, v: (
            _attend(q @ k.T / q.shape[-1] ** 0.5, v, dim=0)
        ),
        "queries and keys are swapped: row = who looks, so scores are q @ k.T": lambda q, k, v: _attend(
            k @ q.T / q.shape[-1] ** 0.5, v
        ),
    },
)
