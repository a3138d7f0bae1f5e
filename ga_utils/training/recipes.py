"""The recipes that made `data/models/`: `python -m ga_utils.training tiny-llama`. A killed run resumes from `runs/`."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Zamba2Config,
)

from ga_utils import tasks
from ga_utils.attention import aggregate_score, gather_score
from ga_utils.heads import Head, alive_heads
from ga_utils.models.lm import LM, wrap
from ga_utils.models.loading import MANIFEST, write_sums
from ga_utils.tasks import world
from ga_utils.training.curriculum import Stage, Writer
from ga_utils.training.distill import Alignment, from_llama, prediction_loss
from ga_utils.training.loop import Run, compiled, optimizers, train
from ga_utils.training.scans import fast_scans
from ga_utils.training.sparsify import Pressure, Thrift, prune

# Shares of tokens. Order matters (data/README.md): each stage makes a circuit that the next one builds on.
LOOKUP = {"repeat": 0.15, "kv_short": 0.35, "kv": 0.30, "fact": 0.20}
STORIES = {
    "fact": 0.10,
    "kv_short": 0.04,
    "kv": 0.13,
    "which": 0.25,
    "gsm8k_easy": 0.14,
    "bbh_easy": 0.10,
    "bbh_partner": 0.04,
    "dialogue_easy": 0.10,
    "dialogue": 0.10,
}
LETTERS = {
    "fact": 0.06,
    "content": 0.04,
    "kv": 0.08,
    "which": 0.08,
    "mmlu_more": 0.16,
    "mmlu": 0.14,
    "mmlu_first": 0.18,
    "gsm8k": 0.06,
    "gsm8k_easy": 0.02,
    "bbh": 0.05,
    "bbh_easy": 0.02,
    "bbh_partner": 0.05,
    "dialogue": 0.06,
}
SWAPS = {
    "fact": 0.07,
    "content": 0.04,
    "mmlu": 0.13,
    "mmlu_more": 0.03,
    "kv": 0.06,
    "gsm8k": 0.05,
    "gsm8k_easy": 0.02,
    "bbh": 0.26,
    "bbh_easy": 0.05,
    "bbh_partner": 0.22,
    "dialogue": 0.07,
}
SUMS = {
    "fact": 0.06,
    "content": 0.04,
    "mmlu": 0.10,
    "mmlu_mixed": 0.08,
    "kv": 0.07,
    "gsm8k": 0.33,
    "bbh": 0.21,
    "bbh_partner": 0.06,
    "dialogue": 0.05,
}
LAST = {
    "repeat": 0.02,
    "fact": 0.10,
    "content": 0.07,
    "mmlu": 0.18,
    "mmlu_mixed": 0.09,
    "mmlu_more_mixed": 0.03,
    "kv_short": 0.02,
    "kv": 0.17,
    "gsm8k": 0.11,
    "bbh": 0.12,
    "dialogue": 0.09,
}
STAGES = [
    Stage(300, {"repeat": 1.0}, length=128, rows=32),
    Stage(350, LOOKUP, max_pairs=6, length=128, rows=32),
    Stage(400, STORIES, max_pairs=12),
    Stage(750, LETTERS, max_pairs=12, max_swaps=1),
    Stage(900, SWAPS, max_pairs=16, max_swaps=1),
    Stage(800, SUMS, max_pairs=24, max_swaps=1),
    Stage(1000, LAST, max_pairs=32, max_swaps=1),
]
PRESSED = Stage(
    0,
    LAST
    | {
        "mmlu": 0.30,
        "mmlu_mixed": 0.0,
        "mmlu_more_mixed": 0.0,
        "mmlu_more": 0.04,
        "fact": 0.05,
        "content": 0.04,
        "which": 0.04,
    },
    max_pairs=24,
    max_swaps=1,
    rows=17,
    fact_rows=3,
)
PRESSES = [
    {
        "steps": 800,
        "lr": 1e-3,
        "ramp": 400,
        "costs": {"at_all": 0.01, "at_closings": 0.12, "at_answers": 0.06},
    },
    {
        "steps": 1000,
        "lr": 1.5e-3,
        "ramp": 200,
        "costs": {"at_all": 0.01, "at_closings": 0.08, "at_answers": 0.08},
    },
    {
        "steps": 700,
        "lr": 1.5e-3,
        "ramp": 100,
        "costs": {"at_all": 0.01, "at_closings": 0.15, "at_answers": 0.12},
    },
    {
        "steps": 600,
        "lr": 1.5e-3,
        "ramp": 100,
        "costs": {"at_all": 0.01, "at_closings": 0.15, "at_answers": 0.12},
    },
    {
        "steps": 500,
        "lr": 1.5e-3,
        "ramp": 50,
        "costs": {"at_all": 0.01, "at_closings": 0.15, "at_answers": 0.30},
    },
]
OPTIONS = {"fact": 0.12, "content": 0.06, "kv_short": 0.05, "kv": 0.20, "which": 0.32, "mmlu_more": 0.25}
EXAM = {"fact": 0.06, "content": 0.10, "kv": 0.16, "which": 0.10, "mmlu_more": 0.18, "mmlu": 0.40}
SSM_STAGES = [  # no stories, sums or swaps: with them, letters were still at 50 % after 2,000 steps
    Stage(300, {"repeat": 1.0}),
    Stage(350, LOOKUP, max_pairs=6),
    Stage(500, OPTIONS, max_pairs=12),
    Stage(1250, EXAM, max_pairs=24),
]
FACTS = {"repeat": 0.08, "fact": 0.50, "content": 0.10, "kv_short": 0.20, "kv": 0.12}
FALCON = Stage(450, FACTS, max_pairs=8, length=96, rows=14)  # a Mamba-1 scan is slow on a CPU
DISTIL = Stage(0, LAST | {"repeat": 0.06, "kv": 0.25, "kv_short": 0.06}, max_pairs=32, max_swaps=1)


def new_llama(tokenizer, seed: int) -> LlamaForCausalLM:
    """5 layers of 4 heads, width 128: 0.93 M parameters."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=None,
        )
    )
    model.set_attn_implementation("eager")  # compiled, it trains 1.4 times as fast on a CPU as the fused form
    relate_embeddings(model, tokenizer)
    return model


