"""Live views (ipywidgets 7 and 8): the head explorer, a sweep that answers clicks, attention beside implicit attention.

Each notebook shows a picture beside them, so that a page without a kernel loses nothing. Every control has a visible
label, every picture an alternative text, and results are announced to screen readers (role="status").
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Callable, Iterable
from io import BytesIO

import ipywidgets as widgets
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ga_utils import plots
from ga_utils.attention import attention_map
from ga_utils.examples import Example
from ga_utils.heads import Head, ablate
from ga_utils.models.lm import LM
from ga_utils.scoring import Score, evaluate
from ga_utils.sweeps.results import HeadSweep

MAX_BUTTONS = 100  # more would take longer than a second to make
MAX_TOKENS = 150  # a picture of more would fill the memory before it filled the screen
# Light buttons need dark letters, also where the page is dark; ipywidgets 7 has no setting for it.
DARK_ON_LIGHT = "<style>.ga-sweep button { color: black !important; padding: 0 }</style>"


def _say(text: str) -> str:
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'


def _picture(lm: LM, prompt: str, head: Head) -> str:
    """One head's pattern on a prompt as an <img> whose alternative text says what stands out."""
    tokens = [lm.tokenizer.decode([i]) for i in lm.tokenizer(prompt).input_ids]
    if len(tokens) > MAX_TOKENS:
        raise ValueError(f"{len(tokens)} tokens are too many to draw: shorten the prompt to {MAX_TOKENS}")
    A = attention_map(lm, prompt, head.layer, [head.head])[0]
    # Margins in inches, by hand: a layout engine would draw every label twice, and a slider should answer at once.
    size, margin = 1.5 + 0.13 * len(tokens), 0.5 + 0.06 * max(map(len, tokens))
    side = (size - margin - 0.3) / size
    figure = Figure(figsize=(size, size), dpi=80)
    plots.pattern(
        A, tokens, f"{lm.name} {head}", ax=figure.add_axes((margin / size, margin / size, side, side))
    )
    figure.savefig(data := BytesIO(), format="png")
    most = int(A[-1].abs().argmax())
    alt = (
        f"Pattern of {head} in {lm.name}, {len(tokens)} tokens: the last one, {tokens[-1]!r}, looks most at token {most}, "
        f"{tokens[most]!r}, with weight {A[-1, most]:.2f}."
    )
    image = b64encode(data.getvalue()).decode()
    return f'<img style="max-width:100%" alt="{html.escape(alt)}" src="data:image/png;base64,{image}">'


def _guarded(show: widgets.HTML, make: Callable[[], str]) -> None:
    """Show what `make` returns, or why it could not: an error inside a callback would otherwise go unseen."""
    try:
        show.value = make()
    except Exception as error:
        show.value = _say(f"{type(error).__name__}: {error}")


def _chooser(lm: LM, start: Head | None = None) -> tuple[widgets.SelectionSlider, widgets.SelectionSlider]:
    """Two sliders, layer and head; choosing a layer offers its heads."""
    heads: dict[int, list[int]] = {}
    for mixer in lm.mixers:
        heads.setdefault(mixer.layer, []).extend(mixer.heads)
    start = start or Head(next(iter(heads)), 0)
    how = {
        "continuous_update": False,
        "layout": widgets.Layout(width="320px"),
    }  # no picture before the slider is let go
    layer = widgets.SelectionSlider(options=list(heads), value=start.layer, description="layer", **how)
    head = widgets.SelectionSlider(options=heads[start.layer], value=start.head, description="head", **how)

    def offer(change):
        kept = head.value
        head.options = heads[change["new"]]
        head.value = kept if kept in head.options else head.options[0]

    layer.observe(offer, "value")
    return layer, head


def _prompt(prompt: str) -> widgets.Textarea:
    layout = widgets.Layout(width="320px", height="150px")
    return widgets.Textarea(value=prompt, description="prompt", continuous_update=False, layout=layout)


