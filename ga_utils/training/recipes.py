"""The recipes that made `data/models/`, except the Mamba-2s, which are runs of a grid (`grid_runs`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ga_utils import tasks
from ga_utils.attention import aggregate_score, gather_score
from ga_utils.heads import Head, alive_heads
from ga_utils.models.lm import LM, wrap
from ga_utils.models.loading import MANIFEST, write_sums
from ga_utils.tasks import world
from ga_utils.training.curriculum import Stage, Writer
from ga_utils.training.distill import Alignment, from_llama, prediction_loss
from ga_utils.training.loop import TrainingState, compiled, optimizers, train
from ga_utils.training.scans import fast_scans
from ga_utils.training.sparsify import FewHeadsLoss, prune
from ga_utils.training.stages import DISTIL, FALCON_STAGES, FEW_HEADS, ROUNDS, SSM_STAGES, STAGES
from ga_utils.training.untrained import new_falcon_mamba, new_llama, new_zamba2

RUNS = Path("runs")


def tiny_llama(seed: int, out: Path, stages: list[Stage] = STAGES) -> None:
    """The whole Transformer: through all STAGES, or through the same without the guide."""
    tokenizer = world_tokenizer()
    model = new_llama(tokenizer, seed)
    state = TrainingState(model, optimizers(model, 3e-3), RUNS / f"{out.name}-{seed}")
    with compiled(model):
        train(state, stages, 3e-3, f"train-{seed}", Writer(tokenizer))
    save(model, tokenizer, out)


def tiny_llama_minimal(seed: int, out: Path) -> None:
    """Few heads left active: the tiny-llama next to `out`, trained further through all ROUNDS.

    Each round but the first fades out the `duplicates` that it finds, and prunes them at its end.
    """
    source = out.with_name("tiny-llama")
    tokenizer, model = AutoTokenizer.from_pretrained(source), LlamaForCausalLM.from_pretrained(source)
    lm, newline = wrap(model, tokenizer), tokenizer.convert_tokens_to_ids("\n")
    for number, part in enumerate(ROUNDS):
        fading = duplicates(lm, seed=10_000 + number) if number else []
        tqdm.write(f"{out.name}, round {number}: fading {fading}")
        costs = (part.at_all, part.at_closings, part.at_answers)
        loss = FewHeadsLoss(lm, newline, *costs, ramp=part.ramp, fading=fading, steps=part.steps // 2)
        folder = RUNS / f"tiny-llama-minimal-{seed}" / str(number)
        state = TrainingState(model, optimizers(model, part.lr), folder)
        stage = replace(FEW_HEADS, steps=part.steps)
        train(state, [stage], part.lr, f"minimal-{seed}-{number}", Writer(tokenizer), loss)
        loss.remove()
        for head in fading:
            prune(lm, head)
        model.eval()
    save(model, tokenizer, out)


def duplicates(lm: LM, seed: int) -> list[Head]:
    """Heads that share a role with a stronger one, by where they look.

    Aggregating: heads that look from the last token to the right segment; all but the one that does so most.
    Gathering: heads that look into segments, no earlier than the layer before that one's; all but the
        strongest.

    Args:
        seed: of the questions they are found on, which nothing else should use.
    """
    letters = tasks.mmlu(lm, n=200, seed=seed)
    gather = gather_score(lm, letters, progress=False)
    aggregate = aggregate_score(lm, letters, progress=False)
    strongest = max(alive_heads(lm), key=lambda h: aggregate[h.layer, h.head])
    aggregating = [h for h in alive_heads(lm) if aggregate[h.layer, h.head] >= 0.3]
    late = [h for h in alive_heads(lm) if h.layer >= strongest.layer - 1]
    gathering = [h for h in late if gather[h.layer, h.head] >= 0.35]
    kept = [strongest, max(gathering, key=lambda h: gather[h.layer, h.head], default=None)]
    return [h for h in dict.fromkeys((*gathering, *aggregating)) if h not in kept]


def tiny_llamba(seed: int, out: Path, taps: int = 4, steps: int = 1000, save_unaligned: bool = True) -> None:
    """Distilled from the tiny-llama next to `out`: `out`-unaligned after layer-by-layer training, `out` after
    so many steps of training end to end. taps: of the short convolution; one tap is none."""
    source = out.with_name("tiny-llama")
    tokenizer, teacher = AutoTokenizer.from_pretrained(source), LlamaForCausalLM.from_pretrained(source)
    torch.manual_seed(seed)
    student, folder = from_llama(teacher, 4, taps), RUNS / f"{out.name}-{seed}"
    for name, p in student.named_parameters():
        p.requires_grad = ".mixer." in name
    alignment = Alignment(teacher, student)
    state = TrainingState(student, optimizers(student, 2e-3), folder / "align")
    train(state, [replace(DISTIL, steps=1500)], 2e-3, f"align-{seed}", Writer(tokenizer), alignment)
    alignment.remove()
    if save_unaligned:
        save(student, tokenizer, out.with_name(f"{out.name}-unaligned"))
    student.requires_grad_(True)
    state = TrainingState(student, optimizers(student, 1e-3), folder / "end-to-end")
    loss, stage = prediction_loss(teacher), replace(DISTIL, steps=steps)
    train(state, [stage], 1e-3, f"end-to-end-{seed}", Writer(tokenizer), loss)
    save(student, tokenizer, out)


def tiny_falcon_mamba(seed: int, out: Path) -> None:
    """Mamba-1 from scratch, through FALCON_STAGES; the rate falls over the last 600 steps."""
    tokenizer = world_tokenizer()
    model = new_falcon_mamba(tokenizer, seed)
    state = TrainingState(model, optimizers(model, 3e-3), RUNS / f"{out.name}-{seed}")
    with fast_scans():  # not compiled: it gains nothing here
        train(state, FALCON_STAGES, 3e-3, f"grid-{seed}", Writer(tokenizer), cooldown=600)
    save(model, tokenizer, out)


def tiny_zamba2(seed: int, out: Path) -> None:
    """The hybrid from scratch, through SSM_STAGES."""
    tokenizer = world_tokenizer()
    model = new_zamba2(tokenizer, seed)
    state = TrainingState(model, optimizers(model, 3e-3), RUNS / f"{out.name}-{seed}")
    with fast_scans(), compiled(model):
        train(state, SSM_STAGES, 3e-3, f"train-{seed}", Writer(tokenizer))
    save(model, tokenizer, out)


def world_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(world.data_dir() / "world")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write a model and its tokenizer; a model that ships also gets its checksums renewed."""
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    if out.with_name(MANIFEST).is_file():
        write_sums(out)
