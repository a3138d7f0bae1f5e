"""Attention maps against Hugging Face's eager output and a float64 computation by hand; scores on known patterns."""

import copy

import pytest
import torch
from conftest import logits, random_llama
from test_heads import PROMPT, assert_untouched, footprint

import ga_utils as ga
from ga_utils import attention


def test_equals_hugging_faces_eager_attention(lm):
    eager = copy.deepcopy(lm.model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        out = eager(**lm.tokenizer(PROMPT, return_tensors="pt"), output_attentions=True)
    for layer in range(3):
        assert torch.equal(ga.attention_map(lm, PROMPT, layer), out.attentions[layer][0])


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


def test_segments_are_the_lines_of_the_choices(lm):
    for task in (ga.tasks.mmlu, ga.tasks.kv_retrieval):
        for example in task(lm, n=20, seed=2):
            ids = lm.tokenizer(example.prompt).input_ids
            for choice, segment in zip(example.choices, ga.segments(lm, example), strict=True):
                line = lm.tokenizer.decode(ids[segment.start : segment.end + 1])
                assert line.endswith("\n") and line.count("\n") == 1 and line + "" in example.prompt
                assert line.startswith(f"{choice.strip()}. ") or line.endswith(f": {choice.strip()}\n")


def test_scores_read_the_cells_they_say(lm, monkeypatch):
    """A made-up pattern: head 2 gathers 0.75 at newlines, head 3 0.5 a token later; head 5 aggregates 0.3 + 0.2."""
    (example,) = ga.tasks.mmlu(lm, n=1)
    spans = ga.segments(lm, example)
    length = len(lm.tokenizer(example.prompt).input_ids)
    A = torch.zeros(6, length, length)
    for s in spans:
        A[2, s.end, s.start : s.end] = 0.75 / (s.end - s.start)
        A[2, s.end, s.end] = 0.25
        A[3, s.end + 1, s.start] = A[3, s.end + 1, 0] = 0.5
    A[5, -1, spans[example.answer].end] = 0.3
    A[5, -1, spans[example.answer].end + 1] = 0.2
    A[5, -1, 0] = 0.5
    monkeypatch.setattr(
        attention, "_patterns", lambda lm, prompts, layers, keep: ({1: keep(A, 0)} for _ in prompts)
    )
    gather, aggregate = ga.gather_score(lm, [example]), ga.aggregate_score(lm, [example])
    assert gather[1, 2] == pytest.approx(0.75) and gather[1, 3] == pytest.approx(0.5)
    assert gather.sum() == pytest.approx(1.25)
    assert aggregate[1, 5] == pytest.approx(0.5) and aggregate.sum() == pytest.approx(0.5)


def test_scores_equal_a_loop_over_attention_maps(lm):
    examples = ga.tasks.kv_retrieval(lm, n_pairs=3, n=4)
    gather, aggregate = ga.gather_score(lm, examples), ga.aggregate_score(lm, examples)
    for layer in range(3):
        for head in range(6):
            at_newline, after, a = [], [], []
            for example in examples:
                A, spans = ga.attention_map(lm, example.prompt, layer)[head], ga.segments(lm, example)
                at_newline += [A[s.end, t].item() for s in spans for t in range(s.start, s.end)]
                after += [A[s.end + 1, t].item() for s in spans for t in range(s.start, s.end)]
                right = spans[example.answer].end
                a.append(A[-1, right].item() + A[-1, right + 1].item())
            assert gather[layer, head] == pytest.approx(max(sum(at_newline), sum(after)) / 12, abs=1e-5)
            assert aggregate[layer, head] == pytest.approx(sum(a) / 4, abs=1e-5)


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
        (
            lambda lm: ga.segments(lm, ga.Example("k: 17\nm: 4\n", ("17", "4"), 0, "kv")),
            "no token after its line",
        ),
        (lambda lm: ga.gather_score(lm, []), "no examples"),
        (
            lambda lm: ga.gather_score(lm, ga.tasks.gsm8k(lm, n=1)),
            "has no line of its own in the gsm8k prompt",
        ),
    ],
)
def test_nonsense_is_refused_and_the_model_left_alone(lm, call, message):
    before, expected = footprint(lm), logits(lm, PROMPT)
    with pytest.raises(ValueError, match=message):
        call(lm)
    assert_untouched(lm, before)
    assert torch.equal(logits(lm, PROMPT), expected)
