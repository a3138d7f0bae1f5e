"""How much memory an SSM layer takes in plain PyTorch, worked out from its shape before anything is loaded.

mamba-ssm's kernels keep a scan's intermediate tensors on the chip. Without them the scan is a dozen tensor
operations (Hugging Face's fallbacks, and our `ssd`), and most of the intermediate tensors stay in memory
until the function returns. The next layer reuses that memory, so a forward pass needs one layer's peak.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedConfig

# Before 5.18 Hugging Face's Mamba-2 fallback multiplied by broadcasting; since then it calls einsum.
BROADCASTS = Version(transformers.__version__) < Version("5.18")
DELTANET_CHUNK = 64  # positions, in Hugging Face's code and not in its configurations


@dataclass(frozen=True)
class ScanShape:
    """One layer's scan: "mamba1" (a head is one channel), "mamba2", "deltanet" (Hugging Face's) or "llamba"
    (ours).

    chunk_size: positions that are worked through as one matrix; a prompt is padded to whole chunks.
    """

    kind: str
    n_heads: int
    d_head: int
    d_state: int
    chunk_size: int = 1


def scan_shape(config: PreTrainedConfig) -> ScanShape | None:
    """The scan of a model's SSM layers, None for a model without any that the course knows."""
    config = config.get_text_config()
    match config.model_type:
        case "mamba" | "falcon_mamba":
            return ScanShape("mamba1", config.intermediate_size, 1, config.state_size)
        case "jamba":
            return ScanShape("mamba1", config.mamba_expand * config.hidden_size, 1, config.mamba_d_state)
        case "mamba2":
            return ScanShape(
                "mamba2", config.num_heads, config.head_dim, config.state_size, config.chunk_size
            )
        case "zamba2":
            heads = (config.n_mamba_heads, config.mamba_headdim)
            return ScanShape("mamba2", *heads, config.mamba_d_state, config.chunk_size)
        case "nemotron_h":
            heads = (config.mamba_num_heads, config.mamba_head_dim)
            return ScanShape("mamba2", *heads, config.ssm_state_size, config.chunk_size)
        case "bamba" | "falcon_h1" | "granitemoehybrid":
            heads = (config.mamba_n_heads, config.mamba_d_head)
            return ScanShape("mamba2", *heads, config.mamba_d_state, config.mamba_chunk_size)
        case "llamba":
            ssm = config.ssm_cfg
            d_head = ssm["expand"] * config.d_model // ssm["n_v_heads"]
            return ScanShape("llamba", ssm["n_v_heads"], d_head, ssm["d_state"], ssm["chunk_size"])
        case "qwen3_next" | "qwen3_5_text" | "qwen3_5_moe_text" | "olmo_hybrid":
            widths = (config.linear_value_head_dim, config.linear_key_head_dim)
            return ScanShape("deltanet", config.linear_num_value_heads, *widths, DELTANET_CHUNK)
    return None


def plain_scan_bytes(
    model: PreTrainedConfig | ScanShape, batch: int, length: int, dtype: torch.dtype = torch.float32
) -> int:
    """The most memory that one SSM layer's mixer holds at once without kernels, beside its weights.

    An estimate: it counts the large tensors that are alive at the worst moment of a forward pass without
    gradients. Measured on real mixers of random weights it is right to 10 %, for transformers 5.15 and 5.23;
    Gated DeltaNet's to 15 %, and for 5.15 up to a third too much.

    Args:
        model: a configuration, or the shape of its scan.
        batch: prompts. length: tokens in each, padding included.
        dtype: that of the weights.

    Returns:
        Bytes; 0 for a model without SSM layers that the course knows.
    """
    shape = model if isinstance(model, ScanShape) else scan_shape(model)
    if shape is None:
        return 0
    p, n, k = shape.d_head, shape.d_state, shape.chunk_size
    always32 = shape.kind in ("mamba2", "deltanet")
    wide = torch.float32 if always32 else torch.promote_types(dtype, torch.float32)
    # Numbers for each head and position: `scan` in the wide type, for whole chunks; `around` in `dtype`. For
    # each head `once` more, in the wide type.
    once = 0
    if shape.kind == "mamba1":
        scan = 3 * n  # exp(A dt), dt B and dt B x, each [batch, channel, pos, d_state]
        scan += 2  # the output before and after D x is added
        around = (
            2 + 1 + 2 + 2
        )  # in_proj's x and gate; x convolved; dt, softplus(dt); outputs in a list, stacked
    elif shape.kind == "deltanet":
        scan = 3 * k  # the decays, k kᵀ and q kᵀ
        scan += 4 * p + 5 * n  # v, beta v, what is written, o; q and four forms of k
        once = 4 * p * n + 2 * k * p  # the state, before and after a chunk; what is read from it
        around = 4 * p + 2 * n  # in_proj's q, k, v and gate, the convolution's
    elif shape.kind == "llamba":
        decayed = 3 * k + p + 2 * n  # C Bᵀ, the decays and their product; x, B, C
        joined = k + 4 * p + 3 * n  # the decays; x, y, the states' part and their sum; B, C and a copy of C
        scan = max(decayed, joined) + 4 * p * n / k  # one state for each chunk, four times
        around = (
            (2 * p + 2 * n) + (p + 2 * n) + 2 * n
        )  # in_proj's output; x, B, C convolved; B, C for all heads
    else:
        scan = 3 * k  # C Bᵀ, the decays L and their product
        if BROADCASTS:
            scan += k * max(n, p)  # C Bᵀ before its sum over d_state, or y before its sum over positions
            scan += 3 * p + 2 * n  # x, D x, y; B, C
        else:
            scan += (
                7 * p
            )  # x, D x, y in chunks, y from states (before and after the decay), their sum, its copy
            scan += 3 * n  # B, C, B decayed
            scan += 2 * p * n / k  # one state for each chunk, twice
        around = 3 * p  # in_proj's x and gate; x convolved
    chunks = -(-length // k)
    per_head = (chunks * k * scan + once) * wide.itemsize + length * around * dtype.itemsize
    return int(batch * shape.n_heads * per_head)
