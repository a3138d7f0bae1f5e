"""Data sets in their authors' own files: made up here, and the real ones where they are."""

import csv
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sample_rows

import ga_utils as ga
from ga_utils.models.batches import rows_of
from ga_utils.tasks import datasets as sources

REAL = SimpleNamespace(name="real", tokenizer=SimpleNamespace(get_vocab=lambda: {"Hello": 0}))
HEADER = ["question", "A", "B", "C", "D", "answer"]


def asked() -> list[list[ga.Example]]:
    """Every question of these rows, in every form."""
    subset = "tracking_shuffled_objects_three_objects"
    return [
        ga.tasks.mmlu(REAL, n=18, shots=2),
        ga.tasks.mmlu_content(REAL, n=18),
        ga.tasks.mmlu(REAL, n=6, subjects=["high_school_us_history"]),
        ga.tasks.gsm8k(REAL, n=2),
        ga.tasks.bbh(REAL, n=5, sets=[subset, "boolean_expressions"]),
    ]


def write_originals(folder: Path, header: bool) -> None:
    """The same rows as in sample_rows, as the authors would have written them."""
    for split, of in (("test", sample_rows.TEST), ("dev", sample_rows.DEV)):
        (folder / "mmlu" / "data" / split).mkdir(parents=True)
        for subject, rows in of.items():
            rows = [*rows, sample_rows.TWICE] if (split, subject) == ("test", "anatomy") else rows
            with (folder / "mmlu" / "data" / split / f"{subject}_{split}.csv").open(
                "w", newline=""
            ) as stream:
                table = [[row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in rows]
                csv.writer(stream).writerows([HEADER, *table] if header else table)
    (folder / "gsm8k").mkdir()
    for split, rows in sample_rows.REPOS["openai/gsm8k"]["main"].items():
        (folder / "gsm8k" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bbh").mkdir()
    for subset, rows in sample_rows.BBH.items():
        (folder / "bbh" / f"{subset}.json").write_text(json.dumps({"canary": "...", "examples": rows}))


@pytest.mark.parametrize("header", [True, False], ids=["header", "no header"])
def test_ask_what_the_hubs_rows_ask(header, tmp_path, tmp_path_factory, monkeypatch):
    with sample_rows.downloaded(tmp_path_factory):
        expected = asked()
    write_originals(tmp_path, header)
    monkeypatch.setenv("GA_DATASETS", str(tmp_path))
    found = asked()
    assert found[3:] == expected[3:]
    # MMLU's rows come subject by subject; in sample_rows one stands behind all others. All are asked.
    assert [set(of) for of in found[:3]] == [set(of) for of in expected[:3]]


@pytest.mark.parametrize(
    "file, content, ask, message",
    [
        ("mmlu/anatomy_test.csv", "q,a,b,c,d,A\nq,a,b,c,d\n", ga.tasks.mmlu, "row 2: expected six columns"),
        ("mmlu/anatomy_test.csv", "q,a,b,c,d,E\n", ga.tasks.mmlu, "row 1: .* the last 'E'"),
        ("mmlu/anatomy_test.csv", "q,a,b,c,d,A\n\n", ga.tasks.mmlu, "row 2: .*got 0 columns"),
        (
            "gsm8k/test.jsonl",
            '{"question": "q"}\n',
            ga.tasks.gsm8k,
            "row 1: expected the texts 'question' and",
        ),
        ("gsm8k/test.jsonl", '{"question"\n', ga.tasks.gsm8k, "row 1: is no JSON"),
        ("bbh/navigate.json", '{"rows": []}', ga.tasks.bbh, 'expected an object with a list "examples"'),
        (
            "bbh/navigate.json",
            '{"examples": [{"input": 3, "target": "No"}]}',
            ga.tasks.bbh,
            "row 1: expected",
        ),
    ],
)
def test_damaged_rows_are_refused_by_file_and_row(file, content, ask, message, tmp_path, monkeypatch):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(content)
    monkeypatch.setenv("GA_DATASETS", str(tmp_path))
    options = {"sets": ["navigate"]} if ask is ga.tasks.bbh else {}
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / file))}.*{message}"):
        ask(REAL, **options)


def has_originals() -> bool:
    folder = os.environ.get("GA_DATASETS")
    return bool(folder) and all(any((Path(folder) / name).rglob("*")) for name in ("mmlu", "gsm8k", "bbh"))


@pytest.mark.slow
@pytest.mark.skipif(not has_originals(), reason="GA_DATASETS holds no original files of MMLU, GSM8K and BBH")
def test_the_real_rows(real):
    """All of them: counted, turned into prompts, tokenized, and the options of each question found."""
    rows = {name: sources.read(getattr(sources, name)) for name in ("MMLU", "GSM8K")}
    assert {name: len(of) for name, of in rows.items()} == {"MMLU": 14_042, "GSM8K": 1_319}
    assert len(set(rows["MMLU"]["subject"])) == 57
    twice = sum(len(set(choices)) < 4 for choices in rows["MMLU"]["choices"])
    every = {"mmlu": ga.tasks.mmlu(real, n=14_042 - twice), "gsm8k": ga.tasks.gsm8k(real, n=1_000)}
    every["mmlu, 5 shots"] = ga.tasks.mmlu(real, n=2_000, shots=5)
    every["bbh"] = ga.tasks.bbh(real, n=24 * 100)
    median = {name: np.median([len(row.ids) for row in rows_of(real, of)]) for name, of in every.items()}
    # Medians with Llama's tokenizer were 90, 1,004, 534 and 490; this one's are not far.
    for name, tokens in (("mmlu", 90), ("gsm8k", 1_004), ("mmlu, 5 shots", 534), ("bbh", 490)):
        assert 0.7 < median[name] / tokens < 1.5, (name, median[name])
    for example in every["mmlu"] + every["mmlu, 5 shots"]:
        found = ga.segments(real, example)
        assert [a.start < a.end < b.start + 2 for a, b in zip(found, found[1:])] == [True] * 3
