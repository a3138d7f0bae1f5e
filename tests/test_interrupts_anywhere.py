"""Ctrl-C or the Stop button at any moment: the model is as before, or `repr` says what is left and
`ga.reset` cures it.
"""

import contextlib
import random
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from conftest import logits

import ga_utils as ga
from ga_utils.models.batches import rows_of
from ga_utils.sweeps.exact import ExactSweep

OURS = (str(Path(ga.__file__).parent), contextlib.__file__)
TRIALS = 100  # moments; all if there are fewer
PROMPT = "The flag of Arvo is"


def lines_run(work, interrupt_at: int | None = None) -> int:
    """How many lines of our package and of contextlib `work` runs; before one of them, if asked for, SIGINT
    comes in.
    """
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            count += 1
            if count == interrupt_at:
                signal.getsignal(signal.SIGINT)(signal.SIGINT, frame)  # as Python itself would call it
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def parts(lm: ga.LM) -> list:
    """What a model is made of, and how it is set."""
    return [
        *((name, id(module), "forward" in vars(module)) for name, module in lm.model.named_modules()),
        *(id(mixer.module) for mixer in lm.mixers),
        lm.model.config._attn_implementation,
        signal.getsignal(signal.SIGINT),
    ]


def inside(manager, *args):
    """Read a prompt inside a context manager of the package."""

    def work(lm, teacher, examples):
        with manager(lm, *args):
            logits(lm, PROMPT)

    return work


def a_piece(lm, teacher, examples):
    layer = [head for head in ga.heads.alive_heads(lm) if head.layer == 1]
    ExactSweep(lm, rows_of(lm, examples))(tuple(layer[:2]))


def reading_z(lm, teacher, examples):
    with lm.mixers[0].on_z(lambda z: None):
        logits(lm, PROMPT)


def a_head_given_back(lm, teacher, examples):
    with ga.replace_head(lm, teacher, layer=1, head=0):
        logits(lm, PROMPT)


def a_layer_given_back(lm, teacher, examples):
    with ga.replace_layer(lm, teacher, layer=1):
        logits(lm, PROMPT)


WORKS = {
    "ablate": ("llama", inside(ga.ablate, ["L0H0", "L1H1"])),
    "skip_layers": ("llama", inside(ga.skip_layers, [0, 1])),
    "truncate": ("llama", inside(ga.truncate, 1)),
    "mask_last_row": ("llama", inside(ga.mask_last_row)),
    "on_z": ("llama", reading_z),
    "attention_map": ("llama", lambda lm, teacher, examples: ga.attention_map(lm, PROMPT, 1)),
    "scan": ("llamba", lambda lm, teacher, examples: ga.scan(lm, PROMPT, 1)),
    "piece": ("llama", a_piece),
    "piece of an SSM": ("llamba", a_piece),
    "piece of a hybrid": ("zamba2", a_piece),
    "screen": (
        "llama",
        lambda lm, teacher, examples: ga.sweep_heads(lm, examples, method="screen", k=2, progress=False),
    ),
    "replace_head": ("llamba", a_head_given_back),
    "replace_layer": ("llamba", a_layer_given_back),
}


