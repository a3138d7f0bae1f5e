"""Who looks where: attention maps, and scores for the two roles.

A *segment* is one option of a question, or one pair of a dictionary: a line that ends in a newline. Two tokens
*close* it, the newline and the token after it: both know that the segment is over, and a model may keep its
summary at either (tiny-llama uses the token after the newline). A Gather head attends from a closing token into
the segment. An Aggregate head attends from the last token of the prompt to a closing token of the right segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ga_utils.examples import Example
from ga_utils.heads import Head, check_heads
from ga_utils.models.lm import LM, Mixer
from ga_utils.segments import Segment, segments
from ga_utils.ssm import Scan, scan_of

LARGEST = 4e9  # bytes of maps made without naming heads


def attention_map(lm: LM, prompt: str, layer: int, heads: Iterable[int] | None = None) -> torch.Tensor:
    """The matrix by which a layer's heads mix positions on a prompt: [n_heads, query, key], float32, causal.

    Softmax attention: the weights of Hugging Face's own eager attention, grouped queries included; rows sum to 1.
    An SSM: its implicit attention M (`ga_utils.ssm`), without the skip connection D; rows may be negative and sum to
    anything, and the values it mixes have been through the short convolution.

    Args:
        layer: counted from 0.
        heads: which heads, in this order; all by default. Nothing is made for the others.

    Raises:
        ValueError: a layer or head that the model lacks; or all heads asked for where that would need more than
            4 GB, as for the thousands of channels of a Mamba-1 layer.
    """
    if heads is None:
        check_heads(lm, [Head(layer, 0)])
        heads = [h for mixer in lm.mixers if mixer.layer == layer for h in mixer.heads]
        size = 4 * len(heads) * len(lm.tokenizer(prompt).input_ids) ** 2
        if size > LARGEST:
            raise ValueError(
                f"maps of all {len(heads)} heads of layer {layer} would take {size / 1e9:.0f} GB: name some, heads=[0, 1]"
            )
    heads = [int(head) for head in heads]
    if not heads:
        raise ValueError("no heads asked for: the list is empty; leave it out for all heads of the layer")
    check_heads(lm, [Head(layer, head) for head in heads])
    with closing(_patterns(lm, [prompt], {layer: heads})) as patterns:
        return next(patterns)[layer]


def scan(lm: LM, prompt: str, layer: int) -> Scan:
    """What the SSM of a layer works on when the model reads a prompt: values x, B, C, step sizes, decays.

    Raises:
        ValueError: the layer has no SSM.
    """
    mixers = [mixer for mixer in lm.mixers if mixer.layer == layer and mixer.kind != "attention"]
    if not mixers:
        layers = sorted({mixer.layer for mixer in lm.mixers if mixer.kind != "attention"})
        raise ValueError(f"layer {layer} of {lm.name} has no SSM; layers that have one: {layers or 'none'}")
    seen: list[torch.Tensor] = []

    def keep_input(module, args, kwargs):
        seen.append(_input(args, kwargs))
        raise _Enough

    with held() as gate, ExitStack() as hooks:
        hooks.callback(mixers[0].module.register_forward_pre_hook(keep_input, with_kwargs=True).remove)
        with gate.opened():
            _read(lm, prompt)
    return scan_of(mixers[0].module, seen[-1])


def gather_score(lm: LM, examples: list[Example], progress: bool = True) -> np.ndarray:
    """[n_layers, n_heads]: attention from a segment's closing token into the segment, newline left out, 0 to 1.

    Averaged over all segments of all examples, for the closing token that looks into the segment more.
    """

    def score(pattern: torch.Tensor, spans: list[Segment], right: int) -> torch.Tensor:
        own = [pattern[:, s.closing, s.start : s.end].sum(-1) for s in spans]
        return torch.stack(own).mean(0)  # [head, closing token]

    return _mean_score(lm, examples, score, progress).max(-1)


def aggregate_score(lm: LM, examples: list[Example], progress: bool = True) -> np.ndarray:
    """[n_layers, n_heads]: attention from the prompt's last token to the right segment's closing tokens, 0 to 1."""

    def score(pattern: torch.Tensor, spans: list[Segment], right: int) -> torch.Tensor:
        return pattern[:, -1, spans[right].closing]

    return _mean_score(lm, examples, score, progress).sum(-1)


def shares(A: torch.Tensor) -> torch.Tensor:
    """|A| with every row divided by its sum, [n_heads, query, key], so that implicit attention can be compared."""
    return A.abs() / A.abs().sum(-1, keepdim=True).clamp_min(torch.finfo(A.dtype).tiny)


def sharpness(A: torch.Tensor) -> torch.Tensor:
    """How concentrated each row of attention is: 1 - entropy / log(keys seen), [n_heads, query].

    1: all on one key. 0: spread evenly over all keys seen so far. Rows are taken as `shares`; the first row, with a
    single key, is 1, and so is a row of zeros.

    Args:
        A: [n_heads, query, key], causal and square.
    """
    if A.ndim != 3 or A.shape[1] != A.shape[2]:
        raise ValueError(
            f"expected a map [n_heads, query, key] with as many queries as keys, got {tuple(A.shape)}"
        )
    p = shares(A.double())
    entropy = -torch.special.xlogy(p, p).sum(-1)  # [n_heads, query]
    keys = torch.arange(1, A.shape[1] + 1, device=A.device)
    return (1 - entropy / keys.log().clamp_min(1e-9)).float()


def _mean_score(lm: LM, examples: list[Example], score, progress: bool) -> np.ndarray:
    """Mean over examples of `score`, [head, closing token] for a layer: [n_layers, n_heads, closing token]."""
    if not examples:
        raise ValueError("no examples to score: the list is empty")
    total = np.zeros((lm.n_layers, lm.n_heads, 2))
    layers: dict[int, list[int]] = {}
    for mixer in lm.mixers:
        layers.setdefault(mixer.layer, []).extend(mixer.heads)
    spans = [segments(lm, example) for example in examples]

    def keep(maps: torch.Tensor, number: int) -> torch.Tensor:
        return score(shares(maps), spans[number], examples[number].answer)

    prompts = tqdm([e.prompt for e in examples], desc="attention", disable=not progress, leave=False)
    with closing(_patterns(lm, prompts, layers, keep)) as patterns:
        for scores in patterns:
            for layer, of_heads in scores.items():
                total[layer, : len(of_heads)] += of_heads.numpy()
    return total / len(examples)


class _Enough(Exception):
    """Ends a forward pass: all that was asked for has been seen. What comes after would be time and memory for nothing."""


@torch.no_grad()
def _read(lm: LM, prompt: str) -> None:
    """One forward pass, for its hooks; one of them may end it with `_Enough`."""
    ids = lm.tokenizer(prompt, return_tensors="pt").input_ids.to(lm.device)
    with suppress(_Enough):
        lm.model(input_ids=ids, use_cache=False, logits_to_keep=1)


def _input(args: tuple, kwargs: dict) -> torch.Tensor:
    """What a mixer was called with, for a single prompt: [pos, d_model]."""
    return (args[0] if args else kwargs["hidden_states"])[0]


def _patterns(
    lm: LM, prompts: Iterable[str], layers: dict[int, list[int]], keep=lambda maps, number: maps
) -> Iterator[dict[int, torch.Tensor]]:
    """For each prompt: {layer: [its heads that were asked for, query, key]} float32 on the CPU, with one forward pass.

    Of each mixer's maps only what `keep(maps, number of the prompt)` returns is held on to, its first axis the heads.
    """
    weights: dict[nn.Module, torch.Tensor] = {}  # what an attention module gave last: [head, query, key]
    caught: dict[int, dict[int, torch.Tensor]] = {}  # layer -> head -> map
    n_wanted, number = sum(len(set(heads)) for heads in layers.values()), 0

    def catch(mixer: Mixer, wanted: list[int], maps: torch.Tensor) -> None:
        caught.setdefault(mixer.layer, {}).update(zip(wanted, keep(maps.float(), number).cpu()))
        if sum(map(len, caught.values())) == n_wanted:
            raise _Enough

    def keep_weights(module, args, output):
        weights[module] = output[1][0]

    def read_attention(mixer: Mixer, wanted: list[int]):
        # When its layer is done: a module that Zamba2 shares between depths has then run last at this one.
        return lambda *_: catch(mixer, wanted, weights[mixer.module][[head - mixer.first for head in wanted]])

    def read_scan(mixer: Mixer, wanted: list[int]):
        def hook(module, args, kwargs):
            catch(
                mixer,
                wanted,
                scan_of(module, _input(args, kwargs)).matrix([head - mixer.first for head in wanted]),
            )

        return hook

    with held() as gate, ExitStack() as stack:
        stack.enter_context(_eager(lm))
        for mixer in lm.mixers:
            wanted = [head for head in layers.get(mixer.layer, []) if head in mixer.heads]
            if not wanted:
                continue
            if mixer.kind == "attention":
                stack.callback(mixer.module.register_forward_hook(keep_weights).remove)
                stack.callback(mixer.block.register_forward_hook(read_attention(mixer, wanted)).remove)
            else:
                hook = mixer.module.register_forward_pre_hook(read_scan(mixer, wanted), with_kwargs=True)
                stack.callback(hook.remove)
        with gate.opened():
            for number, prompt in enumerate(prompts):  # noqa: B007  `catch` reads it
                caught.clear()
                _read(lm, prompt)
                yield {
                    layer: torch.stack([caught[layer][head] for head in heads])
                    for layer, heads in layers.items()
                }


@contextmanager
def _eager(lm: LM) -> Iterator[None]:
    """Only eager attention computes its weights as a matrix; the fused forms never have them."""
    # A layer borrowed from another model (ga_utils.hybrid) brings that model's configuration with it.
    configs = {
        id(c): c for c in (lm.model.config, *(m.module.config for m in lm.mixers if m.kind == "attention"))
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
