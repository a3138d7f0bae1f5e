"""The training loop, and `TrainingState`: everything that changes while training, saved and resumed as one.

A killed run resumes, and on the same machine it gives the same weights whether it was interrupted or not: the
text of a step depends only on the stream's name and the step's number, and weights, optimizer state and step
are saved together, atomically.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ga_utils.training.curriculum import KINDS, Stage, Writer, batch

SAVE_EVERY = 250
Loss = Callable[[PreTrainedModel, dict[str, torch.Tensor], int], tuple[torch.Tensor, dict[str, float]]]


@dataclass
class TrainingState:
    """A model, its optimizers and the number of steps done; `folder` is where `save` puts them."""

    model: PreTrainedModel
    optimizers: list[torch.optim.Optimizer]
    folder: Path
    step: int = 0

    @property
    def file(self) -> Path:
        return self.folder / "state.safetensors"

    def save(self) -> None:
        tensors = {f"model.{name}": p.data for name, p in self.model.named_parameters()}
        for i, optimizer in enumerate(self.optimizers):
            for j, values in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"optimizer.{i}.{j}.{key}": value
                    for key, value in values.items()
                    if torch.is_tensor(value)
                }
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(self.step)}
        )
        os.replace(temporary, self.file)  # atomic: a kill leaves either the old file or the new one

    def resume(self) -> None:
        """Continue from the saved state, if there is one."""
        if not self.file.is_file():
            return
        states: list[dict] = [{} for _ in self.optimizers]
        with safe_open(self.file, framework="pt") as saved:
            self.step = int(saved.metadata()["step"])
            for name, p in self.model.named_parameters():
                p.data = saved.get_tensor(f"model.{name}").to(p.device)
            for key in saved.keys():  # noqa: SIM118 - not a dict
                if key.startswith("optimizer."):
                    _, i, j, what = key.split(".")
                    states[int(i)].setdefault(int(j), {})[what] = saved.get_tensor(key)
        for optimizer, state in zip(self.optimizers, states):
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' projections, AdamW for everything else that is to be trained."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    projections = [
        name
        for name, p in parameters.items()
        if ".layers." in name and "proj" in name.split(".")[-2] and p.ndim == 2 and len(p) > 1
    ]
    hidden = [parameters[name] for name in projections]
    rest = [p for name, p in parameters.items() if name not in projections]
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def answer_loss(model: PreTrainedModel, data: dict, step: int = 0) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted next-token loss of one batch, and the accuracy on each kind of answer."""
    with torch.autocast(data["ids"].device.type, torch.bfloat16):
        logits = (
            model(input_ids=data["ids"], attention_mask=data.get("mask"), use_cache=False)
            .logits[:, :-1]
            .float()
        )
    return answers(logits, data)


def answers(logits: torch.Tensor, data: dict) -> tuple[torch.Tensor, dict[str, float]]:
    """`answer_loss` from logits [row, pos, vocabulary] at all positions but the last."""
    target, weight, kind = (data[key][:, 1:] for key in ("ids", "weights", "kinds"))
    nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    right = (logits.argmax(-1) == target).cpu()  # read once: a GPU must stop for each number that is read
    kind = kind.cpu()
    accuracy = {
        name: right[kind == i].float().mean().item() for i, name in enumerate(KINDS) if (kind == i).any()
    }
    return (nll * weight).sum() / weight.sum(), accuracy


def train(
    state: TrainingState,
    stages: list[Stage],
    lr: float,
    stream: str,
    writer: Writer,
    loss: Loss = answer_loss,
    cooldown: int | None = None,
) -> None:
    """Train through the stages: warm-up over 100 steps, a constant rate, linear decay over the last steps.

    Args:
        stream: name of the random stream; step s draws its text from f"{stream}-{s}".
        loss: called with the model, a batch and the step; returns the loss and numbers for the progress bar.
        cooldown: steps of that decay; 35 % of all by default, 0 for none.

    Raises:
        FloatingPointError: the loss is infinite or not a number; what was saved before it stays.
    """
    state.resume()
    total = sum(stage.steps for stage in stages)
    cooldown = 0.35 * total if cooldown is None else cooldown
    schedule = [stage for stage in stages for _ in range(stage.steps)]
    smooth: dict[str, float] = {}
    state.model.train()
    bar = tqdm(total=total, initial=state.step, unit="step", desc=stream)
    while state.step < total:
        step = state.step
        rate = lr * min(1.0, (step + 1) / 100)
        if cooldown:
            rate = min(rate, lr * ((total - step) / cooldown + 0.02))
        for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        rows = writer.rows(random.Random(f"{stream}-{step}"), schedule[step])
        data = {name: part.to(state.model.device) for name, part in batch(rows, writer).items()}
        value, shown = loss(state.model, data, step)
        if not value.isfinite():
            raise FloatingPointError(f"{stream}, step {step}: the loss is {value.item()}")
        value.backward()
        nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        for kind, number in shown.items():
            smooth[kind] = 0.95 * smooth.get(kind, number) + 0.05 * number
        bar.set_postfix({kind: f"{number:.2f}" for kind, number in smooth.items()}, refresh=False)
        bar.update()
        if state.step % SAVE_EVERY == 0 or state.step == total:
            state.save()
    bar.close()


@contextmanager
def compiled(model: PreTrainedModel) -> Iterator[None]:
    """The model's forward pass, compiled: 1.2 to 1.5 times as fast on a CPU. Needs a C++ compiler."""
    forward = model.forward
    model.forward = torch.compile(forward, dynamic=False)
    try:
        yield
    finally:
        model.forward = forward
