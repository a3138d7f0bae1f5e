"""A plain scan's memory as estimated from its shape, against what the real mixers hold."""

import pytest
import torch
from full_width import SHAPES
from live_memory import LiveMemory
from transformers import AutoConfig, AutoModelForCausalLM

from ga_utils.models.catalog import MODELS
from ga_utils.models.scan_memory import BROADCASTS, plain_scan_bytes, scan_shape

DELTANETS = ["qwen3_next", "qwen3_5_text", "olmo_hybrid"]
MLP = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}


def config(family: str, heads: int, d_head: int, d_state: int, chunk: int):
    """One layer at moderate width: d_model is half of the scan's, except in Llamba."""
    d_model = heads * d_head // 2
    few = {"num_hidden_layers": 1, "hidden_size": d_model}
    mamba2 = {
        "mamba_n_heads": heads,
        "mamba_d_head": d_head,
        "mamba_d_state": d_state,
        "mamba_chunk_size": chunk,
    }
    values = {
        "mamba": few | {"state_size": d_state},
        "falcon_mamba": few | {"state_size": d_state},
        "jamba": few | MLP | {"mamba_d_state": d_state, "attn_layer_offset": 1, "num_experts": 1},
        "mamba2": few
        | {"num_heads": heads, "head_dim": d_head, "state_size": d_state, "chunk_size": chunk}
        | {"n_groups": 1},
        "zamba2": few
        | MLP
        | {"n_mamba_heads": heads, "mamba_headdim": d_head, "mamba_d_state": d_state, "chunk_size": chunk}
        | {"layers_block_type": ["mamba"], "num_mem_blocks": 1, "mamba_ngroups": 2},
        "bamba": few | MLP | mamba2 | {"attn_layer_indices": []},
        "granitemoehybrid": few | MLP | mamba2 | {"layer_types": ["mamba"], "num_local_experts": 0},
        "falcon_h1": few | MLP | mamba2 | {"mamba_d_ssm": 2 * d_model},
        "nemotron_h": {"hidden_size": d_model, "layers_block_type": ["mamba"], "ssm_state_size": d_state}
        | {"mamba_num_heads": heads, "mamba_head_dim": d_head, "chunk_size": chunk, "n_groups": 2},
        "llamba": {
            "d_model": heads * d_head,
            "n_layer": 1,
            "mlp_cfg": {"intermediate_size": 64, "bias": False, "act_fn": "silu"},
            "ssm_cfg": {"d_state": d_state, "n_v_heads": heads, "n_qk_heads": heads, "chunk_size": chunk},
        },
    }
    deltanet = {"linear_num_value_heads": heads, "linear_value_head_dim": d_head}
    deltanet |= {"linear_num_key_heads": heads, "linear_key_head_dim": d_state}
    deltanet |= {"layer_types": ["linear_attention", "full_attention"], "num_experts": 0}
    values |= dict.fromkeys(DELTANETS, few | MLP | deltanet | {"num_hidden_layers": 2})
    return AutoConfig.for_model(family, vocab_size=100, pad_token_id=0, **values[family])


def mixer_of(model):
    layer = model.base_model.layers[0]
    return next(getattr(layer, name) for name in ("mixer", "mamba", "linear_attn") if hasattr(layer, name))


FAMILIES = ["mamba", "falcon_mamba", "jamba", "mamba2", "zamba2", "bamba", "granitemoehybrid", "falcon_h1"]
FAMILIES += ["nemotron_h", "llamba", *DELTANETS]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads, d_head, d_state, chunk", [(8, 64, 64, 128), (4, 32, 16, 64)])
def test_the_estimate_is_what_the_mixer_holds(family, heads, d_head, d_state, chunk):
    shape = config(family, heads, d_head, d_state, chunk)
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_config(shape).eval().to(dtype)
        for batch, length in ((4, 60), (1, 300)):
            hidden = torch.randn(batch, length, model.config.hidden_size, dtype=dtype)
            with LiveMemory(model) as live:
                mixer_of(model)(hidden)
            ratio = plain_scan_bytes(shape, batch, length, dtype) / live.peak
            assert 0.85 < ratio < (1.35 if BROADCASTS and family in DELTANETS else 1.15)


def test_an_image_encoder_beside_the_language_model_changes_nothing():
    both = AutoConfig.for_model("qwen3_5")
    assert scan_shape(both) == scan_shape(both.text_config) and scan_shape(both).kind == "deltanet"


def test_it_grows_with_prompts_and_with_whole_chunks():
    zamba = MODELS["zamba2-7b"].scan
    one = plain_scan_bytes(zamba, 1, 60, torch.bfloat16)
    assert plain_scan_bytes(zamba, 16, 60, torch.bfloat16) == pytest.approx(16 * one, rel=1e-6)
    assert plain_scan_bytes(zamba, 1, 256, torch.bfloat16) < 1.2 * one < plain_scan_bytes(zamba, 1, 257)
    assert plain_scan_bytes(AutoConfig.for_model("llama"), 16, 60) == 0


@pytest.mark.parametrize("name", [name for name in SHAPES if "llama-" not in name])
def test_the_catalogs_scans_are_those_of_the_architectures(name):
    family, values = SHAPES[name]
    assert MODELS[name].scan == scan_shape(AutoConfig.for_model(family, **values))
