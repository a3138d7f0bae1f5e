"""Tasks on real data: rows of public data sets become `Example`s, in lm-evaluation-harness's prompt formats.

`ga_utils.tasks` calls these for every model that does not speak the tiny world. `Example.task` is the
harness's name of the task, and a test compares our texts with those that the harness makes of the same rows.

A choice is scored by the log-probability of its text, as in the harness's `acc`. Its `acc_norm`, which
divides by the length of the text, has no counterpart here. A row with two equal options is left out.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from ga_utils.examples import Example
from ga_utils.tasks import datasets
from ga_utils.tasks.datasets import INSTALL, PublicData, read

Make = Callable[[int, dict], Example | None]  # gets a row's index and the row; None where it can't be asked


def _sample(rows, make: Make, n: int, rng: random.Random, what: str) -> list[Example]:
    """Go through the rows in random order until n of them have become examples.

    Args:
        what: names the data set in errors.

    Raises:
        ValueError: there are fewer than n; or a row lacks something (names it).
    """
    found: list[Example] = []
    for index in rng.sample(range(len(rows)), len(rows)):
        if len(found) == n:
            break
        with _naming(what, index, rows[index]):
            example = make(index, rows[index])
        if example:
            found.append(example)
    if len(found) < n:
        raise ValueError(f"n={n}: {what} has only {len(found)} questions")
    return found


@contextmanager
def _naming(what: str, index: int, row: dict) -> Iterator[None]:
    """An error inside becomes one that names the row."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"row {index} of {what} can't be asked ({error}): {row}") from error


def _example(context: str, options: Iterable[str], answer: int, task: str) -> Example | None:
    """A question as the harness splits it: all space between prompt and choice belongs to the choice."""
    options, prompt = list(options), context.rstrip()
    if None in options or answer is None:
        raise ValueError("an option is missing" if None in options else "its answer is missing")
    if len(set(options)) < len(options):
        return None
    return Example(prompt, tuple(f"{context[len(prompt) :]} {option}" for option in options), answer, task)


def mmlu(n: int, seed: int, shots: int, subjects: list[str] | None, content: bool) -> list[Example]:
    """`mmlu_SUBJECT` of the harness or, with `content`, its `mmlu_SUBJECT_continuation`.

    A seed picks the same questions in both forms.
    """
    if not 0 <= shots <= 5:
        raise ValueError(f"shots={shots}: MMLU has 0 to 5 of them, the first questions of its dev split")
    if isinstance(subjects, str):
        raise ValueError(f"expected a list of subjects, got the single {subjects!r}: write [{subjects!r}]")
    rows = read(datasets.MMLU)
    column = rows["subject"]
    if subjects is not None:
        unknown = sorted(set(subjects) - set(column))
        if unknown:
            raise ValueError(f"MMLU has no subject {unknown[0]!r}: it has {', '.join(sorted(set(column)))}")
        rows = rows.select([i for i, subject in enumerate(column) if subject in subjects])
    ask = _mmlu_content if content else _mmlu_letters
    shown = _mmlu_shots(ask, shots)

    def make(index: int, row: dict) -> Example | None:
        if None in row["choices"]:
            raise ValueError("an option is missing")
        if len(set(row["choices"])) < 4:  # left out in both forms, so that a seed picks the same questions
            return None
        kind = "questions" if content else "multiple choice questions"
        about = f"The following are {kind} (with answers) about {row['subject'].replace('_', ' ')}.\n\n"
        context, options = ask(row)
        task = f"mmlu_{row['subject']}" + ("_continuation" if content else "")
        return _example(about + shown[row["subject"]] + context, options, row["answer"], task)

    what = "MMLU" if subjects is None else "this part of MMLU"
    return _sample(rows, make, n, random.Random(f"task-mmlu-{seed}"), what)


def _mmlu_shots(ask: Callable[[dict], tuple[str, list[str]]], shots: int) -> dict[str, str]:
    """For each subject, as text: the first `shots` of the five solved questions in its dev split."""
    shown, count = defaultdict(str), Counter()
    for index, row in enumerate(read(datasets.MMLU._replace(split="dev")) if shots else ()):
        count[row["subject"]] += 1
        if count[row["subject"]] <= shots:
            with _naming("MMLU's dev split", index, row):
                if None in (*row["choices"], row["answer"]):
                    raise ValueError("an option or the answer is missing")
                context, options = ask(row)
            shown[row["subject"]] += f"{context} {options[row['answer']]}\n\n"
    return shown


def _mmlu_letters(row: dict) -> tuple[str, list[str]]:
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", row["choices"]))
    return f"{row['question'].strip()}\n{options}Answer:", list("ABCD")


def _mmlu_content(row: dict) -> tuple[str, list[str]]:
    return f"Question: {row['question'].strip()}\nAnswer:", row["choices"]


def _arc(task: str, index: int, row: dict) -> Example | None:
    answer = row["choices"]["label"].index(row["answerKey"])
    return _example(f"Question: {row['question']}\nAnswer:", row["choices"]["text"], answer, task)


def _piqa(index: int, row: dict) -> Example | None:
    return _example(f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), row["label"], "piqa")


def _openbookqa(index: int, row: dict) -> Example | None:
    answer = row["choices"]["label"].index(row["answerKey"].lstrip())
    return _example(row["question_stem"], row["choices"]["text"], answer, "openbookqa")


def _hellaswag(index: int, row: dict) -> Example | None:
    def clean(text: str) -> str:  # WikiHow's mark-up
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    context = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return _example(context, map(clean, row["endings"]), int(row["label"]), "hellaswag")


