"""What SmolLM2 can do: `python -m ga_utils.training.measure_real` writes `data/runs/smollm2_tasks.csv`.

Notebook 06 draws the table. On two busy CPU cores it took a quarter of an hour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ga_utils import tasks
from ga_utils.examples import Example
from ga_utils.models.lm import LM, load_model
from ga_utils.scoring import evaluate
from ga_utils.tasks import world

MODEL = "smollm2-135m-instruct-q4"
SEED = 20261126
PAIRS = (2, 4, 6, 8, 10)


def everything(lm: LM, n: int) -> dict[str, list[Example]]:
    """All that this model was asked, whether it can do it or not."""
    asked = {
        f"dictionary, {pairs} digits": tasks.kv_retrieval(lm, pairs, n, SEED, values="digits")
        for pairs in PAIRS
    }
    asked["dictionary, 4 numbers to 99"] = tasks.kv_retrieval(lm, 4, n, SEED)
    asked["induction"] = tasks.induction(lm, n, SEED)
    return asked | {kind: tasks.english(lm, kind, n, SEED) for kind in tasks.ENGLISH}


def what_it_can_do(lm: LM, n: int) -> pd.DataFrame:
    rows = []
    for name, examples in tqdm(everything(lm, n).items(), desc="tasks"):
        right = int(evaluate(lm, examples).correct.sum())
        rows.append({"task": name, "chance": 1 / len(examples[0].choices), "n": n, "right": right})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=400, help="questions of each task")
    parser.add_argument("--out", type=Path, default=world.data_dir() / "runs", help="folder of the table")
    args = parser.parse_args()
    what_it_can_do(load_model(MODEL), args.n).to_csv(args.out / "smollm2_tasks.csv", index=False)


if __name__ == "__main__":
    main()
