"""Starting a forward pass in the middle of a model, and making only what is read off: hooks for `exact.py`.

Hugging Face's own forward runs each time. What it need not compute again is stood in for; every change to the model ends
with its context manager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from ga_utils.models.lm import LM, Mixer
from ga_utils.sweeps.shortcuts import asking, at, factor, replaced


@dataclass
class Seen:
    """What one forward pass showed of a layer.

    norm: the module that runs before its only mixer, if the layer is `x + mixer(norm(x))` and more: such a layer can be
    entered behind its heads. None for all others.
    returns, mixer_returns: length of the tuple that the layer, and its mixer, returns; 0 for a bare tensor.
    second: the norm that gets `x + mixer(norm(x))`, if all that it does is to scale each position and each channel.
    linears: the projections that get what `second` makes.
    """

    norm: nn.Module | None
    returns: int
    mixer_returns: int = 0
    second: nn.Module | None = None
    linears: tuple[nn.Linear, ...] = ()


class Passed(nn.Module):
    """Stands for a layer that has run already: hands its input on, in the form in which that layer would."""

    def __init__(self, layer: nn.Module, index: int, returns: int):
        super().__init__()
        self.__dict__["layer"] = layer  # not as a child: its weights are not this module's
        self.index, self.returns = index, returns

    def __getattr__(self, name: str):
        return getattr(self.__dict__["layer"], name)  # a model may ask a layer for its type

    def forward(self, hidden_states, *args, **kwargs):
        count_tokens(kwargs.get("past_key_values"), self.index, hidden_states, hidden_states.shape[1])
        return wrapped(hidden_states, self.returns)


def wrapped(tensor: torch.Tensor, returns: int):
    return (tensor, *[None] * (returns - 1)) if returns else tensor


def count_tokens(cache, index: int, like: torch.Tensor, n_tokens: int) -> None:
    """Let a cache know of tokens whose keys no one will ask for: it tells positions by its layers' lengths."""
    if cache is not None:
        nothing = like.new_zeros(len(like), 1, n_tokens, 1)
        cache.update(nothing, nothing, index)


def repeated(cache, n: int):
    """A cache of its own for n times as many rows, each row's copies side by side."""
    if cache is not None:
        cache = deepcopy(cache)
        cache.batch_repeat_interleave(n)
    return cache


