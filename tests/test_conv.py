"""The short convolution without its past taps: against weight surgery, a formula, and steps that forget."""

from contextlib import nullcontext
from copy import deepcopy

import by_hand
import families
import pytest
import torch
from by_hand import after_a_shot, close, gap, questions
from conftest import logits
from test_heads import PROMPT, assert_untouched, footprint
from test_ssm import gated, output
from torch import nn
from torch.nn.functional import silu
from two_halves import asked, build, every_head, kept, late, read, ssms, teams

import ga_utils as ga

TAPS = dict.fromkeys(["mamba", "falcon_mamba", "mamba2", "nemotron_h"], "conv_kernel") | dict.fromkeys(
    families.DELTANETS, "linear_conv_kernel_dim"
)


def convolutions(lm: ga.LM) -> list[nn.Conv1d]:
    return [module for module in lm.model.modules() if isinstance(module, nn.Conv1d)]


def operated(lm: ga.LM, layers: list[int] | None = None) -> ga.LM:
    """Independent of `ablate_conv`: a copy of the model whose past taps are zero."""
    copy = ga.wrap(deepcopy(lm.model), lm.tokenizer, name=lm.name)
    for layer in range(lm.n_layers) if layers is None else layers:
        for module in copy.layers[layer].modules():
            if isinstance(module, nn.Conv1d):
                module.weight.data[:, :, :-1] = 0
    return copy


@pytest.mark.parametrize("family", families.SSMS + families.DELTANETS)
def test_it_is_zeroing_the_past_taps(family, tokenizer):
    """Of all layers, and of each alone; afterwards all is bit for bit as before, down to the same tensors."""
    lm = families.build(family, tokenizer)
    before, whole = footprint(lm), logits(lm, PROMPT)
    weights = [module.weight for module in convolutions(lm)]
    found = []
    for layers in (None, *([spot.layer] for spot in ssms(lm))):
        with ga.ablate_conv(lm, layers):
            found.append(logits(lm, PROMPT))
        assert (found[-1] - logits(operated(lm, layers), PROMPT)).abs().max() < 1e-5
        assert all((found[-1] - other).abs().max() > 1e-2 for other in (whole, *found[:-1]))
    assert_untouched(lm, before)
    assert all(module.weight is weight for module, weight in zip(convolutions(lm), weights))
    assert torch.equal(logits(lm, PROMPT), whole)


@pytest.mark.parametrize("family", families.SSMS)
def test_each_token_is_scaled_and_shifted_by_itself(family, tokenizer):
    """z of every layer from what enters it: act(w[-1] x + bias), scan, and the module's own gate and norm."""
    lm = by_hand.build(family, tokenizer)
    inputs, z = {}, {}
    with ga.ablate_conv(lm), lm.edited() as edit:
        for mixer in [mixer for mixer in lm.mixers if mixer.kind != "attention"]:

            def before(module, args, kwargs, layer=mixer.layer):
                inputs[layer] = (args[0] if args else kwargs["hidden_states"])[0]

            edit.hook(mixer.module.register_forward_pre_hook, before, with_kwargs=True)
            mixer.hook_z(edit, lambda z_, layer=mixer.layer: z.update({layer: z_[0]}))
        logits(lm, PROMPT)
        scans = {layer: ga.scan(lm, PROMPT, layer) for layer in inputs}
    for mixer in [mixer for mixer in lm.mixers if mixer.kind != "attention"]:
        module, hidden, scan = mixer.module, inputs[mixer.layer], scans[mixer.layer]
        projected = module.in_proj(hidden * getattr(module, "ssm_in_multiplier", 1))
        projected = projected * module.mup_vector[0] if hasattr(module, "mup_vector") else projected
        first = module.out_proj.in_features if mixer.kind == "mamba2" and not hasattr(module, "z_bias") else 0
        read = projected[:, first:][:, : len(module.conv1d.weight)]
        convolved = module.conv1d.weight[:, 0, -1] * read + module.conv1d.bias
        convolved = convolved if hasattr(module, "z_bias") else silu(convolved)
        parts = [scan.x] if mixer.kind == "mamba1" else [scan.x, scan.B, scan.C]
        operands = torch.cat([part.flatten(1) for part in parts], dim=1)
        assert (operands - convolved).abs().max() < close(family)
        expected = gated(mixer, output(scan), hidden)
        assert (z[mixer.layer] - expected).abs().max() < close(family) * max(1, expected.abs().max())


