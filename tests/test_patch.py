"""Patching and path patching against runs by hand; what these and steering refuse and leave behind."""

import by_hand
import families
import numpy as np
import pytest
import torch
from by_hand import after_a_shot, chosen, close, gap, questions, some_heads
from conftest import logits
from test_heads import PROMPT, assert_untouched, footprint

import ga_utils as ga


def texts(lm, example: ga.Example) -> list[int]:
    return lm.tokenize([example.prompt + example.choices[0]])[0]


def writing(lm, heads, at: list[int], source: ga.Example, source_at: list[int]):
    """A change by hand: z at the places is what a run of the source had at its own."""
    recorded = by_hand.forward(lm, texts(lm, source))[1]

    def change(spot, z):
        for here, there in zip(at, source_at):
            new = torch.where(spot.columns(heads), recorded[spot.layer, spot.first][there], z[here])
            z[here] = new
        return z

    return change


def three_runs(receivers: list[ga.Head]):
    """Path patching by hand, to be given to `by_hand.logprobs`."""

    def run(lm, ids, write):
        clean, sent = by_hand.forward(lm, ids)[1], {}

        def send(spot, z):
            sent[spot.layer, spot.first] = z.clone()  # what the receivers make of the change
            return write(spot, clean[spot.layer, spot.first].clone())

        by_hand.forward(lm, ids, send)
        return by_hand.forward(
            lm, ids, lambda spot, z: torch.where(spot.columns(receivers), sent[spot.layer, spot.first], z)
        )

    return run


def other_places(example: ga.Example) -> list[int]:
    return [12 + example.answer, 9]


@pytest.mark.parametrize("family", families.CONFIGS)
def test_patching_is_recording_and_writing_by_hand(family, tokenizer):
    """Sources are other prompts, of other lengths, with other positions."""
    lm = by_hand.build(family, tokenizer)
    before, heads, examples = footprint(lm), some_heads(lm), questions(lm)
    for examples in (questions(lm), after_a_shot(questions(lm))):
        sources = [*examples[1:], examples[0]]
        cases = {
            ("last", "last"): lambda e, s: ([by_hand.last(lm, e)], [by_hand.last(lm, s)]),
            (chosen, other_places): lambda e, s: (chosen(e), other_places(s)),
        }
        for (at, source_at), by_hands in cases.items():
            expected = [
                by_hand.logprobs(lm, e, writing(lm, heads, by_hands(e, s)[0], s, by_hands(e, s)[1]))
                for e, s in zip(examples, sources)
            ]
            found = ga.patch(lm, heads, examples, sources, at, source_at)
            assert gap(found, expected) < close(family)
            assert gap(ga.evaluate(lm, examples), expected) > 50 * close(family)
    assert_untouched(lm, before)


@pytest.mark.parametrize("family", ["llama", "falcon_mamba", "zamba2"])
def test_all_sources_are_read_before_anything_is_written(family, tokenizer):
    """Two positions of a prompt exchanged; the same prompt twice in the list, with different sources."""
    lm = by_hand.build(family, tokenizer)
    heads, examples = some_heads(lm), questions(lm)
    found = ga.patch(lm, heads, examples, examples, chosen, lambda e: chosen(e)[::-1])
    swapped = [by_hand.logprobs(lm, e, writing(lm, heads, chosen(e), e, chosen(e)[::-1])) for e in examples]
    assert gap(found, swapped) < close(family) and gap(ga.evaluate(lm, examples), swapped) > 1e-3
    (one,), sources = examples[1:2], examples[2:]
    found = ga.patch(lm, heads, [one] * 3, sources)
    expected = [
        by_hand.logprobs(lm, one, writing(lm, heads, [by_hand.last(lm, one)], s, [by_hand.last(lm, s)]))
        for s in sources
    ]
    assert gap(found, expected) < close(family)
    assert len({tuple(row) for row in np.round(expected, 3)}) == 3


@pytest.mark.parametrize("family", ["llamba", "mamba2", "mamba", "zamba2"])
def test_sources_may_be_read_from_an_edited_model(family, tokenizer):
    """What a layer writes without its convolution, at all positions: as if its convolution were off."""
    lm = by_hand.build(family, tokenizer)
    asked = [e for e in questions(lm) if len(texts(lm, e)) == len(lm.tokenize([e.prompt])[0]) + 1]
    mixer = [mixer for mixer in lm.mixers if mixer.kind != "attention"][1]
    heads = [ga.Head(mixer.layer, number) for number in mixer.heads]
    with ga.ablate_conv(lm, [mixer.layer]):
        off = ga.evaluate(lm, asked).logprobs
    for at, alike in ((lambda e: range(by_hand.last(lm, e) + 1), True), ("last", False)):
        edited = ga.ablate_conv(lm, [mixer.layer])
        found = ga.patch(lm, heads, asked, asked, at, at, sources_in=edited)
        assert (gap(found, off) < close(family)) == alike
        assert gap(found, ga.evaluate(lm, asked).logprobs) > close(family)


