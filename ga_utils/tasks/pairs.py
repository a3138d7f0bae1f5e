"""Dictionaries that differ in one thing, as sources for `ga.patch`; and what each token of one is."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from ga_utils.examples import Example
from ga_utils.models.lm import LM
from ga_utils.segments import positions

PAIR = re.compile(r"^(\S+):( ?)(\S+)$", re.MULTILINE)  # a line `apple: 17`, or `apple:17`


def ask_another(example: Example, rng: random.Random) -> tuple[Example, int]:
    """The same keys with their values shuffled, and another key asked about; and that key's place.

        apple: 17                                  apple: 4
        lamp: 4                                    lamp: 9
        boat: 9                                    boat: 17
        Question: what is the value of apple?      Question: what is the value of lamp?

    Put what a head wrote on the second prompt into a run on the first. If the head carries what is *asked*,
    the answer becomes lamp's value in the first dictionary, " 4", the choice at the place returned, 1. If it
    carries what was *fetched*, the answer becomes " 9", the second prompt's own answer. Neither is the first
    prompt's answer, " 17". The choices stay in the first dictionary's order.

    Raises:
        ValueError: fewer than three pairs, or the prompt is no dictionary (see `read_pairs`).
    """
    told = read_pairs(example)
    keys, values = told.keys, told.values
    if len(keys) < 3:
        raise ValueError(f"{len(keys)} pairs: with fewer than three no answer would be a third one")
    if [f" {value}" for value in values] != list(example.choices) or told.place != example.answer:
        raise ValueError(f"the choices {example.choices} are not the dictionary's values in their order")
    while True:
        order = rng.sample(range(len(values)), len(values))  # pair i gets the value of pair order[i]
        asked = rng.randrange(len(values))
        if len({example.answer, asked, order[asked]}) == 3:
            break
    pairs = [(key, values[source]) for key, source in zip(keys, order)]
    return replace(example, prompt=told.text(pairs, keys[asked]), answer=order[asked]), asked


@dataclass(frozen=True)
class Pairs:
    """A dictionary's prompt taken apart: what stands before the pairs, the pairs, the question behind them.

    colon: what stands between a key and its value. asked: where the asked key stands in `tail`. place: the
    line of that key.
    """

    head: str
    keys: list[str]
    values: list[str]
    colon: str
    tail: str
    asked: tuple[int, int]
    place: int

    def text(self, pairs: list[tuple[str, str]], key: str) -> str:
        """The same prompt with other pairs and another key asked for."""
        lines = "\n".join(f"{name}{self.colon}{value}" for name, value in pairs)
        start, end = self.asked
        return f"{self.head}{lines}{self.tail[:start]}{key}{self.tail[end:]}"


def read_pairs(example: Example) -> Pairs:
    """Take a `kv_retrieval` prompt apart.

    Raises:
        ValueError: it has not one line for each choice, and one of the keys after them.
    """
    lines = list(PAIR.finditer(example.prompt))
    keys, values = [line[1] for line in lines], [line[3] for line in lines]
    if sorted(values) != sorted(choice.strip() for choice in example.choices):
        raise ValueError(
            f"the {example.task} prompt is no dictionary with one line `key: value` for each of its choices "
            f"{example.choices}"
        )
    head, tail = example.prompt[: lines[0].start()], example.prompt[lines[-1].end() :]
    named = list(re.finditer(rf"\b({'|'.join(map(re.escape, keys))})\b", tail))
    if not named:
        raise ValueError(f"nothing after the dictionary asks for one of its keys {', '.join(keys)}")
    asked = named[-1]  # the last one: a key may be the word "key", which the paper's question has, too
    return Pairs(head, keys, values, f":{lines[0][2]}", tail, asked.span(), keys.index(asked[0]))


DIFFERENCES = ("question", "value", "place", "key")


def differ_in(example: Example, what: str, other: int) -> Example:
    """The same prompt, in which the asked pair and another one have traded one thing.

        the prompt    what="question"    "value"    "place"    "key"
        lamp:4        lamp:4             lamp:9     boat:9     boat:4
        boat:9        boat:9             boat:4     lamp:4     lamp:9
        lamp?         boat?              lamp?      lamp?      boat?

    Put what a head wrote on such a prompt into a run on the first one. The answer turns to the other pair's
    value, " 9", if the head carries what was traded: a pair's value, its place among the lines, or its key.
    It stays " 4" if the head carries one of the others. With "question" all three are traded at once.

    Args:
        other: the place of the other pair.

    Raises:
        ValueError: an unknown `what`; `other` is the asked pair or none; or the prompt is no dictionary.
    """
    told = read_pairs(example)
    asked = told.place
    if what not in DIFFERENCES:
        raise ValueError(f"what={what!r}: expected one of {', '.join(DIFFERENCES)}")
    if other == asked or not 0 <= other < len(told.keys):
        raise ValueError(f"other={other}: expected the place of a pair that is not asked for ({asked})")
    keys, values = list(told.keys), list(told.values)
    if what in ("place", "key"):
        keys[asked], keys[other] = keys[other], keys[asked]
    if what in ("place", "value"):
        values[asked], values[other] = values[other], values[asked]
    key = told.keys[other if what in ("question", "key") else asked]
    return replace(example, prompt=told.text(list(zip(keys, values)), key))


PARTS = ("first token", "right key", "right value", "other keys", "other values", "asked key", "rest")


def parts(lm: LM, example: Example) -> dict[str, list[int]]:
    """Which part of a dictionary's prompt each token up to "last" belongs to: positions of each of PARTS.

    A token belongs where its first character does. A value's part includes the colon before it, unless that
    is one token with the key, and the line's end behind it.
    """
    told, at, ends = read_pairs(example), 0, []
    ends.append((len(told.head), "rest"))
    at = len(told.head)
    for place, (key, value) in enumerate(zip(told.keys, told.values)):
        whose, plural = ("right", "") if place == told.place else ("other", "s")
        ends.append((at := at + len(key), f"{whose} key{plural}"))
        ends.append((at := at + len(told.colon + value) + 1, f"{whose} value{plural}"))
    at -= 1  # the last line's end belongs to the tail
    ends += [(at + told.asked[0], "rest"), (at + told.asked[1], "asked key"), (len(example.prompt), "rest")]
    found: dict[str, list[int]] = {part: [] for part in PARTS}
    (last,) = positions(lm, example, "last")
    offsets = lm.offsets(example.prompt)
    for position in range(last + 1):
        start, stop = offsets[position] if position < len(offsets) else (len(example.prompt),) * 2
        start += len(token := example.prompt[start:stop]) - len(token.lstrip(" "))
        part = next((part for end, part in ends if start < end), "rest")
        found[part if position else "first token"].append(position)
    return found
