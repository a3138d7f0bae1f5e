"""A sweep that is killed, shared or out of space: nothing finished is lost."""

import multiprocessing
import random
import sqlite3
import time

import numpy as np
import pytest
from conftest import random_llama
from huggingface_hub import constants
from sweeping import committed, same
from transformers import AutoTokenizer

import ga_utils as ga
from ga_utils import sweeps
from ga_utils.models.loading import data_dir
from ga_utils.sweeps import checkpoint
from ga_utils.sweeps.checkpoint import Checkpoint

PIECES = 19  # the baseline and 3 layers of 6 heads
# A server that has imported everything forks the processes that will be killed: no import to wait for each
# time.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["ga_utils", "conftest"])


def sweep(path) -> ga.HeadSweep:
    lm = random_llama(AutoTokenizer.from_pretrained(data_dir() / "world"), 6)
    return ga.sweep_heads(lm, ga.tasks.mmlu(lm, n=200), checkpoint=path, progress=False)


def sweep_at_once(path, barrier, into):
    barrier.wait()
    found = sweep(path)
    np.savez(into, accuracy=found.accuracy, logprob=found.logprob, baseline=found.baseline.logprobs)


@pytest.fixture(scope="module")
def uninterrupted():
    return sweep(None)


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
    assert same(sweep(path), uninterrupted) and len(computed) == PIECES - kept, (
        "a finished sweep computes nothing"
    )


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
    workers = [
        processes.Process(target=sweep_at_once, args=(path, barrier, tmp_path / f"{i}.npz")) for i in range(2)
    ]
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
    here, other = ga.Head(1, 2), ga.Head(1, 3)
    with Checkpoint(tmp_path / "a.sqlite", {}) as done:
        done.put((here,), rows)
        done.put((here,), rows + 1)  # a second process comes too late
        assert done.missing((here,)) is None
        assert done.missing((here, other)) == (other,) and done.missing(()) == ()
        found = done.get(here)
        with pytest.raises(KeyError, match="baseline"):
            done.get(None)
    assert found.tobytes() == rows.tobytes() and found.shape == rows[0].shape


def test_heads_swept_in_other_groups_or_by_a_screen_are_not_computed_again(
    tmp_path, lm, computed, monkeypatch
):
    path, examples = (
        tmp_path / "sweep.sqlite",
        ga.tasks.mmlu(lm, n=4),
    )  # all heads of a layer go through in one batch
    ga.sweep_heads(lm, examples, ["L1H2", "L1H3"], checkpoint=path, progress=False)
    assert [str(head) for piece in computed for head in piece] == ["L1H2", "L1H3"]
    screened = ga.sweep_heads(lm, examples, method="screen", k=6, checkpoint=path, progress=False)
    computed.clear()
    whole = ga.sweep_heads(lm, examples, checkpoint=path, progress=False)
    again = [(head.layer, head.head) for piece in computed for head in piece]
    assert again and not any(np.isfinite(screened.accuracy[at]) or at in ((1, 2), (1, 3)) for at in again)
    plain = ga.sweep_heads(lm, examples, progress=False)
    assert np.array_equal(whole.accuracy, plain.accuracy) and np.allclose(
        whole.logprob, plain.logprob, atol=1e-5
    )


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
    with pytest.raises(OSError, match="disk is full .* 0 finished heads"):
        ga.sweep_heads(lm, ga.tasks.mmlu(lm, n=2), checkpoint=tmp_path / "sweep.sqlite", progress=False)
    assert not computed


def test_a_disk_that_fills_up_keeps_all_finished_heads(tmp_path, computed, monkeypatch, uninterrupted):
    path = tmp_path / "sweep.sqlite"
    with monkeypatch.context() as small:
        small.setattr(checkpoint, "RESERVE", 8192)  # for some of the pieces: one takes 6,400 bytes
        limit(small, None)
        with pytest.raises(OSError, match=r"disk is full .* (\d+) finished heads are safe") as error:
            sweep(path)
    kept = committed(path)
    assert 0 < kept < PIECES and f" {kept} finished heads" in str(error.value)
    assert len(computed) == kept + 1
    computed.clear()
    assert same(sweep(path), uninterrupted) and len(computed) == PIECES - kept


def test_an_automatic_file_belongs_to_one_sweep_alone(lm, computed, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    examples, heads = ga.tasks.mmlu(lm, n=6), ["L0H0", "L1H2"]

    def swept(examples, heads):
        computed.clear()
        sweep = ga.sweep_heads(lm, examples, heads, checkpoint="auto", progress=False)
        return sweep, sum(map(len, computed))

    first, n = swept(examples, heads)
    assert n == 2 and swept(examples, heads) == (first, 0)
    assert swept(examples, [*heads, "L2H0"])[1] == 1  # what is there is used
    assert swept(ga.tasks.mmlu(lm, n=6, seed=1), heads)[1] == 2  # other questions: another file, no refusal
    assert first == ga.sweep_heads(lm, examples, heads, progress=False)
    assert len(list((tmp_path / "ga_utils" / "sweeps").iterdir())) == 2


def test_where_the_cache_cannot_be_written_nothing_is_kept(lm, tmp_path, monkeypatch):
    (tmp_path / "ga_utils").write_text("a file where the folder should be")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="results are not kept"):
        ga.sweep_heads(lm, ga.tasks.mmlu(lm, n=3), ["L0H0"], checkpoint="auto", progress=False)