@pytest.mark.parametrize("family", families.SSMS + families.DELTANETS)
def test_it_is_forgetting_the_convolutions_cache_at_every_step(family, tokenizer):
    """Hugging Face's model reads token by token, and the last inputs that it keeps are zeroed before each."""
    lm = build(family, tokenizer)
    ids = lm.encode(PROMPT)[0].tolist()

    def forget(cache):
        for spot in ssms(lm):
            kept(cache, spot.layer)["conv"].zero_()

    steps, whole = read(lm, ids, step=1, before=forget)[0], read(lm, ids)[0]
    with ga.ablate_conv(lm):
        found = read(lm, ids)[0]
    assert (found - steps).abs().max() < close(family) * 10 and (found - whole).abs().max() > 0.1


@pytest.mark.parametrize("family", families.SSMS + families.DELTANETS)
def test_scores_are_those_of_the_operated_model(family, tokenizer):
    """Alone, and in a batch that begins with a shot that all share; by hand every text runs whole."""
    lm = build(family, tokenizer)
    surgery = operated(lm)
    asked = questions(lm)[1:4]
    for examples, batch_size in ((asked, 1), (after_a_shot(asked), "auto")):
        expected = [by_hand.logprobs(surgery, example) for example in examples]
        with ga.ablate_conv(lm):
            assert gap(ga.evaluate(lm, examples, batch_size), expected) < close(family)
        assert gap(ga.evaluate(lm, examples), expected) > 0.1


@pytest.mark.parametrize("family", ["mamba", "llamba", "falcon_h1"])
def test_sweeps_and_maps_are_those_of_the_operated_model(family, tokenizer, tmp_path):
    """And a sweep's file that was made with the convolution on is refused with it off."""
    lm = build(family, tokenizer)
    surgery, examples, heads = operated(lm), questions(lm), teams(lm)[0] + every_head(lm)[-2:]
    layer, file = ssms(lm)[-1].layer, tmp_path / "sweep.sqlite"
    whole = ga.sweep_heads(lm, examples, heads, checkpoint=file, progress=False)
    with ga.ablate_conv(lm):
        found = ga.sweep_heads(lm, examples, heads, progress=False)
        screened = ga.sweep_heads(lm, examples, heads, method="screen", k=1, progress=False)
        A, scan = ga.attention_map(lm, PROMPT, layer), ga.scan(lm, PROMPT, layer)
        with pytest.raises(ValueError, match="weights"):
            ga.sweep_heads(lm, examples, heads, checkpoint=file, progress=False)
    expected = ga.sweep_heads(surgery, examples, heads, progress=False)
    assert gap(found.baseline, expected.baseline.logprobs.tolist()) < close(family)
    for head in heads:
        at = head.layer, head.head
        assert abs(found.logprob[at] - expected.logprob[at]) < close(family)
        assert abs(found.logprob[at] - whole.logprob[at]) > 1e-3
    right = ga.sweep_heads(surgery, examples, heads, method="screen", k=1, progress=False)
    assert abs(screened.estimate - right.estimate)[~torch.isnan(torch.tensor(right.estimate))].max() < 1e-4
    assert (A - ga.attention_map(surgery, PROMPT, layer)).abs().max() < 1e-5
    assert (A - ga.attention_map(lm, PROMPT, layer)).abs().max() > 1e-2
    assert (scan.x - ga.scan(surgery, PROMPT, layer).x).abs().max() < 1e-5


@pytest.mark.parametrize("family", families.SSMS + families.DELTANETS)
def test_it_nests_with_itself_and_with_disabled_heads(family, tokenizer):
    """Each edit adds to those around it, in either order, and takes only itself off."""
    lm = families.build(family, tokenizer)
    before, heads, layers = footprint(lm), teams(lm)[0], [spot.layer for spot in ssms(lm)]
    first, both = operated(lm, layers[:1]), operated(lm, [layers[0], layers[-1]])
    with ga.ablate(both, heads):
        expected = logits(both, PROMPT)
    with ga.ablate_conv(lm, layers[:1]):
        with ga.ablate_conv(lm, iter([layers[-1], layers[0], layers[-1]])):
            with ga.ablate(lm, heads):
                assert (logits(lm, PROMPT) - expected).abs().max() < 1e-5
            assert (logits(lm, PROMPT) - expected).abs().max() > 1e-4
            assert (logits(lm, PROMPT) - logits(both, PROMPT)).abs().max() < 1e-5
        assert (logits(lm, PROMPT) - logits(first, PROMPT)).abs().max() < 1e-5
    with ga.ablate(lm, heads), ga.ablate_conv(lm, [layers[0], layers[-1]]):
        assert (logits(lm, PROMPT) - expected).abs().max() < 1e-5
    assert_untouched(lm, before)


