"""Head sweeps side by side, in one run: `make bench` (with peers), or `python tests/bench/sweeps.py --quick`.

Everyone gets the same weights, the same prompts and the same threads, and takes turns: A B C A B C ... In
each repeat, all numbers are compared before its times count. A ratio is a peer's time over ours in a repeat.
Medians of ratios, their smallest and largest, and the times go to the screen and to build/bench.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import transformers
from cases import CASES, QUICK, Case
from contenders import PEERS, ours
from tqdm.auto import tqdm

import ga_utils as ga

BUILD = Path(__file__).parents[2] / "build"
METHODS = {"exact": "ours, exact", "screen": "ours, screened"}
LAST = "plain loop, last logits"  # the loop of someone who knows `logits_to_keep`; reported by itself
THREE = [
    name for name in PEERS if name != LAST
]  # plain loop, TransformerLens, nnsight: as their own examples use them
AGAINST = {"fastest_peer": THREE, "last_logits_loop": [LAST]}
FLOORS = {
    "exact": {"8x8_v8000": 2.2, "8x8_prefix512": 6, "16x16": 2.0},
    "screen": {"8x8_v8000": 7, "16x16": 18},
}
TOLERANCE = 1e-3  # of a log-probability
RANK_AGREEMENT = (
    0.7  # Spearman's, of screened against exact effects: a screen must at least know which heads matter
)


def clock(work: Callable, *args) -> tuple[float, object]:
    """Seconds that `work(*args)` takes, and what it gives."""
    start = time.perf_counter()
    result = work(*args)
    return time.perf_counter() - start, result


def right_logprob(case: Case, logprobs: torch.Tensor) -> np.ndarray:
    """[head]: mean log-probability of the right choice among the choices, from [head, prompt, choice]."""
    answers = torch.tensor([example.answer for example in case.examples])
    among = logprobs.log_softmax(-1)
    return among[:, torch.arange(len(answers)), answers].mean(1).numpy()


def check_peers(case: Case, peers: dict[str, torch.Tensor]) -> None:
    """All peers' log-probabilities must agree.

    Raises:
        AssertionError: they differ; names the peer.
    """
    first, expected = next(iter(peers.items()))
    for name, logprobs in peers.items():
        worst = (logprobs - expected).abs().max().item()
        assert worst < TOLERANCE, (
            f"{case.name}: {name} differs from {first} by {worst:.1e} in a log-probability"
        )


def check_ours(
    case: Case, heads: list[ga.Head], expected: torch.Tensor, exact: ga.HeadSweep, screen: ga.HeadSweep
):
    """Exact must equal the peers where they ran; screened must equal exact on the heads that it disabled.

    Returns: Spearman's correlation of the screen's estimates with exact effects, over all heads.

    Raises:
        AssertionError: they don't.
    """
    where = tuple(zip(*((head.layer, head.head) for head in heads)))
    worst = np.abs(exact.logprob[where] - right_logprob(case, expected)).max()
    assert worst < TOLERANCE, f"{case.name}: exact differs from the peers by {worst:.1e} in a log-probability"
    looked_at = ~np.isnan(screen.logprob)
    assert looked_at.any() and np.abs(screen.logprob - exact.logprob)[looked_at].max() < TOLERANCE
    ranks = [values.ravel().argsort().argsort() for values in (exact.logprob, screen.estimate)]
    agreement = float(np.corrcoef(ranks)[0, 1])
    assert agreement >= RANK_AGREEMENT, (
        f"{case.name}: screened orders heads unlike exact, rank correlation {agreement:.2f}"
    )
    return agreement


def measure(case: Case, peers: dict[str, Callable]) -> dict:
    """Times of all contenders on one case, {name: [seconds for all heads, by repeat]}, and their agreement.

    Before the first repeat everybody warms up on one head.
    """
    runs = {name: make(case) for name, make in peers.items()}
    for run in runs.values():
        run(case.heads[:1])
    for method in METHODS:
        ours(case, method, case.heads[:1])
    times: dict[str, list[float]] = {name: [] for name in [*runs, *METHODS.values()]}
    agreement = []
    bar = tqdm(total=case.repeats * len(times), desc=case.name, unit="run", leave=False)
    for repeat in range(case.repeats):
        heads = case.some_heads(repeat)
        results = {}
        for name, run in runs.items():
            seconds, results[name] = clock(run, heads)
            times[name].append(seconds * len(case.heads) / len(heads))
            bar.update()
        sweeps = {}
        for method, name in METHODS.items():
            seconds, sweeps[method] = clock(ours, case, method)
            times[name].append(seconds)
            bar.update()
        check_peers(case, results)
        agreement.append(check_ours(case, heads, next(iter(results.values())), **sweeps))
    bar.close()
    return {"seconds": times, "rank_agreement": statistics.median(agreement)}


def against(times: dict[str, list[float]], peers: list[str], mine: str) -> dict:
    """How many times longer the fastest of `peers` takes: median, smallest and largest over the repeats."""
    fastest = min((name for name in peers if name in times), key=lambda name: statistics.median(times[name]))
    ratios = [theirs / own for theirs, own in zip(times[fastest], times[mine])]
    return {"peer": fastest, "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def table(case: Case, times: dict[str, list[float]]) -> str:
    """One line for each contender; a ratio is the fastest peer's time over its own: larger is faster."""
    peer_heads = len(case.some_heads(0))
    note = "all heads" if peer_heads == len(case.heads) else f"peers {peer_heads} heads a repeat, scaled"
    lines = [
        f"{case.name}: {case.n_layers} layers x {case.n_heads} heads, width {case.width}, "
        f"vocabulary {case.vocabulary:,}, {case.prompts} prompts of {case.prefix + case.tokens} tokens "
        f"({case.prefix} shared); {case.repeats} repeats, {note}",
        f"  {'':26}{'seconds':>9}{'min - max':>17}{'x of fastest peer':>20}{'min - max':>15}",
    ]
    for name, seconds in times.items():
        ratio = against(times, THREE, name)
        lines.append(
            f"  {name:26}{statistics.median(seconds):9.2f}{min(seconds):9.2f} -{max(seconds):6.2f}"
            f"{ratio['median']:20.2f}{ratio['min']:8.2f} -{ratio['max']:5.2f}"
        )
    for method, name in METHODS.items():
        floor = FLOORS[method].get(case.name)
        for what, peers in AGAINST.items():
            ratio = against(times, peers, name)
            wanted = f"; floor {floor}" if floor and what == "fastest_peer" else ""
            lines.append(f"  {name}: {ratio['median']:.2f} times as fast as {ratio['peer']}{wanted}")
    return "\n".join(lines)


