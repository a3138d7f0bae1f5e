"""Loading and wrapping."""

import re

import pytest
import torch
from conftest import logits, random_llama
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import ga_utils as ga
from ga_utils.models.catalog import TINY
from ga_utils.models.loading import data_dir

MODELS = data_dir() / "models"
PROMPT = "The flag of Arvo is"
CLASSES = {
    "tiny-llama": "LlamaForCausalLM",
    "tiny-llama-minimal": "LlamaForCausalLM",
    "tiny-falcon-mamba": "FalconMambaForCausalLM",
    "tiny-mamba2": "Mamba2ForCausalLM",
    "tiny-mamba2-d4": "Mamba2ForCausalLM",
    "tiny-mamba2-d16": "Mamba2ForCausalLM",
    "tiny-zamba2": "Zamba2ForCausalLM",
}  # all others are Llambas


@pytest.mark.parametrize("name", TINY)
def test_shipped_models_load_with_transformers_alone(name):
    model = AutoModelForCausalLM.from_pretrained(MODELS / name)
    assert type(model).__name__ == CLASSES.get(name, "LlambaForCausalLM")
    assert {path.name for path in (MODELS / name).iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    lm = ga.load_model(name, device="cpu")
    assert lm.name == name and lm.model.dtype == torch.float32 and not lm.model.training
    ids = lm.tokenizer(PROMPT, return_tensors="pt").input_ids
    assert torch.equal(model.eval()(ids).logits[0], logits(lm, PROMPT))


def test_all_models_together_stay_under_40_mb():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 40e6


def test_first_layers_equal_the_truncated_model(tiny):
    short = ga.load_model("tiny-llama", device="cpu", n_layers=2)
    with ga.truncate(tiny, 2):
        assert torch.equal(logits(short, PROMPT), logits(tiny, PROMPT))
    assert short.n_layers == 2 and short.model.config.num_hidden_layers == 2


def test_a_local_folder_loads(tmp_path, lm):
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(logits(ga.load_model(str(tmp_path), device="cpu"), PROMPT), logits(lm, PROMPT))


def test_mixers_describe_the_heads(tokenizer):
    mixer = random_llama(tokenizer, kv_heads=2).mixers[1]
    assert (mixer.layer, mixer.kind, mixer.n_heads, mixer.d_head) == (1, "attention", 6, 16)
    assert mixer.columns(2) == slice(32, 48)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: ga.load_model("tiny-lama"),
            "unknown model 'tiny-lama': known are tiny-llama, tiny-llama-minimal",
        ),
        (lambda: ga.load_model("tiny-llama", n_layers=0), "has 5 layers"),
        (lambda: ga.load_model("tiny-llama", n_layers=6), "has 5 layers"),
        (
            lambda: ga.wrap(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1)), None),
            "GPT2LMHeadModel is not supported",
        ),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