@pytest.mark.parametrize("family", families.SSMS + families.DELTANETS)
def test_a_convolution_of_one_tap_stays_as_it_is(family, tokenizer):
    """It keeps no inputs, so exchanging them changes nothing, and the model still goes on from its cache."""
    changes = {TAPS.get(family, "mamba_d_conv"): 1}
    if family == "llamba":
        changes = {"ssm_cfg": families.CONFIGS["llamba"]["ssm_cfg"] | {"d_conv": 1}}
    lm = build(family, tokenizer, **changes)
    assert {module.weight.shape[-1] for module in convolutions(lm)} == {1}
    whole, (examples, sources) = logits(lm, PROMPT), (some[1:] for some in asked(lm))
    with ga.ablate_conv(lm):
        assert torch.equal(logits(lm, PROMPT), whole)
    unpatched = [by_hand.logprobs(lm, example) for example in examples]
    assert gap(ga.evaluate(lm, examples), unpatched) < 1e-4
    conv, both = (
        ga.patch_state(lm, every_head(lm), examples, sources, late(lm), what) for what in ("conv", "both")
    )
    assert gap(conv, unpatched) < 1e-4 < 1e-3 < gap(both, unpatched)


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["inside", "in a forward pass"])
def test_afterwards_all_is_as_before(error, where, tokenizer):
    """Whether the code inside ends or fails, nothing but `repr` has changed, and that only inside."""
    lm = families.build("mamba2", tokenizer)
    before, name, whole = footprint(lm), repr(lm), logits(lm, PROMPT)

    def fail(*_):
        assert "; convolution off: layers 0, 2" in repr(lm)
        if error:
            raise error

    expecting = pytest.raises(error) if error else nullcontext()
    with lm.edited() as edit, expecting, ga.ablate_conv(lm, [2, 0]):
        if where == "inside":
            fail()
        edit.hook(lm.layers[1].register_forward_pre_hook, fail)
        logits(lm, PROMPT)
    assert repr(lm) == name and not lm.edits
    assert_untouched(lm, before)
    assert torch.equal(logits(lm, PROMPT), whole)


def test_reset_puts_the_taps_back(tokenizer):
    """Two edits that a broken-off cell has left in force are undone, and their own end does no harm."""
    lm = families.build("bamba", tokenizer)
    before, name = footprint(lm), repr(lm)
    left = [ga.ablate_conv(lm, layers) for layers in ([0], None)]
    for context in left:
        context.__enter__()
    assert repr(lm) != name and "convolution off: layers 0; convolution off: layers 0, 2" in repr(lm)
    ga.reset(lm)
    assert repr(lm) == name
    assert_untouched(lm, before)
    for context in left[::-1]:  # and a second time, by their own end
        context.__exit__(None, None, None)
    assert_untouched(lm, before)


@pytest.mark.parametrize(
    "family, layers, message",
    [
        ("llama", None, "^llama has no short convolution: it has none at all"),
        ("llama", [0], "^llama has no short convolution: it has none at all"),
        ("bamba", [0, 1], "layer 1 of bamba has no short convolution: layers 0, 2 have one"),
        ("mamba", [7], "layer 7 of mamba has no short convolution: layers 0, 1, 2 have one"),
        ("mamba", [], "no layers given"),
    ],
)
def test_layers_without_a_convolution_are_refused(family, layers, message, tokenizer):
    """The message names the layer or the model, and the layers that have one."""
    lm = families.build(family, tokenizer)
    before = footprint(lm)
    with pytest.raises(ValueError, match=message), ga.ablate_conv(lm, layers):
        pass
    assert not lm.edits
    assert_untouched(lm, before)