def report(cases: list[Case], measured: dict[str, dict]) -> dict:
    """What goes into build/bench.json: {measure: {case: median ratio}}, their spread, times, versions."""
    result: dict = {
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {
            name: _version(name)
            for name in ("torch", "transformers", "transformer_lens", "nnsight", "lm_eval")
        },
        "cases": {case.name: measured[case.name] for case in cases},
        "spread": {},
    }
    for method, word in (("exact", "exact"), ("screen", "screened")):
        for what, peers in AGAINST.items():
            ratios = {
                case.name: against(measured[case.name]["seconds"], peers, METHODS[method]) for case in cases
            }
            result[f"{word}_vs_{what}"] = {name: ratio["median"] for name, ratio in ratios.items()}
            result["spread"][f"{word}_vs_{what}"] = ratios
    return result


def save(result: dict, path: Path) -> None:
    """Write results as JSON; what other benchmarks have written into the same file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | result, indent=1))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one small case without peers' packages: a check, no result"
    )
    parser.add_argument(
        "--case", action="append", choices=[case.name for case in CASES], help="only this one"
    )
    parser.add_argument("--out", type=Path, default=BUILD / "bench.json")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    cases = [QUICK] if options.quick else [case for case in CASES if case.name in (options.case or case.name)]
    peers = {name: PEERS[name] for name in list(PEERS)[:2]} if options.quick else PEERS
    measured = {}
    for case in cases:
        chosen = {name: make for name, make in peers.items() if name in (case.peers or peers)}
        measured[case.name] = measure(case, chosen)
        print(table(case, measured[case.name]["seconds"]), flush=True)
    result = report(cases, measured)
    print(f"{result['machine']['threads']} threads on {result['machine']['cpus']} CPUs;", result["versions"])
    save(result, options.out)
    return result


if __name__ == "__main__":
    main()
