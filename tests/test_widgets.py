"""The live views: what they show is what the functions give, they are quick to make, and they say what goes wrong."""

import re
import time
from types import SimpleNamespace

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import logits
from matplotlib.colors import to_rgb

import ga_utils as ga
from ga_utils.views import circuitsvis, predict


def every(widget, kind):
    """All widgets of a kind inside one, in order."""
    found = [widget] if isinstance(widget, kind) else []
    return found + [w for child in getattr(widget, "children", ()) for w in every(child, kind)]


def labelled(view, description):
    return next(w for w in every(view, widgets.Widget) if getattr(w, "description", None) == description)


def shown(view):
    return " ".join(w.value for w in every(view, widgets.HTML))


@pytest.fixture(scope="module")
def examples():
    return ga.tasks.mmlu(ga.load_model("tiny-llama-minimal"), n=30, seed=3)


@pytest.fixture(scope="module")
def pressed():
    return ga.load_model("tiny-llama-minimal", device="cpu")


def test_head_explorer_shows_the_head_chosen_and_the_accuracy_without_it(pressed, examples):
    before = logits(pressed, examples[0].prompt)
    view = ga.head_explorer(pressed, examples)
    assert str(ga.evaluate(pressed, examples)) in shown(view) and "Pattern of L0H0" in shown(view)
    labelled(view, "layer").value = 1
    labelled(view, "disable this head").value = True
    with ga.ablate(pressed, ["L1H0"]):
        without = ga.evaluate(pressed, examples)
    assert "Pattern of L1H0" in shown(view) and f"with L1H0 disabled {without}" in shown(view)
    assert without.accuracy < 0.6, "a head that matters was meant to be disabled here"
    labelled(view, "head").value = 1
    assert "with L1H1 disabled" in shown(view) and "L1H0" not in shown(view)
    labelled(view, "disable this head").value = False
    assert "with L1H1 disabled" not in shown(view)
    assert torch.equal(logits(pressed, examples[0].prompt), before)


def test_head_explorer_changes_prompt_and_model_and_shows_errors(pressed, examples):
    view = ga.head_explorer([pressed, ga.load_model("tiny-zamba2")], examples, start=ga.Head(2, 1))
    assert "Pattern of L2H1 in tiny-llama-minimal" in shown(view)
    labelled(view, "prompt").value = "The flag of Arvo is"
    assert "6 tokens" in shown(view)
    labelled(view, "model").value = "tiny-zamba2"
    labelled(view, "layer").value = 1
    assert labelled(view, "head").options == tuple(range(8))  # four of attention, four of the SSM
    labelled(view, "head").value = 7
    assert "Pattern of L1H7 in tiny-zamba2" in shown(view)
    labelled(view, "prompt").value = "wind " * 5000
    assert "ValueError: 500" in shown(view) and "shorten the prompt to 150" in shown(view)
    with pytest.raises(ValueError, match="at least one"):
        ga.head_explorer([], examples)


@pytest.fixture(scope="module")
def sweep(pressed, examples):
    return ga.sweep_heads(pressed, examples, progress=False)


def test_sweep_view_has_a_readable_button_for_every_head_swept_and_answers_clicks(pressed, examples, sweep):
    view = ga.sweep_view(sweep, pressed, examples[0].prompt)
    buttons = every(view, widgets.Button)
    assert {b.description.split()[0] for b in buttons} == {str(h) for h in ga.alive_heads(pressed)}
    for button in buttons:
        head = ga.Head.parse(button.description.split()[0])
        assert int(button.description.split()[1]) == round(-100 * sweep.drop[head.layer, head.head])
        assert button.tooltip.startswith(f"{head}:")
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in to_rgb(button.style.button_color)
        ]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert (luminance + 0.05) / 0.05 > 4.5  # WCAG AA for black letters
    worst = sweep.top(1)[0]
    next(b for b in buttons if b.description.startswith(f"{worst} ")).click()
    left = f"{sweep.accuracy[worst.layer, worst.head]:.1%}"
    assert f"{worst} disabled: {left} right" in shown(view) and f"Pattern of {worst} in" in shown(view)


def test_sweep_view_of_many_heads_keeps_the_costliest(pressed, examples, sweep, monkeypatch):
    monkeypatch.setattr("ga_utils.views.widgets.MAX_BUTTONS", 3)
    buttons = every(ga.sweep_view(sweep, pressed, examples[0].prompt), widgets.Button)
    assert {b.description.split()[0] for b in buttons} == {str(h) for h in sweep.top(3)}


def test_attention_beside_shows_one_prompt_in_two_models(examples):
    llama, llamba = ga.load_model("tiny-llama"), ga.load_model("tiny-llamba")
    view = ga.attention_beside([llama, llamba], examples[0].prompt, [ga.Head(2, 1)])
    assert "Pattern of L2H1 in tiny-llama," in shown(view) and "Pattern of L0H0 in tiny-llamba," in shown(
        view
    )
    labelled(view, "prompt").value = "The flag of Arvo is"
    assert shown(view).count("6 tokens") == 2
    A = ga.attention_map(llamba, "The flag of Arvo is", 0)[0]
    assert f"with weight {A[-1, A[-1].abs().argmax()]:.2f}" in shown(view)


