"""Where the options of a question, or the pairs of a dictionary, stand in a prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ga_utils.examples import Example
from ga_utils.models.lm import LM


@dataclass(frozen=True)
class Segment:
    """Token positions of one option or pair: its first token, and the token that holds its final newline."""

    start: int
    end: int

    @property
    def closing(self) -> list[int]:
        """The two tokens at which the whole segment is known: the newline and the token after it."""
        return [self.end, self.end + 1]


def segments(lm: LM, example: Example) -> list[Segment]:
    """Where each choice of an `mmlu` or `kv_retrieval` example stands in its prompt, in the order of the choices.

    Raises:
        ValueError: a choice has no line of its own (`B. ...`, `key: 17` or `key:17`) in the prompt.
    """
    encoded = lm.tokenizer(example.prompt, return_offsets_mapping=True)
    starts = [start for start, _ in encoded.offset_mapping]
    ends = [end for _, end in encoded.offset_mapping]
    found = []
    for choice in example.choices:
        mark = re.escape(choice.strip())
        line = re.search(rf"^(?:{mark}\. .*|\S+: ?{mark})\n", example.prompt, re.MULTILINE)
        if not line:
            raise ValueError(
                f"choice {choice!r} has no line of its own in the {example.task} prompt, so no segment"
            )
        start = max(i for i, s in enumerate(starts) if s <= line.start() < ends[i])
        end = max(i for i, s in enumerate(starts) if s < line.end() <= ends[i])
        if end + 1 == len(starts):
            raise ValueError(
                f"choice {choice!r} ends the {example.task} prompt: no token after its line can close the segment"
            )
        found.append(Segment(start, end))
    return found
