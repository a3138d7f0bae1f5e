"""The exact sweep: what `sweep_heads` runs for each piece of its work.

Record what enters every layer; enter at the layer of the head; put many heads into one batch; make logits
only where an answer is read.

              recorded once                  for each batch of heads of layer l
    layer 0     x0  ──────────┐
    layer 1     x1            │                (not run)
      ...                     │
    layer l     xl  ──────────┼──────────►   xl  xl  xl ...   one copy of the batch for each head,
    layer l+1                 │               │   │   │       the copy's own head disabled in it
      ...                     ▼               ▼   ▼   ▼
    logits    where answers are read        where answers are read

Where a layer is given more than the residual stream, passes begin at the first layer.

What texts share is run once, as in `evaluate`: a prompt for all its choices, few-shot examples for all
prompts.

In 16 bits what a row gives depends on how many others run beside it, by up to some tenths of a nat, which is
more than many a head costs. There the baseline and all heads run in batches of the same shape, padded with
copies in which nothing is disabled, and the last layer runs whole.

Memory: the residual stream at every layer, n_layers * tokens * d_model numbers, in the machine's memory if
that is more than a quarter of what is free on the GPU; beside it one forward pass within `models.budget`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch

from ga_utils.examples import Example
from ga_utils.heads import Head, replacement_tables, rows_of_table
from ga_utils.models.batches import Row, plan, read_off, span_of
from ga_utils.models.budget import budget, fits, halving, too_large_to_keep
from ga_utils.models.continuation import PROBE, Span, run
from ga_utils.models.lm import LM, Mixer
from ga_utils.segments import Places, Where
from ga_utils.sweeps.partial_forward import (
    Entrance,
    entering,
    in_passes,
    norm_before_last_mixer,
    reading_only,
    recording,
)


class ExactSweep:
    """Computes pieces of a sweep: `sweep(heads)` gives log-probabilities of choices, float64 [head,
    n_examples, n_choices].

    The heads of a piece lie in one layer; no heads at all is the model with nothing disabled. NaN where an
    example has fewer choices. On one machine, with as much memory free, the same piece gives the same bits
    each time.
    """

    def __init__(
        self,
        lm: LM,
        rows: list[Row],
        mode: str = "zero",
        reference: list[Example] | None = None,
        at: Where | None = None,
        but: Where | None = None,
    ):
        self.lm, self.rows, self.mixers, self.places = lm, rows, lm.mixers, Places(lm, at, but)
        self.tables = replacement_tables(lm, self.mixers, mode, reference)
        self.shape = 1 + max(row.index for row in rows), max(len(row.example.choices) for row in rows)
        self.returns = [0] * lm.n_layers  # how each layer returns its output, see `partial_forward.returned`
        # A few tokens are enough to find out how the last layer is built; None: it runs whole.
        few = rows[0].ids[:PROBE]
        probe = Row(rows[0].index, rows[0].example, few, [(0, [len(few) - 1], [0])])
        self.same_shapes = lm.model.dtype.itemsize == 2
        self.copies = 1  # of the texts, in each pass that records; and in all others, if shapes are the same
        self.norm = None if self.same_shapes else norm_before_last_mixer(lm, span_of(lm, [probe], 0, None))
        self.enters = Entrance(lm, in_passes(lm, probe))
        self.shared: Span | None = None
        self.batches: list[list[Span]] = []
        self.baseline = np.full((1, *self.shape), np.nan)

    @torch.no_grad()
    def __call__(self, piece: tuple[Head, ...]) -> np.ndarray:
        return self.in_memory(lambda: self._piece(piece))

    def in_memory(self, work: Callable):
        """`work()`; when memory runs out, all that was recorded goes, and it is tried with half the tokens
        at once.
        """
        while True:
            with halving(self.lm):
                return work()
            self.batches = []

    def record(self, share: bool = True, forward: Callable | None = None) -> None:
        """One pass over all texts that keeps what enters each layer, and reads off the baseline.

        Args:
            share: False runs all texts whole. What that records is kept only if there was nothing to share.
            forward: runs a span as `continuation.run` does, and may look at more. What that records is not
                kept where all passes must have the same shape.
        """
        shared, batches = self._plan(share)
        self.copies, cache = 1, None
        if self.same_shapes and not forward:
            spans = [span for batch in [[shared] if shared else [], *batches] for span in batch]
            tokens = sum(len(row.ids) for row in self.rows)
            most = min(self.lm.n_heads, max(1, budget(self.lm).tokens // tokens))
            self.copies = copies_that_fit(self.lm, spans, most)
        keep_all, forward = (
            forward is None or not self.same_shapes,
            forward or partial(run, copies=self.copies),
        )
        if shared:
            with self._recording(shared):
                cache = run(self.lm, shared, copies=self.copies, keep=True)[1]
        for batch in batches:
            ours = cache
            for span in batch:
                with self._recording(span):
                    logits, ours = forward(self.lm, span, ours, keep=span is not batch[-1])
                read_off(span, logits[:1], self.baseline)
        if keep_all and (share or not _shares(self._plan())):
            self.shared, self.batches = shared, batches

    def _plan(self, share: bool = True) -> tuple[Span | None, list[list[Span]]]:
        with self.lm.edited("sweep") as edit:
            self.places.watch(edit)
            return plan(self.lm, self.rows, share=share)

    def _recording(self, span: Span):
        device = torch.device("cpu") if self._is_large() else self.lm.device
        return recording(self.lm, span.residual, self.returns, device, self.copies)

    def _is_large(self) -> bool:
        """Whether what is recorded would take more than a quarter of the GPU's free memory."""
        width = self.lm.model.get_input_embeddings().weight.shape[-1] * self.lm.model.dtype.itemsize
        size = sum(len(row.ids) for row in self.rows) * self.lm.n_layers * width
        return too_large_to_keep(self.lm, size)

    def _piece(self, piece: tuple[Head, ...]) -> np.ndarray:
        if not self.batches:
            self.baseline = np.full((1, *self.shape), np.nan)
            self.record()
        if not piece:
            return self.baseline
        found = np.full((len(piece), *self.shape), np.nan)
        spans = [span for batch in [[self.shared] if self.shared else [], *self.batches] for span in batch]
        size = self.copies if self.same_shapes else copies_that_fit(self.lm, spans, len(piece))
        for first in range(0, len(piece), size):
            heads = piece[first : first + size]
            copies = (*heads, *[None] * (size - len(heads))) if self.same_shapes else heads
            cache = self._run(self.shared, copies, None, keep=True)[1] if self.shared else None
            for batch in self.batches:
                ours = cache
                for span in batch:
                    logits, ours = self._run(span, copies, ours, keep=span is not batch[-1])
                    read_off(span, logits[: len(heads)], found[first : first + size])
        return found

    def _run(self, span: Span, heads: tuple[Head | None, ...], cache, keep: bool):
        """`continuation.run` with a copy of the span for each head, which is disabled there. None: in this
        copy nothing is. The first is a head.
        """
        layer = heads[0].layer
        with ExitStack() as stack:
            edit = stack.enter_context(self.lm.edited("sweep"))
            for mixer, table in zip(self.mixers, self.tables):
                if mixer.layer == layer:
                    mixer.hook_z(edit, _disabling(mixer, heads, table, span.start, self.places))
            if self.enters(layer):
                residual = span.residual[layer].to(self.lm.device).repeat(len(heads), 1, 1)
                stack.enter_context(entering(self.lm, layer, residual, self.returns))
            if self.norm is not None:
                stack.enter_context(reading_only(self.lm, self.norm, span, len(heads)))
            return run(self.lm, span, cache, len(heads), keep, shortened=self.norm is not None)


