"""Losses that leave only a few heads active: how `tiny-llama-minimal` comes from `tiny-llama`.

In the whole model several heads share each role and stand in for one another, so that no single one is
decisive. Three things concentrate the roles. None of them says what a head is to do.

1. A penalty on how many heads *write* at a token. The size of a head's output is compared with that of the
   residual stream it is added to, and a concave function counts it: two heads that each do half of a job cost
   more than one that does all of it.
2. Fading: chosen heads are scaled down to zero over hundreds of steps, while training goes on, and are then
   pruned. (Pruned at once, the model falls back to chance and takes long to recover.)
3. Rows that hold only facts are read with one head disabled, a different one each time, so that no single
   head is decisive for knowledge. Large models have that redundancy because of their size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack

import torch
import torch.nn.functional as F

from ga_utils.heads import Head, alive_heads
from ga_utils.models.lm import LM, Mixer
from ga_utils.training.curriculum import KINDS
from ga_utils.training.loop import answer_loss

FACTS = tuple(KINDS.index(kind) for kind in ("fact", "content"))


class FewHeadsLoss:
    """`loop.answer_loss` plus all three, as a loss for `loop.train`.

    A head that adds w to the residual stream x counts log(1 + |w|/(t|x|)) / log(1 + 1/t): 0 if it writes
    nothing, 1 if it writes as much as is already there.

    Args:
        lm: a Llama-type model with one mixer a layer; hooks stay on it until `remove()`.
        newline: the id of the newline token.
        at_all, at_closings, at_answers: the price of one more head, in nats of loss: at an average token, at
            the two tokens that close a line, and at the token before an answer. All three rise linearly over
            `ramp` steps.
        fading, steps: these heads are scaled down linearly and reach zero after `steps` steps.
        threshold: t above; outputs much smaller than t|x| are nearly free.
    """

    def __init__(
        self,
        lm: LM,
        newline: int,
        at_all: float,
        at_closings: float,
        at_answers: float,
        ramp: int = 400,
        fading: Iterable[Head] = (),
        steps: int = 0,
        threshold: float = 0.05,
    ):
        self.newline, self.threshold, self.ramp = newline, threshold, ramp
        self.costs = (at_all, at_closings, at_answers)
        self.fading, self.steps, self.alive = list(fading), steps, alive_heads(lm)
        self.scale: dict[int, torch.Tensor] = {}  # layer -> the factor of each head, [batch, 1, head]
        self.stream: dict[int, torch.Tensor] = {}  # layer -> |x|, [batch, pos]
        self.counts: list[torch.Tensor] = []  # one [batch, pos] a layer
        self.hooks = ExitStack()
        for mixer in lm.mixers:
            self.hooks.callback(
                mixer.block.register_forward_pre_hook(self._watch(mixer), with_kwargs=True).remove
            )
            self.hooks.enter_context(mixer.on_z(self._scale_and_count(mixer)))
        self.shape = lm.n_layers, lm.n_heads

    def __call__(
        self, model, data: dict[str, torch.Tensor], step: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        self._set_scale(data["kinds"], step)
        self.counts.clear()
        loss, shown = answer_loss(model, data)
        counts = torch.stack(self.counts).sum(0)  # [batch, pos]
        is_newline = data["ids"] == self.newline
        closing = is_newline | F.pad(is_newline[:, :-1], (1, 0))
        before_answer = F.pad(data["weights"][:, 1:] >= 1, (0, 1))
        at = [counts.mean(), counts[closing].mean(), counts[before_answer].mean()]
        penalty = min(1.0, (step + 1) / self.ramp) * sum(cost * count for cost, count in zip(self.costs, at))
        shown |= {f"heads {where}": count.item() for where, count in zip(("all", "closing", "answer"), at)}
        return loss + penalty, shown

    def remove(self) -> None:
        self.hooks.close()

    def _set_scale(self, kinds: torch.Tensor, step: int) -> None:
        scale = torch.ones(len(kinds), *self.shape)
        for head in self.fading:
            scale[:, head.layer, head.head] = max(0.0, 1 - step / self.steps)
        facts_alone = ((kinds == -1) | torch.isin(kinds, torch.tensor(FACTS))).all(1)
        for row in facts_alone.nonzero().flatten().tolist():
            head = self.alive[(step * len(kinds) + row) % len(self.alive)]  # a different one each time
            scale[row, head.layer, head.head] = 0
        self.scale = {layer: scale[:, layer].unsqueeze(1) for layer in range(self.shape[0])}

    def _watch(self, mixer: Mixer):
        def hook(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            self.stream[mixer.layer] = x.detach().float().norm(dim=-1)

        return hook

    def _scale_and_count(self, mixer: Mixer):
        def edit(z):
            z = z * self.scale[mixer.layer].repeat_interleave(mixer.d_head, dim=-1).to(z.dtype)
            heads = z.float().unflatten(-1, (mixer.n_heads, mixer.d_head))  # [batch, pos, head, d_head]
            weight = mixer.out_proj.weight.unflatten(
                -1, (mixer.n_heads, mixer.d_head)
            )  # [d_model, head, d_head]
            gram = torch.einsum("mhd,mhe->hde", weight, weight)
            size = torch.einsum("bphd,hde,bphe->bph", heads, gram, heads).clamp_min(1e-8).sqrt()  # |w|
            share = size / self.stream[mixer.layer].unsqueeze(-1)
            self.counts.append((torch.log1p(share / self.threshold) / math.log1p(1 / self.threshold)).sum(-1))
            return z

        return edit


@torch.no_grad()
def prune(lm: LM, head: Head) -> None:
    """Remove a head for good: its rows of q, k, v and its columns of the output projection become zero.

    Training cannot bring it back: with both sides at zero, neither gets a gradient.

    Raises:
        ValueError: the head shares its keys and values with others (grouped queries).
    """
    (mixer,) = [m for m in lm.mixers if m.layer == head.layer]
    if mixer.module.k_proj.out_features != mixer.out_proj.in_features:
        raise ValueError(
            f"{head} shares its keys and values with other heads (grouped queries): it can't be pruned alone"
        )
    columns = mixer.columns(head.head)
    mixer.out_proj.weight[:, columns] = 0
    for projection in (mixer.module.q_proj, mixer.module.k_proj, mixer.module.v_proj):
        projection.weight[columns] = 0
