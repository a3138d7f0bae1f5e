"""The paper's models with random weights, and prompts for them in the words of the tiny world."""

from __future__ import annotations

import random

import torch
from full_width import SHAPES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ga_utils as ga
from ga_utils.models.loading import data_dir

# Small versions of the same families: they check these scripts on a CPU.
NARROW_ATTENTION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
NARROW = {
    "llama": NARROW_ATTENTION | {"num_hidden_layers": 2},
    "llamba": {
        "d_model": 64,
        "n_layer": 2,
        "vocab_size": 512,
        "mlp_cfg": {"intermediate_size": 96, "bias": False, "act_fn": "silu"},
        "ssm_cfg": {"d_state": 8, "n_v_heads": 4, "n_qk_heads": 4},
    },
    "zamba2": NARROW_ATTENTION
    | {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "mamba", "hybrid"],
        "num_mem_blocks": 1,
        "num_key_value_heads": 4,
        "attention_head_dim": 32,
        "n_mamba_heads": 4,
        "mamba_headdim": 32,
        "mamba_d_state": 8,
    },
}


def build(
    name: str, device: str, dtype: torch.dtype, n_layers: int | None = None, narrow: bool = False
) -> ga.LM:
    """A model of the catalog with random weights; narrow: two or three small layers of the same family."""
    family, values = SHAPES[name]
    config = AutoConfig.for_model(family, **(NARROW[family] if narrow else values))
    if n_layers and not narrow:
        config.num_hidden_layers = n_layers
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return ga.wrap(model, AutoTokenizer.from_pretrained(data_dir() / "world"), name)


def questions(lm: ga.LM, lengths: list[int]) -> list[ga.Example]:
    """Prompts of random words, so many in each, with four single letters to choose from."""
    rng = random.Random(0)
    words = sorted(word for word in lm.tokenizer.get_vocab() if word.isalpha())
    return [
        ga.Example(
            " ".join(rng.choices(words, k=length)) + "\nAnswer:", (" A", " B", " C", " D"), 0, "random words"
        )
        for length in lengths
    ]
