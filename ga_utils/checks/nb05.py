"""The checks of notebook 05."""

from __future__ import annotations

import random
from itertools import combinations, cycle
from math import comb

import torch

from ga_utils.checks.check import Check, random_tensor


def _gap(student, hybrid, teacher):
    return (hybrid - student) / (teacher - student)


def _gap_accuracies(rng: random.Random) -> tuple[float, float, float]:
    """Hybrids between the two, worse than the student, and better than the teacher."""
    student, teacher = rng.uniform(0.1, 0.5), rng.uniform(0.7, 0.9)
    share = next(_SHARES) + rng.uniform(-0.05, 0.05)
    return student, student + share * (teacher - student), teacher


_SHARES = cycle([0.3, 0.6, -0.15, 1.1, 0.85])  # every run of five trials meets each kind

gap_closed = Check(
    "gap_closed",
    reference=_gap,
    inputs=_gap_accuracies,
    mistakes={
        "those are the points won; the question is what share of the gap they are": (
            lambda student, hybrid, teacher: hybrid - student
        ),
        "you divided by the teacher's accuracy; the gap is teacher - student": (
            lambda student, hybrid, teacher: (hybrid - student) / teacher
        ),
        "that compares hybrid and teacher; the student's accuracy was there before, so take it off": (
            lambda student, hybrid, teacher: hybrid / teacher
        ),
        "that is the share that is still *open*": lambda *three: 1 - _gap(*three),
        "the sign: what was won is hybrid - student": lambda *three: -_gap(*three),
        "a share, please, not percent": lambda *three: 100 * _gap(*three),
        "a hybrid may be worse than its student or better than the teacher: don't cut the share at 0 or 1": (
            lambda *three: min(1.0, max(0.0, _gap(*three)))
        ),
        "a hybrid may be worse than its student: don't cut the share at 0": (
            lambda *three: max(0.0, _gap(*three))
        ),
    },
)


def _swapped(z, W, z_teacher, W_teacher, head, d_head, keep_own=False, all_heads=False):
    """The mixer's output [pos, d_model] with one head's part taken from the teacher."""
    columns = slice(head * d_head, (head + 1) * d_head)
    own = z if keep_own else _zero(z, (..., columns))
    lent = slice(None) if all_heads else columns
    return own @ W.T + z_teacher[..., lent] @ W_teacher[:, lent].T


def _zero(z, where):
    z = z.clone()
    z[where] = 0
    return z


