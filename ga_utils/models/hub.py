"""Getting a model's files from the Hugging Face hub: only the shards that the asked-for layers need.

Files go to the hub client's own cache (`HF_HOME`), are taken up where a broken download stopped, and are checked against
the SHA-256 that the hub gives for them. Offline (`HF_HUB_OFFLINE=1`) the cache alone is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

from filelock import FileLock
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers
from tqdm.auto import tqdm

from ga_utils.models.catalog import Entry, Source
from ga_utils.models.device import free_disk_gb
from ga_utils.models.loading import INDEX, layer_of

SINGLE = "model.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
COLAB_WAIT = 10  # seconds for Colab's secrets, which wait for a click that may never come


def token() -> str | None:
    """The hub token: of the environment, of `hf auth login`, of Colab's secrets (10 s at most), or none. Never printed."""
    if os.environ.get("HF_TOKEN"):
        return os.environ["HF_TOKEN"]
    saved = Path(constants.HF_TOKEN_PATH)
    if saved.is_file() and saved.read_text().strip():
        return saved.read_text().strip()
    return _colab_secret() if "google.colab" in sys.modules else None


def _colab_secret() -> str | None:
    def stop(*_):
        raise TimeoutError

    if threading.current_thread() is not threading.main_thread():
        return None  # only the main thread can be interrupted, and without that the wait has no end
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, COLAB_WAIT)
    try:
        from google.colab import userdata

        return userdata.get("HF_TOKEN") or None
    except (
        Exception
    ):  # no such secret, no permission, no answer in time: all mean that there is none to be had
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fetch(name: str, entry: Entry, n_layers: int | None) -> tuple[Path, Path]:
    """Folders of a model's weights and of its tokenizer, downloaded where the cache lacks them.

    Raises:
        ValueError: no source can be read (gated, offline, gone), with what to do about it; too little space on the disk.
    """
    key, failures = token(), []
    for source in entry.sources:
        try:
            weights = _weights(source, entry, n_layers, key)
            return weights, _tokenizer(entry.tokenizer or source, key)
        except GatedRepoError:
            failures.append(
                f"{source.repo} is gated: accept its licence at https://huggingface.co/{source.repo}, and set HF_TOKEN"
            )
        except RepositoryNotFoundError:
            failures.append(f"{source.repo} does not exist, or is private and HF_TOKEN does not open it")
        except (LocalEntryNotFoundError, ConnectionError):
            at = f" --revision {source.revision}" if source.revision else ""
            failures.append(
                f"the hub can't be reached and {source.repo} is not in {constants.HF_HUB_CACHE}: where there is "
                f"internet, run  hf download {source.repo}{at}  and copy that folder here"
            )
        except HfHubHTTPError as error:
            failures.append(f"{source.repo}: the hub answered {error.response.status_code}; try again later")
        except Exception as error:
            if not type(error).__module__.startswith(
                "httpx"
            ):  # the client's HTTP library: httpx or httpx2, by version
                raise
            failures.append(
                f"the download of {source.repo} broke off: run this again, it goes on where it stopped"
            )
    raise ValueError(f"{name}: no source could be read. " + "; ".join(failures))


def _weights(source: Source, entry: Entry, n_layers: int | None, key: str | None) -> Path:
    folder = _get(source, "config.json", key).parent
    if source.revision is None:
        print(f"{source.repo}: no revision is pinned, took the newest: {folder.name}")
    index = _maybe(source, INDEX, key)
    if index is None:
        files, size = [SINGLE], entry.gb
    else:
        weight_map = json.loads(index.read_text())["weight_map"]
        files = sorted(
            {file for weight, file in weight_map.items() if layer_of(weight) < (n_layers or entry.layers)}
        )
        size = entry.gb * len(files) / len({*weight_map.values()})
    missing = [file for file in files if not _cached(source, file)]
    needed, free = size * len(missing) / len(files), free_disk_gb(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise ValueError(
            f"{source.repo}: about {needed:.0f} GB to download, {constants.HF_HUB_CACHE} has {free:.0f} GB free: "
            "set HF_HOME to a larger disk"
        )
    for file in missing:
        try:
            _resume(source, file, key)
        except LocalEntryNotFoundError:
            raise  # not reachable; that it does not exist is the other case
        except EntryNotFoundError:
            raise ValueError(
                f"{source.repo} has no {file}: only safetensors are read here, never pickled weights"
            ) from None
    return folder


def _tokenizer(source: Source, key: str | None) -> Path:
    found = [
        path for file in TOKENIZER if (path := _maybe(source, file, key))
    ]  # no tokenizer has all of these files
    if not found:
        raise LocalEntryNotFoundError(f"no tokenizer of {source.repo}")
    return found[0].parent


def _get(source: Source, file: str, key: str | None) -> Path:
    # token=False: without it the hub client would ask Colab's secrets by itself, and wait without end
    return Path(hf_hub_download(source.repo, file, revision=source.revision, token=key or False))


def _maybe(source: Source, file: str, key: str | None) -> Path | None:
    try:
        return _get(source, file, key)
    except EntryNotFoundError:  # also when offline and not in the cache
        return None


def _cached(source: Source, file: str) -> bool:
    return isinstance(try_to_load_from_cache(source.repo, file, revision=source.revision), str)


def _resume(source: Source, file: str, key: str | None) -> None:
    """Bring a shard into the hub client's cache; what an earlier, broken try has left is kept.

    The client itself begins a file anew in each session, which hurts with shards of 5 GB.
    """
    if constants.HF_HUB_OFFLINE:
        raise LocalEntryNotFoundError(file)
    url = hf_hub_url(source.repo, file, revision=source.revision)
    known = get_hf_file_metadata(url, token=key or False)
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source.repo, repo_type="model") / "blobs"
    blob, partial = blobs / known.etag, blobs / f"{known.etag}.partial"
    blobs.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{partial}.lock"):
        have = partial.stat().st_size if partial.exists() else 0
        headers = build_hf_headers(token=key or False) | {"Range": f"bytes={have}-"}
        if not blob.exists() and have < known.size:
            with get_session().stream("GET", url, headers=headers, follow_redirects=True) as answer:
                answer.raise_for_status()
                have = have if answer.status_code == 206 else 0  # 200: the whole file comes again
                with (
                    partial.open("ab" if have else "wb") as f,
                    _bar(f"download {file}", known.size, have) as bar,
                ):
                    for block in answer.iter_bytes():
                        bar.update(f.write(block))
        if not blob.exists():
            if _sha256(partial) != known.etag:
                partial.unlink()
                raise ValueError(
                    f"{file} of {source.repo} arrived damaged (wrong SHA-256) and was removed: run this again"
                )
            partial.rename(blob)
    _get(source, file, key)  # enters the blob into the snapshot's folder


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as f, _bar(f"check {file.name[:8]}", file.stat().st_size) as bar:
        while block := f.read(1 << 24):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _bar(what: str, total: int, initial: int = 0) -> tqdm:
    return tqdm(desc=what, total=total, initial=initial, unit="B", unit_scale=True, delay=1)