def _disabling(mixer: Mixer, heads: tuple[Head | None, ...], table: torch.Tensor, start: int, places: Places):
    """A hook on z [head * row, pos, n_heads * d_head], whose first position is number `start`, that replaces
    each head's columns in its own copy of the rows by those of a replacement table, at the places given."""

    def disable(z):
        z, n_rows, here = z.clone(), len(z) // len(heads), places.mask(z)
        instead = rows_of_table(table, start, z)
        for copy, head in enumerate(heads):
            if head and head.head in mixer.heads:
                rows, columns = slice(copy * n_rows, (copy + 1) * n_rows), mixer.columns(head.head)
                mask = here if len(here) == 1 else here[rows]
                z[rows, :, columns] = torch.where(mask, instead[:, columns], z[rows, :, columns])
        return z

    return disable


def _shares(planned: tuple[Span | None, list[list[Span]]]) -> bool:
    """Whether a plan runs anything once for several texts."""
    shared, batches = planned
    return shared is not None or any(len(batch) > 1 for batch in batches)


def copies_that_fit(lm: LM, spans: list[Span], most: int) -> int:
    """How many copies of each of these spans may go through the model together: from 1 to `most`."""
    copies = 1
    while copies < most and all(
        fits(
            lm,
            (copies + 1) * len(span.ids),
            span.ids.shape[1],
            (copies + 1) * span.reads.shape[1],
            span.start,
        )
        for span in spans
    ):
        copies += 1
    return copies
