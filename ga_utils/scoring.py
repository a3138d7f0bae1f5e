"""`evaluate`: how often a model gives its right choice the highest log-probability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ga_utils.examples import Example
from ga_utils.models.lm import LM

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768}
EXAMPLES_AT_ONCE = 256  # to the tokenizer, which is twice as fast on many texts as on one after the other


@dataclass(frozen=True)
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
    def of(cls, logprobs: np.ndarray, answers: np.ndarray) -> Score:
        """The score that these log-probabilities give; raises a ValueError that names an example without any."""
        broken = np.flatnonzero(np.isnan(logprobs).all(1))
        if len(broken):
            raise ValueError(
                f"the model gives no numbers (NaN) on example {broken[0]}: did 16-bit activations overflow?"
            )
        return cls(np.nanargmax(logprobs, axis=1) == answers, logprobs, answers)

    @property
    def n(self) -> int:
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Share of examples answered rightly, 0 to 1."""
        return float(self.correct.mean())

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

    def __repr__(self):
        low, high = self.ci95
        return f"{self.accuracy:.1%} [{low:.1%}, {high:.1%}] (n={self.n})"


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); sensible at 0 % and 100 %, unlike the normal one."""
    centre, width = hits + z * z / 2, z * np.sqrt(hits * (n - hits) / n + z * z / 4)
    return float((centre - width) / (n + z * z)), float((centre + width) / (n + z * z))


@dataclass(frozen=True)
class Row:
    """One token sequence to run, and the log-probabilities to read off it.

    reads: (choice, positions, tokens): at each position, the log-probability of that token coming next.
    """

    example: int
    ids: list[int]
    reads: list[tuple[int, list[int], list[int]]]


@torch.no_grad()
def evaluate(lm: LM, examples: list[Example], batch_size: int | str = "auto") -> Score:
    """Score each choice by the log-probability of its text after the prompt; the highest one is the answer.

    Works under `ablate` and the other context managers. The result does not depend on `batch_size` or on
    the tokenizer's padding side: rows are padded on the right here, where a causal model cannot see it.

    Raises:
        ValueError: no examples; a choice that adds no token to its prompt; a prompt longer than the
            model's context; a `batch_size` that is neither "auto" nor positive.
    """
    examples = list(examples)
    if not examples:
        raise ValueError("no examples to evaluate: the list is empty")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f'batch_size={batch_size!r}: expected "auto" or a positive integer')
    # Longest first: little padding, and memory runs out early if at all.
    rows = sorted(rows_of(lm, examples), key=lambda row: -len(row.ids))
    logprobs = np.full((len(examples), max(len(e.choices) for e in examples)), np.nan)
    bar = tqdm(total=len(rows), desc="evaluate", unit="row", delay=3, leave=False)
    for batch in _batches(rows, batch_size, lm.device.type):
        _score_batch(lm, batch, logprobs)
        bar.update(len(batch))
    bar.close()
    return Score.of(logprobs, np.array([example.answer for example in examples]))


def rows_of(lm: LM, examples: list[Example]) -> list[Row]:
    """All token rows of all examples, in order."""
    rows = []
    for first in range(0, len(examples), EXAMPLES_AT_ONCE):
        some = examples[first : first + EXAMPLES_AT_ONCE]
        # Tokenizing the whole text and cutting the prompt off is how lm-evaluation-harness does it:
        # a token that spans the boundary then counts as part of the choice.
        texts = list(
            dict.fromkeys(
                text for e in some for before, choice in e.texts for text in (before, before + choice)
            )
        )
        tokens = dict(zip(texts, lm.tokenizer(texts).input_ids))
        rows += [row for i, example in enumerate(some, first) for row in _token_rows(lm, i, example, tokens)]
    return rows


def _token_rows(lm: LM, index: int, example: Example, tokens: dict[str, list[int]]) -> list[Row]:
    """One row for the whole example if every choice is a single token, else one row for each choice."""
    pairs: list[
        tuple[list[int], list[int]]
    ] = []  # tokens read before a choice, and those that the choice adds
    for before, choice in example.texts:
        prompt = tokens[before]
        if not prompt:
            raise ValueError(
                f"example {index} has an empty prompt, and the tokenizer begins texts with no token of its own"
            )
        added = tokens[before + choice][len(prompt) :]
        if not added:
            raise ValueError(
                f"choice {choice!r} tokenizes to nothing after the prompt ending in {before[-20:]!r}"
            )
        if (prompt, added) in pairs:
            raise ValueError(
                f"choice {choice!r} has the same tokens as another one after the prompt: it can't be told apart (does the "
                "tokenizer end every text with the same token?)"
            )
        pairs.append((prompt, added))
    # The last token is only predicted, never read.
    longest = max(len(prompt) + len(added) - 1 for prompt, added in pairs)
    if longest > lm.max_length:
        raise ValueError(
            f"example {index} needs {longest} tokens, but {lm.name} has a context of {lm.max_length}"
        )
    if len({before for before, _ in example.texts}) == 1 and all(len(added) == 1 for _, added in pairs):
        return [Row(index, prompt, [(c, [len(prompt) - 1], added) for c, (_, added) in enumerate(pairs)])]
    return [
        Row(
            index,
            prompt + added[:-1],
            [(c, list(range(len(prompt) - 1, len(prompt) + len(added) - 1)), added)],
        )
        for c, (prompt, added) in enumerate(pairs)
    ]


def _batches(rows: list[Row], batch_size: int | str, device: str) -> Iterator[list[Row]]:
    start = 0
    while start < len(rows):
        size = (
            batch_size
            if batch_size != "auto"
            else max(1, TOKENS_PER_BATCH.get(device, 8192) // len(rows[start].ids))
        )
        yield rows[start : start + size]
        start += size


def _score_batch(lm: LM, batch: list[Row], logprobs: np.ndarray) -> None:
    """Run one right-padded batch and write its choices' log-probabilities into `logprobs`."""
    width = len(batch[0].ids)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(batch):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
    # Logits are made only for the positions that some row reads: with a vocabulary of 128,000 they are the largest tensor.
    keep = sorted({position for row in batch for _, positions, _ in row.reads for position in positions})
    where = {position: k for k, position in enumerate(keep)}
    logits = lm.model(
        input_ids=ids.to(lm.device),
        attention_mask=mask.to(lm.device),
        use_cache=False,
        logits_to_keep=torch.tensor(keep, device=lm.device),
    ).logits  # [row, kept position, vocabulary]
    logp = logits.float().log_softmax(-1).cpu()
    for i, row in enumerate(batch):
        for choice, positions, tokens in row.reads:
            logprobs[row.example, choice] = logp[i, [where[p] for p in positions], tokens].sum().item()


