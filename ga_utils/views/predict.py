"""`predict`: make a guess before the result is shown; `ga.plots.guess` draws it beside the truth."""

from __future__ import annotations

from dataclasses import dataclass

import ipywidgets as widgets
from IPython.display import display


@dataclass
class Guess:
    """What the reader expects. value: None until they have made their guess."""

    value: float | None


class _Question(widgets.VBox):
    """The slider and its button. What a page without widgets shows instead is its `repr`."""

    def __repr__(self):
        return "No slider here? Write your guess into the call, such as guess=50, and run the cell again."


def predict(question: str, low: int = 0, high: int = 100, guess: float | None = None) -> Guess:
    """Ask for a guess with a slider and a button; pressing the button makes it final.

    Where widgets do not work, the page says so; write the guess into the call: `ga.predict("...", guess=40)`.
    Without a guess, the notebook runs on and its figures show the truth alone.

    Args:
        question: what to guess, with its unit: "letters without that head, in %".
        low, high: the ends of the slider.

    Raises:
        ValueError: `low` is not below `high`, or `guess` is not between them.
    """
    if not low < high:
        raise ValueError(f"low={low}, high={high}: low must be below high")
    if guess is not None:
        if not low <= guess <= high:
            raise ValueError(f"guess={guess}: {question} lies between {low} and {high}")
        print(f"{question}: you guess {guess:g}")
        return Guess(guess)
    given = Guess(None)
    slider = widgets.IntSlider(
        value=(low + high) // 2,
        min=low,
        max=high,
        description=question,
        continuous_update=False,
        style={"description_width": "initial"},
        layout=widgets.Layout(width="95%"),
    )
    button = widgets.Button(description="This is my guess", tooltip=f"Make this guess final: {question}")
    answer = widgets.HTML()

    def make_final(_):
        given.value = slider.value
        slider.disabled = button.disabled = True
        said = f"Your guess: {given.value}. The next figure shows it beside the truth."
        answer.value = f'<span role="status">{said}</span>'

    button.on_click(make_final)
    display(_Question([slider, widgets.HBox([button, answer])]))
    return given
