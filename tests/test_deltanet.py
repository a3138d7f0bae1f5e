"""Gated DeltaNet's matrix against Hugging Face's own recurrent form, and against the paper's in float64."""

import importlib
from unittest import mock

import by_hand
import families
import numpy as np
import pytest
import torch
from test_ssm import run

import ga_utils as ga
from ga_utils.ssm import conv_inputs, gated, scan_of

LENGTHS = [1, 2, 63, 64, 65, 300]


def deltanets(lm):
    return [mixer for mixer in lm.mixers if mixer.kind == "deltanet"]


def operands(mixer, hidden):
    """q, k, v, g and beta as Hugging Face's own layer hands them to its scan."""
    module, seen = importlib.import_module(type(mixer.module).__module__), []
    scan = module.torch_chunk_gated_delta_rule

    def noting(q, k, v, *args, **how):
        seen.append((q, k, v, how["g"], how["beta"]))
        return scan(q, k, v, *args, **how)

    # transformers before 5.18 binds the function to the layer, later ones look it up by name
    with mock.patch.object(module, "torch_chunk_gated_delta_rule", noting), torch.no_grad():
        if hasattr(mixer.module, "chunk_gated_delta_rule"):
            with mock.patch.object(mixer.module, "chunk_gated_delta_rule", noting):
                mixer.module(hidden[None])
        else:
            mixer.module(hidden[None])
    return seen[0], module.torch_recurrent_gated_delta_rule


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", families.DELTANETS)
def test_the_matrix_is_what_unit_impulses_bring_out_of_the_recurrent_form(family, length, tokenizer):
    lm = families.build(family, tokenizer)
    for mixer in deltanets(lm):
        hidden = torch.randn(length, 32)
        (q, k, v, g, beta), recurrent = operands(mixer, hidden)
        impulses = torch.eye(length).expand(1, mixer.n_heads, -1, -1).transpose(1, 2)  # v[t] of a head is e_t
        how = {"use_qk_l2norm_in_kernel": True, "initial_state": None, "output_final_state": False}
        expected = recurrent(q, k, impulses, g=g, beta=beta, **how)[0][0]
        scan = scan_of(mixer.module, hidden)
        M = scan.matrix(mixer.heads)
        assert (M.transpose(0, 1) - expected).abs().max() < 1e-4
        assert torch.equal(M, M.tril())
        first = length // 2
        assert torch.allclose(scan.matrix([2, 0], first), M[[2, 0], first:], atol=1e-6)
        assert torch.allclose(scan.x, v[0], atol=1e-6)


@pytest.mark.parametrize("name", ["tiny-deltanet", "tiny-qwen3-next"])
def test_and_so_it_is_on_trained_weights(name):
    """On what reaches each layer while the model reads a prompt."""
    lm = ga.load_model(name, device="cpu")
    (example,) = ga.tasks.kv_retrieval(lm, n_pairs=24, n=1, seed=9)
    with torch.no_grad():
        layers = lm.model(lm.encode(example.prompt), output_hidden_states=True, use_cache=False).hidden_states
    for mixer in deltanets(lm):
        hidden = mixer.block.input_layernorm(layers[mixer.layer][0]).detach()
        (q, k, v, g, beta), recurrent = operands(mixer, hidden)
        how = {"use_qk_l2norm_in_kernel": True, "initial_state": None, "output_final_state": False}
        expected = recurrent(q, k, v, g=g, beta=beta, **how)[0][0]
        scan = scan_of(mixer.module, hidden)
        found = torch.einsum("hts,shd->thd", scan.matrix(mixer.heads), scan.x)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def by_the_paper(scan, heads, state=None):
    """Equation 10 of arXiv 2412.06464, step by step: outputs [pos, head, d_head] and the last state."""
    S = torch.zeros(len(heads), scan.x.shape[-1], scan.k.shape[-1], dtype=scan.x.dtype)
    S, one = S if state is None else state, torch.eye(scan.k.shape[-1], dtype=scan.x.dtype)
    outputs = []
    for t in range(len(scan.x)):
        k, q = (part[t, [scan.group(head) for head in heads]] for part in (scan.k, scan.q))
        beta, alpha = scan.beta[t, heads, None, None], scan.log_alpha[t, heads, None, None].exp()
        erased = one - beta * torch.einsum("hn,hm->hnm", k, k)
        S = alpha * S @ erased + beta * torch.einsum("hd,hn->hdn", scan.x[t, heads], k)
        outputs.append(torch.einsum("hdn,hn->hd", S, q))
    return torch.stack(outputs), S


@torch.no_grad()
@pytest.mark.parametrize("length", [2, 65, 300])
@pytest.mark.parametrize("family", families.DELTANETS)
def test_matrix_state_and_continuation_are_the_papers_recurrence_in_float64(family, length, tokenizer):
    lm = families.build(family, tokenizer, torch.float64)
    for mixer in deltanets(lm):
        scan, heads = scan_of(mixer.module, torch.randn(length, 32, dtype=torch.float64)), [3, 1]
        expected, state = by_the_paper(scan, heads)
        M = scan.matrix(heads)
        assert (torch.einsum("hts,shd->thd", M, scan.x[:, heads]) - expected).abs().max() < 1e-9
        assert (scan.state(heads) - state).abs().max() < 1e-9
        again = by_the_paper(scan, heads, state)[0]
        assert (scan.resumed(heads, state) - again).abs().max() < 1e-9
        assert scan.beta.max() > 1 or family != "olmo_hybrid" or length < 65  # its betas go up to 2


