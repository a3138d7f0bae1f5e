"""Trainings repeated over settings and seeds: `python -m ga_utils.training.grid ssm_grid`. They resume.

One run says little: another seed may learn faster, or longer, or in another way. So what the course says
about training rests on these grids. `data/runs/NAME.csv` holds all that they measured, failures included; for
models from scratch also `NAME_answers.csv`, the finished models' right and wrong answers, question by
question, for paired tests. A run that is in the table is not trained again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from ga_utils.tasks import world
from ga_utils.training.grid_runs import DeltaNet, KeptHeads, LlambaLength, Mamba2, Qwen3Next, Run, Zamba2

SEEDS = (1, 2, 3)
GRIDS: dict[str, list[Run]] = {
    "ssm_grid": [Mamba2(d_state, 4, seed) for seed in SEEDS for d_state in (4, 8, 16, 32)],
    "ssm_conv": [Mamba2(16, taps, seed) for seed in SEEDS for taps in (2, 1)],
    "llamba_length": [LlambaLength(1, steps) for steps in (0, 300, 600, 1000, 1500, 2250, 5000)],
    "retrieval_aware": [KeptHeads(d_state, seed) for seed in SEEDS for d_state in (8, 4, 2)],
    "deltanet": [DeltaNet(d_state, 4, seed) for seed in SEEDS for d_state in (8, 16)],
    "qwen3_next": [Qwen3Next(8, 4, seed=1)],
    "zamba2": [Zamba2(seed) for seed in SEEDS],
}


def work_off(run: Run, device: str = "cpu") -> Run:
    """Do one training in this process, with its progress in its folder's `log.txt`."""
    torch.set_num_threads(1)
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "log.txt").open("a") as log, redirect_stderr(log):
        run.work(device)
    return run


def settings(table: pd.DataFrame, run: Run) -> pd.Series:
    """Which rows of a table are of this run."""
    rows = pd.Series(True, index=table.index)
    for name, value in asdict(run).items():
        rows &= table[name].astype(str) == str(value)
    return rows


def collect(name: str, folder: Path) -> dict[str, pd.DataFrame]:
    """Write what a grid has measured, now or before, to its tables in `folder`, named by their endings."""
    found = {}
    for ending in ("", "_answers"):
        file, parts = folder / f"{name}{ending}.csv", []
        before = pd.read_csv(file, dtype=str) if file.is_file() else None
        for run in GRIDS[name]:
            table = run.table(ending)
            if table is None and before is not None:
                table = before[settings(before, run)]
            if table is not None and len(table):
                parts.append(table)
        if parts:
            found[ending] = pd.concat(parts, ignore_index=True)
            found[ending].to_csv(file, index=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models trained at a time")
    parser.add_argument("--device", default="cpu", help="where they are trained: cpu or cuda")
    parser.add_argument("--out", type=Path, default=world.data_dir() / "runs", help="folder of the tables")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs, spawn = GRIDS[args.grid], multiprocessing.get_context("spawn")
    tables = collect(args.grid, args.out)
    finished = tables.get(runs[0].result, pd.DataFrame(columns=list(asdict(runs[0]))))
    left = [run for run in runs if not settings(finished, run).any()]
    with (
        ProcessPoolExecutor(args.jobs, mp_context=spawn) as pool,
        tqdm(total=len(runs), initial=len(runs) - len(left), unit="model", desc=args.grid) as bar,
    ):
        for future in as_completed([pool.submit(work_off, run, args.device) for run in left]):
            bar.set_postfix_str(f"last: {future.result()}")
            bar.update()
            collect(args.grid, args.out)


if __name__ == "__main__":
    main()
