"""`find_roles`: the search for Gather and Aggregate heads, as one function.

Notebook 02 takes the same steps one by one. No head is named in advance, and none for being the best placed:
a head, or a team of heads that stand in for one another, is named if it looks where its role says, if letters
need it there, and if knowledge does not need it. Otherwise nothing is named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ga_utils.attention import closing_shares, into_segments, mean_ratio, segment_shares
from ga_utils.examples import Example
from ga_utils.heads import Head, ablate, alive_heads
from ga_utils.models.lm import LM
from ga_utils.scoring import Score, evaluate
from ga_utils.segments import segments
from ga_utils.sweeps import sweep_heads
from ga_utils.sweeps.results import HeadSweep, same_values

MAX_EXACT = 128  # heads; with more, disabling each of them in turn takes too long to be the default
CANDIDATES = 8  # heads among which a team is searched: those that look most like the role
MAX_TEAM = 4
NOTHING_LEFT = 0.1  # of a skill that counts as lost
PLACE = {"Gather": "closing", "Aggregate": "last"}  # where each role is said to work


@dataclass(frozen=True, eq=False)
class Roles:
    """The heads that the search found, and the measurements it rests on.

    gather, aggregate: one head; several, a team that costs the skill only together; or none.
    evidence: a row for each candidate and each team. In points of accuracy: `letters`, lost when it is
        disabled where its role is said to work, and `knowledge`, lost when it is disabled everywhere. `share`
        with its 95 % interval and `chance`: of an Aggregate head, the right segment's share among closing
        tokens, and guessing; of a Gather head, the segment's share at its closing tokens, and that of even
        attention. `closers`: how much of the last row all closing tokens get. `confirmed`: `letters` again,
        on questions that the search has not seen.
    letters: the sweep over all heads, each disabled everywhere: the control.
    gather_score, aggregate_score: [n_layers, n_heads], 0 to 1.
    """

    gather: list[Head]
    aggregate: list[Head]
    evidence: pd.DataFrame
    letters: HeadSweep
    gather_score: np.ndarray
    aggregate_score: np.ndarray

    def __eq__(self, other) -> bool:
        return same_values(self, other)

    def __repr__(self):
        table = self.evidence.round(2).to_string(index=False) if len(self.evidence) else "no candidates"
        return f"Roles(gather={self.gather}, aggregate={self.aggregate})\n{table}"


def find_roles(
    lm: LM,
    letters: list[Example],
    knowledge: list[Example],
    min_loss: float = 0.5,
    max_knowledge: float = 0.25,
    min_share: float = 0.4,
    min_closers: float = 0.1,
    progress: bool = True,
) -> Roles:
    """Find the Aggregate head and the Gather head before it, or the teams of heads that hold these roles.

    Every other question is searched on, the rest confirms. A role's candidates are the `CANDIDATES` heads
    that look most like it:

    - Aggregate: at the last token, all closing tokens get at least `min_closers` of the attention, and the
      right segment's at least `min_share` of that, above chance by its 95 % interval.
    - Gather: in layers before the Aggregate head's; closing tokens give their segment more than even
      attention would, by the interval.

    Among them, greedily, the fewest heads (at most `MAX_TEAM`) without which, at the last token or at the
    closing tokens alone, next to nothing is left above chance. If that can't be reached, they must cost at
    least `min_loss` of the distance from chance; on the other half of the questions, too. Disabled
    everywhere, they may cost knowledge at most `max_knowledge` of the points that letters lose.

    The defaults: half of the skill, since a head that costs less leaves the model another way; a quarter,
    since a head that hurts both alike serves everything; 0.4 of four options, where chance is 0.25.
    """
    letters, knowledge = list(letters), list(knowledge)
    search = _Search(lm, letters[::2], letters[1::2], knowledge, min_loss, max_knowledge)
    method = "exact" if len(alive_heads(lm)) <= MAX_EXACT else "screen"
    swept = sweep_heads(lm, search.found_on, method=method, progress=progress)

    right, closers = np.moveaxis(closing_shares(lm, search.found_on, progress), -1, 0)
    ratio = np.divide(right, closers, out=np.full_like(right, np.nan), where=closers > 0)
    share, low, high = _interval(ratio, mean_ratio(right, closers))
    looks = {"share": share, "low": low, "high": high, "closers": closers.mean(0)}
    floors = (share >= min_share) & (low > search.chance) & (looks["closers"] >= min_closers)
    aggregate = search.team("Aggregate", floors, right.mean(0), looks, search.chance)

    into = segment_shares(lm, search.found_on, progress)
    better = into.mean(0).argmax(-1)  # of the two closing tokens, for each head
    into = np.take_along_axis(into, better[None, ..., None], -1)[..., 0]
    gathering, low, high = _interval(into, into.mean(0))
    even = _even(lm, search.found_on)[better]
    before = min((head.layer for head in aggregate), default=lm.n_layers)
    floors = (low > even) & (np.arange(lm.n_layers)[:, None] < before)
    looks = {"share": gathering, "low": low, "high": high, "closers": np.full_like(low, np.nan)}
    gather = search.team("Gather", floors, gathering, looks, even)
    return Roles(gather, aggregate, pd.DataFrame(search.rows), swept, gathering, right.mean(0))


class _Search:
    """A search for both roles: the questions, what is lost without which heads, the rows of evidence."""

    def __init__(self, lm, found_on, confirmed_on, knowledge, min_loss, max_knowledge):
        self.lm, self.found_on, self.confirmed_on, self.knowledge = lm, found_on, confirmed_on, knowledge
        self.min_loss, self.max_knowledge, self.rows = min_loss, max_knowledge, []
        self.whole = {id(of): evaluate(lm, of) for of in (found_on, confirmed_on, knowledge)}
        self.chance = float(np.mean([1 / len(example.choices) for example in found_on]))

    def without(self, heads: list[Head], examples: list[Example], at: str | None = None) -> Score:
        with ablate(self.lm, heads, at=at):
            return evaluate(self.lm, examples)

    def loss(self, heads: list[Head], examples: list[Example], at: str | None = None) -> float:
        return self.whole[id(examples)].accuracy - self.without(heads, examples, at).accuracy

    def needed(self, examples: list[Example]) -> float:
        """How much accuracy a team must cost: `min_loss` of what the model has above chance."""
        return self.min_loss * (self.whole[id(examples)].accuracy - self.chance)

    def team(self, role, floors, order, looks, chance) -> list[Head]:
        """The team of a role, or no heads; notes the evidence.

        Args: tables [n_layers, n_heads]: which heads pass the floors, how much each looks like the role, and
            `looks` and `chance` for the evidence.
        """
        at = PLACE[role]
        heads = [head for head in alive_heads(self.lm) if floors[head.layer, head.head]]
        heads = sorted(heads, key=lambda head: -order[head.layer, head.head])[:CANDIDATES]
        for head in heads:
            seen = {name: table[head.layer, head.head] for name, table in looks.items()}
            expected = np.broadcast_to(chance, order.shape)[head.layer, head.head]
            self.note(role, [head], self.loss([head], self.found_on, at), seen | {"chance": expected})
        team = self.greedy(heads, at)
        if not team:
            return []
        confirmed, known = self.loss(team, self.confirmed_on, at), self.loss(team, self.knowledge)
        named = confirmed >= self.needed(self.confirmed_on) and known <= self.max_knowledge * confirmed
        self.note(role, team, self.loss(team, self.found_on, at), {}, confirmed, named)
        return sorted(team) if named else []

    def greedy(self, heads: list[Head], at: str) -> list[Head]:
        """The fewest heads, added one at a time, that leave next to nothing, or else are costly."""
        whole = self.whole[id(self.found_on)]
        if whole.ci95[0] <= self.chance:
            return []  # no skill to lose

        def at_chance(score: Score) -> bool:
            return score.accuracy - self.chance <= NOTHING_LEFT * (whole.accuracy - self.chance)

        def costly(score: Score) -> bool:  # by the end of the interval that speaks against it
            return whole.accuracy - score.ci95[1] >= self.needed(self.found_on)

        team, left = [], whole
        while len(team) < min(MAX_TEAM, len(heads)) and not at_chance(left):
            scores = {h: self.without([*team, h], self.found_on, at) for h in heads if h not in team}
            team.append(min(scores, key=lambda h: (scores[h].accuracy, scores[h].right_logprob)))
            left = scores[team[-1]]
        goal = at_chance if at_chance(left) else costly
        for head in list(team):  # a member may be needless: an early one, or one that was no help
            rest = [other for other in team if other != head]
            if rest and goal(self.without(rest, self.found_on, at)):
                team = rest
        return team if costly(self.without(team, self.found_on, at)) else []

    def note(self, role, heads, letters, seen, confirmed=np.nan, named=False) -> None:
        row = {"role": role, "heads": " ".join(map(str, heads)), "letters": 100 * letters}
        row |= {"confirmed": 100 * confirmed, "knowledge": 100 * self.loss(heads, self.knowledge)}
        row |= {name: seen.get(name, np.nan) for name in ("share", "low", "high", "chance", "closers")}
        self.rows.append(row | {"named": named})


def _interval(values: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over examples with the ends of its 95 % interval (normal approximation): NaN are left out."""
    n = (~np.isnan(values)).sum(0).clip(min=2)
    spread = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / (n - 1) / n)
    return mean, mean - 1.96 * spread, mean + 1.96 * spread


def _even(lm: LM, examples: list[Example]) -> np.ndarray:
    """The `segment_shares` of a head that attends evenly to all tokens so far, mean over examples: [2]."""
    shares = []
    for example in examples:
        of = segments(lm, example)
        n = max(segment.end for segment in of) + 2
        A = torch.ones(1, n, n, dtype=torch.float32).tril() / torch.arange(1, n + 1)[:, None]
        shares.append(into_segments(A, of)[0].numpy())
    return np.mean(shares, axis=0)
