"""Sweeps, screens, checkpoints and scores at positions, against single ablations and by hand."""

import copy

import by_hand
import families
import numpy as np
import pytest
import torch
from by_hand import WHERES, after_a_shot, chosen, questions
from conftest import random_llama
from test_positions import disabling
from torch.nn.functional import logsigmoid

import ga_utils as ga
from ga_utils.models.batches import rows_of
from ga_utils.sweeps.exact import ExactSweep
from ga_utils.sweeps.screen import attribution

PARTLY = [{"at": "last"}, {"at": "closing"}, {"at": chosen}, {"but": "last"}, {"but": chosen}]


@pytest.mark.parametrize("family", ["llama", "falcon_mamba", "zamba2", "falcon_h1", "nemotron_h"])
def test_a_sweep_is_an_ablation_head_by_head(family, tokenizer):
    lm = by_hand.build(family, tokenizer)
    examples = after_a_shot(questions(lm)[2:4])
    heads = [ga.Head(spot.layer, spot.first + 3) for spot in by_hand.spots(lm)]
    reference = ga.tasks.mmlu(lm, n=1, seed=4)
    cases = list(zip(["zero", "resample", "mean", "zero", "resample"], PARTLY))
    for mode, where in cases if family == "llama" else cases[1::3]:
        sweep = ga.sweep_heads(lm, examples, heads, mode, reference, **where, progress=False)
        screened = ga.sweep_heads(
            lm, examples, heads, mode, reference, **where, method="screen", k=2, progress=False
        )
        looked_at = ~np.isnan(screened.logprob)
        assert looked_at.sum() == 2
        np.testing.assert_allclose(screened.logprob[looked_at], sweep.logprob[looked_at], atol=1e-5)
        changed = 0
        for head in heads:
            with ga.ablate(lm, [head], mode, reference, **where):
                expected = ga.evaluate(lm, examples).right_logprob
            assert sweep.logprob[head.layer, head.head] == pytest.approx(expected, abs=1e-5)
            changed += abs(expected - sweep.baseline.right_logprob) > 1e-4
        assert changed > len(heads) / 3


@pytest.mark.parametrize("where", PARTLY[:3] + PARTLY[4:], ids=["last", "closing", "chosen", "but chosen"])
@pytest.mark.parametrize("family", ["llama", "falcon_h1"])
def test_an_estimate_is_the_derivative_at_these_positions(family, where, tokenizer):
    """Against z at the positions a thousandth smaller and larger, by hand."""
    lm = by_hand.build(family, tokenizer)
    examples, heads = questions(lm)[:3], [ga.Head(0, 1), ga.Head(1, 0)]
    ((how, name),) = where.items()
    by_hands = WHERES[name if isinstance(name, str) else "chosen"][1]
    sweep = ExactSweep(lm, rows_of(lm, examples), **where)
    estimate, _ = attribution(sweep, [example.answer for example in examples], heads)

    def odds(head, factor: float) -> torch.Tensor:
        found = []
        for example in examples:
            change = disabling([head], by_hands(lm, example), how)
            logp = by_hand.logprobs(lm, example, lambda spot, z: z + (factor - 1) * (z - change(spot, z)))  # noqa: B023
            right = logp.pop(example.answer)
            found.append(right - torch.tensor(logp, dtype=torch.float64).logsumexp(0))
        return torch.stack(found)

    for head, value in zip(heads, estimate):
        change = (odds(head, 1 - 1e-3) - odds(head, 1 + 1e-3)) / 2e-3
        assert change.abs().max() > 5e-3
        assert value == pytest.approx(logsigmoid(odds(head, 1) + change).mean().item(), abs=5e-4)


def test_a_checkpoint_made_for_other_positions_is_refused(lm, tmp_path, computed):
    path, examples = tmp_path / "sweep.sqlite", ga.tasks.mmlu(lm, n=3)

    def sweep(**where):
        return ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False, **where)

    first, before = sweep(at=chosen), path.read_bytes()
    others = [{"at": lambda e: [3]}, {"but": chosen}, {"at": "last"}, {"at": "closing"}, {}]
    for where in others:
        with pytest.raises(ValueError, match=r"positions: at chosen positions, \w+ in the file, .* now"):
            sweep(**where)
    assert path.read_bytes() == before and len(computed) == 2
    again = sweep(at=lambda example: iter(chosen(example)))
    assert len(computed) == 2 and np.array_equal(again.logprob, first.logprob, equal_nan=True)


def among_closers(lm, examples, weights) -> np.ndarray:
    """weights(example, spot) -> the last row, [head, key]. Implicit attention counts by its size."""
    found = np.zeros((len(examples), lm.n_layers, lm.n_heads))
    for row, example in zip(found, examples):
        closers = by_hand.closing(lm, example)
        right = closers[2 * example.answer : 2 * example.answer + 2]
        for spot in by_hand.spots(lm):
            given = weights(example, spot).abs()
            share = given[:, right].sum(-1) / given[:, closers].sum(-1)
            row[spot.layer, spot.first : spot.first + spot.n_heads] = share
    return found.mean(0)


