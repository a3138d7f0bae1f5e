"""Going on from another text's cache, written out: Hugging Face's model reads a text up to a position, then
something in its cache is exchanged, and it reads on. Nothing here uses `ga_utils.ssm`.
"""

import inspect
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from itertools import cycle
from types import SimpleNamespace

import by_hand
import torch
from by_hand import questions
from torch import nn

import ga_utils as ga

NORMED = "falcon_h1, normed"


def ssms(lm: ga.LM) -> list[by_hand.Spot]:
    return [spot for spot in by_hand.spots(lm) if not spot.is_attention]


def build(family: str, tokenizer, limits=(0, float("inf")), **changes) -> ga.LM:
    """A model whose states last, without limits on step sizes: Hugging Face's single steps ignore them."""
    if family == NORMED:
        family, changes = "falcon_h1", {"mamba_rms_norm": True}
    lm = by_hand.build(family, tokenizer, **changes)
    for spot in ssms(lm):
        if hasattr(spot.module, "A_log"):
            spot.module.A_log.data.sub_(2)
        if hasattr(spot.module, "time_step_limit"):
            spot.module.time_step_limit = limits
    return lm


def every_head(lm) -> list[ga.Head]:
    return [ga.Head(spot.layer, spot.first + i) for spot in ssms(lm) for i in range(spot.n_heads)]


def teams(lm) -> list[list[ga.Head]]:
    """A head; a fourth of the last layer's heads together with all of the first layer's; all heads."""
    spots, everyone = ssms(lm), every_head(lm)
    some = [head for head in by_hand.some_heads(lm) if head in everyone and head.layer == spots[-1].layer]
    return [some[:1], everyone[: spots[0].n_heads] + some, everyone]


def late(lm):
    """A position near the end of each prompt, so that few steps are left."""
    return lambda example: [by_hand.last(lm, example) - 3 - example.answer]


def asked(lm) -> tuple[list[ga.Example], list[ga.Example]]:
    """Texts of different lengths, with choices of one token and of several; and their sources, other ones."""
    mmlu, pairs, _, few, many = questions(lm)
    return [mmlu, pairs, few], [few, many, mmlu]


@torch.no_grad()
def read(lm: ga.LM, ids, cache=None, start: int = 0, step: int | None = None, before=lambda cache: None):
    """Hugging Face's logits [pos, vocabulary] and cache.

    Args:
        ids: the tokens from number `start` of a text on; cache: what is kept of those before.
        step: so many tokens at a time; all at once by default.
        before: called with the cache before each pass but the first.
    """
    parameters, found = inspect.signature(lm.model.forward).parameters, []
    name = "cache_params" if "cache_params" in parameters else "past_key_values"
    for part in torch.tensor(list(ids), dtype=torch.long)[None].split(step or len(ids), dim=1):
        more = {}
        if cache is not None:
            before(cache)
            more[name] = cache
        if "position_ids" in parameters:
            more["position_ids"] = torch.arange(start, start + part.shape[1])[None]
        out = lm.model(input_ids=part, use_cache=True, **more)
        found, cache, start = [*found, out.logits[0]], out[name], start + part.shape[1]
    return torch.cat(found), cache


def kept(cache, layer: int) -> dict[str, torch.Tensor]:
    """A layer's state, [1, head, ...], and the last inputs of its convolution, both to be written into."""
    if isinstance(cache, list):  # Llamba's
        return {"state": cache[layer].ssm, "conv": cache[layer].conv}
    return {"state": cache.layers[layer].recurrent_states[0], "conv": cache.layers[layer].conv_states[0]}


def exchange(cache, other, layer: int, heads, what: str) -> None:
    here, there = kept(cache, layer), kept(other, layer)
    if what in ("state", "both"):
        here["state"][:, heads] = there["state"][:, heads]
    if what in ("conv", "both"):
        here["conv"].copy_(there["conv"])


@contextmanager
def at_y(spot: by_hand.Spot, change):
    """Call change(y) before the norm that mixes heads; where there is none, on z, which is y times a gate."""
    norm = getattr(spot.module, "norm", None)
    place = spot.linear if norm is None or isinstance(norm, nn.Identity) else norm
    hook = place.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def two_halves(source: list[int], cut: int, source_cut: int, heads, what: str, step: int | None = 1):
    """A way to run a text, for `by_hand.logprobs`, whose second half goes on from the source's cache.

    A convolution serves all heads of a layer. Where only some of them go on from another one's inputs, the
    rest is run with these first, and y of these heads is then put into the run that goes on from its own.
    """

    def run(lm, ids, change):
        (begun, own), (_, other) = read(lm, ids[: cut + 1]), read(lm, source[: source_cut + 1])
        rest = ids[cut + 1 :]
        with ExitStack() as stack:
            for spot in ssms(lm) if rest else ():
                columns = spot.columns(heads)
                ours = columns.view(spot.n_heads, -1)[:, 0].nonzero()[:, 0].tolist()
                if ours and (what == "state" or len(ours) == spot.n_heads):
                    exchange(own, other, spot.layer, ours, what)
                elif ours:
                    trial, seen = deepcopy(own), []
                    exchange(trial, other, spot.layer, range(spot.n_heads), what)
                    with at_y(spot, lambda y, seen=seen: seen.append(y) or y):
                        read(lm, rest, trial, cut + 1, step)
                    stack.enter_context(at_y(spot, partial(_put, columns, cycle(seen))))
            ended = [read(lm, rest, own, cut + 1, step)[0]] if rest else []
        return (SimpleNamespace(logits=torch.cat([begun, *ended])[None]),)

    return run


def _put(columns: torch.Tensor, seen, y: torch.Tensor) -> torch.Tensor:
    return torch.where(columns, next(seen).view_as(y), y)


def expected(lm, examples, sources, cut, heads, what: str, step: int | None = 1) -> list[list[float]]:
    """Log-probabilities of each example's choices; cut(example) -> [position]."""
    found = []
    for example, source in zip(examples, sources):
        ids = lm.tokenize([source.prompt + source.choices[0]])[0]
        run = two_halves(ids, *cut(example), *cut(source), heads, what, step)
        found.append(by_hand.logprobs(lm, example, run=run))
    return found