@pytest.fixture
def python_interrupts():
    """As in a terminal or a kernel: whoever is started in a shell's background is told to ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def answers_alike(lm: ga.LM, known: torch.Tensor) -> bool:
    try:
        return torch.equal(logits(lm, PROMPT), known)
    except Exception:  # a hook of the sweep that is still there may not fit another prompt
        return False


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.usefixtures("python_interrupts")
def test_what_an_interrupt_at_any_moment_leaves_is_shown_and_cured(name, tokenizer):
    family, work = WORKS[name]
    lm, teacher = families.build(family, tokenizer), families.build("llama", tokenizer)
    examples = ga.tasks.kv_retrieval(lm, n_pairs=2, n=2, seed=5)
    work(lm, teacher, examples)
    whole, known, shown = (parts(lm), parts(teacher)), logits(lm, PROMPT), repr(lm)
    n_lines = lines_run(lambda: work(lm, teacher, examples))
    for moment in random.Random(5).sample(range(1, n_lines + 1), min(n_lines, TRIALS)):
        with pytest.raises(KeyboardInterrupt) as error:  # kept, as IPython keeps it
            lines_run(lambda: work(lm, teacher, examples), moment)
        same = (parts(lm), parts(teacher)) == whole and answers_alike(lm, known)
        assert same or repr(lm) != shown or teacher.edits, (
            f"{name}: unseen, before line {moment} of {n_lines}"
        )
        ga.reset(lm)
        ga.reset(teacher)
        assert (parts(lm), parts(teacher)) == whole, f"{name}: interrupted before line {moment} of {n_lines}"
        assert torch.equal(logits(lm, PROMPT), known) and repr(lm) == shown
        del error


@pytest.mark.parametrize("name", WORKS)
def test_an_interrupt_in_the_middle_of_a_forward_pass_leaves_nothing(name, tokenizer, monkeypatch):
    """That is where a model spends its time, and where nearly every Ctrl-C lands."""
    family, work = WORKS[name]
    lm, teacher = families.build(family, tokenizer), families.build("llama", tokenizer)
    examples = ga.tasks.kv_retrieval(lm, n_pairs=2, n=2, seed=5)
    whole, known, shown = (parts(lm), parts(teacher)), logits(lm, PROMPT), repr(lm)
    norms = {type(module) for module in lm.model.modules() if "Norm" in type(module).__name__}
    with monkeypatch.context() as stopped:
        for norm in norms:
            stopped.setattr(norm, "forward", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            work(lm, teacher, examples)
    assert (parts(lm), parts(teacher)) == whole and repr(lm) == shown and not lm.edits and not teacher.edits
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert torch.equal(logits(lm, PROMPT), known)


def test_a_context_left_in_another_thread_is_undone_there(tokenizer):
    lm = families.build("llama", tokenizer)
    known, context = logits(lm, PROMPT), ga.ablate(lm, ["L1H1"])
    context.__enter__()
    assert not torch.equal(logits(lm, PROMPT), known) and "disabled: L1H1" in repr(lm)
    thread = threading.Thread(target=context.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert torch.equal(logits(lm, PROMPT), known) and "disabled" not in repr(lm)


def test_two_sweeps_in_two_threads_give_what_they_give_one_after_the_other(tokenizer):
    models = [families.build(family, tokenizer) for family in ("llama", "zamba2", "llama")]
    examples = ga.tasks.mmlu(models[0], n=6) + ga.tasks.mmlu_content(models[0], n=4)

    def sweep(lm):
        return ga.sweep_heads(lm, examples, progress=False)

    alone = [sweep(lm) for lm in models]
    for _ in range(5):
        with ThreadPoolExecutor(len(models)) as threads:
            together = list(threads.map(sweep, models))
        for one, other in zip(alone, together):
            assert np.array_equal(one.accuracy, other.accuracy, equal_nan=True)
            assert np.nanmax(np.abs(one.logprob - other.logprob)) < 1e-5
    assert not any(m._forward_hooks or m._forward_pre_hooks for lm in models for m in lm.model.modules())


def test_a_hook_whose_handle_was_lost_does_nothing_once_its_edit_is_undone(tokenizer):
    """Ctrl-C between a hook's registration and the note of how to remove it."""
    lm = families.build("llama", tokenizer)
    known = logits(lm, PROMPT)

    def register_and_break_off(function):
        lm.layers[1].register_forward_hook(function)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), lm.edited("a test") as edit:
        edit.hook(register_and_break_off, lambda module, args, output: torch.zeros_like(args[0]))
    assert torch.equal(logits(lm, PROMPT), known) and "a test" not in repr(lm)
