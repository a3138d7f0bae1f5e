"""What tests of interrupted sweeps share."""

import sqlite3

import ga_utils as ga


def committed(path) -> int:
    """The number of finished heads in a checkpoint, as another program sees it; 0 before the file is
    there.
    """
    if not path.exists():
        return 0
    with sqlite3.connect(path, timeout=30) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'heads'").fetchone():
            return 0
        return db.execute("SELECT count(*) FROM heads").fetchone()[0]


def same(a: ga.HeadSweep, b: ga.HeadSweep) -> bool:
    """Bit for bit."""
    pairs = [(a.accuracy, b.accuracy), (a.logprob, b.logprob), (a.baseline.logprobs, b.baseline.logprobs)]
    return all(x.tobytes() == y.tobytes() for x, y in pairs)
