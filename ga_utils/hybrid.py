"""Give an SSM some attention back: replace a whole layer, or the work of one head, by the teacher's.

The pair is a Llama and the Llamba that was distilled from it: they are alike layer for layer, and the
student's layers were trained to give the teacher's hidden states. Nothing is trained here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask

from ga_utils.heads import Head, ablate, check_heads
from ga_utils.models.device import check_loaded
from ga_utils.models.llamba import LayerState, LlambaPreTrainedModel
from ga_utils.models.lm import LM


class Borrowed(nn.Module):
    """A teacher's Llama layer among a student's: it reads and writes the same residual stream.

    It holds the teacher's own `self_attn`, so that `ablate` and `attention_map` see its heads in the hybrid.
    """

    def __init__(self, teacher: LM, layer: int):
        super().__init__()
        self.block, self.rotary = teacher.layers[layer], teacher.decoder.rotary_emb
        self.self_attn = self.block.self_attn

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        state: LayerState | None = None,
    ) -> torch.Tensor:
        """The signature of a Llamba block: hidden_states [batch, pos, d_model], mask [batch, pos, 1]."""
        return self.block(hidden_states, **_context(self.self_attn, self.rotary, hidden_states, mask, state))

    def empty_state(self, batch: int) -> LayerState:
        """Attention's keys and values are all that it remembers."""
        weight = self.self_attn.o_proj.weight
        return LayerState(weight.new_zeros(batch, 0), weight.new_zeros(batch, 0))


@contextmanager
def replace_layer(student: LM, teacher: LM, layer: int) -> Iterator[LM]:
    """One layer of the student, mixer and MLP, is the teacher's at the same depth.

    Inside, heads of that layer are the teacher's attention heads. An ablation that is in force already stays
    with the layer that was taken out, so ablate inside.

    Raises:
        ValueError: student and teacher are not a Llamba and a Llama of the same width, dtype and device; or
            one of them lacks that layer.
    """
    _check_pair(student, teacher, layer)
    with student.edited(f"layer {layer} replaced by {teacher.name}'s") as edit:
        edit.swap(student.layers, str(layer), Borrowed(teacher, layer))
        yield student


@contextmanager
def replace_head(
    student: LM, teacher: LM, layer: int, head: int, teacher_head: int | None = None
) -> Iterator[LM]:
    """One SSM head of the student is disabled, and one attention head of the teacher's works in its place.

    The attention head reads the student's residual stream through the teacher's norm and writes through the
    teacher's columns of `o_proj`. The other heads of the layer, and its MLP, stay the student's. Inside, that
    number still names the student's disabled head: the borrowed one is not among the student's mixers.

    Args:
        head: the student's; also the teacher's, unless `teacher_head` names another.

    Raises:
        ValueError: as `replace_layer`, or a head that one of the two lacks.
    """
    _check_pair(student, teacher, layer)
    given = Head(layer, head if teacher_head is None else teacher_head)
    check_heads(student, [Head(layer, head)])
    check_heads(teacher, [given])
    (mixer,) = [mixer for mixer in student.mixers if mixer.layer == layer]
    norm, rotary = teacher.layers[layer].input_layernorm, teacher.decoder.rotary_emb
    attention = _only(teacher, given)
    stream: list[torch.Tensor] = []  # what entered the layer last, [batch, pos, d_model]

    def enter_layer(module, args):
        stream[:] = args[:1]

    def add_head(module, args, output):
        _, mask, state = args
        return output + attention(norm(stream[0]), **_context(attention, rotary, stream[0], mask, state))[0]

    with student.edited(f"L{layer}H{head} replaced by {teacher.name}'s {given}") as edit:
        edit.hook(mixer.block.register_forward_pre_hook, enter_layer)
        edit.hook(mixer.module.register_forward_hook, add_head)
        with ablate(student, [Head(layer, head)]):
            yield student


def _only(lm: LM, head: Head) -> nn.Module:
    """A copy of an attention module in which only this head writes, and no bias, which belongs to no head."""
    (mixer,) = [mixer for mixer in lm.mixers if mixer.layer == head.layer]
    attention, ours = copy.deepcopy(mixer.module).eval(), mixer.columns(head.head)

    def silence_others(module, args):
        z = torch.zeros_like(args[0])
        z[..., ours] = args[0][..., ours]
        return (z,)

    attention.o_proj.register_forward_pre_hook(silence_others)
    if getattr(attention.o_proj, "bias", None) is not None:
        attention.o_proj.bias = None
    return attention


def _context(
    attention: nn.Module,
    rotary: nn.Module,
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    state: LayerState | None,
) -> dict[str, torch.Tensor | tuple | Cache | None]:
    """What a Llama's attention needs besides its input: rotations, a mask of the future and of padding, and
    keys and values from before.

    Positions count from the row's first token, padding included, as in Hugging Face's Llama: rotary attention
    depends on distances alone.

    Args:
        hidden: [batch, pos, d_model].
        mask: [batch, pos, 1], 0 at padding; None without padding.
        state: keeps keys and values, if anything is to be kept.

    Raises:
        ValueError: padding in a text that goes on: the state does not know where earlier passes had it.
    """
    if state is not None and mask is not None:
        raise ValueError(
            "borrowed attention keeps no padding in its cache: call the hybrid with use_cache=False"
        )
    start, length, cache = 0, hidden.shape[1], None
    if state is not None:
        cache = state.borrowed = state.borrowed or DynamicCache()
        start = cache.get_seq_length(attention.layer_idx)
    positions = torch.arange(start, start + length, device=hidden.device)[None]
    if start:  # Hugging Face would look for the length in the cache's first layer, which is another one
        lowest = torch.finfo(hidden.dtype).min
        future = torch.full((length, start + length), lowest, dtype=hidden.dtype, device=hidden.device)
        causal = future.triu(start + 1)[None, None]
    else:
        padding = None if mask is None else mask[..., 0]
        causal = create_causal_mask(attention.config, hidden, padding, past_key_values=None)
    return {
        "position_embeddings": rotary(hidden, positions),
        "attention_mask": causal,
        "past_key_values": cache,
        "use_cache": cache is not None,
    }


def _check_pair(student: LM, teacher: LM, layer: int) -> None:
    if not isinstance(student.model, LlambaPreTrainedModel):
        raise ValueError(f"the student must be a Llamba, {student.name} is a {type(student.model).__name__}")
    if teacher.model.config.model_type != "llama":
        raise ValueError(f"the teacher must be a Llama, {teacher.name} is a {type(teacher.model).__name__}")
    kept = [(lm.model.dtype, lm.device) for lm in (student, teacher)]
    if kept[0] != kept[1]:
        raise ValueError(
            f"{student.name} is {kept[0]} and {teacher.name} {kept[1]}: dtype and device must be the same"
        )
    widths = student.model.config.hidden_size, teacher.model.config.hidden_size
    if widths[0] != widths[1]:
        raise ValueError(
            f"{student.name} has width {widths[0]} and {teacher.name} {widths[1]}: they must be the same"
        )
    for lm in (student, teacher):
        if not 0 <= layer < lm.n_layers:
            raise ValueError(f"layer {layer}: {lm.name} has layers 0–{lm.n_layers - 1}")
        check_loaded(lm.layers[layer], f"layer {layer} of {lm.name}")
    if isinstance(student.layers[layer], Borrowed):
        raise ValueError(f"layer {layer} of {student.name} is the teacher's already")