CPU_TOKENS = (
    1024  # of a forward pass; with more, activations leave the caches (4,096: a third slower on two cores)
)
GPU_TOKENS = 1 << 15  # of a forward pass, where memory allows
LEAST_TOKENS = 256  # of a forward pass: where halving ends
SHARED = 16  # tokens; a shorter common beginning is not worth a cache


@dataclass
class Behind:
    """What a batch's tokens are just behind the heads of one layer, with nothing disabled.

    mixed: what the mixer returns, [row, pos, d_model]. factor, projected: see `shortcuts.adding`.
    """

    layer: int
    mixed: torch.Tensor
    factor: torch.Tensor | None = None
    projected: dict[nn.Linear, torch.Tensor] = field(default_factory=dict)


@dataclass
class Batch:
    """A batch of token rows, and what the recording pass saw in it.

    ids: [row, pos]. mask: [row, start + pos], or None without padding. reads: [row, read], positions in `ids` at which
    choices are read off. start: tokens before the first one here. picks: row, read, token, example and choice of each
    log-probability. residual: layer -> [row, pos, d_model] entering it. z: layer -> [row, pos, n_heads * d_head].
    behind: of the layer whose heads have their turn.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    reads: torch.Tensor
    start: int
    picks: torch.Tensor
    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    z: dict[int, torch.Tensor] = field(default_factory=dict)
    behind: Behind | None = None


def tokens_at_once(lm: LM) -> int:
    """How many tokens of a sweep go through the model together on such a device, if memory allows."""
    return CPU_TOKENS if lm.device.type == "cpu" else GPU_TOKENS


def tokens_that_fit(lm: LM) -> int:
    """The same, halved until what two layers' projections make of them fits into half of the GPU's free memory.

    A guess, to begin with: whenever memory runs out nevertheless, the sweep halves again.
    """
    tokens = tokens_at_once(lm)
    if lm.device.type == "cpu":
        return tokens
    linears = [module for module in lm.layers[0].modules() if isinstance(module, nn.Linear)]
    each = 2 * sum(linear.out_features * linear.weight.element_size() for linear in linears)  # bytes
    free = torch.cuda.mem_get_info(lm.device)[0]
    while tokens > LEAST_TOKENS and tokens * each > free / 2:
        tokens //= 2
    return tokens


def batch_of(rows: list[Row], start: int, device: torch.device) -> Batch:
    """Right-pad rows, without their first `start` tokens, into a batch."""
    width = max(len(row.ids) for row in rows)
    ids, mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    positions = [sorted({p for _, where, _ in row.reads for p in where}) for row in rows]
    reads = torch.zeros(
        len(rows), max(map(len, positions)), dtype=torch.long
    )  # rows that read less read position 0, too
    picks = []
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        reads[i, : len(positions[i])] = torch.tensor([p - start for p in positions[i]])
        picks += [
            (i, positions[i].index(p), token, row.example, choice)
            for choice, where, tokens in row.reads
            for p, token in zip(where, tokens)
        ]
    padded = None if mask.all() else mask.to(device)
    return Batch(
        ids[:, start:].to(device), padded, reads.to(device), start, torch.tensor(picks).reshape(-1, 5).T
    )


def batches_of(rows: list[Row], start: int, budget: int, device: torch.device) -> Iterator[Batch]:
    """Batches of at most `budget` tokens, the longest examples first; the rows of an example are never parted."""
    of = [list(rows) for _, rows in groupby(rows, key=lambda row: row.example)]
    of.sort(key=lambda rows: -max(len(row.ids) for row in rows))
    batch, width = [], 0
    for rows in of:
        width = width or max(len(row.ids) for row in rows) - start
        if batch and (len(batch) + len(rows)) * width > budget:
            yield batch_of(batch, start, device)
            batch, width = [], max(len(row.ids) for row in rows) - start
        batch += rows
    yield batch_of(batch, start, device)


def common_start(rows: list[Row]) -> int:
    """How many tokens all rows begin with, before anything is read off; 0 if too few to matter."""
    first, last = (row.ids for row in (min(rows, key=lambda r: r.ids), max(rows, key=lambda r: r.ids)))
    same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    same = min(same, *(p for row in rows for _, where, _ in row.reads for p in where))
    return same if same >= SHARED and len(rows) > 1 else 0


def read_off(batch: Batch, logits: torch.Tensor, found: np.ndarray) -> None:
    """Write the log-probabilities of a batch's choices into `found` [head, n_examples, n_choices]."""
    row, read, token, example, choice = batch.picks
    logp = logits.float().log_softmax(-1).unflatten(0, (len(found), -1))
    each = logp[:, row.to(logp.device), read.to(logp.device), token.to(logp.device)].double().cpu().numpy()
    for sums, values in zip(found, each):
        sums[example, choice] = 0
        np.add.at(sums, (example.numpy(), choice.numpy()), values)
