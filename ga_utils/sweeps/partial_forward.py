"""A forward pass that begins in the middle of a model, and in its last layer goes on only where answers are
read.

Hugging Face's own forward runs; hooks hand it what it need not compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers import Cache

from ga_utils.models.batches import Row, span_of, steps
from ga_utils.models.continuation import Span, how_to_continue, run
from ga_utils.models.lm import LM


def returned(output) -> int:
    """The length of the tuple that a layer returns; 0 for a bare tensor."""
    return len(output) if isinstance(output, tuple) else 0


@contextmanager
def entering(lm: LM, layer: int, residual: torch.Tensor, returns: list[int]) -> Iterator[None]:
    """The model is entered at a layer, with the residual stream that an earlier pass has recorded there.

    Args:
        residual: [row, pos, d_model].
        returns: what `returned` gives for each layer.
    """
    hidden_layers: list = []  # of the cache, while others stand in for them

    def enter(module, args, kwargs):
        return ((residual, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": residual})

    def lend(module, args, kwargs):
        cache = kwargs.get("past_key_values")
        if isinstance(cache, Cache):
            hidden_layers[:] = cache.layers[:layer]
            cache.layers[:layer] = [_alike(cache, i, layer) for i in range(min(layer, len(cache.layers)))]

    def give_back(module, args, kwargs, output):
        cache = kwargs.get("past_key_values")
        if isinstance(cache, Cache):
            cache.layers[: len(hidden_layers)] = hidden_layers

    with lm.edited("sweep") as edit:
        for skipped, n in zip(lm.layers[:layer], returns):
            edit.swap(skipped, "forward", _hand_on(n))
        edit.hook(lm.layers[layer].register_forward_pre_hook, enter, with_kwargs=True)
        # Hugging Face tells from a cache's first layer how many tokens came before. The skipped layers have
        # read none, so a layer that has lends them its keys for as long as the pass runs.
        edit.hook(lm.model.register_forward_pre_hook, lend, with_kwargs=True)
        edit.hook(lm.model.register_forward_hook, give_back, with_kwargs=True, always_call=True)
        yield


def _hand_on(returns: int):
    """A layer's forward that returns its input, in the form in which the layer returns its output."""

    def forward(hidden_states, *args, **kwargs):
        return (hidden_states, *[None] * (returns - 1)) if returns else hidden_states

    return forward


def _alike(cache: Cache, i: int, first: int):
    """The first layer of a cache, from `first` on, of the same kind as layer i; layer i itself if there is
    none.
    """
    return next(
        (layer for layer in cache.layers[first:] if type(layer) is type(cache.layers[i])), cache.layers[i]
    )


def in_passes(lm: LM, row: Row) -> list[Span]:
    """A text, read off everywhere, in two passes; in more where the model continues one token at a time, and
    whole where it can't.
    """
    how, length = how_to_continue(lm), len(row.ids)
    middle = length // 2 if how else 0
    row = replace(row, reads=[(0, list(range(length)), [0] * length)])
    rest = span_of(lm, [row], middle, None, [0] if middle else None)
    first = [span_of(lm, [row], 0, middle)] if middle else []
    return [*first, *(steps(rest) if how == "steps" else [rest])]


class Entrance:
    """At which layers a pass may begin.

    Not at a layer that is given more than the residual stream and what the model computes before its layers:
    in Gemma 3n and Gemma 4, keys and values of an earlier layer. Found out by trying, on a few tokens.

    spans: a short text, in as many passes as the model can take.
    """

    def __init__(self, lm: LM, spans: list[Span]):
        self.lm, self.spans, self.returns = lm, spans, [0] * lm.n_layers
        self.expected: list[torch.Tensor] = []
        self.known: dict[int, bool] = {}

    def __call__(self, layer: int) -> bool:
        if layer not in self.known:
            self.known[layer] = self._try(layer)
        return self.known[layer]

    @torch.no_grad()
    def _try(self, layer: int) -> bool:
        cache = None
        for span in [] if self.expected else self.spans:
            with recording(self.lm, span.residual, self.returns, self.lm.device):
                logits, cache = run(self.lm, span, cache, keep=span is not self.spans[-1])
            self.expected.append(logits)
        cache = None
        for span, expected in zip(self.spans, self.expected):
            try:
                with entering(self.lm, layer, span.residual[layer], self.returns):
                    logits, cache = run(self.lm, span, cache, keep=span is not self.spans[-1])
            except Exception:  # whatever such a layer raises
                return False
            if span.residual[layer].ndim != 3 or (logits - expected).abs().max() > noise(expected):
                return False
        return True


