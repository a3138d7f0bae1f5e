"""States exchanged between texts against two halves by hand, and states read against the recurrence."""

import re
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import by_hand
import families
import numpy as np
import pytest
import torch
from by_hand import after_a_shot, close, gap, questions
from conftest import logits
from test_conv import operated
from test_heads import PROMPT, assert_untouched, footprint
from test_ssm import selective_scan_reference
from two_halves import NORMED, asked, build, every_head, expected, kept, late, read, ssms, teams, two_halves

import ga_utils as ga
from ga_utils.ssm import Scan, go_on_from, scan_of

CACHES = ["state", "conv", "both"]
LIMITED = ["mamba2", "zamba2", "bamba", "falcon_h1", "nemotron_h", "granitemoehybrid"]  # in their step sizes


@pytest.mark.parametrize("what", CACHES)
@pytest.mark.parametrize("family", [*families.SSMS, NORMED])
def test_heads_go_on_as_in_two_halves_by_hand(family, what, tokenizer):
    """A padded batch, and a text alone, give what the halves give, which by hand run text by text."""
    lm = build(family, tokenizer)
    before, (examples, sources), cut = footprint(lm), asked(lm), late(lm)
    heads = dict(zip(CACHES, teams(lm)))[what]
    right = expected(lm, examples, sources, cut, heads, what)
    assert gap(ga.patch_state(lm, heads, examples, sources, cut, what), right) < close(family)
    assert gap(ga.evaluate(lm, examples), right) > 20 * close(family)
    assert gap(ga.patch_state(lm, heads, examples[1:2], sources[1:2], cut, what), right[1:2]) < close(family)
    assert_untouched(lm, before)


@pytest.mark.parametrize("family", LIMITED)
def test_step_sizes_keep_their_limits_behind_a_long_beginning_that_all_share(family, tokenizer):
    """By hand the second half runs in one pass, in which Hugging Face keeps to the limits."""
    lm = build(family, tokenizer, limits=(0.5, 0.9))
    examples, sources = (after_a_shot(some[1:]) for some in asked(lm))
    for what, heads in (("state", teams(lm)[0]), ("both", teams(lm)[1])):
        right = expected(lm, examples, sources, late(lm), heads, what, step=None)
        assert gap(ga.patch_state(lm, heads, examples, sources, late(lm), what), right) < close(family)
        assert gap(ga.evaluate(lm, examples), right) > 20 * close(family)


@pytest.mark.parametrize("family", families.SSMS)
def test_at_the_first_tokens_the_convolution_has_seen_nothing_before(family, tokenizer):
    """There are fewer tokens than taps, and not as many in the example as in its source."""
    lm = build(family, tokenizer)
    examples = [ga.Example(f"{word}: 17\n{word}:", (" 17", " 4"), 1, "kv") for word in ("lamp", "drum")]
    _, some, everyone = teams(lm)
    for what, heads in zip(CACHES, (some, everyone, some)):
        at = {examples[0]: [1], examples[1]: [2 if what == "both" else 0]}.get
        right = expected(lm, examples, examples[::-1], at, heads, what)
        assert gap(ga.patch_state(lm, heads, examples, examples[::-1], at, what), right) < close(family)
        assert gap(ga.evaluate(lm, examples), right) > 10 * close(family)


@pytest.mark.parametrize("family", families.SSMS)
def test_behind_the_last_position_only_choices_of_several_tokens_change(family, tokenizer):
    """In one source the last position is behind the prompt: its choices begin with the same token."""
    lm = build(family, tokenizer)
    _, pairs, wide, few, many = questions(lm)
    heads, examples, sources = teams(lm)[1], [wide, wide, few], [pairs, many, wide]
    right = expected(lm, examples, sources, lambda e: [by_hand.last(lm, e)], heads, "both")
    found, unpatched = ga.patch_state(lm, heads, examples, sources, "last", "both"), ga.evaluate(lm, examples)
    assert gap(found, right) < close(family)
    assert (abs(found.logprobs - unpatched.logprobs)[:2, :2] > 10 * close(family)).all()
    for example, source in ((few, wide), (pairs, few)):
        unchanged = ga.patch_state(lm, heads, [example], [source], "last", "both")
        assert gap(ga.evaluate(lm, [example]), unchanged.logprobs.tolist()) < close(family)


@pytest.mark.parametrize("family", families.SSMS)
def test_a_text_that_goes_on_from_itself_is_as_ever(family, tokenizer):
    lm = by_hand.build(family, tokenizer)  # with limits on step sizes
    examples = asked(lm)[0][1:]
    right = ga.evaluate(lm, examples, batch_size=1).logprobs.tolist()
    for what, heads in zip(CACHES, teams(lm)):
        found = ga.patch_state(lm, heads, examples, examples, lambda example: [8 + example.answer], what)
        assert gap(found, right) < close(family)


