"""The exercises' checks by notebook: `ga.checks.zero_head(my_zero_head)`, and `ga.checks.progress()`.

A check has a reference, random inputs, and the usual mistakes, each under the hint it deserves.
"""

from __future__ import annotations

from ga_utils.checks.check import OUTCOMES
from ga_utils.checks.nb00 import accuracy, by_luck, follows, pick_answer, skill_lost
from ga_utils.checks.nb01 import causal_attention, condense, continuation_logprob, fair_guess, soft_lookup
from ga_utils.checks.nb02 import closer_share, letter_logits, swapped, team, zero_head
from ga_utils.checks.nb03 import answered, loss_share, paired_p, rank_p, to_disable
from ga_utils.checks.nb04 import decay_mask, implicit_attention, next_state, numbers_kept, short_conv, unroll
from ga_utils.checks.nb05 import gap_closed, greedy, holds_one, silence_last, swap_head
from ga_utils.checks.nb06 import attention_by_part, moved, ov_logits, trade, z_of_head

NOTEBOOKS = {  # the exercises of each notebook, in the notebook's order
    "00": [pick_answer, accuracy, skill_lost, follows, by_luck],
    "01": [fair_guess, continuation_logprob, soft_lookup, condense, causal_attention],
    "02": [zero_head, closer_share, team, swapped, letter_logits],
    "03": [to_disable, rank_p, answered, loss_share, paired_p],
    "04": [next_state, unroll, decay_mask, short_conv, implicit_attention, numbers_kept],
    "05": [gap_closed, swap_head, silence_last, holds_one, greedy],
    "06": [attention_by_part, z_of_head, trade, moved, ov_logits],
}
ALL = {check.name: check for checks in NOTEBOOKS.values() for check in checks}


def progress() -> None:
    """Print a line for each notebook with a check called in this kernel: ✓ right, ✗ not yet, · not attempted.

    Nothing is written to disk. Each notebook has its own kernel, and a restarted kernel knows of no check.
    """
    for notebook, checks in NOTEBOOKS.items():
        marks = {check.name: OUTCOMES.get(check.name, "·") for check in checks}
        if marks.keys() & OUTCOMES.keys():
            right = list(marks.values()).count("✓")
            listed = "  ".join(f"{mark} {name}" for name, mark in marks.items())
            print(f"{notebook}: {right} of {len(marks)} right  ", listed)
    if not OUTCOMES:
        print("no exercise was checked in this kernel yet")
