"""Live views with ipywidgets 7 or 8: the head explorer, the buttons of a sweep, and patterns side by side.

The notebooks show a figure beside each view, so that a page without a kernel loses nothing. Every control has
a visible label, every picture an alternative text, and screen readers announce results (role="status").
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Callable, Iterable
from io import BytesIO

import ipywidgets as widgets
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ga_utils import plots
from ga_utils.attention import attention_map
from ga_utils.examples import Example
from ga_utils.heads import Head, ablate, check_heads
from ga_utils.models.lm import LM
from ga_utils.scoring import Score, evaluate
from ga_utils.sweeps.results import HeadSweep

MAX_BUTTONS = 100  # more would take longer than a second to make
MAX_TOKENS = 150  # more would make the picture too large for memory and screen
# Buttons are light, so their letters must be dark even on a dark page. ipywidgets 7 has no setting for that.
DARK_ON_LIGHT = "<style>.ga-sweep button { color: black !important; padding: 0 }</style>"


def head_explorer(
    lms: LM | Iterable[LM], examples: Iterable[Example], start: Head | str | None = None
) -> widgets.VBox:
    """Choose a model, a prompt and a head: see where it looks, and disable it to see the effect.

    The effect on the prompt in the box, which you may edit: the tokens that the model finds likeliest next.
    The effect on `examples`: the accuracy.

    Args:
        lms: one or several models; the view opens with the first.
        examples: what the accuracy is measured on; the view opens with the first one's prompt.
        start: the head of the first model to open with.

    Raises:
        ValueError: no models or no examples, or a `start` that the first model lacks.
    """
    models, examples = _by_name(lms), list(examples)
    if not examples:
        raise ValueError("no examples: the accuracy is measured on them")
    model = widgets.Dropdown(options=list(models), description="model")
    prompt = _prompt(examples[0].prompt)
    disable = widgets.Checkbox(description="disable this head", indent=False)
    status, answer, picture, sliders = widgets.HTML(), widgets.HTML(), widgets.HTML(), widgets.VBox()
    scores: dict[tuple, Score] = {}  # (name of the model, the head disabled, if any) -> accuracy

    def chosen() -> Head:
        layer, head = sliders.children
        return Head(layer.value, head.value)

    def accuracy(*disabled: Head) -> Score:
        key = model.value, *disabled
        if key not in scores:
            with ablate(models[model.value], disabled):
                scores[key] = evaluate(models[model.value], examples)
        return scores[key]

    def sentence() -> str:
        now = f"; with {chosen()} disabled {accuracy(chosen())}" if disable.value else ""
        return _say(f"accuracy of {model.value}: {accuracy()}{now}")

    def next_tokens() -> str:
        lm = models[model.value]
        said = f"answer to this prompt: {_likeliest(lm, prompt.value)}"
        if disable.value:
            with ablate(lm, [chosen()]):
                said += f"; with {chosen()} disabled: {_likeliest(lm, prompt.value)}"
        return _say(said)

    def update_status(_=None):
        _show(answer, next_tokens)
        _show(status, sentence)

    def update(_=None):
        _show(picture, lambda: _picture(models[model.value], prompt.value, chosen()))
        update_status()

    def change_model(_=None):
        sliders.children = _sliders(models[model.value], start if model.index == 0 else None)
        for slider in sliders.children:
            slider.observe(update, "value")
        update()

    model.observe(change_model, "value")
    prompt.observe(update, "value")
    disable.observe(update_status, "value")
    change_model()
    controls = widgets.VBox([model, sliders, disable, prompt])
    return widgets.VBox([_side_by_side([controls, picture]), answer, status])


def sweep_view(sweep: HeadSweep, lm: LM, prompt: str) -> widgets.VBox:
    """A button for each head of a sweep, with the points it costs; a click shows its numbers and its pattern.

    A sweep of more than 100 heads shows the 100 that cost the most.

    Args:
        lm: the model that was swept.
        prompt: what the pattern is shown on.

    Raises:
        ValueError: the sweep has no heads, or heads that `lm` lacks.
    """
    heads = sorted(check_heads(lm, sweep.top(MAX_BUTTONS)))
    if not heads:
        raise ValueError("no head was disabled in this sweep")
    points = {head: round(100 * float(sweep.drop[head.layer, head.head])) for head in heads}
    most = max(1, *points.values())
    status, picture = widgets.HTML(_say("Choose a head.")), widgets.HTML()

    def button(head: Head) -> widgets.Button:
        made = widgets.Button(
            description=f"{head} {-points[head]:+d}" if points[head] else f"{head} 0",
            tooltip=f"{head}: {points[head]} points lost when disabled",
            layout=widgets.Layout(width="88px"),
        )
        made.style.button_color = to_hex(colormaps["Blues"](0.6 * max(points[head], 0) / most))
        made.on_click(lambda _: show(head))
        return made

    def show(head: Head) -> None:
        left = sweep.accuracy[head.layer, head.head]
        change = f"{abs(points[head])} points {'more' if points[head] < 0 else 'less'} than {sweep.baseline}"
        status.value = _say(f"{head} disabled: {left:.1%} right, {change}")
        _show(picture, lambda: _picture(lm, prompt, head))

    rows = []
    for layer in sorted({head.layer for head in heads}, reverse=True):
        label = widgets.Label(f"layer {layer}", layout=widgets.Layout(width="60px"))
        rows.append(widgets.HBox([label, *(button(head) for head in heads if head.layer == layer)]))
    table = widgets.VBox([widgets.HTML(DARK_ON_LIGHT), *rows, status])
    table.add_class("ga-sweep")
    return widgets.VBox([table, picture])


def attention_beside(
    lms: LM | Iterable[LM], prompt: str, start: Iterable[Head | str | None] = ()
) -> widgets.VBox:
    """One prompt in several models side by side, such as attention beside an SSM's implicit attention.

    Args:
        lms: the models.
        start: the head to open with for each model, in order; a model without one opens with its first head.

    Raises:
        ValueError: no models, more heads to open with than models, or a head that its model lacks.
    """
    models, starts = _by_name(lms), list(start)
    if len(starts) > len(models):
        raise ValueError(f"{len(starts)} heads to open with for {len(models)} models")
    starts += [None] * (len(models) - len(starts))
    text, panels = _prompt(prompt), []
    for (name, lm), first in zip(models.items(), starts):
        layer, head = _sliders(lm, first)
        picture = widgets.HTML()

        def update(_=None, lm=lm, layer=layer, head=head, picture=picture):
            _show(picture, lambda: _picture(lm, text.value, Head(layer.value, head.value)))

        for control in (layer, head, text):
            control.observe(update, "value")
        update()
        panels.append(widgets.VBox([widgets.HTML(f"<b>{html.escape(name)}</b>"), layer, head, picture]))
    return widgets.VBox([text, _side_by_side(panels)])


def _side_by_side(views: list[widgets.Widget]) -> widgets.HBox:
    """Where the page is too narrow, as on a phone, one below the other."""
    return widgets.HBox(views, layout=widgets.Layout(flex_flow="row wrap"))


def _by_name(lms: LM | Iterable[LM]) -> dict[str, LM]:
    """Models by name; further models of the same name, such as one cut to fewer layers, get a number."""
    models: dict[str, LM] = {}
    for lm in [lms] if isinstance(lms, LM) else lms:
        namesakes = sum(other.name == lm.name for other in models.values())
        models[f"{lm.name} ({namesakes + 1})" if namesakes else lm.name] = lm
    if not models:
        raise ValueError("no models: name at least one")
    return models


def _say(text: str) -> str:
    return f'<div role="status" aria-live="polite">{html.escape(text)}</div>'


def _show(where: widgets.HTML, make: Callable[[], str]) -> None:
    """Show what `make` returns, or its error: nobody would see an exception inside a callback."""
    try:
        where.value = make()
    except Exception as error:
        where.value = _say(f"{type(error).__name__}: {error}")


def _likeliest(lm: LM, prompt: str, k: int = 3) -> str:
    """The k tokens that the model finds likeliest after a prompt: "' D' 98 %, ' B' 1 %, ' A' 0 %"."""
    if not 1 <= len(lm.tokenize([prompt])[0]) <= MAX_TOKENS:
        return "none, it is empty or too long"
    with torch.no_grad(), lm.evaluating():
        p = lm.model(lm.encode(prompt)).logits[0, -1].float().softmax(-1)
    best = p.topk(min(k, len(p)))
    return ", ".join(f"{lm.tokenizer.decode([i])!r} {x:.0%}" for x, i in zip(*map(torch.Tensor.tolist, best)))


def _picture(lm: LM, prompt: str, head: Head) -> str:
    """One head's pattern on a prompt, as an <img> whose alternative text says where the last token looks."""
    tokens = [lm.tokenizer.decode([i]) for i in lm.tokenize([prompt])[0]]
    if not 1 <= len(tokens) <= MAX_TOKENS:
        how = f"shorten the prompt to {MAX_TOKENS}" if tokens else "write something"
        raise ValueError(f"{len(tokens)} tokens cannot be drawn: {how}")
    A = attention_map(lm, prompt, head.layer, [head.head])[0]
    # A slider should answer at once, and a layout engine draws every label twice: set the margins by hand.
    size, margin = 1.5 + 0.13 * len(tokens), 0.5 + 0.06 * max(map(len, tokens))  # inches
    side = (size - margin - 0.3) / size
    figure = Figure(figsize=(size, size), dpi=80)
    axes = figure.add_axes((margin / size, margin / size, side, side))
    plots.pattern(A, tokens, f"{lm.name} {head}", ax=axes)
    figure.savefig(data := BytesIO(), format="png")
    most = int(A[-1].abs().argmax())
    alt = (
        f"Pattern of {head} in {lm.name}, {len(tokens)} tokens: the last one, {tokens[-1]!r}, "
        f"looks most at token {most}, {tokens[most]!r}, with weight {A[-1, most]:.2f}."
    )
    image = b64encode(data.getvalue()).decode()
    return f'<img style="max-width:100%" alt="{html.escape(alt)}" src="data:image/png;base64,{image}">'


def _sliders(lm: LM, start: Head | str | None) -> tuple[widgets.SelectionSlider, widgets.SelectionSlider]:
    """Two sliders, for the layer and for one of its heads."""
    heads: dict[int, list[int]] = {}
    for mixer in lm.mixers:
        heads.setdefault(mixer.layer, []).extend(mixer.heads)
    (first,) = check_heads(lm, [start or Head(lm.mixers[0].layer, lm.mixers[0].first)])
    how = {"continuous_update": False, "layout": widgets.Layout(width="320px")}  # redraw on release only
    layer = widgets.SelectionSlider(options=list(heads), value=first.layer, description="layer", **how)
    head = widgets.SelectionSlider(options=heads[first.layer], value=first.head, description="head", **how)

    def offer_heads(change):
        offered = tuple(heads[change["new"]])
        if head.options != offered:  # setting the same ones would choose the first, and draw once more
            kept = head.value
            head.options = offered
            head.value = kept if kept in offered else offered[0]

    layer.observe(offer_heads, "value")
    return layer, head


def _prompt(prompt: str) -> widgets.Textarea:
    layout = widgets.Layout(width="320px", height="150px")
    return widgets.Textarea(value=prompt, description="prompt", continuous_update=False, layout=layout)
