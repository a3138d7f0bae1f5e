"""The training scans are Hugging Face's, values and gradients."""

import families
import pytest
import torch

from ga_utils.training.scans import fast_scans


def logits_and_gradients(model, ids) -> list[torch.Tensor]:
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    logits.logsumexp(-1).mean().backward()
    return [logits] + [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 50])
@pytest.mark.parametrize("family", ["mamba2", "zamba2", "falcon_mamba"])
def test_same_logits_and_gradients(family, length, tokenizer):
    model = families.build(family, tokenizer).model.train()
    ids = torch.randint(3, 400, (2, length))
    theirs = logits_and_gradients(model, ids)
    with fast_scans():
        ours = logits_and_gradients(model, ids)
    for i, (own, their) in enumerate(zip(ours, theirs, strict=True)):
        tolerance = 1e-4 if i == 0 else 1e-3  # gradients add up more of float32's rounding
        assert (own - their).abs().max() <= tolerance * their.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("length", [1, 2, 13, 33, 64])
def test_falcon_mamba_agrees_in_float64(length, tokenizer, monkeypatch):
    """Hugging Face rounds some terms to float32; with that taken out, the two agree to 1e-9, parameter by
    parameter."""
    model = families.build("falcon_mamba", tokenizer, torch.float64).model.train()
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    ids = torch.randint(3, 400, (3, length))
    theirs = logits_and_gradients(model, ids)
    with fast_scans():
        ours = logits_and_gradients(model, ids)
    for own, their in zip(ours, theirs, strict=True):
        assert own.dtype == torch.float64
        assert (own - their).abs().max() <= 1e-9 * their.abs().max()