def test_views_are_made_in_less_than_a_second(pressed, examples, sweep):
    llamba = ga.load_model("tiny-llamba")
    views = {
        "explorer": lambda: ga.head_explorer([pressed, llamba], examples),
        "sweep": lambda: ga.sweep_view(sweep, pressed, examples[0].prompt),
        "beside": lambda: ga.attention_beside([pressed, llamba], examples[0].prompt),
        "attention": lambda: ga.attention_view(pressed, examples[0].prompt, 1),
    }
    for name, make in views.items():
        make()  # imports and fonts are paid once, by whoever comes first
        seconds = []
        for _ in range(
            3
        ):  # the best of three, and of this process alone: other work on the machine is not the view's
            started = time.process_time()
            make()
            seconds.append(time.process_time() - started)
        assert min(seconds) < 1, (name, seconds)


def test_every_control_has_a_visible_label_and_every_picture_a_text(pressed, examples, sweep):
    for view in (ga.head_explorer(pressed, examples), ga.attention_beside([pressed], examples[0].prompt)):
        controls = every(view, (widgets.SelectionSlider, widgets.Textarea, widgets.Checkbox))
        assert len(controls) >= 3 and all(control.description for control in controls)
        pictures = re.findall("<img[^>]*>", shown(view))
        assert pictures and all(re.search('alt="[^"]{40,}"', picture) for picture in pictures)


def test_a_guess_is_committed_once_and_marked_in_the_figure(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(predict, "display", seen.append)
    guess = ga.predict("letters without it, in %")
    assert guess.value is None and "guess=50" in capsys.readouterr().out
    (slider,), (button,) = every(seen[0], widgets.IntSlider), every(seen[0], widgets.Button)
    slider.value = 70
    assert guess.value is None
    button.click()
    assert guess.value == 70 and slider.disabled and button.disabled and "Your guess: 70" in shown(seen[0])
    figure, ax = plt.subplots()
    ax.bar(["with", "without"], [1, 0.3])
    assert not ga.plots.guess(ax, None, "without").lines
    (star,) = ga.plots.guess(ax, guess.value, "without").lines
    assert star.get_xydata().tolist() == [[1, 0.7]] and "your guess" in [t.get_text() for t in ax.texts]
    with pytest.raises(ValueError, match="no bar 'neither' in this figure: it has with, without"):
        ga.plots.guess(ax, 70, "neither")
    plt.close(figure)


def test_a_guess_finds_its_bar_among_grouped_ones():
    def score(p):
        return ga.Score(np.arange(100) < 100 * p, np.zeros((100, 2)), np.zeros(100, int))

    ax = ga.plots.grouped_bars(
        {name: {"a": score(p), "b": score(p)} for name, p in (("whole", 0.9), ("without", 0.3))}
    )
    before = len(ax.lines)
    ga.plots.guess(ax, 55, ("without", "b"))
    ((x, y),) = ax.lines[before].get_xydata()
    assert (x, y) == (pytest.approx(1.2), 0.55)  # the right one of two bars, each 0.4 wide, around 1
    with pytest.raises(ValueError, match="it has a, b, whole, without"):
        ga.plots.guess(ax, 55, ("with", "b"))
    plt.close(ax.figure)


def test_a_guess_can_be_written_in_code(capsys):
    assert ga.predict("layers needed", 1, 5, guess=3).value == 3 and "you guess 3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="guess=50: layers needed lies between 1 and 5"):
        ga.predict("layers needed", 1, 5, guess=50)
    figure, ax = plt.subplots()
    (line,) = ga.plots.guess(ax, 3).lines
    assert list(line.get_xdata()) == [3, 3]
    plt.close(figure)


def test_the_interactive_view_needs_no_network_and_survives_a_hostile_token(lm, monkeypatch):
    monkeypatch.setattr(type(lm.tokenizer), "decode", lambda self, ids, **kw: "</script><!--<b>")
    html = ga.attention_view(lm, "A B", 0, heads=[1]).data
    assert "unpkg" not in html and html.count("</script>") == 2
    assert "<!--<b>" not in html and "\\u003c!--" in html and '"attentionHeadNames": ["L0H1"]' in html
    numbers = re.search(r'"attention": (\[.*?\]), "attentionHeadNames', html)[1]
    assert max(len(n) for n in re.findall(r"[\d.]+", numbers)) <= 5
    with pytest.raises(ValueError, match="at most 8"):
        ga.attention_view(lm, "A B", 0, heads=[0, 1, 2] * 3)


def test_the_script_is_in_the_first_view_of_a_notebook_and_again_when_that_is_rerun(lm, monkeypatch):
    running = {}
    kernel = SimpleNamespace(get_parent=lambda channel: {"metadata": {"cellId": running["cell"]}})
    monkeypatch.setattr(circuitsvis, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr(circuitsvis, "_carrier", {})
    sizes = []
    for running["cell"] in ("a", "b", "a"):
        sizes.append(len(ga.attention_view(lm, "A B", 0).data))
    assert sizes[0] > 1_000_000 > 20_000 > sizes[1] and sizes[2] == sizes[0]
    monkeypatch.setitem(__import__("sys").modules, "google.colab", SimpleNamespace())
    running["cell"] = "c"
    assert len(ga.attention_view(lm, "A B", 0).data) > 1_000_000
