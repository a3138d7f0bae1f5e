"""Faults that users of such tools report elsewhere, one test for each: the right number, or a sentence that
says what is wrong and what would be right.
"""

import by_hand
import numpy as np
import pytest
import torch
from conftest import random_llama
from transformers import LlamaConfig, LlamaForCausalLM

import ga_utils as ga

PROMPT = "Dictionary:\napple: 17\nlamp: 4\nQuestion: what is the value of lamp?\nAnswer:"


def small_llama(tokenizer, **changes) -> LlamaForCausalLM:
    """Two key-value heads for four heads, in two layers."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**shape | changes))


def test_9_a_model_in_train_mode_is_scored_without_dropout_and_stays_in_train_mode(tokenizer):
    lm = ga.wrap(small_llama(tokenizer, attention_dropout=0.5), tokenizer)
    examples = ga.tasks.mmlu(lm, n=4)
    expected = [by_hand.logprobs(lm, example) for example in examples]  # `wrap` has put it in eval mode
    lm.model.train()
    lm.layers[0].eval()  # frozen, as when only the last layers are trained on
    modes = [module.training for module in lm.model.modules()]
    assert by_hand.gap(ga.evaluate(lm, examples), expected) < 1e-5
    sweep = ga.sweep_heads(lm, examples, ["L1H2"], progress=False)
    assert sweep.baseline == ga.evaluate(lm, examples)
    with ga.ablate(lm, ["L1H2"]):
        assert sweep.accuracy[1, 2] == ga.evaluate(lm, examples).accuracy
    assert [module.training for module in lm.model.modules()] == modes and not all(modes)
