"""Faster scans for training on a CPU, in place of Hugging Face's plain PyTorch ones. Same numbers (a test
says so).

Hugging Face's fallback for Mamba-1 is a Python loop over all positions, and for Mamba-2 a chain of large
einsums. Both are module-level functions of the modelling files, which is where `fast_scans` puts these.

Mamba-1's backward pass is written by hand. With g_t the gradient of the state h_t [d_state, channel],

    h_t = a_t h_{t-1} + (dt_t x_t) B_t        a_t = exp(dt_t A)        y_t = C_t h_t
    g_t = C_t dy_t + a_{t+1} g_{t+1}

what has to go position by position is a product and a sum. All the rest is done for BLOCK positions at once:
enough to hide Python's overhead, few enough for the processor's cache.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F

from ga_utils.models.llamba import ssd

BLOCK = 8


def mamba2_chunk_scan(
    hidden_states,
    dt,
    A,
    B,
    C,
    chunk_size,
    D=None,
    dt_bias=None,
    dt_softplus=False,
    dt_limit=(0.0, float("inf")),
    **unused,
):
    """Mamba-2: hidden_states [batch, pos, head, d_head], dt [batch, pos, head], A [head], B and C [batch,
    pos, group, d_state]."""
    each = hidden_states.shape[2] // B.shape[2]
    B, C = (part.repeat_interleave(each, dim=2) for part in (B, C))
    dt = (F.softplus(dt.float() + dt_bias.float()) if dt_softplus else dt.float()).clamp(*dt_limit)
    x = hidden_states.float()
    y, _ = ssd(x * dt.unsqueeze(-1), dt * A, B, C, chunk_size)
    return y + D.float().unsqueeze(-1) * x


def mamba_inner_fn(
    xz,
    conv_weight,
    conv_bias,
    x_proj,
    dt_proj,
    out_proj,
    out_bias,
    A,
    input_dependent_B,
    input_dependent_C,
    D,
    delta_bias,
    b_c_dt_rms_eps,
    **unused,
):
    """FalconMamba's mixer without its first projection: xz [batch, 2 * channel, pos], A [channel, d_state].

    Channels are kept last, because products are fastest along the last dimension.
    """
    x, z = _wide(xz).transpose(1, 2).chunk(2, dim=-1)  # [batch, pos, channel]
    taps, length = conv_weight.shape[-1], x.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    x = F.silu(sum((padded[:, i : i + length] * conv_weight[:, 0, i] for i in range(taps)), conv_bias))
    dt, B, C = (
        part * torch.rsqrt(part.square().mean(-1, keepdim=True) + b_c_dt_rms_eps)
        for part in _wide(F.linear(x, x_proj)).split([dt_proj.shape[1], A.shape[1], A.shape[1]], dim=-1)
    )
    dt = F.softplus(_wide(F.linear(dt, dt_proj)) + delta_bias)
    y = SelectiveScan.apply(x, dt, A.T.contiguous(), B, C) + D * x
    return F.linear(y * F.silu(z), out_proj, out_bias)


class SelectiveScan(torch.autograd.Function):
    """y from x and dt [batch, pos, channel], A [d_state, channel], B and C [batch, pos, d_state]."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C):
        (batch, length, _), added = x.shape, dt * x
        a, h = (x.new_empty(batch, length + more, *A.shape) for more in (0, 1))
        h[:, 0] = 0  # h[:, t + 1] is the state after position t
        for part in _blocks(length):
            torch.mul(dt[:, part].unsqueeze(2), A, out=a[:, part]).exp_()
            torch.mul(added[:, part].unsqueeze(2), B[:, part].unsqueeze(3), out=h[:, 1:][:, part])
            for t in range(part.start, part.stop):
                h[:, t + 1].addcmul_(a[:, t], h[:, t])
        ctx.save_for_backward(x, dt, A, B, C, h, a)
        with torch.autocast(x.device.type, enabled=False):
            return (C.unsqueeze(2) @ h[:, 1:]).squeeze(2)

    @staticmethod
    def backward(ctx, dy):
        x, dt, A, B, C, h, a = ctx.saved_tensors
        added, carried = dt * x, torch.zeros_like(h[:, 0])  # carried: a_{t+1} g_{t+1}
        d_added, d_dt, d_A, d_B = (torch.zeros_like(part) for part in (x, dt, A, B))
        for part in reversed(_blocks(x.shape[1])):
            g = C[:, part].unsqueeze(3) * dy[:, part].unsqueeze(2)  # [batch, pos in block, d_state, channel]
            ag = torch.empty_like(g)
            for t in reversed(range(g.shape[1])):
                g[:, t] += carried
                carried = torch.mul(a[:, part][:, t], g[:, t], out=ag[:, t])
            carried = carried.clone()
            d_B[:, part] = (g @ added[:, part].unsqueeze(3)).squeeze(3)
            d_added[:, part] = (B[:, part].unsqueeze(2) @ g).squeeze(2)
            ag *= h[:, part]  # now the gradient of dt A
            d_dt[:, part] = (ag * A).sum(2)
            d_A += ag.mul_(dt[:, part].unsqueeze(2)).sum((0, 1))
        d_C = (h[:, 1:] @ dy.unsqueeze(3)).squeeze(3)
        return d_added * dt, d_dt + d_added * x, d_A, d_B, d_C


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(length, start + BLOCK)) for start in range(0, length, BLOCK)]


def _wide(part: torch.Tensor) -> torch.Tensor:
    """At least float32, which autocast's products are not."""
    return part.to(torch.promote_types(part.dtype, torch.float32))


@contextmanager
def fast_scans() -> Iterator[None]:
    """While it lasts, Mamba2, Zamba2 and, in training mode, FalconMamba scan with the functions above; there
    is no cache then."""
    with ExitStack() as patches:
        for family, scan in (
            ("mamba2", mamba2_chunk_scan),
            ("zamba2", mamba2_chunk_scan),
            ("falcon_mamba", mamba_inner_fn),
        ):
            module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
            patches.enter_context(mock.patch.object(module, scan.__name__, scan))
        yield
