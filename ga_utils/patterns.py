"""How patterns are read off a model: in one forward pass, and each is handed over as soon as it is there.

Softmax attention: Hugging Face's modules look their attention function up by name, and anyone may register
one (`AttentionInterface`). Ours is eager attention for a few heads at a time: it hands the weights of these
heads over and forgets them, so that long prompts fit into memory. A model uses it only while it is read.

SSMs: the matrix is computed from the mixer's input (`ga_utils.ssm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ga_utils.models.lm import LM
from ga_utils.models.mixers import Edit, Mixer
from ga_utils.ssm import scan_of

BLOCK = 1 << 24  # numbers in the matrices that are made at a time
OURS = "ga_utils_patterns"

Use = Callable[[Mixer, list[int], int, torch.Tensor], None]


class Enough(Exception):
    """Ends a forward pass from inside a hook: everything asked for has been seen."""


def read_patterns(lm: LM, prompts: list[str], heads: dict[int, list[int]], use: Use) -> None:
    """Run prompts as one batch and hand over patterns, each [query, key] over the prompt's own tokens.

    Args:
        heads: layer -> the heads whose patterns are wanted.
        use: called as use(mixer, some, i, A) with the patterns A [len(some), query, key] of some of these
            heads on prompt i. A is float32 or float64, and on the model's device.

    Raises:
        RuntimeError: a layer does not compute its attention through Hugging Face's `AttentionInterface`.
    """
    missing = {(layer, head) for layer, wanted in heads.items() for head in wanted}
    ids, mask = _padded(lm, prompts)
    lengths = mask.sum(1).tolist()

    def hand_over(mixer: Mixer, some: list[int], i: int, A: torch.Tensor) -> None:
        use(mixer, some, i, A)
        if i == len(prompts) - 1:
            missing.difference_update((mixer.layer, head) for head in some)
            if not missing:
                raise Enough

    with lm.edited("reading") as edit:
        for mixer in lm.mixers:
            wanted = [head for head in mixer.heads if head in heads.get(mixer.layer, [])]
            if wanted and mixer.kind == "attention":
                _read_attention(mixer, wanted, lengths, hand_over, edit)
            elif wanted:
                _read_ssm(mixer, wanted, lengths, hand_over, edit)
        # Not by `set_attn_implementation`: `ga.reset` must know of it, and a layer that is borrowed from
        # another model (`replace_layer`) has that model's configuration.
        attention = [mixer.module for mixer in lm.mixers if mixer.kind == "attention"]
        for config in {id(owner.config): owner.config for owner in (lm.model, *attention)}.values():
            edit.swap(config, "_attn_implementation", OURS)
        run_for_hooks(lm, ids.to(lm.device), mask.to(lm.device))
    if missing:
        layer = min(missing)[0]
        raise RuntimeError(
            f"layer {layer} of {lm.name} does not compute its attention through Hugging Face's "
            "AttentionInterface, so its weights can't be read"
        )


@torch.no_grad()
def run_for_hooks(lm: LM, ids: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """A forward pass for the sake of its hooks, on ids [batch, pos]; a hook may end it with `Enough`."""
    with suppress(Enough):
        lm.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)


def ssm_input(args: tuple, kwargs: dict) -> torch.Tensor:
    """What an SSM mixer was called with: [batch, pos, d_model]."""
    return args[0] if args else kwargs["hidden_states"]


def _padded(lm: LM, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [batch, pos], padded on the right, where a causal model can't see it."""
    tokens = [torch.tensor(ids) for ids in lm.tokenize(prompts)]
    mask = [torch.ones_like(ids) for ids in tokens]
    return tuple(nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (tokens, mask))


def _read_ssm(mixer: Mixer, wanted: list[int], lengths: list[int], use: Use, edit: Edit) -> None:
    def before(module, args, kwargs):
        for i, length in enumerate(lengths):
            scan = scan_of(module, ssm_input(args, kwargs)[i, :length])
            for some in _split(wanted, BLOCK // length**2):
                use(mixer, some, i, scan.matrix([head - mixer.first for head in some]))

    edit.hook(mixer.module.register_forward_pre_hook, before, with_kwargs=True)


def _read_attention(mixer: Mixer, wanted: list[int], lengths: list[int], use: Use, edit: Edit) -> None:
    running = False  # whether it is this layer's turn: Zamba2 runs one attention module at several depths

    def read(heads: list[int], weights: torch.Tensor) -> None:
        some = [head for head in wanted if head - mixer.first in heads]
        rows = [heads.index(head - mixer.first) for head in some]
        for i, length in enumerate(lengths if some else ()):
            use(mixer, some, i, weights[i, rows, :length, :length])

    def enter(module, args):
        nonlocal running
        running = True

    def leave(module, args, output):
        nonlocal running
        running = False

    def ask(module, args, kwargs):
        return (args, kwargs | {"weights_to": read}) if running else None

    edit.hook(mixer.block.register_forward_pre_hook, enter)
    edit.hook(mixer.module.register_forward_pre_hook, ask, with_kwargs=True)
    edit.hook(mixer.block.register_forward_hook, leave)


def _attend(module, query, key, value, attention_mask, scaling=None, weights_to=None, **options):
    """Eager attention a few heads at a time, with the signature that Hugging Face's modules expect.

    Args:
        query: [batch, head, query, d_head].
        key, value: [batch, key-value head, key, d_head]; several heads in a row share a key-value head.
        attention_mask: [batch, 1, query, key], added to the logits.
        weights_to: called with a list of heads and their weights, [batch, head, query, key].
        options: `softcap` bounds the logits (Gemma 2). `s_aux`, [head], is a logit that takes part in the
            softmax but has no value: an attention sink (gpt-oss). Others, such as dropout, are ignored.
    """
    softcap, sinks = options.get("softcap"), options.get("s_aux")
    n_heads, each = query.shape[1], query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = []
    for heads in _split(range(n_heads), BLOCK // (len(query) * query.shape[2] * key.shape[2])):
        shared = [head // each for head in heads]
        logits = query[:, heads] @ key[:, shared].mT * scaling  # [batch, head, query, key]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if attention_mask is not None:
            logits = logits + attention_mask
        if sinks is not None:
            sink = sinks[heads].to(logits)[:, None, None].expand(*logits.shape[:3], 1)
            logits = torch.cat([logits, sink], dim=-1)
        weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        weights = weights[..., : key.shape[2]]
        if weights_to is not None:
            weights_to(heads, weights)
        out.append(weights.to(value.dtype) @ value[:, shared])
    return torch.cat(out, dim=1).transpose(1, 2).contiguous(), None


def _split(heads: Sequence[int], at_once: int) -> list[list[int]]:
    """Heads in groups of at most `at_once`, at least one."""
    at_once = max(1, at_once)
    return [list(heads[i : i + at_once]) for i in range(0, len(heads), at_once)]


AttentionInterface.register(OURS, _attend)
AttentionMaskInterface.register(OURS, eager_mask)
