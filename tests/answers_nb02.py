"""The checks of notebook 02: answers of learners, right and wrong, and what each is told."""

import numpy as np
import torch


def by_mask(z, head, d_head):
    heads = torch.arange(z.shape[-1]) // d_head
    return z.masked_fill(heads == head, 0)


def by_unflatten(z, head, d_head):
    z = z.clone().unflatten(-1, (-1, d_head))
    z[:, :, head] = 0
    return z.flatten(-2)


def by_cat(z, head, d_head):
    a, b = head * d_head, (head + 1) * d_head
    return torch.cat([z[..., :a], torch.zeros_like(z[..., a:b]), z[..., b:]], -1)


def by_where(z, head, d_head):
    columns = torch.arange(z.shape[-1])
    return torch.where((columns >= head * d_head) & (columns < (head + 1) * d_head), torch.zeros(()), z)


def by_loop(z, head, d_head):
    z = z.clone()
    for column in range(head * d_head, head * d_head + d_head):
        z[:, :, column] = 0
    return z


def in_place(z, head, d_head):
    z[..., head * d_head : (head + 1) * d_head] = 0
    return z


def share_by_loop(A, closings, right):
    row = A[-1].tolist()
    mass = [sum(row[p] for p in closing) for closing in closings]
    return mass[right] / sum(mass)


def share_by_numpy(A, closings, right):
    mass = A[-1].numpy()[np.array(closings)].sum(1)
    return mass[right] / mass.sum()


def greedy(loss, heads, enough, first="", prune=True, rank=False):
    found = []
    order = sorted(heads, key=lambda head: loss([head]), reverse=True)
    while loss(found) < enough:
        left = [head for head in order if head not in found]
        found.append(left[0] if rank else max(left, key=lambda head: loss(found + [head])))
    for head in reversed(found) if prune else ():
        if loss([other for other in found if other != head]) >= enough:
            found = [other for other in found if other != head]
    return set(found)


def empties_the_list(loss, heads, enough):
    found = greedy(loss, heads, enough)
    heads.clear()
    return found


def pairs_up(closings, right, other):
    plan = {}
    for i in (0, 1):
        plan[closings[other][i]] = closings[right][i]
        plan[closings[right][i]] = closings[other][i]
    return plan


def numbered(closings, right, other):
    step = closings[other][0] - closings[right][0]
    return {p + s: p + step - s for p in closings[right] for s in (0, step)}


def one_by_one(z, W, readout, d_head):
    rows = []
    for start in range(0, len(z), d_head):
        rows.append(readout @ (W[:, start : start + d_head] @ z[start : start + d_head]))
    return torch.stack(rows)


def by_einsum(z, W, readout, d_head):
    return torch.einsum("hd,mhd,lm->hl", z.unflatten(0, (-1, d_head)), W.unflatten(1, (-1, d_head)), readout)


