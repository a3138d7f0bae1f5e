"""Memory and speed of large shapes on a GPU. Results are rows of the report: {"what", "ok", ...}."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from shapes import build, questions

import ga_utils as ga

GB = 1e9
T4 = 15.0  # GB that a process may use on a T4
ZAMBA = 20.0
CLOSE = 0.05  # of a log-probability: what float16 may differ by between batches of different shapes
PLAIN_HEADS = 12  # that the plain loop disables; its time is scaled to all heads


@contextmanager
def capped(device: str, gb: float) -> Iterator[None]:
    """This process may hold at most `gb` on the GPU. On a CPU nothing is limited."""
    if device == "cpu":
        yield
        return
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gb * GB / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def timed(device: str, work: Callable) -> tuple[object, float, float | None]:
    """What `work()` gives, its seconds, and the GPU memory in GB that PyTorch held at the peak."""
    if device == "cpu":
        start = time.perf_counter()
        return work(), time.perf_counter() - start, None
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return result, time.perf_counter() - start, torch.cuda.max_memory_reserved() / GB


def row(device: str, what: str, work: Callable, limit_gb: float | None = None) -> dict:
    """One line of the report: it worked, within the limit, or how it failed."""
    try:
        _, seconds, peak = timed(device, work)
    except torch.OutOfMemoryError as error:
        return {"what": what, "ok": False, "note": f"out of memory: {str(error)[:100]}"}
    within = limit_gb is None or peak is None or peak <= limit_gb
    return {"what": what, "ok": within, "seconds": seconds, "peak_gb": peak}


def memory(device: str, narrow: bool = False) -> list[dict]:
    """Does a T4 do? The first 18 layers of both 8B models in float16 with 15 GB, and Zamba2-7B with 20 GB."""
    rows = []
    for name in ("llama-3.1-8b-instruct", "llamba-8b"):
        with capped(device, T4):
            rows += on_a_t4(name, device, narrow)
    lm = build("zamba2-7b", device, torch.float32 if device == "cpu" else torch.bfloat16, None, narrow)
    evaluate = partial(ga.evaluate, lm, questions(lm, [57] * 16))
    return [*rows, row(device, "zamba2-7b: evaluate, 16 prompts of 60 tokens", evaluate, ZAMBA)]


def on_a_t4(name: str, device: str, narrow: bool) -> list[dict]:
    """Prompts as long as MMLU's with five shots: 64 of 450 to 900 tokens, and one of 2,900."""
    lengths = [12, 40] if narrow else random.Random(1).choices(range(450, 901), k=64)
    longest = 80 if narrow else 2900
    lm = build(name, device, torch.float32 if device == "cpu" else torch.float16, 18, narrow)
    heads = ["L0H1", *(f"L{lm.n_layers - 1}H{head}" for head in range(3))]
    rows = []
    for what, of in ((f"{len(lengths)} prompts", lengths), (f"{longest} tokens", [longest])):
        some = questions(lm, of)
        evaluate = partial(ga.evaluate, lm, some)
        sweep = partial(ga.sweep_heads, lm, some, heads, progress=False)
        rows.append(row(device, f"{name}: evaluate, {what}", evaluate, T4))
        rows.append(row(device, f"{name}: sweep of {len(heads)} heads, {what}", sweep, T4))
    return rows


def speed(device: str, narrow: bool = False) -> list[dict]:
    """An exact and a screened sweep of all heads beside the plain loop, on Llama-3.1-8B's first 18 layers.

    The plain loop disables one head, evaluates, and goes on to the next. Its time is scaled to all heads.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    lm = build("llama-3.1-8b-instruct", device, dtype, 18, narrow)
    examples = ga.tasks.kv_retrieval(lm, n_pairs=16, n=4 if narrow else 64, seed=1)
    heads = [ga.Head(mixer.layer, head) for mixer in lm.mixers for head in mixer.heads]
    some = heads[:: max(1, len(heads) // PLAIN_HEADS)]

    def plain() -> list[float]:
        found = []
        for head in some:
            with ga.ablate(lm, [head]):
                found.append(ga.evaluate(lm, examples).right_logprob)
        return found

    ga.evaluate(lm, examples)  # the first call warms up
    expected, seconds, peak = timed(device, plain)
    loop = seconds * len(heads) / len(some)
    what = f"plain loop, {len(some)} heads scaled to {len(heads)}"
    rows = [{"what": what, "ok": True, "seconds": loop, "peak_gb": peak}]
    for method in ("exact", "screen"):
        work = partial(ga.sweep_heads, lm, examples, method=method, progress=False)
        sweep, seconds, peak = timed(device, work)
        done = {"what": f"{method} sweep of {len(heads)} heads", "seconds": seconds, "peak_gb": peak}
        note = f"{loop / seconds:.1f} times as fast as the plain loop"
        if method == "exact":
            worst = max(abs(sweep.logprob[h.layer, h.head] - value) for h, value in zip(some, expected))
            effect = max(abs(value - sweep.baseline.right_logprob) for value in expected)
            note += f"; within {worst:.1e} of it, where heads have effects up to {effect:.1e}"
        rows.append(done | {"ok": method == "screen" or bool(worst < CLOSE), "note": note})
    return rows