def noise(logits: torch.Tensor) -> torch.Tensor:
    """How far rounding may take logits that should be the same."""
    return min(100 * torch.finfo(logits.dtype).eps, 0.03) * logits.abs().max()


@contextmanager
def recording(
    lm: LM, into: dict[int, torch.Tensor], returns: list[int], device: torch.device, copies: int = 1
) -> Iterator[None]:
    """Keep what enters each layer, `into[layer]` [row, pos, d_model] on `device`, and how each returns its
    output. Of several copies of the rows, the first is kept.
    """

    def keep(layer: int):
        def hook(module: nn.Module, args, kwargs, output):
            hidden = args[0] if args else kwargs["hidden_states"]
            kept = hidden.detach()
            if copies > 1:
                kept = kept[: len(kept) // copies].clone()  # a slice would keep all copies in memory
            into[layer], returns[layer] = kept.to(device), returned(output)

        return hook

    with lm.edited("sweep") as edit:
        for layer, block in enumerate(lm.layers):
            edit.hook(block.register_forward_hook, keep(layer), with_kwargs=True)
        yield


@contextmanager
def reading_only(lm: LM, norm: nn.Module, span: Span, copies: int) -> Iterator[None]:
    """The last layer goes on from its mixer with the positions alone at which answers are read.

    Its keys and values still come from all positions. For layers that are `x + mixer(norm(x))` and more: x
    enters with the read positions only, [1, copy * read, d_model], and `norm` gets the whole x.
    """
    row, position = span.reads
    rows = torch.cat([row + copy * len(span.ids) for copy in range(copies)])
    whole: list[torch.Tensor] = []

    def at_reads(x):
        return x[rows.to(x.device), position.repeat(copies).to(x.device)][None]

    def shorten(module, args, kwargs):
        whole.append(args[0] if args else kwargs["hidden_states"])
        short = at_reads(whole[0])
        return ((short, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": short})

    with lm.edited("sweep") as edit:
        edit.hook(lm.layers[-1].register_forward_pre_hook, shorten, with_kwargs=True)
        edit.hook(norm.register_forward_pre_hook, lambda module, args: (whole.pop(),))
        edit.hook(lm.mixers[-1].out_proj.register_forward_pre_hook, lambda module, args: (at_reads(args[0]),))
        yield


@torch.no_grad()
def norm_before_last_mixer(lm: LM, span: Span) -> nn.Module | None:
    """The module that `reading_only` needs; None if the last layer is built otherwise, found out by
    trying.
    """
    if lm.mixers[-1].layer != lm.n_layers - 1:
        return None
    # Of a layer of another build, whole and shortened tensors meet. In these numbers they don't broadcast.
    copies = 2 if span.ids.shape[1] != 2 * span.reads.shape[1] else 3
    called: list[nn.Module] = []
    with lm.edited("sweep") as edit:
        for module in lm.layers[-1].children():
            edit.hook(module.register_forward_pre_hook, lambda module, args: called.append(module))
        expected, _ = run(lm, span, copies=copies)
    try:
        with reading_only(lm, called[0], span, copies):
            logits, _ = run(lm, span, copies=copies, shortened=True)
    except Exception:  # whatever such a layer raises
        return None
    same = logits.shape == expected.shape and (logits - expected).abs().max() <= noise(expected)
    return called[0] if same else None