def relate_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """`apple:` starts out with the embedding of `apple` and one more vector, the same for all words."""
    embedding, vocab = model.get_input_embeddings().weight.data, tokenizer.get_vocab()
    colon = torch.randn(embedding.shape[1]) * model.config.initializer_range
    for word in [*world.NOUNS, *world.PEOPLE]:
        embedding[vocab[f"{word}:"]] = embedding[vocab[word]] + colon


def tiny_llama(seed: int, out: Path) -> None:
    """The whole Transformer: through all STAGES."""
    tokenizer = AutoTokenizer.from_pretrained(world.data_dir() / "world")
    model = new_llama(tokenizer, seed)
    run = Run(model, optimizers(model, 3e-3), Path("runs") / f"tiny-llama-{seed}")
    with compiled(model):
        train(run, STAGES, 3e-3, f"train-{seed}", Writer(tokenizer))
    save(model, tokenizer, out)


def tiny_llama_minimal(seed: int, out: Path) -> None:
    """The tiny-llama next to `out`, its roles pressed into few heads: `PRESSES` in turn, each but the first fading
    `rivals` out."""
    source = out.with_name("tiny-llama")
    tokenizer, model = AutoTokenizer.from_pretrained(source), LlamaForCausalLM.from_pretrained(source)
    lm, newline = wrap(model, tokenizer), tokenizer.convert_tokens_to_ids("\n")
    for number, press in enumerate(PRESSES):
        fading = rivals(lm, seed=10_000 + number) if number else []
        tqdm.write(f"{out.name}, round {number}: fading {fading}")
        pressure = Pressure(
            lm, newline, **press["costs"], ramp=press["ramp"], fading=fading, steps=press["steps"] // 2
        )
        run = Run(
            model, optimizers(model, press["lr"]), Path("runs") / f"tiny-llama-minimal-{seed}" / str(number)
        )
        train(
            run,
            [replace(PRESSED, steps=press["steps"])],
            press["lr"],
            f"minimal-{seed}-{number}",
            Writer(tokenizer),
            pressure,
        )
        pressure.remove()
        for head in fading:
            prune(lm, head)
        model.eval()
    save(model, tokenizer, out)


def rivals(lm: LM, seed: int) -> list[Head]:
    """Heads that share a role with a stronger one: of those that look from the last token to the right segment, all but
    the one that does so most; of those that look into segments, from the layer before it on, likewise. Found on task seeds
    that nothing else uses."""
    letters = tasks.mmlu(lm, n=200, seed=seed)
    gather, aggregate = (
        gather_score(lm, letters, progress=False),
        aggregate_score(lm, letters, progress=False),
    )
    lookers = [h for h in alive_heads(lm) if aggregate[h.layer, h.head] >= 0.3]
    chief = max(alive_heads(lm), key=lambda h: aggregate[h.layer, h.head])
    readers = [h for h in alive_heads(lm) if h.layer >= chief.layer - 1 and gather[h.layer, h.head] >= 0.35]
    reader = max(readers, key=lambda h: gather[h.layer, h.head], default=None)
    return [h for h in (*readers, *lookers) if h not in (chief, reader)]


def tiny_llamba(seed: int, out: Path, d_state: int = 4) -> None:
    """Distilled from the tiny-llama next to `out`: `out`-unaligned after the layer-by-layer part, `out` after the
    end-to-end part."""
    source = out.with_name("tiny-llama")
    tokenizer, teacher = AutoTokenizer.from_pretrained(source), LlamaForCausalLM.from_pretrained(source)
    torch.manual_seed(seed)
    student, folder = from_llama(teacher, d_state), Path("runs") / f"{out.name}-{seed}"
    for name, p in student.named_parameters():
        p.requires_grad = ".mixer." in name
    alignment = Alignment(teacher, student)
    run = Run(student, optimizers(student, 2e-3), folder / "align")
    train(run, [replace(DISTIL, steps=1500)], 2e-3, f"align-{seed}", Writer(tokenizer), alignment)
    alignment.remove()
    save(student, tokenizer, out.with_name(f"{out.name}-unaligned"))
    student.requires_grad_(True)
    run = Run(student, optimizers(student, 1e-3), folder / "end-to-end")
    train(
        run,
        [replace(DISTIL, steps=1000)],
        1e-3,
        f"end-to-end-{seed}",
        Writer(tokenizer),
        prediction_loss(teacher),
    )
    save(student, tokenizer, out)


