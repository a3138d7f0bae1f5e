"""What notebook 02 proves things with: traded option lines, direct logit attribution, a figure of rates."""

import numpy as np
import pytest
import torch

import ga_utils as ga
from ga_utils.direct import direct_logits, last_z
from ga_utils.plots.rates import rates
from ga_utils.tasks.lines import relabel, split_lines, trade

QUESTION = ga.Example(
    "A. owl rose\nB. owl moon\nC. rose owl\nD. moon\nQuestion: what?\nAnswer:",
    (" A", " B", " C", " D"),
    1,
    "mmlu",
)


@pytest.fixture(scope="module")
def lm():
    return ga.load_model("tiny-llama")


def test_trading_labels_leaves_the_words_where_they_are():
    traded = trade(QUESTION, 1, 3, "labels")
    assert split_lines(traded) == (list("ADCB"), ["owl rose", "owl moon", "rose owl", "moon"])
    assert traded.choices == QUESTION.choices and traded.answer == 3


def test_trading_words_leaves_the_labels_where_they_are():
    traded = trade(QUESTION, 1, 3, "words")
    assert split_lines(traded) == (list("ABCD"), ["owl rose", "moon", "rose owl", "owl moon"])
    assert traded.answer == 3 and trade(traded, 1, 3, "words") == QUESTION


def test_trading_two_wrong_options_leaves_the_answer():
    assert trade(QUESTION, 0, 2, "labels").answer == trade(QUESTION, 0, 2, "words").answer == 1


def test_other_labels_move_with_the_right_line():
    other = relabel(QUESTION, ["7", "2", "9", "4"])
    assert other.choices == (" 7", " 2", " 9", " 4") and other.answer == 1
    mixed = relabel(QUESTION, list("DCBA"), list("ABCD"))
    assert mixed.choices == QUESTION.choices and mixed.answer == 2
    assert mixed.prompt.startswith("D. owl rose\nC. owl moon\n") and mixed.prompt.endswith("Answer:")


def test_options_are_those_of_the_question_asked():
    shots = "Question: x?\nA. one\nB. two\nAnswer: B\n\nQuestion: y?\nA. three\nB. four\nAnswer:"
    traded = trade(ga.Example(shots, (" A", " B"), 0, "mmlu"), 0, 1, "words")
    assert traded.prompt == shots.replace("A. three\nB. four", "A. four\nB. three") and traded.answer == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: trade(QUESTION, 0, 1, "letters"), "expected"),
        (lambda: trade(QUESTION, 0, 4, "words"), "option lines 0–3"),
        (lambda: relabel(QUESTION, list("ABC")), "4 option lines"),
        (lambda: relabel(QUESTION, list("ABCA")), "different"),
        (lambda: split_lines(ga.Example("no options", (" A", " B"), 0, "mmlu")), "lacks a line"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()


def test_direct_logits_are_what_disabling_takes_from_the_final_sum(lm):
    """With the norm's scale frozen, the last layer's head is worth just the logits that vanish without it."""
    example = ga.tasks.mmlu(lm, n=1, seed=5)[0]
    _, readout = last_z(lm, example)
    streams = []
    for heads in ([], [ga.Head(lm.n_layers - 1, 1)]):
        with ga.ablate(lm, heads, at="last"), torch.no_grad():
            hook = lm.decoder.layers[-1].self_attn.register_forward_hook(
                lambda module, args, output: streams.append(output[0][0, -1])
            )
            lm.model(lm.encode(example.prompt))
            hook.remove()
    written = readout @ (streams[0] - streams[-1])
    assert np.allclose(direct_logits(lm, [example])[0, -1, 1], written, atol=1e-4)


def test_the_readout_gives_the_models_logits(lm):
    example = ga.tasks.mmlu(lm, n=1, seed=6)[0]
    _, readout = last_z(lm, example)
    residual = []
    hook = lm.decoder.norm.register_forward_pre_hook(lambda module, args: residual.append(args[0][0, -1]))
    with torch.no_grad():
        logits = lm.model(lm.encode(example.prompt)).logits[0, -1]
    hook.remove()
    ids = [lm.tokenizer(choice, add_special_tokens=False).input_ids[0] for choice in example.choices]
    assert torch.allclose(readout @ residual[0], logits[ids], atol=1e-4)


def test_direct_logits_refuse_what_has_no_logit(lm):
    with pytest.raises(ValueError, match="list is empty"):
        direct_logits(lm, [])
    with pytest.raises(ValueError, match="more than their last token"):
        direct_logits(lm, ga.tasks.knowledge(lm, n=1))


def test_rates_mark_what_is_named_and_refuse_the_rest():
    ax = rates({"one": {"a": 0.1, "b": 0.9}, "two": {"c": 0.5}}, ["b"], chance=0.25)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["one", "two"]
    assert "b" in [text.get_text() for text in ax.texts] and ax.get_xlim()[1] >= 100
    close = rates({"one": {"a": 0.91, "b": 0.9, "c": 0.5}}, ["a", "c", "b"])
    assert [text.get_text() for text in close.texts] == ["a, b", "c"]
    with pytest.raises(ValueError, match="in none of the rows"):
        rates({"one": {"a": 0.1}}, ["z"])
    with pytest.raises(ValueError, match="nothing to draw"):
        rates({})
