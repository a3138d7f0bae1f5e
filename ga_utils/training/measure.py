"""What the shipped models can do, on seeds that training never used: `python -m ga_utils.training.measure`.

Prints the tables of data/README.md.
"""

from __future__ import annotations

import argparse

import pandas as pd
from tqdm.auto import tqdm

from ga_utils import tasks
from ga_utils.examples import Example
from ga_utils.heads import ablate
from ga_utils.models.catalog import TINY
from ga_utils.models.lm import LM, load_model
from ga_utils.roles import Roles, find_roles
from ga_utils.scoring import Score, evaluate
from ga_utils.sweeps import sweep_layers

SEED = 20261123
PAIRS = (2, 4, 8, 16, 24, 32)
LLAMAS = ("tiny-llama", "tiny-llama-minimal")


def all_tasks(lm: LM, n: int, seed: int = SEED) -> dict[str, list[Example]]:
    """Every task of the tiny world, KV retrieval at several sizes."""
    plain = (tasks.mmlu, tasks.mmlu_content, tasks.knowledge, tasks.gsm8k, tasks.bbh, tasks.dialogue)
    return {task.__name__: task(lm, n=n, seed=seed) for task in plain} | {
        f"KV {pairs}": tasks.kv_retrieval(lm, n_pairs=pairs, n=n, seed=seed) for pairs in PAIRS
    }


def accuracies(lm: LM, n: int) -> dict[str, Score]:
    return {
        name: evaluate(lm, examples)
        for name, examples in tqdm(all_tasks(lm, n).items(), desc=lm.name, leave=False)
    }


def roles_of(lm: LM) -> Roles:
    return find_roles(lm, tasks.mmlu(lm, n=300, seed=1), tasks.knowledge(lm, n=300, seed=1), progress=False)


def without_teams(lm: LM, roles: Roles, n: int) -> pd.DataFrame:
    """Accuracy on every task without each team, on other questions than it was found on."""
    table = {"none disabled": accuracies(lm, n)}
    for heads in (roles.gather, roles.aggregate):
        with ablate(lm, heads):
            table["without " + " ".join(map(str, heads))] = accuracies(lm, n)
    return frame(table)


def frame(table: dict[str, dict[str, Score]]) -> pd.DataFrame:
    return pd.DataFrame(
        {row: {task: f"{s.accuracy:.1%}" for task, s in scores.items()} for row, scores in table.items()}
    ).T


def markdown(table: pd.DataFrame) -> str:
    rows = [
        ["", *table.columns],
        ["---"] * (len(table.columns) + 1),
        *([name, *row] for name, row in zip(table.index, table.values)),
    ]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=TINY, help="names, or folders; default: all that ship")
    parser.add_argument("-n", type=int, default=1000, help="examples for each number")
    args = parser.parse_args()
    models = {name: load_model(name) for name in args.models}
    print(markdown(frame({name: accuracies(lm, args.n) for name, lm in models.items()})), "\n")
    for name, lm in models.items():
        roles = roles_of(lm)
        print(f"{name}: {roles}\n")
        if name in LLAMAS:
            print(markdown(without_teams(lm, roles, args.n)), "\n")
            examples = {
                "mmlu": tasks.mmlu(lm, n=args.n, seed=SEED),
                "knowledge": tasks.knowledge(lm, n=args.n, seed=SEED),
            }
            layers = sweep_layers(lm, examples, progress=False).frame()
            print(f"{name}, first layers kept:\n{layers.round(3)}\n")


if __name__ == "__main__":
    main()
