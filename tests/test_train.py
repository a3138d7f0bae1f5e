"""Training can be killed at any step and resumed to the same weights, bit for bit."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from ga_utils.training import loop
from ga_utils.training.curriculum import Stage, Writer, batch
from ga_utils.training.untrained import new_llama

STAGES = [Stage(3, {"repeat": 1.0}, length=48, rows=2), Stage(5, {"mmlu": 0.5, "kv": 0.5}, length=64, rows=2)]


def run_in(folder, tokenizer) -> loop.TrainingState:
    model = new_llama(tokenizer, seed=3)
    return loop.TrainingState(model, loop.optimizers(model, 1e-3), folder)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tokenizer):
    """A run that nothing stops."""
    torch.set_num_threads(1)
    run = run_in(tmp_path_factory.mktemp("straight"), tokenizer)
    loop.train(run, STAGES, 1e-3, "train-3", Writer(tokenizer))
    return run


@pytest.mark.parametrize("at", [0, 2, 3, 7])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, tokenizer, straight, monkeypatch, at):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)

    def kill(model, data, step):
        if step == at:
            raise Killed
        return loop.answer_loss(model, data)

    with pytest.raises(Killed):
        loop.train(
            run_in(tmp_path / "killed", tokenizer), STAGES, 1e-3, "train-3", Writer(tokenizer), loss=kill
        )
    (tmp_path / "killed").mkdir(exist_ok=True)
    (tmp_path / "killed" / "state.tmp").write_bytes(b"half a file")
    resumed = run_in(tmp_path / "killed", tokenizer)
    loop.train(resumed, STAGES, 1e-3, "train-3", Writer(tokenizer))
    assert resumed.step == straight.step == 8
    for (name, a), b in zip(straight.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(a, b), name


def test_training_lowers_the_loss_and_the_result_loads(tmp_path, tokenizer):
    run = run_in(tmp_path, tokenizer)
    data = batch(Writer(tokenizer).rows(random.Random(1), STAGES[0]))
    before = loop.answer_loss(run.model, data)[0].item()
    loop.train(run, [Stage(15, {"repeat": 1.0}, length=48, rows=4)], 3e-3, "train-3", Writer(tokenizer))
    assert loop.answer_loss(run.model, data)[0].item() < before - 0.05
    run.model.save_pretrained(tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters() < 1.1e6


def test_a_loss_that_is_not_a_number_ends_training(tmp_path, tokenizer):
    run = run_in(tmp_path, tokenizer)

    def broken(model, data, step):
        value, shown = loop.answer_loss(model, data)
        return value * (float("nan") if step == 2 else 1.0), shown

    with pytest.raises(FloatingPointError, match="train-3, step 2: the loss is nan"):
        loop.train(run, STAGES, 1e-3, "train-3", Writer(tokenizer), loss=broken)
    assert run.step == 2 and all(p.isfinite().all() for p in run.model.parameters())
