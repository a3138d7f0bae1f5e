"""A sweep that is killed, shared, refused or out of space: nothing finished is lost, nothing foreign gets in."""

import multiprocessing
import random
import sqlite3
import time

import numpy as np
import pytest
import torch
import transformers
from conftest import random_llama
from transformers import AutoTokenizer

import ga_utils as ga
from ga_utils import checkpoint, sweeps
from ga_utils.checkpoint import Checkpoint
from ga_utils.world import data_dir

PIECES = 19  # the baseline and 3 layers of 6 heads
# A server that has imported everything forks the processes that will be killed: no import to wait for each time.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["ga_utils", "conftest"])


def sweep(path) -> ga.HeadSweep:
    lm = random_llama(AutoTokenizer.from_pretrained(data_dir() / "world"), 6)
    return ga.sweep_heads(lm, ga.tasks.mmlu(lm, n=40), checkpoint=path, progress=False)


def sweep_at_once(path, barrier, into):
    barrier.wait()
    found = sweep(path)
    np.savez(into, accuracy=found.accuracy, logprob=found.logprob, baseline=found.baseline.logprobs)


def committed(path) -> int:
    """As another program sees it; 0 before the file is there."""
    if not path.exists():
        return 0
    with sqlite3.connect(path, timeout=30) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'pieces'").fetchone():
            return 0
        return db.execute("SELECT count(*) FROM pieces").fetchone()[0]


def same(a: ga.HeadSweep, b: ga.HeadSweep) -> bool:
    """Bit for bit."""
    pairs = [(a.accuracy, b.accuracy), (a.logprob, b.logprob), (a.baseline.logprobs, b.baseline.logprobs)]
    return all(x.tobytes() == y.tobytes() for x, y in pairs)


@pytest.fixture(scope="module")
def uninterrupted():
    return sweep(None)


@pytest.fixture
def computed(monkeypatch) -> list:
    """The pieces that are computed in this process from now on."""
    pieces, original = [], sweeps.ExactSweep

    def runner(*args, **kwargs):
        run = original(*args, **kwargs)
        return lambda piece: pieces.append(piece) or run(piece)

    monkeypatch.setattr(sweeps, "ExactSweep", runner)
    return pieces


@pytest.mark.parametrize("after", [0, 1, 9, 17])
def test_a_killed_sweep_goes_on_where_it_was(after, tmp_path, computed, uninterrupted):
    path = tmp_path / "sweep.sqlite"
    process = processes.Process(target=sweep, args=(path,))
    process.start()
    deadline = time.monotonic() + 60
    while committed(path) < after or not path.exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9
    kept = committed(path)
    assert after <= kept < PIECES
    assert same(sweep(path), uninterrupted)
    assert len(computed) == PIECES - kept
    assert same(sweep(path), uninterrupted) and len(computed) == PIECES - kept, "a finished sweep computes nothing"


def test_a_sweep_killed_again_and_again_at_random_moments(tmp_path, computed, uninterrupted):
    path, rng, kept = tmp_path / "sweep.sqlite", random.Random(0), 0
    for _ in range(12):
        process = processes.Process(target=sweep, args=(path,))
        process.start()
        process.join(rng.uniform(0.2, 1.0))
        process.kill()
        process.join()
        before, kept = kept, committed(path)
        assert kept >= before, "a committed piece was lost"
    assert same(sweep(path), uninterrupted) and len(computed) == PIECES - kept


