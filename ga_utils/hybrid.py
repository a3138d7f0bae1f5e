"""Give an SSM some attention back: replace a whole layer, or the work of one head, by the teacher's.

The pair is Llama and the Llamba that was distilled from it: alike layer for layer, with the student's layers aligned
to the teacher's hidden states. Nothing is trained here and no weight changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from ga_utils.heads import Head, ablate, check_heads
from ga_utils.models.llamba import LayerState, LlambaPreTrainedModel
from ga_utils.models.lm import LM, Mixer

NO_CACHE = "borrowed attention keeps no cache: call the hybrid with use_cache=False"


class Borrowed(nn.Module):
    """A teacher's Llama layer among a student's: the same residual stream in and out.

    It holds the teacher's own `self_attn`, so that `ablate` and `attention_map` see its heads in the hybrid.
    """

    def __init__(self, teacher: LM, layer: int):
        super().__init__()
        self.block, self.rotary = teacher.layers[layer], teacher.decoder.rotary_emb
        self.self_attn = self.block.self_attn

    def forward(
        self, hidden_states: torch.Tensor, mask=None, state: LayerState | None = None
    ) -> torch.Tensor:
        out = self.block(hidden_states, **_positions(self.rotary, hidden_states))
        return out[0] if isinstance(out, tuple) else out

    def empty_state(self, batch: int) -> LayerState:
        raise ValueError(NO_CACHE)


@contextmanager
def replace_layer(student: LM, teacher: LM, layer: int) -> Iterator[LM]:
    """One layer of the student, mixer and MLP, is the teacher's at the same depth.

    Inside, heads of that layer are the teacher's attention heads. An ablation that is already in force stays with the layer
    that was taken out: ablate inside. Rows may be padded on the right only, and generation needs `use_cache=False`.

    Raises:
        ValueError: student and teacher are not a Llamba and a Llama of the same width, or lack that layer.
    """
    _check_pair(student, teacher, layer)
    layers = student.layers
    before = layers[layer]
    with held() as gate:
        layers[layer] = Borrowed(teacher, layer)
        try:
            with gate.opened():
                yield student
        finally:
            layers[layer] = before


@contextmanager
def replace_head(
    student: LM, teacher: LM, layer: int, head: int, teacher_head: int | None = None
) -> Iterator[LM]:
    """One SSM head of the student is silenced, and one attention head of the teacher's works in its place.

    The attention head reads the student's residual stream through the teacher's norm and writes through the teacher's
    columns of `o_proj`; the other heads of the layer, and its MLP, stay the student's. Inside, that number still names the
    student's (silenced) head: the borrowed one is not among the student's mixers. Padding as in `replace_layer`.

    Args:
        head: the student's; also the teacher's, unless `teacher_head` names another.

    Raises:
        ValueError: as `replace_layer`, or a head that one of the two lacks.
    """
    _check_pair(student, teacher, layer)
    teacher_head = head if teacher_head is None else teacher_head
    check_heads(student, [Head(layer, head)])
    check_heads(teacher, [Head(layer, teacher_head)])
    block, rotary = teacher.layers[layer], teacher.decoder.rotary_emb
    (attention,) = [mixer for mixer in teacher.mixers if mixer.layer == layer]
    (mixer,) = [mixer for mixer in student.mixers if mixer.layer == layer]
    stream: list[torch.Tensor] = []

    def watch(module, args):
        stream[:] = args[:1]

    def add(module, args, output):
        if args[2] is not None:
            raise ValueError(NO_CACHE)
        with _only(attention, teacher_head):
            return (
                output + block.self_attn(block.input_layernorm(stream[0]), **_positions(rotary, stream[0]))[0]
            )

    with held() as gate, ExitStack() as hooks:
        hooks.callback(mixer.block.register_forward_pre_hook(watch).remove)
        hooks.callback(mixer.module.register_forward_hook(add).remove)
        hooks.enter_context(ablate(student, [Head(layer, head)]))
        with gate.opened():
            yield student


@contextmanager
def _only(attention: Mixer, head: int) -> Iterator[None]:
    """The attention module writes what this one head writes."""
    keep = torch.zeros(attention.out_proj.in_features, device=attention.out_proj.weight.device)
    keep[attention.columns(head)] = 1
    with held() as gate, ExitStack() as hooks:
        hooks.callback(
            attention.out_proj.register_forward_pre_hook(
                lambda m, args: (args[0] * keep.to(args[0].dtype),)
            ).remove
        )
        with gate.opened():
            yield


def _positions(rotary: nn.Module, hidden: torch.Tensor) -> dict[str, torch.Tensor | tuple]:
    """What a Llama layer needs beside the residual stream [batch, pos, d_model]: rotations and a causal mask."""
    n = hidden.shape[1]
    ids = torch.arange(n, device=hidden.device)[None]
    future = torch.full((n, n), torch.finfo(hidden.dtype).min, dtype=hidden.dtype, device=hidden.device).triu(
        1
    )
    return {"position_embeddings": rotary(hidden, ids), "attention_mask": future[None, None]}


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
    if isinstance(student.layers[layer], Borrowed):
        raise ValueError(f"layer {layer} of {student.name} is the teacher's already")
