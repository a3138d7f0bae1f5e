"""`evaluate` against a plain loop over Hugging Face's forward, whatever the padding side or batch size."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import logits
from scipy.stats import binomtest

import ga_utils as ga
from ga_utils import batches
from ga_utils.scoring import wilson


def plain_loop(lm, examples):
    """One unpadded forward for each choice: the definition, with nothing clever."""
    table = []
    for example in examples:
        row = []
        for choice in example.choices:
            prompt, whole = (
                lm.tokenizer(text).input_ids for text in (example.prompt, example.prompt + choice)
            )
            logp = logits(lm, example.prompt + choice).log_softmax(-1)
            row.append(sum(logp[i - 1, whole[i]].item() for i in range(len(prompt), len(whole))))
        table.append(row)
    return np.array(table)


@pytest.mark.parametrize("task", [ga.tasks.mmlu, ga.tasks.mmlu_content, ga.tasks.knowledge])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_equals_the_plain_loop(lm, task, side, batch_size, monkeypatch):
    monkeypatch.setattr(batches, "EXAMPLES_AT_ONCE", 3)  # to the tokenizer: two whole portions and a rest
    examples = task(lm, n=7, seed=3)
    expected = plain_loop(lm, examples)
    lm.tokenizer.padding_side = side
    score = ga.evaluate(lm, examples, batch_size=batch_size)
    assert np.abs(score.logprobs - expected).max() < 1e-4
    assert list(score.correct) == [row.argmax() == e.answer for row, e in zip(expected, examples)]


def test_examples_of_different_kinds_and_widths_mix(lm):
    mixed = ga.tasks.mmlu(lm, n=3) + ga.tasks.kv_retrieval(lm, n_pairs=6, n=3) + ga.tasks.bbh(lm, n=3)
    score = ga.evaluate(lm, mixed)
    assert score.logprobs.shape == (9, 6)
    assert np.isnan(score.logprobs).sum() == 3 * 2 + 3 * 3
    for part, rows in ((mixed[:3], slice(0, 3)), (mixed[3:6], slice(3, 6)), (mixed[6:], slice(6, 9))):
        alone = ga.evaluate(lm, part).logprobs
        assert np.abs(score.logprobs[rows, : alone.shape[1]] - alone).max() < 1e-4
    assert score.right_logprob < 0


def test_right_logprob_is_relative_to_the_choices(lm):
    score = ga.evaluate(lm, ga.tasks.mmlu(lm, n=5))
    among = torch.tensor(score.logprobs).log_softmax(-1)
    assert score.right_logprob == pytest.approx(among[range(5), score.answers].mean().item())


@pytest.mark.parametrize("hits, n", [(0, 10), (10, 10), (3, 10), (970, 1000)])
def test_wilson_interval_is_scipys(hits, n):
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    "examples, kwargs, message",
    [
        ([], {}, "no examples"),
        ([ga.Example("A", ("", " B"), 0, "t")], {}, "choice '' tokenizes to nothing"),
        (
            [ga.Example("apple " * 128, (" A", " B"), 0, "t")],
            {},
            "needs 129 tokens, but random has a context of 128",
        ),
        ([ga.Example("A", (" A", " B"), 0, "t")], {"batch_size": 0}, "batch_size=0"),
        ([ga.Example("A", (" A", " B"), 0, "t")], {"batch_size": "all"}, "batch_size='all'"),
    ],
)
def test_nonsense_is_refused_with_a_clear_error(lm, examples, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ga.evaluate(lm, examples, **kwargs)


def test_a_tokenizer_that_ends_every_text_alike_is_noticed(lm, monkeypatch):
    class Ending:
        def __call__(self, texts):
            ids = lm.tokenizer(texts)
            return type(ids)({"input_ids": [[*row, 2] for row in ids.input_ids]})

    with pytest.raises(ValueError, match="' B' has the same tokens as another one"):
        ga.evaluate(dataclasses.replace(lm, tokenizer=Ending()), [ga.Example("A", (" A", " B"), 0, "t")])


def test_numbers_that_are_none_and_prompts_of_nothing_are_named(lm, tokenizer):
    with torch.no_grad():
        lm.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the model gives no numbers \(NaN\) on example 0"):
        ga.evaluate(lm, [ga.Example("A", (" A", " B"), 0, "t")])
    bare = dataclasses.replace(
        lm,
        tokenizer=lambda texts: type(
            "Ids", (), {"input_ids": [ids[1:] for ids in tokenizer(texts).input_ids]}
        ),
    )
    with pytest.raises(ValueError, match="example 0 has an empty prompt"):
        ga.evaluate(bare, [ga.Example("", (" A", " B"), 0, "t")])
