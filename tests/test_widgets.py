"""The live views: they show what the functions give, are made quickly, and say what is wrong."""

import copy
import re
import time

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import logits, random_llama
from jupyter_client.manager import start_new_kernel
from matplotlib.colors import to_rgb
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM

import ga_utils as ga
from ga_utils.views import predict
from ga_utils.views.steering import steer_view


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
    return ga.tasks.mmlu(ga.load_model("tiny-llama"), n=30, seed=3)


@pytest.fixture(scope="module")
def pressed():
    return ga.load_model("tiny-llama", device="cpu")


def test_head_explorer_shows_the_head_chosen_and_the_accuracy_without_it(pressed, examples):
    before = logits(pressed, examples[0].prompt)
    view = ga.head_explorer(pressed, examples)
    assert str(ga.evaluate(pressed, examples)) in shown(view) and "Pattern of L0H0" in shown(view)
    labelled(view, "layer").value = 1
    labelled(view, "head").value = 2
    labelled(view, "disable this head").value = True
    with ga.ablate(pressed, ["L1H2"]):
        without = ga.evaluate(pressed, examples)
    assert "Pattern of L1H2" in shown(view) and f"with L1H2 disabled {without}" in shown(view)
    assert without.accuracy < 0.7, "a head that matters was meant to be disabled here"
    labelled(view, "head").value = 1
    assert "with L1H1 disabled" in shown(view) and "L1H2" not in shown(view)
    labelled(view, "disable this head").value = False
    assert "with L1H1 disabled" not in shown(view)
    assert torch.equal(logits(pressed, examples[0].prompt), before)


def test_head_explorer_says_what_the_model_answers_to_an_edited_prompt(pressed, examples):
    view = ga.head_explorer(pressed, examples, start="L1H2")
    answer = examples[0].choices[examples[0].answer].strip()
    assert f"answer to this prompt: &#x27;{answer}&#x27;" in shown(view)
    dictionary = "Dictionary:\napple: 17\nlamp: 4\nQuestion: what is the value of {}?\nAnswer:"
    for key, value in (("lamp", "4"), ("apple", "17")):
        labelled(view, "prompt").value = dictionary.format(key)
        assert f"answer to this prompt: &#x27;{value}&#x27;" in shown(view)
    labelled(view, "prompt").value = examples[0].prompt
    labelled(view, "disable this head").value = True
    with torch.no_grad(), ga.ablate(pressed, ["L1H2"]):
        p = pressed.model(pressed.encode(examples[0].prompt)).logits[0, -1].softmax(-1)
    assert f"with L1H2 disabled: &#x27;{pressed.tokenizer.decode([p.argmax()])}&#x27; {p.max():.0%}" in shown(
        view
    )
    labelled(view, "prompt").value = ""
    assert "answer to this prompt" in shown(view)


@pytest.fixture(scope="module")
def steered(pressed, examples):
    return steer_view(pressed, ["L2H1", ga.Head(2, 0)], examples)


def test_the_steering_slider_starts_between_the_options_and_says_nothing(steered, examples):
    look = labelled(steered, "look at")
    assert look.options == ("A", "B", "–", "C", "D") and look.value == "–"
    assert "at which option should L2H0, L2H1 look?" in shown(steered)
    assert (
        "<mark>" not in shown(steered) and "%" not in shown(steered) and "model answers" not in shown(steered)
    )


def test_the_steering_slider_shows_what_steer_gives(steered, pressed, examples):
    labelled(steered, "question").value = 3
    for option, letter in enumerate("ABCD"):
        labelled(steered, "look at").value = letter
        closing = ga.segments(pressed, examples[2])[option].closing
        score = ga.steer(pressed, ["L2H0", "L2H1"], [examples[2]], lambda _, closing=closing: closing)
        answer = "ABCD"[score.chosen[0]]
        assert f"L2H0, L2H1 made to look at {letter}: the model answers {answer}" in shown(steered)
        p = np.exp(score.logprobs[0]) / np.exp(score.logprobs[0]).sum()
        assert re.findall(r"<td>(\d+%)</td>", shown(steered)) == [f"{share:.0%}" for share in p]
        (marked,) = re.findall(r"<mark>(.*?)\n</mark>", shown(steered))
        assert marked == examples[2].prompt.splitlines()[option]
    labelled(steered, "look at").value = "–"
    assert "<mark>" not in shown(steered) and "model answers" not in shown(steered)


def test_the_steering_slider_refuses_nonsense(pressed, examples):
    pairs = ga.tasks.kv_retrieval(pressed, n_pairs=4, n=1)
    for heads, asked, message in (
        ([], examples, "no heads to steer"),
        (["L9H0"], examples, "L9H0: this model"),
        (["L2H0"], [], "the same choices"),
        (["L2H0"], [*examples, *pairs], "the same choices"),
    ):
        with pytest.raises(ValueError, match=message):
            steer_view(pressed, heads, asked)


