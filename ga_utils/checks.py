"""The exercises' checks, notebook by notebook: `ga.checks.zero_head(my_zero_head)`.

A check is its reference, its random inputs, and the usual mistakes, each under the hint that it earns.
"""

from __future__ import annotations

import math
import random

import torch

from ga_utils.checks_ssm import (  # noqa: F401  offered here like those below
    best_first,
    decay_mask,
    gap_closed,
    numbers_kept,
    row_shares,
    silence_last,
    swap_head,
    unroll,
)
from ga_utils.exercise import Check, random_tensor

# ---------------------------------------------------------------- inputs


def _causal(rng: random.Random, length: int) -> torch.Tensor:
    mask = torch.ones(length, length).triu(1).bool()
    return (3 * random_tensor(rng, length, length)).masked_fill(mask, -torch.inf).softmax(-1)


def _pairs(rng: random.Random) -> tuple[list[tuple[str, str]], str]:
    keys = rng.sample(["apple", "lamp", "key", "boat", "drum", "nest"], 4)
    pairs = [(key, str(rng.randrange(100))) for key in keys]
    return pairs, rng.choice(keys[:-1])


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

# ---------------------------------------------------------------- notebook 01


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

# ---------------------------------------------------------------- notebook 02


def _zero(z, head, d_head):
    z = z.clone()
    z[..., head * d_head : (head + 1) * d_head] = 0
    return z


