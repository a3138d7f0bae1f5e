"""A sweep's results in one SQLite file, committed piece by piece: a killed run loses at most the piece in
flight.

The file also knows what its numbers were computed with, and refuses to be mixed with anything else.

Why SQLite's plain rollback journal and not WAL: WAL keeps recent commits in a second file and needs memory
that all its users share, which network drives and Colab's Google Drive don't offer. With the journal, the
one file is complete whenever no commit is under way, and a commit (milliseconds) costs nothing beside a
piece (seconds).
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
import transformers

from ga_utils.examples import Example
from ga_utils.heads import Head
from ga_utils.models.device import cache_dir, fetched
from ga_utils.models.lm import LM
from ga_utils.scoring import evaluate
from ga_utils.segments import Places

FORMAT = (
    "3"  # goes up whenever a head's numbers come to be computed in another way: older files are then refused
)
MEMORY = ":memory:"  # a checkpoint that ends with the process
RESERVE = 1 << 16  # bytes that opening a file writes, so that a full disk shows before the work starts
WAIT = 60  # seconds to wait for another process that is writing
PROBE = 4  # examples on which two models are compared

Piece = tuple[
    Head, ...
]  # heads of one layer that are committed together; () is the model with nothing disabled

HINTS = {
    "format": "made by another version of ga_utils",
    "weights": "edited or trained on since, or other layers of the same model",
    "examples": "other questions, another number of them, or another seed",
    "reference": "other reference examples, or another seed",
    "versions": "numbers would differ in the last digits: go on under the versions of the file",
    "device": "numbers would differ in the last digits: go on where the file was made",
    "outputs": "the same weights answer otherwise: was one of the two runs inside ablate() or another "
    "context "
    "manager, was the configuration changed, or is this another processor or number of threads?",
}


class Checkpoint:
    """Finished heads and their log-probabilities, one row a head, in a file that several processes may use
    at once.

    Args:
        path: is created, folders included, if it does not exist; `MEMORY` for none.
        identity: what the numbers depend on (see `identity`); a file made for another one is refused.

    Raises:
        ValueError: the file is no checkpoint, is damaged, or was made for something else (each difference is
            named). It is left as it was.
        OSError: the file can't be written: a read-only folder, a full disk, a lock that another process
            holds.
    """

    def __init__(self, path: str | Path, identity: dict[str, str]):
        self.path = path if path == MEMORY else Path(path).expanduser()
        self.finished = 0  # heads known to be safe in the file
        if self.path != MEMORY:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(f"can't make the folder of checkpoint {self.path}: {error}") from error
        with self._explained():
            self._db = sqlite3.connect(
                self.path, timeout=WAIT, isolation_level=None
            )  # one statement, one commit
        try:
            with self._explained():
                self._open(identity)
        except BaseException:
            self._db.close()
            raise

    def _open(self, identity: dict[str, str]) -> None:
        """Check the file before anything is written to it, then see whether writing works."""
        with self._db:  # one transaction: two processes that begin at once can't both make the file
            self._db.execute("BEGIN IMMEDIATE")
            tables = {
                name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            if tables and "identity" not in tables:
                raise ValueError(
                    f"{self.path} is another program's SQLite file, not a checkpoint: give another path"
                )
            (health,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if health != "ok":
                raise sqlite3.DatabaseError(health)
            if tables:  # a file of an older format is refused here
                self._compare(dict(self._db.execute("SELECT key, value FROM identity")), identity)
            else:
                self._db.execute("CREATE TABLE identity (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
                self._db.execute(
                    "CREATE TABLE heads (head TEXT PRIMARY KEY, shape TEXT NOT NULL, data BLOB NOT NULL)"
                )
                self._db.executemany("INSERT INTO identity VALUES (?, ?)", identity.items())
            self._db.execute("CREATE TABLE IF NOT EXISTS reserve (bytes BLOB)")
            self._db.execute("INSERT INTO reserve VALUES (zeroblob(?))", [RESERVE])
        self._db.execute("DROP TABLE IF EXISTS reserve")  # its pages stay in the file, for the next heads
        (self.finished,) = self._db.execute("SELECT count(*) FROM heads").fetchone()

    def _compare(self, stored: dict[str, str], identity: dict[str, str]) -> None:
        differ = [key for key in {**stored, **identity} if stored.get(key) != identity.get(key)]
        if len(differ) > 1 and "outputs" in differ:  # they follow from the rest
            differ.remove("outputs")
        if differ:
            lines = [
                f"  {key}: {stored.get(key)} in the file, {identity.get(key)} now"
                + (f" ({HINTS[key]})" if key in HINTS else "")
                for key in differ
            ]
            raise ValueError(
                f"checkpoint {self.path} was made for something else:\n"
                + "\n".join(lines)
                + "\nGive another path; the file is left as it is."
            )

    def missing(self, piece: Piece) -> Piece | None:
        """The heads of a piece that are not finished yet, () being the baseline; None if nothing is
        missing.
        """
        with self._explained():
            found = [head for head in piece or (None,) if not self._row(head)]
        return tuple(head for head in found if head) if found else None

    def get(self, head: Head | None) -> np.ndarray:
        """What `put` stored for a head, or for the baseline: float64 [n_examples, n_choices].

        Raises:
            KeyError: it isn't finished.
        """
        with self._explained():
            row = self._row(head)
        if row is None:
            raise KeyError(f"{_key(head)} is not in {self.path}")
        return np.frombuffer(row[1], "<f8").reshape(json.loads(row[0]))

    def put(self, piece: Piece, logprobs: np.ndarray) -> None:
        """Commit one piece: when this returns, it is on the disk. If another process was first, its result
        stays.

        logprobs: [head, n_examples, n_choices], a single one for the baseline.
        """
        shape = json.dumps(logprobs.shape[1:])
        rows = [(_key(h), shape, one.astype("<f8").tobytes()) for h, one in zip(piece or (None,), logprobs)]
        with self._explained(), self._db:  # one transaction
            self._db.execute("BEGIN IMMEDIATE")
            self.finished += self._db.executemany(
                "INSERT OR IGNORE INTO heads VALUES (?, ?, ?)", rows
            ).rowcount

    def _row(self, head: Head | None) -> tuple[str, bytes] | None:
        return self._db.execute("SELECT shape, data FROM heads WHERE head = ?", [_key(head)]).fetchone()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error) -> None:
        self._db.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors, in words that say what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(
                f"can't write checkpoint {self.path}: {error} (is the disk full, the folder read-only, "
                "or the file held by "
                f"another process?). {self.finished} finished heads are safe in it; with that mended, "
                "the same call goes on"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path} is not a checkpoint, or is damaged: {error}. It is left as it is; give another "
                "path, or a copy of the file from before"
            ) from error


def _key(head: Head | None) -> str:
    return str(head) if head else "baseline"


def identity(
    lm: LM, examples: list[Example], mode: str, reference: list[Example] | None, places: Places
) -> dict[str, str]:
    """All that the numbers of a sweep hang on, in words a message can show.

    Versions and the kind of device are part of it, since a table whose cells come from different kernels
    would not be the one that an uninterrupted run gives. "outputs" are the log-probabilities of the first
    examples bit for bit: they tell what weights don't, such as an `ablate` that is in force around the sweep.
    """
    config = lm.model.config
    folder = re.search(
        r"snapshots/([0-9a-f]{40})", config.name_or_path or ""
    )  # where Hugging Face's cache keeps a revision
    device = (
        "cpu" if lm.device.type == "cpu" else f"{lm.device.type}, {torch.cuda.get_device_name(lm.device)}"
    )
    return {
        "format": FORMAT,
        "model": f"{Path(lm.name).name} ({type(lm.model).__name__}, {lm.n_layers} layers)",
        "revision": getattr(config, "_commit_hash", None) or (folder[1] if folder else "none"),
        "weights": fingerprint(lm.model),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "device": device,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "mode": mode,
        "positions": _digest_of_places(places, examples),
        "reference": _digest_of(reference) if mode != "zero" else "none",
        "task": ", ".join(sorted({example.task for example in examples})),
        "examples": _digest_of(examples),
        "outputs": hashlib.sha256(evaluate(lm, examples[:PROBE]).logprobs.tobytes()).hexdigest()[:16],
    }


def automatic(who: dict[str, str]) -> Path | str:
    """The file in the cache for one identity; `MEMORY`, with a warning, where nothing can be written."""
    folder = cache_dir() / "sweeps"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        warnings.warn(f"the sweep's results are not kept: {error}", stacklevel=3)
        return MEMORY
    return folder / f"{hashlib.sha256(json.dumps(who).encode()).hexdigest()[:16]}.sqlite"


def fingerprint(model: torch.nn.Module) -> str:
    """A SHA-256 over the names and bytes of all weights, 16 hex digits.

    Reads every weight once, so that no edit goes unseen: about 1.4 GB/s, 12 s for 8 B parameters in 16 bits,
    against hours that a sweep of such a model takes. Weights on a GPU are copied over one at a time.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if weight.is_meta:  # offloaded
            owner, _, own_name = name.rpartition(".")
            weight = fetched(model.get_submodule(owner), own_name)
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _digest_of(examples: list[Example]) -> str:
    rows = json.dumps([[e.prompt, e.choices, e.answer, e.task, e.given] for e in examples])
    return f"n={len(examples)}, {hashlib.sha256(rows.encode()).hexdigest()[:16]}"


def _digest_of_places(places: Places, examples: list[Example]) -> str:
    """By the positions that are meant, since a function can't be compared with another one."""
    if places.where is None:
        return "all"
    named = json.dumps([places.of(example) for example in examples])
    return f"{str(places).strip()}, {hashlib.sha256(named.encode()).hexdigest()[:16]}"
