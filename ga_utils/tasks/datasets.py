"""The public data sets: which ones, at which commit, and how their rows get here, also where there is no internet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

INSTALL = 'tasks on real data need two more packages: pip install "ga-utils[eval]"'


class Source(NamedTuple):
    """A data set on the Hugging Face hub: parquet files only, no code of its own is ever run.

    revision: the commit of the hub's repository that is read; None is its newest.
    """

    repo: str
    config: str | None
    split: str
    revision: str | None


MMLU = Source("cais/mmlu", "all", "test", "c30699e8356da336a370243923dbaf21066bb9fe")
ARC = Source("allenai/ai2_arc", "ARC-Easy", "test", "210d026faf9955653af8916fad021475a3f00453")
PIQA = Source("baber/piqa", None, "validation", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1")
OPENBOOKQA = Source("allenai/openbookqa", "main", "test", "388097ea7776314e93a529163e0fea805b8a6454")
HELLASWAG = Source("Rowan/hellaswag", None, "validation", "218ec52e09a7e7462a5400043bb9a69a41d06b76")
WINOGRANDE = Source(
    "allenai/winogrande", "winogrande_xl", "validation", "01e74176c63542e6b0bcb004dcdea22d94fb67b5"
)
GSM8K = Source("openai/gsm8k", "main", "test", "740312add88f781978c0658806c59bc2815b9866")
BBH = Source("SaylorTwift/bbh", None, "test", "b5306be6f827cfafbb545ff5a51f96916029b0fd")
TIMEDIAL = Source("hails/bigbench", "timedial_zero_shot", "default", None)  # no commit of it is known to us


def read(source: Source):
    """The rows, as a `datasets.Dataset`: from the folder GA_DATASETS if it holds the data set, else from the hub.

    Raises:
        ModuleNotFoundError: `datasets` is not installed.
        ConnectionError: the data set is neither at hand nor reachable; says what to download where.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL) from error
    folder = os.environ.get("GA_DATASETS")
    local = Path(folder or ".") / source.repo
    place = (
        {"path": str(local)}
        if folder and local.is_dir()
        else {"path": source.repo, "revision": source.revision}
    )
    try:
        return datasets.load_dataset(**place, name=source.config, split=source.split)
    except (
        OSError,
        ValueError,
    ) as error:  # datasets and the hub raise these for all that can't be found or reached
        pinned = f" --revision {source.revision}" if source.revision else ""
        raise ConnectionError(
            f"can't read {source.repo} ({source.config or 'default'}, {source.split}) from {place['path']}: {error}\n"
            f"Where there is internet, run\n  hf download --repo-type dataset {source.repo}{pinned} "
            f"--local-dir FOLDER/{source.repo}\nand set the environment variable GA_DATASETS=FOLDER here."
        ) from error
