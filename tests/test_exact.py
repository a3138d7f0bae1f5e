"""The fast sweep gives what the plain loop gives: full forward passes, one head at a time, for every family
and mode.
"""

import random

import families
import numpy as np
import pytest
import torch

import ga_utils as ga
from ga_utils.models import budget as budgets
from ga_utils.models.batches import plan, rows_of
from ga_utils.models.budget import budget
from ga_utils.sweeps.exact import ExactSweep, copies_that_fit

FEW_SHOT = "Dictionary:\napple: 17\nlamp: 4\ndrum: 52\nQuestion: what is the value of lamp?\nAnswer: 4\n"


def plain(lm, examples, head, mode="zero", reference=None):
    with ga.ablate(lm, [head], mode, reference):
        return ga.evaluate(lm, examples).logprobs


def examples_of(lm, rng):
    """Letters and dictionaries (one token a choice) and facts (some tokens a choice), of different
    lengths.
    """
    n = rng.randint(1, 3)
    return [
        *ga.tasks.mmlu(lm, n=n, seed=rng.random()),
        *ga.tasks.kv_retrieval(lm, n_pairs=rng.randint(2, 9), n=2, seed=rng.random()),
        *ga.tasks.knowledge(lm, n=n, seed=rng.random()),
    ]


def largest_gap(lm, examples, heads, mode="zero", reference=None):
    run, gaps = ExactSweep(lm, rows_of(lm, examples), mode, reference), []
    pairs = [(run(())[0], ga.evaluate(lm, examples).logprobs)]
    for layer in {head.layer for head in heads}:
        piece = tuple(head for head in heads if head.layer == layer)
        pairs += zip(run(piece), (plain(lm, examples, head, mode, reference) for head in piece))
    for ours, theirs in pairs:
        assert np.array_equal(np.isnan(ours), np.isnan(theirs))
        gaps.append(np.nanmax(np.abs(ours - theirs)))
    return max(gaps)


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
@pytest.mark.parametrize("family", families.CONFIGS)
def test_every_family_and_mode_equals_the_plain_loop(family, mode, tokenizer):
    lm, rng = families.build(family, tokenizer), random.Random(family + mode)
    heads = rng.sample(ga.alive_heads(lm), 6) + [ga.alive_heads(lm)[0], ga.alive_heads(lm)[-1]]
    reference = ga.tasks.mmlu(lm, n=3, seed=9)
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    assert largest_gap(lm, examples_of(lm, rng), dict.fromkeys(heads), mode, reference) < 1e-4
    assert all(torch.equal(p, before[name]) for name, p in lm.model.state_dict().items())
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in lm.model.modules()
    )


@pytest.mark.parametrize("trial", range(12))
def test_random_shapes(trial, tokenizer, monkeypatch):
    """Layers, heads, grouped queries, batch sizes, shared beginnings: whatever comes."""
    rng = random.Random(trial)
    monkeypatch.setattr(budgets, "CPU_TOKENS", rng.choice([32, 100, 333, 2000]))
    n_heads = rng.choice([1, 2, 4, 6])
    groups = rng.choice([k for k in (1, 2, 3, 6) if n_heads % k == 0])
    shape = {
        "num_hidden_layers": rng.randint(1, 5),
        "num_attention_heads": n_heads,
        "num_key_value_heads": groups,
    }
    lm = families.build("llama", tokenizer, hidden_size=24, head_dim=rng.choice([4, 6]), **shape)
    examples = examples_of(lm, rng)
    if trial % 2:
        examples = [
            ga.tasks.Example(FEW_SHOT * rng.randint(1, 2) + e.prompt, e.choices, e.answer, e.task)
            for e in examples
        ]
    assert largest_gap(lm, examples, ga.alive_heads(lm)) < 1e-4


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_a_shared_beginning_is_run_once_and_changes_nothing(mode, lm, monkeypatch):
    examples = [
        ga.tasks.Example(FEW_SHOT * 2 + e.prompt, e.choices, e.answer, e.task) for e in ga.tasks.mmlu(lm, n=6)
    ]
    run = ExactSweep(lm, rows_of(lm, examples), mode, examples[:2])
    seen, forward = [], type(lm.model).forward

    def noted(self, *args, **kwargs):
        seen.append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(lm.model), "forward", noted)
    first = run((ga.Head(1, 2),))
    assert run.shared is not None and sum(seen) < sum(len(row.ids) for row in run.rows) * 2
    monkeypatch.undo()
    assert np.nanmax(np.abs(first[0] - plain(lm, examples, ga.Head(1, 2), mode, examples[:2]))) < 1e-4


