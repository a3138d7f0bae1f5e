"""The checks of notebook 05: answers of learners, right and wrong, and what each is told."""

from itertools import combinations
from math import comb, prod

import numpy as np
import torch
from scipy.stats import hypergeom


def swap_by_heads(z, W, z_teacher, W_teacher, head, d_head):
    out = torch.zeros(z.shape[0], W.shape[0])
    for h in range(z.shape[1] // d_head):
        a, b = h * d_head, (h + 1) * d_head
        out += z_teacher[:, a:b] @ W_teacher[:, a:b].T if h == head else z[:, a:b] @ W[:, a:b].T
    return out


def swap_by_difference(z, W, z_teacher, W_teacher, head, d_head):
    part = slice(head * d_head, head * d_head + d_head)
    return z @ W.T - z[:, part] @ W[:, part].T + z_teacher[:, part] @ W_teacher[:, part].T


def swap_by_mask(z, W, z_teacher, W_teacher, head, d_head):
    ours = (torch.arange(z.shape[-1]) // d_head == head).float()
    return (z * (1 - ours)) @ W.T + (z_teacher * ours) @ W_teacher.T


def swap_by_cat(z, W, z_teacher, W_teacher, head, d_head):
    a, b = head * d_head, (head + 1) * d_head
    both = torch.cat([z[:, :a], z_teacher[:, a:b], z[:, b:]], 1)
    return both @ torch.cat([W[:, :a], W_teacher[:, a:b], W[:, b:]], 1).T


def swap_by_einsum(z, W, z_teacher, W_teacher, head, d_head):
    split = lambda x: x.unflatten(-1, (-1, d_head))  # noqa: E731
    written = torch.einsum("phd,mhd->hpm", split(z), split(W))
    lent = torch.einsum("phd,mhd->hpm", split(z_teacher), split(W_teacher))
    written[head] = lent[head]
    return written.sum(0)


def swap_forgets(z, W, z_teacher, W_teacher, head, d_head):
    part = slice(head * d_head, (head + 1) * d_head)
    return z_teacher[:, part] @ W_teacher[:, part].T


def swap_adds(z, W, z_teacher, W_teacher, head, d_head):
    return z @ W.T + swap_forgets(z, W, z_teacher, W_teacher, head, d_head)


def swap_strided(z, W, z_teacher, W_teacher, head, d_head):
    n, own = z.shape[1] // d_head, z.clone()
    own[:, head::n] = 0
    return own @ W.T + z_teacher[:, head::n] @ W_teacher[:, head::n].T


def swap_in_place(z, W, z_teacher, W_teacher, head, d_head):
    z[:, head * d_head : (head + 1) * d_head] = 0
    return z @ W.T + swap_forgets(z, W, z_teacher, W_teacher, head, d_head)


def last_by_loop(z, n_tokens):
    z = z.clone()
    for i, n in enumerate(n_tokens):
        z[i, n - 1, :] = 0
    return z


def last_by_index(z, n_tokens):
    z = z.clone()
    z[torch.arange(len(z)), torch.tensor(n_tokens) - 1] = 0
    return z


def last_by_mask(z, n_tokens):
    place = torch.arange(z.shape[1])[None, :, None]
    return z.masked_fill(place == torch.tensor(n_tokens)[:, None, None] - 1, 0)


def last_by_multiplying(z, n_tokens):
    keep = torch.ones(z.shape[:2])
    for i in range(len(n_tokens)):
        keep[i, n_tokens[i] - 1] = 0
    return z * keep[..., None]


def last_by_stack(z, n_tokens):
    rows = []
    for row, n in zip(z, n_tokens):
        rows.append(torch.cat([row[: n - 1], torch.zeros_like(row[:1]), row[n:]]))
    return torch.stack(rows)


def last_in_place(z, n_tokens):
    for i, n in enumerate(n_tokens):
        z[i, n - 1] = 0
    return z


def zeroed(z, where):
    z = z.clone()
    z[where] = 0
    return z


def from_last_on(z, n_tokens):
    return torch.stack([zeroed(row, slice(n - 1, None)) for row, n in zip(z, n_tokens)])


def before_last(z, n_tokens):
    return torch.stack([zeroed(row, slice(0, n - 1)) for row, n in zip(z, n_tokens)])


def none_drawn(n, good, k):
    return prod((n - good - i) / (n - i) for i in range(k))


def by_listing(n_heads, n_good, k):
    teams = list(combinations(range(n_heads), k))
    return sum(min(team) < n_good for team in teams) / len(teams)


def by_summing(n_heads, n_good, k):
    ways = sum(comb(n_good, hits) * comb(n_heads - n_good, k - hits) for hits in range(1, min(n_good, k) + 1))
    return ways / comb(n_heads, k)


def drawn_one_by_one(n_heads, n_good, k):
    none, left = 1.0, n_heads
    for _ in range(k):
        none *= max(0, left - n_good) / left
        left -= 1
    return np.float64(1 - none)


def team(score, heads, k):
    kept = []
    for _ in range(k):
        kept.append(max((h for h in heads if h not in kept), key=lambda h: score(kept + [h])))
    return kept


def team_by_sets(score, heads, k):
    kept, left = [], set(heads)
    while len(kept) < k:
        best = max(left, key=lambda head: score({*kept, head}))
        left.remove(best)
        kept.append(best)
    return kept


def team_by_gains(score, heads, k):
    kept = []
    for _ in range(k):
        gains = {h: score([*kept, h]) - score(kept) for h in heads if h not in kept}
        kept += [max(gains, key=gains.get)]
    return tuple(kept)


def team_by_sorting(score, heads, k):
    if k == 0:
        return []
    before = team_by_sorting(score, heads, k - 1)
    return before + [sorted(set(heads) - set(before), key=lambda h: score(before + [h]))[-1]]


def team_by_numpy(score, heads, k):
    kept, left = [], list(heads)
    while len(kept) < k:
        kept.append(left.pop(int(np.argmax([score([*kept, head]) for head in left]))))
    return kept


def stars(score, heads, k):
    return sorted(heads, key=lambda h: score([h]), reverse=True)[:k]


def pair_with_the_best(score, heads, k):
    first = stars(score, heads, 1)
    rest = [h for h in heads if h not in first]
    return first + sorted(rest, key=lambda h: score(first + [h]), reverse=True)[: k - 1]


def dropping(score, heads, k):
    kept = list(heads)
    while len(kept) > k:
        worst = max(kept, key=lambda h: score([x for x in kept if x != h]))
        kept.remove(worst)
    return kept


RIGHT = {
    "gap_closed": [
        lambda s, h, t: (h - s) / (t - s),
        lambda s, h, t: 1 - (t - h) / (t - s),
        lambda s, h, t: np.float64(h - s) / np.float64(t - s),
        lambda s, h, t: torch.tensor((h - s) / (t - s)),
        lambda s, h, t: float(np.interp(h, [s - 9 * (t - s), t + 9 * (t - s)], [-9, 10])),
    ],
    "swap_head": [swap_by_heads, swap_by_difference, swap_by_mask, swap_by_cat, swap_by_einsum],
    "silence_last": [last_by_loop, last_by_index, last_by_mask, last_by_multiplying, last_by_stack],
    "holds_one": [
        lambda n, g, k: 1 - comb(n - g, k) / comb(n, k),
        lambda n, g, k: hypergeom(n, g, k).sf(0),
        by_listing,
        by_summing,
        drawn_one_by_one,
    ],
    "greedy": [team, team_by_sets, team_by_gains, team_by_sorting, team_by_numpy],
}

WRONG = {  # name -> [(the answer, a part of what the learner is told)]
    "gap_closed": [
        (lambda s, h, t: h - s, "points won"),
        (lambda s, h, t: (h - s) / t, "divided by the teacher's"),
        (lambda s, h, t: h / t, "was there before"),
        (lambda s, h, t: (t - h) / (t - s), "still *open*"),
        (lambda s, h, t: (s - h) / (t - s), "the sign"),
        (lambda s, h, t: (h - s) / (t - s) * 100, "not percent"),
        (lambda s, h, t: np.clip((h - s) / (t - s), 0, 1), "the share at 0 or 1"),
        (lambda s, h, t: max((h - s) / (t - s), 0), "the share at 0"),
        (lambda s, h, t: (h - s) / s, ""),
        (lambda s, h, t: (h - s) / (t - s) > 0.5, ""),
    ],
    "swap_head": [
        (swap_adds, "still contributes"),
        (swap_forgets, "other heads still write"),
        (lambda z, W, zt, Wt, h, d: swap_by_difference(z, W, zt, W, h, d), "not through the student's"),
        (lambda z, W, zt, Wt, h, d: swap_by_difference(z, W, z, Wt, h, d), "*student's* head"),
        (lambda z, W, zt, Wt, h, d: swap_by_difference(z, Wt, zt, Wt, h, d), "the student's own W"),
        (
            lambda z, W, zt, Wt, h, d: swap_by_mask(z, W, zt, Wt, h, d) + swap_forgets(z, W, z, W, h, d),
            "zero",
        ),
        (swap_strided, "lie side by side"),
        (lambda z, W, zt, Wt, h, d: zt @ Wt.T, ""),
        (lambda z, W, zt, Wt, h, d: z @ W.T, ""),
        (swap_in_place, "work on a .clone()"),
    ],
    "silence_last": [
        (lambda z, n: zeroed(z, (slice(None), -1)), "padding in a prompt shorter"),
        (lambda z, n: zeroed(z, (range(len(z)), n)), "numbered 0 to n - 1"),
        (lambda z, n: zeroed(z, -1), "last *prompt*"),
        (lambda z, n: z * 0, "silence only the last"),
        (lambda z, n: zeroed(z, (slice(None), max(n) - 1)), "one place for all"),
        (lambda z, n: zeroed(z, (slice(None), torch.tensor(n) - 1)), "the places of all prompts"),
        (from_last_on, "nobody's position"),
        (before_last, "*but* the last"),
        (last_in_place, "work on a .clone()"),
        (lambda z, n: zeroed(z, (slice(None), slice(None), -1)), ""),
    ],
    "holds_one": [
        (none_drawn, "holding *none*"),
        (lambda n, g, k: 1 - ((n - g) / n) ** k, "you put them back"),
        (lambda n, g, k: k * g / n, "how many good ones to expect"),
        (lambda n, g, k: min(1, k * g / n), "do not add up"),
        (lambda n, g, k: hypergeom(n, g, k).pmf(1), "*exactly* one"),
        (lambda n, g, k: hypergeom(n, g, k).pmf(g), "holding *all*"),
        (lambda n, g, k: k / n, "only *one* head"),
        (lambda n, g, k: g / n, "a single draw"),
        (lambda n, g, k: comb(n - g, k) / comb(n, k) - 1, ""),
        (lambda n, g, k: 100 * (1 - none_drawn(n, g, k)), ""),
    ],
    "greedy": [
        (stars, "each head alone"),
        (pair_with_the_best, "*whole* team so far"),
        (dropping, "start with none and add"),
        (lambda s, h, k: list(max(combinations(h, k), key=s)), "greedy keeps what it has added"),
        (lambda s, h, k: sorted(team(s, h, k), key=h.index), "not in the order"),
        (lambda s, h, k: team(s, h, k)[::-1], "comes last, not first"),
        (lambda s, h, k: team(s, h, k + 1), "one head too many"),
        (lambda s, h, k: team(s, h, k - 1), "one head too few"),
        (lambda s, h, k: stars(lambda some: -s(some), h, k), ""),
        (lambda s, h, k: set(team(s, h, k)), ""),
        (lambda s, h, k: h[:k], ""),
    ],
}
