"""The tiny world: its items have the answers they claim, no shortcuts, and the tokenizer is lossless."""

import random
import re

import pytest
import torch
from transformers import AutoTokenizer

import ga_utils as ga
from ga_utils.tasks import tiny, world
from ga_utils.training.curriculum import KINDS, Stage, Writer, batch, seen_by


def test_shipped_facts_and_tokenizer_are_what_the_code_makes(tmp_path, tokenizer):
    world.save_facts(tmp_path / "facts.csv")
    assert (tmp_path / "facts.csv").read_text() == (world.data_dir() / "world" / "facts.csv").read_text()
    assert world.make_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_facts_are_four_or_five_different_words_and_differ_between_towns():
    facts = world.facts()
    assert len(facts) == len(world.TOWNS) * len(world.RELATIONS)
    for relation in world.RELATIONS:
        values = [facts[town, relation] for town in world.TOWNS]
        assert len(set(values)) == len(values)
        assert [len(value) for value in values].count(4) == len(values) / 2  # no length is likelier
    assert all(len(set(v)) == len(v) in (4, 5) and set(v) <= set(world.POOL) for v in facts.values())


TASKS = {
    "mmlu": ga.tasks.mmlu,
    "mmlu_content": ga.tasks.mmlu_content,
    "knowledge": ga.tasks.knowledge,
    "kv_retrieval": ga.tasks.kv_retrieval,
    "gsm8k": ga.tasks.gsm8k,
    "bbh": ga.tasks.bbh,
    "dialogue": ga.tasks.dialogue,
}


def solve(example: ga.Example) -> str:
    """Answer from the text alone (and the table of facts), by other code than the one that wrote the item."""
    text = example.prompt
    if found := re.search(r"what is the (\w+) of (\w+)\?", text):
        if found[1] == "value":
            return re.search(rf"^{found[2]}: (\d+)$", text, re.MULTILINE)[1]
        value = " ".join(world.facts()[found[2], found[1]])
        return re.search(rf"^([A-D])\. {value}$", text, re.MULTILINE)[1] if example.task == "mmlu" else value
    if found := re.fullmatch(r"The (\w+) of (\w+) is", text):
        return " ".join(world.facts()[found[2], found[1]])
    if found := re.search(r"do (\w+) and (\w+) have together", text):
        return str(sum(int(re.search(rf"{person} has (\d+)", text)[1]) for person in found.groups()))
    if found := re.search(r"what does (\w+) have\?", text):
        holds = dict(re.findall(r"(\w+) has the (\w+)\.", text))
        for a, b in re.findall(r"(\w+) and (\w+) swap", text):
            holds[a], holds[b] = holds[b], holds[a]
        return holds[found[1]]
    verb, thing = re.search(r"who (\w+) the (\w+)\?", text).groups()
    return re.search(rf"(\w+): I {verb} the {thing}\.", text)[1]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_right_choice_is_right_and_the_tokenizer_keeps_every_character(task, tiny, tokenizer):
    examples = task(tiny, n=300, seed=4)
    assert {e.answer for e in examples} == set(range(max(len(e.choices) for e in examples)))
    for example in examples:
        assert example.choices[example.answer].strip(" .\n") == solve(example)
        for choice in example.choices:
            ids = tokenizer(example.prompt + choice).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == example.prompt + choice


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_same_seed_same_items_other_seed_other_items(task, tiny):
    assert task(tiny, n=20, seed=1) == task(tiny, n=20, seed=1)
    assert task(tiny, n=20, seed=1) != task(tiny, n=20, seed=2)


def test_content_items_are_the_lettered_questions(tiny):
    for lettered, content in zip(
        ga.tasks.mmlu(tiny, n=50, seed=3), ga.tasks.mmlu_content(tiny, n=50, seed=3)
    ):
        assert lettered.answer == content.answer
        assert all(f". {choice.strip()}\n" in lettered.prompt for choice in content.choices)


@pytest.fixture(scope="module")
def squares(tiny):
    """The options of 20,000 lettered questions, as lists of words, and the number of the right one."""
    return [
        ([line.split()[1:] for line in e.prompt.splitlines()[:4]], e.answer)
        for e in ga.tasks.mmlu(tiny, n=20_000, seed=8)
    ]


PARTIAL = {f"word {i} from the start": lambda o, i=i: o[i : i + 1] for i in range(5)}
PARTIAL |= {f"word {i} from the end": lambda o, i=i: o[::-1][i : i + 1] for i in range(5)} | {"length": len}


@pytest.mark.parametrize("seen", PARTIAL.values(), ids=PARTIAL)
def test_whoever_sees_one_position_of_the_right_option_is_left_with_a_toss_up(squares, seen):
    """Knows what is there in the true value, and guesses among the options that have it."""
    scores = [1 / [seen(o) for o in options].count(seen(options[right])) for options, right in squares]
    assert sum(scores) / len(scores) <= 0.51


def test_so_is_whoever_knows_one_word_wherever_it_stands(squares):
    for options, right in squares[:2000]:
        for word in {word for option in options for word in option}:
            has = [word in option for option in options]
            assert has.count(has[right]) in (2, 4)


