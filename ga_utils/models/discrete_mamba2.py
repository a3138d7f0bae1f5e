"""Llamba's mixer, discrete Mamba-2, in plain PyTorch; read `DiscreteMamba2.forward` first, then `ssd`.

It mirrors `mixers/discrete_mamba2.py` in `cartesia_pytorch/Llamba` of cartesia-ai/edge at commit 95d8276.
Mamba-2 multiplies what it writes by a step size dt, and decays by exp(A dt). Here there is neither dt nor A:
the decay is exp(-softplus(decay)), from the projection alone, and x is written as it is. B and C have heads
of their own; a B and a C serve n_v_heads / n_qk_heads heads of x.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache

try:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
except ImportError:  # the optional extra `cuda`; `ssd` below does the same in plain PyTorch
    mamba_chunk_scan_combined = None


@dataclass
class LayerState:
    """What one layer remembers of the tokens so far.

    conv: the last inputs of its convolution, [batch, channel, 3]. ssm: the state, [batch, head, d_head,
        d_state]. borrowed: keys and values of attention that works in this layer (`ga_utils.hybrid`).
    """

    conv: torch.Tensor
    ssm: torch.Tensor
    borrowed: Cache | None = None

    def select(self, rows: torch.Tensor) -> LayerState:
        """The states of these rows of the batch, [row]; a row may be chosen several times."""
        borrowed = copy.deepcopy(self.borrowed)
        if borrowed is not None:
            borrowed.reorder_cache(rows)
        return LayerState(self.conv.index_select(0, rows), self.ssm.index_select(0, rows), borrowed)


def ssd(
    x: torch.Tensor,
    log_decay: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk: int,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mamba-2's scan in chunks: h[t] = exp(log_decay[t]) h[t-1] + B[t] x[t], y[t] = C[t] . h[t].

    Inside a chunk it is a matrix product, from chunk to chunk a recurrence (arXiv 2405.21060, section 6), so
    memory grows with length * chunk.

    Args:
        x: [batch, pos, head, d_head]. log_decay: [batch, pos, head], at most 0. B, C: [batch, pos, head,
            d_state].
        chunk: positions in a chunk; a speed setting, the result is the same.
        state: [batch, head, d_head, d_state] from before, or None.

    Returns:
        y [batch, pos, head, d_head] and the last state, computed in float32 (in float64 for float64 inputs).
    """
    length, wide = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    padding = -length % chunk
    # [batch, chunk, head, pos in chunk, ...]; padded positions neither decay nor add
    x, log_decay, B, C = (
        F.pad(part.to(wide), (0, 0) * (part.ndim - 2) + (0, padding))
        .unflatten(1, (-1, chunk))
        .transpose(2, 3)
        for part in (x, log_decay, B, C)
    )
    total = log_decay.cumsum(-1)
    # [batch, chunk, head, query, key]; the first tril keeps exp from overflowing above the diagonal
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).tril().exp().tril()
    y = (C @ B.mT * decay) @ x
    # What each chunk adds to the state: [batch, chunk, head, d_head, d_state]
    added = (x * (total[..., -1:] - total).exp().unsqueeze(-1)).mT @ B
    over_chunk = total[..., -1].exp()[..., None, None]
    h = torch.zeros_like(added[:, 0]) if state is None else state.to(wide)
    before = []
    for c in range(x.shape[1]):
        before.append(h)
        h = over_chunk[:, c] * h + added[:, c]
    y = y + C @ torch.stack(before, 1).mT * total.exp().unsqueeze(-1)
    return y.transpose(2, 3).flatten(1, 2)[:, :length], h


