"""Faster scans for training on a CPU, in place of Hugging Face's plain PyTorch ones. Same numbers (a test
says so).

Hugging Face's fallback for Mamba-1 is a Python loop over all positions, and for Mamba-2 a chain of large
einsums. Both are module-level functions of the modelling files, which is where `fast_scans` puts these.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F

from ga_utils.models.llamba import ssd

CHUNK = 16  # of the Mamba-1 scan: Python loops over 16 positions and over length / 16 chunks


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


def mamba_selective_scan(
    hidden_states, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, **unused
):
    """Mamba-1: hidden_states, dt and z [batch, channel, pos], A [channel, d_state], B and C [batch, d_state,
    pos]."""
    length, padding = hidden_states.shape[-1], -hidden_states.shape[-1] % CHUNK
    dt = F.softplus(dt.float() + delta_bias.unsqueeze(-1)) if delta_softplus else dt.float()
    # [pos in chunk, batch, chunk, channel or d_state]; at padding the state neither decays nor grows
    x, step, B, C = (
        F.pad(part.float(), (0, padding)).unflatten(-1, (-1, CHUNK)).permute(3, 0, 2, 1)
        for part in (hidden_states, dt, B, C)
    )
    decay = torch.exp(step.unsqueeze(-1) * A)  # [pos in chunk, batch, chunk, channel, d_state]
    added = (step * x).unsqueeze(-1) * B.unsqueeze(-2)
    state, kept, inside = torch.zeros_like(added[0]), torch.ones_like(added[0]), []
    for i in range(CHUNK):
        state, kept = decay[i] * state + added[i], kept * decay[i]
        inside.append((state, kept))
    carried, before = torch.zeros_like(state[:, 0]), []
    for c in range(state.shape[1]):
        before.append(carried)
        carried = kept[:, c] * carried + state[:, c]
    before = torch.stack(before, 1)
    y = torch.stack(
        [((own + kept * before) @ C[i].unsqueeze(-1)).squeeze(-1) for i, (own, kept) in enumerate(inside)]
    )
    y = y.permute(1, 3, 2, 0).flatten(2)[..., :length] + D.unsqueeze(-1) * hidden_states
    return y if z is None else y * F.silu(z)


@contextmanager
def fast_scans() -> Iterator[None]:
    """While it lasts, Mamba2, Zamba2 and FalconMamba scan with the functions above; there is no cache
    then."""
    with ExitStack() as patches:
        for family, scan in (
            ("mamba2", mamba2_chunk_scan),
            ("zamba2", mamba2_chunk_scan),
            ("falcon_mamba", mamba_selective_scan),
        ):
            module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
            patches.enter_context(mock.patch.object(module, scan.__name__, scan))
        yield
