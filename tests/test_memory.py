"""Large models on a small card, without any card: `evaluate` and `sweep_heads` on the `meta` device.

Tensors there have shapes and no numbers. The tests add up the bytes of those that are alive at the same time:
are batches sized well? On a real card, fragmentation and CUDA itself (some 0.5 GB) come on top.
"""

import random

import pytest
import torch
import transformers
from full_width import SHAPES
from live_memory import OnMeta, weights
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import ga_utils as ga
from ga_utils.models import budget as budgets

LIMIT = 14.5e9  # bytes that the process may hold on a card of 15 GB
LETTERS = (" A", " B", " C", " D")


def on_meta(name: str, dtype: torch.dtype, n_layers: int | None = None) -> PreTrainedModel:
    family, values = SHAPES[name]
    config = AutoConfig.for_model(family, **values)
    config.num_hidden_layers = n_layers or config.num_hidden_layers
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).to(dtype)


@pytest.fixture(scope="module", params=["llama-3.1-8b-instruct", "llamba-8b"])
def eight_billion(request) -> PreTrainedModel:
    return on_meta(request.param, torch.float16, n_layers=18)


def questions(tokenizer, lengths: list[int], choices=LETTERS) -> list[ga.Example]:
    rng = random.Random(0)
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    return [
        ga.Example(" ".join(rng.choices(words, k=length)) + "\nAnswer:", choices, 0, "random words")
        for length in lengths
    ]


def few_shot(tokenizer) -> list[ga.Example]:
    """As long as MMLU with five shots: 64 prompts of 450 to 900 tokens."""
    return questions(tokenizer, random.Random(1).choices(range(450, 901), k=64))


def one_long(tokenizer) -> list[ga.Example]:
    return questions(tokenizer, [2900])


def four_texts(tokenizer) -> list[ga.Example]:
    """Choices of 60 tokens each, which continue their prompt of 1,000."""
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    choices = tuple(" " + " ".join(words[60 * i : 60 * (i + 1)]) for i in range(4))
    return questions(tokenizer, [1000] * 8, choices)


def peak(model: PreTrainedModel, tokenizer, card: float, monkeypatch, work) -> float:
    """Bytes at the peak of `work(lm)`, weights included, on a GPU with `card` bytes."""
    with OnMeta(model) as live:
        free = card - weights(model)
        monkeypatch.setattr(budgets, "free_gb", lambda device: (free - live.now) / 1e9)
        work(ga.wrap(model, tokenizer))
    return weights(model) + live.peak


@pytest.mark.parametrize("ask", [few_shot, one_long, four_texts])
def test_evaluate_fits_a_card_of_15_gb(ask, eight_billion, tokenizer, monkeypatch):
    examples = ask(tokenizer)
    assert peak(eight_billion, tokenizer, 15e9, monkeypatch, lambda lm: ga.evaluate(lm, examples)) < LIMIT


@pytest.mark.parametrize("ask", [few_shot, one_long, four_texts])
def test_a_sweep_fits_a_card_of_15_gb(ask, eight_billion, tokenizer, monkeypatch):
    """Heads of the last layer, several in one batch where they fit, and a head of an early layer."""
    examples, heads = ask(tokenizer), ["L2H0", "L17H0", "L17H1", "L17H2"]

    def sweep(lm):
        ga.sweep_heads(lm, examples, heads, progress=False)

    assert peak(eight_billion, tokenizer, 15e9, monkeypatch, sweep) < LIMIT


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.16"),
    reason="transformers 5.15 numbers Zamba2's shared blocks by layer and can't build two of them",
)
@pytest.mark.slow
def test_zamba2_without_kernels_takes_less_than_20_gb_also_where_more_is_free(tokenizer, monkeypatch):
    examples = questions(tokenizer, [57] * 16)
    zamba = on_meta("zamba2-7b", torch.bfloat16)
    assert peak(zamba, tokenizer, 141e9, monkeypatch, lambda lm: ga.evaluate(lm, examples)) < 20e9
