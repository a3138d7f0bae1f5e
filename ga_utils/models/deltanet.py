"""Gated DeltaNet (Yang, Kautz, Hatamizadeh, ICLR 2025, arXiv 2412.06464): its scan, written as a matrix.

The linear layers of Qwen3-Next, Qwen3.5 and OLMo Hybrid. Where Mamba-2 *adds* B times x to a fading state,
this one *overwrites*: it reads what the faded state holds at the key k, and moves it towards v by the
share beta.

    S[t] = alpha[t] S[t-1] (I - beta[t] k[t] k[t]ᵀ) + beta[t] v[t] k[t]ᵀ        o[t] = S[t] q[t]

Call u[t] what is really written at k[t], so that S[t] = alpha[t] S[t-1] + u[t] k[t]ᵀ:

    u[t] = beta[t] (v[t] - alpha[t] S[t-1] k[t])          what the state lacks, not the value itself

S[t-1] is the sum of all earlier u[s] k[s]ᵀ, each decayed. With E[t, s] = alpha[s+1] ... alpha[t]:

    u[t] + beta[t] sum over s < t of E[t, s] (k[t] . k[s]) u[s] = beta[t] v[t]        (I + T) U = diag(beta) V
    o[t] =         sum over s ≤ t of E[t, s] (q[t] . k[s]) u[s]                              O = W U

with T strictly lower triangular, and W = E ∘ (Q Kᵀ). If writes only added, as Mamba-2's do, the matrix
would be W diag(beta). With what is taken back it is

    M = W (I + T)⁻¹ diag(beta)

The values go in linearly, so M is the layer's implicit attention: O = M V. An entry can be negative for a
reason that Mamba-2 lacks: a row takes back what was overwritten since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

CHUNK = 128  # positions whose matrices are made at once


@dataclass(frozen=True)
class DeltaScan:
    """The operands of a gated delta rule, for one prompt, in float32 or float64; as `ssm.Scan` is for SSMs.

    x: [pos, head, d_head], the values v.
    k, q: [pos, group, d_state], of length 1, and q then divided by the square root of d_state; the heads of a
        group share them.
    beta: [pos, head], how much of what is at k is overwritten: 0 nothing, 1 all; up to 2 in OLMo Hybrid.
    log_alpha: [pos, head], log decay, at most 0.
    """

    x: torch.Tensor
    k: torch.Tensor
    q: torch.Tensor
    beta: torch.Tensor
    log_alpha: torch.Tensor

    @property
    def D(self) -> torch.Tensor:
        """[head], zeros: there is no skip connection."""
        return torch.zeros_like(self.beta[0])

    def group(self, head: int) -> int:
        """The group of k and q that serves a head."""
        return head * self.k.shape[1] // self.x.shape[1]

    def matrix(self, heads: Sequence[int], first: int = 0) -> torch.Tensor:
        """M for the heads asked for, [len(heads), query, key]; takes memory for these alone.

        first: only the rows of queries from here on.
        """
        return self._unrolled(list(heads), first)[0]

    def state(self, heads: Sequence[int]) -> torch.Tensor:
        """The state after the last position, [len(heads), d_head, d_state]; empty before the first."""
        heads = list(heads)
        written = self._unrolled(heads, len(self.x))[1]  # its rows are those of the state, transposed
        return (written @ self.x[:, heads].transpose(0, 1)).mT

    def _unrolled(self, heads: list[int], first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """M from row `first` on, [head, query, key], and P [head, d_state, key], with which Sᵀ = P V at last.

        Chunk by chunk (section 3.3), which takes as many products as Mamba-2's M. With P that of the chunks
        before, and g[t] the decay since then, the chunk's own values V' are joined by what P says of V:

            (I + T) U = diag(beta) V' - diag(beta g) K P V        O = W U + diag(g) Q P V
        """
        n, groups = len(self.x), [self.group(head) for head in heads]
        M = self.x.new_zeros(len(heads), n - first, n)
        P = self.x.new_zeros(len(heads), self.k.shape[-1], n)
        # In float64, as the difference of two sums loses digits; on the CPU, as not every device has it.
        log_alpha = self.log_alpha[:, heads].T.cpu().double()
        for start in range(0, n, CHUNK):
            part = slice(start, min(n, start + CHUNK))
            k, q = (of[part, groups].transpose(0, 1) for of in (self.k, self.q))  # [head, pos, d_state]
            beta, total = self.beta[part, heads].T.unsqueeze(-1), log_alpha[:, part].cumsum(-1)
            E = (total.unsqueeze(-1) - total.unsqueeze(-2)).tril_().exp_().tril_().to(self.x)
            g = total.exp().unsqueeze(-1).to(self.x)
            T, W = beta * (k @ k.mT) * E, (q @ k.mT) * E
            # The solver takes ones for the diagonal, whatever is there.
            own, old = (
                torch.linalg.solve_triangular(T, right, upper=False, unitriangular=True)
                for right in (torch.diag_embed(beta.squeeze(-1)), beta * g * k)
            )
            if part.stop > first:
                skip = max(0, first - start)
                rows = slice(start + skip - first, part.stop - first)
                M[:, rows, part] = (W @ own)[:, skip:]
                M[:, rows, :start] = (g * q - W @ old)[:, skip:] @ P[..., :start]
            kept = (E[:, -1:].mT * k).mT  # [head, d_state, pos], faded until the chunk's end
            P[..., :start] = g[:, -1:] * P[..., :start] - (kept @ old) @ P[..., :start]
            P[..., part] = kept @ own
        return M, P

    def resumed(self, heads: Sequence[int], state: torch.Tensor) -> torch.Tensor:
        """o, [pos, len(heads), d_head], from a state before the first position on: the recurrence itself."""
        heads = list(heads)
        groups = [self.group(head) for head in heads]
        S, o = state.to(self.x), []
        for t in range(len(self.x)):
            k, q = self.k[t, groups], self.q[t, groups]  # [head, d_state]
            S = S * self.log_alpha[t, heads].exp()[:, None, None]
            lacks = self.x[t, heads] - (S @ k.unsqueeze(-1)).squeeze(-1)
            S = S + (self.beta[t, heads, None] * lacks).unsqueeze(-1) * k.unsqueeze(1)
            o.append((S @ q.unsqueeze(-1)).squeeze(-1))
        return torch.stack(o) if o else self.x[:, heads]


def is_deltanet(mixer: nn.Module) -> bool:
    """Gated DeltaNet, by what only it has among the mixers that the course knows."""
    return hasattr(mixer, "head_v_dim") and hasattr(mixer, "A_log")


def delta_projections(mixer: nn.Module, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a mixer makes of its input, [pos, d_model], before the convolution.

    inputs: [pos, channel], q, k and v side by side, which the convolution reads. gate: [pos, head * d_head].
    b, a: [pos, head], of which beta and the decay are made.
    """
    if hasattr(mixer, "in_proj_qkvz"):  # Qwen3-Next: sorted by groups of heads
        parts = mixer.fix_query_key_value_ordering(
            mixer.in_proj_qkvz(hidden[None]), mixer.in_proj_ba(hidden[None])
        )
        q, k, v, gate, b, a = (part[0].flatten(1) for part in parts)
        inputs = torch.cat([q, k, v], dim=-1)
    elif hasattr(mixer, "in_proj_qkv"):  # Qwen3.5
        inputs, gate = mixer.in_proj_qkv(hidden), mixer.in_proj_z(hidden)
        b, a = mixer.in_proj_b(hidden), mixer.in_proj_a(hidden)
    else:  # OLMo Hybrid
        inputs = torch.cat([mixer.q_proj(hidden), mixer.k_proj(hidden), mixer.v_proj(hidden)], dim=-1)
        gate, b, a = mixer.g_proj(hidden), mixer.b_proj(hidden), mixer.a_proj(hidden)
    return {"inputs": inputs, "gate": gate, "b": b, "a": a}


