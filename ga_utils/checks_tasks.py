"""The checks of notebooks 00 and 01; `ga.checks` has them all."""

from __future__ import annotations

import math
import random

import torch

from ga_utils.exercise import Check, random_tensor

# ---------------------------------------------------------------- notebook 00

pick_answer = Check(
    "pick_answer",
    reference=lambda logprobs: int(logprobs.argmax()),
    inputs=lambda rng: (random_tensor(rng, 4).log_softmax(-1),),
    mistakes={
        "you return the *highest log-probability*; the question is which choice has it (its index)":
            lambda logprobs: float(logprobs.max()),
        "you return the *least* likely choice: a log-probability near 0 is likely, -10 is not":
            lambda logprobs: int(logprobs.argmin()),
        "right choice, but as a tensor: turn it into a plain number with int(...)": lambda logprobs: logprobs.argmax(),
    },
)  # fmt: skip

accuracy = Check(
    "accuracy",
    reference=lambda logprobs, answers: (logprobs.argmax(-1) == answers).float().mean().item(),
    # as many questions as choices, so that argmax over the wrong dimension runs, too
    inputs=lambda rng: (random_tensor(rng, 4, 4), torch.tensor([rng.randrange(4) for _ in range(4)])),
    mistakes={
        "that is the *number* of right answers; accuracy is their share: use .mean() instead of .sum()":
            lambda logprobs, answers: float((logprobs.argmax(-1) == answers).sum()),
        "argmax over the wrong dimension: logprobs is [question, choice], so the choice is dim=-1":
            lambda logprobs, answers: (logprobs.argmax(0) == answers).float().mean().item(),
        "that is the share of *wrong* answers": lambda logprobs, answers: (logprobs.argmax(-1) != answers).float().mean().item(),
        "that is in percent; a share lies between 0 and 1":
            lambda logprobs, answers: 100 * (logprobs.argmax(-1) == answers).float().mean().item(),
    },
)  # fmt: skip

control_heads = Check(
    "control_heads",
    reference=lambda heads, suspects: [head for head in heads if head not in suspects],
    inputs=lambda rng: (
        rng.sample([f"L{i}H{j}" for i in range(3) for j in range(3)], 9), [f"L{rng.randrange(3)}H0", f"L{rng.randrange(3)}H1"],
    ),
    mistakes={
        "the right heads, in another order: keep the order of `heads` (a set has none)":
            lambda heads, suspects: sorted(set(heads) - set(suspects)),
        "the suspects are still among your controls: a control must not contain what it controls for":
            lambda heads, suspects: list(heads),
        "you kept the suspects and dropped everything else: it is the other way round":
            lambda heads, suspects: [head for head in heads if head in suspects],
    },
)  # fmt: skip

skill_lost = Check(
    "skill_lost",
    reference=lambda before, after, chance: (before - after) / (before - chance),
    inputs=lambda rng: (rng.uniform(0.8, 1.0), rng.uniform(0.4, 0.7), rng.choice([0.25, 1 / 3])),
    mistakes={
        "those are points lost; 60 points are nearly all of a skill, or a part of it, depending on where chance lies":
            lambda before, after, chance: before - after,
        "you compare with an accuracy of 0, but a model without the skill still guesses: what *could* be lost ends at chance":
            lambda before, after, chance: (before - after) / before,
        "that is the share that is *left*": lambda before, after, chance: (after - chance) / (before - chance),
    },
)  # fmt: skip


def _binomial(counts, n, chance):
    return float(sum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in counts))


by_luck = Check(
    "by_luck",
    reference=lambda hits, n, chance: _binomial(range(hits, n + 1), n, chance),
    inputs=lambda rng: (rng.randrange(6, 12), rng.randrange(24, 33), 0.25),
    mistakes={
        "that is the probability of *exactly* so many hits; ask for so many *or more*, or any single count looks surprising":
            lambda hits, n, chance: _binomial([hits], n, chance),
        "you leave out `hits` itself: 'at least as many' begins at hits (range(hits, n + 1))":
            lambda hits, n, chance: _binomial(range(hits + 1, n + 1), n, chance),
        "that is the other tail, so many hits or *fewer*": lambda hits, n, chance: _binomial(range(hits + 1), n, chance),
        "one order of hits and misses only: there are math.comb(n, k) ways to place k hits among n questions":
            lambda hits, n, chance: float(sum(chance**k * (1 - chance) ** (n - k) for k in range(hits, n + 1))),
    },
)  # fmt: skip

# ---------------------------------------------------------------- notebook 01


def _options(rng: random.Random) -> tuple[list[list[str]], int]:
    """Four options of three words; one word of the right one is its own, two stand in others, too."""
    own, shared, other, *rest = rng.sample(["salt", "wind", "bell", "fern", "rose", "wolf", "moon", "amber"], 8)
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
        "you search the right option, too, and there every word is found: compare with the *other* options only":
            lambda options, right: [word for word in options[right] if all(word not in o for o in options)],
        "a word gives the answer away only if it is missing from *all* other options; yours need be missing from one only":
            lambda options, right: list(options[right]),
        "the other way round: those words also stand in another option, so they give nothing away":
            lambda options, right: [
                word for word in options[right] if any(word in o for i, o in enumerate(options) if i != right)
            ],
    },
)  # fmt: skip


