"""Attention maps against Hugging Face's eager output and float64 by hand; scores against closed forms."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import families
import numpy as np
import pytest
import torch
from conftest import logits, random_llama
from test_heads import PROMPT, assert_untouched, footprint
from torch.utils._python_dispatch import TorchDispatchMode

import ga_utils as ga

LLAMA = families.CONFIGS["llama"] | {"head_dim": 8}
FAMILIES = {family: {} for family in families.CONFIGS} | {
    "mistral": LLAMA | {"sliding_window": 5},
    "gemma2": LLAMA | {"sliding_window": 5, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 3},
    "gpt_oss": LLAMA | {"sliding_window": 5, "num_local_experts": 2, "num_experts_per_tok": 1},
}


def build(family: str, tokenizer, dtype=torch.float32) -> ga.LM:
    """A random model; its attention sinks, if it has any, matter."""
    lm = families.build(family, tokenizer, dtype, **FAMILIES[family])
    for mixer in lm.mixers:
        if hasattr(mixer.module, "sinks"):
            mixer.module.sinks.data.normal_()
    return lm


def eager_weights(lm: ga.LM, prompt: str) -> list[torch.Tensor]:
    """Hugging Face's own weights of each attention layer: [n_heads, query, key]."""
    eager = copy.deepcopy(lm.model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        out = eager(**lm.tokenizer(prompt, return_tensors="pt"), output_attentions=True, use_cache=False)
    return [weights[0] for weights in out.attentions if weights is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_hugging_faces_eager_attention(family, tokenizer):
    """Grouped queries, a module that several depths share (Zamba2), windows, capped logits, sinks."""
    lm = build(family, tokenizer)
    before = footprint(lm)
    attention = [mixer for mixer in lm.mixers if mixer.kind == "attention"]
    expected = eager_weights(lm, PROMPT) if attention else []
    for mixer, weights in zip(attention, expected, strict=True):
        A = ga.attention_map(lm, PROMPT, mixer.layer, mixer.heads)
        assert A.dtype == torch.float32 and torch.equal(A, A.tril())
        torch.testing.assert_close(A, weights, atol=1e-6, rtol=0)
        sums = A.sum(-1)
        assert (sums < 0.99).any() if family == "gpt_oss" else torch.allclose(sums, torch.ones_like(sums))
    assert_untouched(lm, before)


def test_layers_that_share_one_module_are_told_apart(lm):
    alike = copy.deepcopy(lm)
    alike.layers[2].self_attn.load_state_dict(lm.layers[0].self_attn.state_dict())
    expected = eager_weights(alike, PROMPT)
    lm.layers[2].self_attn = lm.layers[0].self_attn
    for layer in (2, 0):
        torch.testing.assert_close(ga.attention_map(lm, PROMPT, layer), expected[layer], atol=1e-6, rtol=0)


class Largest(TorchDispatchMode):
    """Watches how large the largest tensor that is made is, in numbers."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        parts = out if isinstance(out, tuple | list) else [out]
        self.numel = max([self.numel, *(part.numel() for part in parts if isinstance(part, torch.Tensor))])
        return out


def test_a_long_prompt_is_read_a_few_heads_at_a_time(tokenizer):
    """And what comes out is the same."""
    lm, length = random_llama(tokenizer, kv_heads=2), 1900
    prompt = " apple lamp" * (length // 2)
    with Largest() as largest:
        A = ga.attention_map(lm, prompt, 2, [5, 0])
    assert largest.numel < 5 * length**2  # of 6 heads
    torch.testing.assert_close(A, eager_weights(lm, prompt)[2][[5, 0]], atol=1e-6, rtol=0)


def test_equals_rotary_attention_written_out_in_float64(tokenizer):
    lm = random_llama(tokenizer, kv_heads=2, dtype=torch.float64)
    attn, layer = lm.mixers[0].module, lm.layers[0]
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    x = layer.input_layernorm(lm.model.model.embed_tokens(ids))[0]
    q, k = attn.q_proj(x).view(-1, 6, 16), attn.k_proj(x).view(-1, 2, 16).repeat_interleave(3, dim=1)
    angle = torch.arange(len(x))[:, None].double() * 10000.0 ** (-torch.arange(8) / 8)  # RoPE, theta = 10,000

    def rotate(v):  # [pos, head, 16]: dimension i turns with dimension i + 8
        a, b = v[..., :8], v[..., 8:]
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    logit = torch.einsum("qhd,khd->hqk", rotate(q), rotate(k)) / 4
    expected = logit.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf).softmax(-1)
    assert torch.allclose(ga.attention_map(lm, PROMPT, 0).double(), expected, atol=1e-5)


def test_chosen_heads_come_in_the_order_asked_for_and_the_model_is_left_alone(lm):
    before = footprint(lm)
    whole = ga.attention_map(lm, PROMPT, 1)
    assert torch.equal(ga.attention_map(lm, PROMPT, 1, heads=[4, 0]), whole[[4, 0]])
    assert whole.dtype == torch.float32 and torch.allclose(whole.sum(-1), torch.ones(whole.shape[:2]))
    assert_untouched(lm, before)


def test_sees_an_ablation_of_an_earlier_layer(lm):
    before = ga.attention_map(lm, PROMPT, 2)
    with ga.ablate(lm, ["L0H0"]):
        assert not torch.allclose(ga.attention_map(lm, PROMPT, 2), before, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_looked_at_is_float32_and_a_float64_scan_keeps_its_digits(tokenizer, dtype):
    lm = families.build("zamba2", tokenizer, dtype)
    assert {ga.attention_map(lm, PROMPT, layer).dtype for layer in range(lm.n_layers)} == {torch.float32}
    scan = ga.scan(lm, PROMPT, 2)
    assert scan.x.dtype == scan.dt.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("interrupt", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("family", ["llama", "zamba2", "mamba2"])
def test_a_forward_pass_that_breaks_off_leaves_nothing(tokenizer, family, interrupt):
    lm = build(family, tokenizer)
    before, expected = footprint(lm), logits(lm, PROMPT)

    def fail(module, args):
        raise interrupt

    with pytest.raises(interrupt), lm.edited() as edit:
        edit.hook(lm.layers[-1].register_forward_pre_hook, fail)
        ga.attention_map(lm, PROMPT, lm.n_layers - 1, [0])
    assert not lm.edits
    assert_untouched(lm, before)
    assert torch.equal(logits(lm, PROMPT), expected)


def test_a_layer_that_does_not_use_the_attention_interface_is_named(lm):
    lm.mixers[1].module.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    with pytest.raises(RuntimeError, match="layer 1 of random does not compute its attention through"):
        ga.attention_map(lm, PROMPT, 1)


def loop(lm: ga.LM, examples: list[ga.Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Both scores from single attention maps, one example after the other."""
    gather = torch.zeros(lm.n_layers, lm.n_heads, 2, dtype=torch.float64)
    aggregate = torch.zeros(lm.n_layers, lm.n_heads, dtype=torch.float64)
    for example in examples:
        spans = ga.segments(lm, example)
        for mixer in lm.mixers:
            A = ga.attention_map(lm, example.prompt, mixer.layer, mixer.heads).double()
            if mixer.kind != "attention":
                A = A.abs() / A.abs().sum(-1, keepdim=True)
            for head, pattern in zip(mixer.heads, A):
                for s in spans:
                    for closing in (0, 1):
                        inside = pattern[s.end + closing, s.start : s.end].sum()
                        gather[mixer.layer, head, closing] += inside / len(spans)
                right = spans[example.answer].end
                aggregate[mixer.layer, head] += pattern[-1, right] + pattern[-1, right + 1]
    return gather.amax(-1) / len(examples), aggregate / len(examples)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "llamba", "zamba2", "falcon_h1"])