def head_explorer(lms: LM | Iterable[LM], examples: list[Example], start: Head | None = None) -> widgets.VBox:
    """Choose a model, a prompt and a head: see where it looks, and disable it to see the accuracy change.

    Args:
        lms: one or several models; the first is shown at first, at its head `start`.
        examples: what accuracy is measured on; the first one's prompt is shown at first.

    Raises:
        ValueError: no models or no examples.
    """
    models = {lm.name: lm for lm in ([lms] if isinstance(lms, LM) else lms)}
    if not models or not examples:
        raise ValueError("head_explorer needs at least one model and one example")
    model = widgets.Dropdown(options=list(models), description="model")
    prompt = _prompt(examples[0].prompt)
    off = widgets.Checkbox(description="disable this head", indent=False)
    status, picture, choice = widgets.HTML(), widgets.HTML(), widgets.VBox()
    scores: dict[tuple, Score] = {}

    def chosen() -> Head:
        layer, head = choice.children
        return Head(layer.value, head.value)

    def accuracy(disabled: list[Head]) -> Score:
        key = model.value, *disabled
        if key not in scores:
            with ablate(models[model.value], disabled):
                scores[key] = evaluate(models[model.value], examples)
        return scores[key]

    def say() -> str:
        now = f"; with {chosen()} disabled {accuracy([chosen()])}" if off.value else ""
        return _say(f"accuracy of {model.value}: {accuracy([])}{now}")

    def tell(_=None):
        _guarded(status, say)

    def draw(_=None):
        _guarded(picture, lambda: _picture(models[model.value], prompt.value, chosen()))
        tell()

    def change_model(_=None):
        choice.children = _chooser(models[model.value], start if model.index == 0 else None)
        for control in choice.children:
            control.observe(draw, "value")
        draw()

    model.observe(change_model, "value")
    prompt.observe(draw, "value")
    off.observe(tell, "value")
    change_model()
    return widgets.VBox([widgets.HBox([widgets.VBox([model, choice, off, prompt]), picture]), status])


def sweep_view(sweep: HeadSweep, lm: LM, prompt: str) -> widgets.VBox:
    """A sweep as a table of buttons, one a head, with the points lost; a click shows the head's numbers and its pattern.

    Of a sweep of more than 100 heads, the costliest 100 are shown.
    """
    status, picture = widgets.HTML(_say("Choose a head.")), widgets.HTML()
    shown = sorted(sweep.top(MAX_BUTTONS))
    worst = max(float(np.nanmax(sweep.drop)), 1e-9)

    def button(head: Head) -> widgets.Button:
        lost = float(sweep.drop[head.layer, head.head])
        points = round(-100 * lost)
        colour = to_hex(colormaps["Blues"](0.6 * max(lost, 0) / worst))
        made = widgets.Button(
            description=f"{head} {points:+d}" if points else f"{head} 0",
            tooltip=f"{head}: {100 * lost:.0f} points lost when disabled",
            layout=widgets.Layout(width="88px"),
        )
        made.style.button_color = colour

        def clicked(_):
            status.value = _say(
                f"{head} disabled: {sweep.accuracy[head.layer, head.head]:.1%} right, {100 * lost:.0f} points less than "
                f"{sweep.baseline}"
            )
            _guarded(picture, lambda: _picture(lm, prompt, head))

        made.on_click(clicked)
        return made

    layers = sorted({head.layer for head in shown}, reverse=True)
    rows = [
        widgets.HBox(
            [
                widgets.Label(f"layer {layer}", layout=widgets.Layout(width="60px")),
                *(button(head) for head in shown if head.layer == layer),
            ]
        )
        for layer in layers
    ]
    table = widgets.VBox([widgets.HTML(DARK_ON_LIGHT), *rows, status])
    table.add_class("ga-sweep")
    return widgets.VBox([table, picture])


def attention_beside(lms: Iterable[LM], prompt: str, start: Iterable[Head | None] = ()) -> widgets.VBox:
    """The same prompt in several models side by side, such as a Transformer's attention and an SSM's implicit attention.

    Args:
        lms: the models. start: the head to show first for each, as far as given.
    """
    text, panels, starts = _prompt(prompt), [], list(start)
    for i, lm in enumerate(lms):
        layer, head = _chooser(lm, starts[i] if i < len(starts) else None)
        picture = widgets.HTML()

        def draw(_=None, lm=lm, layer=layer, head=head, picture=picture):
            _guarded(picture, lambda: _picture(lm, text.value, Head(layer.value, head.value)))

        for control in (layer, head, text):
            control.observe(draw, "value")
        draw()
        panels.append(widgets.VBox([widgets.HTML(f"<b>{html.escape(lm.name)}</b>"), layer, head, picture]))
    return widgets.VBox([text, widgets.HBox(panels)])
