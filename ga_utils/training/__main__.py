"""Train a model that ships: `python -m ga_utils.training tiny-llama`.

A training that was killed resumes from `runs/`.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import torch

from ga_utils.tasks import world
from ga_utils.training.grid_runs import DeltaNet, Qwen3Next, tiny_from_scratch
from ga_utils.training.recipes import (
    tiny_falcon_mamba,
    tiny_llama,
    tiny_llama_minimal,
    tiny_llamba,
    tiny_zamba2,
)
from ga_utils.training.stages import UNGUIDED, UNGUIDED_1

RECIPES = {
    "tiny-llama": tiny_llama,
    "tiny-llama-unguided": partial(tiny_llama, stages=UNGUIDED_1),
    "tiny-llama-unguided-2": partial(tiny_llama, stages=UNGUIDED),
    "tiny-llama-minimal": tiny_llama_minimal,
    "tiny-llamba": tiny_llamba,  # and tiny-llamba-unaligned on the way
    "tiny-llamba-onetap": partial(tiny_llamba, taps=1, steps=1500, save_unaligned=False),
    "tiny-falcon-mamba": tiny_falcon_mamba,
    "tiny-mamba2": partial(tiny_from_scratch, d_state=8),
    "tiny-mamba2-d4": partial(tiny_from_scratch, d_state=4),
    "tiny-mamba2-d16": partial(tiny_from_scratch, d_state=16),
    "tiny-deltanet": partial(tiny_from_scratch, d_state=16, kind=DeltaNet),
    "tiny-zamba2": tiny_zamba2,
    "tiny-qwen3-next": partial(tiny_from_scratch, d_state=8, kind=Qwen3Next),
}
SEEDS = {"tiny-llama": 2, "tiny-llama-unguided-2": 2}  # of the shipped models; 1 for all others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=RECIPES, metavar="MODEL", help=", ".join(RECIPES))
    parser.add_argument("--seed", type=int, help="default: the seed of the shipped model")
    parser.add_argument("--out", type=Path, help="default: the model's folder in data/models")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    seed = SEEDS.get(args.model, 1) if args.seed is None else args.seed
    RECIPES[args.model](seed, args.out or world.data_dir() / "models" / args.model)


if __name__ == "__main__":
    main()
