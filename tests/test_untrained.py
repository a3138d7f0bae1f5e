"""The starts of the models that are trained here."""

import numpy as np
import pytest
import torch

import ga_utils as ga
from ga_utils.training.recipes import world_tokenizer
from ga_utils.training.untrained import new_deltanet, new_mamba2, new_qwen3_next


def started(make, **sizes):
    tokenizer = world_tokenizer()
    lm = ga.wrap(make(tokenizer, 3, **sizes), tokenizer)
    return lm, ga.tasks.mmlu(lm, n=1, seed=2)[0].prompt


@pytest.mark.parametrize("make, sizes", [(new_deltanet, {"d_state": 16}), (new_qwen3_next, {})])
def test_a_gated_deltanet_starts_as_mamba_2_does(make, sizes):
    """The first layer is louder than the embeddings, and a token changes little of its state; heads forget
    at several rates."""
    lm, prompt = started(make, **sizes)
    ids = lm.encode(prompt)
    with torch.no_grad():
        hidden = lm.model(ids, output_hidden_states=True).hidden_states
    assert (hidden[1] - hidden[0]).std() > 5 * hidden[0].std()
    assert not any(block.mlp.down_proj.weight.any() for block in lm.layers)
    for mixer in lm.mixers:
        if mixer.kind == "deltanet":
            operands = ga.scan(lm, prompt, mixer.layer)
            assert mixer.layer or (0.01 < operands.beta.median() < 0.15 and operands.beta.max() < 0.3)
            half_life = np.log(0.5) / operands.log_alpha.mean(0)
            assert half_life.min() < 5 and half_life.max() > 50


def test_as_many_numbers_are_kept_as_by_mamba_2():
    lm, prompt = started(new_deltanet, d_state=16)
    rival, _ = started(new_mamba2, d_state=16)
    heads = range(lm.mixers[0].n_heads)
    assert lm.n_layers == rival.n_layers and len(heads) == rival.mixers[0].n_heads
    for layer in range(lm.n_layers):
        assert (
            ga.scan(lm, prompt, layer).state(heads).shape == ga.scan(rival, prompt, layer).state(heads).shape
        )
