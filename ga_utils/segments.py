"""Where the options of a question, or the pairs of a dictionary, stand in a prompt; positions by name.

A *segment* is one option or one pair: a line of the prompt, up to and including its newline. Two tokens
*close* it, the newline and the token after it: both know that the segment is over, and a model may keep its
summary at either (tiny-llama uses the token after the newline).

    ...  :  ⏎  A  .  amber  river  ⏎  B  .  river  amber  ⏎  C  ...
               └ start         end ┘  │
                           closing └──┘
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ga_utils.examples import Example
from ga_utils.models.batches import rows_of
from ga_utils.models.lm import LM, UNLIMITED
from ga_utils.models.mixers import Edit

Where = str | Callable[[Example], Iterable[int]]  # "last", "closing", or a function

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


def positions(lm: LM, example: Example, where: Where) -> list[int]:
    """Positions in an example's prompt, counted in tokens from 0 with BOS, padding not counted.

    Args:
        where: "last": the position that predicts the first token in which the choices differ (so if every
            choice begins with the same space token, that token's position). "closing": the closing tokens of
            all segments. A function from an example to a list of positions.

    Raises:
        ValueError: another name; segments that can't be found; a function that gives something else than
            positions of this prompt.
    """
    if where == "last":
        return [_last(lm, example)]
    if where == "closing":
        return [position for segment in segments(lm, example) for position in segment.closing]
    if not callable(where):
        raise ValueError(f'{where!r} names no positions: expected "last", "closing", or a function')
    found, last = where(example), _last(lm, example)
    try:
        found = [position.__index__() for position in found]
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"positions of a {example.task} example: expected a list of integers, got {found!r}"
        ) from error
    for position in found:
        if not 0 <= position <= last:
            raise ValueError(
                f"position {position}: the prompt of this {example.task} example has positions 0–{last}"
            )
    return found


def _last(lm: LM, example: Example) -> int:
    texts = [text for row in rows_of(lm, [example]) for text in row.texts]
    first, last = min(texts), max(texts)
    # A choice that another one begins with: its last token is only predicted, and is no position of its row.
    common = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first) - 1)
    return common - 1


class Places:
    """The positions of each text that an edit concerns: `at` them, or all `but` them, or all.

    Raises:
        ValueError: both `at` and `but` are given, or a name is unknown.
    """

    def __init__(self, lm: LM, at: Where | None = None, but: Where | None = None):
        if at is not None and but is not None:
            raise ValueError("at and but exclude each other: give the positions to change, or those to leave")
        self.lm, self.where, self.all_but = lm, but if at is None else at, but is not None
        if not (self.where in (None, "last", "closing") or callable(self.where)):
            raise ValueError(
                f'{"but" if self.all_but else "at"}={self.where!r}: expected "last", "closing", or a '
                "function from an example to a list of positions"
            )
        self._found: dict[Example, list[int]] = {}
        self._bare = torch.zeros(
            1, 1, dtype=torch.long
        )  # when you run the model yourself: each text's last position, [row, 1]

    def __str__(self):
        name = self.where if isinstance(self.where, str) else "chosen positions"
        return "" if self.where is None else f" {'but' if self.all_but else 'at'} {name}"

    def of(self, example: Example) -> list[int]:
        """The positions that are named, whether the edit concerns them or all others."""
        if example not in self._found:
            self._found[example] = positions(self.lm, example, self.where)
        return self._found[example]

    def watch(self, edit: Edit) -> None:
        """Tell an edit that it depends on these positions; to be called before anything is run under it."""
        if self.where is not None:
            edit.varies_from = lambda example: min(self.of(example), default=UNLIMITED)
            edit.hook(self.lm.model.register_forward_pre_hook, self._find_end, with_kwargs=True)

    def mask(self, z: torch.Tensor) -> torch.Tensor:
        """Which positions of z [row, pos, ...] the edit concerns: [row, pos, 1], or [1, 1, 1] for all.

        Raises:
            RuntimeError: the model was run by itself, so that nothing says which examples its texts are.
        """
        if self.where is None:
            return torch.ones(1, 1, 1, dtype=torch.bool, device=z.device)
        running, named = self.lm.running, torch.zeros(z.shape[:2], dtype=torch.bool)
        if running:
            for row, example in enumerate(running.examples):
                here = [p - running.start for p in self.of(example)]
                named[row :: len(running.examples), [p for p in here if 0 <= p < z.shape[1]]] = True
        elif self.where == "last":
            named[torch.arange(len(z))[:, None], z.shape[1] - 1 - self._bare] = True
        else:
            raise RuntimeError(
                f"disabled{self}: which positions these are depends on the example, and a bare lm.model(...) "
                "has none. Use ga.evaluate and the like, which know which examples they run"
            )
        return (named != self.all_but).unsqueeze(-1).to(z.device)

    def _find_end(self, module, args, kwargs):
        self._bare = padding_behind(args, kwargs).cpu()


def padding_behind(args: tuple, kwargs: dict) -> torch.Tensor:
    """How many tokens of padding come after each text of a call `lm.model(*args, **kwargs)`: [batch, 1], or
    [1, 1] without a mask.

    Raises:
        ValueError: a mask that is no tensor [batch, pos] or [batch, 1, query, key], as flex attention's is.
    """
    mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    if isinstance(mask, dict):  # one for each kind of layer
        mask = next((some for some in mask.values() if some is not None), None)
    if mask is None:
        return torch.zeros(1, 1, dtype=torch.long)
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (2, 4):
        raise ValueError(
            f"a {type(mask).__name__} as attention_mask does not say where texts end, which is needed here: "
            "pass a mask [batch, pos]"
        )
    if mask.ndim == 2:
        return mask.flip(1).long().argmax(1, keepdim=True)
    # The last key that each query sees is itself, in a text; behind it, the text's last token.
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > torch.finfo(mask.dtype).min / 2
    newest = (seen * torch.arange(seen.shape[-1], device=seen.device)).amax(-1)
    return (newest == newest[:, -1:]).sum(1, keepdim=True) - 1
