"""What a checkpoint refuses: numbers made with something else, places that can't be written, damaged and
foreign files.
"""

import random
import sqlite3

import pytest
import torch
import transformers
from conftest import random_llama
from sweeping import same

import ga_utils as ga


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


def test_other_references_versions_and_a_sweep_inside_an_ablation_are_refused(
    tokenizer, tmp_path, monkeypatch
):
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
    with (
        ga.ablate(lm, ["L1H1"]),
        pytest.raises(ValueError, match="versions: torch .* in the file, torch .* 0.0.0 now"),
    ):
        monkeypatch.setattr(transformers, "__version__", "0.0.0")
        ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False)


def unwritable(tmp_path):
    """Paths at which even root can't make a file."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    return [
        tmp_path / "file" / "sweep.sqlite",
        tmp_path / "folder",
        "/proc/sweep.sqlite",
        "/proc/new/sweep.sqlite",
    ]


def test_what_cant_be_written_is_refused_before_the_work(tmp_path, lm, computed, monkeypatch):
    examples = ga.tasks.mmlu(lm, n=2)
    for path in unwritable(tmp_path):
        with pytest.raises(OSError, match=f"checkpoint {path}"):
            ga.sweep_heads(lm, examples, checkpoint=path, progress=False)
    # A read-only folder, also for root: SQLite is told to open the file read-only.
    path, connect = tmp_path / "sweep.sqlite", sqlite3.connect
    ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False)
    before, n = path.read_bytes(), len(computed)
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **how: connect(f"file:{path}?mode=ro", uri=True, **how)
    )
    with pytest.raises(OSError, match="readonly database .*read-only.* 0 finished heads"):
        ga.sweep_heads(lm, examples, ["L0H0"], checkpoint=path, progress=False)
    assert len(computed) == n and path.read_bytes() == before


def damaged(path):
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 4] = random.Random(0).randbytes(4096 * 2)
    path.write_bytes(data)


def foreign(path):
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE birds (name TEXT)")


FOREIGN = {
    "not SQLite": (
        lambda path: path.write_text("head,accuracy\n" * 1000),
        "not a checkpoint, or is damaged: file is not",
    ),
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
    for wrong in (
        {"engine": "dask"},
        {"method": "fast"},
        {"mode": "none"},
        {"mode": "mean"},
        {"heads": ["L7H0"]},
    ):
        key, value = next(iter(wrong.items()))
        with pytest.raises(
            ValueError, match=f"{key}='{value}'.*(expected one of|needs reference)|L7H0: this model"
        ):
            ga.sweep_heads(lm, examples, checkpoint=path, progress=False, **wrong)
    with pytest.raises(ValueError, match="no examples"):
        ga.sweep_heads(lm, [], checkpoint=path, progress=False)
    assert not path.exists()
