"""The single trainings that `grid` repeats over settings and seeds. Each leaves its tables in its folder."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from ga_utils import tasks
from ga_utils.heads import Head, alive_heads, mask_last_row
from ga_utils.hybrid import replace_head
from ga_utils.models.lm import LM, wrap
from ga_utils.scoring import evaluate
from ga_utils.tasks import world
from ga_utils.training.curriculum import Stage, Writer
from ga_utils.training.distill import Alignment, from_llama, prediction_loss
from ga_utils.training.loop import Loss, TrainingState, compiled, optimizers, train
from ga_utils.training.measure import all_tasks
from ga_utils.training.recipes import RUNS, save, tiny_zamba2, world_tokenizer
from ga_utils.training.scans import fast_scans
from ga_utils.training.stages import DISTIL, EXAM, SSM_STAGES
from ga_utils.training.untrained import new_deltanet, new_mamba2, new_qwen3_next

N = 300  # questions of each task to a finished model


@dataclass(frozen=True)
class Run:
    """One training. Its fields are the first columns of its tables."""

    kind: ClassVar[str]
    result: ClassVar[str] = ""  # ending of the table that is there once the run is done

    @property
    def folder(self) -> Path:
        return RUNS / "-".join([self.kind, *(f"{name}{value}" for name, value in asdict(self).items())])

    def table(self, suffix: str = "") -> pd.DataFrame | None:
        """What it has measured, with its settings; None where there is nothing yet."""
        file = self.folder / f"table{suffix}.csv"
        if not file.is_file():
            return None
        measured = pd.read_csv(file, dtype=str)
        return pd.DataFrame(asdict(self), index=measured.index).join(measured)

    def write(self, rows: list[dict], suffix: str = "") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(self.folder / f"table{suffix}.csv", index=False)

    def work(self, device: str = "cpu") -> None:
        """Train and measure on this device. Every start is drawn on the CPU, so it is the same on all."""
        raise NotImplementedError


@dataclass(frozen=True)
class FromScratch(Run):
    """A model of the recurrent kind, trained until it stops getting better.

    1. The first three SSM_STAGES: induction, looking up, options.
    2. EXAM at a constant rate. Every 300 steps KV accuracy is measured: the mean over 4, 8, 16 and 32
       pairs, 200 questions each, of a seed that is used for nothing else. This ends when none of the last
       five measurements has beaten the best one before them by a point, or at 5,000 steps.
    3. The rate falls to nothing over 600 more steps.
    """

    d_state: int
    taps: int
    seed: int

    result: ClassVar[str] = "_answers"
    LR: ClassVar[float] = 3e-3
    ROWS: ClassVar[int] = 10  # half of the usual batch: a grid has many runs
    EVERY: ClassVar[int] = 300
    PATIENCE: ClassVar[int] = 5
    GAIN: ClassVar[float] = 0.01
    LIMIT: ClassVar[int] = 5000
    COOLDOWN: ClassVar[int] = 600
    RULE_SEED: ClassVar[int] = 77_001
    RULE_PAIRS: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)

    def compiles(self, device: str) -> bool:
        return device == "cpu"

    def stages(self, steps: int) -> list[Stage]:
        """The curriculum, and after it the exam for all other of these steps."""
        first = [replace(stage, rows=self.ROWS) for stage in SSM_STAGES[:3]]
        rest = steps - sum(stage.steps for stage in first)
        return [*first, Stage(rest, EXAM, max_pairs=32, rows=self.ROWS)]

    def still_rising(self, curve: list[dict]) -> bool:
        """Has one of the last PATIENCE measurements beaten all before them by GAIN?"""
        means = [sum(row[f"KV {pairs}"] for pairs in self.RULE_PAIRS) / len(self.RULE_PAIRS) for row in curve]
        last, before = means[-self.PATIENCE :], means[: -self.PATIENCE]
        return not before or max(last) >= max(before) + self.GAIN

    def measured(self, lm: LM) -> dict[str, float]:
        """KV accuracy and letters on the questions that decide when to stop."""
        lm.model.eval()
        asked = {
            f"KV {pairs}": tasks.kv_retrieval(lm, n_pairs=pairs, n=200, seed=self.RULE_SEED)
            for pairs in self.RULE_PAIRS
        } | {"mmlu": tasks.mmlu(lm, n=200, seed=self.RULE_SEED)}
        return {name: evaluate(lm, examples).accuracy for name, examples in asked.items()}

    def work(self, device: str = "cpu") -> None:
        tokenizer = world_tokenizer()
        model = self.new(tokenizer, self.seed, self.d_state, self.taps).to(device)
        lm, writer, stream = wrap(model, tokenizer), Writer(tokenizer), f"grid-{self.seed}"
        state = TrainingState(model, optimizers(model, self.LR), self.folder)

        def train_to(steps: int, cooldown: int) -> None:
            with fast_scans(), compiled(model) if self.compiles(device) else nullcontext():
                train(state, self.stages(steps), self.LR, stream, writer, cooldown=cooldown)

        curve_file = self.folder / "table.csv"
        curve = pd.read_csv(curve_file).to_dict("records") if curve_file.is_file() else []
        steps = curve[-1]["steps"] if curve else sum(stage.steps for stage in self.stages(0)[:3])
        while steps < self.LIMIT and self.still_rising(curve):
            steps += self.EVERY
            train_to(steps, cooldown=0)
            curve.append({"steps": steps} | self.measured(lm))
            self.write(curve)
        train_to(steps + self.COOLDOWN, cooldown=self.COOLDOWN)
        save(model, tokenizer, self.folder / "model")
        scores = {name: evaluate(lm, examples) for name, examples in all_tasks(lm, N).items()}
        answers = {name: "".join("01"[int(right)] for right in s.correct) for name, s in scores.items()}
        self.write([{"steps": steps + self.COOLDOWN} | answers], "_answers")


@dataclass(frozen=True)
class Mamba2(FromScratch):
    kind: ClassVar[str] = "mamba2"
    new: ClassVar[Callable] = staticmethod(new_mamba2)

    def compiles(self, device: str) -> bool:
        # With a state of 32, torch 2.13 compiles a backward pass that gives NaN from the first step on.
        return device == "cpu" and self.d_state < 32


@dataclass(frozen=True)
class DeltaNet(FromScratch):
    kind: ClassVar[str] = "deltanet"
    new: ClassVar[Callable] = staticmethod(new_deltanet)


@dataclass(frozen=True)
class Qwen3Next(FromScratch):
    """The hybrid: full attention in its last layer. Its state and convolution have one size only."""

    kind: ClassVar[str] = "qwen3next"
    new: ClassVar[Callable] = staticmethod(
        lambda tokenizer, seed, d_state, taps: new_qwen3_next(tokenizer, seed)
    )


def tiny_from_scratch(seed: int, out: Path, d_state: int, kind: type[FromScratch] = Mamba2) -> None:
    """The run of the grid `ssm_grid`, or that of another kind, with this seed and `d_state`."""
    run = kind(d_state, 4, seed)
    run.work()
    save(AutoModelForCausalLM.from_pretrained(run.folder / "model"), world_tokenizer(), out)


@dataclass(frozen=True)
class LlambaLength(Run):
    """tiny-llamba-unaligned, trained end to end for so many steps, a run of its own for each length.

    Seed 1 with 1,000 steps is how tiny-llamba was made, so it is measured and not trained again.
    """

    seed: int
    steps: int

    kind: ClassVar[str] = "llamba"

    def work(self, device: str = "cpu") -> None:
        made = (self.seed, self.steps) == (1, 1000)
        teacher = shipped("tiny-llama", device)
        student = shipped("tiny-llamba" if made else "tiny-llamba-unaligned", device)
        if self.steps and not made:
            stage = replace(DISTIL, steps=self.steps)
            state = TrainingState(student.model, optimizers(student.model, 1e-3), self.folder)
            stream, writer = f"end-to-end-{self.seed}", Writer(student.tokenizer)
            train(state, [stage], 1e-3, stream, writer, prediction_loss(teacher.model))
        self.write([accuracies(student)])


@dataclass(frozen=True)
class KeptHeads(Run):
    """Three students of tiny-llama: none, two well-chosen, or two drawn heads stay attention.

    The sequel's experiment (arXiv 2602.11374), small. All mixers are aligned once, as the Llamba's. Then each
    attention head is given back alone, and ranked by what that does for KV with 16 pairs; the two best stay
    attention in one student, two drawn ones in another. What is not attention is trained end to end.
    """

    d_state: int
    seed: int

    kind: ClassVar[str] = "kept"
    K: ClassVar[int] = 2
    ALIGN: ClassVar[int] = 500
    STEPS: ClassVar[int] = 500

    def work(self, device: str = "cpu") -> None:
        rows = []
        for ranking in ("none", "retrieval", "random"):
            student, teacher = self.aligned(device), shipped("tiny-llama", device)
            heads = self.kept(ranking, student, teacher)
            with ExitStack() as stack:
                for head in heads:
                    stack.enter_context(replace_head(student, teacher, head.layer, head.head))
                self.train(student, 1e-3, self.STEPS, ranking, prediction_loss(teacher.model))
                measured = accuracies(student)
            names = " ".join(map(str, heads))
            rows.append({"ranking": ranking, "heads": names, "steps": self.STEPS} | measured)
        self.write(rows)

    def kept(self, ranking: str, student: LM, teacher: LM) -> list[Head]:
        """The heads that stay attention."""
        heads = alive_heads(teacher)
        if ranking == "none":
            return []
        if ranking == "random":
            return sorted(random.Random(f"kept-{self.seed}").sample(heads, self.K))
        asked, gains = tasks.kv_retrieval(student, n_pairs=16, n=100, seed=31 + self.seed), {}
        for head in heads:
            with replace_head(student, teacher, head.layer, head.head):
                gains[head] = evaluate(student, asked).accuracy
        return sorted(gains, key=gains.get, reverse=True)[: self.K]

    def aligned(self, device: str = "cpu") -> LM:
        """The student before anything is given back; trained once, then read from where it was saved."""
        teacher = shipped("tiny-llama")
        torch.manual_seed(self.seed)
        student = wrap(from_llama(teacher.model, self.d_state).to(device), teacher.tokenizer)
        teacher.model.to(device)
        for name, p in student.model.named_parameters():
            p.requires_grad = ".mixer." in name
        alignment = Alignment(teacher.model, student.model)
        self.train(student, 2e-3, self.ALIGN, "aligned", alignment)
        alignment.remove()
        student.model.requires_grad_(True).eval()
        return student

    def train(self, student: LM, lr: float, steps: int, name: str, loss: Loss) -> None:
        state = TrainingState(student.model, optimizers(student.model, lr), self.folder / name)
        stages, stream = [replace(DISTIL, steps=steps, rows=10)], f"kept-{name}-{self.seed}"
        train(state, stages, lr, stream, Writer(student.tokenizer), loss)


@dataclass(frozen=True)
class Zamba2(Run):
    """The hybrid, from scratch; also measured with attention's last row masked."""

    seed: int

    kind: ClassVar[str] = "zamba2"

    def work(self, device: str = "cpu") -> None:
        if not (self.folder / "model.safetensors").is_file():
            tiny_zamba2(self.seed, self.folder)  # on the CPU, where its recipe belongs
        model = AutoModelForCausalLM.from_pretrained(self.folder)
        lm = wrap(model.to(device), world_tokenizer())
        measured = accuracies(lm)
        with mask_last_row(lm):
            measured |= {f"{name}, masked": accuracy for name, accuracy in accuracies(lm).items()}
        self.write([measured])


def shipped(name: str, device: str = "cpu") -> LM:
    model = AutoModelForCausalLM.from_pretrained(world.data_dir() / "models" / name)
    return wrap(model.to(device), world_tokenizer(), name)


def accuracies(lm: LM) -> dict[str, float]:
    """Accuracy on letters, the same by content, knowledge and dictionaries, on N questions each."""
    lm.model.eval()
    wanted = ("mmlu", "mmlu_content", "knowledge", "KV 2", "KV 4", "KV 8", "KV 16", "KV 32")
    asked = all_tasks(lm, N)
    return {name: round(evaluate(lm, asked[name]).accuracy, 4) for name in wanted}