@pytest.mark.parametrize("family", ["llamba", "mamba", "mamba2", "falcon_h1"])
def test_other_edits_stay_in_force(family, tokenizer):
    """Another head of the same layer disabled, or the convolution off, against weight surgery."""
    lm = build(family, tokenizer)
    (examples, sources), spot = asked(lm), ssms(lm)[0]
    one, other = ga.Head(spot.layer, spot.first + 1), ga.Head(spot.layer, spot.first + 2)
    lame = ga.wrap(deepcopy(lm.model), tokenizer)
    ssms(lame)[0].linear.weight.data[:, spot.columns([other])] = 0
    for edit, surgery in ((ga.ablate(lm, [other]), lame), (ga.ablate_conv(lm), operated(lm))):
        right = expected(surgery, examples, sources, late(lm), [one], "state")
        with edit:
            assert gap(ga.patch_state(lm, [one], examples, sources, late(lm)), right) < close(family)
        assert gap(ga.evaluate(surgery, examples), right) > 10 * close(family)


def test_in_float64_all_digits_are_right(tokenizer):
    """Logits of Llamba, whose model computes nothing in float32, agree to ten digits."""
    lm, seen = build("llamba", tokenizer), []
    example, source = replace(asked(lm)[0][1], choices=(" 62", " 17")), asked(lm)[1][1]
    ids, of = (lm.tokenize([some.prompt])[0] for some in (example, source))
    (right,) = two_halves(of, 9, 9, teams(lm)[1], "both")(lm, ids, None)
    with lm.edited() as edit:
        edit.hook(lm.model.get_output_embeddings().register_forward_hook, lambda *args: seen.append(args[2]))
        ga.patch_state(lm, teams(lm)[1], [example], [source], lambda example: [9], "both")
    assert (seen[-1][0, -1] - right.logits[0, -1]).abs().max() < 1e-10