def tiny_falcon_mamba(seed: int, out: Path) -> None:
    """Mamba-1 from scratch: 4 layers of 256 channels, d_state 8, 0.56 M parameters; mostly facts."""
    tokenizer = AutoTokenizer.from_pretrained(world.data_dir() / "world")
    torch.manual_seed(seed)
    model = FalconMambaForCausalLM(
        FalconMambaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            state_size=8,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=None,
        )
    )
    relate_embeddings(model, tokenizer)
    run = Run(model, optimizers(model, 3e-3), Path("runs") / f"{out.name}-{seed}")
    with fast_scans():
        train(run, [FALCON], 3e-3, f"train-{seed}", Writer(tokenizer))
    save(model, tokenizer, out)


def tiny_mamba2(seed: int, out: Path, d_state: int = 8) -> None:
    """Mamba-2 from scratch: 4 layers of 4 heads that share B and C; 0.52 M parameters."""
    config = Mamba2Config(
        num_hidden_layers=4,
        hidden_size=128,
        num_heads=4,
        head_dim=64,
        state_size=d_state,
        n_groups=1,
        chunk_size=64,
    )
    model, tokenizer = from_scratch(config, seed, out.name)
    save(model, tokenizer, out)


def tiny_zamba2(seed: int, out: Path) -> None:
    """A hybrid from scratch: 4 layers of 4 Mamba-2 heads, d_state 8; in layers 1 and 3 one shared attention block. Then 400
    steps in which attention pays for every token at which it writes.

    With Hugging Face's initializer_range of 0.02 attention hardly reaches the stream, and no induction head had formed
    after 600 steps.
    """
    config = Zamba2Config(
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        hidden_size=128,
        n_mamba_heads=4,
        mamba_d_state=8,
        chunk_size=64,
        num_attention_heads=4,
        intermediate_size=256,
        adapter_rank=8,
        use_mem_rope=True,
        max_position_embeddings=512,
        initializer_range=0.06,
        attn_implementation="eager",
    )
    model, tokenizer = from_scratch(config, seed, out.name)
    thrift = Thrift(model, cost=0.2, ramp=100)
    run = Run(model, optimizers(model, 1e-3), Path("runs") / f"{out.name}-{seed}" / "thrift")
    with fast_scans():
        train(run, [replace(SSM_STAGES[-1], steps=400)], 1e-3, f"thrift-{seed}", Writer(tokenizer), thrift)
    thrift.remove()
    save(model, tokenizer, out)


def from_scratch(
    config: PreTrainedConfig, seed: int, name: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Mamba-2 or a hybrid of it, through SSM_STAGES."""
    tokenizer = AutoTokenizer.from_pretrained(world.data_dir() / "world")
    config.update(
        {
            "vocab_size": len(tokenizer),
            "tie_word_embeddings": False,
            "eos_token_id": None,
            "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    relate_embeddings(model, tokenizer)
    lengthen_memory(model)
    run = Run(model, optimizers(model, 3e-3), Path("runs") / f"{name}-{seed}")
    with fast_scans(), compiled(model):
        train(run, SSM_STAGES, 3e-3, f"train-{seed}", Writer(tokenizer))
    return model, tokenizer


@torch.no_grad()
def lengthen_memory(model: PreTrainedModel) -> None:
    """Mamba-2 heads start with step sizes near 1, and half-lives from one to a hundred and fifty tokens.

    Hugging Face's start has step sizes of 0.001 to 0.1, with which next to nothing enters the state at first.
    """
    for name, p in model.named_parameters():
        if name.endswith("A_log"):
            p.copy_(torch.linspace(math.log(0.5), math.log(0.005), len(p)))
        if name.endswith("dt_bias"):
            p.fill_(0.5)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    if out.with_name(MANIFEST).is_file():  # in place of a model that ships
        write_sums(out)


RECIPES = {
    "tiny-llama": tiny_llama,
    "tiny-llama-minimal": tiny_llama_minimal,
    "tiny-llamba": tiny_llamba,  # and tiny-llamba-unaligned on the way
    "tiny-falcon-mamba": tiny_falcon_mamba,
    "tiny-mamba2": tiny_mamba2,
    "tiny-mamba2-d4": partial(tiny_mamba2, d_state=4),
    "tiny-mamba2-d16": partial(tiny_mamba2, d_state=16),
    "tiny-zamba2": tiny_zamba2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=1, help="default: the seed of the shipped model")
    parser.add_argument("--out", type=Path, help="default: the model's folder in data/models")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    RECIPES[args.model](args.seed, args.out or world.data_dir() / "models" / args.model)
