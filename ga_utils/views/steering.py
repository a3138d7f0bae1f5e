"""`steer_view`: a slider that says where heads look, and the letter that the model then answers."""

from __future__ import annotations

import html
from collections.abc import Iterable

import ipywidgets as widgets
import numpy as np

from ga_utils.examples import Example
from ga_utils.heads import Head, check_heads
from ga_utils.models.lm import LM
from ga_utils.patch import steer
from ga_utils.segments import segments
from ga_utils.views.widgets import _say, _show

NOWHERE = "–"  # the slider's middle: the heads look where they like, and nothing is said


def steer_view(lm: LM, heads: Iterable[Head | str], examples: Iterable[Example]) -> widgets.VBox:
    """Choose a question, and the option at which heads are made to look: see which letter the model answers.

    The slider starts between the options, and nothing is said before it is moved. On an option, the heads'
    last row attends to that option's closing tokens alone (`ga.steer`).

    Args:
        examples: questions with as many choices each, of the form that `ga.segments` knows.

    Raises:
        ValueError: no heads or a head the model lacks; no examples, or examples with different choices.
    """
    heads, examples = sorted(set(check_heads(lm, heads))), list(examples)
    if not heads:
        raise ValueError("no heads to steer: name at least one, such as ['L2H1']")
    if len({example.choices for example in examples}) != 1:
        raise ValueError("expected examples that all have the same choices, at least one of them")
    names, team = [choice.strip() for choice in examples[0].choices], ", ".join(map(str, heads))
    middle, how = len(names) // 2, {"continuous_update": False, "layout": widgets.Layout(width="420px")}
    number = widgets.IntSlider(value=1, min=1, max=len(examples), description="question", **how)
    places = [*names[:middle], NOWHERE, *names[middle:]]
    look = widgets.SelectionSlider(options=places, value=NOWHERE, description="look at", **how)
    prompt, status, bars = widgets.HTML(), widgets.HTML(), widgets.HTML()
    found: dict[tuple, np.ndarray] = {}  # (question, option) -> log-probabilities of its choices

    def logprobs(example: Example, option: int) -> np.ndarray:
        if (example, option) not in found:
            closing = segments(lm, example)[option].closing
            found[example, option] = steer(lm, heads, [example], lambda _: closing).logprobs[0]
        return found[example, option]

    def update(_=None):
        example, option = examples[number.value - 1], None
        if look.value != NOWHERE:
            option = names.index(look.value)
        _show(prompt, lambda: _marked(lm, example, option))
        if option is None:
            status.value, bars.value = _say(f"Move the slider: at which option should {team} look?"), ""
            return
        _show(bars, lambda: _letters(names, logprobs(example, option)))
        answer = names[int(logprobs(example, option).argmax())]
        _show(status, lambda: _say(f"{team} made to look at {look.value}: the model answers {answer}"))

    for control in (number, look):
        control.observe(update, "value")
    update()
    return widgets.VBox([number, look, status, widgets.HBox([prompt, bars])])


def _marked(lm: LM, example: Example, option: int | None) -> str:
    """A prompt, with one option's line marked."""
    start = stop = 0
    if option is not None:
        segment, offsets = segments(lm, example)[option], lm.offsets(example.prompt)
        start, stop = offsets[segment.start][0], offsets[segment.end][1]
    parts = [html.escape(example.prompt[a:b]) for a, b in ((0, start), (start, stop), (stop, None))]
    text = f"{parts[0]}<mark>{parts[1]}</mark>{parts[2]}" if stop else parts[2]
    return f'<pre style="padding: 0 2em; line-height: 1.3">{text}</pre>'


def _letters(names: list[str], logprobs: np.ndarray) -> str:
    """The probability of each choice among the choices, as bars with their numbers."""
    p = np.exp(logprobs - logprobs.max())
    rows = [
        f'<tr><td>{html.escape(name)}</td><td><div style="background: #0072B2; height: 0.9em; '
        f'width: {max(1, round(120 * share))}px"></div></td><td>{share:.0%}</td></tr>'
        for name, share in zip(names, p / p.sum())
    ]
    return f'<table aria-label="probability of each choice">{"".join(rows)}</table>'
