"""Which heads are worth an exact look? Attribution of all heads from one forward and one backward pass.

Disabling a head changes its z by (replacement - z). To first order the log-odds of the right choice among the choices
change by their gradient at z times that (attribution patching: Nanda 2023; Syed et al. 2023, arXiv 2310.10348).
An estimate, and blind where a saturated softmax hides a head: that is why the best-placed heads are then disabled in earnest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from ga_utils.heads import Head
from ga_utils.scoring import Batch
from ga_utils.sweeps.exact import ExactSweep
from ga_utils.sweeps.partial_forward import entering


def attribution(run: ExactSweep, answers: list[int], heads: list[Head]) -> tuple[np.ndarray, list[Head]]:
    """Estimates for all heads, and the heads in the order in which they deserve an exact look.

    That order is by a more fearful estimate, in which a change of c nats of log-odds at one position counts as c - c^2 / 2:
    large ones have left the range where a first-order estimate means anything, its sign included, and mostly are losses.

    What this pass records, `run` uses for its pieces.

    Returns: estimated mean log-probability of the right choice with each head disabled, [len(heads)]; heads, in order.
    """
    margin, changes = run.halving(_first_order, run, answers)
    of = {
        Head(m.layer, head): c[..., head - m.first] for m, c in zip(run.mixers, changes) for head in m.heads
    }
    estimate = np.array([logsigmoid(margin + of[head][0]).mean().item() for head in heads])
    feared = np.array([logsigmoid(margin + of[head][0] - of[head][1] / 2).mean().item() for head in heads])
    return estimate, [heads[i] for i in feared.argsort(kind="stable")]


def _first_order(run: ExactSweep, answers: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-odds of the right choice, [example], and for each mixer their estimated change: its sum over positions, and the
    sum of its squares, [2, example, head]."""
    margins = torch.zeros(len(answers))
    changes = [torch.zeros(2, len(answers), mixer.n_heads) for mixer in run.mixers]

    def look_on(batch: Batch, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        seen: dict[int, torch.Tensor] = {}
        with torch.enable_grad(), ExitStack() as stack:
            # Gradients begin at the embeddings, also if the weights ask for none.
            stack.enter_context(entering(run.lm.layers[0], lambda hidden: hidden.detach().requires_grad_()))
            for k, mixer in enumerate(run.mixers):
                stack.enter_context(mixer.on_z(lambda z, k=k: seen.__setitem__(k, z)))
            logits = forward()
            examples, margin = _log_odds(batch, logits, torch.tensor(answers))
            gradients = torch.autograd.grad(margin.sum(), [seen[k] for k in range(len(run.mixers))])
        margins[examples] = margin.detach().float().cpu()
        example_of = torch.zeros(len(batch.ids), dtype=torch.long).index_copy_(
            0, batch.picks[0], batch.picks[3]
        )
        for k, (mixer, table, gradient) in enumerate(zip(run.mixers, run.tables, gradients)):
            z = seen[k].detach()
            instead = table[torch.arange(z.shape[1], device=z.device) % len(table)]
            change = ((instead - z) * gradient).float().unflatten(-1, (mixer.n_heads, mixer.d_head)).sum(-1)
            by_head = torch.stack([change.sum(1), change.square().sum(1)])  # [2, row, head]
            changes[k].index_add_(1, example_of, by_head.cpu())
        return logits.detach()

    run.record(
        share=False, run=look_on
    )  # with a shared beginning, the examples' gradients there would be one sum
    return margins, changes


def _log_odds(batch: Batch, logits: torch.Tensor, answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which examples a batch holds, and the log-odds of the right choice among the choices of each, [example].

    Their log sigmoid is the right choice's log-probability among the choices.
    """
    row, read, token, example, choice = batch.picks
    examples, place = example.unique(return_inverse=True)
    logp = logits.float().log_softmax(-1)[row, read, token]
    shape = len(examples), int(choice.max()) + 1
    total = logp.new_zeros(shape).index_put(
        (place.to(logp.device), choice.to(logp.device)), logp, accumulate=True
    )
    present = (
        torch.zeros(shape, dtype=torch.bool).index_put((place, choice), torch.tensor(True)).to(logp.device)
    )
    right = answers[examples].unsqueeze(1).to(logp.device)
    wrong = total.masked_fill(~present, -torch.inf).scatter(1, right, -torch.inf)
    return examples, total.gather(1, right)[:, 0] - wrong.logsumexp(1)
