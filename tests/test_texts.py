"""Tasks in plain English, random words, and dictionaries of digits."""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

import ga_utils as ga
from ga_utils.direct import direct_logits, last_z
from ga_utils.segments import positions
from ga_utils.tasks import texts
from ga_utils.training.measure_real import everything


@pytest.mark.parametrize("kind", ga.tasks.ENGLISH)
def test_the_answer_follows_from_the_text_and_from_nothing_else(kind, real):
    examples = ga.tasks.english(real, kind, n=200, seed=3)
    assert (
        examples == ga.tasks.english(real, kind, n=200, seed=3) != ga.tasks.english(real, kind, n=200, seed=4)
    )
    assert {e.task for e in examples} == {kind}
    n_choices = 2 if kind == "gift" else 4
    assert {len(e.choices) for e in examples} == {n_choices}
    places = Counter(e.answer for e in examples)
    assert all(places[place] > 200 / n_choices / 2 for place in range(n_choices))  # no place is favoured
    for example in examples:
        words = re.findall(r"\w+", example.prompt)
        right = example.choices[example.answer].strip()
        if kind not in ("common", "common_letters", "dog"):
            assert all(choice.strip() in words for choice in example.choices)
        if kind in ("gift", "missing"):
            assert words.count(right) == 1  # who receives is the one who is named once
            assert all(words.count(c.strip()) == 2 for c in example.choices if c.strip() != right)
        if kind == "dog":
            assert words.count(right) == 1 and sorted(words.count(c.strip()) for c in example.choices) == [
                0,
                0,
                1,
                2,
            ]
        if kind in ("homes", "homes_asked"):
            asked = re.search(r"(\w+) lives? in$", example.prompt)[1]
            assert f"{asked} lives in {right}." in example.prompt
        if kind == "words":
            asked = re.search(r"key '(\w+)'", example.prompt)[1]
            assert f"\n{asked}:{right}\n" in example.prompt


def test_common_sentences_have_one_right_ending():
    for group in texts.COMMON:
        assert len(set(group.values())) == len(group)
    letters = [texts.common_letters(random.Random(seed)) for seed in range(50)]
    plain = [texts.common(random.Random(seed)) for seed in range(50)]
    for a, b in zip(letters, plain):
        assert f"{'ABCD'[a.answer]}.{b.choices[b.answer]}\n" in a.prompt


def test_induction_repeats_words_of_one_token(real, tiny):
    for lm in (real, tiny):
        for example in ga.tasks.induction(lm, n=50, length=8):
            ids = lm.tokenizer(example.prompt, add_special_tokens=False).input_ids
            first, again = ids[:8], ids[8:]
            assert len(set(first)) == 8 and first[: len(again)] == again and 4 <= len(again) < 8
            (right,) = lm.tokenizer(example.choices[example.answer], add_special_tokens=False).input_ids
            assert right == first[len(again)]
            assert {lm.tokenizer(c, add_special_tokens=False).input_ids[0] for c in example.choices} <= set(
                first
            )
    with pytest.raises(ValueError, match="length=3: four different words"):
        ga.tasks.induction(real, length=3)


def test_digits_share_all_tokens_but_the_last(real):
    examples = ga.tasks.kv_retrieval(real, n_pairs=10, n=30, values="digits")
    for example in examples:
        assert sorted(example.choices) == [f" {digit}" for digit in range(10)]
        (last,) = positions(real, example, "last")
        space = real.tokenizer.convert_ids_to_tokens(real.tokenizer(example.prompt + " ").input_ids)
        assert space[last] == "Ġ" and last == len(space) - 1


def test_what_cannot_be_asked_is_refused(real, tiny):
    with pytest.raises(ValueError, match="kind='poem': expected one of gift, missing"):
        ga.tasks.english(real, "poem")
    with pytest.raises(ValueError, match="speaks the tiny world"):
        ga.tasks.english(tiny)
    with pytest.raises(ValueError, match="values='words': expected one of numbers, digits"):
        ga.tasks.kv_retrieval(real, values="words")
    with pytest.raises(ValueError, match="n_pairs=11: there are keys for 2 to 10 pairs"):
        ga.tasks.kv_retrieval(real, n_pairs=11, values="digits")
    assert ga.evaluate(tiny, ga.tasks.kv_retrieval(tiny, n_pairs=4, n=40, values="digits")).accuracy > 0.9


def test_the_readout_of_digits_is_taken_behind_the_space(real):
    """What `direct_logits` reads off, against Hugging Face's own forward on the prompt and the space."""
    (example,) = ga.tasks.kv_retrieval(real, n_pairs=4, n=1, seed=8, values="digits")
    (_, readout), residual = last_z(real, example), []
    hook = real.decoder.norm.register_forward_pre_hook(lambda module, args: residual.append(args[0][0, -1]))
    with torch.no_grad():
        ids = real.tokenizer(example.prompt + " ", return_tensors="pt").input_ids
        logits = real.model(ids).logits[0, -1]
    hook.remove()
    digits = [real.tokenizer(choice).input_ids[-1] for choice in example.choices]
    assert torch.allclose(readout @ residual[0], logits[digits], atol=1e-3)
    assert direct_logits(real, [example]).shape == (1, 30, 9, 4)


@pytest.mark.slow
def test_the_table_lists_all_that_the_real_model_was_asked(real):
    table = ga.runs("smollm2_tasks").set_index("task")
    asked = everything(real, 400)
    assert list(table.index) == list(asked) and (table.n == 400).all()
    assert all(table.chance[name] == pytest.approx(1 / len(of[0].choices)) for name, of in asked.items())
    right = ga.evaluate(real, asked["gift"]).correct.sum()
    assert abs(int(right) - table.right["gift"]) <= 2  # a near tie may come out otherwise elsewhere


@pytest.mark.slow
def test_the_real_model_can_do_some_of_it(real):
    """On seeds that nothing was chosen on."""
    gift = ga.evaluate(real, ga.tasks.english(real, "gift", n=100, seed=911))
    pairs = ga.evaluate(real, ga.tasks.kv_retrieval(real, n_pairs=4, n=100, seed=911, values="digits"))
    words = ga.evaluate(real, ga.tasks.induction(real, n=100, seed=911))
    assert gift.ci95[0] > 0.8 and pairs.ci95[0] > 0.5 and words.ci95[0] > 0.5
    assert np.isfinite(gift.logprobs).all()