@pytest.mark.parametrize("family", ["llama", "mamba2", "falcon_h1"])
def test_a_score_among_closers_is_a_ratio_of_attention_maps(family, tokenizer):
    lm = by_hand.build(family, tokenizer)
    examples = questions(lm) + after_a_shot(questions(lm)[:2])

    def weights(example, spot):
        heads = range(spot.first, spot.first + spot.n_heads)
        A = ga.attention_map(lm, example.prompt + example.choices[0], spot.layer, heads)
        return A[:, by_hand.last(lm, example)]

    found = ga.aggregate_score(lm, examples, among="closers", progress=False)
    expected = among_closers(lm, examples, weights)  # NaN where a map, in float32, holds only zeros
    some = np.isfinite(expected)
    assert some.mean() > 0.7
    np.testing.assert_allclose(found[some], expected[some], atol=1e-5)
    assert found.max() - found.min() > 0.2
    with pytest.raises(ValueError, match='among=\'closer\': expected "all" or "closers"'):
        ga.aggregate_score(lm, examples, among="closer")


def test_scores_work_while_heads_are_disabled_at_closing_tokens(tokenizer):
    """Against Hugging Face's own weights, with the disabling by hand."""
    lm = families.build("llama", tokenizer)
    examples, heads = questions(lm), [ga.Head(0, 1), ga.Head(0, 2), ga.Head(1, 0)]
    eager = ga.wrap(copy.deepcopy(lm.model), tokenizer)
    eager.model.set_attn_implementation("eager")

    def weights(example, spot):
        ids = lm.tokenize([example.prompt + example.choices[0]])[0][: by_hand.last(lm, example) + 1]
        change = disabling(heads, by_hand.closing(lm, example))
        out, _ = by_hand.forward(eager, ids, change, output_attentions=True)
        return out.attentions[spot.layer][0, :, -1]

    before = ga.aggregate_score(lm, examples, among="closers", progress=False)
    with ga.ablate(lm, heads, at="closing"):
        found = ga.aggregate_score(lm, examples, among="closers", progress=False)
        gather = ga.gather_score(lm, examples, progress=False)
    np.testing.assert_allclose(found, among_closers(lm, examples, weights), atol=1e-5)
    assert np.abs(found - before)[1:].max() > 0.01
    assert np.abs(gather - ga.gather_score(lm, examples, progress=False))[1:].max() > 0.01


def test_an_even_head_is_at_chance_and_a_head_that_sees_no_closer_has_no_score(tokenizer):
    lm = random_llama(tokenizer, 2)
    lm.mixers[1].module.q_proj.weight.data[3 * 16 : 4 * 16] = 0  # L1H3
    examples = questions(lm)
    chance = np.mean([1 / len(example.choices) for example in examples])
    assert ga.aggregate_score(lm, examples, among="closers")[1, 3] == pytest.approx(chance, abs=1e-6)

    # Each token sees three: itself and the two before, which close B, or are no closers at all.
    options = {"num_hidden_layers": 2, "head_dim": 8, "sliding_window": 3}
    near = families.build("mistral", tokenizer, **families.ATTENTION | options)
    of_a, of_b = (ga.Example("A. river\nB. amber\nAnswer:", (" A", " B"), i, "t") for i in (0, 1))
    far = ga.tasks.kv_retrieval(lm, n=2)
    assert np.isnan(ga.aggregate_score(near, far, among="closers")).all()
    assert (ga.aggregate_score(near, far) == 0).all()
    np.testing.assert_allclose(ga.aggregate_score(near, [*far, of_b], among="closers"), 1, atol=1e-6)
    np.testing.assert_allclose(ga.aggregate_score(near, [of_a, far[0], of_b], among="closers"), 0.5)


def test_option_shares_are_the_last_rows_mass_on_each_options_closers(lm):
    """Row by row of one head's map, sorted by where the right option stands; a place that none has is NaN."""
    examples = [e for e in ga.tasks.mmlu(lm, n=12) if e.answer != 2]
    found = ga.option_shares(lm, examples, "L1H3", progress=False)
    assert np.isnan(found[2]).all()
    for right in {e.answer for e in examples}:
        rows = []
        for e in (e for e in examples if e.answer == right):
            last = ga.attention_map(lm, e.prompt, 1, [3])[0, -1]
            rows.append([last[s.closing].sum().item() for s in ga.segments(lm, e)])
        assert found[right] == pytest.approx(np.mean(rows, axis=0), abs=1e-6)
    with pytest.raises(ValueError, match=r"examples with \[3, 4\] choices"):
        ga.option_shares(lm, [*examples, *ga.tasks.kv_retrieval(lm, n_pairs=3, n=1)], "L1H3")
