"""Ablations against weight surgery and against Hugging Face's own smaller models; nothing is left behind."""

import copy

import pytest
import torch
from conftest import logits, random_llama
from torch import nn

import ga_utils as ga

PROMPT = "Question: what is the flag of Arvo?\nA. amber river\nB. river amber\nC. amber\nD. river\nAnswer:"


def zeroed_columns(lm: ga.LM, heads: list[ga.Head]) -> ga.LM:
    """Independent of hooks: a copy of the model with the heads' o_proj columns set to zero."""
    model = copy.deepcopy(lm.model)
    for head in heads:
        attention = model.model.layers[head.layer].self_attn
        attention.o_proj.weight.data[
            :, head.head * attention.head_dim : (head.head + 1) * attention.head_dim
        ] = 0
    return ga.wrap(model, lm.tokenizer)


def footprint(lm: ga.LM) -> tuple:
    """Everything a context manager could leave behind: parameters, hooks, modules, attention kind."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.model.modules()]
    weights = {name: p.clone() for name, p in lm.model.state_dict().items()}
    return weights, hooks, [id(m) for m in lm.model.modules()], lm.model.config._attn_implementation


def assert_untouched(lm: ga.LM, before: tuple) -> None:
    after = footprint(lm)
    assert before[1:] == after[1:]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


@pytest.mark.parametrize("names", [["L0H0"], ["L1H5"], ["L0H3", "L2H0", "L2H4"]])
def test_zero_ablation_is_zeroing_the_columns_of_the_output_projection(lm, names):
    heads = [ga.Head.parse(name) for name in names]
    whole = logits(lm, PROMPT)
    with ga.ablate(lm, names):
        ablated = logits(lm, PROMPT)
    assert (ablated - logits(zeroed_columns(lm, heads), PROMPT)).abs().max() < 1e-5
    assert (ablated - whole).abs().max() > 1e-2  # the head did something


def test_mean_ablation_adds_the_mean_as_a_constant(lm):
    """Layer 0, by hand: z = A v, its mean over reference tokens goes through the head's columns as a bias."""
    reference = ga.tasks.mmlu(lm, n=3, seed=5)
    layer, head, d = lm.model.model.layers[0], 4, 16
    group = head * lm.model.config.num_key_value_heads // 6
    z = []
    for example in reference:
        ids = lm.tokenizer(example.prompt, return_tensors="pt").input_ids
        v = layer.self_attn.v_proj(layer.input_layernorm(lm.model.model.embed_tokens(ids)))[0]
        z.append(ga.attention_map(lm, example.prompt, 0)[head] @ v[:, group * d : (group + 1) * d])
    mean = torch.cat(z).mean(0)
    surgery = zeroed_columns(lm, [ga.Head(0, head)])
    old, new = layer.self_attn.o_proj, nn.Linear(96, 48, bias=True)
    new.weight.data = surgery.model.model.layers[0].self_attn.o_proj.weight.data
    new.bias.data = (old.weight[:, head * d : (head + 1) * d] @ mean).detach()
    surgery.model.model.layers[0].self_attn.o_proj = new
    with ga.ablate(lm, [ga.Head(0, head)], mode="mean", reference=reference):
        assert (logits(lm, PROMPT) - logits(surgery, PROMPT)).abs().max() < 1e-4


def test_resample_takes_each_position_from_a_reference_prompt_and_is_the_same_for_every_batching(lm):
    reference = ga.tasks.mmlu(lm, n=4, seed=1)
    seen = []
    mixer = lm.mixers[1]
    with ga.ablate(lm, ["L1H2"], mode="resample", reference=reference):
        handle = mixer.out_proj.register_forward_pre_hook(
            lambda m, a: seen.append(a[0][0, :, mixer.columns(2)])
        )
        logits(lm, PROMPT)
        handle.remove()
    donors = []
    handle = mixer.out_proj.register_forward_pre_hook(
        lambda m, a: donors.append(a[0][0, :, mixer.columns(2)])
    )
    for example in reference:
        logits(lm, example.prompt)
    handle.remove()
    for position, z in enumerate(seen[0]):
        assert any(position < len(d) and torch.allclose(z, d[position], atol=1e-5) for d in donors)
    examples = ga.tasks.mmlu(lm, n=9, seed=2)
    with ga.ablate(lm, ["L1H2"], mode="resample", reference=reference):
        one, many = ga.evaluate(lm, examples, batch_size=1), ga.evaluate(lm, examples, batch_size=9)
    assert abs(one.logprobs - many.logprobs).max() < 1e-4


