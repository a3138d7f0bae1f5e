"""Tasks on real data: the texts are those that lm-evaluation-harness makes of the same rows."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pytest
import sample_rows
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

import ga_utils as ga
from ga_utils.tasks import benchmarks
from ga_utils.tasks import datasets as sources

HARNESS = Path(lm_eval.__file__).parent / "tasks"
REAL = SimpleNamespace(name="real", tokenizer=SimpleNamespace(get_vocab=lambda: {"Hello": 0}))
FILES = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with sample_rows.downloaded(tmp_path_factory) as folder:
        yield folder


def harness(folder: Path, file: str, shots: int = 0) -> set[tuple]:
    """What the harness asks: for each row its ((text read, text scored), ...) and the index of the right one.

    Its task class runs on its own yaml file, only the data set's place is another; `_encode_pair` says which
    part of a text is scored, here with characters for tokens.
    """
    config = load_yaml(HARNESS / file)
    task = ConfigurableTask(config=config | {"dataset_path": str(folder / config["dataset_path"])})
    task.set_fewshot_seed(1234)
    characters = SimpleNamespace(backend="causal", tok_encode=list)
    asked = set()
    for doc in task.eval_docs:
        context = task.fewshot_context(doc, num_fewshot=shots)
        if config["output_type"] == "generate_until":
            asked.add((context, task.doc_to_target(doc)))
            continue
        requests = task.construct_requests(doc, context, metadata=("task", 0, 1))
        pairs = [TemplateLM._encode_pair(characters, *request.args) for request in requests]
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        gold = gold if isinstance(gold, int) else task.doc_to_choice(doc).index(gold)
        asked.add((tuple(("".join(a), "".join(b)) for a, b in pairs), gold))
    return asked


def ours(examples: list[ga.Example]) -> set[tuple]:
    return {(tuple(example.texts), example.answer) for example in examples}


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("subject", sample_rows.SUBJECTS)
def test_mmlu(folder, subject, shots):
    letters = ga.tasks.mmlu(REAL, n=6, shots=shots, subjects=[subject])
    content = ga.tasks.mmlu_content(REAL, n=6, shots=shots, subjects=[subject])
    assert ours(letters) == harness(folder, f"mmlu/default/mmlu_{subject}.yaml", shots)
    assert ours(content) == harness(folder, f"mmlu/continuation/mmlu_{subject}.yaml", shots)
    assert letters[0].prompt.count("\nAnswer: ") == shots
    assert [e.task for e in (letters[0], content[0])] == [f"mmlu_{subject}", f"mmlu_{subject}_continuation"]


def test_mmlu_letters_and_content_ask_the_same_questions(folder):
    letters, content = ga.tasks.mmlu(REAL, n=18, seed=3), ga.tasks.mmlu_content(REAL, n=18, seed=3)
    assert len(set(letters)) == 18  # all but the one with two equal options
    for a, b in zip(letters, content):
        option = re.findall(rf"^{'ABCD'[a.answer]}\. (.*)$", a.prompt, re.MULTILINE)[-1]
        assert b.choices[b.answer] == f" {option}" and a.answer == b.answer
        assert re.search(r"(\w+ test \d)", a.prompt)[1] in b.prompt


def test_the_descriptions_of_all_subjects_follow_one_rule():
    """Of which the tests above try three."""
    for kind, words in (("default", "multiple choice questions"), ("continuation", "questions")):
        files = sorted((HARNESS / "mmlu" / kind).glob("mmlu_*.yaml"))
        assert len(files) == 57
        for file in files:
            config = load_yaml(file)
            name = config["dataset_name"].replace("_", " ")
            assert config["description"] == f"The following are {words} (with answers) about {name}.\n\n"


@pytest.mark.parametrize("name", FILES)
def test_knowledge(folder, name):
    rows = next(iter(sample_rows.REPOS[benchmarks.KNOWLEDGE[name][0].repo].values()))["validation"]
    examples = ga.tasks.knowledge(REAL, n=len(rows), sets=[name])
    assert ours(examples) == harness(folder, FILES[name])
    assert {e.task for e in examples} == {name}


def test_knowledge_is_an_even_mixture(folder):
    counts = [[e.task for e in ga.tasks.knowledge(REAL, n=n)].count(name) for n in (6, 9) for name in FILES]
    assert counts == [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1]
    order = [e.task for e in ga.tasks.knowledge(REAL, n=9)]
    assert order != sorted(order, key=list(FILES).index)  # shuffled: a part of the list is a mixture, too


@pytest.mark.parametrize("subset", sample_rows.BBH)
def test_bbh(folder, subset):
    examples = ga.tasks.bbh(REAL, n=len(sample_rows.BBH[subset]), sets=[subset])
    assert ours(examples) == harness(folder, f"leaderboard/bbh_mc/{subset}.yaml", shots=3)
    assert {e.task for e in examples} == {f"leaderboard_bbh_{subset}"}


def test_dialogue(folder):
    expected = harness(folder, "bigbench/multiple_choice/timedial.yaml")
    assert ours(ga.tasks.dialogue(REAL, n=2)) == expected


def test_gsm8k_shows_what_the_harness_shows_and_swaps_one_number(folder):
    examples = ga.tasks.gsm8k(REAL, n=2)
    shown = harness(folder, "gsm8k/gsm8k.yaml", shots=5)
    assert {(e.prompt, e.choices[e.answer][1:]) for e in examples} == {
        row for row in shown if "One number" not in row[0]
    }
    for example in examples:
        question = example.prompt.split("Question: ")[-1]
        named = set(re.findall(benchmarks.NUMBER, question))
        right = example.choices[example.answer]
        assert len(example.choices) == 4
        for wrong in set(example.choices) - {right}:
            changed = [(a, b) for a, b in zip(right.split("\n"), wrong.split("\n"), strict=True) if a != b]
            assert len(changed) == 1
            numbers = [re.findall(benchmarks.NUMBER, line) for line in changed[0]]
            swaps = {(a, b) for a, b in zip(*numbers, strict=True) if a != b}
            assert len(swaps) == 1 and set(*swaps) <= named


def test_kv_retrieval_in_the_papers_wording():
    for example in ga.tasks.kv_retrieval(REAL, n_pairs=12, n=20):
        first, *lines, question = example.prompt.split("\n")
        pairs = dict(line.split(":") for line in lines)
        key = re.fullmatch(r"The value of the key '(\w+)' is", question)[1]
        assert first == "Memorize the following dictionary:" and len(pairs) == len(set(pairs.values())) == 12
        assert example.choices[example.answer] == f" {pairs[key]}"
        assert [f" {value}" for value in pairs.values()] == list(example.choices)


TASKS = [ga.tasks.mmlu, ga.tasks.mmlu_content, ga.tasks.knowledge, ga.tasks.kv_retrieval]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_seed_repeats_and_another_one_differs(folder, task):
    assert task(REAL, n=8, seed=1) == task(REAL, n=8, seed=1)
    assert [e.prompt for e in task(REAL, n=8, seed=1)] != [e.prompt for e in task(REAL, n=8, seed=2)]


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda: ga.tasks.mmlu(REAL, n=19), "n=19: MMLU has only 18 questions"),
        (lambda: ga.tasks.mmlu(REAL, n=0), "n=0: ask for at least one"),
        (lambda: ga.tasks.mmlu(REAL, shots=6), "shots=6: MMLU has 0 to 5"),
        (
            lambda: ga.tasks.mmlu(REAL, subjects=["cooking"]),
            "no subject 'cooking': it has abstract_algebra, anatomy",
        ),
        (lambda: ga.tasks.mmlu(REAL, subjects="anatomy"), "write ['anatomy']"),
        (lambda: ga.tasks.knowledge(REAL, n=100), "n=17: arc_easy has only 3 questions"),
        (
            lambda: ga.tasks.knowledge(REAL, sets=["boolq"]),
            "expected a list of names out of arc_easy, arc_challenge",
        ),
        (lambda: ga.tasks.knowledge(REAL, sets="piqa"), "sets='piqa': expected a list"),
        (lambda: ga.tasks.knowledge(REAL, sets=[]), "sets=[]: expected a list"),
        (lambda: ga.tasks.bbh(REAL, sets=["word_sorting"]), "out of boolean_expressions, causal_judgement"),
        (lambda: ga.tasks.gsm8k(REAL, n=3), "n=3: GSM8K has only 2 questions"),
        (lambda: ga.tasks.dialogue(REAL, n=3), "n=3: TimeDial has only 2 questions"),
        (lambda: ga.tasks.kv_retrieval(REAL, n_pairs=1), "n_pairs=1: there are keys for 2 to 90"),
    ],
)
def test_what_cannot_be_asked_is_refused(folder, ask, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ask()


@pytest.mark.parametrize(
    "task, argument",
    [
        ("mmlu", {"shots": 5}),
        ("mmlu_content", {"subjects": ["anatomy"]}),
        ("knowledge", {"sets": ["piqa"]}),
        ("bbh", {"sets": ["navigate"]}),
    ],
)
def test_the_tiny_world_has_no_shots_and_no_subjects(tiny, task, argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"{name}=.*only tasks on real data"):
        getattr(ga.tasks, task)(tiny, **argument)


def test_offline_the_message_says_what_to_download_where(folder, monkeypatch, tmp_path):
    monkeypatch.setenv(
        "GA_DATASETS", str(tmp_path)
    )  # a folder without that data set; the hub is out of reach in tests
    with pytest.raises(ConnectionError) as raised:
        ga.tasks.gsm8k(REAL)
    command = (
        "hf download --repo-type dataset openai/gsm8k --revision 740312add88f781978c0658806c59bc2815b9866"
    )
    assert f"{command} --local-dir FOLDER/openai/gsm8k" in str(raised.value)
    assert "GA_DATASETS=FOLDER" in str(raised.value)


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "ga-utils[eval]"')):
        ga.tasks.dialogue(REAL)


def test_every_revision_is_a_commit():
    pinned = [
        getattr(sources, name) for name in "MMLU ARC PIQA OPENBOOKQA HELLASWAG WINOGRANDE GSM8K BBH".split()
    ]
    assert all(re.fullmatch("[0-9a-f]{40}", source.revision) for source in pinned)
