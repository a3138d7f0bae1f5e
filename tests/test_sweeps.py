"""Sweeps against weight surgery, one head and one layer at a time."""

import copy

import numpy as np
import pytest
import torch
from conftest import random_llama
from test_heads import zeroed_columns

import ga_utils as ga


def test_each_cell_is_the_accuracy_of_the_model_without_that_head(lm):
    examples = ga.tasks.mmlu(lm, n=12)
    sweep = ga.sweep_heads(lm, examples, progress=False)
    for layer in range(3):
        for head in range(6):
            score = ga.evaluate(zeroed_columns(lm, [ga.Head(layer, head)]), examples)
            assert sweep.accuracy[layer, head] == pytest.approx(score.accuracy)
            assert sweep.logprob[layer, head] == pytest.approx(score.right_logprob, abs=1e-4)
    assert np.allclose(sweep.drop, sweep.baseline.accuracy - sweep.accuracy)
    assert sweep.baseline.accuracy == ga.evaluate(lm, examples).accuracy


def test_top_and_frame_agree_and_ties_go_to_the_larger_loss_of_logprob(lm):
    sweep = ga.sweep_heads(lm, ga.tasks.mmlu(lm, n=4), progress=False)
    frame = sweep.frame()
    assert list(frame["head"][:3]) == [str(head) for head in sweep.top(3)]
    assert frame["accuracy"].is_monotonic_increasing and len(frame) == 18
    for _, ties in frame.groupby("accuracy"):
        assert ties["logprob"].is_monotonic_increasing


def test_only_named_heads_are_swept_and_pruned_heads_are_left_out(tokenizer):
    lm = random_llama(tokenizer, 6)
    lm.mixers[1].out_proj.weight.data[:, :16] = 0
    assert len(ga.alive_heads(lm)) == 17 and ga.Head(1, 0) not in ga.alive_heads(lm)
    examples = ga.tasks.mmlu(lm, n=4)
    assert np.isnan(ga.sweep_heads(lm, examples, progress=False).accuracy[1, 0])
    some = ga.sweep_heads(lm, examples, heads=["L0H1", ga.Head(2, 3)], progress=False)
    assert np.argwhere(~np.isnan(some.accuracy)).tolist() == [[0, 1], [2, 3]]


def test_sweeps_pass_mode_and_reference_on(lm):
    examples, reference = ga.tasks.mmlu(lm, n=6), ga.tasks.mmlu(lm, n=3, seed=9)
    sweep = ga.sweep_heads(lm, examples, ["L1H1"], mode="mean", reference=reference, progress=False)
    with ga.ablate(lm, ["L1H1"], "mean", reference):
        assert sweep.logprob[1, 1] == pytest.approx(ga.evaluate(lm, examples).right_logprob)


def test_layer_sweeps_equal_models_with_layers_deleted(lm):
    tasks = {"mmlu": ga.tasks.mmlu(lm, n=8), "knowledge": ga.tasks.knowledge(lm, n=8)}
    for how, deleted in (("prefix", [[1, 2], [2], []]), ("leave_one_out", [[0], [1], [2]])):
        sweep = ga.sweep_layers(lm, tasks, how=how, progress=False)
        for i, gone in enumerate(deleted):
            model = copy.deepcopy(lm.model)
            model.model.layers = torch.nn.ModuleList(
                m for j, m in enumerate(model.model.layers) if j not in gone
            )
            for task, examples in tasks.items():
                expected = ga.evaluate(ga.wrap(model, lm.tokenizer), examples)
                assert np.abs(sweep.scores[task][i].logprobs - expected.logprobs).max() < 1e-4
        assert list(sweep.frame().columns) == ["mmlu", "knowledge"] and list(sweep.frame().index) == sweep.x


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda lm, e: ga.sweep_heads(lm, []), "no examples"),
        (lambda lm, e: ga.sweep_heads(lm, e, mode="none"), "mode='none'"),
        (lambda lm, e: ga.sweep_heads(lm, e, heads=["L7H0"]), "L7H0: this model has layers 0–2"),
        (lambda lm, e: ga.sweep_layers(lm, {"mmlu": e}, how="suffix"), "how='suffix'"),
        (lambda lm, e: ga.sweep_layers(lm, {}), "no tasks"),
    ],
)
def test_nonsense_is_refused(lm, call, message):
    with pytest.raises(ValueError, match=message):
        call(lm, ga.tasks.mmlu(lm, n=2))


def test_figures_draw(lm):
    """Drawn headless; what they show is looked at by people, that they draw at all is looked at here."""
    import matplotlib

    matplotlib.use("Agg")
    examples = ga.tasks.mmlu(lm, n=4)
    sweep = ga.sweep_heads(lm, examples, progress=False)
    texts = [text.get_text() for text in sweep.plot().texts]
    assert len(texts) == 18 and "-0" not in texts
    ga.sweep_layers(lm, {"mmlu": examples}, progress=False).plot()
    score = ga.evaluate(lm, examples)
    heights = [bar.get_height() for bar in ga.plots.bars({"a": score, "b": score}, chance=0.25).patches]
    assert heights == [score.accuracy] * 2
    ga.plots.grouped_bars({"none": {"mmlu": score}, "L0H0": {"mmlu": score}}, chance={"mmlu": 0.25})
    tokens = lm.tokenizer.convert_ids_to_tokens(lm.tokenizer(examples[0].prompt).input_ids)
    ax = ga.plots.pattern(ga.attention_map(lm, examples[0].prompt, 0)[0], tokens, marks=[(3, 1)])
    assert [label.get_text() for label in ax.get_xticklabels()][-1] == "Answer:"
