"""Implicit attention: the matrix that an SSM multiplies its values by (*hidden attention*, Ali et al. 2024).

An SSM is written as a recurrence over a state h, but its output is linear in the values x that go in:

    h[t] = exp(A * dt[t]) * h[t-1] + dt[t] * B[t] * x[t]        y[t] = C[t] . h[t] + D * x[t]

Unrolled, y = M x + D x with M[t, s] = C[t] . (exp(A * (dt[s+1] + ... + dt[t])) * B[s]) * dt[s] for s <= t,
a causal matrix that depends on the prompt, as attention's does. Its rows need not sum to 1 nor be positive.
In Mamba-2 (arXiv 2405.21060, where this form is L ∘ (C Bᵀ)) A is one number for each head. In Mamba-1 it is
one for each channel and state, so every channel has a matrix of its own. The values x have been through the
short convolution.

The operands are computed from a mixer's parameters and its input. They can't be hooked inside the mixer:
Hugging Face calls the convolution and the scan as functions, which no hook sees and which CUDA kernels may
replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

BLOCK = 256  # rows of a matrix that are made at a time


@dataclass(frozen=True)
class Scan:
    """The operands of a scan, for one prompt, in float32 or float64.

    x: [pos, head, d_head], the values.
    B, C: [pos, group, d_state]; the heads of a group share them.
    dt: [pos, head], step sizes.
    A: [head], or [head, d_state] in Mamba-1; negative.
    D: [head], the skip connection.
    scale: [pos, head], the factor of B: dt, but 1 in Llamba, whose scan takes x as it is.
    """

    x: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    dt: torch.Tensor
    A: torch.Tensor
    D: torch.Tensor
    scale: torch.Tensor

    def group(self, head: int) -> int:
        """The group of B and C that serves a head."""
        return head * self.B.shape[1] // self.x.shape[1]

    def matrix(self, heads: Sequence[int], first: int = 0) -> torch.Tensor:
        """M without D for the heads asked for, [len(heads), query, key]; takes memory for these alone.

        first: only the rows of queries from here on.
        """
        # Sums in float64: the difference of two float32 sums over thousands of positions would lose digits.
        # On the CPU, since Apple's GPUs have no float64.
        total = self.dt[:, list(heads)].cpu().double().cumsum(0).T  # [head, pos]
        n = total.shape[1]
        M = torch.zeros(len(heads), n - first, n, dtype=self.x.dtype, device=self.x.device)
        for i, head in enumerate(heads):
            B = self.B[:, self.group(head)] * self.scale[:, head, None]
            C = self.C[:, self.group(head)]
            for start in range(first, n, BLOCK):
                stop = min(start + BLOCK, n)
                # Counted from the block's first row, sums are small where they matter: float32 is enough.
                since = (total[i, :stop] - total[i, start]).to(B)
                elapsed = (since[start:, None] - since).clamp_(
                    min=0
                )  # negative for later keys: cut off below
                weights = _weights(C[start:stop], B[:stop], elapsed, self.A[head])
                M[i, start - first : stop - first, :stop] = weights.tril_(start)
        return M


def _weights(C: torch.Tensor, B: torch.Tensor, elapsed: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """sum_n C[t, n] exp(A[n] elapsed[t, s]) B[s, n]: [query, key]."""
    if A.ndim == 0:  # Mamba-2: one decay for all states
        return (C @ B.T).mul_(elapsed.mul_(A).exp_())
    weights = torch.zeros_like(elapsed)
    for n, a in enumerate(A):
        weights += (elapsed * a).exp_().mul_(C[:, n, None]).mul_(B[None, :, n])
    return weights


@torch.no_grad()
def scan_of(mixer: nn.Module, hidden: torch.Tensor) -> Scan:
    """The operands of a mixer's scan on its input, hidden [pos, d_model], starting from an empty state."""
    if hasattr(mixer, "x_proj"):
        return _mamba1(mixer, hidden)
    if hasattr(mixer, "z_bias"):
        return _llamba(mixer, hidden)
    return _mamba2(mixer, hidden)