@pytest.mark.parametrize("family", ["llama", "llamba", "falcon_mamba", "zamba2"])
def test_inside_other_context_managers(family, tokenizer):
    lm, teacher = families.build(family, tokenizer), families.build("llama", tokenizer)
    examples, heads = ga.tasks.mmlu(lm, n=3), [ga.alive_heads(lm)[i] for i in (0, 3, -2)]
    kind = lm.mixers[-1].kind
    outers = [
        ga.ablate(lm, [heads[0]]),
        ga.ablate(lm, [heads[1], heads[2]], "resample", examples),
        ga.skip_layers(lm, [1]),
        ga.truncate(lm, lm.n_layers - 1),
        ga.mask_last_row(lm, kind),
    ]
    if family == "llamba":
        outers += [ga.replace_layer(lm, teacher, 1), ga.replace_head(lm, teacher, 1, 2)]
    for outer in outers:
        with outer:
            known = [head for head in heads if head.layer < lm.n_layers]
            assert largest_gap(lm, examples, known) < 1e-4


def test_layers_before_are_not_run_and_the_last_makes_only_what_is_read(lm):
    """Counted at the modules themselves: tokens that go through each MLP."""
    examples = ga.tasks.mmlu(lm, n=3)
    run = ExactSweep(lm, rows_of(lm, examples))
    run(())
    run((ga.Head(1, 1),))  # the first time, it also tries whether a pass may begin here
    tokens = [0] * lm.n_layers

    def count(i):
        return lambda module, args: tokens.__setitem__(i, tokens[i] + args[0].shape[0] * args[0].shape[1])

    handles = [layer.mlp.register_forward_pre_hook(count(i)) for i, layer in enumerate(lm.layers)]
    run((ga.Head(1, 0), ga.Head(1, 3)))
    for handle in handles:
        handle.remove()
    width = max(len(row.ids) for row in run.rows)
    assert tokens == [0, 2 * 3 * width, 2 * 3]


def test_eager_attention(tokenizer):
    lm = families.build("llama", tokenizer)
    lm.model.set_attn_implementation("eager")
    assert largest_gap(lm, ga.tasks.mmlu(lm, n=3), ga.alive_heads(lm)) < 1e-4


def limited(monkeypatch, lm, tokens):
    """From now on the model's memory is out at more than so many tokens at a time. Returns the sizes that
    failed.
    """
    failed, forward = [], type(lm.model).forward

    def small(self, *args, **kwargs):
        if kwargs["input_ids"].numel() > tokens:
            failed.append(kwargs["input_ids"].numel())
            raise torch.OutOfMemoryError("too much")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(lm.model), "forward", small)
    return failed


@pytest.mark.parametrize("recorded", [False, True])
def test_running_out_of_memory_halves_the_batch_and_is_remembered(recorded, lm, monkeypatch):
    examples = ga.tasks.mmlu(lm, n=24)
    expected = ExactSweep(lm, rows_of(lm, examples))((ga.Head(1, 1),))
    again = ExactSweep(lm, rows_of(lm, examples))
    if recorded:  # out of memory only afterwards
        again(())
    failed = limited(monkeypatch, lm, 300)
    assert np.abs(again((ga.Head(1, 1),)) - expected).max() < 1e-4
    assert failed and budget(lm).tokens <= 512
    failed.clear()
    ga.evaluate(lm, examples)
    assert not failed


def test_evaluate_halves_too_and_keeps_what_is_done(lm, monkeypatch):
    examples = ga.tasks.mmlu(lm, n=24)
    expected = ga.evaluate(lm, examples)
    failed = limited(monkeypatch, lm, 300)
    assert np.abs(ga.evaluate(lm, examples).logprobs - expected.logprobs).max() < 1e-4 and failed
    monkeypatch.undo()
    limited(monkeypatch, lm, 0)
    with pytest.raises(torch.OutOfMemoryError):
        ga.evaluate(lm, examples)


@pytest.mark.parametrize(
    "family, enough, little", [("llama", 1 << 21, 1 << 18), ("zamba2", 1 << 24, 1 << 23)]
)
def test_batches_take_half_of_what_is_free(family, enough, little, tokenizer, monkeypatch):
    """With less memory batches get smaller, down to single prompts; an SSM's scan without kernels counts
    too.
    """
    sizes = {}
    for free in (1 << 40, enough, little, 1):
        lm = families.build(family, tokenizer)
        monkeypatch.setattr(budgets, "free_gb", lambda device, free=free: free / 1e9)
        rows = rows_of(lm, ga.tasks.mmlu(lm, n=40))
        _, planned = plan(lm, rows)
        sizes[free] = max(len(batch[0].ids) for batch in planned)
        assert sum(len(batch[0].ids) for batch in planned) == 40
        assert 1 <= copies_that_fit(lm, planned[0], 7) <= 7
    assert sizes[1 << 40] > sizes[enough] > sizes[little] >= sizes[1] == 1, sizes


def test_an_interrupted_sweep_leaves_the_model_as_it_was(lm, monkeypatch):
    examples, run = ga.tasks.mmlu(lm, n=2), None
    expected, layers = ga.evaluate(lm, examples).logprobs, lm.layers
    run = ExactSweep(lm, rows_of(lm, examples))
    run(())
    monkeypatch.setattr(
        type(lm.layers[2].mlp), "forward", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run((ga.Head(1, 1),))
    monkeypatch.undo()
    assert lm.layers is layers and np.array_equal(ga.evaluate(lm, examples).logprobs, expected)
