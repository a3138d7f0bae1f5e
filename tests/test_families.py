"""Every supported family: heads are where `Mixer` says, and disabling them is what weight surgery does."""

import copy
from contextlib import ExitStack, nullcontext
from itertools import product

import families
import pytest
import torch
from conftest import logits
from transformers import CONFIG_MAPPING

import ga_utils as ga

PROMPT = "Dictionary:\napple: 17\nlamp: 4\nQuestion: what is the value of lamp?\nAnswer:"
KINDS = {
    "llama": {"attention"},
    "llamba": {"mamba2"},
    "mamba": {"mamba1"},
    "falcon_mamba": {"mamba1"},
    "mamba2": {"mamba2"},
    "jamba": {"attention", "mamba1"},
} | dict.fromkeys(families.DELTANETS, {"attention", "deltanet"})


def alone(lm, layer):
    """A copy of the model in which no parameter of `layer` is tied to another layer's (Zamba2 ties its
    attention).
    """
    other = ga.wrap(copy.deepcopy(lm.model), lm.tokenizer)
    for mixer in other.mixers:
        if mixer.layer == layer:
            mixer.out_proj.weight = torch.nn.Parameter(mixer.out_proj.weight.detach().clone())
    return other


@pytest.mark.parametrize("family", families.CONFIGS)
def test_disabling_is_zeroing_columns_of_that_layer_alone(family, tokenizer):
    lm = families.build(family, tokenizer)
    before = logits(lm, PROMPT)
    assert {mixer.kind for mixer in lm.mixers} == KINDS.get(family, {"attention", "mamba2"})
    for mixer in lm.mixers:
        for head in (mixer.first, mixer.heads.stop - 1):
            cut = alone(lm, mixer.layer)
            (same,) = [m for m in cut.mixers if (m.layer, m.first) == (mixer.layer, mixer.first)]
            same.out_proj.weight.data[:, same.columns(head)] = 0
            with ga.ablate(lm, [ga.Head(mixer.layer, head)]):
                inside = logits(lm, PROMPT)
            torch.testing.assert_close(inside, logits(cut, PROMPT), atol=1e-5, rtol=1e-5)
            assert not torch.allclose(inside, before, atol=1e-6), f"L{mixer.layer}H{head} does nothing"
    assert torch.equal(logits(lm, PROMPT), before)


@pytest.mark.parametrize("family", families.CONFIGS)
def test_a_sweep_a_group_and_a_score(family, tokenizer):
    """Groups of heads (of channels, in Mamba-1) go together; padding and batching change nothing."""
    lm = families.build(family, tokenizer)
    examples = ga.tasks.mmlu(lm, n=4) + ga.tasks.knowledge(lm, n=4)
    mixer = lm.mixers[-1]
    group = [ga.Head(mixer.layer, head) for head in mixer.heads[:3]]
    with ga.ablate(lm, group):
        one, many = (ga.evaluate(lm, examples, batch_size=size).logprobs for size in (1, 8))
    assert torch.allclose(torch.tensor(one), torch.tensor(many), atol=1e-4, equal_nan=True)
    sweep = ga.sweep_heads(lm, examples, group, progress=False)
    assert len(sweep.top(10)) == 3
    scores = ga.gather_score(lm, examples[:2], progress=False)
    assert scores.shape == (lm.n_layers, lm.n_heads) and scores.min() >= 0 and scores.max() <= 1 + 1e-6


@pytest.mark.parametrize("family", families.CONFIGS)
def test_masking_the_last_row_leaves_all_rows_before_it(family, tokenizer):
    lm = families.build(family, tokenizer)
    before = logits(lm, PROMPT)
    for kind, rows in product({mixer.kind for mixer in lm.mixers}, (1, 3)):
        seen = []
        with ga.mask_last_row(lm, kind, rows), ExitStack() as watching:
            for mixer in lm.mixers:
                if mixer.kind == kind:
                    watching.enter_context(mixer.on_z(seen.append))
            inside = logits(lm, PROMPT)
        assert all((z[0, -rows:] == 0).all() and z[0, -rows - 1].any() for z in seen)
        torch.testing.assert_close(inside[:-rows], before[:-rows], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(inside[-1], before[-1], atol=1e-3)
    examples = ga.tasks.kv_retrieval(lm, n_pairs=2, n=2) + ga.tasks.kv_retrieval(lm, n_pairs=5, n=2)
    with ga.mask_last_row(lm, kind):
        one, many = (ga.evaluate(lm, examples, batch_size=size).logprobs for size in (1, 4))
    assert torch.allclose(torch.tensor(one), torch.tensor(many), atol=1e-4, equal_nan=True)


def test_a_model_without_attention_has_no_attention_row(tokenizer):
    with pytest.raises(ValueError, match="mamba2 has no 'attention' mixers to mask: it has mamba2"):
        ga.mask_last_row(families.build("mamba2", tokenizer)).__enter__()
    with pytest.raises(ValueError, match="rows=0: mask at least the last row"):
        ga.mask_last_row(families.build("mamba2", tokenizer), "mamba2", rows=0).__enter__()


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "llamba", "zamba2", "jamba"])
def test_the_last_row_stays_masked_while_generating_with_a_cache(family, tokenizer):
    lm = families.build(family, tokenizer)
    ids = tokenizer(
        [PROMPT, PROMPT.replace("apple: 17\n", "")], return_tensors="pt", padding=True, padding_side="left"
    )
    seen = []
    with (
        ga.mask_last_row(lm, lm.mixers[-1].kind),
        lm.mixers[-1].on_z(lambda z: seen.append(z[:, -1].clone())),
    ):
        lm.model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert len(seen) == 3 and not any(z.any() for z in seen)