def test_two_processes_on_one_file_both_end_with_the_whole_result(tmp_path, uninterrupted):
    path, barrier = tmp_path / "sweep.sqlite", processes.Barrier(2)
    workers = [processes.Process(target=sweep_at_once, args=(path, barrier, tmp_path / f"{i}.npz")) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    for i in range(2):
        found = np.load(tmp_path / f"{i}.npz")
        assert found["accuracy"].tobytes() == uninterrupted.accuracy.tobytes()
        assert found["logprob"].tobytes() == uninterrupted.logprob.tobytes()
        assert found["baseline"].tobytes() == uninterrupted.baseline.logprobs.tobytes()
    assert committed(path) == PIECES
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_another_process_finished_meanwhile_is_not_computed_again(tmp_path, computed, lm):
    """The other process is a sweep that runs whole while this one is at its first piece."""
    path, examples, original = tmp_path / "sweep.sqlite", ga.tasks.mmlu(lm, n=30), sweeps.ExactSweep

    def interleaved(lm, **options):
        run = original(lm, **options)

        def first(piece):
            sweeps.ExactSweep = original
            ga.sweep_heads(lm, examples, checkpoint=path, progress=False)
            return run(piece)

        return first

    sweeps.ExactSweep = interleaved  # `computed` puts it back
    ga.sweep_heads(lm, examples, checkpoint=path, progress=False)
    assert len(computed) == PIECES + 1


def test_heads_may_be_added_later(tmp_path, lm, computed):
    path, examples = tmp_path / "new" / "folders" / "sweep.sqlite", ga.tasks.mmlu(lm, n=30)
    some = ga.sweep_heads(lm, examples, ["L1H2", "L2H5", "L1H2"], checkpoint=path, progress=False)
    assert len(computed) == 3 and np.isfinite(some.accuracy).sum() == 2
    whole = ga.sweep_heads(lm, examples, checkpoint=path, progress=False)
    assert len(computed) == PIECES
    assert same(whole, ga.sweep_heads(lm, examples, progress=False))


def test_bits_and_missing_choices_survive(tmp_path):
    rows = np.array([[[-0.1, np.nan, -np.inf], [5e-324, -1 / 3, np.nan]]])
    with Checkpoint(tmp_path / "a.sqlite", {}) as done:
        done.put((ga.Head(1, 2),), rows)
        done.put((ga.Head(1, 2),), rows + 1)  # a second process comes too late
        assert (ga.Head(1, 2),) in done and () not in done
        found = done.get((ga.Head(1, 2),))
        with pytest.raises(KeyError, match="baseline"):
            done.get(())
    assert found.tobytes() == rows.tobytes() and found.shape == rows.shape


def edited(lm):
    lm.mixers[2].out_proj.weight.data[0, 0] += 1e-3
    return lm


def other_epsilon(lm):
    lm.model.model.norm.variance_epsilon = 0.1
    return lm


def other_revision(lm):
    lm.model.config._commit_hash = "0123abcd"
    return lm


BASE = {"seed": 0, "dtype": torch.float32, "task": "mmlu", "n": 6, "draw": 0, "mode": "zero", "reference": 9}
DIFFERENCES = {
    "another model": ({"name": "other"}, r"model: random \(.*\) in the file, other \("),
    "weights of another seed": ({"seed": 1}, r"weights: \w+ in the file, \w+ now"),
    "an edited weight": ({"change": edited}, r"weights: \w+ in the file, \w+ now \(edited"),
    "a revision": ({"change": other_revision}, "revision: none in the file, 0123abcd now"),
    "a dtype": ({"dtype": torch.bfloat16}, "dtype: float32 in the file, bfloat16 now"),
    "a task": ({"task": "knowledge"}, "task: mmlu in the file, knowledge now"),
    "a seed": ({"draw": 1}, r"examples: n=6, \w+ in the file, n=6, \w+ now \(.*another seed"),
    "a number of examples": ({"n": 7}, r"examples: n=6, \w+ in the file, n=7, "),
    "a mode": ({"mode": "mean"}, "mode: zero in the file, mean now"),
    "a change that weights don't show": ({"change": other_epsilon}, "outputs: .*configuration"),
}


def run_variant(tokenizer, path, **changes):
    it = BASE | changes
    lm = random_llama(tokenizer, 6, it["seed"], it["dtype"])
    lm.name = it.get("name", lm.name)
    lm = it.get("change", lambda lm: lm)(lm)
    examples = getattr(ga.tasks, it["task"])(lm, n=it["n"], seed=it["draw"])
    reference = ga.tasks.mmlu(lm, n=2, seed=it["reference"])
    return ga.sweep_heads(lm, examples, ["L0H0"], it["mode"], reference, checkpoint=path, progress=False)


@pytest.mark.parametrize("changes, message", DIFFERENCES.values(), ids=DIFFERENCES)
def test_a_file_made_for_something_else_is_refused_by_name(changes, message, tokenizer, tmp_path, computed):
    path = tmp_path / "sweep.sqlite"
    run_variant(tokenizer, path)
    run_variant(tokenizer, path, reference=8)  # mode "zero" reads no reference
    before, n = path.read_bytes(), len(computed)
    with pytest.raises(ValueError, match=message) as error:
        run_variant(tokenizer, path, **changes)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before and len(computed) == n == 2


def test_other_references_versions_and_a_sweep_inside_an_ablation_are_refused(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "sweep.sqlite"
    run_variant(tokenizer, path, mode="mean")
    with pytest.raises(ValueError, match=r"reference: n=2, \w+ in the file, n=2, \w+ now \(.*another seed"):
        run_variant(tokenizer, path, mode="mean", reference=8)
    lm = random_llama(tokenizer, 6)
    examples, path = ga.tasks.mmlu(lm, n=6), tmp_path / "inside.sqlite"
    with ga.ablate(lm, ["L1H1"]):
        ablated = ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False)
        again = ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False)
    assert same(ablated, again)
    with pytest.raises(ValueError, match=r"outputs: .*inside ablate\(\)"):
        ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False)
    with ga.ablate(lm, ["L1H1"]), pytest.raises(ValueError, match="versions: torch .* in the file, torch .* 0.0.0 now"):
        monkeypatch.setattr(transformers, "__version__", "0.0.0")
        ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False)


