"""What notebook 05 needs besides heads: donors with another question, bands of random draws, memory."""

import random
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

import ga_utils as ga
from ga_utils.plots import outcomes, percentiles, spread, tradeoff
from ga_utils.segments import positions
from ga_utils.tasks import tiny
from ga_utils.tasks.pairs import DIFFERENCES, PAIR, ask_another, differ_in, parts


@pytest.fixture(autouse=True)
def drawn():
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def dictionary(example):
    return {line[1]: line[3] for line in PAIR.finditer(example.prompt)}


@pytest.mark.parametrize("wording", ["tiny", "paper's"])
def test_another_question_about_the_same_keys_with_other_values(wording):
    lm = ga.load_model("tiny-llama")
    questions = ga.tasks.kv_retrieval(lm, n_pairs=5, n=40)
    if wording == "paper's":  # `key:value`, and the key in quotes
        rng = random.Random(1)
        questions = [ga.tasks.tiny.kv_memorize(rng, n_pairs=5) for _ in range(40)]
    rng, places = random.Random(0), set()
    for question in questions:
        donor, asked = ask_another(question, rng)
        before, after = dictionary(question), dictionary(donor)
        assert list(before) == list(after) and sorted(before.values()) == sorted(after.values())
        assert donor.choices == question.choices and donor.prompt.count("\n") == question.prompt.count("\n")
        key = list(before)[asked]
        ending = donor.prompt.rpartition("\n" if wording == "paper's" else "Question")[2]
        assert key in ending and list(before)[question.answer] not in ending
        assert after[key] == donor.choices[donor.answer].strip()
        assert before[key] == donor.choices[asked].strip()
        assert len({asked, donor.answer, question.answer}) == 3
        places.add(asked)
    assert places == set(range(5))


@pytest.mark.parametrize(
    "prompt, choices, message",
    [
        ("a: 1\nb: 2\nof a?", (" 1", " 2"), "2 pairs: with fewer than three"),
        ("a: 1\nb: 2\nc: 3\nof a?", (" 1", " 3", " 2"), "not the dictionary's values in their order"),
        ("a: 1\nb: 2\nc: 3\nof b?", (" 1", " 2", " 3"), "not the dictionary's values in their order"),
        ("a: 1\nb: 2\nc: 3\nof a?", (" 1", " 3", " 4"), "one line `key: value` for each"),
        ("A. owl\nB. rose\nAnswer:", (" A", " B"), "one line `key: value` for each"),
        ("a: 1\nb: 2\nc: 3\nof d?", (" 1", " 2", " 3"), "asks for one of its keys a, b, c"),
    ],
)
def test_what_is_no_dictionary_is_refused(prompt, choices, message):
    with pytest.raises(ValueError, match=message):
        ask_another(ga.Example(prompt, choices, 0, "toy"), random.Random(0))


WORDINGS = pytest.mark.parametrize("ask", [tiny.kv_retrieval, tiny.kv_memorize], ids=["tiny", "paper's"])


@WORDINGS
def test_prompts_that_differ_in_one_thing(ask):
    """Whatever is traded, following it leads to the other pair of the first prompt."""
    rng = random.Random(2)
    for _ in range(30):
        question = ask(rng, 5)
        other = rng.choice([place for place in range(5) if place != question.answer])
        before = list(dictionary(question).items())
        (key, _), (other_key, other_value) = before[question.answer], before[other]
        for what in DIFFERENCES:
            source = differ_in(question, what, other)
            after = list(dictionary(source).items())
            tail = source.prompt.rpartition(f"{after[-1][1]}\n")[2]
            asked = other_key if what in ("question", "key") else key
            assert re.findall(r"\w+", tail.replace("the key ", ""))[-2] == asked
            place = [name for name, _ in after].index(asked)
            answer = dict(after)[asked]
            traded = {"key": asked == other_key, "value": answer == other_value, "place": place == other}
            assert traded == {name: what in (name, "question") for name in traded}
            assert sorted(after) == sorted(before) or what in ("value", "key")
            assert source.choices == question.choices
            assert source.prompt.count("\n") == question.prompt.count("\n")
    with pytest.raises(ValueError, match="what='order': expected one of question, value, place, key"):
        differ_in(question, "order", other)
    for wrong in (question.answer, 5, -1):
        with pytest.raises(ValueError, match=f"other={wrong}: expected the place of a pair"):
            differ_in(question, "value", wrong)


