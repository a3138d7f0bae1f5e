"""Llamba: a Llama whose attention is replaced by discrete Mamba-2, in plain PyTorch.

Llamba (Bick et al. 2025, arXiv 2502.14458) is the one model of the course that Hugging Face lacks. A block is
RMSNorm -> mixer -> residual -> RMSNorm -> gated MLP -> residual, as in Llama; the mixer is in
`discrete_mamba2.py`.

Names and shapes of the published checkpoints (cartesia-ai/Llamba-*, goombalab/Llamba-8B-untied-unaligned),
read from the source of cartesia-ai/edge, `cartesia_pytorch/Llamba` at commit 95d8276 (`llamba.py`,
`mixers/discrete_mamba2.py`, `configuration_llamba.py`); d = d_model, i = expand * d, q = n_qk_heads, v =
n_v_heads, n = d_state:

    backbone.embedding.weight                              [vocabulary, d]
    backbone.layers.0.input_layernorm.weight               [d]
    backbone.layers.0.mixer.in_proj.weight                 [2i + 2qn + v, d]   rows: x i, B qn, C qn, gate i,
    decay v backbone.layers.0.mixer.conv1d.weight, .bias           [i + 2qn, 1, 4], [i + 2qn]
    backbone.layers.0.mixer.z_bias                         [i]                 added to the gate
    backbone.layers.0.mixer.D                              [v]
    backbone.layers.0.mixer.out_proj.weight                [d, i]
    backbone.layers.0.post_attention_layernorm.weight      [d]
    backbone.layers.0.mlp.{gate,up,down}_proj.weight
    backbone.final_layernorm.weight                        [d]
    lm_head.weight                                         [vocabulary, d], unless the embeddings are tied

What this file does not do: training tricks, padding inside a row, and n_v_heads that n_qk_heads doesn't
    divide.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ga_utils.models.discrete_mamba2 import DiscreteMamba2, LayerState, ssd

__all__ = ["LayerState", "LlambaConfig", "LlambaForCausalLM", "LlambaModel", "LlambaPreTrainedModel", "ssd"]

# The published models' mixer and MLP; a `config.json` may change single fields of the mixer's.
MIXER = {
    "d_state": 64,
    "n_v_heads": 32,
    "n_qk_heads": 32,
    "expand": 1,
    "chunk_size": 128,
    "activation": "identity",
    "bias": False,
}
MLP = {"intermediate_size": 14336, "bias": False, "act_fn": "silu"}


class LlambaConfig(PreTrainedConfig):
    """Field names are those of the published `config.json`.

    norm_epsilon: of every RMSNorm.

    Raises:
        ValueError: activations, biases or a ratio of heads that no published Llamba has.
    """

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
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.n_layer = n_layer
        self.tie_embeddings = tie_embeddings
        self.norm_epsilon = norm_epsilon
        self.mlp_cfg = mlp_cfg or MLP
        self.ssm_cfg = MIXER | (ssm_cfg or {})
        if self.ssm_cfg["n_v_heads"] % self.ssm_cfg["n_qk_heads"]:
            raise ValueError(f"n_v_heads must be a multiple of n_qk_heads, got {self.ssm_cfg}")
        linear = self.ssm_cfg["activation"] == "identity" and not self.ssm_cfg["bias"]
        if not linear or self.mlp_cfg["act_fn"] != "silu":
            raise ValueError(
                f"only Llamba's own activations and no biases are built here, got {ssm_cfg}, {mlp_cfg}"
            )
        kwargs["tie_word_embeddings"] = tie_embeddings
        super().__init__(**kwargs)


class LlambaMLP(nn.Module):
    def __init__(self, d_model: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, intermediate_size, bias=False)
        self.up_proj = nn.Linear(d_model, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlambaBlock(nn.Module):
    def __init__(self, config: LlambaConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_epsilon)
        self.mixer = DiscreteMamba2(config.d_model, **config.ssm_cfg)
        self.post_attention_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_epsilon)
        self.mlp = LlambaMLP(config.d_model, config.mlp_cfg["intermediate_size"])

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        state: LayerState | None = None,
    ) -> torch.Tensor:
        """hidden_states, the residual stream: [batch, pos, d_model]. mask: [batch, pos, 1], 0 at padding."""
        hidden_states = hidden_states + self.mixer(self.input_layernorm(hidden_states), mask, state)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))

    def empty_state(self, batch: int) -> LayerState:
        return self.mixer.empty_state(batch)


class LlambaPreTrainedModel(PreTrainedModel):
    config_class = LlambaConfig
    base_model_prefix = "backbone"
    _no_split_modules = ["LlambaBlock"]
    _is_stateful = True  # generation can't go back to an earlier token: a state holds no history

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
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: list[LayerState] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """The residual stream after the last norm; arguments as in `LlambaForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        states = past_key_values
        if states is None and use_cache:
            states = [layer.empty_state(len(hidden_states)) for layer in self.layers]
        mask = None
        if attention_mask is not None and not attention_mask.all():
            mask = attention_mask[:, -hidden_states.shape[1] :, None].to(hidden_states.dtype)
        entering = []  # the residual stream before each layer
        for i, layer in enumerate(self.layers):
            entering.append(hidden_states)
            hidden_states = layer(hidden_states, mask, states and states[i])
        hidden_states = self.final_layernorm(hidden_states)
        return BaseModelOutputWithPast(
            hidden_states,
            past_key_values=states,
            hidden_states=(*entering, hidden_states) if output_hidden_states else None,
        )


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
        """What `generate` hands to `forward` at each step: the prompt first, then one token at a time."""
        used = ("attention_mask", "use_cache", "logits_to_keep", "output_hidden_states")
        return {
            "input_ids": input_ids if past_key_values is None else input_ids[:, -1:],
            "past_key_values": past_key_values,
        } | {key: kwargs[key] for key in used if key in kwargs}

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: list[LayerState] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits, and what Hugging Face's users expect beside them. There is no `position_ids`: an SSM needs
        none.

        Args:
            input_ids: [batch, pos]; or inputs_embeds: [batch, pos, d_model].
            attention_mask: [batch, pos], 0 at padding on the left or right.
            past_key_values: one `LayerState` a layer, from a call with `use_cache=True`; updated in place.
            labels: [batch, pos], the inputs themselves; -100 is left out of the loss.
            output_hidden_states: also return n_layers + 1 tensors [batch, pos, d_model]: the embeddings, the
                residual stream after each layer but the last, and that after the last layer and the final
                norm.
            return_dict: False for a plain tuple.
            logits_to_keep: make logits only for so many last positions, or for the positions listed; 0 for
                all.

        Returns:
            logits [batch, kept position, vocabulary]; with labels also `loss`, the mean over tokens in nats.

        Raises:
            TypeError: an unknown keyword. ValueError: neither or both of `input_ids` and `inputs_embeds`, or
                attention weights are asked for.
        """
        if output_attentions:
            raise ValueError(
                "a Llamba has no attention weights; ga.attention_map shows its implicit attention"
            )
        out = self.backbone(
            input_ids, attention_mask, past_key_values, inputs_embeds, use_cache, output_hidden_states
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        result = CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()


AutoConfig.register("llamba", LlambaConfig)
AutoModelForCausalLM.register(LlambaConfig, LlambaForCausalLM)
