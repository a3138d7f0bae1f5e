"""The exact sweep without repeating work: what `sweep_heads` runs for each piece.

Disabling a head of layer l leaves every layer before l as it was, and inside layer l only the output projection and the
MLP change. So one forward pass records, for each layer, the residual stream that enters it and the heads' outputs z.
A piece then starts in the middle of layer l:

    layers 0..l-1   hand their input on                                       nothing computed
    layer l         recorded residual + out_proj(recorded z, head disabled)   its attention or scan is not run again
                    projections behind an RMS norm: the known result, scaled  and what the head's few columns add to it
    layers l+1..    as ever
    last layer      mixed at all positions, all else only where a choice is read off

and several heads go through in one batch. What all prompts begin with (few-shot examples) is run once for each head, and
its keys and values serve all prompts. Layers that are not `x + mixer(norm(x))` (hybrids with two mixers in one layer) are
run whole from their recorded residual; inside `ablate` or another context manager, all layers are.

Memory: residuals and z of all layers are kept, about 2 * n_layers * tokens * d_model numbers, in the machine's memory if
that is more than a quarter of what is free on the GPU; of the layer whose heads have their turn, what its mixer returns and,
in 32 bits, what two projections make, tokens * (d_model + 2 * d_ff); beside them one forward pass over `budget` tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from transformers import DynamicCache

from ga_utils.examples import Example
from ga_utils.heads import Head, replacement_tables
from ga_utils.interrupts import held
from ga_utils.models.lm import LM, Mixer
from ga_utils.scoring import (
    LEAST_TOKENS,
    Batch,
    Behind,
    Row,
    batch_of,
    batches_of,
    common_start,
    read_off,
    tokens_that_fit,
)
from ga_utils.sweeps.partial_forward import Seen, entering, look, passing, reading, repeated, standing_in
from ga_utils.sweeps.shortcuts import adding, at, factor, turned


class ExactSweep:
    """Computes pieces of a sweep: `run(heads)` gives log-probabilities of choices, float64 [head, n_examples, n_choices].

    The heads of a piece lie in one layer; no heads at all is the model with nothing disabled. NaN where an example
    has fewer choices. On one machine, with as much memory free, the same piece gives the same bits each time.
    """

    def __init__(self, lm: LM, rows: list[Row], mode: str = "zero", reference: list[Example] | None = None):
        self.lm, self.rows = lm, rows
        self.mixers, self.last = lm.mixers, lm.n_layers - 1
        self.tables = replacement_tables(lm, self.mixers, mode, reference)
        self.shape = (
            1 + max(row.example for row in rows),
            1 + max(choice for row in rows for choice, _, _ in row.reads),
        )
        self.budget = tokens_that_fit(lm)
        self.layers: list[Seen] = []
        self.batches: list[Batch] = []
        self.baseline = np.full((1, *self.shape), np.nan)
        self.prefix: Batch | None = None

    @torch.no_grad()
    def __call__(self, piece: tuple[Head, ...]) -> np.ndarray:
        return self.halving(self._piece, piece)

    def halving(self, work: Callable, *args):
        """`work(*args)`; whenever memory runs out, all that was recorded goes, and it is tried with half the tokens at once."""
        while True:
            try:
                with held() as self.gate:
                    return work(*args)
            except torch.OutOfMemoryError:
                if self.budget <= LEAST_TOKENS:
                    raise
                self.budget //= 2
                self.batches, self.prefix = [], None
                torch.cuda.empty_cache()

    def record(self, share: bool = True, run: Callable = lambda batch, forward: forward()) -> None:
        """One forward pass over all rows: cut them into batches, and keep what enters each layer.

        Args:
            share: run what all rows begin with only once; if there is such a beginning, pieces want it so.
            run: given a batch and what makes its logits [row, read, vocabulary], returns those; may look on.
        """
        self.layers = look(self.lm, self.rows[0].ids[:2])
        simple = all(seen.norm is not None for seen in self.layers) and {m.kind for m in self.mixers} == {
            "attention"
        }
        common = common_start(self.rows) if simple else 0
        shared = common if share else 0
        host, cache, batches = self._is_large(), None, []
        if shared:
            cache = DynamicCache()
            self.prefix = batch_of([Row(0, self.rows[0].ids[:shared], [])], 0, self.lm.device)
            self._watch(self.prefix, cache, host)
        for batch in batches_of(self.rows, shared, self.budget, self.lm.device):
            again = repeated(cache, len(batch.ids))
            logits = run(batch, lambda: self._watch(batch, again, host))  # noqa: B023  called at once
            read_off(batch, logits, self.baseline)
            batches.append(batch)
        self.batches = batches if shared == common else []

    def _piece(self, piece: tuple[Head, ...]) -> np.ndarray:
        if not self.batches:
            self.record()
        if not piece:
            return self.baseline
        found = np.full((len(piece), *self.shape), np.nan)
        size = max(1, self.budget // max(batch.ids.numel() for batch in self.batches))
        for first in range(0, len(piece), size):
            heads, cache = piece[first : first + size], None
            if self.prefix:
                cache = DynamicCache()
                self._pass(self.prefix, heads, cache)
            for batch in self.batches:
                logits = self._pass(batch, heads, repeated(cache, len(batch.ids)))
                read_off(batch, logits, found[first : first + size])
        return found

    def _pass(self, batch: Batch, heads: tuple[Head, ...], cache) -> torch.Tensor:
        """Logits [head * row, read, vocabulary] with each head disabled in its share of the rows."""
        layer, n = heads[0].layer, len(heads)
        residual, reads = batch.residual[layer].to(self.lm.device), batch.reads.repeat(n, 1)
        short = self.layers[self.last].norm is not None
        with ExitStack() as stack:
            stack.enter_context(passing(self.lm, self.layers[:layer]))
            if self.layers[layer].norm is None:
                for mixer in (mixer for mixer in self.mixers if mixer.layer == layer):
                    stack.enter_context(
                        mixer.on_z(lambda z, mixer=mixer: self._ablated(batch, z, mixer, heads))
                    )
            else:
                self._behind(stack, batch, residual, heads)
            residual = residual.repeat(n, 1, 1)
            stack.enter_context(entering(self.lm.layers[layer], lambda hidden: residual))
            if short and layer < self.last:
                stack.enter_context(reading(self.mixers[-1], self.layers[self.last].norm, reads))
            return self._forward(batch, n, cache, None if short else batch.reads)

    def _behind(
        self, stack: ExitStack, batch: Batch, residual: torch.Tensor, heads: tuple[Head, ...]
    ) -> None:
        """Enter a layer behind its heads: its mixer makes what it made, but for what each disabled head changes."""
        layer = heads[0].layer
        (mixer,) = (mixer for mixer in self.mixers if mixer.layer == layer)
        seen, z, n_tokens = self.layers[layer], batch.z[layer].to(self.lm.device), batch.ids.shape[1]
        if batch.behind is None or batch.behind.layer != layer:
            batch.behind = Behind(layer, mixer.out_proj(z))
            if seen.second and layer < self.last:
                total = residual + batch.behind.mixed
                made = seen.second(total)
                batch.behind.factor = factor(seen.second, total, made).reshape(-1, 1)
                batch.behind.projected = {linear: linear(made).flatten(0, 1) for linear in seen.linears}
        columns = [mixer.columns(head.head) for head in heads]
        instead = self._instead(batch, mixer)
        instead = instead[batch.reads] if layer == self.last else instead  # z is no longer there
        change = torch.stack([instead[..., c] - z[..., c] for c in columns])  # [head, row, pos, d_head]
        out = torch.stack([mixer.out_proj.weight[:, c] for c in columns])  # [head, d_model, d_head]
        mixed = batch.behind.mixed
        if seen.second and layer < self.last:
            stack.enter_context(
                adding(seen.second, batch.behind.factor, batch.behind.projected, change.flatten(1, 2), out)
            )
        output = (
            torch.baddbmm(mixed.flatten(0, 1), change.flatten(1, 2), out.mT)
            .unflatten(1, mixed.shape[:2])
            .flatten(0, 1)
        )
        stack.enter_context(standing_in(mixer, seen, output, n_tokens))

    def _forward(self, batch: Batch, n: int, cache, reads: torch.Tensor | None) -> torch.Tensor:
        """Hugging Face's forward on n copies of a batch; `reads`: make logits there, if not at all positions left."""
        keep = 0 if reads is None else reads.unique()
        with turned(self.lm.model.get_output_embeddings()), self.gate.opened():
            logits = self.lm.model(
                input_ids=batch.ids.repeat(n, 1),
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=keep,
                attention_mask=None if batch.mask is None else batch.mask.repeat(n, 1),
            ).logits
        return logits if reads is None else at(logits, torch.searchsorted(keep, reads).repeat(n, 1))

    def _instead(self, batch: Batch, mixer: Mixer) -> torch.Tensor:
        """What stands in for z in a batch: [pos, n_heads * d_head]."""
        table = self.tables[self.mixers.index(mixer)]
        return table[(batch.start + torch.arange(batch.ids.shape[1], device=table.device)) % len(table)]

    def _ablated(self, batch: Batch, z: torch.Tensor, mixer: Mixer, heads: tuple[Head, ...]) -> torch.Tensor:
        """z [head * row, pos, n_heads * d_head] with each head's columns replaced in its share of the rows."""
        z, rows, instead = z.clone(), len(z) // len(heads), self._instead(batch, mixer)
        for i, head in enumerate(heads):
            if head.head in mixer.heads:
                columns = mixer.columns(head.head)
                z[i * rows : (i + 1) * rows, :, columns] = instead[:, columns]
        return z

    def _watch(self, batch: Batch, cache, host: bool) -> torch.Tensor:
        """Logits [row, read, vocabulary] of a batch that notes what enters its layers."""
        device = torch.device("cpu") if host else self.lm.device
        norm = self.layers[self.last].norm
        with ExitStack() as stack:
            if norm is not None:
                stack.enter_context(reading(self.mixers[-1], norm, batch.reads))
            for i, block in enumerate(self.lm.layers):
                stack.enter_context(
                    entering(block, lambda x, i=i: batch.residual.update({i: x.detach().to(device)}))
                )
            for mixer in self.mixers:
                if self.layers[mixer.layer].norm is not None:
                    keep = lambda z, i=mixer.layer: batch.z.update({i: z.detach().to(device)})  # noqa: E731
                    stack.enter_context(entering(mixer.out_proj, keep))
            return self._forward(batch, 1, cache, batch.reads if norm is None else None)

    def _is_large(self) -> bool:
        """Whether what is recorded would take more than a quarter of the GPU's free memory."""
        if self.lm.device.type == "cpu":
            return False
        weights = [mixer.out_proj.weight for mixer in self.mixers]
        numbers = sum(len(row.ids) for row in self.rows) * sum(sum(w.shape) for w in weights)
        return numbers * weights[0].element_size() > torch.cuda.mem_get_info(self.lm.device)[0] / 4
