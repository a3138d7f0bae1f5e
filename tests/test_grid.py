"""Grids of trainings: when a run stops, that a killed one resumes, and what the shipped tables hold."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

import ga_utils as ga
from ga_utils.models import loading
from ga_utils.tasks import world
from ga_utils.training import grid, grid_runs, loop
from ga_utils.training.curriculum import Stage, Writer
from ga_utils.training.distill import from_llama
from ga_utils.training.grid_runs import Mamba2
from ga_utils.training.measure import all_tasks
from ga_utils.training.untrained import new_llama


def curve(*means):
    """Measurements whose mean KV accuracy is as given, unequal by pairs."""
    spread = dict(zip(Mamba2.RULE_PAIRS, (0.15, 0.05, -0.05, -0.15)))
    return [{f"KV {pairs}": mean + by for pairs, by in spread.items()} | {"mmlu": 1.0} for mean in means]


@pytest.mark.parametrize(
    "means, rising",
    [
        ((), True),
        ((0.5,), True),
        ((0.5,) * 5, True),  # too few to say
        ((0.5,) * 6, False),
        ((0.5, 0.4, 0.4, 0.4, 0.4, 0.505), False),  # by less than a point
        ((0.5, 0.4, 0.4, 0.4, 0.4, 0.515), True),
        ((0.5, 0.515, 0.4, 0.4, 0.4, 0.4), True),  # a rise that is not too long ago
        ((0.5, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4), False),
        ((0.5, 0.6, 0.4, 0.65, 0.4, 0.4, 0.4), True),
        ((0.7, 0.6, 0.5, 0.4, 0.3, 0.2), False),
    ],
)
def test_a_run_stops_when_none_of_five_measurements_has_won_a_point(means, rising):
    assert Mamba2(8, 4, 1).still_rising(curve(*means)) is rising


def test_letters_do_not_decide_when_to_stop():
    rows = curve(*[0.5] * 6)
    rows[-1]["mmlu"] = 100.0
    assert not Mamba2(8, 4, 1).still_rising(rows)


class Tiny(Mamba2):
    """The same in a few steps: a rule that is satisfied after four measurements, of two steps each."""

    EVERY, PATIENCE, LIMIT, COOLDOWN = 2, 3, 20, 3

    def stages(self, steps):
        stage = {"length": 48, "rows": 2}
        return [
            Stage(1, {"repeat": 1.0}, **stage),
            Stage(1, {"kv": 1.0}, **stage),
            Stage(1, {"mmlu": 1.0}, **stage),
            Stage(max(steps - 3, 0), {"kv": 1.0}, **stage),
        ]

    def measured(self, lm):
        return {f"KV {pairs}": 0.5 for pairs in self.RULE_PAIRS} | {"mmlu": 0.25}


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(grid_runs, "compiled", lambda model: nullcontext())
    monkeypatch.setattr(grid_runs, "N", 3)
    monkeypatch.setattr(grid_runs, "RUNS", tmp_path / "whole")
    torch.set_num_threads(1)
    return monkeypatch


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "at", [4, 7, 12]
)  # while it rises, right after a measurement, and while it cools down
def test_a_killed_run_ends_with_the_same_weights_and_tables(small, tmp_path, at):
    run = Tiny(4, 2, 7)
    run.work()
    whole = run.table(), run.table("_answers"), (run.folder / "model" / "model.safetensors").read_bytes()
    assert whole[0].steps.tolist() == ["5", "7", "9", "11"] and whole[1].steps.tolist() == ["14"]
    assert whole[0][["d_state", "taps", "seed"]].drop_duplicates().values.tolist() == [[4, 2, 7]]
    small.setattr(grid_runs, "RUNS", tmp_path / "killed")
    small.setattr(loop, "SAVE_EVERY", 1)
    plain = loop.answer_loss

    def kill(model, data, step):
        if step == at:
            raise Killed
        return plain(model, data, step)

    trained = grid_runs.train
    small.setattr(grid_runs, "train", lambda *args, **how: trained(*args, **how, loss=kill))
    with pytest.raises(Killed):
        run.work()
    assert run.table("_answers") is None
    small.setattr(grid_runs, "train", trained)
    run.work()
    pd.testing.assert_frame_equal(run.table(), whole[0])
    pd.testing.assert_frame_equal(run.table("_answers"), whole[1])
    assert (run.folder / "model" / "model.safetensors").read_bytes() == whole[2]


def test_a_grid_collects_finished_and_unfinished_runs(small, tmp_path):
    small.setattr(grid, "GRIDS", {"some": [Tiny(4, 2, 7), Tiny(4, 2, 8), Tiny(4, 2, 9)]})
    grid.work_off(Tiny(4, 2, 7))
    Tiny(4, 2, 8).write([{"steps": 5, "KV 4": 0.1}])
    tables = grid.collect("some", tmp_path)
    assert (tmp_path / "some_answers.csv").is_file()  # though no run has ended here
    assert tables[""].seed.tolist() == [7, 7, 7, 7, 8]
    assert tables["_answers"].seed.tolist() == [7]
    assert set(tables["_answers"]["KV 2"].str.len()) == {3}
    assert (Tiny(4, 2, 7).folder / "log.txt").read_text()  # the progress bar


class Noted(Tiny):
    """A training that only notes that it took place."""

    trained = []

    def work(self, device="cpu"):
        self.trained.append(self.seed)
        self.write([{"steps": 2}])
        self.write([{"steps": 2, "KV 4": "01"}], "_answers")


def test_a_run_that_is_in_the_table_is_not_trained_again(small, tmp_path):
    """Only the tables travel with the repository: the folders of the runs need not be there."""
    small.setattr(grid, "GRIDS", {"some": [Noted(4, 2, seed) for seed in (7, 8, 9)]})
    small.setattr(grid, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(1))
    small.setattr("sys.argv", ["grid", "some", "--out", str(tmp_path)])
    begun = pd.DataFrame({"d_state": 4, "taps": 2, "seed": [8, 9], "steps": [1, 1]})
    begun.to_csv(tmp_path / "some.csv", index=False)  # of these two, only 8 was finished
    done = begun[:1].assign(**{"KV 4": "11"})
    done.to_csv(tmp_path / "some_answers.csv", index=False)
    Noted.trained.clear()
    grid.main()
    assert sorted(Noted.trained) == [7, 9]
    table = pd.read_csv(tmp_path / "some_answers.csv", dtype=str)
    assert table[["seed", "KV 4"]].values.tolist() == [["7", "01"], ["8", "11"], ["9", "01"]]
    assert pd.read_csv(tmp_path / "some.csv")[["seed", "steps"]].values.tolist() == [[7, 2], [8, 1], [9, 2]]


@pytest.mark.parametrize(
    "cooldown, rates",
    [
        (0, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]),  # the warm-up alone
        (4, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]),
    ],
)
def test_the_rate_warms_up(tokenizer, tmp_path, cooldown, rates):
    assert rates_of(tokenizer, tmp_path, 6, cooldown) == pytest.approx(rates)


def test_the_rate_falls_over_the_cooldown_alone(tokenizer, tmp_path, monkeypatch):
    state = loop.TrainingState(*_fresh(tokenizer), tmp_path, step=200)
    constant = rates_of(tokenizer, tmp_path, 206, 0, state)
    assert constant == pytest.approx([1.0] * 6)
    state.step = 200
    (tmp_path / "state.safetensors").unlink()
    falling = rates_of(tokenizer, tmp_path, 206, 4, state)
    assert falling == pytest.approx([1.0, 1.0, 1.0, 0.77, 0.52, 0.27])


def _fresh(tokenizer):
    model = new_llama(tokenizer, seed=3)
    return model, [torch.optim.SGD(model.parameters(), lr=1.0)]


def rates_of(tokenizer, folder, steps, cooldown, state=None):
    """The rate of each step, of a peak of 1; nothing is learned."""
    state, rates = state or loop.TrainingState(*_fresh(tokenizer), folder), []

    def still(model, data, step):
        return sum(p.sum() for p in model.parameters()) * 0.0, {}

    optimizer = state.optimizers[0]
    step = optimizer.step
    optimizer.step = lambda: (rates.append(optimizer.param_groups[0]["lr"]), step())
    stage = Stage(steps, {"repeat": 1.0}, length=16, rows=1)
    loop.train(state, [stage], 1.0, "rates", Writer(tokenizer), still, cooldown)
    optimizer.step = step
    return rates


def test_tables_are_read_with_answers_as_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "data_dir", lambda: tmp_path)
    (tmp_path / "runs").mkdir()
    pd.DataFrame({"seed": [1, 2], "KV 4": [0.5, 0.25]}).to_csv(tmp_path / "runs" / "a.csv", index=False)
    answers = {"seed": [1, 2], "KV 4": ["01" * 15, "1" * 30]}
    pd.DataFrame(answers).to_csv(tmp_path / "runs" / "a_answers.csv", index=False)
    assert ga.runs("a")["KV 4"].tolist() == [0.5, 0.25]
    table = ga.runs("a_answers")
    assert table.seed.tolist() == [1, 2]
    assert [column.mean() for column in table["KV 4"]] == [0.5, 1.0]
    assert table["KV 4"][0].dtype == bool and np.array_equal(np.flatnonzero(table["KV 4"][0])[:2], [1, 3])
    with pytest.raises(ValueError, match="no table 'b' in data/runs: there are a, a_answers"):
        ga.runs("b")


@pytest.mark.parametrize("steps, name", [(0, "tiny-llamba-unaligned"), (1000, "tiny-llamba")])
def test_two_lengths_are_the_llambas_that_ship(small, steps, name):
    run = grid_runs.LlambaLength(1, steps)
    run.work()
    llamba = ga.load_model(name, device="cpu")
    (row,) = run.table().to_dict("records")
    for task, examples in all_tasks(llamba, 3).items():
        if task in row:
            assert float(row[task]) == pytest.approx(ga.evaluate(llamba, examples).accuracy, abs=1e-4)


@pytest.fixture
def kept(small):
    """A run of a few steps, in which two heads alone win anything when they are given back."""
    small.setattr(grid_runs.KeptHeads, "ALIGN", 2)
    small.setattr(grid_runs.KeptHeads, "STEPS", 1)
    given, plain = [], grid_runs.replace_head

    @contextmanager
    def noted(student, teacher, layer, head):
        given.append(ga.Head(layer, head))
        try:
            with plain(student, teacher, layer, head):
                yield
        finally:
            given.remove(ga.Head(layer, head))

    def score(student, examples):
        gain = {ga.Head(3, 1): 0.9, ga.Head(1, 2): 0.8}.get(given[0], 0.1) if len(given) == 1 else 0.5
        return ga.Score(np.arange(100) < 100 * gain, np.zeros((100, 2)), np.zeros(100, int))

    small.setattr(grid_runs, "replace_head", noted)
    small.setattr(grid_runs, "evaluate", score)
    measured = []
    small.setattr(grid_runs, "accuracies", lambda student: measured.append(list(given)) or {"mmlu": 0.5})
    return measured


def test_heads_are_kept_by_what_they_win_and_are_in_force_when_it_is_measured(kept):
    run = grid_runs.KeptHeads(2, 1)
    run.work()
    table = run.table()
    assert table.ranking.tolist() == ["none", "retrieval", "random"]
    assert kept[0] == [] and kept[1] == [ga.Head(3, 1), ga.Head(1, 2)] and len(set(kept[2])) == 2
    assert table.heads.fillna("").tolist() == [" ".join(map(str, heads)) for heads in kept]
    kept.clear()
    grid_runs.KeptHeads(4, 1).work()
    first = list(kept[2])
    kept.clear()
    grid_runs.KeptHeads(4, 2).work()
    assert kept[2] != first  # a seed draws the same heads at every d_state, another seed others
    assert " ".join(map(str, first)) == table.heads[2]


def test_all_three_students_start_from_the_same_aligned_one(kept):
    run = grid_runs.KeptHeads(2, 1)
    weights = [run.aligned().model.state_dict() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in weights)))
    start = from_llama(grid_runs.shipped("tiny-llama").model, 2).state_dict()
    assert not torch.equal(
        weights[0]["backbone.layers.0.mixer.D"], start["backbone.layers.0.mixer.D"]
    )  # it has been trained


def test_the_hybrid_is_measured_whole_and_with_its_last_row_masked(small):
    def copy_shipped(seed, out):
        grid_runs.shipped("tiny-zamba2").model.save_pretrained(out)

    small.setattr(grid_runs, "tiny_zamba2", copy_shipped)
    small.setattr(grid_runs, "N", 20)
    grid_runs.Zamba2(1).work()
    (row,) = grid_runs.Zamba2(1).table().to_dict("records")
    assert float(row["KV 16"]) >= 0.9 and float(row["KV 16, masked"]) <= 0.3
    assert float(row["knowledge, masked"]) >= 0.9


TABLES = sorted(path.stem for path in (world.data_dir() / "runs").glob("*.csv"))


def test_every_table_is_of_a_grid_or_of_the_real_model():
    assert {name.removesuffix("_answers") for name in TABLES} - set(grid.GRIDS) == {"smollm2_tasks"}


@pytest.mark.parametrize("name", [name for name in TABLES if name.removesuffix("_answers") in grid.GRIDS])
def test_a_shipped_table_holds_every_run_of_its_grid_and_each_once(name):
    runs, table = grid.GRIDS[name.removesuffix("_answers")], ga.runs(name)
    ours = {tuple(asdict(run).values()) for run in runs}
    found = table[list(asdict(runs[0]))].value_counts()
    assert set(found.index) == ours
    curves = dict.fromkeys(("ssm_grid", "ssm_conv", "deltanet", "qwen3_next"))
    once = (curves | {"retrieval_aware": 3}).get(name, 1)  # rows of a run
    assert once is None or set(found) == {once}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, of, d_state",
    [
        ("tiny-mamba2-d4", "ssm_grid", 4),
        ("tiny-mamba2", "ssm_grid", 8),
        ("tiny-mamba2-d16", "ssm_grid", 16),
        ("tiny-deltanet", "deltanet", 16),
        ("tiny-qwen3-next", "qwen3_next", 8),
    ],
)
def test_models_that_ship_are_runs_of_a_grid(name, of, d_state):
    """Their answers are those in the table; a near tie may come out otherwise on another machine."""
    table, lm = ga.runs(f"{of}_answers"), ga.load_model(name, device="cpu")
    (run,) = table[(table.d_state == d_state) & (table.seed == 1)].to_dict("records")
    for task, examples in all_tasks(lm, 300).items():
        if task in ("mmlu", "KV 8", "KV 32"):
            assert (ga.evaluate(lm, examples[:40]).correct == run[task][:40]).sum() >= 38
