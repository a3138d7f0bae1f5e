"""The training scans are Hugging Face's, values and gradients."""

import families
import pytest
import torch

from ga_utils.training.scans import fast_scans


@pytest.mark.parametrize("length", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("family", ["mamba2", "zamba2", "falcon_mamba"])
def test_same_logits_and_gradients(family, length, tokenizer):
    model = families.build(family, tokenizer).model.train()
    ids = torch.randint(3, 400, (2, length))
    results = []
    for fast in (False, True):
        model.zero_grad()
        if fast:
            with fast_scans():
                logits = model(input_ids=ids, use_cache=False).logits
        else:
            logits = model(input_ids=ids, use_cache=False).logits
        logits.logsumexp(-1).mean().backward()
        results.append([logits] + [p.grad for p in model.parameters() if p.grad is not None])
    for i, (ours, theirs) in enumerate(zip(results[1], results[0], strict=True)):
        tolerance = 1e-4 if i == 0 else 1e-3  # gradients add up more of float32's rounding
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1e-3)
