"""Steering against values, attention maps and scans put together by hand."""

from contextlib import ExitStack, contextmanager

import by_hand
import families
import pytest
import torch
from by_hand import chosen, close, gap, questions, some_heads
from test_attention import build as built_like
from test_heads import assert_untouched, footprint
from torch import nn
from torch.nn.functional import silu

import ga_utils as ga

ATTENTION = ["llama", "zamba2", "bamba", "jamba", "falcon_h1", "nemotron_h", "granitemoehybrid"]
OTHERS = ["gemma2", "gpt_oss"]  # a window of 5, capped logits; and attention sinks
NORMED = "falcon_h1, normed"
SHARED = "llama, one module at two depths"  # in transformers 5.15, Zamba2's depths share weights alone


def build(family: str, tokenizer) -> ga.LM:
    if family == SHARED:
        lm = by_hand.build("llama", tokenizer)
        lm.layers[2].self_attn = lm.layers[0].self_attn
        lm.continues = None  # both depths would keep their keys in one place of a cache
        return lm
    return built_like(family, tokenizer) if family in OTHERS else by_hand.build(family, tokenizer)


def off_by(family: str) -> float:
    return 1e-4 if family in OTHERS else close(family)  # in float32, experts included


def near(lm):
    """Two positions that a window of 5 holds."""
    return lambda example: [by_hand.last(lm, example) - 3, by_hand.last(lm, example) - 1]


@contextmanager
def watching(lm):
    """What v_proj or in_proj of each mixer was last called with: module -> [pos, width]."""
    seen = {}
    with ExitStack() as stack:
        for module in {spot.module for spot in by_hand.spots(lm)}:
            linear = module.in_proj if hasattr(module, "in_proj") else module.v_proj
            hook = linear.register_forward_pre_hook(lambda _, args, m=module: seen.update({m: args[0][0]}))
            stack.callback(hook.remove)
        yield seen


