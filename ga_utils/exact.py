"""The exact sweep without repeating work: what `sweep_heads` runs for each piece.

Disabling a head of layer l leaves every layer before l as it was, and inside layer l only the output projection and the
MLP change. So one forward pass records, for each layer, the residual stream that enters it and the heads' outputs z.
A piece then starts in the middle of layer l:

    layers 0..l-1   hand their input on                                       nothing computed
    layer l         recorded residual + out_proj(recorded z, head disabled)   its attention or scan is not run again
    layers l+1..    as ever
    last layer      mixed at all positions, all else only where a choice is read off

and several heads go through in one batch. What all prompts begin with (few-shot examples) is run once for each head, and
its keys and values serve all prompts. Layers that are not `x + mixer(norm(x))` (hybrids with two mixers in one layer) are
run whole from their recorded residual; inside `ablate` or another context manager, all layers are.

Memory: residuals and z of all layers are kept, about 2 * n_layers * tokens * d_model numbers, in the machine's memory if
that is more than a quarter of what is free on the GPU; beside them one forward pass over `budget` tokens.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache

from ga_utils.heads import Head, replacement_tables
from ga_utils.items import Example
from ga_utils.models import LM, Mixer
from ga_utils.resume import Seen, at, entering, look, passing, reading, repeated, standing_in
from ga_utils.scoring import Row, token_rows

CPU_TOKENS = 1024  # of a forward pass; with more, activations leave the caches (4,096: a third slower on two cores)
GPU_TOKENS = 1 << 15  # halved whenever memory runs out
LEAST_TOKENS = 256
SHARED = 16  # tokens; a shorter common beginning is not worth a cache


@dataclass
class Segment:
    """A batch of token rows, and what the recording pass saw in it.

    ids: [row, pos]. mask: [row, start + pos], or None without padding. reads: [row, read], positions in `ids` at which
    choices are read off. start: tokens before the first one here. picks: row, read, token, example and choice of each
    log-probability. residual: layer -> [row, pos, d_model] entering it. z: layer -> [row, pos, n_heads * d_head].
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    reads: torch.Tensor
    start: int
    picks: torch.Tensor
    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    z: dict[int, torch.Tensor] = field(default_factory=dict)


def tokens_at_once(lm: LM) -> int:
    """How many tokens a forward pass of a sweep begins with on this device."""
    return CPU_TOKENS if lm.device.type == "cpu" else GPU_TOKENS


def segment_of(rows: list[Row], start: int, device: torch.device) -> Segment:
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
    return Segment(ids[:, start:].to(device), padded, reads.to(device), start, torch.tensor(picks).reshape(-1, 5).T)


def common_start(rows: list[Row]) -> int:
    """How many tokens all rows begin with, before anything is read off; 0 if too few to matter."""
    first, last = (row.ids for row in (min(rows, key=lambda r: r.ids), max(rows, key=lambda r: r.ids)))
    same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    same = min(same, *(p for row in rows for _, where, _ in row.reads for p in where))
    return same if same >= SHARED and len(rows) > 1 else 0


def read_off(segment: Segment, logits: torch.Tensor, found: np.ndarray) -> None:
    """Write the log-probabilities of a segment's choices into `found` [head, n_examples, n_choices]."""
    row, read, token, example, choice = segment.picks
    logp = logits.float().log_softmax(-1).unflatten(0, (len(found), -1))
    each = logp[:, row.to(logp.device), read.to(logp.device), token.to(logp.device)].double().cpu().numpy()
    for sums, values in zip(found, each):
        sums[example, choice] = 0
        np.add.at(sums, (example.numpy(), choice.numpy()), values)


