"""How patterns are read off a model: in one forward pass, and each is handed over as soon as it is there.

Softmax attention: the weights are those that eager attention makes (`ga_utils.models.eager`).

SSMs: the matrix is computed from the mixer's input (`ga_utils.ssm`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress

import torch
from torch import nn

from ga_utils.examples import Example
from ga_utils.models.continuation import running
from ga_utils.models.device import weights_of
from ga_utils.models.eager import BLOCK, split, use_ours
from ga_utils.models.lm import LM
from ga_utils.models.mixers import Edit, Mixer
from ga_utils.ssm import gated, go_on_from, mixer_input, norm_ties_heads, scan_of

Use = Callable[[Mixer, list[int], int, torch.Tensor], None]


class Enough(Exception):
    """Ends a forward pass from inside a hook: everything asked for has been seen."""


def read_patterns(
    lm: LM,
    texts: list[list[int]],
    heads: dict[int, list[int]],
    use: Use,
    examples: list[Example] | None = None,
) -> None:
    """Run texts as one batch and hand over patterns, each [query, key] over the text's own tokens.

    Args:
        texts: the tokens of each.
        heads: layer -> the heads whose patterns are wanted.
        use: called as use(mixer, some, i, A) with the patterns A [len(some), query, key] of some of these
            heads on prompt i. A is float32 or float64, and on the model's device.

    Raises:
        ValueError: a token for which the model has no embedding.
        RuntimeError: a layer does not compute its attention through Hugging Face's `AttentionInterface`.
    """
    lm.check_tokens(token for ids in texts for token in ids)
    missing = {(layer, head) for layer, wanted in heads.items() for head in wanted}
    mask = [torch.ones(len(ids), dtype=torch.long) for ids in texts]
    ids, mask = (
        nn.utils.rnn.pad_sequence(rows, batch_first=True).to(lm.device)
        for rows in (list(map(torch.tensor, texts)), mask)
    )
    lengths = mask.sum(1).tolist()

    def hand_over(mixer: Mixer, some: list[int], i: int, A: torch.Tensor) -> None:
        use(mixer, some, i, A)
        if i == len(texts) - 1:
            missing.difference_update((mixer.layer, head) for head in some)
            if not missing:
                raise Enough

    with lm.edited("reading") as edit:
        for mixer in lm.mixers:
            wanted = [head for head in mixer.heads if head in heads.get(mixer.layer, [])]
            if wanted and mixer.kind == "attention":
                _read_attention(mixer, wanted, lengths, hand_over, edit)
            elif wanted:
                _read_ssm(mixer, wanted, lengths, hand_over, edit)
        use_ours(lm, edit)
        with running(lm, ids, mask.sum(1), examples) if examples else nullcontext():
            run_for_hooks(lm, ids, mask)
    if missing:
        layer = min(missing)[0]
        raise RuntimeError(
            f"layer {layer} of {lm.name} does not compute its attention through Hugging Face's "
            "AttentionInterface, so its weights can't be read"
        )


@torch.no_grad()
def run_for_hooks(lm: LM, ids: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """A forward pass for the sake of its hooks, on ids [batch, pos]; a hook may end it with `Enough`.

    It makes all logits unless a hook does: asked for the last alone, Gemma 4's later layers see no others.
    """
    with suppress(Enough), lm.at_work(lm.running), lm.evaluating():
        lm.model(input_ids=ids, attention_mask=mask, use_cache=False)


def _read_ssm(mixer: Mixer, wanted: list[int], lengths: list[int], use: Use, edit: Edit) -> None:
    def before(module, args, kwargs):
        for i, length in enumerate(lengths):
            with weights_of(module):
                scan = scan_of(module, mixer_input(args, kwargs)[i, :length])
            for some in split(wanted, BLOCK // length**2):
                use(mixer, some, i, scan.matrix([head - mixer.first for head in some]))

    edit.hook(mixer.module.register_forward_pre_hook, before, with_kwargs=True)


def _read_attention(mixer: Mixer, wanted: list[int], lengths: list[int], use: Use, edit: Edit) -> None:
    whole: list[torch.Tensor] = []  # of heads whose weights come in several blocks of queries

    def read(heads: list[int], first: int, weights: torch.Tensor) -> None:
        some = [head for head in wanted if head - mixer.first in heads]
        if not some:
            return
        weights, n_keys = weights[:, [heads.index(head - mixer.first) for head in some]], weights.shape[-1]
        stop = first + weights.shape[2]
        if stop - first < n_keys:
            if first == 0:
                whole[:] = [weights.new_empty(*weights.shape[:2], n_keys, n_keys)]
            whole[0][:, :, first:stop] = weights
            weights = whole[0] if stop < n_keys else whole.pop()
        for i, length in enumerate(lengths if stop == n_keys else ()):
            use(mixer, some, i, weights[i, :, :length, :length])

    _ask(mixer, edit, weights_to=read)


def _ask(mixer: Mixer, edit: Edit, **more) -> None:
    """Have `attend` called with more arguments.

    In this layer alone: Zamba2 runs one attention module at several depths.
    """
    turn = [False]

    def enter(module, args):
        turn[0] = True

    def leave(module, args, output):
        turn[0] = False

    def ask(module, args, kwargs):
        return (args, kwargs | more) if turn[0] else None

    edit.hook(mixer.block.register_forward_pre_hook, enter)
    edit.hook(mixer.module.register_forward_pre_hook, ask, with_kwargs=True)
    edit.hook(mixer.block.register_forward_hook, leave)


def look_at(lm: LM, edit: Edit, mixer: Mixer, heads: list[int], last: list[int], to: list[list[int]]) -> None:
    """While `edit` is in force, these heads' last row attends to some positions alone, text by text.

    Softmax attention: all other keys are masked, so the weights of these positions are what softmax makes of
    their logits. An SSM: its implicit attention has no softmax, so the row's entries at these positions are
    scaled until their sizes add up to what the whole row's did; the skip connection and the gate stay.

    Texts must run whole. Args:
        heads: numbers of heads in the layer. last: for each example its last position. to: and the positions.

    Raises:
        ValueError: an SSM head whose entries at these positions are all zero.
    """
    ours = [head - mixer.first for head in heads]
    if mixer.kind == "attention":
        _ask(mixer, edit, logits_from=_only(lm, ours, last, to))
        return
    inputs: list[torch.Tensor] = []

    def before(module, args, kwargs):
        inputs[:] = [mixer_input(args, kwargs)]

    def change(z):
        z = z.clone()
        for row, index in enumerate(lm.running.indices):
            end = last[index] + 1
            hidden = inputs[0][row, :end]
            scan = scan_of(mixer.module, hidden)
            weights = scan.matrix(range(mixer.n_heads), first=end - 1)[:, 0]  # [head, key]
            masked = torch.zeros_like(weights[ours])
            masked[:, to[index]] = weights[ours][:, to[index]]
            largest = masked.abs().amax(-1, keepdim=True)
            if not largest.all():
                raise ValueError(f"L{mixer.layer}: a head gives nothing at all to positions {to[index]}")
            masked /= largest  # 1 divided by a sum near 1e-40 overflows float32
            size = masked.abs().sum(-1, keepdim=True)
            weights[ours] = masked * (weights[ours].abs().sum(-1, keepdim=True) / size)
            y = torch.einsum("hs,shd->hd", weights, scan.x) + scan.D[:, None] * scan.x[-1]
            z[row, end - 1] = gated(mixer.module, hidden[-1:], y.flatten()[None])[0].to(z)
        return z

    edit.hook(mixer.module.register_forward_pre_hook, before, with_kwargs=True)
    mixer.hook_z(edit, change, first=True)  # z is made anew: heads that are disabled must stay so


def go_on(
    lm: LM,
    edit: Edit,
    mixer: Mixer,
    ours: list[int],
    to: list[int],
    read: list[torch.Tensor],
    cache: str,
) -> None:
    """While `edit` is in force, these heads of a mixer go on, behind position to[example], from what they
    kept of another text, whose input of the mixer is read[example], [pos, d_model].
    """
    module, current = mixer.module, []
    some = list(range(mixer.n_heads)) if norm_ties_heads(module) else ours

    def before(module, args, kwargs):
        current[:] = [mixer_input(args, kwargs)]

    def change(z):
        z = z.clone()
        for row, index in enumerate(lm.running.indices):
            if index < 0 or to[index] + 1 == z.shape[1]:  # nothing comes behind
                continue
            own, rest = current[0][row].split([to[index] + 1, z.shape[1] - to[index] - 1])
            used = {name: read[index] if cache in (name, "both") else own for name in ("state", "conv")}
            wide = torch.promote_types(z.dtype, torch.float32)
            y = z.new_zeros(len(rest), mixer.n_heads, mixer.d_head, dtype=wide)
            if some != ours:
                y[:, some] = go_on_from(module, rest, own, own, some)
            y[:, ours] = go_on_from(module, rest, used["state"], used["conv"], ours)
            new = gated(module, rest, y.flatten(1)).unflatten(-1, (mixer.n_heads, -1)).to(z)
            z[row, to[index] + 1 :].unflatten(-1, (mixer.n_heads, -1))[:, some] = new[:, some]
        return z

    edit.hook(module.register_forward_pre_hook, before, with_kwargs=True)
    mixer.hook_z(edit, change, first=True)  # as in `look_at`


def _only(lm: LM, heads: list[int], last: list[int], to: list[list[int]]):
    """A function that masks all but some keys in the last row of these heads' logits, for `attend`."""

    def mask(some: list[int], first: int, logits: torch.Tensor) -> torch.Tensor:
        rows = [some.index(head) for head in heads if head in some]
        if not rows:
            return logits
        logits = logits.clone()
        for i, index in enumerate(lm.running.indices):
            query = last[index] - first
            if not 0 <= query < logits.shape[2]:
                continue
            hidden = logits[i, rows, query][:, to[index]] < torch.finfo(logits.dtype).min / 2
            if hidden.all(-1).any():
                raise ValueError(
                    f"positions {to[index]}: a layer's attention has a window that does not reach them from "
                    f"position {last[index]}"
                )
            seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            seen[to[index]] = True
            logits[i, rows, query] = logits[i, rows, query].masked_fill(~seen, -torch.inf)
        return logits

    return mask
