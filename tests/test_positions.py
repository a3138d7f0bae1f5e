"""Positions by name, and heads disabled at some positions alone, against hooks written by hand."""

import re

import by_hand
import families
import numpy as np
import pytest
import torch
from by_hand import WHERES, after_a_shot, chosen, close, gap, questions, some_heads
from conftest import random_llama
from test_heads import assert_untouched, footprint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import ga_utils as ga
from ga_utils.models.batches import plan, rows_of

PLACES = [("at", "last"), ("at", "closing"), ("at", "chosen"), ("but", "closing"), ("but", "chosen")]
MODES = {"zero": PLACES, "mean": [PLACES[0], PLACES[4]], "resample": PLACES[2:4]}


def table(lm, mode: str, reference: list[ga.Example]):
    """What replaces z at a spot, [pos, n_heads * d_head], from reference prompts run one after the other."""
    z = [by_hand.forward(lm, lm.tokenize([example.prompt])[0])[1] for example in reference]

    def of(spot, length: int) -> torch.Tensor:
        recorded = [each[spot.layer, spot.first] for each in z]
        if mode == "zero":
            return torch.zeros(length, spot.linear.in_features)
        if mode == "mean":
            return torch.cat(recorded).mean(0).expand(length, -1)
        return recorded[0].repeat(1 + length // len(recorded[0]), 1)[:length]

    return of


def disabling(heads, places: list[int], how: str = "at", instead=lambda spot, length: torch.zeros(1)):
    """A change by hand: at the places, or at all others."""

    def change(spot, z):
        named = torch.tensor([position in places for position in range(len(z))])
        here = named if how == "at" else ~named
        return torch.where(here[:, None] & spot.columns(heads), instead(spot, len(z)).to(z), z)

    return change


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", families.CONFIGS)
def test_disabling_at_some_positions_is_a_hook_by_hand(family, mode, tokenizer):
    """Prompts of different lengths together, choices of several tokens, a beginning that all share, and what
    one pass shares with another: none of it moves a position.
    """
    lm = by_hand.build(family, tokenizer)
    heads, before = some_heads(lm), footprint(lm)
    # Of a single prompt, so that nothing is drawn; shorter than most texts, so that it begins again.
    reference = ga.tasks.mmlu(lm, n=2 if mode == "mean" else 1, seed=4)
    instead = table(lm, mode, reference)
    plain, shot = questions(lm), after_a_shot(questions(lm))
    whole = ga.evaluate(lm, plain + shot).logprobs.tolist()
    for how, name in MODES[mode]:
        where, by_hands = WHERES[name]
        expected = [
            by_hand.logprobs(lm, example, disabling(heads, by_hands(lm, example), how, instead))
            for example in plain + shot
        ]
        with ga.ablate(lm, heads, mode, reference, **{how: where}):
            assert re.search(rf"disabled: .* {how} ({name}|chosen positions)\)$", repr(lm))
            assert gap(ga.evaluate(lm, plain), expected[: len(plain)]) < close(family)
            found = ga.evaluate(lm, shot)
            assert gap(found, expected[len(plain) :]) < close(family)
            one = ga.evaluate(lm, shot, batch_size=1)
            assert gap(one, expected[len(plain) :]) < close(family)
        assert gap(found, whole[len(plain) :]) > 50 * close(family), "the positions matter"
    assert_untouched(lm, before)


def test_what_texts_share_is_run_once_up_to_the_first_position_that_differs(lm):
    """The test above would prove little about shared text if nothing were shared."""
    shot = after_a_shot(questions(lm))
    n_shared = len(lm.tokenize([by_hand.SHOT])[0])
    for at, start in [("last", n_shared), ("closing", n_shared), (chosen, 17 + min(e.answer for e in shot))]:
        with ga.ablate(lm, ["L0H0"], at=at):
            shared, batches = plan(lm, rows_of(lm, shot))
            assert shared.ids.shape[1] >= start if at != chosen else shared.ids.shape[1] == start
            assert max(len(batch) for batch in batches) == 2, "a prompt is run once for its choices"


@pytest.mark.parametrize("name", WHERES)
def test_named_positions_are_where_the_text_says(name, tokenizer):
    lm = random_llama(tokenizer, 2)
    examples = questions(lm) + after_a_shot(questions(lm)) + ga.tasks.knowledge(lm, n=3)
    where, by_hands = WHERES[name]
    for example in examples[:-3] if name == "closing" else examples:
        if name == "chosen" and example.task == "knowledge":
            continue
        assert ga.positions(lm, example, where) == by_hands(lm, example)


@pytest.fixture
def spaced() -> ga.LM:
    """A Llama to which a space is a token of its own."""
    words = ["<pad>", " ", "\n", *"Which? A. B. x y Answer : A B 1 2 17 4".split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(end, "isolated") for end in (" ", "\n", ":")]
    )
    return random_llama(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>"), 2)


CASES = {  # the prompt's last token has position 11
    "a space in front of every choice": ((" A", " B"), (), 12),
    "a space and a token": ((" 1 A", " 1 B"), (), 14),
    "no space": (("A", "B"), (), 11),
    "a space in front of one": ((" A", "B"), (), 11),
    "another length": ((" 1 A", " 2"), (), 12),
    "one begins like another": ((" 17 4", " 17"), (), 12),  # "17" itself is never read in the text it ends
    "texts before the choice": ((" x", " y"), (" 1", " 1 2"), 14),
}


@pytest.mark.parametrize("choices, given, expected", CASES.values(), ids=CASES)
def test_the_last_position_predicts_the_first_token_in_which_the_choices_differ(
    spaced, choices, given, expected
):
    example = ga.Example("Which?\nA. x\nB. y\nAnswer:", choices, 1, "t", given)
    assert len(spaced.tokenize([example.prompt])[0]) == 12
    assert ga.positions(spaced, example, "last") == [expected]
    change = disabling([ga.Head(1, 2)], [expected])
    with ga.ablate(spaced, ["L1H2"], at="last"):
        found = ga.evaluate(spaced, [example])
    assert gap(found, [by_hand.logprobs(spaced, example, change)]) < 1e-5
    assert gap(found, [by_hand.logprobs(spaced, example)]) > 1e-3


@pytest.mark.parametrize(
    "where, message",
    [
        ("first", '\'first\' names no positions: expected "last", "closing", or a function'),
        (3, "3 names no positions"),
        (lambda example: [-1], "position -1: the prompt of this pairs example has positions 0–21"),
        (lambda example: [3, 22], "position 22: the prompt of this pairs example has positions 0–21"),
        (lambda example: ["3"], r"expected a list of integers, got \['3'\]"),
        (lambda example: [2.0], r"expected a list of integers, got \[2.0\]"),
        (lambda example: torch.tensor([0.5]), "expected a list of integers, got tensor"),
    ],
)
def test_what_is_no_position_is_refused(lm, where, message):
    example, before = ga.Example(by_hand.PAIRS, (" 62 79", " 62 12"), 1, "pairs"), footprint(lm)
    assert by_hand.last(lm, example) == 21
    with pytest.raises(ValueError, match=message):
        ga.positions(lm, example, where)
    for how in ("at", "but"):
        with pytest.raises(ValueError), ga.ablate(lm, ["L0H0"], **{how: where}):
            ga.evaluate(lm, [example])
    assert_untouched(lm, before)


def test_a_number_is_no_list_and_at_excludes_but(lm):
    (example,) = ga.tasks.mmlu(lm, n=1)
    with pytest.raises(ValueError, match="expected a list of integers, got 5"):
        ga.positions(lm, example, lambda example: 5)
    with pytest.raises(ValueError, match="at and but exclude each other"):
        ga.ablate(lm, ["L0H0"], at="last", but="closing").__enter__()
    with pytest.raises(ValueError, match="at and but exclude each other"):
        ga.sweep_heads(lm, [example], ["L0H0"], at="last", but="last", progress=False)
    with pytest.raises(ValueError, match=r"but='end': expected \"last\", \"closing\", or a function"):
        ga.ablate(lm, ["L0H0"], but="end").__enter__()
    for integers in (np.array([4, 1]), torch.tensor([4, 1]), iter((4, 1))):
        found = ga.positions(lm, example, lambda example: integers)  # noqa: B023
        assert found == [4, 1] and {type(position) for position in found} == {int}


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mamba2", "jamba"])
def test_a_model_that_you_run_yourself_has_a_last_position_and_no_others(family, tokenizer):
    lm = by_hand.build(family, tokenizer)
    heads, prompts = some_heads(lm), [by_hand.PAIRS, by_hand.PAIRS.replace("kettle: 62 79\n", "")]
    texts = lm.tokenize(prompts)
    for how in ("at", "but"):
        for where in ("closing", chosen):
            with (
                ga.ablate(lm, heads, **{how: where}),
                pytest.raises(RuntimeError, match="a bare lm.model.* has none. Use ga.evaluate"),
            ):
                lm.model(torch.tensor(texts[:1]))
        expected = [
            by_hand.forward(lm, ids, disabling(heads, [len(ids) - 1], how))[0].logits[0] for ids in texts
        ]
        for side in ("left", "right"):
            padded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side)
            assert not padded.attention_mask.all()
            with ga.ablate(lm, heads, **{how: "last"}):
                found = lm.model(**padded, use_cache=False).logits
            for row, mask, right in zip(found, padded.attention_mask.bool(), expected):
                torch.testing.assert_close(row[mask], right, atol=close(family), rtol=0)
    assert not lm.edits


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mamba2", "llamba"])
def test_while_generating_the_last_position_is_that_of_each_step(family, tokenizer):
    lm = by_hand.build(family, tokenizer)
    heads, prompts = some_heads(lm), [by_hand.PAIRS, by_hand.PAIRS.replace("kettle: 62 79\n", "")]
    padded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with ga.ablate(lm, heads, at="last"):
        out = lm.model.generate(
            **padded, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    for row, ids in enumerate(lm.tokenize(prompts)):
        begin = len(ids) - 1
        for logits in out.logits:
            change = disabling(heads, range(begin, len(ids)))
            right = by_hand.forward(lm, ids, change)[0].logits[0, -1]
            torch.testing.assert_close(logits[row].to(right), right, atol=1e-4, rtol=0)
            assert not torch.allclose(right, by_hand.forward(lm, ids)[0].logits[0, -1], atol=1e-2)
            ids = [*ids, int(right.argmax())]
