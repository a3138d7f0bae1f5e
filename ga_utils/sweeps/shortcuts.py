"""Parts of a forward pass that need less than the whole: what one head changes, what one position asks. For `resume.py`.

Each stands in for a module of Hugging Face's as long as its context manager lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def at(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """values [row, pos, channel] at positions [row, read]: [row, read, channel]."""
    return values[torch.arange(len(values), device=values.device).unsqueeze(1), positions]


@contextmanager
def replaced(module: nn.Module, forward: Callable) -> Iterator[None]:
    """`forward(*args, **kwargs)` runs whenever the module is called."""
    before = module.__dict__.get("forward")  # accelerate, too, replaces a module's forward
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def factor(norm: nn.Module, given: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """By what a norm scaled each position, besides its weight: [..., 1]; 0 where there was nothing to scale."""
    before, after = ((given * norm.weight).norm(dim=-1, keepdim=True), made.norm(dim=-1, keepdim=True))
    return after / before.clamp_min(torch.finfo(made.dtype).tiny)


@contextmanager
def adding(
    norm: nn.Module,
    factor_before: torch.Tensor,
    made_before: dict[nn.Linear, torch.Tensor],
    change: torch.Tensor,
    out: torch.Tensor,
) -> Iterator[None]:
    """The projections behind a layer's heads make what they made with nothing disabled, and what the change adds to it.

    A projection V behind a norm with weights w makes s V(w x) of the residual stream x, where s is the norm's factor for a
    position. Of x + O c it makes t V(w x) + t V(w O) c: the first is known but for the new factor t, and c has only a
    head's few columns.

    factor_before: s, [row * pos, 1]. made_before: projection -> s V(w x), [row * pos, d_out].
    change: c, [head, row * pos, d_head]. out: O, a head's columns of the output projection, [head, d_model, d_head].
    """
    factors: list[torch.Tensor] = []

    def measure(module, args, made):
        factors[:] = [factor(norm, args[0], made).reshape(len(change), -1, 1)]

    def maker(linear: nn.Linear, made: torch.Tensor) -> Callable:
        through = linear.weight @ (norm.weight[:, None] * out)  # [head, d_out, d_head]

        def forward(hidden):
            (new,) = factors
            ratio = (new / factor_before).nan_to_num(0, posinf=0)  # nothing known: nothing to scale
            return (made * ratio).baddbmm_(change * new, through.mT).reshape(*hidden.shape[:-1], -1)

        return forward

    with ExitStack() as stack:
        stack.callback(norm.register_forward_hook(measure).remove)
        for linear, made in made_before.items():
            stack.enter_context(replaced(linear, maker(linear, made)))
        yield


@contextmanager
def turned(linear: nn.Module | None) -> Iterator[None]:
    """A projection computes (W x^T)^T for x W^T: on a CPU, of few positions and many outputs, in about half the time.

    Measured for 16 positions and 8,000 to 32,000 outputs on two cores; above some hundred positions there is no difference.
    """
    if type(linear) is not nn.Linear or linear.bias is not None or linear.weight.device.type != "cpu":
        yield
        return
    forward = linear.forward

    def few(hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.flatten(0, -2)
        return (
            forward(hidden) if len(rows) > 128 else (linear.weight @ rows.T).T.unflatten(0, hidden.shape[:-1])
        )

    with replaced(linear, few):
        yield


@contextmanager
def asking(mixer: nn.Module, reads: torch.Tensor) -> Iterator[None]:
    """An attention module makes queries at positions `reads` [row, read] alone; everywhere else its z is zero.

    Only where attention is `scaled_dot_product_attention`, Hugging Face's default; other mixers run as ever.
    """
    projection, config = getattr(mixer, "q_proj", None), getattr(mixer, "config", None)
    if type(projection) is not nn.Linear or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    rows, whole = torch.arange(len(reads), device=reads.device).unsqueeze(1), ALL_ATTENTION_FUNCTIONS["sdpa"]
    forward = projection.forward

    def scattered(few: torch.Tensor, n_tokens: int) -> torch.Tensor:
        full = few.new_zeros(len(few), n_tokens, *few.shape[2:])
        full[rows, reads] = few
        return full

    def attend(module, query, key, value, attention_mask, **kwargs):
        """query: [row, head, pos, d_head]; key: [row, head, earlier + pos, d_head]; mask: [row, 1, pos, earlier + pos]."""
        if module is not mixer:
            return whole(module, query, key, value, attention_mask, **kwargs)
        if not reads.shape[1]:
            return torch.zeros_like(query.transpose(1, 2)), None
        n_tokens, n_keys = query.shape[2], key.shape[2]
        if attention_mask is None:
            seen = torch.arange(n_keys, device=reads.device) <= (reads + n_keys - n_tokens).unsqueeze(-1)
        else:
            seen = at(attention_mask[:, 0].expand(len(reads), -1, -1), reads)
        few, weights = whole(
            module, at(query.transpose(1, 2), reads).transpose(1, 2), key, value, seen.unsqueeze(1), **kwargs
        )
        return scattered(few, n_tokens), weights

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        with replaced(projection, lambda hidden: scattered(forward(at(hidden, reads)), hidden.shape[1])):
            yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = whole