def delta_scan(mixer: nn.Module, convolved: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> DeltaScan:
    """The operands, from what the convolution gives, [pos, channel], before its activation, and b and a,
    [pos, head], as `delta_projections` gives them.
    """
    wide = torch.promote_types(convolved.dtype, torch.float32)
    mixed = ACT2FN[mixer.activation](convolved).to(wide)
    q, k, v = mixed.split([mixer.key_dim, mixer.key_dim, mixer.value_dim], dim=-1)
    q, k = (part.unflatten(-1, (-1, mixer.head_k_dim)) for part in (q, k))
    q, k = (part * torch.rsqrt(part.square().sum(-1, keepdim=True) + 1e-6) for part in (q, k))
    beta = b.to(wide).sigmoid() * (2 if getattr(mixer, "allow_neg_eigval", False) else 1)
    log_alpha = -mixer.A_log.to(wide).exp() * F.softplus(a.to(wide) + mixer.dt_bias.to(wide))
    v = v.unflatten(-1, (-1, mixer.head_v_dim))
    return DeltaScan(v, k, q * mixer.head_k_dim**-0.5, beta, log_alpha)


def gated_delta(mixer: nn.Module, gate: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
    """z from o, both [pos, head * d_head]: each head is normalised by itself, then multiplied by
    its gate's activation."""
    norm = getattr(mixer, "norm", None) or mixer.o_norm
    heads = (part.unflatten(-1, (-1, mixer.head_v_dim)).flatten(0, 1) for part in (o, gate))
    return norm(*heads).unflatten(0, (len(o), -1)).flatten(1)