@contextmanager
def entering(module: nn.Module, edit: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """`edit(x)` sees what enters a module; what it returns, if anything, enters instead."""

    def before(module, args, kwargs):
        if args:
            new = edit(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = edit(kwargs["hidden_states"])
        return None if new is None else (args, kwargs | {"hidden_states": new})

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def passing(lm: LM, seen: list[Seen]) -> Iterator[None]:
    """The first layers, as many as `seen` lists, hand their input on."""
    decoder, whole = lm.decoder, lm.layers
    decoder.layers = nn.ModuleList(
        [*(Passed(whole[i], i, s.returns) for i, s in enumerate(seen)), *whole[len(seen) :]]
    )
    try:
        yield
    finally:
        decoder.layers = whole


@contextmanager
def standing_in(mixer: Mixer, seen: Seen, output: torch.Tensor, n_tokens: int) -> Iterator[None]:
    """A mixer returns `output` without running; `n_tokens` have passed."""

    def forward(*args, **kwargs):
        count_tokens(kwargs.get("past_key_values"), mixer.layer, output, n_tokens)
        return wrapped(output, seen.mixer_returns)

    with replaced(mixer.module, forward):
        yield


@contextmanager
def reading(mixer: Mixer, norm: nn.Module, reads: torch.Tensor) -> Iterator[None]:
    """The last layer goes on with positions `reads` [row, read] alone; its mixer still sees all of them, but asks only there."""
    whole = []

    def shorten(hidden):
        whole.append(hidden)
        return at(hidden, reads)

    with (
        entering(mixer.block, shorten),
        entering(norm, lambda hidden: whole.pop()),
        entering(mixer.out_proj, lambda z: at(z, reads)),
        asking(mixer.module, reads),
    ):
        yield


@torch.no_grad()
def look(lm: LM, ids: list[int]) -> list[Seen]:
    """How each layer is built, told from one forward pass: who gets whose output."""
    mixers = lm.mixers
    # With hooks of others in place (`ablate`, `replace_head`), no layer may be entered in the middle: they might not run.
    watched = any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())
    calls: list[list[tuple]] = [
        [] for _ in lm.layers
    ]  # of each layer: module, input, output, in order of their ends
    linear: list[list[tuple]] = [[] for _ in lm.layers]  # the same of all linear projections inside
    starts: dict[nn.Module, torch.Tensor] = {}
    ends: dict[nn.Module, object] = {}
    with ExitStack() as stack:
        for i, block in enumerate(lm.layers):
            stack.enter_context(
                entering(block, lambda hidden, block=block: starts.__setitem__(block, hidden))
            )
            stack.callback(block.register_forward_hook(lambda m, args, out: ends.__setitem__(m, out)).remove)
            parts = {
                *block.children(),
                *(part for m in mixers if m.layer == i for part in (m.module, m.out_proj)),
            }
            inside = [
                module for module in block.modules() if type(module) is nn.Linear and module.bias is None
            ]
            for module, notes in [
                *((part, calls[i]) for part in parts),
                *((part, linear[i]) for part in inside),
            ]:

                def note(module, args, kwargs, output, notes=notes):
                    notes.append((module, args[0] if args else kwargs.get("hidden_states"), output))

                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False, logits_to_keep=1)
    seen = []
    for i, block in enumerate(lm.layers):
        ours = [mixer for mixer in mixers if mixer.layer == i]
        others = [mixer.module for mixer in mixers if mixer.layer != i]
        norm = None
        if len(ours) == 1 and not watched and not any(ours[0].module is other for other in others):
            norm = _norm_before(ours[0], starts[block], calls[i])
        mixed = next((out for module, _, out in calls[i] if ours and module is ours[0].module), None)
        returns, mixer_returns = (len(out) if isinstance(out, tuple) else 0 for out in (ends[block], mixed))
        mixed = mixed[0] if isinstance(mixed, tuple) else mixed
        second, linears = _norm_behind(starts[block] + mixed, calls[i], linear[i]) if norm else (None, ())
        seen.append(Seen(norm, returns, mixer_returns, second, linears))
    return seen


def _norm_before(mixer: Mixer, entered: torch.Tensor, calls: list[tuple]) -> nn.Module | None:
    """The first module of a layer, if it gets the layer's input, the mixer alone gets what it makes, and the mixer returns
    just what its output projection, a plain one, makes."""
    norm, given, made = calls[0]
    if (
        given is not entered
        or norm is mixer.module
        or norm is mixer.out_proj
        or type(mixer.out_proj) is not nn.Linear
    ):
        return None
    users = [module for module, x, _ in calls[1:] if x is made or x is entered]
    outputs = {module: out for module, _, out in calls}
    mixed, projected = outputs.get(mixer.module), outputs.get(mixer.out_proj)
    mixed = mixed[0] if isinstance(mixed, tuple) else mixed
    return norm if users == [mixer.module] and mixed is not None and mixed is projected else None


def _norm_behind(
    total: torch.Tensor, calls: list[tuple], linear: list[tuple]
) -> tuple[nn.Module | None, tuple]:
    """`second` and `linears` of a layer whose residual stream is `total` behind its mixer; see `Seen`.

    Not in 16 bits: there it shows that what is computed in another order is rounded elsewhere.
    """
    if total.dtype not in (torch.float32, torch.float64):
        return None, ()
    for module, given, made in calls:
        weight = getattr(module, "weight", None)
        if (
            weight is not None
            and weight.ndim == 1
            and given.shape == total.shape
            and torch.equal(given, total)
        ):
            linears = tuple(projection for projection, x, _ in linear if x is made)
            if linears and torch.allclose(given * weight * factor(module, given, made), made, atol=1e-5):
                return module, linears
    return None, ()
