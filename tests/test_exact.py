"""The fast sweep gives what the plain loop gives: full forward passes, one head at a time, for every family and mode."""

import random
from types import SimpleNamespace

import families
import numpy as np
import pytest
import torch
from conftest import random_llama
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import ga_utils as ga
from ga_utils import scoring
from ga_utils.scoring import common_start, rows_of, tokens_that_fit
from ga_utils.sweeps.exact import ExactSweep
from ga_utils.sweeps.partial_forward import look
from ga_utils.sweeps.shortcuts import replaced

FEW_SHOT = "Dictionary:\napple: 17\nlamp: 4\ndrum: 52\nQuestion: what is the value of lamp?\nAnswer: 4\n"


def plain(lm, examples, head, mode="zero", reference=None):
    with ga.ablate(lm, [head], mode, reference):
        return ga.evaluate(lm, examples).logprobs


def examples_of(lm, rng):
    """Letters and dictionaries (one token a choice) and facts (some tokens a choice), of different lengths."""
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
    monkeypatch.setattr(scoring, "CPU_TOKENS", rng.choice([32, 100, 333, 2000]))
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
    assert run.prefix is not None and sum(seen) < sum(len(row.ids) for row in run.rows) * 2
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
    tokens = [0] * lm.n_layers

    def count(i):
        return lambda module, args: tokens.__setitem__(i, tokens[i] + args[0].shape[0] * args[0].shape[1])

    handles = [layer.mlp.register_forward_pre_hook(count(i)) for i, layer in enumerate(lm.layers)]
    run((ga.Head(1, 0), ga.Head(1, 3)))
    for handle in handles:
        handle.remove()
    width = max(len(row.ids) for row in run.rows)
    assert tokens == [0, 2 * 3 * width, 2 * 3]


def test_behind_the_heads_projections_take_only_what_the_head_changes(lm, monkeypatch):
    """Once a layer has been entered, its MLP's first two weights see no token again; the layers after it see all."""
    run, used = ExactSweep(lm, rows_of(lm, ga.tasks.mmlu(lm, n=3))), []
    run((ga.Head(0, 0),))
    forward = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: (used.append(self), forward(self, x))[1])
    run((ga.Head(0, 1), ga.Head(0, 3)))
    first, second = (layer.mlp for layer in lm.layers[:2])
    assert first.down_proj in used and {first.gate_proj, first.up_proj}.isdisjoint(used)
    assert {second.gate_proj, second.up_proj, second.down_proj} <= {*used}


def test_the_last_layer_asks_only_where_it_is_read(lm, monkeypatch):
    run, asked, used = ExactSweep(lm, rows_of(lm, ga.tasks.mmlu(lm, n=3))), [], []
    sdpa, forward = torch.nn.functional.scaled_dot_product_attention, torch.nn.Linear.forward
    counted = lambda q: q.shape[1] * q.shape[2] // lm.n_heads  # noqa: E731  queries of a group may lie side by side
    note = lambda q, *args, **kwargs: (asked.append(counted(q)), sdpa(q, *args, **kwargs))[1]  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", note)
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda self, x: (used.append((self, x.shape[1])), forward(self, x))[1]
    )
    run(())
    width, last = max(len(row.ids) for row in run.rows), lm.layers[-1].self_attn
    assert asked[-lm.n_layers :] == [width] * (lm.n_layers - 1) + [1]
    assert {(last.q_proj, 1), (last.k_proj, width), (last.o_proj, 1)} <= {*used} and (
        last.q_proj,
        width,
    ) not in used
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def test_eager_attention(tokenizer):
    lm = families.build("llama", tokenizer)
    lm.model.set_attn_implementation("eager")
    assert largest_gap(lm, ga.tasks.mmlu(lm, n=3), ga.alive_heads(lm)) < 1e-4


@pytest.mark.parametrize(
    ("family", "dtype", "found"),
    [
        ("llama", torch.float32, True),
        ("llamba", torch.float32, True),
        ("llama", torch.bfloat16, False),
        ("mamba2", torch.float32, False),
    ],
)
def test_a_norm_that_only_scales_is_told_from_what_it_does(family, dtype, found, tokenizer):
    lm = families.build(family, tokenizer, dtype)
    seen = look(lm, [5, 7, 9])
    assert all(layer.norm is not None and (layer.second is not None) == found for layer in seen)
    if found:
        norm = seen[1].second
        for change in (lambda made: made + 0.1, lambda made: made * made.abs()):
            forward = norm.forward
            with replaced(norm, lambda x: change(forward(x))):  # noqa: B023
                assert [layer.second is not None for layer in look(lm, [5, 7, 9])] == [
                    i != 1 for i in range(lm.n_layers)
                ]


def test_running_out_of_memory_halves_the_batch(lm, monkeypatch):
    examples, run, failed = ga.tasks.mmlu(lm, n=24), None, []
    run = ExactSweep(lm, rows_of(lm, examples))
    expected, forward = run((ga.Head(1, 1),)), type(lm.model).forward

    def small(self, *args, **kwargs):
        if kwargs["input_ids"].numel() > 300:
            failed.append(kwargs["input_ids"].numel())
            raise torch.OutOfMemoryError("too much")
        return forward(self, *args, **kwargs)

    recorded = ExactSweep(lm, rows_of(lm, examples))
    recorded(())
    monkeypatch.setattr(type(lm.model), "forward", small)
    for again in (
        ExactSweep(lm, rows_of(lm, examples)),
        recorded,
    ):  # out of memory while recording, or only afterwards
        failed.clear()
        assert (
            np.abs(again((ga.Head(1, 1),)) - expected).max() < 1e-4 and failed and again.budget < run.budget
        )
    monkeypatch.setattr(
        type(lm.model),
        "forward",
        lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")),
    )
    with pytest.raises(torch.OutOfMemoryError):
        ExactSweep(lm, rows_of(lm, examples))((ga.Head(1, 1),))


def test_a_gpu_begins_with_what_fits(lm, monkeypatch):
    """Two layers' projections of one token: q, k, v, o, gate, up, down, 4 bytes each."""
    token = 2 * 4 * (96 + 2 * 16 * lm.model.config.num_key_value_heads + 48 + 64 + 64 + 48)
    gpu = SimpleNamespace(device=torch.device("cuda"), layers=lm.layers)
    for free, tokens in ((2 * 1024 * token, 1024), (2 * 1024 * token - 1, 512), (1 << 50, 1 << 15), (0, 256)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 1 << 50))
        assert tokens_that_fit(gpu) == tokens
    assert tokens_that_fit(lm) == scoring.CPU_TOKENS


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
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    assert lm.layers is layers and np.array_equal(ga.evaluate(lm, examples).logprobs, expected)


def test_common_start_stops_before_the_first_read(tokenizer):
    lm = random_llama(tokenizer, 6)
    rows = rows_of(lm, [ga.tasks.Example(FEW_SHOT, (" 4", " 17"), 0, "x")] * 2)
    assert common_start(rows) == len(rows[0].ids) - 1
    assert common_start(rows[:1]) == 0
