"""The two pressures that make the minimal model: what the penalty counts, and that pruned heads stay dead."""

import math
import random

import pytest
import torch
from conftest import logits, random_llama

import ga_utils as ga
from ga_utils import train as trainer
from ga_utils.curriculum import Stage, Writer, batch
from ga_utils.sparsify import HeadCount, prune

PROMPT = "The flag of Arvo is amber river."


def rows(tokenizer, n=2):
    return batch(Writer(tokenizer).rows(random.Random(0), Stage(1, {"mmlu": 1.0}, length=80, rows=n)))


def test_counts_each_heads_output_against_the_stream(tokenizer):
    """By hand, from o_proj's columns, in one layer: sum over heads of log(1 + |w|/(t|x|)) / log(1 + 1/t)."""
    lm, data = random_llama(tokenizer, kv_heads=6), rows(tokenizer)
    caught = {}
    count = HeadCount(lm, at_all=1.0, at_answers=0.0, threshold=0.1)
    for i, mixer in enumerate(lm.mixers):
        mixer.out_proj.register_forward_pre_hook(lambda m, a, i=i: caught.__setitem__(("z", i), a[0].detach()))
        lm.layers[i].register_forward_pre_hook(lambda m, a, i=i: caught.__setitem__(("x", i), a[0].detach()))
    lm.model(input_ids=data["ids"])
    total = 0.0
    for i, mixer in enumerate(lm.mixers):
        for head in range(6):
            columns = mixer.columns(head)
            w = caught["z", i][..., columns] @ mixer.out_proj.weight[:, columns].T
            share = w.norm(dim=-1) / caught["x", i].norm(dim=-1)
            total += ((1 + share / 0.1).log() / math.log(11)).mean().item()
    assert count(10_000, data).item() == pytest.approx(total, rel=1e-4)


def test_silent_heads_are_free_and_removing_the_count_leaves_no_hook(tokenizer):
    lm, data = random_llama(tokenizer, kv_heads=6), rows(tokenizer)
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.model.modules()]
    for mixer in lm.mixers:
        mixer.out_proj.weight.data.zero_()
    count = HeadCount(lm, at_all=1.0, at_answers=1.0)
    lm.model(input_ids=data["ids"])
    assert count(10_000, data).item() < 0.1
    count.remove()
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.model.modules()] == before


def test_pruning_is_ablation_and_training_does_not_undo_it(tokenizer, tmp_path):
    model = trainer.new_llama(tokenizer, seed=0)
    lm = ga.wrap(model, tokenizer)
    with ga.ablate(lm, ["L3H1"]):
        ablated = logits(lm, PROMPT)
    prune(lm, ga.Head(3, 1))
    assert torch.allclose(logits(lm, PROMPT), ablated, atol=1e-6)
    run = trainer.Run(model, trainer.optimizers(model, 1e-2), tmp_path)
    trainer.train(run, [Stage(5, {"mmlu": 1.0}, length=64, rows=2)], 1e-2, "train-x", Writer(tokenizer))
    assert ga.Head(3, 1) not in ga.alive_heads(lm) and len(ga.alive_heads(lm)) == 19
