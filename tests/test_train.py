"""Training can be killed at any step and resumed to the same weights, bit for bit."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ga_utils import train as trainer
from ga_utils.curriculum import Stage, Writer

STAGES = [Stage(3, {"repeat": 1.0}, length=48, rows=2), Stage(5, {"mmlu": 0.5, "kv": 0.5}, length=64, rows=2)]


def run_in(folder, tokenizer) -> trainer.Run:
    model = trainer.new_llama(tokenizer, seed=3)
    return trainer.Run(model, trainer.optimizers(model, 1e-3), folder)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [0, 2, 3, 7])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, tokenizer, monkeypatch, at):
    monkeypatch.setattr(trainer, "SAVE_EVERY", 2)
    torch.set_num_threads(1)
    straight = run_in(tmp_path / "straight", tokenizer)
    trainer.train(straight, STAGES, 1e-3, "train-3", Writer(tokenizer))

    def kill(step, data):
        if step == at:
            raise Killed
        return 0.0

    with pytest.raises(Killed):
        trainer.train(run_in(tmp_path / "killed", tokenizer), STAGES, 1e-3, "train-3", Writer(tokenizer), penalty=kill)
    (tmp_path / "killed").mkdir(exist_ok=True)
    (tmp_path / "killed" / "state.tmp").write_bytes(b"half a file")
    resumed = run_in(tmp_path / "killed", tokenizer)
    trainer.train(resumed, STAGES, 1e-3, "train-3", Writer(tokenizer))
    assert resumed.step == straight.step == 8
    for (name, a), b in zip(straight.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(a, b), name


def test_training_lowers_the_loss_and_the_result_loads(tmp_path, tokenizer):
    run = run_in(tmp_path, tokenizer)
    data = trainer.batch(Writer(tokenizer).rows(__import__("random").Random(1), STAGES[0]))
    before = trainer.answer_loss(run.model, data)[0].item()
    trainer.train(run, [Stage(15, {"repeat": 1.0}, length=48, rows=4)], 3e-3, "train-3", Writer(tokenizer))
    assert trainer.answer_loss(run.model, data)[0].item() < before - 0.05
    run.model.save_pretrained(tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters() < 1.1e6