def by_masks(z, W, readout, d_head):
    heads = torch.arange(len(z)) // d_head
    return torch.stack([readout @ W @ (z * (heads == h)) for h in range(len(z) // d_head)])


RIGHT = {
    "zero_head": [by_mask, by_unflatten, by_cat, by_where, by_loop],
    "closer_share": [
        share_by_loop,
        share_by_numpy,
        lambda A, closings, right: A[-1, closings[right]].sum() / A[-1, sum(closings, [])].sum(),
        lambda A, closings, right: (m := A[-1][torch.tensor(closings)].sum(1))[right] / m.sum(),
        lambda A, closings, right: float(A[-1, closings[right]].sum() / A[-1, torch.tensor(closings)].sum()),
    ],
    "team": [
        greedy,
        lambda loss, heads, enough: greedy(loss, list(reversed(heads)), enough),
        lambda loss, heads, enough: greedy(lambda some: loss(tuple(some)), heads, enough),
        lambda loss, heads, enough: {str(head) for head in greedy(loss, heads, enough)},
        lambda loss, heads, enough: greedy(loss, tuple(heads), enough),
    ],
    "swapped": [
        pairs_up,
        numbered,
        lambda c, r, o: dict(zip(c[r] + c[o], c[o] + c[r])),
        lambda c, r, o: dict(zip(c[o] + c[r], c[r] + c[o])),
        lambda c, r, o: dict(zip(c[r], c[o])) | dict(zip(c[o], c[r])),
        lambda c, r, o: {np.int64(a): np.int64(b) for a, b in pairs_up(c, r, o).items()},
    ],
    "letter_logits": [
        one_by_one,
        by_einsum,
        by_masks,
        lambda z, W, readout, d: ((readout @ W) * z).unflatten(1, (-1, d)).sum(2).T,
        lambda z, W, readout, d: by_einsum(z, W, readout, d).numpy(),
    ],
}

WRONG = {  # each with a part of what the learner is told
    "zero_head": [
        (in_place, "you changed the tensor"),
        (lambda z, head, d_head: by_mask(z, head + 1, d_head), "values differ"),
        (lambda z, head, d_head: by_mask(z, head - 1, d_head), "counted from 0"),
        (lambda z, head, d_head: by_cat(z, head, 4), ""),  # a width learned by heart
        (lambda z, head, d_head: z * 0, "values differ"),
        (lambda z, head, d_head: z[..., head * d_head : (head + 1) * d_head], "expected shape"),
        (lambda z, head, d_head: z - by_mask(z, head, d_head), "everything but"),
    ],
    "closer_share": [
        (lambda A, c, right: A[-1, c[right]].sum(), "of *all* attention"),
        (lambda A, c, right: A[-1, c[right]].sum() / A[-1].sum(), "of *all* attention"),
        (lambda A, c, right: A[-1, c[right]].sum() / A[-1, sum(c[:4], [])].sum(), ""),  # always four options
        (lambda A, c, right: A[-1, c[right]].max() / A[-1, sum(c, [])].sum(), ""),
        (lambda A, c, right: A[c[right], -1].sum() / A[sum(c, []), -1].sum(), "A[query, key]"),
        (lambda A, c, right: A[-1, c[right][0]] / A[-1, [x[0] for x in c]].sum(), "two closing tokens"),
        (lambda A, c, right: 100 * share_by_loop(A, c, right), ""),
        (lambda A, c, right: share_by_loop(A, c, right - 1), ""),
    ],
    "team": [
        (lambda loss, heads, enough: greedy(loss, heads, enough, prune=False), "one of them is needless"),
        (lambda loss, heads, enough: greedy(loss, heads, enough, prune=False, rank=True), "ranked"),
        (lambda loss, heads, enough: set(heads), "all candidates"),
        (lambda loss, heads, enough: {max(heads, key=lambda h: loss([h]))}, "costliest single head"),
        (lambda loss, heads, enough: set(sorted(heads, key=lambda h: -loss([h]))[:2]), ""),
        (lambda loss, heads, enough: {h for h in heads if loss([h]) >= enough}, "together"),
        (lambda loss, heads, enough: sorted(greedy(loss, heads, enough)), ""),
        (empties_the_list, "you changed the list"),
    ],
    "swapped": [
        (lambda c, r, o: dict(zip(c[r], c[o])), "only copies"),
        (lambda c, r, o: dict(zip(c[o], c[r])), "other direction"),
        (lambda c, r, o: {p: p for p in c[r] + c[o]}, "nothing is swapped"),
        (lambda c, r, o: dict(zip(c[r] + c[o], c[o][::-1] + c[r][::-1])), "keep the order"),
        (lambda c, r, o: {c[r][1]: c[o][1], c[o][1]: c[r][1]}, "segment has two"),
        (lambda c, r, o: {r: o, o: r}, "count segments"),
        (lambda c, r, o: list(pairs_up(c, r, o).items()), "expected {"),
        (lambda c, r, o: pairs_up(c, 0, 1), ""),
    ],
    "letter_logits": [
        (lambda z, W, readout, d: readout @ W @ z, "all heads together"),
        (lambda z, W, readout, d: one_by_one(z, W, readout, d).T, "transposed"),
        (lambda z, W, readout, d: one_by_one(z, W, readout, d).softmax(1), "*prefers*"),
        (lambda z, W, readout, d: by_einsum(torch.ones_like(z), W, readout, d), "without z"),
        (lambda z, W, readout, d: one_by_one(z, W, readout, 2), ""),  # a width learned by heart
        (lambda z, W, readout, d: one_by_one(z, W, readout, d).abs(), "values differ"),
        (lambda z, W, readout, d: one_by_one(z, W, readout, d).flip(0), "values differ"),
    ],
}