def test_keep_only_disables_the_others_of_the_layers_it_names(lm):
    others = [ga.Head(1, h) for h in range(6) if h != 3]
    with ga.keep_only(lm, ["L1H3"]):
        kept = logits(lm, PROMPT)
    assert (kept - logits(zeroed_columns(lm, others), PROMPT)).abs().max() < 1e-5


def test_skip_layers_equals_a_model_without_the_layer(lm):
    without = copy.deepcopy(lm.model)
    del without.model.layers[1]
    with ga.skip_layers(lm, [1]):
        assert torch.allclose(logits(lm, PROMPT), logits(ga.wrap(without, lm.tokenizer), PROMPT), atol=1e-5)


def test_truncate_equals_the_shorter_hugging_face_model(lm):
    config = copy.deepcopy(lm.model.config)
    config.num_hidden_layers = 2
    short = type(lm.model)(config)
    short.load_state_dict({k: v for k, v in lm.model.state_dict().items() if ".layers.2." not in k})
    with ga.truncate(lm, 2):
        assert lm.n_layers == 2 and len(lm.mixers) == 2
        assert torch.equal(logits(lm, PROMPT), logits(ga.wrap(short, lm.tokenizer), PROMPT))


CONTEXTS = {
    "ablate": lambda lm: ga.ablate(lm, ["L1H1"]),
    "ablate-mean": lambda lm: ga.ablate(lm, ["L1H1"], "mean", ga.tasks.mmlu(lm, n=2)),
    "ablate-resample": lambda lm: ga.ablate(lm, ["L1H1"], "resample", ga.tasks.mmlu(lm, n=2)),
    "keep_only": lambda lm: ga.keep_only(lm, ["L1H1"]),
    "skip_layers": lambda lm: ga.skip_layers(lm, [0, 2]),
    "truncate": lambda lm: ga.truncate(lm, 2),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_leaves_the_model_as_it_was(tokenizer, context, error):
    lm = random_llama(tokenizer, 2)
    before, expected = footprint(lm), logits(lm, PROMPT)
    try:
        with context(lm):
            assert not torch.equal(logits(lm, PROMPT), expected)
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert_untouched(lm, before)
    assert torch.equal(logits(lm, PROMPT), expected)


def test_contexts_nest(lm):
    heads = [ga.Head(0, 1), ga.Head(1, 2)]
    with ga.truncate(lm, 2), ga.ablate(lm, heads[:1]), ga.ablate(lm, heads[1:]):
        nested = logits(lm, PROMPT)
    surgery = zeroed_columns(lm, heads)
    with ga.truncate(surgery, 2):
        assert torch.allclose(nested, logits(surgery, PROMPT), atol=1e-5)


def test_a_failing_forward_inside_the_reference_run_leaves_no_hook(lm):
    before = footprint(lm)
    bad = [ga.Example("apple " * 10, (" 1", " 2"), 0, "x")]
    lm.model.model.norm.weight.data = lm.model.model.norm.weight.data[:-1]  # makes every forward fail
    with pytest.raises(RuntimeError), ga.ablate(lm, ["L0H0"], "mean", bad):
        pass
    assert footprint(lm)[1] == before[1]


def test_heads_are_named_as_in_the_paper():
    assert ga.Head.parse("L16H22") == ga.Head(16, 22)
    assert str(ga.Head(16, 22)) == "L16H22"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda lm: ga.ablate(lm, ["L3"]), "'L3' does not name a head"),
        (lambda lm: ga.ablate(lm, ["L99H0"]), "L99H0: this model has layers 0–2"),
        (lambda lm: ga.ablate(lm, ["L0H6"]), "L0H6: layer 0 has heads 0–5"),
        (lambda lm: ga.ablate(lm, [ga.Head(0, -1)]), "L0H-1: layer 0 has heads 0–5"),
        (lambda lm: ga.ablate(lm, "L0H1"), "expected a list of heads"),
        (
            lambda lm: ga.ablate(lm, ["L0H1"], mode="zeros"),
            "mode='zeros': expected one of zero, mean, resample",
        ),
        (lambda lm: ga.ablate(lm, ["L0H1"], mode="mean"), "needs reference="),
        (lambda lm: ga.keep_only(lm, []), "at least one head"),
        (lambda lm: ga.skip_layers(lm, [3]), "layer 3: this model has layers 0–2"),
        (lambda lm: ga.truncate(lm, 0), "this model has 3"),
        (lambda lm: ga.truncate(lm, 4), "this model has 3"),
    ],
)
def test_nonsense_is_refused_with_a_clear_error(lm, call, message):
    before = footprint(lm)
    with pytest.raises(ValueError, match=message), call(lm):
        pass
    assert_untouched(lm, before)
