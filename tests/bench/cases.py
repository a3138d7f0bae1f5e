"""What the benchmarks run on: a random Llama, a tokenizer of words, prompts of just the length asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import ga_utils as ga


@dataclass(frozen=True)
class Case:
    """One model and one set of prompts; all of it follows from these numbers.

    kv_heads, mlp: heads of keys and values, and the MLP's width; by default n_heads and 4 * width.
    prefix: tokens that all prompts share, in front of their own `tokens`.
    choice_tokens: tokens of each of a prompt's four choices.
    peers: the names of those that take part, where not all do.
    peer_heads: heads that a peer disables in each repeat, equally many of every layer. Their time is scaled
        to all heads: a whole forward pass costs the same whichever head is off.
    """

    name: str
    n_layers: int = 8
    n_heads: int = 8
    width: int = 256
    kv_heads: int | None = None
    mlp: int | None = None
    vocabulary: int = 8000
    tokens: int = 64
    prompts: int = 16
    prefix: int = 0
    choice_tokens: int = 1
    peer_heads: int = 64
    repeats: int = 5
    peers: tuple[str, ...] = ()

    @cached_property
    def lm(self) -> ga.LM:
        """Random weights, large enough that disabling one head moves a log-probability by about 0.1, a
        hundred times what contenders may differ by. Much larger ones make a network chaotic.
        """
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp or 4 * self.width,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.kv_heads or self.n_heads,
            max_position_embeddings=2048,
            initializer_range=0.5 / self.width**0.5,
        )
        return ga.wrap(LlamaForCausalLM(config), self.tokenizer, name=self.name)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A word is a token; `w17` is token 17. Nothing is put in front."""
        core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(self.vocabulary)}, unk_token="w0"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", pad_token="w0")

    @cached_property
    def examples(self) -> list[ga.Example]:
        """Prompts of `prefix + tokens` random words with four choices that begin with different words."""
        rng = random.Random(0)
        words = [f"w{i}" for i in range(1, self.vocabulary)]
        shared = rng.choices(words, k=self.prefix)
        return [
            ga.Example(
                " ".join(shared + rng.choices(words, k=self.tokens)),
                tuple(
                    " " + " ".join([first, *rng.choices(words, k=self.choice_tokens - 1)])
                    for first in rng.sample(words, 4)
                ),
                rng.randrange(4),
                "random words",
            )
            for _ in range(self.prompts)
        ]

    @cached_property
    @torch.inference_mode(False)  # whoever asks first: an inference tensor could never meet a gradient
    def ids(self) -> torch.Tensor:
        """[prompt, token]: what the peers are given, so that they need not tokenize."""
        return torch.tensor(self.tokenizer([example.prompt for example in self.examples]).input_ids)

    @cached_property
    @torch.inference_mode(False)
    def choices(self) -> torch.Tensor:
        """[prompt, 4]: the token of each choice, where a choice is one token."""
        vocab = self.tokenizer.get_vocab()
        return torch.tensor(
            [[vocab[choice.strip()] for choice in example.choices] for example in self.examples]
        )

    @property
    def heads(self) -> list[ga.Head]:
        return [ga.Head(layer, head) for layer in range(self.n_layers) for head in range(self.n_heads)]

    def some_heads(self, repeat: int) -> list[ga.Head]:
        """The heads whose turn it is in this repeat: evenly spaced, shifted by one each time."""
        step = max(1, len(self.heads) // self.peer_heads)
        return self.heads[repeat % step :: step]


CASES = [
    Case("8x8_v8000", peer_heads=16),
    Case("8x8_v32000", vocabulary=32_000, peer_heads=16),
    Case("8x8_prefix512", prefix=512, peer_heads=8, repeats=3),
    Case("16x16", n_layers=16, n_heads=16, width=512, peer_heads=16, repeats=3),
    # The shape of a real small language model, SmolLM2-135M.
    Case(
        "smollm2_135m",
        n_layers=30,
        n_heads=9,
        width=576,
        kv_heads=3,
        mlp=1536,
        vocabulary=49_152,
        tokens=32,
        prompts=8,
        peer_heads=30,
        repeats=2,
        peers=("plain Hugging Face loop", "plain loop, last logits"),
    ),
]
EVALUATIONS = [
    Case(f"{name}_v{vocabulary}", vocabulary=vocabulary, repeats=3, **shape)
    for name, shape in {
        "four_choices": {"tokens": 1000, "choice_tokens": 60, "prompts": 4},
        "letters": {"tokens": 500, "prompts": 16},
    }.items()
    for vocabulary in (8_000, 32_000)
]
QUICK = Case(
    "quick", n_layers=2, n_heads=4, width=32, vocabulary=200, tokens=12, prompts=6, prefix=5, peer_heads=8
)
QUICK_EVALUATION = replace(QUICK, choice_tokens=3, repeats=2)
