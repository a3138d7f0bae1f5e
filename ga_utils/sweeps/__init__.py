"""Which heads, and which layers, does a task need? Disable each in turn and score.

Read `exact` for how heads are swept, `screen` for how the ones worth sweeping are found, `checkpoint` for how
results survive a crash, `ray_engine` for many machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ga_utils.examples import Example
from ga_utils.heads import Head, alive_heads, check_heads, check_mode, skip_layers, truncate
from ga_utils.models.batches import Row, rows_of
from ga_utils.models.budget import budget
from ga_utils.models.lm import LM
from ga_utils.scoring import Score, evaluate, warn_of_beginnings
from ga_utils.segments import Places, Where
from ga_utils.sweeps.checkpoint import MEMORY, Checkpoint, Piece, automatic, identity
from ga_utils.sweeps.exact import ExactSweep
from ga_utils.sweeps.ray_engine import Compute, on_ray
from ga_utils.sweeps.results import HeadSweep, LayerSweep
from ga_utils.sweeps.screen import attribution

SCREENED = 8  # heads that a screened sweep disables by default; they are its costliest part


def sweep_heads(
    lm: LM,
    examples: Iterable[Example],
    heads: Iterable[Head | str] | None = None,
    mode: str = "zero",
    reference: list[Example] | None = None,
    at: Where | None = None,
    but: Where | None = None,
    method: str = "exact",
    k: int | None = None,
    checkpoint: str | Path | None = None,
    engine: str = "local",
    progress: bool = True,
) -> HeadSweep:
    """Disable one head at a time and score the examples each time.

    Args:
        heads: which to try; by default all that are alive (a pruned head has nothing to disable).
        mode, reference, at, but: as in `ablate`.
        method: "exact" disables every head. "screen" estimates all of them from one backward pass, then
            disables the k most suspicious ones exactly (see `screen`): for models with many heads.
        k: for "screen"; by default 8, or a twenty-fourth of the heads if that is more. Some are missed.
            By its pessimistic order alone (see `screen`), of 80 random models with 64 heads the first 8 held
            the worst head in 99 % and all five worst in 70 %, the first 16 in 96 %; on tiny models (n=200, 56
            trials) it was 91, 61 and 93 %. In SmolLM2, with 270 heads, the costliest one is among the first
            11. Raise k where every head counts.
        checkpoint: a file that keeps what is finished. The same call after a crash goes on there and gives
            the same result. Other heads, and another method, may use the same file, and so may several
            processes at once; everything else must be the same. "auto": a file in the cache (`cache_dir`)
            that belongs to exactly this model, these examples and this machine, so that a notebook that is
            run again finds its results; where the cache can't be written to, nothing is kept.
        engine: "local", or "ray": spread over a Ray cluster (see `ray_engine.on_ray`).

    Raises:
        ValueError: arguments that make no sense; a checkpoint made for something else, or damaged.
        OSError: the checkpoint can't be written (see `Checkpoint`); what is finished is kept.
    """
    for name, value, known in (("method", method, METHODS), ("engine", engine, tuple(ENGINES))):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
    check_mode(mode, reference)
    if k is not None and (method != "screen" or k < 1):
        raise ValueError(
            f'k={k} with method={method!r}: k is how many heads method="screen" disables, 1 or more'
        )
    examples = list(examples)
    if not examples:
        raise ValueError("no examples to sweep with: the list is empty")
    heads = alive_heads(lm) if heads is None else list(dict.fromkeys(check_heads(lm, heads)))
    rows, estimate = rows_of(lm, examples), None
    warn_of_beginnings(rows)
    make = partial(ExactSweep, rows=rows, mode=mode, reference=reference, at=at, but=but)
    if method == "screen":
        with torch.inference_mode(False), torch.no_grad():  # gradients are needed, whatever is in force
            sweep = make(lm)
            values, order = attribution(sweep, [example.answer for example in examples], heads)
        make = make if engine == "ray" else lambda lm: sweep  # what it has recorded is used again
        estimate = np.full((lm.n_layers, lm.n_heads), np.nan)
        for head, value in zip(heads, values):
            estimate[head.layer, head.head] = value
        heads = sorted(order[: k or max(SCREENED, len(heads) // 24)])
    # Without a checkpoint the same code runs on a database in memory, which nothing can be confused with.
    who = identity(lm, examples, mode, reference, Places(lm, at, but)) if checkpoint else {}
    with Checkpoint(automatic(who) if checkpoint == "auto" else checkpoint or MEMORY, who) as done:
        _compute(lm, examples, pieces(lm, heads, rows), done, ENGINES[engine], make, progress)
        return _table(lm, examples, {head: done.get(head) for head in [None, *heads]}, estimate)


def pieces(lm: LM, heads: list[Head], rows: list[Row]) -> list[Piece]:
    """The work in portions that are finished, or lost, as a whole: first the baseline, then heads of one
    layer each, as many as go through the model in one batch."""
    size = max(1, budget(lm).tokens // sum(len(row.ids) for row in rows))
    layers: dict[int, list[Head]] = {}
    for head in heads:
        layers.setdefault(head.layer, []).append(head)
    return [(), *(tuple(of[i : i + size]) for of in layers.values() for i in range(0, len(of), size))]


def _compute(
    lm: LM,
    examples: list[Example],
    todo: list[Piece],
    done: Checkpoint,
    engine: Callable,
    make: Callable[[LM], Compute],
    progress: bool,
) -> None:
    """Have an engine compute what the checkpoint lacks, and commit it piece by piece."""
    total = sum(len(piece) or 1 for piece in todo)
    with tqdm(total=total, desc="heads", disable=not progress, leave=False) as bar:

        def still_missing() -> Iterator[Piece]:
            for (
                piece
            ) in todo:  # looked up when its turn comes: another process on the same file may be faster
                missing = done.missing(piece)
                bar.update((len(piece) or 1) - (len(missing) or 1 if missing is not None else 0))
                if missing is not None:
                    yield missing

        if all(done.missing(piece) is None for piece in todo):
            return
        with closing(engine(lm, examples, still_missing(), make)) as results:
            for piece, logprobs in results:
                done.put(piece, logprobs)
                bar.update(len(piece) or 1)


def _locally(
    lm: LM, examples: list[Example], pieces: Iterator[Piece], make: Callable[[LM], Compute]
) -> Iterator:
    """What `ray_engine.on_ray` does, here and one after the other."""
    compute = make(lm)
    for piece in pieces:
        yield piece, compute(piece)


METHODS = ("exact", "screen")
ENGINES = {"local": _locally, "ray": on_ray}


def _table(
    lm: LM, examples: list[Example], found: dict[Head | None, np.ndarray], estimate: np.ndarray | None
) -> HeadSweep:
    """found: head -> log-probabilities of choices, [n_examples, n_choices]; None -> those of the baseline."""
    accuracy = np.full((lm.n_layers, lm.n_heads), np.nan)
    logprob = accuracy.copy()
    for head, logprobs in found.items():
        score = Score.of(logprobs, examples)
        if head is None:
            baseline = score
        else:
            accuracy[head.layer, head.head] = score.accuracy
            logprob[head.layer, head.head] = score.right_logprob
    return HeadSweep(accuracy, logprob, baseline, estimate)


def sweep_layers(
    lm: LM, tasks: dict[str, list[Example]], how: str = "prefix", progress: bool = True
) -> LayerSweep:
    """Score tasks on ever shorter models, or with one layer skipped at a time.

    Args:
        tasks: name -> examples.
        how: "prefix": keep the first 1, 2, ... n_layers layers. "leave_one_out": skip layer 0, then 1, ...

    Raises:
        ValueError: an unknown `how`, or no tasks.
    """
    if how not in ("prefix", "leave_one_out"):
        raise ValueError(f'how={how!r}: expected "prefix" or "leave_one_out"')
    if not tasks:
        raise ValueError("no tasks: pass a dict such as {'mmlu': examples}")
    x = list(range(1, lm.n_layers + 1)) if how == "prefix" else list(range(lm.n_layers))
    scores: dict[str, list[Score]] = {task: [] for task in tasks}
    with tqdm(total=len(x) * len(tasks), desc="layers", disable=not progress, leave=False) as bar:
        for layer in x:
            with truncate(lm, layer) if how == "prefix" else skip_layers(lm, [layer]):
                for task, examples in tasks.items():
                    scores[task].append(evaluate(lm, examples))
                    bar.update()
    return LayerSweep(how, x, scores)