def _zero_strided(z, head, d_head):
    z = z.clone()
    z[..., head :: z.shape[-1] // d_head] = 0
    return z


def _zero_from_h(z, head, d_head):
    z = z.clone()
    z[..., head : head + d_head] = 0
    return z


zero_head = Check(
    "zero_head",
    reference=_zero,
    inputs=lambda rng: (random_tensor(rng, 2, 5, 12), rng.randrange(1, 3), 4),
    mistakes={
        "heads lie side by side: head h owns columns h*d_head to (h+1)*d_head, not every n-th column": _zero_strided,
        "head h starts at column h * d_head, not at column h": _zero_from_h,
        "you zeroed *everything but* the head": lambda z, head, d_head: z - _zero(z, head, d_head),
        "you zeroed positions: the heads are in the last dimension, z[..., columns]": lambda z, head, d_head: (
            torch.cat([z[:, : head * d_head], torch.zeros_like(z[:, head * d_head : (head + 1) * d_head]),
                       z[:, (head + 1) * d_head :]], 1)
        ),
    },
)  # fmt: skip

gather = Check(
    "gather",
    reference=lambda A, close, start, end: A[close, start:end].sum(),
    inputs=lambda rng: (_causal(rng, 12), (end := rng.randrange(7, 10)) + rng.randrange(2), rng.randrange(2, 5), end),
    mistakes={
        "rows are queries, columns are keys: A[query, key], so the closing token comes first":
            lambda A, close, start, end: A[start:end, close].sum(),
        "leave the newline itself out: the slice start:end ends before it":
            lambda A, close, start, end: A[close, start : end + 1].sum(),
        "start:end already leaves the newline out; end - 1 loses the last word":
            lambda A, close, start, end: A[close, start : end - 1].sum(),
        "that is everything before the newline, other segments included: the segment begins at `start`":
            lambda A, close, start, end: A[close, :end].sum(),
        "you averaged over the segment's tokens; the attention *mass* is the sum":
            lambda A, close, start, end: A[close, start:end].mean(),
    },
)  # fmt: skip

aggregate = Check(
    "aggregate",
    reference=lambda A, closings, right: A[-1, closings[right]].sum(),
    inputs=lambda rng: (_causal(rng, 16), [[end, end + 1] for end in (3, 6, 9, 12)], rng.randrange(4)),
    mistakes={
        "the Aggregate head works at the *last* token: the query is A[-1]":
            lambda A, closings, right: A[closings[right], -1].sum(),
        "that is the mass on all segments' closing tokens; the score counts only the right one's":
            lambda A, closings, right: A[-1, sum(closings, [])].sum(),
        "`right` counts segments, not tokens: its positions are closings[right]": lambda A, closings, right: A[-1, right],
        "two numbers, one for each closing token: add them": lambda A, closings, right: A[-1, closings[right]],
    },
)  # fmt: skip

costs = Check(
    "costs",
    reference=lambda accuracy_without, baseline, heads: {head: baseline - accuracy_without(head) for head in heads},
    inputs=lambda rng: ((table := {f"L{i}H{j}": rng.random() for i in range(2) for j in range(3)}).get, rng.random(), list(table)),
    mistakes={
        "the other way round: what a head *costs* when disabled is the baseline minus what is left":
            lambda accuracy_without, baseline, heads: {head: accuracy_without(head) - baseline for head in heads},
        "that is what is *left* without each head; what it costs is the difference from the baseline":
            lambda accuracy_without, baseline, heads: {head: accuracy_without(head) for head in heads},
        "right numbers, but as a list: return a dict from head to cost":
            lambda accuracy_without, baseline, heads: [baseline - accuracy_without(head) for head in heads],
    },
)  # fmt: skip

# ---------------------------------------------------------------- notebook 03

mean_z = Check(
    "mean_z",
    reference=lambda z, n_tokens: torch.cat([row[:n] for row, n in zip(z, n_tokens)]).mean(0),
    inputs=lambda rng: (random_tensor(rng, 3, 6, 4), [6, rng.randrange(2, 5), rng.randrange(1, 4)]),
    mistakes={
        "padding counts as tokens in your mean: use only the first n_tokens[i] positions of prompt i":
            lambda z, n_tokens: z.mean((0, 1)),
        "you averaged prompts' means: a short prompt then weighs as much as a long one; average over all tokens":
            lambda z, n_tokens: torch.stack([row[:n].mean(0) for row, n in zip(z, n_tokens)]).mean(0),
        "that is one mean for each position; the head's mean is over all tokens of all prompts": lambda z, n_tokens: z.mean(0),
    },
)  # fmt: skip

to_disable = Check(
    "to_disable",
    reference=lambda kept, n_heads: sorted(
        (layer, head) for layer in {layer for layer, _ in kept} for head in range(n_heads) if (layer, head) not in kept
    ),
    inputs=lambda rng: ([(4, rng.randrange(4)), *((3, head) for head in rng.sample(range(4), 2))], 4),
    mistakes={
        "that list *is* what should be kept": lambda kept, n_heads: sorted(kept),
        "you disabled heads in layers that nobody named, too: layers without a kept head stay whole": lambda kept, n_heads: sorted(
            (layer, head) for layer in range(5) for head in range(n_heads) if (layer, head) not in kept
        ),
        "where two heads of one layer are kept, you disable each because of the other: ask whether the *pair* is in `kept`":
            lambda kept, n_heads: sorted({(layer, head) for layer, own in kept for head in range(n_heads) if head != own}),
        "the kept heads are still in your list": lambda kept, n_heads: sorted(
            (layer, head) for layer in {layer for layer, _ in kept} for head in range(n_heads)
        ),
    },
)  # fmt: skip


def _half_width(hits, n):
    p = hits / n
    return 1.96 * math.sqrt(p * (1 - p) / n)


half_width = Check(
    "half_width",
    reference=_half_width,
    inputs=lambda rng: (rng.randrange(20, 80), 100 * rng.randrange(1, 5)),
    mistakes={
        "that is one standard error (68 %); a 95 % interval reaches 1.96 of them": lambda hits, n: _half_width(hits, n) / 1.96,
        "that is the whole interval; the question asks for half of it, the ± part": lambda hits, n: 2 * _half_width(hits, n),
        "the square root is missing: you have 1.96 times the variance": lambda hits, n: 1.96 * (hits / n) * (1 - hits / n) / n,
    },
)  # fmt: skip

ALL = {check.name: check for check in list(globals().values()) if isinstance(check, Check)}
