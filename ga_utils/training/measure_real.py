"""What SmolLM2 can do and what each of its heads costs: `python -m ga_utils.training.measure_real`.

Writes `data/runs/smollm2_tasks.csv` and `data/runs/smollm2_heads.csv`, which notebook 06 shows beside its own
smaller measurements. On two CPU cores the first takes about ten minutes and the second about an hour; a
sweep that was killed goes on where it was.
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
from ga_utils.sweeps import sweep_heads
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


def what_heads_cost(lm: LM, n: int, checkpoint: Path) -> pd.DataFrame:
    """One row for each head: accuracy on dictionaries of four digits without it. `none`: with all heads."""
    examples = tasks.kv_retrieval(lm, 4, n, SEED, values="digits")
    sweep = sweep_heads(lm, examples, checkpoint=checkpoint)
    whole = {
        "head": "none",
        "accuracy": sweep.baseline.accuracy,
        "logprob": round(sweep.baseline.right_logprob, 4),
    }
    found = sweep.frame()[["head", "accuracy", "logprob"]].round(4)
    return pd.concat([pd.DataFrame([whole]), found]).assign(n=n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=["tasks", "heads"], nargs="*", default=["tasks", "heads"])
    parser.add_argument("--out", type=Path, default=world.data_dir() / "runs", help="folder of the tables")
    args = parser.parse_args()
    lm = load_model(MODEL)
    if "tasks" in args.table:
        what_it_can_do(lm, 400).to_csv(args.out / "smollm2_tasks.csv", index=False)
    if "heads" in args.table:
        checkpoint = Path("runs") / "smollm2_heads.sqlite"
        checkpoint.parent.mkdir(exist_ok=True)
        what_heads_cost(lm, 100, checkpoint).to_csv(args.out / "smollm2_heads.csv", index=False)


if __name__ == "__main__":
    main()