def test_scores_equal_a_loop_over_attention_maps(family, tokenizer):
    """However many prompts of different lengths run together; what goes to an attention sink stays there."""
    # float64, so that batching costs no digits; PyTorch's mixture of experts lacks it
    lm = build(family, tokenizer, torch.float32 if family == "gpt_oss" else torch.float64)
    examples = ga.tasks.kv_retrieval(lm, n_pairs=2, n=2) + ga.tasks.kv_retrieval(lm, n_pairs=6, n=2)
    examples += ga.tasks.mmlu(lm, n=2)
    for score, expected in zip((ga.gather_score, ga.aggregate_score), loop(lm, examples)):
        torch.testing.assert_close(torch.tensor(score(lm, examples)), expected, atol=1e-6, rtol=0)


def few_shot(lm: ga.LM, shots: int, n: int = 4) -> list[ga.Example]:
    """Questions of the tiny world after solved ones."""
    solved, asked = ga.tasks.mmlu(lm, n=5, seed=1)[:shots], ga.tasks.mmlu(lm, n=n, seed=2)
    before = "".join(f"{example.prompt}{example.choices[example.answer]}\n\n" for example in solved)
    return [replace(example, prompt=before + example.prompt) for example in asked]


def option(lm: ga.LM, prompt: str, letter: str) -> tuple[int, int]:
    """The first token of an option of the question asked last, and the token of its newline."""
    start = f"\n{prompt}".rindex(f"\n{letter}. ")
    token = lm.tokenizer(prompt).char_to_token
    return token(start), token(prompt.index("\n", start))