def step_by_step(scan: Scan) -> torch.Tensor:
    """The states of the recurrence that `ga_utils.ssm` begins with, [pos, head, d_head, d_state]."""
    B, h = scan.B.repeat_interleave(scan.x.shape[1] // scan.B.shape[1], dim=1).unsqueeze(2), [0]
    for t, x in enumerate(scan.x):
        decay = (scan.A.reshape(len(x), 1, -1) * scan.dt[t, :, None, None]).exp()
        h.append(decay * h[-1] + scan.scale[t, :, None, None] * B[t] * x[..., None])
    return torch.stack(h[1:])


@pytest.mark.parametrize("family", families.SSMS)
def test_states_are_those_of_hugging_faces_cache_and_of_the_recurrence(family, tokenizer):
    """To the digits of float32 in the cache, to those of float64 in the recurrence."""
    lm = build(family, tokenizer)
    before, examples = footprint(lm), questions(lm)[:2]
    digits = 1e-5 if family in ("jamba", "zamba2") else 1e-9
    for spot in (ssms(lm)[0], ssms(lm)[-1]):
        for at, place in ((late(lm), late(lm)), ("last", lambda e: [by_hand.last(lm, e)])):
            states = ga.read_state(lm, examples, spot.layer, at)
            assert states.shape[:3] == (len(examples), spot.n_heads, spot.d_head)
            for example, state in zip(examples, states):
                text, end = example.prompt + example.choices[0], place(example)[0] + 1
                cache = read(lm, lm.tokenize([text])[0][:end])[1]
                exact = step_by_step(ga.scan(lm, text, spot.layer))[end - 1]
                for right, off in ((kept(cache, spot.layer)["state"][0], 1e-5), (exact, digits)):
                    assert (state - right.view_as(state)).abs().max() < off * exact.abs().max()
    assert_untouched(lm, before)


@pytest.mark.parametrize("family", families.SSMS)
def test_a_scan_that_is_resumed_is_the_whole_scan(family, tokenizer):
    """Cut behind any position, also one before the convolution is full, in float64."""
    spot = ssms(by_hand.build(family, tokenizer))[0]
    hidden = torch.randn(7, 32, dtype=spot.linear.weight.dtype)
    scan = scan_of(spot.module, hidden)
    y, states = selective_scan_reference(scan), step_by_step(scan)
    digits = 1e-4 if family == "jamba" else 1e-9
    for cut in range(1, 7):
        first, rest = hidden[:cut], hidden[cut:]
        state = scan_of(spot.module, first).state([3, 2])
        resumed = go_on_from(spot.module, rest, first, first, [3, 2])
        torch.testing.assert_close(state, states[cut - 1, [3, 2]], rtol=0, atol=digits)
        torch.testing.assert_close(resumed, y[cut:, [3, 2]], rtol=0, atol=digits)


def other_dictionary(example: ga.Example) -> ga.Example:
    """The same question, but each key has the next key's value, and a pair is missing."""
    pairs = re.findall(r"(\w+): (\d+)\n", example.prompt)
    lines = [f"{key}: {value}\n" for (key, _), (_, value) in zip(pairs, pairs[1:] + pairs[:1])]
    del lines[(example.answer + 2) % 4]
    question = example.prompt[example.prompt.index("Question") :]
    return replace(
        example, prompt=f"Dictionary:\n{''.join(lines)}{question}", answer=(example.answer + 1) % 4
    )


@pytest.mark.parametrize("name", ["tiny-mamba2", "tiny-llamba", "tiny-zamba2"])
def test_a_trained_ssm_answers_from_the_dictionary_whose_state_it_has(name):
    """With its whole cache to all digits, with the state alone by its choices; but a hybrid does not."""
    lm = ga.load_model(name, device="cpu")
    examples = ga.tasks.kv_retrieval(lm, n_pairs=4, n=10, seed=3)
    sources = [other_dictionary(example) for example in examples]

    def behind(example):  # the dictionary
        return [len(lm.tokenize([example.prompt[: example.prompt.index("Question")]])[0]) - 1]

    found = {what: ga.patch_state(lm, every_head(lm), examples, sources, behind, what) for what in CACHES}
    own, other = ga.evaluate(lm, examples), ga.evaluate(lm, sources)
    assert min(own.accuracy, other.accuracy, np.mean(own.chosen != other.chosen)) >= 0.8
    if name == "tiny-zamba2":
        assert all((score.chosen == own.chosen).all() for score in found.values())
        return
    assert gap(found["both"], other.logprobs.tolist()) < 1e-4
    assert gap(found["state"], other.logprobs.tolist()) > 0.1
    follow = [np.mean(found["state"].chosen == other.chosen), np.mean(found["conv"].chosen == own.chosen)]
    assert min(follow) >= 0.8


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("family", ["llamba", "mamba", "falcon_h1"])
def test_afterwards_all_is_as_before(family, error, tokenizer):
    lm, passes = families.build(family, tokenizer), []
    before, name, unpatched, head = footprint(lm), repr(lm), logits(lm, PROMPT), every_head(lm)[1]

    def fail(module, args):
        passes.append(f"going on from another both: {head}" in repr(lm))
        if error and passes[-1]:
            raise error

    with lm.edited() as edit, pytest.raises(error) if error else nullcontext():
        edit.hook(lm.layers[1].register_forward_pre_hook, fail)
        ga.patch_state(lm, [head], *asked(lm), late(lm), "both")
    assert passes[-1] and repr(lm) == name and not lm.edits and lm.running is None
    assert_untouched(lm, before)
    assert torch.equal(logits(lm, PROMPT), unpatched)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"heads": []}, "no heads given: name at least one"),
        ({"heads": ["L0H12"]}, "L0H12: layer 0 has heads 0–11"),
        ({"heads": ["L0H5", "L1H3"]}, "L1H3 is a head of attention: it keeps no state"),
        ({"sources": []}, "3 examples and 0 sources: expected one source for each"),
        ({"examples": [], "sources": []}, "0 examples and 0 sources"),
        ({"at": "closing"}, "8 positions: a state is exchanged at one position"),
        ({"at": lambda example: []}, "0 positions"),
        ({"at": lambda example: [99]}, "position 99: the prompt of this mmlu example has positions"),
        ({"cache": "ssm"}, 'cache=\'ssm\': expected "state", "conv" or "both"'),
    ],
)
def test_exchanges_that_make_no_sense_are_refused(changed, message, tokenizer):
    """A model whose layers have four heads of attention before eight of an SSM says what is wrong."""
    lm = families.build("falcon_h1", tokenizer)
    before, (examples, sources) = footprint(lm), asked(lm)
    usual = {"heads": ["L0H4"], "examples": examples, "sources": sources, "at": "last"}
    with pytest.raises(ValueError, match=message):
        ga.patch_state(lm, **usual | changed)
    assert_untouched(lm, before)


@pytest.mark.parametrize(
    "family, n, layer, at, message",
    [
        ("bamba", 5, 1, "last", r"layer 1 of bamba keeps no state: layers with an SSM are \[0, 2\]"),
        ("llama", 5, 0, "last", "layer 0 of llama keeps no state"),
        ("mamba", 1, 0, "closing", "8 positions"),
        ("mamba", 0, 0, "last", "no examples to read the state of"),
    ],
)
def test_states_that_no_layer_keeps_are_not_read(family, n, layer, at, message, tokenizer):
    lm = families.build(family, tokenizer)
    with pytest.raises(ValueError, match=message):
        ga.read_state(lm, questions(lm)[:n], layer, at)
