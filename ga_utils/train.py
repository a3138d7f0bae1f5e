"""The recipes that made `data/models/`: `python -m ga_utils.train tiny-llama`.

A run resumes after a kill from `runs/`, and gives the same weights on the same machine, whether it was
interrupted or not: the text of a step depends on the seed and the step alone, and weights, optimizer state
and step are saved together, atomically.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from ga_utils import tasks, world
from ga_utils.attention import aggregate_score
from ga_utils.curriculum import KINDS, Stage, Writer, batch
from ga_utils.heads import alive_heads
from ga_utils.models import wrap
from ga_utils.sparsify import HeadCount, prune
from ga_utils.sweeps import sweep_heads

SAVE_EVERY = 250
ROUNDS, ROUND_STEPS = 3, 150  # of tiny-llama-minimal

# Shares of tokens. Order matters (data/README.md): each stage makes a circuit that the next one builds on.
LOOKUP = {"repeat": 0.15, "kv_short": 0.35, "kv": 0.30, "fact": 0.20}
STORIES = {"fact": 0.10, "kv_short": 0.04, "kv": 0.13, "which": 0.25, "gsm8k_easy": 0.14, "bbh_easy": 0.10,
           "bbh_partner": 0.04, "dialogue_easy": 0.10, "dialogue": 0.10}  # fmt: skip
LETTERS = {"fact": 0.06, "content": 0.04, "kv": 0.08, "which": 0.08, "mmlu_more": 0.16, "mmlu": 0.14, "mmlu_first": 0.18,
           "gsm8k": 0.06, "gsm8k_easy": 0.02, "bbh": 0.05, "bbh_easy": 0.02, "bbh_partner": 0.05,
           "dialogue": 0.06}  # fmt: skip
SWAPS = {"fact": 0.07, "content": 0.04, "mmlu": 0.13, "mmlu_more": 0.03, "kv": 0.06, "gsm8k": 0.05, "gsm8k_easy": 0.02,
         "bbh": 0.26, "bbh_easy": 0.05, "bbh_partner": 0.22, "dialogue": 0.07}  # fmt: skip
SUMS = {"fact": 0.06, "content": 0.04, "mmlu": 0.10, "mmlu_mixed": 0.08, "kv": 0.07, "gsm8k": 0.33, "bbh": 0.21,
        "bbh_partner": 0.06, "dialogue": 0.05}  # fmt: skip
LAST = {"repeat": 0.02, "fact": 0.10, "content": 0.07, "mmlu": 0.18, "mmlu_mixed": 0.09, "mmlu_more_mixed": 0.03,
        "kv_short": 0.02, "kv": 0.17, "gsm8k": 0.11, "bbh": 0.12, "dialogue": 0.09}  # fmt: skip
STAGES = [
    Stage(300, {"repeat": 1.0}, length=128, rows=32),
    Stage(350, LOOKUP, max_pairs=6, length=128, rows=32),
    Stage(400, STORIES, max_pairs=12),
    Stage(750, LETTERS, max_pairs=12, max_swaps=1),
    Stage(900, SWAPS, max_pairs=16, max_swaps=1),
    Stage(800, SUMS, max_pairs=24, max_swaps=1),
    Stage(1000, LAST, max_pairs=32, max_swaps=1),
]


@dataclass
class Run:
    """Everything that changes while training, so that it can be saved and resumed as one."""

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
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in state.items() if torch.is_tensor(value)}
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={"step": str(self.step)})
        os.replace(temporary, self.file)  # a kill leaves the old file or the new one, never half of one

    def resume(self) -> None:
        """Continue from the saved state, if there is one."""
        if not self.file.is_file():
            return
        states: list[dict] = [{} for _ in self.optimizers]
        with safe_open(self.file, framework="pt") as saved:
            self.step = int(saved.metadata()["step"])
            for name, p in self.model.named_parameters():
                p.data = saved.get_tensor(f"model.{name}")
            for key in saved.keys():  # noqa: SIM118 - not a dict
                if key.startswith("optimizer."):
                    _, i, j, what = key.split(".")
                    states[int(i)].setdefault(int(j), {})[what] = saved.get_tensor(key)
        for optimizer, state in zip(self.optimizers, states):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, output head and norms."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    rest = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def answer_loss(model: PreTrainedModel, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted next-token loss of one batch, and the accuracy on each kind of answer."""
    with torch.autocast(data["ids"].device.type, torch.bfloat16):
        logits = model(input_ids=data["ids"], use_cache=False).logits[:, :-1].float()
    target, weight, kind = (data[key][:, 1:] for key in ("ids", "weights", "kinds"))
    nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    right = logits.argmax(-1) == target
    accuracy = {name: right[kind == i].float().mean().item() for i, name in enumerate(KINDS) if (kind == i).any()}
    return (nll * weight).sum() / weight.sum(), accuracy


