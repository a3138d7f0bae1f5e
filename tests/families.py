"""A small model with random weights of every family that the course supports, built from its own
configuration.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ga_utils as ga

ATTENTION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
CONFIGS = {
    "llama": ATTENTION | {"num_hidden_layers": 3},
    "llamba": {
        "d_model": 32,
        "n_layer": 3,
        "mlp_cfg": {"intermediate_size": 48, "bias": False, "act_fn": "silu"},
        "ssm_cfg": {"d_state": 4, "n_v_heads": 4, "n_qk_heads": 2, "chunk_size": 16},
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "state_size": 4,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
        "chunk_size": 16,
    },
    # Two shared blocks, three depths. transformers 5.15 numbers the blocks by layer, later ones by depth:
    # here both agree.
    "zamba2": ATTENTION
    | {
        "num_hidden_layers": 5,
        "hybrid_layer_ids": [2, 3, 4],
        "layers_block_type": ["mamba", "mamba", "hybrid", "hybrid", "hybrid"],
        "num_mem_blocks": 2,
        "attention_head_dim": 16,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 2,
        "mamba_d_state": 4,
        "chunk_size": 16,
        "num_key_value_heads": 4,
        "use_mem_rope": True,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
    },
    "bamba": ATTENTION | MAMBA2 | {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "jamba": ATTENTION
    | {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "falcon_h1": ATTENTION
    | MAMBA2
    | {
        "num_hidden_layers": 3,
        "mamba_d_ssm": 64,
        "ssm_in_multiplier": 0.7,
        "ssm_multipliers": [0.5, 0.8, 1.2, 0.9, 1.1],
    },
    "nemotron_h": ATTENTION
    | {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "mlp", "attention", "mamba"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 4,
        "chunk_size": 16,
        "head_dim": 8,
    },
    "granitemoehybrid": ATTENTION
    | MAMBA2
    | {
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
    },
}
DELTANET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 8,
}
RECURRENT = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
QWEN = ATTENTION | DELTANET | {"head_dim": 8, "num_hidden_layers": 4, "layer_types": RECURRENT}
CONFIGS |= {
    "qwen3_next": QWEN | EXPERTS | {"shared_expert_intermediate_size": 8},
    "qwen3_5_text": QWEN,
    "qwen3_5_moe_text": QWEN | EXPERTS | {"shared_expert_intermediate_size": 8},
    # Hugging Face refuses one without attention, so its first two layers must hold some.
    "olmo_hybrid": QWEN | {"layer_types": [RECURRENT[0], "full_attention", *RECURRENT[:2]]},
}
DELTANETS = ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"]
SSMS = [family for family in CONFIGS if family not in ("llama", *DELTANETS)]


def build(family: str, tokenizer, dtype=torch.float32, **changes) -> ga.LM:
    """Weights large enough that heads differ; decays, skips and biases random too, so that no term can
    hide.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=1,
        **{"eos_token_id": None} | CONFIGS.get(family, {}) | changes,
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    for name, p in model.named_parameters():
        if name.endswith("linear_attn.A_log"):
            p.data.sub_(3)  # Hugging Face's start forgets within a token or two: no state would matter
        if p.ndim >= 2:
            p.data.normal_(std=0.5 if "conv1d" in name else 0.25)
        elif name.endswith(("D", "dt_bias", "z_bias", "conv1d.bias", "A_log")):
            p.data.add_(torch.randn_like(p) * 0.3)
    return ga.wrap(model, tokenizer, name=family)
