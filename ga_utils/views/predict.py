"""`predict`: commit to a guess before the result is shown; `ga.plots.guess` draws it beside the truth."""

from __future__ import annotations

from dataclasses import dataclass

import ipywidgets as widgets
from IPython.display import display


@dataclass
class Guess:
    """What the reader expects. value: None until they have committed to it."""

    value: float | None


def predict(question: str, low: int = 0, high: int = 100, guess: float | None = None) -> Guess:
    """Ask for a guess with a slider and a button; the button makes it final.

    Where widgets don't work, write the guess into the call: `ga.predict("...", guess=40)`. With neither, the notebook
    goes on, and figures show the truth alone.

    Args:
        question: what to guess, with its unit: "letters without that head, in %".
        low, high: the ends of the slider.

    Raises:
        ValueError: a `guess` that is not between low and high.
    """
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
    button = widgets.Button(description="This is my guess", tooltip=f"Commit to a guess: {question}")
    answer = widgets.HTML()

    def commit(_):
        given.value = slider.value
        slider.disabled = button.disabled = True
        answer.value = f'<span role="status">Your guess: {given.value}. The next figure shows it beside the truth.</span>'

    button.on_click(commit)
    display(widgets.VBox([slider, widgets.HBox([button, answer])]))
    print(f"No slider to be seen? Write your guess into the call: guess={slider.value}")
    return given
