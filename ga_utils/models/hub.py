"""Getting a model's files from the Hugging Face hub: only the shards that the asked-for layers need.

`huggingface_hub` does the work. It finds the token (`HF_TOKEN`, `hf auth login`, Colab's secrets), compares
each file's length with the hub's, and keeps complete files in its cache (`HF_HOME`). If a connection breaks,
it tries again (versions before 2 do not). If a download fails for good, only the broken file is fetched again
next time. Offline (`HF_HUB_OFFLINE=1`) the cache alone is used.
"""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP library that the installed version uses: all that can go wrong with a connection
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig

from ga_utils.models.catalog import Entry, Repository
from ga_utils.models.device import GB, free_disk_gb
from ga_utils.models.loading import INDEX, first_layers, layer_of

ONE_FILE = "model.safetensors"  # what a checkpoint is called that is not split into shards
TOKENIZER_FILES = (  # no tokenizer has all of them
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)


def fetch(name: str, entry: Entry, n_layers: int | None) -> tuple[Path, Path]:
    """Folders of a model's weights and of its tokenizer, downloaded where the cache lacks them.

    The entry's sources are tried in order.

    Args:
        n_layers: how many first layers are needed, None for all.

    Raises:
        ValueError: no source can be read (gated, offline, gone): says what to do about each. Or the disk has
            too little space for what is to be downloaded.
    """
    failures = []
    for source in entry.sources:
        repository = source
        try:
            weights = _fetch_weights(repository, n_layers or entry.layers)
            repository = entry.tokenizer or source
            return weights, _fetch_tokenizer(repository)
        except (HTTPError, OSError) as error:
            failures.append(_what_to_do(repository, error))
    raise ValueError(f"{name}: no source could be read. " + "; ".join(failures))


def _what_to_do(repository: Repository, error: Exception) -> str:
    """One sentence for the user about a download that failed."""
    repo = repository.repo
    match error:
        case GatedRepoError():
            return f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, and set HF_TOKEN"
        case RepositoryNotFoundError():
            return f"{repo} does not exist, or is private and HF_TOKEN does not open it"
        case RevisionNotFoundError():
            return f"{repo} has no revision {repository.revision} any more"
        case LocalEntryNotFoundError() | ConnectionError():
            revision = f" --revision {repository.revision}" if repository.revision else ""
            return (
                f"the hub can't be reached and {repo} is not in {constants.HF_HUB_CACHE}: where there is "
                f"internet, run  hf download {repo}{revision}  and copy that folder here"
            )
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"{repo}: the hub refuses the token that it was given: check HF_TOKEN"
        case HfHubHTTPError():
            return f"{repo}: the hub answered {error.response.status_code}; try again later"
    return f"the download of {repo} broke off ({error}): run this again, complete files are kept"


def _fetch_weights(repository: Repository, n_layers: int) -> Path:
    folder = Path(_download(repository, "config.json")).parent
    if repository.revision is None:
        print(f"{repository.repo}: no revision is pinned, took the newest: {folder.name}")
    config = AutoConfig.from_pretrained(folder)
    if n_layers < config.get_text_config().num_hidden_layers:
        first_layers(config, n_layers)  # if they can't be loaded alone, that is said before the long download
    _download_if_there(repository, "generation_config.json")
    index = _download_if_there(repository, INDEX)
    files = [ONE_FILE]
    if index is not None:
        shards = json.loads(Path(index).read_text())["weight_map"]
        files = sorted({file for weight, file in shards.items() if layer_of(weight) < n_layers})
    try:
        plans = [_download(repository, file, dry_run=True) for file in files]
    except LocalEntryNotFoundError:
        raise  # the hub can't be reached; that it has no such file is the other case
    except EntryNotFoundError:
        raise ValueError(
            f"{repository.repo} has no {files[0]}: only safetensors are read here, never pickled weights"
        ) from None
    needed = sum(plan.file_size for plan in plans if plan.will_download) / GB
    free = free_disk_gb(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise ValueError(
            f"{repository.repo}: {needed:.0f} GB to download, {constants.HF_HUB_CACHE} has {free:.0f} GB "
            "free: set HF_HOME to a larger disk"
        )
    for file in files:
        _download(repository, file)
    return folder


def _fetch_tokenizer(repository: Repository) -> Path:
    found = [path for file in TOKENIZER_FILES if (path := _download_if_there(repository, file))]
    if not found:
        raise LocalEntryNotFoundError(f"no tokenizer of {repository.repo}")
    return Path(found[0]).parent


def _download(repository: Repository, file: str, **options):
    return hf_hub_download(repository.repo, file, revision=repository.revision, **options)


def _download_if_there(repository: Repository, file: str) -> str | None:
    try:
        return _download(repository, file)
    except EntryNotFoundError:  # the hub has none, or it can't be reached and the cache has none
        return None
