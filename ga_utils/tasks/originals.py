"""Data sets in the files in which their authors published them, for machines that can't reach the hub.

    GA_DATASETS/mmlu/**/anatomy_test.csv    hendrycks/test: question, four options, letter, header or not
    GA_DATASETS/gsm8k/**/test.jsonl         openai/grade-school-math: {"question": ..., "answer": ...}
    GA_DATASETS/bbh/**/navigate.json        suzgunmirac/BIG-Bench-Hard: {"examples": [{"input", "target"}]}

Each row comes out as the hub has it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

LETTERS = "ABCD"


def original_rows(folder: Path, config: str | None, split: str) -> list[dict] | None:
    """The rows of one split, or None where `folder` holds no original files of it.

    Args:
        folder: of one data set; its name says which: mmlu, gsm8k or bbh.
        config: BBH's name of a subset.

    Raises:
        ValueError: a row is not what it should be; names the file, the row, and what was expected.
    """
    if folder.name not in ORIGINAL:
        return None
    pattern, rows = ORIGINAL[folder.name]
    files = sorted(folder.rglob(pattern.format(config=config, split=split)))
    return [row for file in files for row in rows(file)] or None


def _mmlu(file: Path) -> Iterator[dict]:
    subject = file.stem.rpartition("_")[0]
    with file.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.reader(stream), 1):
            letter = row[-1].strip() if row else ""
            if number == 1 and letter.lower() in ("answer", "target"):
                continue
            if len(row) != 6 or letter not in LETTERS or not letter:
                raise ValueError(
                    f"{file}, row {number}: expected six columns, a question, four options and the right "
                    f"one's letter, A to D; got {len(row)} columns, the last {letter!r}"
                )
            question, *choices, _ = row
            yield {
                "question": question,
                "subject": subject,
                "choices": choices,
                "answer": LETTERS.index(letter),
            }


def _gsm8k(file: Path) -> Iterator[dict]:
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _with(_json(line, file, number), ("question", "answer"), file, number)


def _bbh(file: Path) -> Iterator[dict]:
    whole = _json(file.read_text(encoding="utf-8"), file, 1)
    examples = whole.get("examples") if isinstance(whole, dict) else None
    if not isinstance(examples, list):
        raise ValueError(f'{file}: expected an object with a list "examples"')
    for number, row in enumerate(examples, 1):
        yield _with(row, ("input", "target"), file, number)


def _json(text: str, file: Path, number: int):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, row {number}: is no JSON ({error})") from error


def _with(row, keys: tuple[str, str], file: Path, number: int) -> dict:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise ValueError(
            f"{file}, row {number}: expected the texts {keys[0]!r} and {keys[1]!r}, got {row!r:.80}"
        )
    return {key: row[key] for key in keys}


ORIGINAL: dict[
    str, tuple[str, Callable[[Path], Iterator[dict]]]
] = {  # folder -> its files, how they are read
    "mmlu": ("*_{split}.csv", _mmlu),
    "gsm8k": ("{split}.jsonl", _gsm8k),
    "bbh": ("{config}.json", _bbh),
}
