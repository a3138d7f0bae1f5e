"""Press a trained model to use few heads: how `tiny-llama-minimal` comes from `tiny-llama`.

In the whole model several heads share each role and stand in for one another, so that no single one is
decisive. Two kinds of pressure concentrate the roles; neither says which head is to do what.

1. `HeadCount`, a penalty on how many heads *write* at a token: a head's output is compared with the residual
   stream it is added to, and a concave function counts it. Two heads that each do half of a job then cost more
   than one that does it all.
2. Pruning: the head that is least important is removed for good, and the model trains on.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ga_utils.heads import Head
from ga_utils.models import LM


class HeadCount:
    """A soft count of the heads that write at a token, as a penalty for `train.train`.

    A head that adds w to a residual stream x counts log(1 + |w|/(t|x|)) / log(1 + 1/t): 0 if it is silent, 1 if
    it writes as much as is there. Counted at all tokens, and once more at those before an answer.

    Args:
        lm: the model; hooks stay on it until `remove()`.
        at_all, at_answers: what one more head costs at a token, in nats of loss.
        threshold: t above; outputs much smaller than t|x| are nearly free.
    """

    def __init__(self, lm: LM, at_all: float, at_answers: float, threshold: float = 0.05):
        self.at_all, self.at_answers, self.threshold = at_all, at_answers, threshold
        self.stream: dict[int, torch.Tensor] = {}  # layer -> |x|, [batch, pos]
        self.counts: list[torch.Tensor] = []  # one [batch, pos] a layer
        self.handles = []
        for mixer in lm.mixers:
            layer = lm.layers[mixer.layer]
            self.handles.append(layer.register_forward_pre_hook(self._watch(mixer.layer), with_kwargs=True))
            self.handles.append(mixer.out_proj.register_forward_pre_hook(self._count(mixer)))

    def _watch(self, layer: int):
        def hook(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            self.stream[layer] = x.detach().float().norm(dim=-1)

        return hook

    def _count(self, mixer):
        def hook(module, args):
            z = args[0].float().unflatten(-1, (mixer.n_heads, mixer.d_head))  # [batch, pos, head, d_head]
            weight = module.weight.unflatten(-1, (mixer.n_heads, mixer.d_head))  # [d_model, head, d_head]
            gram = torch.einsum("mhd,mhe->hde", weight, weight)
            size = torch.einsum("bphd,hde,bphe->bph", z, gram, z).clamp_min(1e-8).sqrt()  # |w|
            share = size / self.stream[mixer.layer].unsqueeze(-1)
            count = torch.log1p(share / self.threshold) / math.log1p(1 / self.threshold)
            self.counts.append(count.sum(-1))

        return hook

    def __call__(self, step: int, data: dict[str, torch.Tensor]) -> torch.Tensor:
        count = torch.stack(self.counts).sum(0)  # [batch, pos]
        self.counts.clear()
        before_answer = F.pad(data["weights"][:, 1:] >= 1, (0, 1))
        warm_up = min(1.0, (step + 1) / 200)
        return warm_up * (self.at_all * count.mean() + self.at_answers * count[before_answer].mean())

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def prune(lm: LM, head: Head) -> None:
    """Remove a head for good: its rows of q, k, v and its columns of the output projection become zero.

    Training cannot bring it back: with both sides at zero, neither gets a gradient.
    """
    (mixer,) = [m for m in lm.mixers if m.layer == head.layer]
    columns = mixer.columns(head.head)
    mixer.out_proj.weight[:, columns] = 0
    for projection in (mixer.module.q_proj, mixer.module.k_proj, mixer.module.v_proj):
        projection.weight[columns] = 0
