"""Which heads are worth an exact look? Attribution of all heads from one forward and one backward pass.

Disabling a head changes its z by (replacement - z). To first order the log-odds of the right choice among the choices
change by their gradient at z times that (attribution patching: Nanda 2023; Syed et al. 2023, arXiv 2310.10348).
An estimate, and blind where a saturated softmax hides a head: that is why the best-placed heads are then disabled in earnest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from ga_utils.exact import Segment, segment_of, tokens_at_once
from ga_utils.heads import Head, replacement_tables
from ga_utils.items import Example
from ga_utils.models import LM, Mixer
from ga_utils.resume import at, entering
from ga_utils.scoring import Row, token_rows


def attribution(
    lm: LM, examples: list[Example], heads: list[Head], mode: str = "zero", reference: list[Example] | None = None
) -> tuple[np.ndarray, list[Head]]:
    """Estimates for all heads, and the heads in the order in which they deserve an exact look.

    Two orders take turns, since each is blind to something: by the estimated log-probability of the right choice among the
    choices (the better one where effects are small), and by the same with every change taken for a loss (a head on which all
    hangs is far outside the linear range, where even the sign of its estimate may be wrong).

    Returns: estimated mean log-probability of the right choice with each head disabled, [len(heads)]; heads, in order.
    """
    mixers = lm.mixers
    tables = replacement_tables(lm, mixers, mode, reference)
    margins, changes = zip(*(_first_order(lm, examples, rows, mixers, tables) for rows in _batches(lm, examples)))
    margin, change = torch.cat(margins), {head: torch.cat([c[head] for c in changes]) for head in heads}
    estimate = np.array([logsigmoid(margin + change[head]).mean().item() for head in heads])
    worst = np.array([logsigmoid(margin - change[head].abs()).mean().item() for head in heads])
    turns = np.stack([estimate.argsort(kind="stable"), worst.argsort(kind="stable")], 1).flatten()
    return estimate, [heads[i] for i in dict.fromkeys(turns)]


def _batches(lm: LM, examples: list[Example]) -> Iterator[list[Row]]:
    """Examples whole, as many as go through at once; the rows of an example must share a batch."""
    rows, n_tokens = [], 0
    for i, example in enumerate(examples):
        new = token_rows(lm, i, example)
        if rows and n_tokens + sum(len(row.ids) for row in new) > tokens_at_once(lm):
            yield rows
            rows, n_tokens = [], 0
        rows += new
        n_tokens += sum(len(row.ids) for row in new)
    yield rows


def _first_order(
    lm: LM, examples: list[Example], rows: list[Row], mixers: list[Mixer], tables: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[Head, torch.Tensor]]:
    """Log-odds of the right choice for each example in a batch, [example], and their estimated change, {head: [example]}."""
    segment, seen = segment_of(rows, 0, lm.device), {}
    numbers = sorted({row.example for row in rows})
    with torch.enable_grad(), ExitStack() as stack:
        # Gradients begin at the embeddings, also if the weights ask for none.
        stack.enter_context(entering(lm.layers[0], lambda hidden: hidden.detach().requires_grad_()))
        for k, mixer in enumerate(mixers):
            stack.enter_context(mixer.on_z(lambda z, k=k: seen.__setitem__(k, z)))
        margin = _margins(lm, segment, examples, numbers)
        gradients = torch.autograd.grad(margin.sum(), [seen[k] for k in range(len(mixers))])
    of_example = torch.tensor([numbers.index(row.example) for row in rows], device=lm.device)
    change = {}
    for k, (mixer, table, gradient) in enumerate(zip(mixers, tables, gradients)):
        z = seen[k].detach()
        instead = table[torch.arange(z.shape[1], device=z.device) % len(table)]
        by_row = ((instead - z) * gradient).float().sum(1).unflatten(-1, (mixer.n_heads, mixer.d_head)).sum(-1)  # [row, head]
        by_example = by_row.new_zeros(len(numbers), mixer.n_heads).index_add_(0, of_example, by_row).cpu()
        change |= {Head(mixer.layer, head): by_example[:, head - mixer.first] for head in mixer.heads}
    return margin.detach().float().cpu(), change


def _margins(lm: LM, segment: Segment, examples: list[Example], numbers: list[int]) -> torch.Tensor:
    """Log-odds of the right choice among the choices of each example, [example]; their log sigmoid is its log-probability."""
    keep = segment.reads.unique()
    logits = lm.model(
        input_ids=segment.ids, attention_mask=segment.mask, use_cache=False, logits_to_keep=keep
    ).logits  # [row, kept position, vocabulary]
    logp = at(logits, torch.searchsorted(keep, segment.reads)).float().log_softmax(-1)
    row, read, token, example, choice = segment.picks.to(lm.device)
    width = max(len(examples[i].choices) for i in numbers)
    place = torch.tensor([numbers.index(i) for i in example.tolist()], device=lm.device)
    total = logp.new_zeros(len(numbers), width).index_put((place, choice), logp[row, read, token], accumulate=True)
    absent = torch.tensor([[c >= len(examples[i].choices) for c in range(width)] for i in numbers], device=lm.device)
    right = torch.tensor([[examples[i].answer] for i in numbers], device=lm.device)
    wrong = total.masked_fill(absent, -torch.inf).scatter(1, right, -torch.inf)
    return total.gather(1, right)[:, 0] - wrong.logsumexp(1)
