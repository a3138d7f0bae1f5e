"""Ctrl-C or the Stop button at any moment: raised, and the model is as before."""

import contextlib
import random
import signal
import sys
from pathlib import Path

import families
import pytest
import torch
from conftest import logits
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import ga_utils as ga
from ga_utils.scoring import rows_of
from ga_utils.sweeps.exact import ExactSweep

OURS = (str(Path(ga.__file__).parent), contextlib.__file__)
TRIALS = 100  # moments; all if there are fewer
PROMPT = "The flag of Arvo is"


def lines_run(work, interrupt_at: int | None = None) -> int:
    """How many lines of our package and of contextlib `work` runs; before one of them, if asked for, SIGINT comes in."""
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
    """All of a model that hooks and context managers of ours touch."""
    modules = list(lm.model.named_modules())
    return [
        *(
            (
                name,
                id(module),
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                "forward" in vars(module),
            )
            for name, module in modules
        ),
        *(id(mixer.module) for mixer in lm.mixers),
        lm.model.config._attn_implementation,
        ALL_ATTENTION_FUNCTIONS["sdpa"],
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


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.usefixtures("python_interrupts")
def test_an_interrupt_at_any_moment_is_raised_and_leaves_the_model_as_it_was(name, tokenizer):
    family, work = WORKS[name]
    lm = families.build(family, tokenizer)
    teacher = families.build("llama", tokenizer)
    examples = ga.tasks.kv_retrieval(lm, n_pairs=2, n=2, seed=5)
    work(lm, teacher, examples)
    whole, known = (parts(lm), parts(teacher)), logits(lm, PROMPT)
    n_lines = lines_run(lambda: work(lm, teacher, examples))
    for moment in random.Random(5).sample(range(1, n_lines + 1), min(n_lines, TRIALS)):
        with pytest.raises(
            KeyboardInterrupt
        ) as error:  # kept, as IPython keeps it: nothing is mended by forgetting its frames
            lines_run(lambda: work(lm, teacher, examples), moment)
        assert (parts(lm), parts(teacher)) == whole, f"{name}: interrupted before line {moment} of {n_lines}"
        del error
    assert torch.equal(logits(lm, PROMPT), known)
