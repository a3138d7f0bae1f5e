"""The losses that leave few heads active: what is counted, what is scaled down, and that pruned heads stay
dead."""

import math
import random

import pytest
import torch
from conftest import logits, random_llama

import ga_utils as ga
from ga_utils.training import loop
from ga_utils.training.curriculum import Stage, Writer, batch
from ga_utils.training.sparsify import FewHeadsLoss, prune
from ga_utils.training.untrained import new_llama

PROMPT = "The flag of Arvo is owl under red moon."


def rows(tokenizer, n=2, **changes):
    return batch(
        Writer(tokenizer).rows(random.Random(0), Stage(1, {"mmlu": 1.0}, length=80, rows=n, **changes))
    )


def few_heads(lm, tokenizer, *costs, **options):
    return FewHeadsLoss(lm, tokenizer.convert_tokens_to_ids("\n"), *costs, ramp=1, threshold=0.1, **options)


@pytest.mark.parametrize("where", range(3))
def test_counts_each_heads_output_against_the_stream(where, tokenizer):
    """By hand, from o_proj's columns: sum over heads of log(1 + |w|/(t|x|)) / log(1 + 1/t), at the tokens it
    names."""
    lm, data = random_llama(tokenizer, kv_heads=6), rows(tokenizer)
    caught = {}
    for i, mixer in enumerate(lm.mixers):
        mixer.out_proj.register_forward_pre_hook(
            lambda m, a, i=i: caught.__setitem__(("z", i), a[0].detach())
        )
        lm.layers[i].register_forward_pre_hook(lambda m, a, i=i: caught.__setitem__(("x", i), a[0].detach()))
    costs = [0.0, 0.0, 0.0]
    costs[where] = 1.0
    with_penalty = few_heads(lm, tokenizer, *costs)
    loss, _ = with_penalty(lm.model, data, 5)
    with_penalty.remove()
    tokens = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in data["ids"]]
    newline = torch.tensor([[token == "\n" for token in row] for row in tokens])
    places = {
        0: torch.ones_like(newline),
        1: torch.tensor([[a == "\n" or b == "\n" for a, b in zip(row, ["", *row])] for row in tokens]),
        2: torch.tensor([[w >= 1 for w in row[1:]] + [False] for row in data["weights"]]),
    }[where]
    total = 0.0
    for i, mixer in enumerate(lm.mixers):
        for head in range(6):
            columns = mixer.columns(head)
            w = caught["z", i].float()[..., columns] @ mixer.out_proj.weight[:, columns].T
            share = w.norm(dim=-1) / caught["x", i].float().norm(dim=-1)
            total += ((1 + share / 0.1).log() / math.log(11))[places].mean().item()
    plain = loop.answer_loss(lm.model, data)[0]
    assert (loss - plain).item() == pytest.approx(total, rel=2e-2)  # bfloat16 autocast


def test_fading_heads_are_turned_down_and_removing_leaves_no_hook(tokenizer):
    lm, data = random_llama(tokenizer, kv_heads=6), rows(tokenizer)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.model.modules()]
    fading = few_heads(lm, tokenizer, 0, 0, 0, fading=[ga.Head(1, 2)], steps=10)
    losses = [fading(lm.model, data, step)[0].item() for step in (0, 5, 10, 99)]
    fading.remove()
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.model.modules()]
    assert losses[0] == pytest.approx(loop.answer_loss(lm.model, data)[0].item(), rel=1e-5)
    assert losses[1] != losses[0] and losses[2] == losses[3]
    with ga.ablate(lm, ["L1H2"]):
        assert losses[2] == pytest.approx(loop.answer_loss(lm.model, data)[0].item(), rel=1e-5)


def test_rows_of_facts_alone_lose_one_head_each_and_other_rows_none(tokenizer):
    lm, data = random_llama(tokenizer, kv_heads=6), rows(tokenizer, n=3, fact_rows=2)
    count = few_heads(lm, tokenizer, 0, 0, 0)
    count(lm.model, data, 7)
    scale = torch.stack([count.scale[layer][:, 0] for layer in range(3)], 1)  # [row, layer, head]
    count.remove()
    assert ((scale == 0) | (scale == 1)).all()
    assert (scale == 0).flatten(1).sum(1).tolist() == [0, 0, 0, 1, 1]


def test_pruning_is_ablation_and_training_does_not_undo_it(tokenizer, tmp_path):
    model = new_llama(tokenizer, seed=0)
    lm = ga.wrap(model, tokenizer)
    with ga.ablate(lm, ["L3H1"]):
        ablated = logits(lm, PROMPT)
    prune(lm, ga.Head(3, 1))
    assert torch.allclose(logits(lm, PROMPT), ablated, atol=1e-6)
    run = loop.TrainingState(model, loop.optimizers(model, 1e-2), tmp_path)
    loop.train(run, [Stage(5, {"mmlu": 1.0}, length=64, rows=2)], 1e-2, "train-0", Writer(tokenizer))
    assert ga.Head(3, 1) not in ga.alive_heads(lm) and len(ga.alive_heads(lm)) == 19
