"""`ga.evaluate` beside lm-evaluation-harness: `python tests/bench/evaluate.py`, or with `--quick`.

Both get the same model, requests and threads, and take turns. Log-probabilities are compared before a
repeat's times count. A ratio is the harness's time over ours in one repeat. Of the harness's batch sizes, the
faster one counts.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import transformers
from cases import EVALUATIONS, QUICK_EVALUATION, Case
from sweeps import BUILD, against, clock, save

import ga_utils as ga

BATCH_SIZES = (16, "auto")
FLOORS = {"four_choices": 3, "letters": 1}
OURS = "ours"
TOLERANCE = 1e-4  # of a log-probability


def harness(case: Case, batch_size: int | str) -> Callable[[], np.ndarray]:
    """A function that gives log-probabilities [prompt, choice], by the harness's class for such models.

    "auto" tries batches of up to as many texts as it runs: a prompt runs once for choices of one token. Its
    own limit, 64, would never be filled.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    pairs = [(example.prompt, choice) for example in case.examples for choice in example.choices]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    model = HFLM(
        case.lm.model,
        tokenizer=copy.deepcopy(case.tokenizer),
        backend="causal",
        batch_size=batch_size,
        max_batch_size=len(case.examples if case.choice_tokens == 1 else requests),
        prefix_token_id=0,  # begins an empty prompt, of which there is none
    )

    def run() -> np.ndarray:
        found = model.loglikelihood(requests, disable_tqdm=True)
        return np.array([logprob for logprob, _ in found]).reshape(len(case.examples), -1)

    return run


def check(case: Case, name: str, theirs: np.ndarray, expected: np.ndarray) -> None:
    """Raises an AssertionError that names whose log-probabilities differ."""
    worst = np.abs(theirs - expected).max()
    assert worst < TOLERANCE, f"{case.name}: {name} differs from {OURS} by {worst:.1e} in a log-probability"


def measure(case: Case) -> dict[str, list[float]]:
    """Seconds of each repeat, {name: [seconds]}.

    A first round warms up. A batch size that took twice as long there as the other one is not run again: its
    single time is kept.
    """
    works = {f"harness, {size}": harness(case, size) for size in BATCH_SIZES}
    works[OURS] = lambda: ga.evaluate(case.lm, case.examples).logprobs
    first = {name: clock(work)[0] for name, work in works.items()}
    fastest = min(seconds for name, seconds in first.items() if name != OURS)
    slow = {name for name, seconds in first.items() if name != OURS and seconds > 2 * fastest}
    times: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in works}
    for _ in range(case.repeats):
        results = {}
        for name in works.keys() - slow:
            seconds, results[name] = clock(works[name])
            times[name].append(seconds)
        for name, logprobs in results.items():
            check(case, name, logprobs, results[OURS])
    return times


def compare(times: dict[str, list[float]]) -> dict:
    """The harness's faster batch size against ours: median, smallest and largest ratio over the repeats."""
    return against(times, [name for name, seconds in times.items() if name != OURS], OURS)


def table(case: Case, times: dict[str, list[float]]) -> str:
    ratio, floor = compare(times), FLOORS.get(case.name.rpartition("_")[0])
    lines = [
        f"{case.name}: {case.prompts} prompts of {case.prefix + case.tokens} tokens, four choices of "
        f"{case.choice_tokens}; {case.repeats} repeats"
    ]
    for name, seconds in times.items():
        lines.append(
            f"  {name:20}{statistics.median(seconds):9.2f} s{min(seconds):9.2f} -{max(seconds):6.2f}"
        )
    wanted = f"; floor {floor}" if floor else ""
    spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})"
    lines.append(f"  ours: {spread} times as fast as {ratio['peer']}{wanted}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case: a check, no result")
    parser.add_argument("--case", action="append", choices=[case.name for case in EVALUATIONS])
    parser.add_argument("--out", type=Path, default=BUILD / "bench.json")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    cases = [case for case in EVALUATIONS if case.name in (options.case or case.name)]
    measured = {}
    for case in [QUICK_EVALUATION] if options.quick else cases:
        times = measure(case)
        print(table(case, times), flush=True)
        measured[case.name] = {"seconds": times, "ratio": compare(times)}
    result = {
        "evaluate_vs_harness": {name: found["ratio"]["median"] for name, found in measured.items()},
        "evaluate": measured,
    }
    save(result, options.out)
    return result


if __name__ == "__main__":
    main()
