"""Who attends where: attention maps, and scores for the two roles.

A Gather head attends from a closing token of a segment (`ga_utils.segments`) into that segment. An Aggregate
head attends from the last token of the prompt to a closing token of the right segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields

import numpy as np
import torch
from tqdm.auto import tqdm

from ga_utils.examples import Example
from ga_utils.heads import Head, check_heads
from ga_utils.models.batches import rows_of
from ga_utils.models.budget import fits, halving, is_long
from ga_utils.models.deltanet import DeltaScan
from ga_utils.models.device import weights_of
from ga_utils.models.lm import LM, Mixer
from ga_utils.patterns import Enough, read_patterns, run_for_hooks
from ga_utils.segments import Segment, positions, segments
from ga_utils.ssm import Scan, mixer_input, scan_of

LARGEST = 4e9  # bytes that `attention_map` returns at most

# Patterns A [head, query, key], the prompt's segments and the index of the right one -> [head, width]
PatternScore = Callable[[torch.Tensor, list[Segment], int], torch.Tensor]


def attention_map(lm: LM, prompt: str, layer: int, heads: Iterable[int] | None = None) -> torch.Tensor:
    """How each head of a layer mixes positions: [n_heads, query, key], causal, float32, on the CPU.

    Softmax attention: the weights, as Hugging Face's eager attention computes them. Rows sum to 1, or to less
    in a model with attention sinks (gpt-oss), where the sink takes the rest.
    An SSM: its implicit attention M (`ga_utils.ssm`), without the skip connection D. Entries may be negative,
    rows sum to anything, and the values that M mixes have been through the short convolution.

    Args:
        layer: counted from 0.
        heads: which heads, in this order; all by default. Memory grows with the heads asked for alone.

    Raises:
        ValueError: a layer or head that the model lacks; an empty list of heads; or maps of more than 4 GB,
            as those of all channels of a Mamba-1 layer often are.
        RuntimeError: an attention layer that does not use Hugging Face's `AttentionInterface`.
    """
    check_heads(lm, [Head(layer, 0)])
    if heads is None:
        heads = [head for mixer in lm.mixers if mixer.layer == layer for head in mixer.heads]
    try:
        heads = [int(head) for head in heads]
    except (TypeError, ValueError) as error:
        raise ValueError(f"heads={heads!r}: expected a list of numbers of heads, such as [0, 1]") from error
    if not heads:
        raise ValueError("no heads asked for: the list is empty; leave it out for all heads of the layer")
    check_heads(lm, [Head(layer, head) for head in heads])
    ids = lm.encode(prompt)[0].tolist()
    length = len(ids)
    size = 4 * len(heads) * length**2
    if size > LARGEST:
        raise ValueError(
            f"maps of {len(heads)} heads of layer {layer} on {length} tokens would take {size / 1e9:.0f} GB: "
            + ("name some, heads=[0, 1]" if len(heads) > 1 else "shorten the prompt")
        )
    maps = torch.empty(len(heads), length, length, dtype=torch.float32)

    def keep(mixer: Mixer, some: list[int], i: int, A: torch.Tensor) -> None:
        for row, head in enumerate(heads):
            if head in some:
                maps[row] = A[some.index(head)]

    read_patterns(lm, [ids], {layer: heads}, keep)
    return maps


def scan(lm: LM, prompt: str, layer: int) -> Scan | DeltaScan:
    """What the SSM of a layer works on when the model reads a prompt: values x, B, C, step sizes, decays;
    of Gated DeltaNet values x, k, q, beta, log decays.

    On the CPU, in float32; a float64 model's stay float64.

    Raises:
        ValueError: the layer has no SSM.
    """
    mixers = [mixer for mixer in lm.mixers if mixer.layer == layer and mixer.kind != "attention"]
    if not mixers:
        layers = sorted({mixer.layer for mixer in lm.mixers if mixer.kind != "attention"})
        raise ValueError(f"layer {layer} of {lm.name} has no SSM; layers that have one: {layers or 'none'}")
    found: list[Scan] = []

    def before(module, args, kwargs):
        with weights_of(module):
            found.append(scan_of(module, mixer_input(args, kwargs)[0]))
        raise Enough

    with lm.edited("reading") as edit:
        edit.hook(mixers[0].module.register_forward_pre_hook, before, with_kwargs=True)
        run_for_hooks(lm, lm.encode(prompt))
    return type(found[0])(*(getattr(found[0], field.name).cpu() for field in fields(found[0])))


def gather_score(lm: LM, examples: Iterable[Example], progress: bool = True) -> np.ndarray:
    """How much attention goes from a segment's closing token into the segment: [n_layers, n_heads], 0 to 1.

    The segment's newline is left out. Averaged over all segments of all examples, for the closing token (the
    newline or the token after it) that gives more. Implicit attention is compared by its `shares`. Heads that
    a layer lacks score 0.

    Raises:
        ValueError: no examples, or an example without segments.
    """

    return segment_shares(lm, examples, progress).mean(0).max(-1)


def segment_shares(lm: LM, examples: Iterable[Example], progress: bool = True) -> np.ndarray:
    """What closing tokens give to their own segments, [n_examples, n_layers, n_heads, closing token].

    Averaged over the segments of each example; the newline, the first closing token, is itself left out.

    Raises:
        ValueError: no examples, or an example without segments.
    """
    return _over_examples(lm, examples, into_segments, progress)


def into_segments(A: torch.Tensor, of: list[Segment], answer: int = 0) -> torch.Tensor:
    """The `segment_shares` of one pattern A [head, query, key]: [head, closing token]."""
    return torch.stack([A[:, s.closing, s.start : s.end].sum(-1) for s in of]).mean(0)


def aggregate_score(
    lm: LM, examples: Iterable[Example], among: str = "all", progress: bool = True
) -> np.ndarray:
    """How much attention goes from the last token to the right segment's closing tokens: [n_layers, n_heads].

    Averaged over all examples, for the position "last" of `segments.positions`. Implicit attention is
    compared by its `shares`.

    Args:
        among: "all": of all attention, 0 to 1, both closing tokens together; heads that a layer lacks score
            0. "closers": of what the closing tokens of all segments get; chance is 1 / n_choices. The mean
            of the examples' ratios; NaN for a head that gives closing tokens nothing in any example.

    Raises:
        ValueError: no examples, an example without segments, or another `among`.
    """
    if among not in ("all", "closers"):
        raise ValueError(f'among={among!r}: expected "all" or "closers"')
    right, of_all = np.moveaxis(closing_shares(lm, examples, progress), -1, 0)
    return right.mean(0) if among == "all" else mean_ratio(right, of_all)


def option_shares(lm: LM, examples: Iterable[Example], head: Head | str, progress: bool = True) -> np.ndarray:
    """How one head's last row is spread over the options' closing tokens: [right, option], means of examples.

    Row r holds the examples whose right option is number r; NaN where there is none.

    Raises:
        ValueError: a head that the model lacks; examples with different numbers of choices; no examples, or
            an example without segments.
    """
    (head,), examples = check_heads(lm, [head]), list(examples)
    sizes = {len(example.choices) for example in examples}
    if len(sizes) > 1:
        raise ValueError(f"examples with {sorted(sizes)} choices: one table needs as many in all")
    n = max(sizes, default=0)

    def spread(A: torch.Tensor, of: list[Segment], answer: int) -> torch.Tensor:
        return torch.stack([A[:, -1, s.closing].sum(-1) for s in of], dim=-1)

    found = _over_examples(lm, examples, spread, progress, {head.layer: [head.head]}, n)
    found, right = found[:, head.layer, head.head], np.array([example.answer for example in examples])
    return np.stack(
        [found[right == r].mean(0) if (right == r).any() else np.full(n, np.nan) for r in range(n)]
    )


def closing_shares(lm: LM, examples: Iterable[Example], progress: bool = True) -> np.ndarray:
    """What the last token's attention gives to closing tokens: to those of the right segment, and to those of
    all segments, [n_examples, n_layers, n_heads, 2].

    Raises:
        ValueError: no examples, or an example without segments.
    """

    def to_closers(A: torch.Tensor, of: list[Segment], answer: int) -> torch.Tensor:
        every = sorted({position for segment in of for position in segment.closing})
        return torch.stack([A[:, -1, of[answer].closing].sum(-1), A[:, -1, every].sum(-1)], dim=-1)

    return _over_examples(lm, examples, to_closers, progress)


def mean_ratio(right: np.ndarray, of_all: np.ndarray) -> np.ndarray:
    """The mean over examples of right / of_all, both [n_examples, ...]; without those where of_all is 0, NaN
    where that is all of them.
    """
    some = of_all > 0
    ratio = np.divide(right, of_all, out=np.zeros_like(right), where=some)
    return np.divide(ratio.sum(0), some.sum(0), out=np.full(right.shape[1:], np.nan), where=some.any(0))


def shares(A: torch.Tensor) -> torch.Tensor:
    """|A| with every row divided by its sum: makes implicit attention comparable with softmax attention.

    Softmax attention needs it only for its shape: what an attention sink takes is divided away.

    Args:
        A: [n_heads, query, key].
    """
    return A.abs() / A.abs().sum(-1, keepdim=True).clamp_min(torch.finfo(A.dtype).tiny)


def sharpness(A: torch.Tensor) -> torch.Tensor:
    """How concentrated each row of attention is: 1 - entropy / log(number of keys so far), [n_heads, query].

    1: all on one key. 0: spread evenly over all keys up to the query. Rows are taken as `shares`. The first
    row, which has a single key, is 1, and so is a row of zeros.

    Args:
        A: [n_heads, query, key], causal and square.

    Raises:
        ValueError: A has another shape.
    """
    if A.ndim != 3 or A.shape[1] != A.shape[2]:
        raise ValueError(
            f"expected a map [n_heads, query, key] with as many queries as keys, got {tuple(A.shape)}"
        )
    p = shares(A.double())
    entropy = -torch.special.xlogy(p, p).sum(-1)  # [n_heads, query]
    keys = torch.arange(1, A.shape[1] + 1, device=A.device)
    return (1 - entropy / keys.log().clamp_min(1e-9)).float()


def _over_examples(
    lm: LM,
    examples: Iterable[Example],
    score: PatternScore,
    progress: bool,
    heads: dict[int, list[int]] | None = None,
    width: int = 2,
) -> np.ndarray:
    """A score of patterns for each example: [n_examples, n_layers, n_heads, width].

    heads: layer -> which of its heads; all by default, the rest score 0.
    """
    examples = list(examples)
    if not examples:
        raise ValueError("no examples to score: the list is empty")
    of = [segments(lm, example) for example in examples]
    texts: list[list[int]] = [[] for _ in examples]  # each prompt's tokens, up to the position "last"
    for row in rows_of(lm, examples):
        texts[row.index] = row.ids
    texts = [ids[: positions(lm, example, "last")[0] + 1] for ids, example in zip(texts, examples)]
    if heads is None:
        heads = {}
        for mixer in lm.mixers:
            heads.setdefault(mixer.layer, []).extend(mixer.heads)
    found = np.zeros((len(examples), lm.n_layers, lm.n_heads, width))
    waiting = sorted(range(len(examples)), key=lambda number: -len(texts[number]))  # little is padded
    with tqdm(total=len(examples), desc="attention", disable=not progress, leave=False) as bar:
        while waiting:
            with halving(lm):
                batch = waiting[: _that_fit(lm, [len(texts[number]) for number in waiting])]

                def add(mixer: Mixer, some: list[int], i: int, A: torch.Tensor, batch=batch):
                    A = A if mixer.kind == "attention" else shares(A)
                    scores = score(A, of[batch[i]], examples[batch[i]].answer)
                    found[batch[i], mixer.layer, some] = scores.cpu().numpy()

                theirs = [examples[number] for number in batch]
                read_patterns(lm, [texts[number] for number in batch], heads, add, theirs)
                waiting = waiting[len(batch) :]
                bar.update(len(batch))
    return found


def _that_fit(lm: LM, lengths: list[int]) -> int:
    """How many of these texts, the longest first, may be read together; at least one."""
    size, width = 1, lengths[0]
    while (
        size < len(lengths)
        and fits(lm, size + 1, width, 0)
        and is_long(lm, lengths[size]) == is_long(lm, width)
    ):
        size += 1
    return size
