"""How much may go through a model at a time: estimated from its shape and the memory that is free, halved on
failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from ga_utils.models.device import GB, free_gb
from ga_utils.models.kernels import why_no_kernels
from ga_utils.models.lm import LM
from ga_utils.models.scan_memory import plain_scan_bytes, scan_shape

CPU_TOKENS = 1024  # of a forward pass; more leave the processor's caches (4,096: a third slower on two cores)
GPU_TOKENS = 1 << 15  # of a forward pass, where memory allows
LEAST_TOKENS = 256  # of a forward pass: where halving ends
MOST_GB = 4  # of a forward pass, beside the weights; larger batches are no faster


@dataclass(frozen=True)
class Budget:
    """What may go through the model together: so many tokens, in so many bytes beside the weights.

    token, read: an estimate of the bytes that each token, and each position at which answers are read, needs.
    kept: bytes that a token leaves in the cache, its keys and values in all layers.
    n_heads: attention heads of a layer, 0 without attention.
    plain_scans: whether SSM layers run without kernels, whose memory depends on the batch's shape.
    """

    tokens: int
    bytes: int
    token: int
    read: int
    kept: int
    n_heads: int
    plain_scans: bool


def budget(lm: LM) -> Budget:
    """As many tokens as suit the processor, and half of the memory that is free when this is first asked for.

    No more than `MOST_GB`, whatever is free.

    A token needs twice what all projections of the widest layer make of it; a read the logits, once more in
    float32, and as log-probabilities.
    """
    if lm.budget is None:
        each = lm.model.dtype.itemsize
        linears = [
            [m.out_features for m in layer.modules() if isinstance(m, nn.Linear)] for layer in lm.layers
        ]
        attention = [mixer for mixer in lm.mixers if mixer.kind == "attention"]
        scan = scan_shape(lm.model.config)
        kv_heads = getattr(lm.model.config.get_text_config(), "num_key_value_heads", None) or lm.n_heads
        lm.budget = Budget(
            tokens=CPU_TOKENS if lm.device.type == "cpu" else GPU_TOKENS,
            bytes=int(min(free_gb(lm.device) / 2, MOST_GB) * GB),
            token=2 * each * max(map(sum, linears)),
            read=(each + 8) * lm.model.config.get_text_config().vocab_size,
            kept=2 * each * sum(min(kv_heads, mixer.n_heads) * mixer.d_head for mixer in attention),
            n_heads=max((mixer.n_heads for mixer in attention), default=0),
            plain_scans=each != 2 or why_no_kernels(scan.kind if scan else "mamba") is not None,
        )
    return lm.budget


@contextmanager
def halving(lm: LM) -> Iterator[None]:
    """If memory runs out inside, half as much goes through the model at a time from then on: try again."""
    try:
        yield
    except torch.OutOfMemoryError:
        before = budget(lm)
        if before.tokens <= LEAST_TOKENS:
            raise
        lm.budget = replace(before, tokens=max(LEAST_TOKENS, before.tokens // 2), bytes=before.bytes // 2)
        torch.cuda.empty_cache()


def fits(lm: LM, n_rows: int, width: int, n_reads: int, before: int = 0) -> bool:
    """Whether so many rows of so many tokens may go through the model together.

    before: how many tokens of each row a cache holds. Counted twice: it is selected, then extended.

    PyTorch's slowest attention makes two float32 matrices for each head, scores and weights. A T4 gets no
    faster one for grouped queries.
    """
    allowed, model = budget(lm), lm.model
    attention = 2 * 4 * allowed.n_heads * n_rows * width * (before + width)
    scan = plain_scan_bytes(model.config, n_rows, width, model.dtype) if allowed.plain_scans else 0
    cache = 2 * n_rows * (before + width) * allowed.kept if before else 0
    needed = n_rows * width * allowed.token + n_reads * allowed.read + attention + scan + cache
    return n_rows * width <= allowed.tokens and needed <= allowed.bytes


def is_long(lm: LM, length: int) -> bool:
    """Whether a text of so many tokens is read with LongRoPE's factors for long texts (Phi-3, Phi-4).

    Hugging Face picks the factors by a batch's longest text and for all of it. So texts on either side don't
    run in one batch, and none goes on from keys that were made with the other factors.
    """
    found = getattr(lm.model.config.get_text_config(), "rope_parameters", None) or {}
    each = [found, *(part for part in found.values() if isinstance(part, dict))]  # for some, by kind of layer
    return any(
        part.get("rope_type") == "longrope" and length > part["original_max_position_embeddings"]
        for part in each
    )


def too_large_to_keep(lm: LM, n_bytes: int) -> bool:
    """Whether so many bytes are more than a quarter of the memory that is free on the model's GPU."""
    return lm.device.type != "cpu" and n_bytes > free_gb(lm.device) * GB / 4
