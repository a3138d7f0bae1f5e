"""The public data sets: which they are, at which commit, and how their rows are read, also offline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ga_utils.tasks.originals import ORIGINAL, original_rows

INSTALL = 'tasks on real data need two more packages: pip install "ga-utils[eval]"'


class PublicData(NamedTuple):
    """One split of a data set on the Hugging Face hub: parquet files; none of the repository's code is run.

    revision: the commit that is read; None is the newest.
    """

    repo: str
    config: str | None
    split: str
    revision: str | None


MMLU = PublicData("cais/mmlu", "all", "test", "c30699e8356da336a370243923dbaf21066bb9fe")
ARC = PublicData("allenai/ai2_arc", "ARC-Easy", "test", "210d026faf9955653af8916fad021475a3f00453")
PIQA = PublicData("baber/piqa", None, "validation", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1")
OPENBOOKQA = PublicData("allenai/openbookqa", "main", "test", "388097ea7776314e93a529163e0fea805b8a6454")
HELLASWAG = PublicData("Rowan/hellaswag", None, "validation", "218ec52e09a7e7462a5400043bb9a69a41d06b76")
WINOGRANDE = PublicData(
    "allenai/winogrande", "winogrande_xl", "validation", "01e74176c63542e6b0bcb004dcdea22d94fb67b5"
)
GSM8K = PublicData("openai/gsm8k", "main", "test", "740312add88f781978c0658806c59bc2815b9866")
BBH = PublicData("SaylorTwift/bbh", None, "test", "b5306be6f827cfafbb545ff5a51f96916029b0fd")
TIMEDIAL = PublicData("hails/bigbench", "timedial_zero_shot", "default", None)  # we know of no commit to pin


def read(data: PublicData):
    """The rows, as a `datasets.Dataset`: from the folder GA_DATASETS if they are there, else from the hub.

    The folder may hold the hub's repositories, `GA_DATASETS/cais/mmlu`, or for MMLU, GSM8K and BIG-Bench Hard
    the authors' own files, in `GA_DATASETS/mmlu`, `gsm8k` and `bbh` (see `originals`).

    Raises:
        ModuleNotFoundError: the package `datasets` is not installed.
        ConnectionError: the data set is neither in the folder nor within reach; says what to download where.
        ValueError: a row of an original file is damaged (names file and row).
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL) from error
    folder = os.environ.get("GA_DATASETS")
    name = data.repo.rpartition("/")[2]
    rows = original_rows(Path(folder) / name, data.config, data.split) if folder else None
    if rows:
        return datasets.Dataset.from_list(rows)
    on_disk = bool(folder) and (Path(folder) / data.repo).is_dir()
    path = str(Path(folder) / data.repo) if on_disk else data.repo
    revision = None if on_disk else data.revision
    try:
        return datasets.load_dataset(path, name=data.config, split=data.split, revision=revision)
    except (OSError, ValueError) as error:  # whatever is missing or out of reach raises one of these
        pinned = f" --revision {data.revision}" if data.revision else ""
        raise ConnectionError(
            f"can't read {data.repo} ({data.config or 'default'}, {data.split}) from {path}: "
            f"{error}\nWhere there is internet, run\n  hf download --repo-type dataset {data.repo}{pinned} "
            f"--local-dir FOLDER/{data.repo}\nand set the environment variable GA_DATASETS=FOLDER here."
            + (f" Or copy the authors' own files to FOLDER/{name}." if name in ORIGINAL else "")
        ) from error
