"""`evaluate`: how often a model gives its right choice the highest log-probability."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from tqdm.auto import tqdm

from ga_utils.examples import Example
from ga_utils.models.batches import Row, plan, read_off, rows_of, run_batch
from ga_utils.models.budget import halving
from ga_utils.models.continuation import run
from ga_utils.models.lm import LM


@dataclass(frozen=True, eq=False)
class Score:
    """Accuracy on a list of examples, with everything needed to look closer.

    correct: [n] bool. logprobs: [n, n_choices] natural-log probabilities of each choice's text given the
    prompt, summed over its tokens; NaN where an example has fewer choices than the widest.
    answers: [n] index of the right choice.
    """

    correct: np.ndarray
    logprobs: np.ndarray
    answers: np.ndarray

    @classmethod
    def of(cls, logprobs: np.ndarray, examples: list[Example]) -> Score:
        """The score that these log-probabilities give.

        Raises:
            ValueError: names an example with a NaN, or with no choice that is possible.
        """
        for index, (found, example) in enumerate(zip(logprobs, examples)):
            found = found[: len(example.choices)]
            if np.isnan(found).any() or np.isposinf(found).any():
                raise ValueError(
                    f"the model gives no number (NaN) on example {index}: did 16-bit activations overflow?"
                )
            if np.isneginf(found).all():
                raise ValueError(
                    f"every choice of example {index} has probability 0, so none is the likeliest"
                )
        answers = np.array([example.answer for example in examples])
        return cls(np.nanargmax(logprobs, axis=1) == answers, logprobs, answers)

    @property
    def n(self) -> int:
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Share of examples answered rightly, 0 to 1."""
        return float(self.correct.mean())

    @property
    def chosen(self) -> np.ndarray:
        """[n]: the index of the choice that the model finds likeliest."""
        return np.nanargmax(self.logprobs, axis=1)

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % Wilson score interval of the accuracy."""
        return wilson(int(self.correct.sum()), self.n)

    @property
    def right_logprob(self) -> float:
        """Mean log-probability of the right choice *among the choices*: a finer ruler than accuracy."""
        shifted = self.logprobs - np.nanmax(self.logprobs, axis=1, keepdims=True)
        among = shifted - np.log(np.nansum(np.exp(shifted), axis=1, keepdims=True))
        return float(among[np.arange(self.n), self.answers].mean())

    def __eq__(self, other):
        if not isinstance(other, Score):
            return NotImplemented
        return np.array_equal(self.answers, other.answers) and np.array_equal(
            self.logprobs, other.logprobs, equal_nan=True
        )

    __hash__ = None  # two scores with the same numbers are equal, and arrays can change

    def __repr__(self):
        low, high = self.ci95
        return f"{self.accuracy:.1%} [{low:.1%}, {high:.1%}] (n={self.n})"


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); sensible at 0 % and 100 %, unlike the normal one."""
    centre, width = hits + z * z / 2, z * np.sqrt(hits * (n - hits) / n + z * z / 4)
    return float((centre - width) / (n + z * z)), float((centre + width) / (n + z * z))


def evaluate(lm: LM, examples: Iterable[Example], batch_size: int | str = "auto") -> Score:
    """Score each choice by the log-probability of its text after the prompt; the highest one is the answer.

    Works under `ablate` and the other context managers. What texts share is run once: a prompt for all of its
    choices, and what all prompts begin with (solved questions) for all of them. In float32 the result
    depends on neither that nor `batch_size` by more than rounding, 1e-5; in 16 bits log-probabilities of the
    same text may differ by some tenths of a nat between batches of different shapes: compare scores that were
    made with the same `batch_size`, on the same examples.

    Warns where the tokens of one choice begin another's, such as " 5" and " 58" if digits are tokens: the
    longer one can never be the likelier.

    Args:
        batch_size: "auto": as many texts at a time as suit the processor and fit into the GPU's free memory;
            half as many whenever memory runs out. A number: so many texts, but never a part of an example's
            choices.

    Raises:
        ValueError: no examples; a choice that adds no token to its prompt; a prompt longer than the
            model's context; a `batch_size` that is neither "auto" nor positive.
    """
    examples = list(examples)
    if not examples:
        raise ValueError("no examples to evaluate: the list is empty")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f'batch_size={batch_size!r}: expected "auto" or a positive integer')
    limit = None if batch_size == "auto" else batch_size
    rows = rows_of(lm, examples)
    warn_of_beginnings(rows)
    return Score.of(logprobs_of(lm, rows, limit)[0], examples)


def warn_of_beginnings(rows: list[Row]) -> None:
    """Warn of examples in which the tokens of one choice begin another's: the longer one can never win."""
    found = []
    for index, of in groupby(rows, key=lambda row: row.index):
        texts = [
            (text, row.example.choices[choice])
            for row in of
            for text, (choice, *_) in zip(row.texts, row.reads)
        ]
        # Sorted, a text stands right before the first of those that it begins.
        pairs = pairwise(sorted(texts))
        found += [(index, a, b) for (short, a), (long, b) in pairs if long[: len(short)] == short][:1]
    if found:
        index, short, long = found[0]
        warnings.warn(
            f"example {index}: the tokens of choice {short!r} begin those of {long!r}, which therefore can't "
            f"be the likelier one; so it is in {len(found)} of the examples. End the choices alike, for "
            "example with a newline, or choose others",
            stacklevel=3,
        )


@torch.no_grad()
def logprobs_of(
    lm: LM, rows: list[Row], limit: int | None = None, copies: int = 1, share: bool = True
) -> np.ndarray:
    """Log-probabilities of all choices, float64 [copy, n_examples, n_choices]; NaN where there are fewer.

    Args:
        limit: so many texts at a time, instead of as many as fit.
        copies: every batch runs in so many copies side by side, which hooks may tell apart.
        share: False runs every text whole.
    """
    left, n_choices = rows, max(len(row.example.choices) for row in rows)
    logprobs = np.full((copies, 1 + max(row.index for row in rows), n_choices), np.nan)
    with tqdm(total=logprobs.shape[1], desc="evaluate", unit="example", delay=3, leave=False) as bar:
        while left:
            with halving(lm) if limit is None else nullcontext():
                shared, batches = plan(lm, left, limit, share)
                cache = run(lm, shared, copies=copies, keep=True)[1] if shared else None
                for batch in batches:
                    found = np.full_like(logprobs, np.nan)  # of this batch, all of it or nothing
                    for span, logits in run_batch(lm, batch, cache, copies):
                        read_off(span, logits, found)
                    logprobs = np.where(np.isnan(found), logprobs, found)
                    done = {pick for span in batch for pick in zip(*span.picks[2:].tolist())}
                    left = [row for row in left if (row.index, row.reads[0][0]) not in done]
                    bar.update(len({index for index, _ in done}))
    return logprobs
