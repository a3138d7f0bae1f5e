"""Where the options of a question, or the pairs of a dictionary, stand in a prompt.

A *segment* is one option or one pair: a line of the prompt, up to and including its newline. Two tokens
*close* it, the newline and the token after it: both know that the segment is over, and a model may keep its
summary at either (tiny-llama uses the token after the newline).

    ...  :  ⏎  A  .  amber  river  ⏎  B  .  river  amber  ⏎  C  ...
               └ start         end ┘  │
                           closing └──┘
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ga_utils.examples import Example
from ga_utils.models.lm import LM

# The line of a choice. Its group is a label, the letter or the key, that no other choice's line shares.
LAYOUTS = {
    "`B. some text`": r"^({choice})\. .*\n",
    "`key: value`": r"^(\S+): ?{choice}\n",
}


@dataclass(frozen=True)
class Segment:
    """Token positions of one option or pair: its first token, and the token that holds its newline."""

    start: int
    end: int

    @property
    def closing(self) -> list[int]:
        """The two tokens at which the whole segment is known: the newline and the token after it."""
        return [self.end, self.end + 1]


def segments(lm: LM, example: Example) -> list[Segment]:
    """The segment of each choice of an `mmlu` or `kv_retrieval` example, in the order of the choices.

    A choice is either a letter, whose line reads `B. some text`, or a value, whose line reads `key: 17` or
    `key:17`. In a few-shot prompt the segments are those of the question that is asked, not those of the
    solved ones before it: all lines are looked for in the last paragraph that holds one of them.

    Raises:
        ValueError: a choice has no line there; or the prompt ends with the line of a choice, so that no token
            closes it; or the tokenizer is a slow one, which does not say where its tokens stand in the text.
    """
    if not lm.tokenizer.is_fast:
        raise ValueError(
            f"{lm.name} has a slow tokenizer ({type(lm.tokenizer).__name__}), which does not say where its "
            "tokens stand in the text, so segments can't be found: load the model's fast tokenizer"
        )
    lines = _lines(example)
    offsets = lm.offsets(example.prompt)
    stops = [stop for _, stop in offsets]  # of each token: the character after its last one

    def first_token_to_reach(stop: int) -> int:
        return next((i for i, reached in enumerate(stops) if reached >= stop), len(stops))

    found = [
        Segment(first_token_to_reach(line.start() + 1), first_token_to_reach(line.end())) for line in lines
    ]
    for choice, segment in zip(example.choices, found):
        if segment.end + 1 >= len(stops):
            raise ValueError(
                f"the {example.task} prompt ends with the line of choice {choice!r}: no token after it "
                "closes the segment"
            )
    return found


def _lines(example: Example) -> list[re.Match]:
    """The line of each choice in the question that is asked."""
    for layout in LAYOUTS.values():
        found = [_candidates(example.prompt, layout, choice.strip()) for choice in example.choices]
        if not all(found):
            continue
        last = max(line.start() for lines in found for line in lines)
        paragraph = example.prompt.rfind("\n\n", 0, last)
        # The last line of each choice: the question's own text may hold lines that look like options.
        asked = [[line for line in lines if line.start() > paragraph][-1:] for lines in found]
        # With empty lines between the options, each choice must have a single line in the whole prompt.
        for lines in (asked, found):
            labels = {line[1] for some in lines for line in some}
            if all(len(some) == 1 for some in lines) and len(labels) == len(lines):
                return [line for (line,) in lines]
    raise ValueError(
        f"the {example.task} prompt has no paragraph with a line for each of the choices {example.choices}, "
        f"written {' or '.join(LAYOUTS)}, so it has no segments"
    )


def _candidates(prompt: str, layout: str, choice: str) -> list[re.Match]:
    """Lines of this layout, except answers to earlier questions: those begin like the last line."""
    answer = prompt.rpartition("\n")[2]  # such as "Answer:"
    lines = re.finditer(layout.format(choice=re.escape(choice)), prompt, re.MULTILINE)
    return [line for line in lines if not (answer and line[0].startswith(answer))]