class ExactSweep:
    """Computes pieces of a sweep: `run(heads)` gives log-probabilities of choices, float64 [head, n_examples, n_choices].

    The heads of a piece lie in one layer; no heads at all is the model with nothing disabled. NaN where an example
    has fewer choices. On one machine the same piece gives the same bits each time.
    """

    def __init__(self, lm: LM, examples: list[Example], mode: str = "zero", reference: list[Example] | None = None):
        self.lm = lm
        self.rows = [row for i, example in enumerate(examples) for row in token_rows(lm, i, example)]
        self.rows.sort(key=lambda row: -len(row.ids))
        self.mixers, self.last = lm.mixers, lm.n_layers - 1
        self.tables = replacement_tables(lm, self.mixers, mode, reference)
        self.shape = len(examples), max(len(example.choices) for example in examples)
        self.budget = tokens_at_once(lm)
        self.layers: list[Seen] = []
        self.segments: list[Segment] = []
        self.baseline = np.full((1, *self.shape), np.nan)
        self.prefix: Segment | None = None

    @torch.no_grad()
    def __call__(self, piece: tuple[Head, ...]) -> np.ndarray:
        while True:
            try:
                return self._piece(piece)
            except torch.OutOfMemoryError:
                if self.budget <= LEAST_TOKENS:
                    raise
                self.budget //= 2
                self.segments, self.prefix = [], None
                torch.cuda.empty_cache()

    def _piece(self, piece: tuple[Head, ...]) -> np.ndarray:
        if not self.segments:
            self._record()
        if not piece:
            return self.baseline
        found = np.full((len(piece), *self.shape), np.nan)
        size = max(1, self.budget // max(segment.ids.numel() for segment in self.segments))
        for first in range(0, len(piece), size):
            heads, cache = piece[first : first + size], None
            if self.prefix:
                cache = DynamicCache()
                self._pass(self.prefix, heads, cache)
            for segment in self.segments:
                logits = self._pass(segment, heads, repeated(cache, len(segment.ids)))
                read_off(segment, logits, found[first : first + size])
        return found

    def _pass(self, segment: Segment, heads: tuple[Head, ...], cache) -> torch.Tensor:
        """Logits [head * row, read, vocabulary] with each head disabled in its share of the rows."""
        layer, n = heads[0].layer, len(heads)
        residual = segment.residual[layer].to(self.lm.device).repeat(n, 1, 1)
        reads = segment.reads.repeat(n, 1)
        ours = [mixer for mixer in self.mixers if mixer.layer == layer]
        with ExitStack() as stack:
            stack.enter_context(passing(self.lm, self.layers[:layer]))
            if self.layers[layer].norm is None:
                for mixer in ours:
                    stack.enter_context(mixer.on_z(lambda z, mixer=mixer: self._ablated(segment, z, mixer, heads)))
            else:
                z = self._ablated(segment, segment.z[layer].to(self.lm.device).repeat(n, 1, 1), ours[0], heads)
                if layer == self.last:
                    residual, z = at(residual, reads), at(z, reads)
                output, n_tokens = ours[0].out_proj(z), segment.ids.shape[1]
                stack.enter_context(standing_in(ours[0], self.layers[layer], output, n_tokens))
            stack.enter_context(entering(self.lm.layers[layer], lambda hidden: residual))
            short = self.layers[self.last].norm is not None
            if short and layer < self.last:
                stack.enter_context(reading(self.mixers[-1], self.layers[self.last].norm, reads))
            return self._forward(segment, n, cache, None if short else segment.reads)

    def _forward(self, segment: Segment, n: int, cache, reads: torch.Tensor | None) -> torch.Tensor:
        """Hugging Face's forward on n copies of a segment; `reads`: make logits there, if not at all positions left."""
        keep = 0 if reads is None else reads.unique()
        logits = self.lm.model(
            input_ids=segment.ids.repeat(n, 1), past_key_values=cache, use_cache=cache is not None, logits_to_keep=keep,
            attention_mask=None if segment.mask is None else segment.mask.repeat(n, 1),
        ).logits  # fmt: skip
        return logits if reads is None else at(logits, torch.searchsorted(keep, reads).repeat(n, 1))

    def _ablated(self, segment: Segment, z: torch.Tensor, mixer: Mixer, heads: tuple[Head, ...]) -> torch.Tensor:
        """z [head * row, pos, n_heads * d_head] with each head's columns replaced in its share of the rows."""
        table = self.tables[self.mixers.index(mixer)]
        instead = table[(segment.start + torch.arange(z.shape[1], device=z.device)) % len(table)]
        z, rows = z.clone(), len(z) // len(heads)
        for i, head in enumerate(heads):
            if head.head in mixer.heads:
                columns = mixer.columns(head.head)
                z[i * rows : (i + 1) * rows, :, columns] = instead[:, columns]
        return z

    def _record(self) -> None:
        """One forward pass over all rows: cut them into segments, and keep what enters each layer."""
        self.layers = look(self.lm, self.rows[0].ids)
        simple = all(seen.norm is not None for seen in self.layers) and {m.kind for m in self.mixers} == {"attention"}
        shared = common_start(self.rows) if simple else 0
        host = self._is_large()
        cache = None
        if shared:
            cache = DynamicCache()
            self.prefix = segment_of([Row(0, self.rows[0].ids[:shared], [])], 0, self.lm.device)
            self._watch(self.prefix, cache, host)
        segments, first = [], 0
        while first < len(self.rows):
            count = max(1, self.budget // (len(self.rows[first].ids) - shared))
            segments.append(segment_of(self.rows[first : first + count], shared, self.lm.device))
            logits = self._watch(segments[-1], repeated(cache, len(segments[-1].ids)), host)
            read_off(segments[-1], logits, self.baseline)
            first += count
        self.segments = segments

    def _watch(self, segment: Segment, cache, host: bool) -> torch.Tensor:
        """Logits [row, read, vocabulary] of a segment that notes what enters its layers."""
        device = torch.device("cpu") if host else self.lm.device
        with ExitStack() as stack:
            for i, block in enumerate(self.lm.layers):
                stack.enter_context(entering(block, lambda hidden, i=i: segment.residual.__setitem__(i, hidden.to(device))))
            for mixer in self.mixers:
                if self.layers[mixer.layer].norm is not None:
                    keep = lambda z, i=mixer.layer: segment.z.__setitem__(i, z.to(device))  # noqa: E731
                    stack.enter_context(entering(mixer.out_proj, keep))
            return self._forward(segment, 1, cache, segment.reads)

    def _is_large(self) -> bool:
        """Whether what is recorded would take more than a quarter of the GPU's free memory."""
        if self.lm.device.type == "cpu":
            return False
        weights = [mixer.out_proj.weight for mixer in self.mixers]
        numbers = sum(len(row.ids) for row in self.rows) * sum(sum(w.shape) for w in weights)
        return numbers * weights[0].element_size() > torch.cuda.mem_get_info(self.lm.device)[0] / 4