def test_the_mask_may_be_given_by_position(tokenizer):
    lm = families.build("llama", tokenizer)
    ids, mask = torch.randint(3, 400, (1, 9)), torch.tensor([[1] * 6 + [0] * 3])
    seen = []
    with ga.mask_last_row(lm), lm.mixers[0].on_z(seen.append), torch.no_grad():
        lm.model(ids, mask)
    assert not seen[0][0, 5].any() and seen[0][0, 4].any()


@pytest.mark.parametrize(
    "family",
    [family for family in ("kimi_linear", "bailing_hybrid", "minimax") if family in CONFIG_MAPPING],
)
def test_a_model_that_would_be_seen_only_in_part_is_refused(family, tokenizer):
    """Some of its layers mix positions in a way that this package does not know."""
    values = families.ATTENTION | {"num_key_value_heads": 4}
    with pytest.raises(ValueError, match=r"is not supported: .*; layer \d is a .* of .*self_attn \("):
        families.build(family, tokenizer, **values, num_hidden_layers=4, num_experts=2, num_local_experts=2)


@pytest.mark.skipif("qwen4_exp_text" not in CONFIG_MAPPING, reason="a transformers without Qwen4-Exp")
@pytest.mark.parametrize("ngrams", [True, False])
def test_qwen4_exp_is_one_more_hybrid_whose_n_grams_stay(ngrams, tokenizer):
    """It wants a position for each row. Its n-grams have a convolution of their own, in no mixer."""
    values = {key: families.QWEN[key] for key in families.QWEN if key != "layer_types"} | families.EXPERTS
    values |= {"shared_expert_intermediate_size": 8, "hc_count": 2, "hc_lowrank": 4, "indexer_n_heads": 2}
    values |= {"indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64}
    values |= {"indexer_compress_ratio": 4, "layer_types": families.RECURRENT}
    if ngrams:
        values |= {"ple_layer_ids": [2], "ple_embed_dim": 16, "ngram_size": 3, "heads_per_ngram": 2}
        values |= {"ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 8}
        values |= {"split_ngram_parts": 2, "eos_token_id": 2}
    lm = families.build("qwen4_exp_text", tokenizer, **values)
    examples = ga.tasks.mmlu(lm, n=2)
    for example, found in zip(examples, ga.evaluate(lm, examples).logprobs):
        last = logits(lm, example.prompt)[-1].log_softmax(-1)
        right = [last[lm.tokenize([choice])[0][-1]].item() for choice in example.choices]
        assert found == pytest.approx(right, abs=1e-4)
    for mixer in lm.mixers:
        cut, head = alone(lm, mixer.layer), mixer.first
        (same,) = [m for m in cut.mixers if m.layer == mixer.layer]
        same.out_proj.weight.data[:, same.columns(head)] = 0
        with ga.ablate(lm, [ga.Head(mixer.layer, head)]):
            torch.testing.assert_close(logits(lm, PROMPT), logits(cut, PROMPT), atol=1e-4, rtol=1e-4)
    off = pytest.raises(ValueError, match="layer 1 has a convolution .*: ple.") if ngrams else nullcontext()
    with off, ga.ablate_conv(lm):
        pass


def test_an_mlp_layer_has_no_heads(tokenizer):
    with pytest.raises(ValueError, match="L1H0: layer 1 has no heads, only an MLP"):
        ga.ablate(families.build("nemotron_h", tokenizer), ["L1H0"]).__enter__()


def test_a_fused_kernel_that_swallows_the_output_projection_is_noticed(tokenizer):
    lm = families.build("mamba2", tokenizer)
    module = lm.mixers[1].module
    module.forward = lambda hidden_states, **kwargs: (
        hidden_states @ module.out_proj.weight @ module.out_proj.weight.T
    )
    with (
        ga.ablate(lm, ["L1H0"]),
        pytest.raises(RuntimeError, match="layer 1: Mamba2Mixer ran without calling"),
    ):
        logits(lm, PROMPT)
