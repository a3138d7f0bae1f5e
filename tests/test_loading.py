"""Checkpoints in several files: all layers or the first ones, no weight missing and none read in vain."""

import json

import families
import pytest
import torch
from conftest import logits
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

import ga_utils as ga
from ga_utils.models.loading import INDEX, layer_of

PROMPT = "Dictionary:\napple: 17\nlamp: 4\nQuestion: what is the value of lamp?\nAnswer:"


def saved(lm, folder, shard="5KB"):
    lm.model.save_pretrained(folder, max_shard_size=shard)
    lm.tokenizer.save_pretrained(folder)
    return lm


@pytest.mark.parametrize("family", families.CONFIGS)
def test_first_layers_are_the_truncated_models_bit_for_bit(family, tokenizer, tmp_path):
    """Also where the configuration lists the layers one by one.

    Files that hold later layers only are broken here, so opening one would fail.
    """
    lm = saved(families.build(family, tokenizer), tmp_path)
    needed = set(json.loads((tmp_path / INDEX).read_text())["weight_map"].items())
    kept = {file for name, file in needed if layer_of(name) < 2}
    broken = {file for _, file in needed} - kept
    assert broken
    for file in broken:
        (tmp_path / file).write_bytes(b"not safetensors")
    short = ga.load_model(str(tmp_path), device="cpu", n_layers=2)
    assert short.n_layers == 2
    # Hugging Face reads some families' tokenizers with their own class, which splits our words otherwise.
    short = ga.wrap(short.model, tokenizer)
    with ga.truncate(lm, 2):
        assert torch.equal(logits(short, PROMPT), logits(lm, PROMPT))


@pytest.mark.parametrize("family", ["llama", "zamba2"])
def test_all_files_together_are_the_whole_model(family, tokenizer, tmp_path):
    lm = saved(families.build(family, tokenizer), tmp_path)
    assert torch.equal(logits(ga.load_model(str(tmp_path), device="cpu"), PROMPT), logits(lm, PROMPT))


TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
DELTA |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EXPERTS |= {"shared_expert_intermediate_size": 16}
QWENS_EYE = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "image_size": 16}
SIGLIP |= {"num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
SEEING = {
    "qwen3_5": (TEXT | DELTA, QWENS_EYE),
    "qwen3_5_moe": (TEXT | DELTA | EXPERTS, QWENS_EYE),
    "gemma3": (TEXT | {"layer_types": ["sliding_attention", "full_attention"] * 2}, SIGLIP),
}


@pytest.mark.parametrize("n_layers", [None, 2])
@pytest.mark.parametrize("family", SEEING)
def test_a_language_model_that_is_published_with_an_image_encoder(family, n_layers, tokenizer, tmp_path):
    """Qwen3.5, for one, comes in such checkpoints alone."""
    text, image = SEEING[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, text_config=text | {"vocab_size": len(tokenizer)}, vision_config=image
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    tokenizer.save_pretrained(tmp_path)
    lm = ga.load_model(tmp_path, device="cpu", n_layers=n_layers)
    assert lm.n_layers == (n_layers or 4)
    lm, whole = ga.wrap(lm.model, tokenizer), ga.wrap(model, tokenizer)
    with ga.truncate(whole, lm.n_layers):
        assert torch.equal(logits(lm, PROMPT), logits(whole, PROMPT))


def change(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "llamba"])
def test_a_missing_weight_is_named(family, tokenizer, tmp_path):
    lm = saved(families.build(family, tokenizer), tmp_path, "1GB")
    name = next(name for name in load_file(tmp_path / "model.safetensors") if ".1." in name)
    change(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"lacks 1 weights of a {type(lm.model).__name__}.*{name}"):
        ga.load_model(str(tmp_path), device="cpu")
    assert ga.load_model(str(tmp_path), device="cpu", n_layers=1).n_layers == 1  # that layer is not asked for


def test_a_missing_file_and_a_weight_of_another_shape_are_named(tokenizer, tmp_path):
    saved(families.build("llama", tokenizer), tmp_path / "many")
    file = json.loads((tmp_path / "many" / INDEX).read_text())["weight_map"]["model.norm.weight"]
    (tmp_path / "many" / file).unlink()
    with pytest.raises(ValueError, match=f"many/{file} is missing"):
        ga.load_model(str(tmp_path / "many"), device="cpu")
    saved(families.build("llama", tokenizer), tmp_path / "one", "1GB")
    change(tmp_path / "one", lambda weights: weights.update({"model.norm.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"in another shape: .*model\.norm\.weight"):
        ga.load_model(str(tmp_path / "one"), device="cpu")


def test_lists_that_happen_to_be_as_long_as_the_model_is_deep_stay_whole(tokenizer, tmp_path):
    lm = saved(families.build("falcon_h1", tokenizer, num_hidden_layers=5), tmp_path)  # five ssm_multipliers
    short = ga.load_model(str(tmp_path), device="cpu", n_layers=2)
    with ga.truncate(lm, 2):
        assert torch.equal(logits(short, PROMPT), logits(lm, PROMPT))
    assert short.model.name_or_path == str(tmp_path)


def test_a_damaged_file_is_named(tokenizer, tmp_path):
    saved(families.build("llama", tokenizer), tmp_path)
    file = sorted(tmp_path.glob("*.safetensors"))[3]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        ga.load_model(str(tmp_path), device="cpu")


def test_a_llamba_may_have_no_weight_too_many(tokenizer, tmp_path):
    saved(families.build("llamba", tokenizer), tmp_path, "1GB")
    change(tmp_path, lambda weights: weights.update({"backbone.layers.1.mixer.norm.weight": torch.zeros(2)}))
    with pytest.raises(
        ValueError, match=r"1 weights that a LlambaForCausalLM does not: backbone\.layers\.1\.mixer\.norm"
    ):
        ga.load_model(str(tmp_path), device="cpu")
    assert ga.load_model(str(tmp_path), device="cpu", n_layers=1).n_layers == 1


def test_a_weight_too_many_is_named(tokenizer, tmp_path):
    saved(families.build("llama", tokenizer), tmp_path, "1GB")
    change(tmp_path, lambda weights: weights.update({"model.layers.0.extra": torch.zeros(2)}))
    with pytest.warns(UserWarning, match="1 weights that a LlamaForCausalLM does not: model.layers.0.extra"):
        ga.load_model(str(tmp_path), device="cpu")