class DiscreteMamba2(nn.Module):
    """The mixer: y = SSM(conv(x), conv(B), conv(C), decay) + D x, gated, projected out."""

    def __init__(self, d_model, d_state, n_v_heads, n_qk_heads, expand, chunk_size, d_conv=4, **unused):
        """The arguments are the fields of the published `ssm_cfg`; `LlambaConfig` checks the unused ones."""
        super().__init__()
        self.d_inner, self.d_state, self.chunk_size = expand * d_model, d_state, chunk_size
        self.n_v_heads, self.n_qk_heads = n_v_heads, n_qk_heads
        width = self.d_inner + 2 * n_qk_heads * d_state
        self.in_proj = nn.Linear(d_model, width + self.d_inner + n_v_heads, bias=False)
        self.z_bias = nn.Parameter(torch.zeros(self.d_inner))
        self.conv1d = nn.Conv1d(width, width, d_conv, groups=width, padding=d_conv - 1)
        self.D = nn.Parameter(torch.ones(n_v_heads))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self.state_shape = (n_v_heads, self.d_inner // n_v_heads, d_state)

    def operands(
        self, u: torch.Tensor, mask: torch.Tensor | None = None, conv_state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """What the scan and the gate work on, for u [batch, pos, d_model].

        Args:
            mask: [batch, pos, 1], 0 at padding. conv_state: [batch, channel, 3], read and updated in place.

        Returns:
            x [batch, pos, n_v_heads, d_head], B and C [batch, pos, n_qk_heads, d_state], gate [batch, pos,
            d_inner], decay [batch, pos, n_v_heads]; a step keeps exp(-softplus(decay)) of the state.
        """
        width, kernel = self.conv1d.weight.shape[0], self.conv1d.weight.shape[-1]
        xBC, gate, decay = self.in_proj(u).split([width, self.d_inner, self.n_v_heads], dim=-1)
        before = xBC.new_zeros(len(u), width, kernel - 1) if conv_state is None else conv_state
        xBC = torch.cat([before, xBC.mT], dim=-1)
        if conv_state is not None:
            conv_state.copy_(xBC[..., xBC.shape[-1] - kernel + 1 :])
        xBC = F.conv1d(xBC, self.conv1d.weight, self.conv1d.bias, groups=width).mT
        if mask is not None:
            xBC = xBC * mask
        x, B, C = xBC.split([self.d_inner, *[self.n_qk_heads * self.d_state] * 2], dim=-1)
        heads = ((x, self.n_v_heads), (B, self.n_qk_heads), (C, self.n_qk_heads))
        return *(part.unflatten(-1, (n, -1)) for part, n in heads), gate, decay

    def forward(
        self, u: torch.Tensor, mask: torch.Tensor | None = None, state: LayerState | None = None
    ) -> torch.Tensor:
        """[batch, pos, d_model] from u [batch, pos, d_model].

        mask: [batch, pos, 1], 0 at padding. state: read and updated in place.
        """
        if mask is not None:
            u = u * mask
        x, B, C, gate, decay = self.operands(u, mask, state and state.conv)
        if self._kernel_serves(u, state):
            # The kernel scales x by its step size, softplus(decay); dividing first undoes that.
            y = mamba_chunk_scan_combined(
                x / F.softplus(decay.float()).to(x.dtype).unsqueeze(-1),
                decay,
                -torch.ones(self.n_v_heads, device=u.device),
                B,
                C,
                self.chunk_size,
                dt_softplus=True,
            )
        else:
            each = self.n_v_heads // self.n_qk_heads
            log_decay = -F.softplus(decay.to(torch.promote_types(decay.dtype, torch.float32)))
            B, C = (part.repeat_interleave(each, dim=2) for part in (B, C))
            y, last = ssd(x, log_decay, B, C, self.chunk_size if u.shape[1] > 1 else 1, state and state.ssm)
            if state is not None:
                state.ssm.copy_(last)
        y = (y.to(x.dtype) + self.D.unsqueeze(-1) * x).flatten(2)
        return self.out_proj(y * F.silu(gate + self.z_bias))

    def _kernel_serves(self, u: torch.Tensor, state: LayerState | None) -> bool:
        """Can mamba-ssm's kernel do this scan? Only without a state, without gradients, and in bfloat16.

        In float32 it is off by 2e-3. In float16 dividing x by softplus(decay) overflows for heads that forget
        slowly.
        """
        installed = mamba_chunk_scan_combined is not None
        inference = state is None and not torch.is_grad_enabled()
        return installed and inference and u.is_cuda and u.dtype == torch.bfloat16

    def empty_state(self, batch: int) -> LayerState:
        """The state before the first token."""
        weight = self.conv1d.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        conv = weight.new_zeros(batch, len(weight), weight.shape[-1] - 1)
        return LayerState(conv, weight.new_zeros(batch, *self.state_shape, dtype=wide))
