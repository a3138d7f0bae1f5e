"""Eager attention, a few heads and queries at a time: weights can be read, or logits changed, on the way.

Hugging Face's modules look their attention function up by name, and anyone may register one
(`AttentionInterface`). Ours hands the weights over and forgets them, so that long prompts fit into memory. A
model uses it only while it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ga_utils.models.lm import LM
from ga_utils.models.mixers import Edit

BLOCK = 1 << 22  # numbers in the matrices that are made at a time
OURS = "ga_utils_eager"
# Tensors that Hugging Face's modules pass on for other attention functions, and that eager attention ignores.
OF_OTHERS = ("position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k")


def use_ours(lm: LM, edit: Edit) -> None:
    """All attention of the model is computed by `attend` while `edit` is in force.

    Not by `set_attn_implementation`: `ga.reset` must know of it, and a layer that is borrowed from another
    model (`replace_layer`) has that model's configuration.
    """
    attention = [mixer.module for mixer in lm.mixers if mixer.kind == "attention"]
    for config in {id(owner.config): owner.config for owner in (lm.model, *attention)}.values():
        edit.swap(config, "_attn_implementation", OURS)


def attend(
    module, query, key, value, attention_mask, scaling=None, weights_to=None, logits_from=None, **options
):
    """Eager attention with the signature that Hugging Face's modules expect.

    Args:
        query: [batch, head, query, d_head].
        key, value: [batch, key-value head, key, d_head]; several heads in a row share a key-value head.
        attention_mask: [batch, 1, query, key], added to the logits.
        weights_to: called with a list of heads, the number of a query and the heads' weights from this query
            on, [batch, head, query, key].
        logits_from: called with heads, query and their masked logits, likewise; returns new ones.
        options: `softcap` bounds the logits (Gemma 2). `position_bias`, [batch, head, query, key], is added
            to them. An attention sink is a logit that takes part in the softmax but has no value: `s_aux`,
            [head] (gpt-oss), or `sinks`, [batch, head, query, 1] (Inkling 2). Dropout is ignored.

    Raises:
        RuntimeError: another option that holds a tensor, so that it may change the weights.
    """
    softcap, bias, sinks = options.get("softcap"), options.get("position_bias"), options.get("sinks")
    if options.get("s_aux") is not None:
        sinks = options["s_aux"][None, :, None, None].expand(*query.shape[:3], 1)
    for name, option in options.items():
        known = name in ("s_aux", "sinks", "position_bias", *OF_OTHERS)
        if isinstance(option, torch.Tensor) and not known:
            raise RuntimeError(
                f"{type(module).__name__} computes its attention with {name!r}, which is not known here, so "
                "its weights can't be read"
            )
    n_heads, each = query.shape[1], query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = value.new_empty(len(query), query.shape[2], n_heads, value.shape[-1])
    for heads, rows in _blocks(len(query), n_heads, query.shape[2], key.shape[2]):
        shared = [head // each for head in heads]
        logits = query[:, heads, rows] @ key[:, shared].mT * scaling  # [batch, head, query, key]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if bias is not None:
            logits = logits + bias[:, heads, rows]
        if attention_mask is not None:
            logits = logits + attention_mask[:, :, rows]
        if logits_from is not None:
            logits = logits_from(heads, rows.start, logits)
        if sinks is not None:
            logits = torch.cat([logits, sinks[:, heads, rows].to(logits)], dim=-1)
        weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        weights = weights[..., : key.shape[2]]
        if weights_to is not None:
            weights_to(heads, rows.start, weights)
        out[:, rows, heads] = (weights.to(value.dtype) @ value[:, shared]).transpose(1, 2)
    return out, None


def _blocks(batch: int, n_heads: int, queries: int, keys: int) -> Iterator[tuple[list[int], slice]]:
    """Heads and queries whose logits are made at a time: heads whole as long as one of them fits."""
    rows = min(queries, max(1, BLOCK // (batch * keys)))
    starts = range(0, queries, rows)
    for heads, start in product(split(range(n_heads), BLOCK // (batch * rows * keys)), starts):
        yield heads, slice(start, min(start + rows, queries))


def split(heads: Sequence[int], at_once: int) -> list[list[int]]:
    """Heads in groups of at most `at_once`, at least one."""
    at_once = max(1, at_once)
    return [list(heads[i : i + at_once]) for i in range(0, len(heads), at_once)]


AttentionInterface.register(OURS, attend)
AttentionMaskInterface.register(OURS, eager_mask)
