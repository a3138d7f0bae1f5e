"""The tiny world: its items have the answers they claim, no shortcuts, and the tokenizer is lossless."""

import random
import re

import pytest
from transformers import AutoTokenizer

import ga_utils as ga
from ga_utils.tasks import tiny, world
from ga_utils.training.curriculum import KINDS, Stage, Writer


def test_shipped_facts_and_tokenizer_are_what_the_code_makes(tmp_path, tokenizer):
    world.save_facts(tmp_path / "facts.csv")
    assert (tmp_path / "facts.csv").read_text() == (world.data_dir() / "world" / "facts.csv").read_text()
    assert world.make_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_facts_are_two_or_three_different_words_and_differ_between_towns():
    facts = world.facts()
    assert len(facts) == len(world.TOWNS) * len(world.RELATIONS)
    for relation in world.RELATIONS:
        values = [facts[town, relation] for town in world.TOWNS]
        assert len(set(values)) == len(values)
    assert all(len(set(v)) == len(v) in (2, 3) and set(v) <= set(world.POOL) for v in facts.values())


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


def test_options_do_not_give_the_answer_away(tiny):
    """Guessing by form, without the facts, stays at chance: longest, shortest, most or least like the
    others.
    """
    examples = ga.tasks.mmlu(tiny, n=3000, seed=8)

    def options(example):
        return [line.split()[1:] for line in example.prompt.splitlines()[:4]]

    def likeness(o, all_options):
        return sum(sum(a == b for a, b in zip(o, other)) - abs(len(o) - len(other)) for other in all_options)

    guesses = {
        "longest": lambda os: max(range(4), key=lambda i: len(os[i])),
        "shortest": lambda os: min(range(4), key=lambda i: len(os[i])),
        "central": lambda os: max(range(4), key=lambda i: likeness(os[i], os)),
        "odd one out": lambda os: min(range(4), key=lambda i: likeness(os[i], os)),
    }
    for name, guess in guesses.items():
        hits = sum(guess(options(e)) == e.answer for e in examples)
        assert hits / 3000 < 0.30, name


def test_no_single_word_separates_the_right_option(tiny):
    """Every word, and every (place, word), of the right option stands in at least one wrong option too."""
    for example in ga.tasks.mmlu(tiny, n=300, seed=9):
        options = [line.split()[1:] for line in example.prompt.splitlines()[:4]]
        right = options.pop(example.answer)
        for place, word in enumerate(right):
            assert any(place < len(o) and o[place] == word for o in options)


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