def unwritable(tmp_path):
    """Paths at which even root can't make a file."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    return [tmp_path / "file" / "sweep.sqlite", tmp_path / "folder", "/proc/sweep.sqlite", "/proc/new/sweep.sqlite"]


def test_what_cant_be_written_is_refused_before_the_work(tmp_path, lm, computed, monkeypatch):
    examples = ga.tasks.mmlu(lm, n=2)
    for path in unwritable(tmp_path):
        with pytest.raises(OSError, match=f"checkpoint {path}"):
            ga.sweep_heads(lm, examples, checkpoint=path, progress=False)
    # A read-only folder, also for root: SQLite is told to open the file read-only.
    path, connect = tmp_path / "sweep.sqlite", sqlite3.connect
    ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False)
    before, n = path.read_bytes(), len(computed)
    monkeypatch.setattr(sqlite3, "connect", lambda path, **how: connect(f"file:{path}?mode=ro", uri=True, **how))
    with pytest.raises(OSError, match="readonly database .*read-only.* 0 finished"):
        ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False)
    assert len(computed) == n and path.read_bytes() == before


def limit(monkeypatch, pages):
    """SQLite's own full disk: the file may not grow beyond `pages`, or beyond its size once open."""
    connect, opened = sqlite3.connect, checkpoint.Checkpoint._open

    def small(path, **how):
        db = connect(path, **how)
        db.execute(f"PRAGMA max_page_count = {pages or 1 << 30}")
        return db

    def then_full(self, identity):
        opened(self, identity)
        self._db.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size instead

    monkeypatch.setattr(sqlite3, "connect", small)
    if not pages:
        monkeypatch.setattr(checkpoint.Checkpoint, "_open", then_full)


def test_a_disk_that_is_full_at_the_start_is_an_error_before_the_work(tmp_path, lm, computed, monkeypatch):
    limit(monkeypatch, 8)
    with pytest.raises(OSError, match="disk is full .* 0 finished pieces"):
        ga.sweep_heads(lm, ga.tasks.mmlu(lm, n=2), checkpoint=tmp_path / "sweep.sqlite", progress=False)
    assert not computed


def test_a_disk_that_fills_up_keeps_all_finished_pieces(tmp_path, computed, monkeypatch, uninterrupted):
    path = tmp_path / "sweep.sqlite"
    with monkeypatch.context() as small:
        small.setattr(checkpoint, "ROOM", 8192)  # for some of the pieces: one takes 1280 bytes
        limit(small, None)
        with pytest.raises(OSError, match=r"disk is full .* (\d+) finished pieces are safe") as error:
            sweep(path)
    kept = committed(path)
    assert 0 < kept < PIECES and f" {kept} finished pieces" in str(error.value)
    assert len(computed) == kept + 1
    computed.clear()
    assert same(sweep(path), uninterrupted) and len(computed) == PIECES - kept


def damaged(path):
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 4] = random.Random(0).randbytes(4096 * 2)
    path.write_bytes(data)


def foreign(path):
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE birds (name TEXT)")


FOREIGN = {
    "not SQLite": (lambda path: path.write_text("head,accuracy\n" * 1000), "not a checkpoint, or is damaged: file is not"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:10000]), "not a checkpoint, or is damaged"),
    "overwritten inside": (damaged, "not a checkpoint, or is damaged"),
    "of another program": (foreign, "another program's SQLite file"),
}


@pytest.mark.parametrize("spoil, message", FOREIGN.values(), ids=FOREIGN)
def test_a_damaged_or_foreign_file_is_refused_and_left_alone(spoil, message, tmp_path, lm, computed):
    path, examples = tmp_path / "sweep.sqlite", ga.tasks.mmlu(lm, n=20)
    ga.sweep_heads(lm, examples, checkpoint=path, progress=False)
    spoil(path)
    before, n = path.read_bytes(), len(computed)
    with pytest.raises(ValueError, match=message):
        ga.sweep_heads(lm, examples, checkpoint=path, progress=False)
    assert path.read_bytes() == before and len(computed) == n
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.sqlite"]


def test_unknown_engines_methods_and_modes_make_no_file(tmp_path, lm):
    examples, path = ga.tasks.mmlu(lm, n=2), tmp_path / "sweep.sqlite"
    for wrong in ({"engine": "dask"}, {"method": "fast"}, {"mode": "none"}, {"mode": "mean"}, {"heads": ["L7H0"]}):
        key, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"{key}='{value}'.*(expected one of|needs reference)|L7H0: this model"):
            ga.sweep_heads(lm, examples, checkpoint=path, progress=False, **wrong)
    with pytest.raises(ValueError, match="no examples"):
        ga.sweep_heads(lm, [], checkpoint=path, progress=False)
    assert not path.exists()
