"""Implicit attention: the matrix that an SSM multiplies its values by (*hidden attention*, Ali et al. 2024).

An SSM is written as a recurrence over a state h, but its output is linear in the values x that go in:

    h[t] = exp(A * dt[t]) * h[t-1] + dt[t] * B[t] * x[t]        y[t] = C[t] . h[t] + D * x[t]

Unrolled, y = M x + D x with M[t, s] = C[t] . (exp(A * (dt[s+1] + ... + dt[t])) * B[s]) * dt[s] for s <= t,
a causal matrix that depends on the prompt, as attention's does. Its rows need not sum to 1 nor be positive.
In Mamba-2 (arXiv 2405.21060, where this form is L ∘ (C Bᵀ)) A is one number for each head. In Mamba-1 it is
one for each channel and state, so every channel has a matrix of its own.

M is not all that mixes positions. A short convolution comes before it, so that x, B, C (and in Mamba-1 dt)
already hold something of the tokens just before; a gate comes after it:

    hidden ──in_proj──► inputs ──convolution──► x, B, C ──scan──► y = M x + D x ──gate, norm──► z

`ablate_conv` switches the convolution's past taps off. The operands are computed from a mixer's parameters
and its input. They can't be hooked inside the mixer: Hugging Face calls the convolution and the scan as
functions, which no hook sees and which CUDA kernels may replace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ga_utils.models.deltanet import DeltaScan, delta_projections, delta_scan, gated_delta, is_deltanet
from ga_utils.models.device import check_loaded
from ga_utils.models.lm import LM
from ga_utils.models.mixers import convolutions, weight_of

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

    def state(self, heads: Sequence[int]) -> torch.Tensor:
        """The state after the last position, [len(heads), d_head, d_state]; empty before the first."""
        heads = list(heads)
        total = self.dt[:, heads].cpu().double().cumsum(0)
        A = self.A[heads].reshape(len(heads), -1).cpu().double()  # [head, 1 or d_state]
        left = (A * (total[-1] - total).unsqueeze(-1)).exp().to(self.x)  # [pos, head, 1 or d_state]
        B = self.B[:, [self.group(head) for head in heads]] * self.scale[:, heads, None]
        return torch.einsum("thn,thd->hdn", B * left, self.x[:, heads])

    def resumed(self, heads: Sequence[int], state: torch.Tensor) -> torch.Tensor:
        """y = C h + D x, [pos, len(heads), d_head], from a state h before the first position on: the
        recurrence itself."""
        heads = list(heads)
        x, A, h = self.x[:, heads], self.A[heads].reshape(len(heads), 1, -1), state.to(self.x)
        B, C = (part[:, [self.group(head) for head in heads]].unsqueeze(2) for part in (self.B, self.C))
        B = B * self.scale[:, heads, None, None]  # [pos, head, 1, d_state]
        decay = (self.dt[:, heads, None, None] * A).exp()  # [pos, head, 1, 1 or d_state]
        y = []
        for t in range(len(x)):
            h = decay[t] * h + B[t] * x[t].unsqueeze(-1)
            y.append((C[t] * h).sum(-1) + self.D[heads, None] * x[t])
        return torch.stack(y) if y else x


def _weights(C: torch.Tensor, B: torch.Tensor, elapsed: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """sum_n C[t, n] exp(A[n] elapsed[t, s]) B[s, n]: [query, key]."""
    if A.ndim == 0:  # Mamba-2: one decay for all states
        return (C @ B.T).mul_(elapsed.mul_(A).exp_())
    weights = torch.zeros_like(elapsed)
    for n, a in enumerate(A):
        weights += (elapsed * a).exp_().mul_(C[:, n, None]).mul_(B[None, :, n])
    return weights


@torch.no_grad()
def scan_of(mixer: nn.Module, hidden: torch.Tensor, before: torch.Tensor | None = None) -> Scan | DeltaScan:
    """The operands of a mixer's scan on its input, hidden [pos, d_model].

    before: the convolution's inputs before the first position, [taps - 1, channel], as `conv_inputs` gives
        them; None at the beginning of a text, where they are zero.
    """
    inputs, decay = _projected_inputs(mixer, hidden)
    if before is None:
        before = inputs.new_zeros(mixer.conv1d.weight.shape[-1] - 1, inputs.shape[1])
    convolved = _convolved(mixer, torch.cat([before, inputs]))
    if is_deltanet(mixer):
        return delta_scan(mixer, convolved, *decay)
    if hasattr(mixer, "x_proj"):
        return _mamba1(mixer, convolved)
    return (_llamba if hasattr(mixer, "z_bias") else _mamba2)(mixer, convolved, decay)


@torch.no_grad()
def conv_inputs(mixer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """What the short convolution reads, [pos, channel], for a mixer's input [pos, d_model]: what becomes x,
    in Mamba-2 and Llamba also B and C, in Gated DeltaNet q, k and v.
    """
    return _projected_inputs(mixer, hidden)[0]


def _projected_inputs(mixer: nn.Module, hidden: torch.Tensor):
    """The convolution's inputs, [pos, channel], and what decays and step sizes are made of, [pos, head]: two
    such in Gated DeltaNet; none in Mamba-1, which makes them of what has been convolved.
    """
    if is_deltanet(mixer):
        parts = delta_projections(mixer, hidden)
        return parts["inputs"], (parts["b"], parts["a"])
    if hasattr(mixer, "x_proj"):
        return mixer.in_proj(hidden).chunk(2, dim=-1)[0], None
    width = len(mixer.conv1d.weight)
    if hasattr(mixer, "z_bias"):
        projected = mixer.in_proj(hidden)
        return projected[:, :width], projected[:, -mixer.n_v_heads :]
    _, inputs, dt = _projected(mixer, hidden).split([mixer.out_proj.in_features, width, mixer.D.numel()], -1)
    return inputs, dt


def mixer_input(args: tuple, kwargs: dict) -> torch.Tensor:
    """What a mixer was called with, [batch, pos, d_model], for hooks."""
    return args[0] if args else kwargs["hidden_states"]


def norm_ties_heads(mixer: nn.Module) -> bool:
    """Does z of one head depend on the others, through the norm behind the gate?"""
    mamba2 = not hasattr(mixer, "x_proj") and not hasattr(mixer, "z_bias") and not is_deltanet(mixer)
    return mamba2 and getattr(mixer, "mamba_rms_norm", True)


def go_on_from(
    mixer: nn.Module,
    rest: torch.Tensor,
    for_state: torch.Tensor,
    for_conv: torch.Tensor,
    heads: Sequence[int],
) -> torch.Tensor:
    """y of some heads on `rest`, after the state of one text and the convolution's inputs of another.

    All texts are inputs of the mixer, [pos, d_model].
    """
    inputs, taps = conv_inputs(mixer, for_conv), mixer.conv1d.weight.shape[-1]
    before = F.pad(inputs, (0, 0, taps - 1, 0))[len(inputs) :]
    return scan_of(mixer, rest, before).resumed(heads, scan_of(mixer, for_state).state(heads))


@contextmanager
def ablate_conv(lm: LM, layers: Iterable[int] | None = None) -> Iterator[LM]:
    """The short convolution keeps its last tap, the one on the present token, with its bias and activation.

    The past taps are zero, so whatever still moves from token to token moves through the scan (or through
    attention). A convolution of one tap stays as it is.

    Args:
        layers: of which layers; by default of all that have a convolution.

    Raises:
        ValueError: the model, or a layer named, has no short convolution, or the model another, too.
    """
    found = convolutions(lm.layers)
    if not found:
        raise ValueError(f"{lm.name} has no short convolution: it has none at all")
    layers = sorted(found if layers is None else set(layers))
    if not layers:
        raise ValueError("no layers given: name at least one, or leave `layers` out for all")
    for layer in layers:
        if layer not in found:
            having = ", ".join(map(str, found))
            raise ValueError(f"layer {layer} of {lm.name} has no short convolution: layers {having} have one")
        check_loaded(found[layer], f"layer {layer} of {lm.name}")
    with lm.edited(f"convolution off: layers {', '.join(map(str, layers))}") as edit:
        for layer in layers:
            weight = found[layer].weight.detach().clone()
            weight[..., :-1] = 0
            edit.swap(found[layer], "weight", nn.Parameter(weight, requires_grad=False))
        yield lm


@torch.no_grad()
def gated(mixer: nn.Module, hidden: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What a mixer makes of its scan's output before `out_proj`: z [pos, n_heads * d_head].

    Mamba-2 multiplies y by a gate and normalises the product over several heads, so there z of one head
    depends a little on the others. Mamba-1 and Llamba gate alone; Gated DeltaNet normalises each head first.

    Args:
        hidden: the mixer's input, [pos, d_model]. y: [pos, n_heads * d_head], D's part included.
    """
    if is_deltanet(mixer):
        return gated_delta(mixer, delta_projections(mixer, hidden)["gate"], y)
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


