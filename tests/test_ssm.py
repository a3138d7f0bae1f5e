"""Implicit attention against Hugging Face's own mixers, and against the published recurrences in float64."""

import families
import pytest
import torch
import torch.nn.functional as F
from conftest import logits

import ga_utils as ga
from ga_utils.models.catalog import TINY
from ga_utils.ssm import Scan, scan_of

LENGTHS = [1, 2, 15, 16, 17, 300]  # the models' chunk size is 16


def ssm_mixers(lm):
    return [mixer for mixer in lm.mixers if mixer.kind != "attention"]


def run(mixer, hidden):
    """The module's own forward on hidden [pos, d_model]; returns what enters its out_proj, [pos, inner]."""
    seen = []
    with torch.no_grad():
        hook = mixer.out_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
        mixer.module(hidden[None])
        hook.remove()
    return seen[0]


def gated(mixer, y, hidden):
    """The module's own gate and norm, applied to the scan's output y [pos, inner]: what enters out_proj."""
    module, inner = mixer.module, y.shape[-1]
    if hasattr(module, "z_bias"):
        gate = module.in_proj(hidden)[:, -inner - module.n_v_heads : -module.n_v_heads] + module.z_bias
        return y.to(gate.dtype) * F.silu(gate)
    projected = module.in_proj(hidden * getattr(module, "ssm_in_multiplier", 1))
    if hasattr(module, "mup_vector"):
        projected = projected * module.mup_vector[0]
    if mixer.kind == "mamba1":
        return (y * F.silu(projected[:, inner:])).to(projected.dtype)
    if getattr(module, "mamba_rms_norm", True):
        return module.norm(y[None], projected[None, :, :inner])[0].to(projected.dtype)
    return (y * F.silu(projected[:, :inner])).to(projected.dtype)


def output(scan, heads=None):
    """M x + D x, [pos, inner]."""
    M = scan.matrix(range(scan.x.shape[1]))
    return (torch.einsum("hts,shp->thp", M, scan.x) + scan.D[:, None] * scan.x).flatten(1)


def close(ours, theirs, tolerance):
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", families.SSMS)
def test_the_matrix_times_x_is_the_modules_own_output(family, length, tokenizer):
    for mixer in ssm_mixers(families.build(family, tokenizer)):
        hidden = torch.randn(length, 32)
        close(gated(mixer, output(scan_of(mixer.module, hidden)), hidden), run(mixer, hidden), 1e-4)


@pytest.mark.parametrize("name", [name for name in TINY if "amba" in name])
def test_and_so_it_is_on_trained_weights(name):
    """Every layer with an SSM in every shipped model, on what reaches it while the model reads a prompt.
    (Gated DeltaNet: tests/test_deltanet.py.)"""
    lm = ga.load_model(name, device="cpu")
    (example,) = ga.tasks.kv_retrieval(lm, n_pairs=24, n=1, seed=9)
    for mixer in ssm_mixers(lm):
        inputs, seen = [], []
        hook = mixer.module.register_forward_pre_hook(
            lambda module, args, kwargs, inputs=inputs: inputs.append(
                args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        with mixer.on_z(seen.append):
            logits(lm, example.prompt)
        hook.remove()
        hidden = inputs[0][0]
        close(gated(mixer, output(scan_of(mixer.module, hidden)), hidden), seen[0][0], 1e-4)


@pytest.mark.parametrize("family", families.SSMS)
def test_bfloat16_inputs(family, tokenizer):
    """Projections round to bfloat16, the scan doesn't: equal up to that rounding."""
    lm = families.build(family, tokenizer)
    lm.model.to(torch.bfloat16)
    for mixer in ssm_mixers(lm):
        hidden = torch.randn(40, 32, dtype=torch.bfloat16)
        close(
            gated(mixer, output(scan_of(mixer.module, hidden)), hidden).float(),
            run(mixer, hidden).float(),
            3e-2,
        )


def selective_scan_reference(scan: Scan) -> torch.Tensor:
    """mamba-ssm's recurrence, one position at a time: [pos, head, d_head].

    Its `selective_scan_ref`, for Mamba-1, has a state for each channel. In Mamba-2 the channels of a head
    share A, B, C and dt.
    """
    n_heads, d_head = scan.x.shape[1:]
    each = n_heads // scan.B.shape[1]
    B, C = (part.repeat_interleave(each, dim=1) for part in (scan.B, scan.C))
    A = scan.A[:, None, None] if scan.A.ndim == 1 else scan.A[:, None]  # [head, 1, d_state]
    h = scan.x.new_zeros(n_heads, d_head, B.shape[-1])
    y = []
    for t in range(len(scan.x)):
        h = torch.exp(scan.dt[t, :, None, None] * A) * h
        h = h + (scan.scale[t, :, None] * B[t])[:, None] * scan.x[t, :, :, None]
        y.append((h * C[t][:, None]).sum(-1) + scan.D[:, None] * scan.x[t])
    return torch.stack(y)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", families.SSMS)
def test_in_float64_the_matrix_is_the_recurrence(family, length, tokenizer):
    mixer = ssm_mixers(families.build(family, tokenizer, dtype=torch.float64))[0]
    scan = scan_of(mixer.module, torch.randn(length, 32, dtype=torch.float64))
    assert scan.x.dtype == torch.float64
    close(output(scan), selective_scan_reference(scan).flatten(1), 1e-9)


@pytest.mark.parametrize("family", families.SSMS)
def test_attention_map_reads_the_layer_that_was_asked_for(family, tokenizer):
    """From the whole model, on a prompt: equal to the mixer's matrix on the input that it really got."""
    lm = families.build(family, tokenizer)
    lm.model.set_attn_implementation("eager")  # maps are read in it; other kernels round differently
    (example,) = ga.tasks.mmlu(lm, n=1)
    ids = lm.tokenizer(example.prompt, return_tensors="pt").input_ids
    mixer = ssm_mixers(lm)[-1]
    seen = []
    hook = mixer.module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        lm.model(input_ids=ids, use_cache=False)
    hook.remove()
    heads = [mixer.first + 3, mixer.first]
    A = ga.attention_map(lm, example.prompt, mixer.layer, heads)
    close(A, scan_of(mixer.module, seen[0][0]).matrix([3, 0]), 1e-5)
    assert A.dtype == torch.float32 and torch.equal(A, A.tril())


@pytest.mark.parametrize("decay", [-0.01, -1.0])
def test_far_apart_positions_keep_their_digits(decay):
    """Sums of step sizes over 2,048 positions: in float32 they would be off, by the fourth digit at worst."""
    torch.manual_seed(0)
    n = 2048
    scan = Scan(
        *(torch.randn(n, 1, 4) for _ in range(3)),
        torch.rand(n, 1),
        torch.tensor([decay]),
        torch.ones(1),
        torch.ones(n, 1),
    )
    exact = Scan(*(getattr(scan, name).double() for name in ("x", "B", "C", "dt", "A", "D", "scale")))
    close(scan.matrix([0]), exact.matrix([0]), 1e-5)


def test_of_a_thousand_channels_only_those_asked_for_are_made(tokenizer):
    lm = families.build("falcon_mamba", tokenizer)
    lm.model.base_model.layers = lm.model.base_model.layers[:1]
    with pytest.raises(ValueError, match=r"would take .* GB: name some, heads=\[0, 1\]"):
        ga.attention_map(lm, "apple " * 5000, 0)
    assert ga.attention_map(lm, "apple " * 50, 0, [7]).shape == (1, 51, 51)
