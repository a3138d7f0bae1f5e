"""`find_roles`: the search for Gather and Aggregate heads, as one function.

Notebook 02 takes the same steps one by one. No head is named in advance: first comes what disabling a head
costs, then where it looks.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from ga_utils.attention import aggregate_score, gather_score
from ga_utils.examples import Example
from ga_utils.heads import Head, alive_heads
from ga_utils.models.lm import LM
from ga_utils.sweeps import sweep_heads
from ga_utils.sweeps.results import HeadSweep, same_values

MAX_EXACT = 128  # heads; with more, disabling each of them in turn takes too long to be the default


@dataclass(frozen=True, eq=False)
class Roles:
    """The heads that the search found, and the measurements it rests on.

    gather: suspects in earlier layers than `aggregate` that look into the segments; they may share the work.
    aggregate: the suspect that looks most from the last token to the right segment.
    suspects: the heads that cost letters, and cost them clearly more than knowledge, worst first.
    letters, knowledge: the sweeps; knowledge only for the heads that cost letters.
    gather_score, aggregate_score: [n_layers, n_heads], 0 to 1.
    """

    gather: list[Head]
    aggregate: Head
    suspects: list[Head]
    letters: HeadSweep
    knowledge: HeadSweep
    gather_score: np.ndarray
    aggregate_score: np.ndarray

    def __eq__(self, other) -> bool:
        return same_values(self, other)

    def __repr__(self):
        return f"Roles(gather={self.gather}, aggregate={self.aggregate}, suspects={self.suspects})"


def find_roles(
    lm: LM,
    letters: list[Example],
    knowledge: list[Example],
    min_drop: float = 0.1,
    max_share: float = 0.45,
    min_gather: float = 0.6,
    progress: bool = True,
) -> Roles:
    """Find the Aggregate head and the Gather heads before it, by what disabling costs and by where they look.

    1. Suspects: disabling the head alone costs letters at least `min_drop` of accuracy, and knowledge at most
       `max_share` of that. A head that hurts both alike is needed for everything, not for retrieval.
    2. Aggregate: the suspect with the highest `aggregate_score`.
    3. Gather: suspects in earlier layers with a `gather_score` of at least `min_gather`.

    If no head passes, the highest-scoring heads are returned with a warning. In a model of more than 128
    heads, the search is screened (`sweep_heads`, method="screen").
    """
    letters, knowledge = list(letters), list(knowledge)
    method = "exact" if len(alive_heads(lm)) <= MAX_EXACT else "screen"
    by_letters = sweep_heads(lm, letters, method=method, progress=progress)
    swept = by_letters.top(by_letters.drop.size)
    costly = [h for h in swept if by_letters.drop[h.layer, h.head] >= min_drop]
    by_knowledge = sweep_heads(lm, knowledge, costly, progress=progress)
    cost = {h: (by_letters.drop[h.layer, h.head], by_knowledge.drop[h.layer, h.head]) for h in costly}
    clear = [h for h in costly if cost[h][1] <= max_share * cost[h][0]]
    suspects = clear or swept[:4]

    gathering = gather_score(lm, letters, progress=progress)
    aggregating = aggregate_score(lm, letters, progress=progress)
    aggregate = max(suspects, key=lambda h: aggregating[h.layer, h.head])
    earlier = [h for h in suspects if h.layer < aggregate.layer]
    gather = [h for h in earlier if gathering[h.layer, h.head] >= min_gather]

    if not clear or not gather:
        role = "Gather" if clear else "Aggregate"
        warnings.warn(f"{lm.name}: no head stands out as {role}; taking the best placed", stacklevel=2)
    if not gather:
        others = [h for h in suspects if h != aggregate] or [h for h in swept if h != aggregate]
        gather = [max(others, key=lambda h: gathering[h.layer, h.head])]
    return Roles(gather, aggregate, suspects, by_letters, by_knowledge, gathering, aggregating)
