"""Dictionaries with other values and another question: donors for `ga.patch`."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from ga_utils.examples import Example

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
        ValueError: fewer than three pairs; or the prompt has not one line for each choice, in their order,
            and the asked key after them.
    """
    lines = list(PAIR.finditer(example.prompt))
    keys, values = [line[1] for line in lines], [choice.strip() for choice in example.choices]
    if len(lines) < 3 or [line[3] for line in lines] != values:
        raise ValueError(
            f"the {example.task} prompt is no dictionary of three or more pairs, with one line `key: value` "
            f"for each of its choices {example.choices}"
        )
    body, tail = example.prompt[: lines[-1].end()], example.prompt[lines[-1].end() :]
    key = re.compile(rf"\b{re.escape(keys[example.answer])}\b")
    if not key.search(tail):
        raise ValueError(f"nothing after the dictionary asks for its key {keys[example.answer]!r}")
    while True:
        order = rng.sample(range(len(values)), len(values))  # pair i gets the value of pair order[i]
        asked = rng.randrange(len(values))
        if len({example.answer, asked, order[asked]}) == 3:
            break
    shuffled = iter(order)
    body = PAIR.sub(lambda line: f"{line[1]}:{line[2]}{values[next(shuffled)]}", body)
    return replace(example, prompt=body + key.sub(keys[asked], tail), answer=order[asked]), asked
