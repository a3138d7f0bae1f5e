"""Grids of small SSMs: `python -m ga_utils.training.grid ssm_grid`, and `ssm_conv`. A killed grid resumes.

One run says little about `d_state`: another seed may learn faster, or longer. So every setting is trained
with the same seeds, on the same text, until it stops getting better, by a rule that is the same for all:

    1. the first three SSM_STAGES (induction, looking up, options);
    2. EXAM at a constant rate. Every 300 steps KV accuracy is measured (mean over 4, 8, 16 and 32 pairs, 200
       questions each, of a seed that is used for nothing else). When the last three measurements have not
       beaten the best one before them by a point, or 5,000 steps are done, the rate
    3. falls to nothing over 600 more steps.

`data/runs/NAME.csv` holds every measurement, failures included; `NAME_answers.csv` the finished models' right
and wrong answers, question by question, for paired tests.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from ga_utils import tasks
from ga_utils.models.lm import LM, wrap
from ga_utils.scoring import evaluate
from ga_utils.tasks import world
from ga_utils.training.curriculum import Stage, Writer
from ga_utils.training.loop import TrainingState, compiled, optimizers, train
from ga_utils.training.measure import all_tasks
from ga_utils.training.recipes import RUNS, save, world_tokenizer
from ga_utils.training.scans import fast_scans
from ga_utils.training.stages import EXAM, SSM_STAGES
from ga_utils.training.untrained import new_mamba2

LR = 3e-3
ROWS = 10  # half of the shipped models' batch: a grid has many runs
EVERY, PATIENCE, GAIN = 300, 3, 0.01
LIMIT, COOLDOWN = 5000, 600
RULE_SEED, RULE_PAIRS = 77_001, (4, 8, 16, 32)
CURRICULUM = [replace(stage, rows=ROWS) for stage in SSM_STAGES[:3]]
LONG_EXAM = Stage(0, EXAM, max_pairs=32, rows=ROWS)


@dataclass(frozen=True)
class Run:
    """One Mamba-2 from scratch: numbers in a head's state for each of its channels, taps, seed."""

    d_state: int
    taps: int
    seed: int

    @property
    def folder(self) -> Path:
        return RUNS / f"mamba2-d{self.d_state}-c{self.taps}-{self.seed}"


GRIDS = {  # data/runs/NAME.csv
    "ssm_grid": [Run(d_state, 4, seed) for seed in (1, 2, 3) for d_state in (4, 8, 16, 32)],
    "ssm_conv": [Run(16, taps, seed) for seed in (1, 2, 3) for taps in (2, 1)],
}


def stages(steps: int) -> list[Stage]:
    """The curriculum, and after it the exam for all other of these steps."""
    rest = steps - sum(stage.steps for stage in CURRICULUM)
    return [*CURRICULUM, replace(LONG_EXAM, steps=rest)]


def still_rising(history: list[float]) -> bool:
    """Has one of the last PATIENCE measurements beaten all before them by GAIN?"""
    if len(history) <= PATIENCE:
        return True
    return max(history[-PATIENCE:]) >= max(history[:-PATIENCE]) + GAIN


def measured(lm: LM, n: int = 200) -> dict[str, float]:
    """KV accuracy and letters on the questions that decide when to stop."""
    lm.model.eval()
    kv = {f"KV {pairs}": tasks.kv_retrieval(lm, n_pairs=pairs, n=n, seed=RULE_SEED) for pairs in RULE_PAIRS}
    examples = kv | {"mmlu": tasks.mmlu(lm, n=n, seed=RULE_SEED)}
    return {name: evaluate(lm, asked).accuracy for name, asked in examples.items()}


def work_off(run: Run) -> Run:
    """Train one model; its folder gets `curve.csv`, `answers.csv`, `model/` and a log of its progress."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "log.txt").open("a") as log, redirect_stderr(log):
        _work_off(run)
    return run


def _work_off(run: Run) -> None:
    torch.set_num_threads(1)
    tokenizer, curve_file = world_tokenizer(), run.folder / "curve.csv"
    model = new_mamba2(tokenizer, run.seed, run.d_state, run.taps)
    lm, writer, stream = wrap(model, tokenizer), Writer(tokenizer), f"grid-{run.seed}"
    state = TrainingState(model, optimizers(model, LR), run.folder)

    def train_to(steps: int, cooldown: int) -> None:
        with fast_scans(), compiled(model):
            train(state, stages(steps), LR, stream, writer, cooldown=cooldown)

    curve = pd.read_csv(curve_file).to_dict("records") if curve_file.is_file() else []
    steps = curve[-1]["steps"] if curve else sum(stage.steps for stage in CURRICULUM)
    while steps < LIMIT and still_rising([kv_mean(row) for row in curve]):
        steps += EVERY
        train_to(steps, cooldown=0)
        curve.append({"steps": steps} | measured(lm))
        pd.DataFrame(curve).to_csv(curve_file, index=False)
    train_to(steps + COOLDOWN, cooldown=COOLDOWN)
    save(model, tokenizer, run.folder / "model")
    final = {name: evaluate(lm, examples) for name, examples in all_tasks(lm, n=300).items()}
    answers = {name: "".join("01"[int(right)] for right in score.correct) for name, score in final.items()}
    pd.DataFrame([{"steps": steps + COOLDOWN} | answers]).to_csv(run.folder / "answers.csv", index=False)


def kv_mean(row: dict[str, float]) -> float:
    return sum(row[f"KV {pairs}"] for pairs in RULE_PAIRS) / len(RULE_PAIRS)


def collected(name: str) -> dict[str, pd.DataFrame]:
    """What a grid's runs have measured so far: every measurement, and the finished models' answers."""
    parts: dict[str, list[pd.DataFrame]] = {"": [], "_answers": []}
    for run in GRIDS[name]:
        for suffix, file in (("", "curve.csv"), ("_answers", "answers.csv")):
            if (run.folder / file).is_file():
                table = pd.read_csv(run.folder / file, dtype=str)
                parts[suffix].append(pd.DataFrame({**asdict(run)}, index=table.index).join(table))
    return {suffix: pd.concat(tables, ignore_index=True) for suffix, tables in parts.items() if tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models trained at a time")
    parser.add_argument("--out", type=Path, default=world.data_dir() / "runs", help="folder of the tables")
    args = parser.parse_args()
    left = [run for run in GRIDS[args.grid] if not (run.folder / "answers.csv").is_file()]
    done, spawn = len(GRIDS[args.grid]) - len(left), multiprocessing.get_context("spawn")
    args.out.mkdir(parents=True, exist_ok=True)
    with (
        ProcessPoolExecutor(args.jobs, mp_context=spawn) as pool,
        tqdm(total=len(GRIDS[args.grid]), initial=done, unit="model", desc=args.grid) as bar,
    ):
        for finished in as_completed([pool.submit(work_off, run) for run in left]):
            bar.set_postfix_str(f"last: {finished.result()}")
            bar.update()
            for suffix, table in collected(args.grid).items():
                table.to_csv(args.out / f"{args.grid}{suffix}.csv", index=False)


if __name__ == "__main__":
    main()
