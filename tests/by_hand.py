"""Interventions written out: hooks of our own on the output projections, one text at a time, run whole, with
no cache and no padding. Nothing here uses `Mixer`, `Edit`, `positions` or the batcher.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import families
import torch
from torch import nn

import ga_utils as ga

SHOT = "Dictionary:\napple: 17\nlamp: 4\ndrum: 52\nQuestion: what is the value of lamp?\nAnswer: 4\n"
# Choices of two tokens, of which the first is the same in all: "last" lies behind the prompt.
PAIRS = "Dictionary:\nkettle: 62 79\nboat: 62 12\nQuestion: what is the value of boat?\nAnswer:"


@dataclass(frozen=True, eq=False)
class Spot:
    """An output projection at one depth; its heads are numbered from `first` on."""

    layer: int
    first: int
    n_heads: int
    module: nn.Module  # attention or SSM
    linear: nn.Linear

    @property
    def d_head(self) -> int:
        return self.linear.in_features // self.n_heads

    @property
    def is_attention(self) -> bool:
        return not hasattr(self.module, "D") and not hasattr(self.module, "num_v_heads")

    def columns(self, heads: list[ga.Head]) -> torch.Tensor:
        """Which columns of z belong to these heads: bool [n_heads * d_head]."""
        named = [ga.Head(self.layer, self.first + i) in heads for i in range(self.n_heads)]
        return torch.tensor(named).repeat_interleave(self.d_head)


EXPERTS = ("jamba", "qwen3_next", "qwen3_5_moe_text")


def spots(lm: ga.LM) -> list[Spot]:
    """By the names of modules; a layer's attention comes before its SSM."""
    found = []
    for layer, block in enumerate(lm.layers):
        first = 0
        for name in ("o_proj", "out_proj"):
            for module in block.modules():
                if name in dict(module.named_children()):
                    if hasattr(module, "num_v_heads"):
                        of = module.num_v_heads
                    else:
                        of = lm.model.config.num_attention_heads if name == "o_proj" else module.D.numel()
                    found.append(Spot(layer, first, of, module, getattr(module, name)))
                    first += of
    return found


def some_heads(lm: ga.LM) -> list[ga.Head]:
    """A head of every mixer; of Mamba-1's channels, each of which does little, a fourth of them."""
    return [
        ga.Head(spot.layer, spot.first + i) for spot in spots(lm) for i in range(1, 1 + spot.n_heads // 4)
    ]


Change = Callable[[Spot, torch.Tensor], torch.Tensor]  # gets z [pos, n_heads * d_head], may write into it


def build(family: str, tokenizer, **changes) -> ga.LM:
    """In float64, so that different shapes of batches cost no digits; experts have no float64."""
    dtype = torch.float32 if family in EXPERTS else torch.float64
    return families.build(family, tokenizer, dtype, **changes)


def close(family: str) -> float:
    """How far off a log-probability may be: `evaluate` reads logits in float32, and so does Hugging Face
    compute some parts of Zamba2, and the delta rule.
    """
    return 1e-4 if family in ("zamba2", *EXPERTS, *families.DELTANETS) else 1e-5


@torch.no_grad()
def forward(lm: ga.LM, ids: list[int], change: Change = lambda spot, z: z, **options):
    """What Hugging Face's model returns, and z at each spot, by (layer, first), as `change` has made it.

    A module that several depths share (Zamba2's attention) runs in the order of the layers.
    """
    found, turns = {}, {}
    for spot in spots(lm):
        turns.setdefault(spot.linear, []).append(spot)

    def at_z(linear, args):
        spot = turns[linear].pop(0)
        found[spot.layer, spot.first] = change(spot, args[0][0].clone())
        return (found[spot.layer, spot.first][None],)

    handles = [linear.register_forward_pre_hook(at_z) for linear in turns]
    try:
        ids = torch.tensor([list(ids)])
        out = lm.model(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    finally:
        for handle in handles:
            handle.remove()
    assert not any(turns.values()), "every projection ran once at every depth"
    return out, found


def logprobs(lm: ga.LM, example: ga.Example, change: Change = lambda spot, z: z, run=forward) -> list[float]:
    """Of each choice; `run` is called as `forward` is, once for each text."""
    seen, found = {}, []
    for before, choice in example.texts:
        prompt, whole = lm.tokenize([before, before + choice])
        text = tuple(whole[:-1])
        if text not in seen:
            seen[text] = run(lm, text, change)[0].logits[0].log_softmax(-1)
        read = range(len(prompt) - 1, len(whole) - 1)
        found.append(sum(seen[text][i, whole[i + 1]].item() for i in read))
    return found


def gap(score: ga.Score, expected: list[list[float]]) -> float:
    """The largest difference of a log-probability; examples may have different numbers of choices."""
    rows = zip(score.logprobs, expected, strict=True)
    return max(abs(a - b) for found, right in rows for a, b in zip(found, right))


def last(lm: ga.LM, example: ga.Example) -> int:
    """The position before the first token in which the choices differ."""
    texts = lm.tokenize([before + choice for before, choice in example.texts])
    return next(i for i, tokens in enumerate(zip(*texts)) if len(set(tokens)) > 1) - 1


def closing(lm: ga.LM, example: ga.Example) -> list[int]:
    """The newline of each choice's line, and the token after it; a line is the last that reads like it."""
    found = []
    for choice in example.choices:
        line = f"\n{choice.strip()}. " if choice.strip().isalpha() else f":{choice}\n"
        start = f"\n{example.prompt}".rindex(line)
        newline = lm.tokenizer(example.prompt).char_to_token(example.prompt.index("\n", start))
        found += [newline, newline + 1]
    return found


def chosen(example: ga.Example) -> list[int]:
    """Two positions that differ between examples, the first of them also within `SHOT`."""
    return [17 + example.answer, len(example.prompt.split())]


WHERES = {
    "last": ("last", lambda lm, example: [last(lm, example)]),
    "closing": ("closing", closing),
    "chosen": (chosen, lambda lm, example: chosen(example)),
}


def questions(lm: ga.LM) -> list[ga.Example]:
    """Prompts of different lengths; choices of one token and of several."""
    pairs = [ga.Example(PAIRS, (" 62 79", " 62 12"), 1, "pairs")]
    wide = PAIRS.replace("boat: 62 12", "boat: 17 12\nlamp: 4 12")
    pairs += [ga.Example(wide, (" 62 79", " 17 12", " 4 12"), 2, "pairs")]
    tasks = ga.tasks
    return tasks.mmlu(lm, n=1) + pairs + [tasks.kv_retrieval(lm, n_pairs=n, n=1)[0] for n in (3, 5)]


def after_a_shot(examples: list[ga.Example]) -> list[ga.Example]:
    """The same questions after a solved one, which all prompts begin with."""
    return [replace(example, prompt=SHOT + example.prompt) for example in examples]