@torch.no_grad()
def gated(mixer: nn.Module, hidden: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What a mixer makes of its scan's output before `out_proj`: z [pos, n_heads * d_head].

    Mamba-2 multiplies y by a gate and normalises the product over several heads, so there z of one head
    depends a little on the others; Mamba-1 and Llamba have the gate alone.

    Args:
        hidden: the mixer's input, [pos, d_model]. y: [pos, n_heads * d_head], D's part included.
    """
    if hasattr(mixer, "x_proj"):
        return y * _wide(mixer.act(mixer.in_proj(hidden).chunk(2, dim=-1)[1]))
    if hasattr(mixer, "z_bias"):
        return y * _wide(F.silu(mixer.operands(hidden[None])[3][0] + mixer.z_bias))
    gate = _projected(mixer, hidden)[:, : mixer.out_proj.in_features]
    if getattr(mixer, "mamba_rms_norm", True):
        return _wide(mixer.norm(y, gate))
    return y * _wide(F.silu(gate))


def _projected(mixer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Mamba-2's gate, convolution's input, and step sizes, side by side: [pos, ...]."""
    projected = mixer.in_proj(hidden * getattr(mixer, "ssm_in_multiplier", 1))
    return projected * mixer.mup_vector[0] if hasattr(mixer, "mup_vector") else projected


def _mamba1(mixer: nn.Module, hidden: torch.Tensor) -> Scan:
    """Mamba; FalconMamba, which normalises B, C and dt; Jamba, which does so with learned weights."""
    x = mixer.in_proj(hidden).chunk(2, dim=-1)[0]
    x = mixer.act(_convolved(mixer, x))
    n_state, rank = mixer.ssm_state_size, mixer.time_step_rank
    dt, B, C = mixer.x_proj(x).split([rank, n_state, n_state], dim=-1)
    if hasattr(mixer, "dt_layernorm"):
        dt, B, C = mixer.dt_layernorm(dt), mixer.b_layernorm(B), mixer.c_layernorm(C)
    x, B, C, dt = (_wide(part) for part in (x, B, C, F.linear(dt, mixer.dt_proj.weight)))
    dt = F.softplus(dt + _wide(mixer.dt_proj.bias))
    A = -torch.exp(_wide(mixer.A_log))
    return Scan(x.unsqueeze(-1), B.unsqueeze(1), C.unsqueeze(1), dt, A, _wide(mixer.D), dt)


def _mamba2(mixer: nn.Module, hidden: torch.Tensor) -> Scan:
    """Mamba2, Zamba2, Bamba, NemotronH, GraniteMoeHybrid; FalconH1, which has multipliers besides."""
    projected = _projected(mixer, hidden)
    n_heads, inner = mixer.D.numel(), mixer.out_proj.in_features
    width = mixer.n_groups * mixer.ssm_state_size
    xBC, dt = projected[:, inner : 2 * inner + 2 * width], projected[:, 2 * inner + 2 * width :]
    x, B, C = mixer.act(_convolved(mixer, xBC)).split([inner, width, width], dim=-1)
    low, high = mixer.time_step_limit
    dt = F.softplus(_wide(dt) + _wide(mixer.dt_bias)).clamp(low, high)
    x, B, C = (
        _wide(part).unflatten(-1, shape)
        for part, shape in ((x, (n_heads, -1)), (B, (mixer.n_groups, -1)), (C, (mixer.n_groups, -1)))
    )
    return Scan(x, B, C, dt, -torch.exp(_wide(mixer.A_log)), _wide(mixer.D), dt)


def _llamba(mixer: nn.Module, hidden: torch.Tensor) -> Scan:
    """Llamba's discrete Mamba-2: the decay comes from the projection alone, and no step size scales x."""
    x, B, C, _, dt = mixer.operands(hidden[None])
    x, B, C, dt = (_wide(part[0]) for part in (x, B, C, dt))
    minus_one = -torch.ones_like(dt[0])
    return Scan(x, B, C, F.softplus(dt), minus_one, _wide(mixer.D), torch.ones_like(dt))


def _convolved(mixer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x [pos, channel] after the mixer's short causal convolution over positions, [pos, channel]."""
    weight, bias = mixer.conv1d.weight, mixer.conv1d.bias
    padded = F.pad(x.T, (weight.shape[-1] - 1, 0))
    return F.conv1d(padded[None], weight, bias, groups=len(weight))[0].T


def _wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32, the precision that scans run in; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()
