"""`engine="ray"`: the pieces of a sweep as Ray tasks, on as many machines as a Ray cluster has.

A worker process loads the model once, by name, checks that it answers as the caller's does, and keeps it for
all its pieces. A worker that dies costs the piece it was at: Ray gives that one to another. What arrives is
committed by the caller, so the checkpoint is needed on one machine only. Between its own processes Ray uses
pickle; our files have none.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch

from ga_utils.examples import Example
from ga_utils.models.lm import LM, load_model
from ga_utils.scoring import evaluate
from ga_utils.sweeps.checkpoint import PROBE, Piece

RETRIES = 3  # how often a piece is tried again when its worker dies
IN_FLIGHT = 512  # pieces that Ray knows of at a time: more than workers, few enough to wait on
Compute = Callable[[Piece], np.ndarray]


def on_ray(
    lm: LM, examples: list[Example], pieces: Iterator[Piece], make: Callable[[LM], Compute]
) -> Iterator:
    """Compute pieces on a Ray cluster; yields (piece, log-probabilities) as they come in, in any order.

    Uses the cluster that `ray.init` was called for, else the one that RAY_ADDRESS names, else starts one on
    this machine and ends it afterwards. A worker takes one CPU and, if `lm` is on a GPU, one GPU.

    Args:
        make: given a worker's model, makes the function that computes a piece; must be importable there, as
            ga_utils is.

    Raises:
        ImportError: no Ray.
        ValueError: `lm` was not loaded by `load_model`; no machine has a GPU though `lm` is on one; a
            worker's model answers otherwise than `lm`, because `lm` was edited or is inside `ablate` or
            another context manager.
        RuntimeError: a piece's workers died again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('engine="ray" needs Ray: pip install "ga-utils[cluster]"') from error
    if lm.source is None:
        raise ValueError(
            f'engine="ray": {lm.name} was not loaded by load_model, so workers can\'t load it: save it with '
            "lm.model.save_pretrained(folder) and lm.tokenizer.save_pretrained(folder), then "
            "load_model(folder)"
        )
    gpus = int(lm.device.type == "cuda")
    how = {**lm.source, "device": lm.device.type, "dtype": lm.model.dtype}
    with _cluster(ray):
        if gpus and not ray.cluster_resources().get("GPU"):
            raise ValueError(f'engine="ray": {lm.name} is on a GPU, but no machine of the cluster has one')
        job = ray.put((how, examples[:PROBE], evaluate(lm, examples[:PROBE]).logprobs, make))
        # Ray ends a GPU worker after each task unless max_calls says otherwise.
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, max_calls=0)(_work)
        name, waiting = uuid.uuid4().hex, {}
        try:
            while True:
                for piece in islice(pieces, IN_FLIGHT - len(waiting)):
                    waiting[task.remote(name, [job], piece)] = piece
                if not waiting:
                    return
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                piece = waiting.pop(ready)
                yield piece, _result(ray, ready, piece)
        finally:
            for ref in waiting:  # after an error or Ctrl-C; the cluster may have others to serve
                ray.cancel(ref, force=True)


_sweeps: dict[str, Compute] = {}  # in a worker process: the sweep it works for, and how it computes a piece


def _work(name: str, job: list, piece: Piece) -> np.ndarray:
    """One Ray task. `job` is boxed in a list so that Ray hands the reference on, and only the first task
    fetches it.
    """
    if name not in _sweeps:
        import ray

        _sweeps.clear()  # an earlier sweep's model makes room
        _sweeps[name] = _load(*ray.get(job[0]))
    return _sweeps[name](piece)


def _load(how: dict, examples: list[Example], expected: np.ndarray, make: Callable[[LM], Compute]) -> Compute:
    lm = load_model(**how)
    gap = np.nanmax(np.abs(evaluate(lm, examples).logprobs - expected))
    # Other processors round differently: by about 1e-6 in float32, by up to some hundredths in 16 bits.
    if gap > (1e-4 if lm.model.dtype == torch.float32 else 0.1):
        raise ValueError(
            f'engine="ray": {lm.name} as a worker loads it answers otherwise than the model given '
            "(log-probabilities differ "
            f"by {gap:.2g}): sweep it as loaded, without edits and outside ablate() and the like, or "
            'with engine="local"'
        )
    return make(lm)


def _result(ray, ref, piece: Piece) -> np.ndarray:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:  # an exception in our own code, there
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"workers died {RETRIES + 1} times on piece {piece or 'baseline'}: {type(error).__name__}. "
            "Out of memory? Pieces "
            "that were finished are kept"
        ) from error


@contextmanager
def _cluster(ray) -> Iterator[None]:
    """The caller's cluster, or one of our own for as long as this lasts."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(address="local", include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
