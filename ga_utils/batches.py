"""The token rows of a sweep in batches, what a forward pass noted of them, and reading answers off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import nn

from ga_utils.models import LM
from ga_utils.scoring import Row

CPU_TOKENS = 1024  # of a forward pass; with more, activations leave the caches (4,096: a third slower on two cores)
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
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    positions = [sorted({p for _, where, _ in row.reads for p in where}) for row in rows]
    reads = torch.zeros(len(rows), max(map(len, positions)), dtype=torch.long)  # rows that read less read position 0, too
    picks = []
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        reads[i, : len(positions[i])] = torch.tensor([p - start for p in positions[i]])
        picks += [(i, positions[i].index(p), token, row.example, choice)
                  for choice, where, tokens in row.reads for p, token in zip(where, tokens)]  # fmt: skip
    padded = None if mask.all() else mask.to(device)
    return Batch(ids[:, start:].to(device), padded, reads.to(device), start, torch.tensor(picks).reshape(-1, 5).T)


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
