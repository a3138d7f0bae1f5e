"""What implicit attention may cost, and that the sweep benchmark times equal answers.

The same measurements as `make bench` prints, as far as they need no peer's package.
"""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import contenders
import evaluate
import growth
import implicit_attention
import sweeps
from cases import CASES, EVALUATIONS, QUICK, QUICK_EVALUATION

import ga_utils as ga


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_a_map_of_four_channels_takes_no_memory_for_the_other_8188():
    """All of them would be 8.6 GB. Every map needs the layer's operands, about 0.1 GB for 512 tokens."""
    assert implicit_attention.four_channels() < 0.3e9


@pytest.mark.slow
def test_maps_of_all_mamba2_heads_take_at_most_three_times_their_products():
    ours, least = implicit_attention.all_heads()
    assert ours <= 3 * least


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_memory_that_the_allocator_keeps_does_not_hide_growth():
    """Chunks of 16 MB come from the heap once a larger one was freed, and stay there until it is trimmed."""
    blocks = [torch.ones(1 << 22) for _ in range(10)]
    del blocks
    assert 0.9e8 < implicit_attention.peak_growth(lambda: torch.ones(25_000_000)) < 1.2e8


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_hidden_mamba_attns_formula_gives_the_maps_that_we_give():
    """`beside_formula` compares them itself; four channels must not pay for 1,536."""
    measured = implicit_attention.beside_formula(n_tokens=12)
    assert measured["ours, 4 channels"][0] < measured["ours, 1,536 channels"][0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_prompts_have_exactly_the_tokens_that_the_case_names(case):
    """And peers visit every layer equally often in each repeat, and other heads in the next."""
    ids = torch.tensor(case.tokenizer([example.prompt for example in case.examples]).input_ids)
    assert ids.shape == (case.prompts, case.prefix + case.tokens) and int(ids.max()) < case.vocabulary
    assert (ids[:, : case.prefix] == ids[0, : case.prefix]).all() and len(ids.unique(dim=0)) == case.prompts
    assert case.choices.shape == (case.prompts, 4)
    for repeat in range(case.repeats):
        heads = case.some_heads(repeat)
        per_layer = np.bincount([head.layer for head in heads], minlength=case.n_layers)
        assert len(heads) == case.peer_heads and len(set(per_layer)) == 1
    step = len(case.heads) // case.peer_heads
    assert len({head for repeat in range(step) for head in case.some_heads(repeat)}) == len(case.heads)


def test_evaluations_have_the_tokens_that_the_benchmark_names():
    shapes = {}
    for case in EVALUATIONS:
        prompts = case.tokenizer([example.prompt for example in case.examples]).input_ids
        choices = case.tokenizer(
            [choice for example in case.examples for choice in example.choices]
        ).input_ids
        (n_prompt,), (n_choice,) = {len(ids) for ids in prompts}, {len(ids) for ids in choices}
        assert len(choices) == 4 * len(prompts)
        shapes[case.name] = n_prompt, n_choice
    four, letters = (1000, 60), (500, 1)
    assert shapes == {
        "four_choices_v8000": four,
        "four_choices_v32000": four,
        "letters_v8000": letters,
        "letters_v32000": letters,
    }
    assert all((case.n_layers, case.width) == (8, 256) for case in EVALUATIONS)


def test_the_real_shape_is_smollm2s():
    (case,) = [case for case in CASES if case.name == "smollm2_135m"]
    millions = sum(p.numel() for p in case.lm.model.parameters()) / 1e6
    head = case.lm.model.lm_head.weight.numel() / 1e6  # which SmolLM2 shares with its embeddings
    assert millions - head == pytest.approx(134.5, abs=0.1)
    assert case.lm.mixers[0].n_heads == 9 and case.lm.n_layers == 30


def test_the_harness_gives_what_evaluate_gives():
    expected = ga.evaluate(QUICK_EVALUATION.lm, QUICK_EVALUATION.examples).logprobs
    theirs = evaluate.harness(QUICK_EVALUATION, 16)()
    evaluate.check(QUICK_EVALUATION, "harness", theirs, expected)
    with pytest.raises(AssertionError, match="quick: harness differs from ours"):
        evaluate.check(QUICK_EVALUATION, "harness", theirs + 2e-4, expected)


def test_the_harnesss_better_batch_size_counts():
    times = {"harness, 16": [4.0, 6.0], "harness, auto": [20.0], "ours": [2.0, 2.0]}
    assert evaluate.compare(times) == {"peer": "harness, 16", "median": 2.5, "min": 2.0, "max": 3.0}
    assert evaluate.compare(times | {"harness, 16": [40.0, 40.0]})["peer"] == "harness, auto"


def test_a_quick_evaluation_is_written_beside_what_sweeps_have_written(tmp_path, capsys):
    path = tmp_path / "bench.json"
    sweeps.save({"exact_vs_fastest_peer": {"quick": 2.0}}, path)
    result = evaluate.main(["--quick", "--out", str(path)])
    assert json.loads(path.read_text()) == {"exact_vs_fastest_peer": {"quick": 2.0}} | result
    ratio = result["evaluate_vs_harness"]["quick"]
    assert f"ours: {ratio:.2f} " in capsys.readouterr().out
    assert len(result["evaluate"]["quick"]["seconds"]["ours"]) == QUICK_EVALUATION.repeats


def test_both_plain_loops_give_what_evaluate_gives_under_ablate():
    loops = [make(QUICK)(QUICK.heads) for make in (contenders.plain, contenders.plain_last)]
    for i, head in enumerate(QUICK.heads):
        with ga.ablate(QUICK.lm, [head]):
            expected = torch.tensor(ga.evaluate(QUICK.lm, QUICK.examples).logprobs)
        for loop in loops:
            assert torch.allclose(loop[i].double(), expected, atol=1e-5)
    baseline = torch.tensor(ga.evaluate(QUICK.lm, QUICK.examples).logprobs)
    assert (loops[0] - baseline).abs().amax((1, 2)).min() > 10 * sweeps.TOLERANCE  # every head matters


def test_a_wrong_peer_is_named_and_never_timed():
    def off_by_one(case):
        run = contenders.plain(case)
        return lambda heads: run([ga.Head(head.layer, (head.head + 1) % case.n_heads) for head in heads])

    right = contenders.plain(QUICK)(QUICK.heads)
    with pytest.raises(AssertionError, match="wrong loop differs from plain by"):
        sweeps.check_peers(QUICK, {"plain": right, "wrong loop": off_by_one(QUICK)(QUICK.heads)})


def test_a_wrong_sweep_of_ours_is_never_timed():
    right = contenders.plain(QUICK)(QUICK.heads)
    table = sweeps.right_logprob(QUICK, right).reshape(QUICK.n_layers, QUICK.n_heads)
    good, off, upside_down = (
        SimpleNamespace(logprob=logprob, estimate=estimate)
        for logprob, estimate in ((table, table), (table + 2e-3, table), (table, -table))
    )
    assert sweeps.check_ours(QUICK, QUICK.heads, right, good, good) == pytest.approx(1)
    with pytest.raises(AssertionError, match="exact differs from the peers"):
        sweeps.check_ours(QUICK, QUICK.heads, right, off, good)
    with pytest.raises(AssertionError, match="unlike exact"):
        sweeps.check_ours(QUICK, QUICK.heads, right, good, upside_down)


def test_ratios_are_taken_in_each_repeat_against_the_peer_with_the_smallest_median():
    times = {"slow": [1.0, 9.0, 10.0], "fast": [2.0, 6.0, 4.0], "ours": [1.0, 2.0, 4.0]}
    ratio = sweeps.against(times, ["slow", "fast"], "ours")
    assert ratio == {"peer": "fast", "median": 2.0, "min": 1.0, "max": 3.0}


def test_a_quick_run_writes_the_ratios_for_every_measure(tmp_path, capsys):
    result = sweeps.main(["--quick", "--out", str(tmp_path / "build" / "bench.json")])
    assert json.loads((tmp_path / "build" / "bench.json").read_text()) == result
    times, printed = result["cases"]["quick"]["seconds"], capsys.readouterr().out
    for measure, name in (
        ("exact_vs_fastest_peer", "ours, exact"),
        ("screened_vs_fastest_peer", "ours, screened"),
    ):
        peer = result["spread"][measure]["quick"]["peer"]
        ratios = [theirs / own for theirs, own in zip(times[peer], times[name])]
        assert len(ratios) == QUICK.repeats and result[measure] == {"quick": statistics.median(ratios)}
        assert f"{name}: {result[measure]['quick']:.2f} times as fast as {peer}" in printed
    release, *_ = torch.__version__.split(
        "+"
    )  # "+cu130": PyPI's wheels leave it out of what they say of themselves
    assert result["versions"]["torch"].split("+")[0] == release


def test_growth_is_drawn_for_every_contender_with_its_axes_named():
    grids = {"tokens": ("tokens", (6, 12)), "n_layers": ("layers", (1, 2, 3))}
    grown = growth.grow(replace(QUICK, repeats=2), grids)
    figure = growth.plot(grids, grown)
    assert [ax.get_xlabel() for ax in figure.axes] == ["tokens", "layers"]
    assert figure.axes[0].get_ylabel() == "seconds for a sweep of all heads"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(growth.CONTENDERS)
    for ax, (what, (_, values)) in zip(figure.axes, grids.items()):
        for i, name in enumerate(growth.CONTENDERS):
            line = ax.containers[i].lines[0]
            assert line.get_xdata().tolist() == list(values)
            assert line.get_ydata().tolist() == [statistics.median(times[name]) for times in grown[what]]
    plt.close(figure)
