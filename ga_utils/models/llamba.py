"""Llamba: a Llama whose attention is replaced by discrete Mamba-2, in plain PyTorch.

Llamba (Bick et al. 2025, arXiv 2502.14458) is the one model of the course that Hugging Face lacks. A block is
RMSNorm -> mixer -> residual -> RMSNorm -> gated MLP -> residual, as in Llama; read `DiscreteMamba2.forward` first.

Names and shapes of the published checkpoints (cartesia-ai/Llamba-*, goombalab/Llamba-8B-untied-unaligned), read from
the source of cartesia-ai/edge, `cartesia_pytorch/Llamba` at commit 95d8276 (`llamba.py`, `mixers/discrete_mamba2.py`,
`configuration_llamba.py`); d = d_model, i = expand * d, q = n_qk_heads, v = n_v_heads, n = d_state:

    backbone.embedding.weight                              [vocabulary, d]
    backbone.layers.0.input_layernorm.weight               [d]
    backbone.layers.0.mixer.in_proj.weight                 [2i + 2qn + v, d]   rows: x i, B qn, C qn, gate i, decay v
    backbone.layers.0.mixer.conv1d.weight, .bias           [i + 2qn, 1, 4], [i + 2qn]
    backbone.layers.0.mixer.z_bias                         [i]                 added to the gate
    backbone.layers.0.mixer.D                              [v]
    backbone.layers.0.mixer.out_proj.weight                [d, i]
    backbone.layers.0.post_attention_layernorm.weight      [d]
    backbone.layers.0.mlp.{gate,up,down}_proj.weight
    backbone.final_layernorm.weight                        [d]
    lm_head.weight                                         [vocabulary, d], unless the embeddings are tied

What this file does not do: training tricks, padding inside a row, and n_v_heads that n_qk_heads doesn't divide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

try:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
except ImportError:  # the optional extra `cuda`; the plain form below gives the same numbers
    mamba_chunk_scan_combined = None


class LlambaConfig(PreTrainedConfig):
    """Field names are those of the published `config.json`."""

    model_type = "llamba"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layer"}

    def __init__(
        self,
        vocab_size=128256,
        d_model=4096,
        n_layer=32,
        tie_embeddings=False,
        norm_epsilon=1e-5,
        mlp_cfg=None,
        ssm_cfg=None,
        **kwargs,
    ):
        self.vocab_size, self.d_model, self.n_layer, self.norm_epsilon = (
            vocab_size,
            d_model,
            n_layer,
            norm_epsilon,
        )
        self.tie_embeddings = tie_embeddings
        self.mlp_cfg = mlp_cfg or {"intermediate_size": 14336, "bias": False, "act_fn": "silu"}
        self.ssm_cfg = {
            "d_state": 64,
            "n_v_heads": 32,
            "n_qk_heads": 32,
            "expand": 1,
            "chunk_size": 128,
            "activation": "identity",
            "bias": False,
        } | (ssm_cfg or {})
        if self.ssm_cfg["n_v_heads"] % self.ssm_cfg["n_qk_heads"]:
            raise ValueError(f"n_v_heads must be a multiple of n_qk_heads, got {self.ssm_cfg}")
        if (
            self.ssm_cfg["activation"] != "identity"
            or self.ssm_cfg["bias"]
            or self.mlp_cfg["act_fn"] != "silu"
        ):
            raise ValueError(
                f"only Llamba's own activations and no biases are built here, got {ssm_cfg}, {mlp_cfg}"
            )
        kwargs["tie_word_embeddings"] = tie_embeddings
        super().__init__(**kwargs)


@dataclass
class LayerState:
    """What one layer remembers: the last inputs of its convolution, [batch, channel, 3], and the SSM's state,
    [batch, head, d_head, d_state]."""

    conv: torch.Tensor
    ssm: torch.Tensor

    def select(self, rows: torch.Tensor) -> LayerState:
        """The states of these rows of the batch, [row]; a row may be chosen several times."""
        return LayerState(self.conv.index_select(0, rows), self.ssm.index_select(0, rows))


def ssd(x, log_decay, B, C, chunk: int, state=None):
    """Mamba-2's scan in chunks: h[t] = exp(log_decay[t]) h[t-1] + B[t] x[t], y[t] = C[t] . h[t].

    Inside a chunk as a matrix product, from chunk to chunk as a recurrence (arXiv 2405.21060, section 6), so memory
    grows with length * chunk.

    Args:
        x: [batch, pos, head, d_head]. log_decay: [batch, pos, head], at most 0. B, C: [batch, pos, head, d_state].
        state: [batch, head, d_head, d_state] from before, or None.

    Returns: y [batch, pos, head, d_head] and the last state, computed in float32 (float64 stays).
    """
    length, wide = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    padding = -length % chunk
    # [batch, chunk, head, pos in chunk, ...]; padded positions neither decay nor add
    x, log_decay, B, C = (
        F.pad(part.to(wide), (0, 0) * (part.ndim - 2) + (0, padding))
        .unflatten(1, (-1, chunk))
        .transpose(2, 3)
        for part in (x, log_decay, B, C)
    )
    total = log_decay.cumsum(-1)
    decay = (
        (total.unsqueeze(-1) - total.unsqueeze(-2)).tril().exp().tril()
    )  # [batch, chunk, head, query, key]
    y = (C @ B.mT * decay) @ x
    added = (
        x * (total[..., -1:] - total).exp().unsqueeze(-1)
    ).mT @ B  # [batch, chunk, head, d_head, d_state]
    over_chunk = total[..., -1].exp()[..., None, None]
    h = torch.zeros_like(added[:, 0]) if state is None else state.to(wide)
    before = []
    for c in range(x.shape[1]):
        before.append(h)
        h = over_chunk[:, c] * h + added[:, c]
    y = y + C @ torch.stack(before, 1).mT * total.exp().unsqueeze(-1)
    return y.transpose(2, 3).flatten(1, 2)[:, :length], h


class DiscreteMamba2(nn.Module):
    """The mixer: y = SSM(conv(x), conv(B), conv(C), decay) + D x, gated, projected out."""

    def __init__(self, d_model, d_state, n_v_heads, n_qk_heads, expand, chunk_size, d_conv=4, **unused):
        super().__init__()
        self.d_inner, self.d_state, self.chunk_size = expand * d_model, d_state, chunk_size
        self.n_v_heads, self.n_qk_heads = n_v_heads, n_qk_heads
        width = self.d_inner + 2 * n_qk_heads * d_state
        self.in_proj = nn.Linear(d_model, width + self.d_inner + n_v_heads, bias=False)
        self.z_bias = nn.Parameter(torch.zeros(self.d_inner))
        self.conv1d = nn.Conv1d(width, width, d_conv, groups=width, padding=d_conv - 1)
        self.D = nn.Parameter(torch.ones(n_v_heads))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self.state_shape = (n_v_heads, self.d_inner // n_v_heads, d_state)

    def operands(self, u, mask=None, conv_state=None):
        """x [batch, pos, n_v_heads, d_head], B and C [batch, pos, n_qk_heads, d_state], gate [batch, pos, d_inner],
        raw decay [batch, pos, n_v_heads] (a step keeps exp(-softplus(decay)) of the state), for u [batch, pos, d_model].
        """
        width, kernel = self.conv1d.weight.shape[0], self.conv1d.weight.shape[-1]
        xBC, gate, decay = self.in_proj(u).split([width, self.d_inner, self.n_v_heads], dim=-1)
        before = xBC.new_zeros(len(u), width, kernel - 1) if conv_state is None else conv_state
        xBC = torch.cat([before, xBC.mT], dim=-1)
        if conv_state is not None:
            conv_state.copy_(xBC[..., 1 - kernel :])
        xBC = F.conv1d(xBC, self.conv1d.weight, self.conv1d.bias, groups=width).mT
        if mask is not None:
            xBC = xBC * mask
        x, B, C = xBC.split([self.d_inner, *[self.n_qk_heads * self.d_state] * 2], dim=-1)
        heads = ((x, self.n_v_heads), (B, self.n_qk_heads), (C, self.n_qk_heads))
        return *(part.unflatten(-1, (n, -1)) for part, n in heads), gate, decay

    def forward(self, u, mask=None, state: LayerState | None = None):
        """u: [batch, pos, d_model]. mask: [batch, pos, 1], 0 at padding. state: read and updated in place."""
        if mask is not None:
            u = u * mask
        x, B, C, gate, decay = self.operands(u, mask, state and state.conv)
        if (
            mamba_chunk_scan_combined is not None
            and u.is_cuda
            and state is None
            and not torch.is_grad_enabled()
        ):
            # The kernel scales x by its step size, softplus(decay); dividing first undoes that.
            y = mamba_chunk_scan_combined(
                x / F.softplus(decay.float()).to(x.dtype).unsqueeze(-1),
                decay,
                -torch.ones(self.n_v_heads, device=u.device),
                B,
                C,
                self.chunk_size,
                dt_softplus=True,
            )
        else:
            each = self.n_v_heads // self.n_qk_heads
            log_decay = -F.softplus(decay.to(torch.promote_types(decay.dtype, torch.float32)))
            B, C = (part.repeat_interleave(each, dim=2) for part in (B, C))
            y, last = ssd(x, log_decay, B, C, self.chunk_size if u.shape[1] > 1 else 1, state and state.ssm)
            if state is not None:
                state.ssm.copy_(last)
        y = (y.to(x.dtype) + self.D.unsqueeze(-1) * x).flatten(2)
        return self.out_proj(y * F.silu(gate + self.z_bias))

    def empty_state(self, batch: int) -> LayerState:
        weight = self.conv1d.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        conv = weight.new_zeros(batch, len(weight), weight.shape[-1] - 1)
        return LayerState(conv, weight.new_zeros(batch, *self.state_shape, dtype=wide))


class LlambaMLP(nn.Module):
    def __init__(self, d_model: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, intermediate_size, bias=False)
        self.up_proj = nn.Linear(d_model, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, d_model, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlambaBlock(nn.Module):
    def __init__(self, config: LlambaConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.mixer = DiscreteMamba2(config.d_model, **config.ssm_cfg)
        self.post_attention_layernorm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.mlp = LlambaMLP(config.d_model, config.mlp_cfg["intermediate_size"])

    def forward(self, hidden_states, mask=None, state=None):
        """hidden_states, the residual stream: [batch, pos, d_model]."""
        hidden_states = hidden_states + self.mixer(self.input_layernorm(hidden_states), mask, state)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    def empty_state(self, batch: int) -> LayerState:
        return self.mixer.empty_state(batch)


class LlambaPreTrainedModel(PreTrainedModel):
    config_class = LlambaConfig
    base_model_prefix = "backbone"
    _no_split_modules = ["LlambaBlock"]
    _is_stateful = True

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


class LlambaModel(LlambaPreTrainedModel):
    """Everything but the output head."""

    def __init__(self, config: LlambaConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(LlambaBlock(config) for _ in range(config.n_layer))
        self.final_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_epsilon)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def set_input_embeddings(self, value):
        self.embedding = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=False,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_states = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        states = past_key_values
        if states is None and use_cache:
            states = [layer.empty_state(len(hidden_states)) for layer in self.layers]
        mask = None
        if attention_mask is not None and not attention_mask.all():
            mask = attention_mask[:, -hidden_states.shape[1] :, None].to(hidden_states.dtype)
        for i, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, mask, states and states[i])
        return BaseModelOutputWithPast(self.final_layernorm(hidden_states), past_key_values=states)


class LlambaForCausalLM(LlambaPreTrainedModel, GenerationMixin):
    """Llamba with its output head; `generate` runs it as a recurrence, one token at a time."""

    _tied_weights_keys = {"lm_head.weight": "backbone.embedding.weight"}

    def __init__(self, config: LlambaConfig):
        super().__init__(config)
        self.backbone = LlambaModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # states are made by the first forward pass

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
        kept = {
            key: kwargs[key] for key in ("attention_mask", "use_cache", "logits_to_keep") if key in kwargs
        }
        return {
            "input_ids": input_ids if past_key_values is None else input_ids[:, -1:],
            "past_key_values": past_key_values,
        } | kept

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=False,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ):
        """Logits [batch, pos, vocabulary]; `logits_to_keep`: only the last so many positions, or those listed."""
        out = self.backbone(input_ids, attention_mask, past_key_values, inputs_embeds, use_cache)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.lm_head(out.last_hidden_state[:, keep]), past_key_values=out.past_key_values
        )


AutoConfig.register("llamba", LlambaConfig)
AutoModelForCausalLM.register(LlambaConfig, LlambaForCausalLM)
