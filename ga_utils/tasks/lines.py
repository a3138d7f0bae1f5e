"""Lettered questions with one thing about their option lines changed: donors for `ga.patch`, other labels.

A lettered question's option lines read `B. amber river owl`: a *label*, and the *words*. `trade` changes one
of the two and leaves the other where it was, so that a patch from the traded prompt says which of them a head
carries. `relabel` gives the lines other labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ga_utils.examples import Example


def trade(example: Example, a: int, b: int, what: str) -> Example:
    """The question with the labels, or the words, of its option lines a and b in each other's place.

        A. amber river        labels:  B. amber river        words:  A. stone river
        B. stone river                 A. stone river                B. amber river

    Lines are counted from the top. The choices stay; where the right line is one of the two, the right
    answer is the other one's label.

    Raises:
        ValueError: `what` is neither "labels" nor "words"; lines that the prompt lacks.
    """
    if what not in ("labels", "words"):
        raise ValueError(f'what={what!r}: expected "labels" or "words"')
    labels, words = split_lines(example)
    if not (0 <= a < len(labels) and 0 <= b < len(labels)):
        raise ValueError(f"lines {a} and {b}: this question has option lines 0–{len(labels) - 1}")
    right = example.choices[example.answer].strip()
    exchanged = {labels[a]: labels[b], labels[b]: labels[a]}
    some = labels if what == "labels" else words
    some[a], some[b] = some[b], some[a]
    answer = example.choices.index(f" {exchanged.get(right, right)}")
    return replace(example, prompt=_joined(example, labels, words), answer=answer)


def relabel(example: Example, labels: Sequence[str], choices: Sequence[str] | None = None) -> Example:
    """The question with these labels on its option lines, from the top; the same line is the right one.

    Args:
        choices: the labels in the order of the choices, where that is another one. As `labels` by default.

    Raises:
        ValueError: not one label for each line, or labels that are not all different.
    """
    old, words = split_lines(example)
    if len(labels) != len(old) or len(set(labels)) != len(old):
        raise ValueError(f"{len(old)} option lines need as many different labels, got {list(labels)}")
    line = old.index(example.choices[example.answer].strip())
    choices = list(labels if choices is None else choices)
    return replace(
        example,
        prompt=_joined(example, list(labels), words),
        choices=tuple(f" {label}" for label in choices),
        answer=choices.index(labels[line]),
    )


def split_lines(example: Example) -> tuple[list[str], list[str]]:
    """The labels and the words of the option lines, from the top.

    Raises:
        ValueError: a choice has no line.
    """
    lines = example.prompt.split("\n")
    parts = [lines[place].split(". ", 1) for place in _places(example)]
    return [label for label, _ in parts], [words for _, words in parts]


def _places(example: Example) -> list[int]:
    """Which lines of the prompt hold the options: of each choice the last one that its label begins."""
    found = {}
    for number, line in enumerate(example.prompt.split("\n")):
        for choice in example.choices:
            if line.startswith(f"{choice.strip()}. "):
                found[choice] = number
    if len(found) < len(example.choices):
        raise ValueError(f"the {example.task} prompt lacks a line for some of its choices {example.choices}")
    return sorted(found.values())


def _joined(example: Example, labels: list[str], words: list[str]) -> str:
    lines = example.prompt.split("\n")
    for place, label, text in zip(_places(example), labels, words):
        lines[place] = f"{label}. {text}"
    return "\n".join(lines)