def _strided(z, W, z_teacher, W_teacher, head, d_head):
    every = slice(head, None, z.shape[-1] // d_head)
    return _zero(z, (..., every)) @ W.T + z_teacher[..., every] @ W_teacher[:, every].T


def _patched_in(z, W, z_teacher, W_teacher, head, d_head):
    z = z.clone()
    z[..., head * d_head : (head + 1) * d_head] = z_teacher[..., head * d_head : (head + 1) * d_head]
    return z @ W.T


swap_head = Check(
    "swap_head",
    reference=_swapped,
    inputs=lambda rng: (
        random_tensor(rng, 4, 12),
        random_tensor(rng, 5, 12),
        random_tensor(rng, 4, 12),
        random_tensor(rng, 5, 12),
        rng.randrange(1, 4),
        3,
    ),
    mistakes={
        "the student's own head still contributes: zero its columns of z": (
            lambda *args: _swapped(*args, keep_own=True)
        ),
        "you added *all* of the teacher's heads; only one was asked for": (
            lambda *args: _swapped(*args, all_heads=True)
        ),
        "the borrowed head must write through the teacher's columns of W, not through the student's": (
            _patched_in
        ),
        "the student's other heads still write, through the student's W: add their part": (
            lambda z, W, z_teacher, W_teacher, head, d_head: _swapped(
                torch.zeros_like(z), W, z_teacher, W_teacher, head, d_head
            )
        ),
        "the student's other heads write through the student's own W": (
            lambda z, W, z_teacher, W_teacher, *head: _swapped(z, W_teacher, z_teacher, W_teacher, *head)
        ),
        "that sends the *student's* head through the teacher's columns: what it writes must be z_teacher's": (
            lambda z, W, z_teacher, W_teacher, *head: _swapped(z, W, z, W_teacher, *head)
        ),
        "a head's columns lie side by side: head h has h * d_head up to (h + 1) * d_head": _strided,
    },
)


def _silenced(z, n_tokens, place=-1):
    """z [prompt, pos, column] with one position zeroed in each prompt, counted from the end of its tokens."""
    return _zero(z, (range(len(z)), [n + place for n in n_tokens]))


def _silenced_from(z, n_tokens, first=0, stop=None):
    """All positions from so many before the last real one on, or up to `stop` counted from it, are zero."""
    z = z.clone()
    for i, n in enumerate(n_tokens):
        z[i, max(0, n - 1 + first) : None if stop is None else n - 1 + stop] = 0
    return z


silence_last = Check(
    "silence_last",
    reference=_silenced,
    inputs=lambda rng: (random_tensor(rng, 3, 7, 5), rng.sample([6, rng.randrange(4, 6), 3], 3)),
    mistakes={
        "z[:, -1] is padding in a prompt shorter than the longest: its last token is at n_tokens[i] - 1": (
            lambda z, n_tokens: _zero(z, (slice(None), -1))
        ),
        "n tokens are numbered 0 to n - 1: you silenced the position after the last one": (
            lambda z, n_tokens: _silenced(z, n_tokens, place=0)
        ),
        "z[-1] is the last *prompt* of the batch; positions are the second dimension": (
            lambda z, n_tokens: _zero(z, -1)
        ),
        "silence only the last position: earlier ones may still gather": (
            lambda z, n_tokens: torch.zeros_like(z)
        ),
        "each prompt ends at its own place; you silenced the places of all prompts in every one": (
            lambda z, n_tokens: _zero(z, (slice(None), [n - 1 for n in n_tokens]))
        ),
        "the prompts end at different places, n_tokens[i] - 1; you used one place for all": (
            lambda z, n_tokens: _zero(z, (slice(None), max(n_tokens) - 1))
        ),
        "the padding after a prompt is nobody's position: leave it as it was": (
            lambda z, n_tokens: _silenced_from(z, n_tokens)
        ),
        "that is the other half of the experiment: all positions *but* the last": (
            lambda z, n_tokens: _silenced_from(z, n_tokens, first=-99, stop=0)
        ),
    },
)


def _one_of(n_heads, n_good, k):
    """The probability that k of n heads, drawn without replacement, hold at least one good one."""
    return 1 - comb(n_heads - n_good, k) / comb(n_heads, k)


# Every run of five trials meets one in which more are drawn than there are others: then it is certain.
_DRAWS = cycle([(12, 2, 4), (10, 3, 2), (14, 2, 6), (9, 4, 7), (13, 3, 5)])

holds_one = Check(
    "holds_one",
    reference=_one_of,
    inputs=lambda rng: (lambda n, good, k: (n + rng.randrange(2), good, k + rng.randrange(2)))(*next(_DRAWS)),
    mistakes={
        "that is the chance of holding *none*": lambda n, good, k: 1 - _one_of(n, good, k),
        "a head is drawn once: after each draw there is one head fewer (you put them back)": (
            lambda n, good, k: 1 - (1 - good / n) ** k
        ),
        "that is how many good ones to expect; two at once are not twice a success": (
            lambda n, good, k: k * good / n
        ),
        "two at once are no better than one, but the chances of several draws do not add up, either": (
            lambda n, good, k: min(1.0, k * good / n)
        ),
        "that is the chance of *exactly* one; two will do as well": (
            lambda n, good, k: good * comb(n - good, k - 1) / comb(n, k)
        ),
        "that is the chance of holding *all* good ones": (
            lambda n, good, k: comb(n - good, k - good) / comb(n, k) if k >= good else 0.0
        ),
        "that would be right if only *one* head were good": lambda n, good, k: k / n,
        "that is a single draw: k heads are drawn": lambda n, good, k: good / n,
    },
)


def _greedy(score, heads, k, pick=max):
    kept: list = []
    while len(kept) < k:
        kept.append(pick((head for head in heads if head not in kept), key=lambda head: score([*kept, head])))
    return kept


def _stars(score, heads, k):
    return sorted(heads, key=lambda head: -score([head]))[:k]


def _backwards(score, heads, k):
    """Starts from all heads and drops the one that is missed least, in the order of what is left."""
    kept = list(heads)
    while len(kept) > k:
        kept.remove(max(kept, key=lambda head: score([other for other in kept if other != head])))
    return kept


def _partners(score, heads, k):
    """The best one, then those that score best together with it alone."""
    first = max(heads, key=lambda head: score([head]))
    rest = sorted((h for h in heads if h != first), key=lambda head: -score([first, head]))
    return [first, *rest[: k - 1]]


_MISCHOSEN = {
    "you scored each head alone, so one that repeats what is kept looks good: score [*kept, head]": _stars,
    "from the third head on, score it together with the *whole* team so far, not with the best head alone": (
        _partners
    ),
    "those add the *least* each time": lambda score, heads, k: _greedy(score, heads, k, pick=min),
    "that starts from all heads and drops; start with none and add": _backwards,
    "that is the best team of k heads, from all that there are; greedy keeps what it has added": (
        lambda score, heads, k: list(max(combinations(heads, k), key=lambda team: score(list(team))))
    ),
    "the right heads, but not in the order in which they were added": (
        lambda score, heads, k: sorted(_greedy(score, heads, k), key=list(heads).index)
    ),
    "the last one added comes last, not first": lambda score, heads, k: _greedy(score, heads, k)[::-1],
    "that is one head too many": lambda score, heads, k: _greedy(score, heads, k + 1),
    "that is one head too few": lambda score, heads, k: _greedy(score, heads, k - 1),
}


def _overlapping(rng: random.Random):
    """A score of teams, the heads, and k: what a team can do is the sum of what its heads cover.

    Heads overlap, so that greedy, the best alone, the best team and the other mistakes all differ.
    """
    while True:
        weights = [rng.uniform(0.5, 1.5) for _ in range(12)]
        heads = [f"L{i}H{rng.randrange(4)}" for i in rng.sample(range(7), 7)]
        covers = {head: rng.sample(range(12), rng.randrange(2, 6)) for head in heads}

        def score(team, covers=covers, weights=weights):
            return sum(weights[i] for i in set().union(*(covers[head] for head in team)))

        k = rng.randrange(3, 5)
        right = _greedy(score, heads, k)
        if _no_tie(score, heads, right) and _tells_apart(score, heads, right):
            return score, heads, k


def _tells_apart(score, heads, right):
    """Does every mistake choose otherwise? The first five choose other heads, whatever their order."""
    for number, mistake in enumerate(_MISCHOSEN.values()):
        given = mistake(score, heads, len(right))
        if given == right or (number < 5 and set(given) == set(right)):
            return False
    return True


def _no_tie(score, heads, right):
    """Is the head added next always the only one that adds most?"""
    for size, best in enumerate(right):
        team = right[:size]
        rest = [score([*team, head]) for head in heads if head not in [*team, best]]
        if score([*team, best]) - max(rest) < 0.01:
            return False
    return True


greedy = Check("greedy", reference=_greedy, inputs=_overlapping, mistakes=_MISCHOSEN)