@pytest.mark.parametrize("which", ["tiny", "real"])
def test_each_token_belongs_to_one_part(which, request):
    lm = request.getfixturevalue(which)
    for question in ga.tasks.kv_retrieval(lm, n_pairs=4, n=20, values="digits"):
        found = parts(lm, question)
        (last,) = positions(lm, question, "last")
        assert sorted(sum(found.values(), [])) == list(range(last + 1)) and found["first token"] == [0]
        ids = lm.encode(question.prompt)[0].tolist()
        text = {
            part: lm.tokenizer.decode([ids[i] for i in where if i < len(ids)])
            for part, where in found.items()
        }
        pairs = dictionary(question)
        key = list(pairs)[question.answer]
        assert text["right key"].strip(": ") == key == text["asked key"].strip(" '?")
        assert re.findall(r"\d", text["right value"]) == [pairs[key]]
        assert sorted(re.findall(r"\d", text["other values"])) == sorted(
            v for k, v in pairs.items() if k != key
        )
        assert all(name in text["other keys"].replace(" ", "") for name in pairs if name != key)


def test_the_band_goes_from_the_5th_to_the_95th_percentile_around_the_median():
    draws = [[0.1, 0.2, 0.9], np.linspace(0.01, 1, 100)]
    ax = spread([1, 4], draws, "heads")
    corners = ax.collections[0].get_paths()[0].vertices
    for corner in ([1, 0.1], [1, 0.9], [4, 0.05], [4, 0.95]):
        assert np.isclose(corners, corner).all(1).any()
    (median, *dots) = ax.lines
    assert np.allclose(median.get_xydata(), [[1, 0.2], [4, 0.5]])
    assert [len(line.get_ydata()) for line in dots] == [3, 100] and ax.get_xlabel() == "heads"
    assert "median" in ax.get_legend().get_texts()[1].get_text()


def test_percentiles_are_draws():
    assert percentiles([0.1] * 25 + [1.0] * 25).tolist() == [0.1, 0.1, 1.0]
    assert percentiles([0.1] * 24 + [1.0] * 26).tolist() == [0.1, 1.0, 1.0]


@pytest.mark.parametrize("draws", [[], [[0.1]], [[0.1], []]])
def test_each_place_needs_a_draw(draws):
    with pytest.raises(ValueError, match="expected some for each"):
        spread([1, 2], draws, "heads")


def test_memory_is_logarithmic_and_points_are_joined_in_its_order():
    ax = tradeoff({"a": [(1000, 0.9), (10, 0.1)], "b": [(50, 0.5)]}, "kept", chance=0.25)
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "kept"
    assert np.allclose(ax.lines[0].get_xydata(), [[10, 0.1], [1000, 0.9]])
    assert np.allclose(ax.lines[1].get_xydata(), [[50, 0.5]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "chance"]


def test_outcomes_stand_end_to_end_and_carry_their_numbers():
    ax = outcomes({"a": {"x": 0.25, "y": 0.75}, "b": {"x": 0.96, "y": 0.04}}, "answers")
    spans = [[(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars] for bars in ax.containers]
    assert np.allclose(spans, [[(0, 25), (0, 96)], [(25, 100), (96, 100)]])
    assert [text.get_text() for text in ax.texts] == ["25 %", "96 %", "75 %"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first row is at the top"
    with pytest.raises(ValueError, match="expected x, y"):
        outcomes({"a": {"x": 1, "y": 0}, "b": {"x": 1}})
    with pytest.raises(ValueError, match="nothing to draw"):
        outcomes({})


@pytest.mark.parametrize("series, message", [({}, "nothing to draw"), ({"a": []}, "'a' has points")])
def test_a_tradeoff_needs_points(series, message):
    with pytest.raises(ValueError, match=message):
        tradeoff(series)