def test_the_two_words_that_decide_are_not_neighbours(squares):
    for options, _ in squares[:2000]:
        short, (a, b) = [o for o in options if len(o) == 4], [o for o in options if len(o) == 5]
        (changed,) = (place for place in range(5) if a[place] != b[place])
        in_front, behind = a[1:] in short and b[1:] in short, a[:4] in short and b[:4] in short
        assert in_front != behind and abs(changed - (4 if behind else 0)) >= 2


def blind(options: list[list[str]]) -> dict[str, list[float]]:
    """How much each option looks like an answer to whoever has not read the question."""
    columns = [[o[i] if i < len(o) else "" for o in options] for i in range(5)]
    words = [word for o in options for word in o]

    def alike(a: list[str], b: list[str]) -> int:
        return sum(x == y for x, y in zip(a, b)) + sum(x == y for x, y in zip(a[::-1], b[::-1]))

    return {
        "longest": [len(o) for o in options],
        "the usual word at each place": [
            sum(column.count(word) for column, word in zip(columns, o)) for o in options
        ],
        "usual words": [sum(words.count(word) for word in o) / len(o) for o in options],
        "central": [sum(alike(o, other) for other in options) for o in options],
        **{letter: [float(i == j) for i in range(4)] for j, letter in enumerate("ABCD")},
    }


def test_the_options_alone_do_not_give_the_answer_away(squares):
    """Each policy, and its opposite; ties are guessed."""
    hits: dict[str, float] = {}
    for options, right in squares:
        for name, looks in blind(options).items():
            for sign in (1, -1):
                values = [sign * look for look in looks]
                best = max(values)
                hits[f"{sign} {name}"] = hits.get(f"{sign} {name}", 0) + (
                    values[right] == best
                ) / values.count(best)
    assert len(hits) == 16 and max(hits.values()) / len(squares) <= 0.28


def test_training_text_is_the_tokenizers_and_marks_answers(tokenizer):
    writer = Writer(tokenizer)
    stage = Stage(1, {kind: 1.0 for kind in KINDS}, length=30_000, rows=1)
    (row,) = writer.rows(random.Random("x"), stage)
    text = tokenizer.decode(row.ids, skip_special_tokens=True)
    assert tokenizer(text).input_ids == row.ids
    letters = [i for i, k in zip(row.ids, row.kinds) if k == KINDS.index("mmlu")]
    assert 10 < len(letters) < 200 and set(tokenizer.convert_ids_to_tokens(letters)) == set("ABCD")
    asked = tokenizer.convert_tokens_to_ids("Answer:")
    for at, kind in enumerate(row.kinds):
        assert (row.weights[at] >= 1) == (kind >= 0)  # answers count fully, and nothing else does
        if kind == KINDS.index("mmlu"):
            assert row.ids[at - 1] == asked


def test_the_guide_hides_options_from_the_question_and_nothing_else(tokenizer):
    """Against a loop over the text of items whose tokens are told apart by hand."""
    writer, vocab = Writer(tokenizer), tokenizer.get_vocab()
    shares = {"mmlu": 1.0, "mmlu_more": 1.0, "which": 1.0, "kv": 1.0, "fact": 1.0}
    for seed in range(5):
        (row,) = writer.rows(random.Random(seed), Stage(1, shares, length=192, rows=1, guided=0.7))
        words = tokenizer.convert_ids_to_tokens(row.ids)
        expected = torch.ones(192, 192, dtype=torch.bool).tril()
        for start, stop in row.guided:
            ask = words.index("Question:", start) if "Question:" in words[start:] else 192
            for query in range(ask + 1, min(stop, 192)):
                for key in range(start, ask):
                    closes = key > start and "\n" in (words[key], words[key - 1])
                    expected[query, key] = words[query] == "Answer:" and closes
        assert row.guided and (seen_by(row, vocab) == expected).all()
    assert "mask" not in batch(writer.rows(random.Random(0), Stage(1, shares)), writer)


def test_a_row_depends_on_its_seed_and_step_alone(tokenizer):
    writer, stage = Writer(tokenizer), Stage(1, {"mmlu": 1.0}, rows=2)
    assert writer.rows(random.Random("train-0-7"), stage) == writer.rows(random.Random("train-0-7"), stage)
    assert writer.rows(random.Random("train-0-7"), stage) != writer.rows(random.Random("train-0-8"), stage)


def test_auto_tokenizer_loads_it():
    assert AutoTokenizer.from_pretrained(world.data_dir() / "world")("Answer: A").input_ids[0] == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ga.Example("x", (" A",), 0, "t"), "at least two choices"),
        (lambda: ga.Example("x", (" A", " A"), 0, "t"), "duplicate choices"),
        (lambda: ga.Example("x", (" A", " B"), 2, "t"), "answer=2"),
    ],
)
def test_malformed_examples_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tasks_refuse_nonsense(tiny):
    with pytest.raises(ValueError, match="n=0"):
        ga.tasks.mmlu(tiny, n=0)
    with pytest.raises(ValueError, match="n_pairs=1"):
        ga.tasks.kv_retrieval(tiny, n_pairs=1)


def test_the_partner_question_of_training_names_who_swapped_with_whom():
    rng = random.Random(0)
    for _ in range(50):
        story = tiny.bbh(rng)
        a, b = re.search(r"(\w+) and (\w+) swap", story.text).groups()
        asked = {question.split()[2]: choices[answer].strip() for question, choices, answer in story.easier}
        assert asked == {a: b, b: a}