def test_head_explorer_changes_prompt_and_model_and_shows_errors(pressed, examples):
    view = ga.head_explorer([pressed, ga.load_model("tiny-zamba2")], examples, start=ga.Head(2, 1))
    assert "Pattern of L2H1 in tiny-llama" in shown(view)
    labelled(view, "prompt").value = "The flag of Arvo is"
    assert "6 tokens" in shown(view)
    labelled(view, "model").value = "tiny-zamba2"
    labelled(view, "layer").value = 1
    assert labelled(view, "head").options == tuple(range(8))  # four of attention, four of the SSM
    labelled(view, "head").value = 7
    assert "Pattern of L1H7 in tiny-zamba2" in shown(view)
    labelled(view, "prompt").value = "wind " * 5000
    assert "ValueError: 500" in shown(view) and "shorten the prompt to 150" in shown(view)


def test_models_and_examples_may_be_read_once_and_models_of_one_name_are_both_there(pressed, examples):
    cut = ga.load_model("tiny-llama", device="cpu", n_layers=2)
    view = ga.head_explorer(iter([pressed, cut]), iter(examples), start="L1H0")
    assert "Pattern of L1H0" in shown(view) and str(ga.evaluate(pressed, examples)) in shown(view)
    labelled(view, "model").value = "tiny-llama (2)"
    assert labelled(view, "layer").options == (0, 1) and str(ga.evaluate(cut, examples)) in shown(view)
    beside = ga.attention_beside(iter([pressed, cut]), "The flag of Arvo is", iter(["L2H1"]))
    assert "<b>tiny-llama</b>" in shown(beside) and "<b>tiny-llama (2)</b>" in shown(beside)
    assert "Pattern of L2H1" in shown(beside) and "Pattern of L0H0" in shown(beside)


def test_another_layer_offers_its_own_heads_and_keeps_the_head_where_it_can():
    zamba = ga.load_model("tiny-zamba2")  # layers 0 and 2 have four heads, layers 1 and 3 have eight
    view = ga.attention_beside(zamba, "The flag of Arvo is", ["L1H6"])
    labelled(view, "layer").value = 3
    assert "Pattern of L3H6" in shown(view)
    labelled(view, "layer").value = 2
    assert labelled(view, "head").options == tuple(range(4)) and "Pattern of L2H0" in shown(view)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda lm, e, sweep: ga.head_explorer([], e), "no models"),
        (lambda lm, e, sweep: ga.head_explorer(lm, []), "no examples"),
        (lambda lm, e, sweep: ga.head_explorer(lm, e, start="L9H0"), "L9H0: this model has layers 0–4"),
        (lambda lm, e, sweep: ga.attention_beside([], "A"), "no models"),
        (
            lambda lm, e, sweep: ga.attention_beside(lm, "A", ["L0H0", "L0H1"]),
            "2 heads to open with for 1 models",
        ),
        (lambda lm, e, sweep: ga.attention_beside(lm, "A", ["L0H7"]), "L0H7: layer 0 has heads 0–3"),
        (
            lambda lm, e, sweep: ga.sweep_view(sweep, ga.load_model("tiny-llama", n_layers=1), "A"),
            r"L1H\d: this model",
        ),
        (lambda lm, e, sweep: ga.sweep_view(nothing_of(sweep), lm, "A"), "no head was disabled"),
        (lambda lm, e, sweep: ga.predict("x", 5, 5), "low must be below high"),
    ],
)
def test_views_refuse_nonsense_when_they_are_made(pressed, examples, sweep, make, message):
    with pytest.raises(ValueError, match=message):
        make(pressed, examples, sweep)


def nothing_of(sweep: ga.HeadSweep) -> ga.HeadSweep:
    nothing = np.full_like(sweep.accuracy, np.nan)
    return ga.HeadSweep(nothing, nothing, sweep.baseline)


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


def test_sweep_view_of_many_heads_keeps_the_costliest(tokenizer, sweep):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=120,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=60,
        num_key_value_heads=60,
    )
    wide = ga.wrap(LlamaForCausalLM(config), tokenizer)
    accuracy = np.random.default_rng(0).random((2, 60))
    many = ga.HeadSweep(accuracy, accuracy, sweep.baseline)
    buttons = every(ga.sweep_view(many, wide, "A"), widgets.Button)
    assert {b.description.split()[0] for b in buttons} == {str(h) for h in many.top(100)}