def values(spot, seen) -> torch.Tensor:
    """v of each head, [pos, head, d_head]; a key-value head serves several."""
    x, module = seen[spot.module], spot.module
    v = module.v_proj(x)
    if hasattr(module, "linear_v_adapter_list"):  # of Zamba2, one for each depth
        v = v + module.linear_v_adapter_list[module.layer_dic[spot.layer]](x)
    v = v.unflatten(-1, (-1, spot.d_head))
    return v.repeat_interleave(spot.n_heads // v.shape[1], dim=1)


def fetching(lm, heads, last: int, weights, seen):
    """A change by hand; weights(spot) -> those of the last row, [head, key]."""

    def change(spot, z):
        if spot.is_attention and spot.columns(heads).any():
            w, v = weights(spot), values(spot, seen)
            fetched = torch.einsum("hs,shd->hd", w.to(v), v[: w.shape[1]]).flatten()
            z[last] = torch.where(spot.columns(heads), fetched, z[last])
        return z

    return change


@pytest.mark.parametrize("family", ATTENTION + OTHERS)
def test_a_head_that_looks_at_one_position_writes_its_value(family, tokenizer):
    """Heads of all layers at once. An attention sink takes its part as ever, so here only of the others."""
    lm = build(family, tokenizer)
    examples = questions(lm)
    spots = [spot for spot in by_hand.spots(lm) if spot.is_attention]
    heads = [head for head in some_heads(lm) if any(spot.columns([head]).any() for spot in spots)]
    to = (lambda e: near(lm)(e)[:1]) if family in OTHERS else (lambda e: chosen(e)[:1])
    if family == "gpt_oss":
        for spot in spots:
            spot.module.sinks.data.fill_(-1e4)
    found, expected = ga.steer(lm, heads, examples, to), []
    with watching(lm) as seen:
        for e in examples:
            last = by_hand.last(lm, e)
            one = torch.eye(last + 1)[to(e)]
            change = fetching(lm, heads, last, lambda spot: one.expand(spot.n_heads, -1), seen)  # noqa: B023
            expected.append(by_hand.logprobs(lm, e, change))
    assert gap(found, expected) < off_by(family)
    assert gap(ga.evaluate(lm, examples), expected) > 50 * off_by(family)


@pytest.mark.parametrize("family", [*ATTENTION, *OTHERS, SHARED])
def test_several_positions_share_the_attention_as_they_did(family, tokenizer):
    """At one depth after the other, also where several depths share a module or its weights."""
    lm = build(family, tokenizer)
    examples, to = questions(lm), near(lm) if family in OTHERS else chosen
    spots = [spot for spot in by_hand.spots(lm) if spot.is_attention]
    if family == "gpt_oss":
        for spot in spots:
            spot.module.sinks.data.fill_(4.0)  # a sink's share is 1 - row.sum(), which must not be rounding
    for spot in spots:
        heads = [ga.Head(spot.layer, 1), ga.Head(spot.layer, 2)]
        found, expected = ga.steer(lm, heads, examples, to), []
        for e in examples:
            last = by_hand.last(lm, e)
            row = ga.attention_map(lm, e.prompt + e.choices[0], spot.layer, range(4))[:, last, : last + 1]
            masked = torch.zeros_like(row)
            masked[:, to(e)] = row[:, to(e)]
            sink = 1 - row.sum(-1, keepdim=True) if family == "gpt_oss" else 0
            weights = masked / (masked.sum(-1, keepdim=True) + sink)
            with watching(lm) as seen:
                change = fetching(lm, heads, last, lambda spot: weights, seen)  # noqa: B023
                expected.append(by_hand.logprobs(lm, e, change))
        assert gap(found, expected) < off_by(family)
        assert gap(ga.evaluate(lm, examples), expected) > 50 * off_by(family)


@pytest.mark.parametrize("family", [*families.CONFIGS, *OTHERS])
def test_a_head_that_may_look_everywhere_changes_nothing(family, tokenizer):
    lm = build(family, tokenizer)
    examples = questions(lm)
    heads = some_heads(lm)
    found = ga.steer(lm, heads, examples, lambda example: range(by_hand.last(lm, example) + 1))
    assert gap(found, ga.evaluate(lm, examples).logprobs.tolist()) < off_by(family)
    nearly = ga.steer(lm, heads, examples, lambda example: range(by_hand.last(lm, example)))
    assert gap(nearly, ga.evaluate(lm, examples).logprobs.tolist()) > 10 * off_by(family)


def steered_scan(lm, example, spot, heads, to: list[int], last: int) -> torch.Tensor:
    """The scan's output at the last position, [n_heads * d_head], if its row had these entries alone."""
    scan = ga.scan(lm, example.prompt + example.choices[0], spot.layer)
    y = []
    for i in range(spot.n_heads):
        row = scan.matrix([i])[0, last]
        if ga.Head(spot.layer, spot.first + i) in heads:
            kept = torch.zeros_like(row)
            kept[to] = row[to]
            row = kept / kept.abs().sum() * row.abs().sum()
        y.append(row @ scan.x[:, i] + scan.D[i] * scan.x[last, i])
    return torch.cat(y)


def gate(spot, x: torch.Tensor) -> torch.Tensor:
    """What y is multiplied by in mixers without a norm, [pos, n_heads * d_head]; x enters in_proj."""
    out, inner = spot.module.in_proj(x), spot.linear.in_features
    if hasattr(spot.module, "x_proj"):  # Mamba-1
        return silu(out[:, inner:])
    if hasattr(spot.module, "z_bias"):  # Llamba
        return silu(out[:, -spot.n_heads - inner : -spot.n_heads] + spot.module.z_bias)
    return silu((out * spot.module.mup_vector[0])[:, :inner])  # Falcon-H1


@pytest.mark.parametrize("family", [*families.SSMS, NORMED])
def test_an_ssm_looks_at_some_positions_as_much_as_at_all(family, tokenizer):
    """What the scan gives is put together from its operands; Hugging Face's own norm, where there is one, is
    called on that.
    """
    if family == NORMED:
        lm = families.build("falcon_h1", tokenizer, torch.float64, mamba_rms_norm=True)
    else:
        lm = by_hand.build(family, tokenizer)
    examples, ssms = questions(lm)[1:4], [spot for spot in by_hand.spots(lm) if not spot.is_attention]
    for spot in (ssms[0], ssms[-1]):
        heads = [head for head in some_heads(lm) if spot.columns([head]).any()]
        found, expected = ga.steer(lm, heads, examples, near(lm)), []
        for e in examples:
            last = by_hand.last(lm, e)
            y = steered_scan(lm, e, spot, heads, near(lm)(e), last)
            normed = getattr(spot.module, "norm", None)
            normed = None if isinstance(normed, nn.Identity) else normed

            def before_norm(module, args, y=y, last=last):
                scanned = args[0].clone()
                scanned.view(-1, len(y))[last] = y
                return (scanned, *args[1:])

            def change(here, z, y=y, last=last, normed=normed):
                if here.module is spot.module and normed is None:  # noqa: B023
                    z[last] = y * gate(here, seen[here.module])[last]  # noqa: B023
                return z

            with watching(lm) as seen, ExitStack() as stack:
                if normed is not None:
                    stack.callback(normed.register_forward_pre_hook(before_norm).remove)
                expected.append(by_hand.logprobs(lm, e, change))
        assert gap(found, expected) < close(family)
        assert gap(ga.evaluate(lm, examples), expected) > 10 * close(family)


@pytest.mark.parametrize("family", ["llama", "llamba", "falcon_mamba", "mamba2"])
def test_heads_that_are_disabled_stay_so(family, tokenizer):
    """Against a model whose output projection lacks the other head of the same layer."""
    lm = by_hand.build(family, tokenizer)
    spot, examples = by_hand.spots(lm)[1], questions(lm)[:3]
    weight = spot.linear.weight.data.clone()
    with ga.ablate(lm, [ga.Head(1, 2)]):
        found = ga.steer(lm, [ga.Head(1, 1)], examples, near(lm))
    spot.linear.weight.data[:, spot.columns([ga.Head(1, 2)])] = 0
    expected = ga.steer(lm, [ga.Head(1, 1)], examples, near(lm)).logprobs.tolist()
    assert gap(found, expected) < close(family)
    spot.linear.weight.data.copy_(weight)
    assert gap(ga.steer(lm, [ga.Head(1, 1)], examples, near(lm)), expected) > 10 * close(family)


def test_an_ssm_head_that_gives_nothing_can_not_be_steered(tokenizer):
    lm = families.build("mamba2", tokenizer)
    for parameter in (lm.mixers[1].module.conv1d.weight, lm.mixers[1].module.conv1d.bias):
        parameter.data[64:] = 0  # B and C
    before = footprint(lm)
    with pytest.raises(ValueError, match=r"L1: a head gives nothing at all to positions \[17, "):
        ga.steer(lm, ["L1H0"], questions(lm)[:1], lambda example: [17, 18])
    assert not lm.edits
    assert_untouched(lm, before)


def test_what_is_nearly_forgotten_can_be_looked_at_as_well(tokenizer):
    """Its entries lie near 1e-41, whose inverse is infinite in float32."""
    lm, exact = (families.build("mamba2", tokenizer, dtype) for dtype in (torch.float32, torch.float64))
    (example,) = questions(lm)[:1]
    lm.mixers[0].module.A_log.data.zero_()
    lm.mixers[0].module.dt_bias.data.fill_(1.4)
    exact.model.load_state_dict(lm.model.state_dict())
    entries = ga.attention_map(lm, example.prompt, 0, [1])[0, -1, 2:4]
    assert 0 < entries.abs().max() < 1e-40
    found, right = (ga.steer(m, ["L0H1"], [example], lambda e: [2, 3]) for m in (lm, exact))
    assert gap(found, right.logprobs.tolist()) < 1e-3


def test_positions_out_of_a_sliding_window_are_refused(tokenizer):
    lm = build("gemma2", tokenizer)
    windowed = [ga.Head(0, 0)]  # its first layer has a window of 5, its second none
    with pytest.raises(ValueError, match=r"positions \[1\]: .* window that does not reach them"):
        ga.steer(lm, windowed, questions(lm), lambda e: [1])
    assert lm.edits == []
