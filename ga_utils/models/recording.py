"""What mixers read or write, text by text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ga_utils.models.batches import Row, span_of
from ga_utils.models.budget import fits, halving, is_long
from ga_utils.models.continuation import run
from ga_utils.models.lm import LM, Mixer
from ga_utils.models.mixers import Edit


def record_z(lm: LM, mixers: list[Mixer], rows: list[Row]) -> list[list[torch.Tensor]]:
    """For each mixer its z on each text: one [pos, n_heads * d_head] a row."""
    return record(lm, mixers, rows, lambda edit, mixer, keep: mixer.hook_z(edit, keep))


@torch.no_grad()
def record(
    lm: LM, mixers: list[Mixer], rows: list[Row], watch: Callable[[Edit, Mixer, Callable], None]
) -> list[list[torch.Tensor]]:
    """For each mixer what `watch(edit, mixer, keep)` hooks up to be kept, [batch, pos, ...]: one a row."""
    recorded: list[list[torch.Tensor]] = [[] for _ in mixers]
    left = [Row(row.index, row.example, row.ids, []) for row in rows]
    while left:
        with halving(lm):
            batch = left[:1]
            for row in left[1:]:
                width = max(len(r.ids) for r in [*batch, row])
                unlike = is_long(lm, len(row.ids)) != is_long(lm, len(batch[0].ids))
                if unlike or not fits(lm, len(batch) + 1, width, 0):
                    break
                batch.append(row)
            found: dict[int, torch.Tensor] = {}
            with lm.edited() as edit:
                for number, mixer in enumerate(mixers):
                    watch(edit, mixer, partial(found.__setitem__, number))
                run(lm, span_of(lm, batch, 0, None))
            for number, into in enumerate(recorded):
                into += [kept[: len(row.ids)].clone() for kept, row in zip(found[number], batch)]
            left = left[len(batch) :]
    return recorded