def _mamba1(mixer: nn.Module, convolved: torch.Tensor) -> Scan:
    """Mamba; FalconMamba, which normalises B, C and dt; Jamba, which does so with learned weights."""
    x = mixer.act(convolved)
    n_state, rank = mixer.ssm_state_size, mixer.time_step_rank
    dt, B, C = mixer.x_proj(x).split([rank, n_state, n_state], dim=-1)
    if hasattr(mixer, "dt_layernorm"):
        dt, B, C = mixer.dt_layernorm(dt), mixer.b_layernorm(B), mixer.c_layernorm(C)
    x, B, C, dt = (_wide(part) for part in (x, B, C, F.linear(dt, weight_of(mixer.dt_proj))))
    dt = F.softplus(dt + _wide(mixer.dt_proj.bias))
    A = -torch.exp(_wide(mixer.A_log))
    return Scan(x.unsqueeze(-1), B.unsqueeze(1), C.unsqueeze(1), dt, A, _wide(mixer.D), dt)


def _mamba2(mixer: nn.Module, convolved: torch.Tensor, dt: torch.Tensor) -> Scan:
    """Mamba2, Zamba2, Bamba, NemotronH, GraniteMoeHybrid; FalconH1, which has multipliers besides."""
    n_heads, inner = mixer.D.numel(), mixer.out_proj.in_features
    width = mixer.n_groups * mixer.ssm_state_size
    x, B, C = mixer.act(convolved).split([inner, width, width], dim=-1)
    low, high = mixer.time_step_limit
    dt = F.softplus(_wide(dt) + _wide(mixer.dt_bias)).clamp(low, high)
    x, B, C = (
        _wide(part).unflatten(-1, shape)
        for part, shape in ((x, (n_heads, -1)), (B, (mixer.n_groups, -1)), (C, (mixer.n_groups, -1)))
    )
    return Scan(x, B, C, dt, -torch.exp(_wide(mixer.A_log)), _wide(mixer.D), dt)


def _llamba(mixer: nn.Module, convolved: torch.Tensor, decay: torch.Tensor) -> Scan:
    """Llamba's discrete Mamba-2: the decay comes from the projection alone, and no step size scales x."""
    heads, width = mixer.n_qk_heads, mixer.n_qk_heads * mixer.d_state
    x, B, C = convolved.split([mixer.d_inner, width, width], dim=-1)
    x, B, C = (
        _wide(part).unflatten(-1, (n, -1)) for part, n in ((x, mixer.n_v_heads), (B, heads), (C, heads))
    )
    dt = _wide(decay)
    minus_one = -torch.ones_like(dt[0])
    return Scan(x, B, C, F.softplus(dt), minus_one, _wide(mixer.D), torch.ones_like(dt))


def _convolved(mixer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Inputs [taps - 1 + pos, channel] after the mixer's short causal convolution, [pos, channel]."""
    weight, bias = mixer.conv1d.weight, mixer.conv1d.bias
    # The two dtypes differ where a part of a model was cast, as for training.
    return F.conv1d(inputs.T[None].to(weight.dtype), weight, bias, groups=len(weight))[0].T.to(inputs.dtype)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32, the precision that scans run in; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()
