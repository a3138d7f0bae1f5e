"""A sweep spread over a local Ray cluster of two workers: the same bits as here, also when a worker is
killed.
"""

import os
import signal
import sys
import threading
import time
import uuid
from functools import partial
from pathlib import Path

import families
import numpy as np
import pytest
import ray
from conftest import random_llama
from sweeping import same

import ga_utils as ga
from ga_utils import sweeps
from ga_utils.models.batches import rows_of
from ga_utils.sweeps import checkpoint, ray_engine


@pytest.fixture(scope="module")
def two_workers():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import this file
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


def close(a: ga.HeadSweep, b: ga.HeadSweep) -> bool:
    """A worker has one thread where the caller may have more, and sums in another order: the last digits may
    differ.
    """
    return np.array_equal(a.accuracy, b.accuracy, equal_nan=True) and np.allclose(
        a.logprob, b.logprob, rtol=0, atol=1e-5, equal_nan=True
    )


def logged(lm, folder: Path, **options):
    """`sweeps.ExactSweep`, leaving a file for each model that is loaded and one for each piece, named by the
    process.
    """
    (folder / f"load-{os.getpid()}-{uuid.uuid4().hex}").touch()
    run = sweeps.ExactSweep(lm, **options)

    def noted(piece):
        (folder / f"piece-{os.getpid()}-{uuid.uuid4().hex}").touch()
        time.sleep(0.1)  # long enough for both workers to get some, and for one to be killed at it
        return run(piece)

    return noted


def pids(folder: Path, what: str) -> list[str]:
    """Who loaded a model, or began a piece; the latest is last."""
    files = sorted(folder.glob(f"{what}-*"), key=lambda file: file.stat().st_mtime_ns)
    return [file.name.split("-")[1] for file in files]


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_its_piece(tiny, two_workers, tmp_path, monkeypatch):
    examples, path = ga.tasks.mmlu(tiny, n=40), tmp_path / "sweep.sqlite"
    local = ga.sweep_heads(tiny, examples, progress=False)
    log = tmp_path / "log"
    log.mkdir()
    killed = []

    def kill_one():
        while len(pids(log, "piece")) < 6 or len(set(pids(log, "piece"))) < 2:
            time.sleep(0.01)
        killed.append(pids(log, "piece")[-1])  # it has just begun that piece
        os.kill(int(killed[0]), signal.SIGKILL)

    monkeypatch.setattr(sweeps, "ExactSweep", partial(logged, folder=log))
    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    spread = ga.sweep_heads(tiny, examples, checkpoint=path, engine="ray", progress=False)
    killer.join(1)
    monkeypatch.undo()

    assert close(spread, local)
    assert len(killed) == 1 and killed[0] in pids(log, "piece")
    todo = sweeps.pieces(tiny, ga.alive_heads(tiny), rows_of(tiny, examples))
    assert len(todo) < len(pids(log, "piece")) <= len(todo) + 1, "one piece was begun twice"
    loads = pids(log, "load")
    # Each process once; the one that takes the place of the killed may come too late to get a piece.
    assert len(loads) == len(set(loads)) and 2 <= len(loads) <= 3

    def never(*args, **kwargs):
        raise AssertionError("all pieces were in the file")

    monkeypatch.setattr(ray_engine, "evaluate", never)
    monkeypatch.setattr(sweeps, "ExactSweep", never)
    for engine in ("local", "ray"):
        assert same(ga.sweep_heads(tiny, examples, checkpoint=path, engine=engine, progress=False), spread)


@pytest.mark.slow
def test_what_a_worker_cant_load_alike_is_refused(two_workers, tmp_path):
    lm = ga.load_model("tiny-llama", device="cpu", n_layers=2)
    examples = ga.tasks.mmlu(lm, n=8)
    spread = ga.sweep_heads(lm, examples, ["L1H0"], "mean", examples, engine="ray", progress=False)
    assert close(spread, ga.sweep_heads(lm, examples, ["L1H0"], "mean", examples, progress=False))
    path = tmp_path / "sweep.sqlite"
    with (
        ga.ablate(lm, ["L0H1"]),
        pytest.raises(ValueError, match=r"as a worker loads it answers otherwise.*ablate\(\)"),
    ):
        ga.sweep_heads(lm, examples, checkpoint=path, engine="ray", progress=False)
    lm.mixers[1].out_proj.weight.data.mul_(1.1)
    with pytest.raises(ValueError, match="as a worker loads it answers otherwise.*without edits"):
        ga.sweep_heads(lm, examples, engine="ray", progress=False)
    with checkpoint.sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM heads").fetchone() == (0,)


@pytest.mark.slow
def test_linear_layers_beside_attention_are_swept_by_workers_too(two_workers, tokenizer, tmp_path):
    families.build("qwen3_next", tokenizer).model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = ga.load_model(tmp_path, device="cpu")
    examples = ga.tasks.mmlu(lm, n=3)
    spread = ga.sweep_heads(lm, examples, engine="ray", progress=False)
    assert close(spread, ga.sweep_heads(lm, examples, progress=False))


def dies(lm):
    return lambda piece: os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_piece_that_kills_every_worker_ends_in_an_error(tiny, two_workers, monkeypatch):
    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    with pytest.raises(RuntimeError, match=r"workers died 2 times on piece \(L1H2,\).*Out of memory"):
        list(ray_engine.on_ray(tiny, ga.tasks.mmlu(tiny, n=4), iter([(ga.Head(1, 2),)]), dies))


def test_a_model_object_and_a_missing_ray_are_refused(tokenizer, tiny, monkeypatch):
    lm = random_llama(tokenizer, 6)
    with pytest.raises(ValueError, match="random was not loaded by load_model.*save_pretrained"):
        ga.sweep_heads(lm, ga.tasks.mmlu(lm, n=2), engine="ray", progress=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "ga-utils\[cluster\]"'):
        ga.sweep_heads(tiny, ga.tasks.mmlu(tiny, n=2), engine="ray", progress=False)


def test_a_model_remembers_how_to_load_it_again(tiny, tmp_path, monkeypatch):
    tiny.model.save_pretrained(tmp_path / "mine")
    tiny.tokenizer.save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    mine = ga.load_model("mine", device="cpu", n_layers=3)
    monkeypatch.chdir("/")  # a worker runs elsewhere
    again = ga.load_model(**mine.source, device="cpu")
    assert again.n_layers == 3
    assert (
        checkpoint.fingerprint(again.model)
        == checkpoint.fingerprint(mine.model)
        != checkpoint.fingerprint(tiny.model)
    )