def _pairs(rng: random.Random) -> tuple[list[tuple[str, str]], str]:
    keys = rng.sample(["apple", "lamp", "key", "boat", "drum", "nest"], 4)
    pairs = [(key, str(rng.randrange(100))) for key in keys]
    return pairs, rng.choice(keys[:-1])


def _dictionary_text(pairs, query):
    return (
        "Dictionary:\n" + "".join(f"{k}: {v}\n" for k, v in pairs) + f"Question: what is the value of {query}?\nAnswer:"
    )


kv_prompt = Check(
    "kv_prompt",
    reference=_dictionary_text,
    inputs=_pairs,
    mistakes={
        "the *last* pair needs its newline, too": lambda pairs, query: _dictionary_text(pairs, query).replace("\nQ", "Q"),
        "each pair needs its own line: a newline ends every pair, the last one included": lambda pairs, query: (
            "Dictionary:\n" + " ".join(f"{k}: {v}" for k, v in pairs) + f"\nQuestion: what is the value of {query}?\nAnswer:"
        ),
        "a space follows the final 'Answer:' - the choices bring their own, so the prompt must end in the colon":
            lambda pairs, query: _dictionary_text(pairs, query) + " ",
        "you gave the answer away: the prompt must end in 'Answer:'":
            lambda pairs, query: _dictionary_text(pairs, query) + f" {dict(pairs)[query]}",
    },
)  # fmt: skip

continuation_logprob = Check(
    "continuation_logprob",
    reference=lambda logits, tokens: logits.log_softmax(-1)[range(len(tokens)), tokens].sum(),
    inputs=lambda rng: (random_tensor(rng, 3, 9), [rng.randrange(9) for _ in range(3)]),
    mistakes={
        "those are logits, not log-probabilities: apply log_softmax over the vocabulary first":
            lambda logits, tokens: logits[range(len(tokens)), tokens].sum(),
        "you normalised over positions: log_softmax goes over the vocabulary, dim=-1":
            lambda logits, tokens: logits.log_softmax(0)[range(len(tokens)), tokens].sum(),
        "you added probabilities; the probability of a sequence is a product, so *log*-probabilities are added":
            lambda logits, tokens: logits.softmax(-1)[range(len(tokens)), tokens].sum(),
        "you averaged over tokens; the log-probability of the whole text is the sum":
            lambda logits, tokens: logits.log_softmax(-1)[range(len(tokens)), tokens].mean(),
        "logits[:, tokens] takes every token at every position; you want token i at position i: [range(len(tokens)), tokens]":
            lambda logits, tokens: logits.log_softmax(-1)[:, tokens].sum(),
        "that is the probability; its logarithm is asked for (add logarithms instead of multiplying: products underflow)":
            lambda logits, tokens: logits.softmax(-1)[range(len(tokens)), tokens].prod(),
    },
)  # fmt: skip


def _match(keys, query, values):
    return (keys @ query).softmax(0) @ values


soft_lookup = Check(
    "soft_lookup",
    reference=lambda keys, values, query: _match(10 * keys, query, values),
    inputs=lambda rng: (random_tensor(rng, 5, 8), random_tensor(rng, 5, 3), random_tensor(rng, 8)),
    mistakes={
        "the match must be sharpened: multiply the scores by 10 before the softmax":
            lambda keys, values, query: _match(keys, query, values),
        "no softmax: raw scores are not weights that sum to 1": lambda keys, values, query: (10 * keys @ query) @ values,
        "sharpen *before* the softmax: ten times the weights no longer sum to 1":
            lambda keys, values, query: 10 * _match(keys, query, values),
        "you mixed the *keys*; what a lookup returns is a mix of the values":
            lambda keys, values, query: _match(10 * keys, query, keys),
    },
)  # fmt: skip


def _attend(scores, v, before=lambda scores: scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf),
            after=lambda weights: weights, dim=-1):  # fmt: skip
    return after(before(scores).softmax(dim)) @ v


causal_attention = Check(
    "causal_attention",
    reference=lambda q, k, v: _attend(q @ k.T / q.shape[-1] ** 0.5, v),
    inputs=lambda rng: (random_tensor(rng, 5, 8), random_tensor(rng, 5, 8), random_tensor(rng, 5, 3)),
    mistakes={
        "every position also looks at later ones: put -inf above the diagonal of the scores": lambda q, k, v: _attend(
            q @ k.T / q.shape[-1] ** 0.5, v, before=lambda scores: scores),
        "you cut off the future *after* the softmax, so rows no longer sum to 1: mask the scores instead":
            lambda q, k, v: _attend(q @ k.T / q.shape[-1] ** 0.5, v, lambda scores: scores, torch.tril),
        "you set the future's scores to 0, and exp(0) is 1: 'never' is a score of -inf": lambda q, k, v: _attend(
            q @ k.T / q.shape[-1] ** 0.5, v, torch.tril),
        "unscaled: scores of d-dimensional vectors grow with d; divide them by the square root of d":
            lambda q, k, v: _attend(q @ k.T, v),
        "you divide by d; by its *square root* the scores keep a spread of about 1": lambda q, k, v: _attend(
            q @ k.T / q.shape[-1], v),
        "softmax over the wrong dimension: each *query* (row) shares its attention among the keys, dim=-1":
            lambda q, k, v: _attend(q @ k.T / q.shape[-1] ** 0.5, v, dim=0),
        "queries and keys are swapped: row = who looks, so scores are q @ k.T": lambda q, k, v: _attend(
            k @ q.T / q.shape[-1] ** 0.5, v),
    },
)  # fmt: skip