@torch.no_grad()
@pytest.mark.parametrize("family", families.DELTANETS)
def test_convolution_matrix_and_gate_make_z(family, tokenizer):
    lm = families.build(family, tokenizer)
    for mixer in deltanets(lm):
        hidden = torch.randn(20, 32)
        scan = scan_of(mixer.module, hidden)
        o = torch.einsum("hts,shd->thd", scan.matrix(mixer.heads), scan.x).flatten(1)
        torch.testing.assert_close(gated(mixer.module, hidden, o), run(mixer, hidden), atol=1e-4, rtol=1e-4)
        before = conv_inputs(mixer.module, hidden)[9:12]  # the three positions before the twelfth
        rest = scan_of(mixer.module, hidden[12:], before)
        torch.testing.assert_close(rest.k, scan.k[12:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", families.DELTANETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bit_it_is_the_same_up_to_rounding(dtype, family, tokenizer):
    """Projections are rounded; in transformers 5.15 also keys and queries, once they have length 1."""
    lm = families.build(family, tokenizer)
    lm.model.to(dtype)
    for mixer in deltanets(lm):
        hidden = torch.randn(40, 32, dtype=dtype)
        scan = scan_of(mixer.module, hidden)
        o = torch.einsum("hts,shd->thd", scan.matrix(mixer.heads), scan.x).flatten(1)
        expected = run(mixer, hidden).float()
        found = gated(mixer.module, hidden, o).float()
        assert (found - expected).abs().max() < 3e-2 * expected.abs().max()


@torch.no_grad()
def test_a_convolution_in_another_dtype_runs_as_in_hugging_faces_layer(tokenizer):
    """Where a part of a model was cast, as before it is trained further."""
    lm = families.build("qwen3_5_text", tokenizer)
    lm.layers[0].linear_attn.conv1d.to(torch.float64)
    hidden = torch.randn(20, 32)
    (_, _, v, _, _), _ = operands(deltanets(lm)[0], hidden)
    torch.testing.assert_close(scan_of(lm.layers[0].linear_attn, hidden).x, v[0])


@torch.no_grad()
def test_an_olmo_hybrid_without_negative_eigenvalues_overwrites_once(tokenizer):
    lm = families.build("olmo_hybrid", tokenizer, linear_allow_neg_eigval=False)
    (mixer, *_), hidden = deltanets(lm), torch.randn(65, 32)
    beta = operands(mixer, hidden)[0][4]
    torch.testing.assert_close(scan_of(mixer.module, hidden).beta, beta[0])
    assert beta.max() < 1


@torch.no_grad()
@pytest.mark.parametrize("family", families.DELTANETS)
def test_heads_kept_silenced_at_the_last_row_and_swept_in_two_goes(family, tokenizer, tmp_path):
    """Of a linear layer, against a hook by hand on what enters its output projection."""
    lm = families.build(family, tokenizer)
    examples, mixer = ga.tasks.mmlu(lm, n=2), deltanets(lm)[0]
    one, width = ga.Head(mixer.layer, 1), mixer.d_head

    def right(columns, rows):
        def change(spot, z):
            if spot.layer == mixer.layer:
                z[rows, columns] = 0
            return z

        return np.array([by_hand.logprobs(lm, example, change) for example in examples])

    others = [c for c in range(width * mixer.n_heads) if not width <= c < 2 * width]

    def of_all(spot, z):
        if any(spot.layer == each.layer for each in deltanets(lm)):
            z[-1] = 0
        return z

    with ga.keep_only(lm, [one]):
        assert by_hand.gap(ga.evaluate(lm, examples), right(others, slice(None))) < 1e-4
    with ga.mask_last_row(lm, "deltanet"):
        masked = ga.evaluate(lm, examples)
    assert by_hand.gap(masked, [by_hand.logprobs(lm, e, of_all) for e in examples]) < 1e-4
    path = tmp_path / "sweep.sqlite"
    first = ga.sweep_heads(lm, examples, [one], checkpoint=path, progress=False)
    both = ga.sweep_heads(lm, examples, [one, ga.Head(mixer.layer, 2)], checkpoint=path, progress=False)
    alone = ga.Score.of(right(slice(width, 2 * width), slice(None)), examples).right_logprob
    assert first.logprob[one.layer, 1] == both.logprob[one.layer, 1] == pytest.approx(alone, abs=1e-4)


def test_maps_scores_and_states_of_a_hybrid(tokenizer):
    """Through the public functions: a linear layer's map, its scores, and its state exchanged."""
    lm = families.build("qwen3_next", tokenizer)
    prompt = ga.tasks.mmlu(lm, n=1)[0].prompt
    A = ga.attention_map(lm, prompt, 1, heads=[2])
    assert torch.allclose(A, ga.scan(lm, prompt, 1).matrix([2]), atol=1e-6)
    examples = ga.tasks.kv_retrieval(lm, n_pairs=2, n=4, seed=1)
    others = ga.tasks.kv_retrieval(lm, n_pairs=2, n=4, seed=2)
    at = [lambda e: [len(lm.encode(e.prompt)[0]) - 3]] * 2
    same = ga.patch_state(lm, ["L1H0"], examples, examples, at[0])
    plain, moved = ga.evaluate(lm, examples), ga.patch_state(lm, ["L1H0"], examples, others, at[0])
    assert abs(same.logprobs - plain.logprobs).max() < 1e-4 < abs(moved.logprobs - plain.logprobs).max()
