import os

os.environ["HF_HUB_OFFLINE"] = "1"  # set before transformers is imported: nothing here may need a network

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import ga_utils as ga
from ga_utils import sweeps
from ga_utils.models.loading import data_dir


def pytest_collection_modifyitems(items):
    """A cell that takes long shows a bar, as text/plain: nbval compares only what checked cells print."""
    for book in {item.parent for item in items if item.path.suffix == ".ipynb"}:
        book.skip_compare += ("text/plain",)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(data_dir() / "world")


def random_llama(tokenizer, kv_heads: int, seed: int = 0, dtype=torch.float32) -> ga.LM:
    """A Llama with random weights, large enough that heads differ and attention is far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return ga.wrap(LlamaForCausalLM(config).to(dtype), tokenizer, name="random")


@pytest.fixture(params=[6, 2], ids=["multi-head", "grouped-query"])
def lm(request, tokenizer) -> ga.LM:
    return random_llama(tokenizer, request.param)


@pytest.fixture(scope="session")
def tiny():
    return ga.load_model("tiny-llama", device="cpu")


@pytest.fixture(scope="session")
def minimal():
    return ga.load_model("tiny-llama-minimal", device="cpu")


@pytest.fixture(scope="session")
def real():
    """SmolLM2 with 135 million parameters: the one model here that nobody made for this course."""
    return ga.load_model("smollm2-135m-instruct-q4", device="cpu")


def logits(lm: ga.LM, prompt: str) -> torch.Tensor:
    """Hugging Face's own full forward on one prompt: [pos, vocabulary]."""
    with torch.no_grad():
        return lm.model(**lm.tokenizer(prompt, return_tensors="pt"), use_cache=False).logits[0]


@pytest.fixture
def computed(monkeypatch) -> list:
    """The pieces that are computed in this process from now on."""
    pieces = []

    class Noted(sweeps.ExactSweep):
        def __call__(self, piece):
            pieces.append(piece)
            return super().__call__(piece)

    monkeypatch.setattr(sweeps, "ExactSweep", Noted)
    return pieces