@pytest.mark.parametrize("shots", range(6))
def test_scores_of_a_head_that_attends_evenly(tokenizer, shots):
    """Its weights are 1 / (position + 1), so scores follow from where the options are."""
    lm = random_llama(tokenizer, kv_heads=2)
    lm.mixers[1].module.q_proj.weight.data[3 * 16 : 4 * 16] = 0  # L1H3
    examples = few_shot(lm, shots)
    gather, aggregate = torch.zeros(2), 0
    for example in examples:
        for letter in "ABCD":
            start, end = option(lm, example.prompt, letter)
            gather += (end - start) / torch.tensor([end + 1, end + 2]) / 4
        aggregate += 2 / len(tokenizer(example.prompt).input_ids)
    assert ga.gather_score(lm, examples)[1, 3] == pytest.approx(gather.max().item() / 4, abs=1e-6)
    assert ga.aggregate_score(lm, examples)[1, 3] == pytest.approx(aggregate / 4, abs=1e-6)


@contextmanager
def attending_to(lm: ga.LM, layer: int, position: int):
    """The last token attends to this position and the next, half each, in every head of a layer."""
    # The dimension that RoPE turns least, by 0.06 radians over 200 positions, carries queries and keys.
    strong = torch.zeros(16)
    strong[7] = 20

    def only_at(positions):
        def hook(module, args, output):
            new = torch.zeros_like(output).unflatten(-1, (-1, 16))
            new[:, positions] = strong
            return new.flatten(-2)

        return hook

    attention = lm.layers[layer].self_attn
    with lm.edited() as edit:
        edit.hook(attention.q_proj.register_forward_hook, only_at([-1]))
        edit.hook(attention.k_proj.register_forward_hook, only_at([position, position + 1]))
        yield


@pytest.mark.parametrize("shots", range(6))
def test_a_perfect_aggregate_head_scores_one(tokenizer, shots):
    lm = random_llama(tokenizer, kv_heads=2)
    (example,) = few_shot(lm, shots, n=1)
    _, closing = option(lm, example.prompt, "ABCD"[example.answer])
    with attending_to(lm, 1, closing):
        scores = ga.aggregate_score(lm, [example])
    assert scores[1].tolist() == pytest.approx([1] * 6) and scores[0].max() < 0.9


def test_sharpness_of_known_rows():
    n = 8
    even = torch.tril(torch.ones(n, n)) / torch.arange(1, n + 1)[:, None]
    one = torch.eye(n)
    half = torch.zeros(n, n)
    half[:, 0] = half[torch.arange(n), torch.arange(n)] = 1.0  # two keys of row 3: log 2 of log 4
    sharp = ga.sharpness(torch.stack([even, one, half, -3 * one]))
    assert torch.allclose(sharp[0, 1:], torch.zeros(n - 1), atol=1e-6)
    assert torch.allclose(sharp[1], torch.ones(n)) and torch.allclose(sharp[3], torch.ones(n))
    assert sharp[2, 3].item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda lm: ga.attention_map(lm, "A", 3), "this model has layers 0–2"),
        (lambda lm: ga.attention_map(lm, "A", 0, heads=[6]), "layer 0 has heads 0–5"),
        (lambda lm: ga.attention_map(lm, "A", 0, heads=[]), "no heads asked for"),
        (lambda lm: ga.sharpness(torch.zeros(3, 4, 5)), "as many queries as keys"),
        (lambda lm: ga.attention_map(lm, "A", 0, heads=["0", "x"]), "expected a list of numbers of heads"),
        (lambda lm: ga.attention_map(lm, " apple" * 14000, 0, range(6)), "would take 5 GB: name some"),
        (lambda lm: ga.gather_score(lm, []), "no examples"),
        (
            lambda lm: ga.gather_score(lm, ga.tasks.gsm8k(lm, n=1)),
            "the gsm8k prompt has no paragraph with a line for each of the choices",
        ),
    ],
)
def test_nonsense_is_refused_and_the_model_left_alone(lm, call, message):
    before, expected = footprint(lm), logits(lm, PROMPT)
    with pytest.raises(ValueError, match=message):
        call(lm)
    assert_untouched(lm, before)
    assert torch.equal(logits(lm, PROMPT), expected)


def test_scores_halve_their_batches_when_memory_runs_out(lm, monkeypatch):
    examples = ga.tasks.mmlu(lm, n=12)
    expected, failed, forward = ga.gather_score(lm, examples, progress=False), [], type(lm.model).forward

    def small(self, *args, **kwargs):
        if kwargs["input_ids"].numel() > 260:
            failed.append(kwargs["input_ids"].numel())
            raise torch.OutOfMemoryError("too much")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(lm.model), "forward", small)
    assert np.abs(ga.gather_score(lm, examples, progress=False) - expected).max() < 1e-6 and failed
    failed.clear()
    ga.aggregate_score(lm, examples, progress=False)
    assert not failed, "the halving is remembered"
