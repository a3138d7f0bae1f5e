"""A few rows of every data set, made up in its true schema and with the quirks of the real rows.

They are written as on the hub: a repository is a folder with a card, README.md, whose head says which parquet
files make up which split.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
import yaml
from datasets import Dataset

LISTED = "\nA. first\nB. second\nC. third\nD. fourth\nof these"  # a question that looks as if it had options


def mmlu(subject: str, part: str, n: int) -> list[dict]:
    return [
        {
            "question": f"{subject} {part} {i}{LISTED if i == 2 else ''}: which?\n ",
            "subject": subject,
            "answer": (i * 3 + len(part)) % 4,
            "choices": [f"it's {i}", f'a "{part}"', f" number {i + 2}", f"{subject[:5]} {i}."],
        }
        for i in range(n)
    ]


def arc(kind: str) -> list[dict]:
    options = [
        ["soil", "sand", "the sun's heat", "salt"],
        ["a", "b", "c", "d", "e"],
        ["two", "one", "nine", "six"],
    ]
    labels = [list("ABCD"), list("ABCDE"), list("1234")]
    keys = ["C", "E", "2"]
    return [
        {
            "id": f"{kind}{i}",
            "question": f"{kind} {i}?",
            "choices": {"text": o, "label": label},
            "answerKey": key,
        }
        for i, (o, label, key) in enumerate(zip(options, labels, keys))
    ]


SUBJECTS = ["abstract_algebra", "anatomy", "high_school_us_history"]
TEST = {subject: mmlu(subject, "test", 6) for subject in SUBJECTS}
TWICE = {
    "question": "Twice?",
    "subject": "anatomy",
    "answer": 0,
    "choices": ["same", "same", "other", "last"],
}
DEV = {subject: mmlu(subject, "dev", 5) for subject in SUBJECTS}
WORKED = "Ann sold 48/2 = <<48/2=24>>24 clips in May.\nSo she sold 48+24 = <<48+24=72>>72 clips.\n#### 72"
SUMS = [
    {
        "question": f"Train {i}: {i} eggs and {i + 1} more?",
        "answer": f"{i}+{i + 1}={2 * i + 1}\n#### {2 * i + 1}",
    }
    for i in range(9)
]
BBH = {
    "tracking_shuffled_objects_three_objects": [
        {"input": f"Al has {x}. Who?\nOptions:\n(A) x\n(B) y\n(C) z", "target": t}
        for x, t in zip("xyz", ["(B)", "(C)", "(A)"])
    ],
    "boolean_expressions": [
        {"input": "not ( True ) and False is", "target": "False"},
        {"input": "True is", "target": "True"},
    ],
    "object_counting": [{"input": f"I have {n} figs. How many?", "target": str(n)} for n in (3, 11)],
    "navigate": [{"input": "Turn left. Do you return?\nOptions:\n- Yes\n- No", "target": "No"}],
}

# repository -> configuration -> split -> rows
REPOS = {
    "cais/mmlu": {"all": {"test": [*sum(TEST.values(), []), TWICE], "dev": sum(DEV.values(), [])}}
    | {subject: {"test": TEST[subject], "dev": DEV[subject]} for subject in SUBJECTS},
    "allenai/ai2_arc": {
        kind: {"test": arc(kind)} | {part: arc(part) for part in ("train", "validation")}
        for kind in ("ARC-Easy", "ARC-Challenge")
    },
    "baber/piqa": {
        "default": {
            part: [
                {
                    "goal": "To dry a wet book,",
                    "sol1": "put it in rice.",
                    "sol2": "put it in a lake.",
                    "label": 0,
                },
                {"goal": "how do I cut bread? ", "sol1": "with a 'pen'", "sol2": "with a knife", "label": 1},
            ]
            for part in ("train", "validation")
        }
    },
    "allenai/openbookqa": {
        "main": {
            part: [
                {
                    "id": "1",
                    "question_stem": "The sun is responsible for",
                    "answerKey": " D",
                    "choices": {
                        "text": ["puppies", "sleep", "cats", "plants growing"],
                        "label": list("ABCD"),
                    },
                },
                {
                    "id": "2",
                    "question_stem": "Frogs eat, mostly, ",
                    "answerKey": "A",
                    "choices": {"text": ["flies", "stones", "trees", "frost"], "label": list("ABCD")},
                },
            ]
            for part in ("train", "validation", "test")
        }
    },
    "Rowan/hellaswag": {
        "default": {
            part: [
                {
                    "ind": 4,
                    "activity_label": "Removing ice",
                    "ctx_a": "Then, the man writes over the snow.",
                    "ctx_b": "then",
                    "ctx": "",
                    "endings": [
                        ", he adds wax.",
                        ", a  person  is near.",
                        ", he shaves it.",
                        ", it ends [laughs].",
                    ],
                    "source_id": "a",
                    "split": part,
                    "split_type": "indomain",
                    "label": "3",
                },
                {
                    "ind": 5,
                    "activity_label": "Home and Garden",
                    "ctx_a": "[header] How to sow [title] Dig. [step] A hole.",
                    "ctx_b": "",
                    "ctx": "",
                    "endings": ["[substeps] Water it.", "Eat it.", "Sing [title] Loud", "Wait. "],
                    "source_id": "b",
                    "split": part,
                    "split_type": "zeroshot",
                    "label": "0",
                },
            ]
            for part in ("train", "validation")
        }
    },
    "allenai/winogrande": {
        "winogrande_xl": {
            part: [
                {
                    "sentence": "Sarah was a better surgeon than Maria so _ always got the easier cases.",
                    "option1": "Sarah",
                    "option2": "Maria",
                    "answer": "2",
                },
                {
                    "sentence": "The cup didn't fit in the box as the _ was too big .",
                    "option1": "cup ",
                    "option2": "box",
                    "answer": "1",
                },
            ]
            for part in ("train", "validation")
        }
    },
    "openai/gsm8k": {
        "main": {
            "train": SUMS,
            "test": [
                {
                    "question": "Ann sold clips to 48 friends in April, half in 5 weeks, none in 3. Sum?",
                    "answer": WORKED,
                },
                {"question": "One number only: 7?", "answer": "7*1=7\n#### 7"},
                {
                    "question": "Costs 1,200, then 15.50, then 3 dollars?",
                    "answer": "1,200-15.50=1,184.50\nMinus 3.\n#### 1,181.50",
                },
            ],
        }
    },
    "SaylorTwift/bbh": {subset: {"test": rows} for subset, rows in BBH.items()},
    "hails/bigbench": {
        "timedial_zero_shot": {
            part: [
                {
                    "idx": 1,
                    "inputs": "A: Lunch?\nB: At <MASK>, I am hungry.\nWhich fits?\n\noutput: ",
                    "targets": ["noon"],
                    "multiple_choice_targets": ["midnight", "noon", "4 am"],
                    "multiple_choice_scores": [0, 1, 0],
                },
                {
                    "idx": 2,
                    "inputs": "A: Long?\nB: Just <MASK>.\nWhich fits?\noutput:",
                    "targets": ["a minute"],
                    "multiple_choice_targets": ["a minute", "three years"],
                    "multiple_choice_scores": [1, 0],
                },
            ]
            for part in ("default", "train", "validation")
        }
    },
}


def write(folder: Path) -> Path:
    """Write all repositories as `hf download --repo-type dataset REPO --local-dir FOLDER/REPO` would."""
    for repo, configs in REPOS.items():
        card = []
        for config, splits in configs.items():
            (folder / repo / config).mkdir(parents=True)
            for split, rows in splits.items():
                Dataset.from_list(rows).to_parquet(folder / repo / config / f"{split}-00000-of-00001.parquet")
            files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
            card.append({"config_name": config, "data_files": files})
        (folder / repo / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n# {repo}\n")
    return folder


@contextmanager
def downloaded(tmp_path_factory) -> Iterator[Path]:
    """Inside, `ga.tasks` finds these rows: a folder with all data sets, named by GA_DATASETS."""
    folder = write(tmp_path_factory.mktemp("hub"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setenv("GA_DATASETS", str(folder))
        yield folder
