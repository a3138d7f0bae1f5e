"""Llamba from Llama: `tiny-llamba-unaligned` and `tiny-llamba` (MOHAWK, Bick et al. 2024, arXiv 2408.10189).

1. `from_llama`: embeddings, MLPs, norms and output head are the teacher's; each mixer starts from the
   attention it stands in for, x from v, B from k, C from q, head by head, so that head h of the student
   answers to head h of the teacher.
2. `Alignment`: layer by layer, on the teacher's own hidden states, a mixer learns to write what the attention
   writes, and each head what its counterpart writes. Layers never see one another: the result is *unaligned*
   end to end.
3. `prediction_loss`: the whole student learns to predict what the teacher predicts.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM

from ga_utils.models.llamba import LlambaConfig, LlambaForCausalLM
from ga_utils.training.loop import answers


def from_llama(teacher: LlamaForCausalLM, d_state: int, taps: int = 4) -> LlambaForCausalLM:
    """A Llamba with the teacher's weights everywhere but in the mixers, which start from the teacher's
    attention. taps: of the short convolution."""
    c = teacher.config
    mlp = {"intermediate_size": c.intermediate_size, "bias": False, "act_fn": "silu"}
    ssm = {
        "d_state": d_state,
        "n_v_heads": c.num_attention_heads,
        "n_qk_heads": c.num_attention_heads,
        "chunk_size": 64,
        "d_conv": taps,
    }
    student = LlambaForCausalLM(
        LlambaConfig(
            vocab_size=c.vocab_size,
            d_model=c.hidden_size,
            n_layer=c.num_hidden_layers,
            norm_epsilon=c.rms_norm_eps,
            mlp_cfg=mlp,
            ssm_cfg=ssm,
            bos_token_id=c.bos_token_id,
            pad_token_id=c.pad_token_id,
            eos_token_id=c.eos_token_id,
        )
    )
    student.backbone.embedding.load_state_dict(teacher.model.embed_tokens.state_dict())
    student.backbone.final_layernorm.load_state_dict(teacher.model.norm.state_dict())
    student.lm_head.load_state_dict(teacher.lm_head.state_dict())
    for own, theirs in zip(student.backbone.layers, teacher.model.layers):
        for name in ("input_layernorm", "post_attention_layernorm", "mlp"):
            getattr(own, name).load_state_dict(getattr(theirs, name).state_dict())
        _start_from_attention(own.mixer, theirs.self_attn)
    return student


@torch.no_grad()
def _start_from_attention(mixer: nn.Module, attention: nn.Module) -> None:
    n, heads = mixer.d_state, mixer.n_v_heads
    some = lambda weight: weight.unflatten(0, (heads, -1))[:, :n].flatten(0, 1)  # noqa: E731  n rows of every head
    decay = torch.randn(heads, attention.v_proj.in_features) * 0.02
    gate = torch.zeros(mixer.d_inner, attention.v_proj.in_features)
    B, C = some(attention.k_proj.weight), some(attention.q_proj.weight)
    mixer.in_proj.weight.copy_(torch.cat([attention.v_proj.weight, B, C, gate, decay]))
    mixer.out_proj.weight.copy_(attention.o_proj.weight)
    mixer.z_bias.fill_(1.2785)  # where silu is 1: the gate starts open
    mixer.D.zero_()
    mixer.conv1d.weight.zero_()
    mixer.conv1d.weight[..., -1] = 1  # the convolution starts as the identity
    mixer.conv1d.bias.zero_()


class Alignment:
    """The loss that aligns a student's mixers to the attention they stand in for, on the teacher's hidden
    states.

    Call it as `loop.train` does: with the student and a batch.
    """

    def __init__(self, teacher: LlamaForCausalLM, student: LlambaForCausalLM):
        self.teacher = teacher.eval().requires_grad_(False)
        self.inputs: list[torch.Tensor] = []  # of each attention, normed: [batch, pos, d_model]
        self.theirs: list[torch.Tensor] = []  # z of each attention: [batch, pos, n_heads * d_head]
        self.own: list[torch.Tensor] = []  # z of each of the student's mixers
        self.hooks = ExitStack()
        for theirs, own in zip(teacher.model.layers, student.backbone.layers):
            attention = theirs.self_attn
            for handle in (
                attention.register_forward_pre_hook(
                    lambda _, args, kwargs: self.inputs.append(args[0] if args else kwargs["hidden_states"]),
                    with_kwargs=True,
                ),
                attention.o_proj.register_forward_pre_hook(lambda _, args: self.theirs.append(args[0])),
                own.mixer.out_proj.register_forward_pre_hook(lambda _, args: self.own.append(args[0])),
            ):
                self.hooks.callback(handle.remove)

    def __call__(
        self, student: LlambaForCausalLM, data: dict, step: int = 0
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Squared error over squared size, of what each layer writes and of what each head writes, averaged.

        Positions before an answer count eleven times as much as others.
        """
        for seen in (self.inputs, self.theirs, self.own):
            seen.clear()
        weight = 0.1 + F.pad(data["weights"][:, 1:] >= 1, (0, 1)).float()[..., None, None]
        errors = []
        with torch.autocast(data["ids"].device.type, torch.bfloat16):
            with torch.no_grad():
                self.teacher.model(input_ids=data["ids"], use_cache=False)
            for layer, u in zip(student.backbone.layers, self.inputs):
                layer.mixer(u)
        for own, theirs, a, b in zip(
            student.backbone.layers, self.teacher.model.layers, self.own, self.theirs
        ):
            a = written(a, own.mixer.out_proj.weight, own.mixer.n_v_heads)
            b = written(b, theirs.self_attn.o_proj.weight, own.mixer.n_v_heads)
            for x, y in ((a, b), (a.sum(2, keepdim=True), b.sum(2, keepdim=True))):
                errors.append(((x - y).square() * weight).sum() / (y.square() * weight).sum())
        shown = {
            "heads": torch.stack(errors[::2]).mean().item(),
            "layers": torch.stack(errors[1::2]).mean().item(),
        }
        return torch.stack(errors).mean(), shown

    def remove(self) -> None:
        """Take the hooks off teacher and student."""
        self.hooks.close()


def written(z: torch.Tensor, weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """What each head adds to the residual stream: z [batch, pos, n_heads * d_head] to [batch, pos, head,
    d_model]."""
    return torch.einsum(
        "blhd,mhd->blhm", z.float().unflatten(-1, (n_heads, -1)), weight.unflatten(-1, (n_heads, -1))
    )


def prediction_loss(teacher: LlamaForCausalLM):
    """End to end: the student's next-token loss on answers, and its divergence from the teacher
    everywhere."""

    def loss(student: LlambaForCausalLM, data: dict, step: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
        with torch.autocast(data["ids"].device.type, torch.bfloat16):
            own = student(input_ids=data["ids"]).logits[:, :-1].float()
            with torch.no_grad():
                theirs = teacher(input_ids=data["ids"], use_cache=False).logits[:, :-1].float()
        weight = data["weights"][:, 1:]
        divergence = F.kl_div(
            own.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        nll, accuracy = answers(own, data)
        return nll + (divergence * weight).sum() / weight.sum(), accuracy

    return loss