def _winogrande(index: int, row: dict) -> Example:
    """Each option is read in place of the blank; the rest of the sentence, the same for both, is scored."""
    before, after = row["sentence"].split("_", 1)
    options = row["option1"], row["option2"]
    given = tuple(option.rstrip() for option in options)
    choices = tuple(f"{option[len(read) :]} {after.strip()}" for option, read in zip(options, given))
    return Example(before, choices, int(row["answer"]) - 1, "winogrande", given)


KNOWLEDGE: dict[str, tuple[PublicData, Make]] = {
    "arc_easy": (datasets.ARC, partial(_arc, "arc_easy")),
    "arc_challenge": (datasets.ARC._replace(config="ARC-Challenge"), partial(_arc, "arc_challenge")),
    "piqa": (datasets.PIQA, _piqa),
    "openbookqa": (datasets.OPENBOOKQA, _openbookqa),
    "hellaswag": (datasets.HELLASWAG, _hellaswag),
    "winogrande": (datasets.WINOGRANDE, _winogrande),
}


def knowledge(n: int, seed: int, sets: list[str] | None) -> list[Example]:
    """Equally many questions from each set, shuffled; the first sets give one more if n doesn't divide."""
    return _mixture({name: KNOWLEDGE[name] for name in _known(sets, KNOWLEDGE)}, "knowledge", n, seed)


def _known(sets: list[str] | None, known: Iterable[str]) -> list[str]:
    """The names in `sets`, all known ones by default; a ValueError lists these if there is any other."""
    names = list(known) if sets is None else list(sets)
    if isinstance(sets, str) or not names or not set(names) <= set(known):
        raise ValueError(f"sets={sets!r}: expected a list of names out of {', '.join(known)}")
    return names


def _mixture(sets: dict[str, tuple[PublicData, Make]], stream: str, n: int, seed: int) -> list[Example]:
    rng, found = random.Random(f"task-{stream}-{seed}"), []
    for i, (name, (data, make)) in enumerate(sets.items()):
        share = n // len(sets) + (i < n % len(sets))
        if share:
            found += _sample(read(data), make, share, rng, name)
    rng.shuffle(found)
    return found


def bbh(n: int, seed: int, sets: list[str] | None) -> list[Example]:
    """BIG-Bench Hard as in the harness's `leaderboard_bbh_*`: three solved questions, then one to answer.

    The solved questions, and the choices of each subset, are read from the installed harness.
    """
    harness = find_spec("lm_eval")
    if not harness:
        raise ModuleNotFoundError(INSTALL)
    import yaml

    folder = Path(harness.submodule_search_locations[0]) / "tasks" / "leaderboard" / "bbh_mc"
    files = {path.stem: path for path in sorted(folder.glob("[a-z]*.yaml"))}
    subsets = {}
    for name in _known(sets, files):
        template = yaml.safe_load(files[name].read_text(encoding="utf-8"))
        data = datasets.BBH._replace(config=template["dataset_name"])
        subsets[template["task"]] = data, partial(_bbh, template)
    return _mixture(subsets, "bbh", n, seed)


def _bbh(template: dict, index: int, row: dict) -> Example | None:
    choices = template["doc_to_choice"]
    if row["target"] not in choices:
        return None
    solved = template["fewshot_config"]["samples"]
    shots = "".join(f"Q: {shot['input']}\nA: {shot['target']}\n\n" for shot in solved)
    context = f"{template['description']}{shots}Q: {row['input']}\nA:"
    return _example(context, choices, choices.index(row["target"]), template["task"])


NUMBER = r"\d+(?:[.,]\d+)*"


def gsm8k(n: int, seed: int) -> list[Example]:
    """After five solved questions, choose the solution among copies in which a number is swapped.

    The solved questions are those that the harness shows for this question in a whole run of its `gsm8k`.
    """
    rows, train = read(datasets.GSM8K), read(datasets.GSM8K._replace(split="train"))
    harness, rng = random.Random(1234), random.Random(f"task-gsm8k-{seed}")
    shots = [harness.sample(range(len(train)), 5) for _ in range(len(rows))]

    def make(index: int, row: dict) -> Example | None:
        wrong = _swapped(row["question"], row["answer"])
        if len(wrong) < 3:
            return None
        shown = [train[i] for i in shots[index]]
        context = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shown)
        choices = rng.sample([row["answer"], *rng.sample(wrong, 3)], 4)
        context += f"Question: {row['question']}\nAnswer:"
        return _example(context, choices, choices.index(row["answer"]), "gsm8k")

    return _sample(rows, make, n, rng, "GSM8K")


def _swapped(question: str, solution: str) -> list[str]:
    """Copies of a solution in which, in one line, one number of the question is swapped for another."""
    numbers = sorted(set(re.findall(NUMBER, question)))
    *lines, result = solution.split("\n")
    copies = []
    for i, line in enumerate(lines):
        for old in numbers:
            for new in numbers:
                swapped = re.sub(NUMBER, lambda m, old=old, new=new: new if m[0] == old else m[0], line)
                copies.append("\n".join([*lines[:i], swapped, *lines[i + 1 :], result]))
    return [copy for copy in dict.fromkeys(copies) if copy != solution]


def dialogue(n: int, seed: int) -> list[Example]:
    """TimeDial, the harness's `bigbench_timedial_multiple_choice`: which phrase fills the gap?"""

    def make(index: int, row: dict) -> Example | None:
        options, task = row["multiple_choice_targets"], "bigbench_timedial_multiple_choice"
        return _example(row["inputs"], options, options.index(row["targets"][0]), task)

    return _sample(read(datasets.TIMEDIAL), make, n, random.Random(f"task-dialogue-{seed}"), "TimeDial")