def train(
    run: Run,
    stages: list[Stage],
    lr: float,
    stream: str,
    writer: Writer,
    penalty: Callable[[int, dict], torch.Tensor | float] = lambda step, data: 0.0,
) -> None:
    """Train through the stages: warm-up over 100 steps, linear decay over the last 35 %.

    Args:
        stream: name of the random stream; step s draws its text from f"{stream}-{s}".
        penalty: called with the step and its batch after each forward pass; what it returns is added to the loss.
    """
    run.resume()
    total = sum(stage.steps for stage in stages)
    schedule = [stage for stage in stages for _ in range(stage.steps)]
    smooth: dict[str, float] = {}
    run.model.train()
    forward = run.model.forward
    run.model.forward = torch.compile(forward, dynamic=False)
    bar = tqdm(total=total, initial=run.step, unit="step", desc=stream)
    while run.step < total:
        step = run.step
        rate = lr * min(1.0, (step + 1) / 100, (total - step) / (0.35 * total) + 0.02)
        for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        data = batch(writer.rows(random.Random(f"{stream}-{step}"), schedule[step]))
        loss, accuracy = answer_loss(run.model, data)
        (loss + penalty(step, data)).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        run.step += 1
        for kind, value in accuracy.items():
            smooth[kind] = 0.95 * smooth.get(kind, value) + 0.05 * value
        bar.set_postfix({kind: f"{value:.2f}" for kind, value in smooth.items()}, refresh=False)
        bar.update()
        if run.step % SAVE_EVERY == 0 or run.step == total:
            run.save()
    bar.close()
    run.model.forward = forward


def new_llama(tokenizer, seed: int) -> LlamaForCausalLM:
    """5 layers of 4 heads, width 128: 0.93 M parameters. `apple:` starts out with the embedding of `apple`."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=5,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=None,
        )
    )  # fmt: skip
    model.set_attn_implementation("eager")  # compiled, it trains 1.4 times as fast on a CPU as the fused form
    embedding, vocab = model.get_input_embeddings().weight.data, tokenizer.get_vocab()
    colon = torch.randn(embedding.shape[1]) * model.config.initializer_range
    for word in [*world.NOUNS, *world.PEOPLE]:
        embedding[vocab[f"{word}:"]] = embedding[vocab[word]] + colon
    return model


def tiny_llama(seed: int, out: Path) -> None:
    """The whole Transformer: through all STAGES."""
    tokenizer = AutoTokenizer.from_pretrained(world.data_dir() / "world")
    model = new_llama(tokenizer, seed)
    run = Run(model, optimizers(model, 3e-3), Path("runs") / f"tiny-llama-{seed}")
    train(run, STAGES, 3e-3, f"train-{seed}", Writer(tokenizer))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def tiny_llama_minimal(seed: int, out: Path) -> None:
    """tiny-llama with its Aggregate role pressed into one head: rounds of training under `HeadCount`.

    After each round but the last: of the heads that look at the right option from the last token, the one that
    knowledge needs most is pruned, until one is left.
    """
    source = world.data_dir() / "models" / "tiny-llama"
    tokenizer, model = AutoTokenizer.from_pretrained(source), LlamaForCausalLM.from_pretrained(source)
    lm, writer = wrap(model, tokenizer), Writer(tokenizer)
    for number in range(ROUNDS):
        run = Run(model, optimizers(model, 1e-3), Path("runs") / f"tiny-llama-minimal-{seed}" / str(number))
        count = HeadCount(lm, at_all=0.02, at_answers=0.04)
        train(
            run, [Stage(ROUND_STEPS, LAST, max_pairs=24, max_swaps=1)], 1e-3, f"minimal-{seed}-{number}", writer, count
        )
        count.remove()
        model.eval()
        scores = aggregate_score(lm, tasks.mmlu(lm, n=200, seed=10_000 + number), progress=False)
        lookers = [h for h in alive_heads(lm) if scores[h.layer, h.head] >= 0.3]
        if len(lookers) > 1 and number < ROUNDS - 1:
            cost = sweep_heads(lm, tasks.knowledge(lm, n=200, seed=10_000 + number), lookers, progress=False)
            prune(lm, cost.top(1)[0])
            tqdm.write(f"round {number}: pruned {cost.top(1)[0]} of {lookers}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


RECIPES = {"tiny-llama": tiny_llama, "tiny-llama-minimal": tiny_llama_minimal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=1, help="default: the seed of the shipped model")
    parser.add_argument("--out", type=Path, help="default: the model's folder in data/models")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    RECIPES[args.model](args.seed, args.out or world.data_dir() / "models" / args.model)


if __name__ == "__main__":
    main()