def test_sweep_view_says_which_way_a_head_moves_the_accuracy(pressed, sweep):
    accuracy = np.full_like(sweep.accuracy, np.nan)
    accuracy[0, :3] = sweep.baseline.accuracy + np.array([-0.001, -0.2, 0.1])
    view = ga.sweep_view(ga.HeadSweep(accuracy, accuracy, sweep.baseline), pressed, "The flag of Arvo is")
    said = {
        "L0H0 0": "0 points less than",
        "L0H1 -20": "20 points less than",
        "L0H2 +10": "10 points more than",
    }
    buttons = {b.description: b for b in every(view, widgets.Button)}
    assert list(buttons) == list(said)
    for name, button in buttons.items():
        button.click()
        assert f"{said[name]} {sweep.baseline}" in shown(view)


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
    assert guess.value is None and not capsys.readouterr().out  # a page without a kernel says nothing
    assert "No slider here?" in repr(seen[0]) and len(repr(seen[0])) <= 110  # ipywidgets cuts longer ones
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


def interactive(view) -> tuple[list[str], int]:
    """The names of the heads in an interactive view, and the number of weights."""
    names = re.search(r'"attentionHeadNames": \[(.*?)\]', view.data)[1]
    weights = re.search(r'"attention": (\[.*?\]), "attentionHeadNames', view.data)[1]
    return re.findall(r"L\d+H\d+", names), len(re.findall(r"[\d.]+", weights))


def test_the_interactive_view_names_its_heads_in_the_order_asked_for(lm):
    n = len(lm.tokenizer("A B").input_ids) ** 2
    for heads in ([4, 1], (h for h in [4, 1]), np.array([4, 1])):
        assert interactive(ga.attention_view(lm, "A B", 1, heads)) == (["L1H4", "L1H1"], 2 * n)
    assert interactive(ga.attention_view(lm, "A B", 2)) == ([f"L2H{head}" for head in range(6)], 6 * n)
    for arguments, message in (
        (("A B", 0, iter([0, 1, 2] * 3)), "9 heads in one view: choose at most 8"),
        (("salt " * 200, 0, [0, 1, 2, 3, 4, 5]), "6 heads on 201 tokens are too many weights"),
        (("A B", 7), "L7H0: this model has layers 0–2"),
        (("A B", 0, [6]), "L0H6: layer 0 has heads 0–5"),
        (("A B", 0, []), "no heads"),
    ):
        with pytest.raises(ValueError, match=message):
            ga.attention_view(lm, *arguments)


def test_the_interactive_view_needs_no_network_and_survives_a_hostile_token(tokenizer):
    hostile = copy.deepcopy(tokenizer)
    hostile.add_tokens(["</script><!--<b>"])
    html = ga.attention_view(random_llama(hostile, 6), "A </script><!--<b>", 0, heads=[1]).data
    assert "unpkg" not in html and html.count("</script>") == html.count("<script>if") + 1 == 2
    assert "<!--<b>" not in html and "\\u003c!--\\u003cb>" in html
    weights = re.search(r'"attention": (\[.*?\]), "attentionHeadNames', html)[1]
    assert max(len(number) for number in re.findall(r"[\d.]+", weights)) <= 5


def test_an_empty_prompt_is_told_so_where_a_tokenizer_begins_texts_with_nothing(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    lm = random_llama(bare, 6)
    assert "0 tokens cannot be drawn: write something" in shown(ga.attention_beside(lm, ""))
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        ga.attention_view(lm, "", 0)


@pytest.fixture(scope="module")
def run():
    """Runs a cell in a kernel, as JupyterLab does, and gives what it displayed, as HTML."""
    manager, client = start_new_kernel()

    def run_cell(cell: str, source: str) -> list[str]:
        content = {"code": source, "silent": False, "store_history": True, "stop_on_error": True}
        request = client.session.msg("execute_request", content, metadata={"cellId": cell})
        client.shell_channel.send(request)
        displayed = []
        while True:
            message = client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            assert message["msg_type"] != "error", message["content"]
            displayed.append(message["content"].get("data", {}).get("text/html"))
            if message["content"].get("execution_state") == "idle":
                return [html for html in displayed if html]

    yield run_cell
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_notebook_carries_the_script_once_however_often_and_in_which_order_cells_run(run):
    def scripts(cell, source):
        return [len(page) > 1_000_000 for page in run(cell, source)]

    assert (
        run("setup", 'import sys\nimport ga_utils as ga\nlm = ga.load_model("tiny-llama", device="cpu")')
        == []
    )
    assert run("unseen", 'view = ga.attention_view(lm, "A B", 0)') == []
    assert scripts("a", "view") == [True]
    assert scripts("b", "view") == [False]
    assert scripts("a", "view") == [True], "its output was replaced, and the script with it"
    assert scripts("c", 'for layer in range(3): display(ga.attention_view(lm, "A B", layer))') == [False] * 3
    assert scripts("a", 'display(view); display(ga.attention_view(lm, "A B", 1))') == [True, False]
    assert scripts("b", 'sys.modules["google.colab"] = sys\nview') == [True], (
        "each output is a page of its own"
    )