@pytest.mark.parametrize("family", families.CONFIGS)
def test_path_patching_is_three_runs_by_hand(family, tokenizer):
    """The very first thing that is done with a model, too; receivers in several layers don't hear each
    other.
    """
    lm = by_hand.build(family, tokenizer)
    heads, layers = some_heads(lm), sorted({spot.layer for spot in by_hand.spots(lm)})
    senders = [head for head in heads if head.layer == layers[0]]
    receivers = [head for head in heads if head.layer in layers[1:]]
    asked = questions(lm)
    cases = (
        (asked[:4], [asked[0], asked[2], asked[1], asked[3]], chosen, other_places),
        (after_a_shot(asked[1:]), after_a_shot(asked[1:]), chosen, lambda example: chosen(example)[::-1]),
    )
    for examples, sources, at, source_at in cases:
        found = ga.patch(lm, senders, examples, sources, at, source_at, through=receivers)
        changes = [writing(lm, senders, at(e), s, source_at(s)) for e, s in zip(examples, sources)]
        expected = [
            by_hand.logprobs(lm, e, change, three_runs(receivers)) for e, change in zip(examples, changes)
        ]
        assert gap(found, expected) < close(family)
        assert gap(ga.evaluate(lm, examples), expected) > 20 * close(family), "something goes through"
        direct = [by_hand.logprobs(lm, e, change) for e, change in zip(examples, changes)]
        assert gap(found, direct) > 20 * close(family), "and something else does not"
    assert not lm.edits


WORK = {
    "patch": lambda lm, asked, to: ga.patch(lm, ["L0H1"], asked, asked, to, to),
    "path": lambda lm, asked, to: ga.patch(lm, ["L0H1"], asked, asked, to, to, through=["L2H1"]),
    "steer": lambda lm, asked, to: ga.steer(lm, ["L0H1"], asked, to),
}


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["in the function", "in a forward pass"])
@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("family", ["llama", "mamba", "falcon_h1"])
def test_afterwards_all_is_as_before(family, work, where, error, tokenizer):
    lm = families.build(family, tokenizer)
    before, name, expected, asked = footprint(lm), repr(lm), logits(lm, PROMPT), questions(lm)
    passes = []

    def fail(module, args):
        passes.append("patched" in repr(lm) or "steered" in repr(lm))
        if error and passes[-1]:
            raise error

    def to(example):
        if error and where == "in the function" and example == asked[-1]:
            raise error
        return chosen(example)

    def go():
        if where == "in the function":
            return WORK[work](lm, asked, to)
        with lm.edited("watched") as edit:
            edit.hook(lm.layers[1].register_forward_pre_hook, fail)
            WORK[work](lm, asked, to)
        assert any(passes)

    if error:
        with pytest.raises(error):
            go()
    else:
        go()
    assert repr(lm) == name and not lm.edits and lm.running is None
    assert_untouched(lm, before)
    assert torch.equal(logits(lm, PROMPT), expected)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda lm, e: ga.patch(lm, [], e, e), "no heads given: name at least one"),
        (lambda lm, e: ga.patch(lm, ["L0H9"], e, e), "L0H9: layer 0 has heads 0–5"),
        (
            lambda lm, e: ga.patch(lm, ["L0H0"], e, e[:1]),
            "3 examples and 1 sources: expected one source",
        ),
        (lambda lm, e: ga.patch(lm, ["L0H0"], [], []), "0 examples and 0 sources"),
        (
            lambda lm, e: ga.patch(lm, ["L0H0"], e, e, chosen),
            "example 0: 2 positions to write at, but 1",
        ),
        (
            lambda lm, e: ga.patch(lm, ["L0H0"], e, e, "closing", chosen),
            "8 positions to write at, but 2 of its source",
        ),
        (
            lambda lm, e: ga.patch(lm, ["L0H0", "L1H0"], e, e, through=["L1H1"]),
            "through L1H1: only heads in",
        ),
        (
            lambda lm, e: ga.patch(lm, ["L0H0"], e, e, through=["L2H1", "L0H1"]),
            "L0H1: only .* after L0H0",
        ),
        (lambda lm, e: ga.patch(lm, ["L0H0"], e, e, through=[]), "no heads given"),
        (lambda lm, e: ga.patch(lm, ["L0H0"], e, e, "first"), "'first' names no positions"),
        (lambda lm, e: ga.steer(lm, [], e, "last"), "no heads given"),
        (lambda lm, e: ga.steer(lm, ["L0H0"], [], "last"), "no examples to steer"),
        (
            lambda lm, e: ga.steer(lm, ["L0H0"], e, lambda x: [3] * (x != e[1])),
            "example 1: no position",
        ),
        (lambda lm, e: ga.steer(lm, ["L0H0"], e, lambda x: [99]), "position 99"),
    ],
)
def test_nonsense_is_refused(lm, call, message):
    before = footprint(lm)
    with pytest.raises(ValueError, match=message):
        call(lm, questions(lm)[:3])
    assert_untouched(lm, before)
