"""Trainings repeated over settings and seeds: `python -m ga_utils.training.grid ssm_grid`. They resume.

One run says little: another seed may learn faster, or longer, or in another way. So what the course says
about training rests on these grids. `data/runs/NAME.csv` holds all that they measured, failures included; for
`ssm_grid` and `ssm_conv` also `NAME_answers.csv`, the finished models' right and wrong answers, question by
question, for paired tests.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from ga_utils.tasks import world
from ga_utils.training.grid_runs import KeptHeads, LlambaLength, Mamba2, Run, Zamba2

SEEDS = (1, 2, 3)
GRIDS: dict[str, list[Run]] = {
    "ssm_grid": [Mamba2(d_state, 4, seed) for seed in SEEDS for d_state in (4, 8, 16, 32)],
    "ssm_conv": [Mamba2(16, taps, seed) for seed in SEEDS for taps in (2, 1)],
    "llamba_length": [LlambaLength(1, steps) for steps in (0, 300, 600, 1000, 1500, 2250)],
    "retrieval_aware": [KeptHeads(d_state, seed) for seed in SEEDS for d_state in (8, 4, 2)],
    "zamba2": [Zamba2(seed) for seed in SEEDS],
}


def work_off(run: Run) -> Run:
    """Do one training in this process, with its progress in its folder's `log.txt`."""
    torch.set_num_threads(1)
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "log.txt").open("a") as log, redirect_stderr(log):
        run.work()
    return run


def collected(name: str) -> dict[str, pd.DataFrame]:
    """What a grid's runs have measured so far, by the ending of the table's name."""
    tables = {ending: [run.table(ending) for run in GRIDS[name]] for ending in ("", "_answers")}
    return {
        ending: pd.concat([table for table in some if table is not None], ignore_index=True)
        for ending, some in tables.items()
        if any(table is not None for table in some)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models trained at a time")
    parser.add_argument("--out", type=Path, default=world.data_dir() / "runs", help="folder of the tables")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs, spawn = GRIDS[args.grid], multiprocessing.get_context("spawn")
    left = [run for run in runs if not run.done()]
    with (
        ProcessPoolExecutor(args.jobs, mp_context=spawn) as pool,
        tqdm(total=len(runs), initial=len(runs) - len(left), unit="model", desc=args.grid) as bar,
    ):
        for finished in as_completed([pool.submit(work_off, run) for run in left]):
            bar.set_postfix_str(f"last: {finished.result()}")
            bar.update()
            for ending, table in collected(args.grid).items():
                table.to_csv(args.out / f"{args.grid}{ending}.csv", index=False)


if __name__ == "__main__":
    main()
