"""The configurations of the paper's models, written down from public sources; no weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

HYBRID = (6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77)
LLAMA = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
}
LLAMBA_1B = {
    "d_model": 2048,
    "n_layer": 16,
    "tie_embeddings": True,
    "mlp_cfg": {"intermediate_size": 8192, "bias": False, "act_fn": "silu"},
}
MAMBA2 = {"head_dim": 64, "state_size": 128, "n_groups": 1, "vocab_size": 50288, "tie_word_embeddings": True}
QWEN3_5 = {"num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256}
QWEN3_5 |= {"linear_num_key_heads": 16, "linear_num_value_heads": 16, "tie_word_embeddings": True}
SHAPES = {
    "llama-3.1-8b-instruct": (
        "llama",
        LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    ),
    "llama-3.2-1b": (
        "llama",
        LLAMA
        | {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
    ),
    "llamba-8b": ("llamba", {}),
    "llamba-1b": ("llamba", LLAMBA_1B),
    "falcon-mamba-7b-instruct": (
        "falcon_mamba",
        {
            "vocab_size": 65024,
            "hidden_size": 4096,
            "num_hidden_layers": 64,
            "state_size": 16,
            "tie_word_embeddings": False,
        },
    ),
    "zamba2-7b": (
        "zamba2",
        {
            "vocab_size": 32000,
            "hidden_size": 3584,
            "num_hidden_layers": 81,
            "mamba_d_state": 64,
            "mamba_expand": 2,
            "mamba_ngroups": 2,
            "n_mamba_heads": 112,
            "mamba_headdim": 64,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "attention_head_dim": 224,
            "num_mem_blocks": 2,
            "use_shared_attention_adapter": False,
            "adapter_rank": 128,
            "use_mem_rope": True,
            "layers_block_type": ["hybrid" if i in HYBRID else "mamba" for i in range(81)],
        },
    ),
    "mamba2-130m": ("mamba2", MAMBA2 | {"hidden_size": 768, "num_heads": 24, "num_hidden_layers": 24}),
    "qwen3.5-0.8b": ("qwen3_5_text", QWEN3_5 | {"hidden_size": 1024, "intermediate_size": 3584}),
    "qwen3.5-2b": ("qwen3_5_text", QWEN3_5 | {"hidden_size": 2048, "intermediate_size": 6144}),
    "olmo-hybrid-7b": ("olmo_hybrid", {}),
    "mamba2-1.3b": ("mamba2", MAMBA2 | {"hidden_size": 2048, "num_heads": 64, "num_hidden_layers": 48}),
}


def on_meta(name: str):
    """The whole model without memory for its weights."""
    family, values = SHAPES[name]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
