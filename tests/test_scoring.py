"""`evaluate` against a plain loop over Hugging Face's forward, whatever the padding side or batch size."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import logits
from scipy.stats import binomtest
from tokenizers import processors

import ga_utils as ga
from ga_utils.models import batches
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
        ([ga.Example("A", ("", " B"), 0, "t")], {}, "choice '' adds no token"),
        (
            [ga.Example("apple " * 256, (" A", " B"), 0, "t")],
            {},
            "needs 257 tokens, but random has a context of 256",
        ),
        ([ga.Example("A", (" A", " B"), 0, "t")], {"batch_size": 0}, "batch_size=0"),
        ([ga.Example("A", (" A", " B"), 0, "t")], {"batch_size": "all"}, "batch_size='all'"),
    ],
)
def test_nonsense_is_refused_with_a_clear_error(lm, examples, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ga.evaluate(lm, examples, **kwargs)


def test_a_tokenizer_that_ends_every_text_with_eos_changes_nothing(lm, tokenizer):
    """The choices would be read after the end of the text."""
    ending = copy.deepcopy(tokenizer)
    ending.add_special_tokens({"eos_token": "<pad>"})
    core = ending.backend_tokenizer
    ids = [("<bos>", tokenizer.bos_token_id), ("<pad>", tokenizer.pad_token_id)]
    core.post_processor = processors.TemplateProcessing(single="<bos> $A <pad>", special_tokens=ids)
    examples = ga.tasks.mmlu(lm, n=3) + ga.tasks.knowledge(lm, n=3)
    assert ending("A").input_ids[-1] == tokenizer.pad_token_id
    other = dataclasses.replace(lm, tokenizer=ending)
    assert (
        np.nanmax(np.abs(ga.evaluate(other, examples).logprobs - ga.evaluate(lm, examples).logprobs)) < 1e-5
    )


def test_a_text_that_brings_its_own_bos_gets_no_second(lm, tokenizer):
    plain = ga.Example("The flag of Arvo is", (" amber", " river"), 0, "t")
    begun = dataclasses.replace(plain, prompt=tokenizer.bos_token + plain.prompt)
    assert lm.encode(begun.prompt).tolist() == lm.encode(plain.prompt).tolist()
    assert ga.evaluate(lm, [begun]) == ga.evaluate(lm, [plain])


def test_scores_with_the_same_numbers_are_equal(lm):
    examples = ga.tasks.mmlu(lm, n=3) + ga.tasks.bbh(lm, n=2)  # of four and of three choices
    one, same = ga.evaluate(lm, examples), ga.evaluate(lm, examples)
    assert one == one and one == same and one != ga.evaluate(lm, examples[::-1]) and one != "60%"


def test_a_number_that_is_none_is_named_also_for_a_single_choice(lm, tokenizer):
    examples = [ga.Example("A", (" B", " C"), 0, "t"), ga.Example("A", (" A", " B"), 0, "t")]
    with torch.no_grad():
        lm.model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
        lm.model.lm_head.bias[tokenizer.convert_tokens_to_ids("A")] = torch.nan
    first_alone = ga.Score.of(np.array([[-1.0, -2.0]]), examples[:1])
    assert first_alone.accuracy == 1
    with pytest.raises(ValueError, match=r"the model gives no number \(NaN\) on example 1"):
        ga.Score.of(np.array([[-1.0, -2.0], [np.nan, -1.0]]), examples)
    with pytest.raises(ValueError, match=r"the model gives no number \(NaN\) on example 0"):
        ga.evaluate(lm, examples)


def test_a_prompt_of_nothing_is_named(lm, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match="example 0 has an empty prompt"):
        ga.evaluate(dataclasses.replace(lm, tokenizer=bare), [ga.Example("", (" A", " B"), 0, "t")])
