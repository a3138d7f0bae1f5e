"""Interchange interventions: what happens when a head writes what it wrote elsewhere, or looks elsewhere?

Ablation shows that a head is needed. These show what it carries. Say beforehand which answer should follow,
then compare it with `Score.chosen`:

    patch    z of a head at one position is what it was at another, of the same prompt or another one
    steer    a head's last row attends to positions of your choice, and writes what it fetches there
    patch_state   an SSM head goes on from the state that it had after another text

Interchange interventions: Geiger et al. 2021, arXiv 2106.02997. Path patching (`through`): Wang et al. 2022,
arXiv 2211.00593, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch

from ga_utils.examples import Example
from ga_utils.heads import Head, check_heads
from ga_utils.models.batches import Row, rows_of
from ga_utils.models.device import weights_of
from ga_utils.models.eager import use_ours
from ga_utils.models.lm import LM, UNLIMITED, Mixer
from ga_utils.models.mixers import Edit
from ga_utils.models.recording import record, record_z
from ga_utils.patterns import go_on, look_at
from ga_utils.scoring import Score, logprobs_of
from ga_utils.segments import Where, positions
from ga_utils.ssm import mixer_input, scan_of

CLEAN, SENT, RECEIVED = range(3)  # the three copies of a batch in path patching


def patch(
    lm: LM,
    heads: Iterable[Head | str],
    examples: Iterable[Example],
    sources: Iterable[Example],
    at: Where = "last",
    source_at: Where = "last",
    through: Iterable[Head | str] | None = None,
    sources_in: AbstractContextManager | None = None,
) -> Score:
    """Score examples while heads write at some positions what they write at positions of the sources.

    All sources are read before anything is written, so `sources=examples` swaps within a prompt.

    Args:
        sources: one example for each of `examples`.
        at, source_at: positions in each example, and in its source (see `segments.positions`), as many of
            both, paired in order.
        through: path patching. Only what these heads, in later layers, receive is changed: they read a
            residual stream in which the patched heads write the source's z, MLPs respond to that, and all
            other heads write what they write without the patch. Everything else is as without the patch.
        sources_in: the sources are read inside this context. With `sources=examples` and
            `sources_in=ablate_conv(lm, [0])` the heads write at these positions, and nowhere else, what they
            would write without the convolution of layer 0.

    Raises:
        ValueError: no heads or a head the model lacks; not one source for each example; positions that don't
            pair up; heads in `through` that are not later than all of `heads`.
    """
    heads, (examples, sources) = _some(lm, heads), _paired(examples, sources)
    receivers = None if through is None else _later(lm, through, heads)
    to = [positions(lm, example, at) for example in examples]
    of = [positions(lm, source, source_at) for source in sources]
    for index, (here, there) in enumerate(zip(to, of)):
        if len(here) != len(there):
            raise ValueError(
                f"example {index}: {len(here)} positions to write at, but {len(there)} of its source to read"
            )
    mixers = [mixer for mixer in lm.mixers if any(head.layer == mixer.layer for head in heads)]
    with sources_in or nullcontext():
        recorded = record_z(lm, mixers, _texts(lm, sources))
    written = {
        (mixer.layer, mixer.first): [z[there] for z, there in zip(prompts, of)]
        for mixer, prompts in zip(mixers, recorded)
    }
    write = _writer(lm, heads, to, written)
    rows, first = rows_of(lm, examples), {}
    for example, here in zip(examples, to):
        first[example] = min(here, default=UNLIMITED)
    with lm.edited(f"patched: {', '.join(map(str, heads))}") as edit:
        edit.varies_from = first.get
        if receivers is None:
            for mixer in mixers:
                mixer.hook_z(edit, lambda z, mixer=mixer: write(mixer, z))
            return Score.of(logprobs_of(lm, rows)[0], examples)
        for mixer in lm.mixers:
            mixer.hook_z(edit, _path(lm, mixer, write, receivers))
        return Score.of(logprobs_of(lm, rows, copies=3)[RECEIVED], examples)


def steer(lm: LM, heads: Iterable[Head | str], examples: Iterable[Example], to: Where) -> Score:
    """Score examples while these heads' last row attends to some positions alone, and writes what it fetches.

    Softmax attention: the weights of all other positions are 0, those of the positions what softmax makes of
    their logits. An SSM, whose implicit attention has no softmax: the row's other entries are 0, and those of
    the positions are scaled until their sizes add up to what the whole row's did.

    Args:
        to: the positions, for each example at least one (see `segments.positions`).

    Raises:
        ValueError: no heads or a head the model lacks; no examples; an example without positions; positions
            that are all out of a head's sliding window; an SSM head that gives nothing to them.
    """
    heads, examples = _some(lm, heads), list(examples)
    if not examples:
        raise ValueError("no examples to steer: the list is empty")
    places = [positions(lm, example, to) for example in examples]
    if not all(places):
        raise ValueError(f"example {places.index([])}: no position to attend to")
    last = [positions(lm, example, "last")[0] for example in examples]
    with lm.edited(f"steered: {', '.join(map(str, heads))}") as edit:
        use_ours(lm, edit)
        for mixer in lm.mixers:
            numbers = [number for number in mixer.heads if Head(mixer.layer, number) in heads]
            if numbers:
                look_at(lm, edit, mixer, numbers, last, places)
        return Score.of(logprobs_of(lm, rows_of(lm, examples), share=False)[0], examples)


def patch_state(
    lm: LM,
    heads: Iterable[Head | str],
    examples: Iterable[Example],
    sources: Iterable[Example],
    at: Where,
    cache: str = "state",
) -> Score:
    """Score examples while SSM heads go on, behind a position, from what they kept of another text.

    The state after that position is all that a head keeps of what it has read, but for the last inputs of the
    short convolution: with four taps, the three tokens up to there. The two can be exchanged apart.

    Args:
        heads: of SSM mixers.
        sources: one example for each of `examples`.
        at: one position in each example and in its source (see `segments.positions`).
        cache: "state", "conv" (these heads read what the convolution makes as if the source's tokens stood
            before), or "both". With all heads of a layer, "both" is Hugging Face's whole cache of that layer.

    Raises:
        ValueError: no heads, a head the model lacks, or one of attention; not one source for each example;
            not exactly one position; another `cache`.
    """
    heads, (examples, sources) = _some(lm, heads), _paired(examples, sources)
    if cache not in ("state", "conv", "both"):
        raise ValueError(f'cache={cache!r}: expected "state", "conv" or "both"')
    mixers = [mixer for mixer in lm.mixers if any(Head(mixer.layer, n) in heads for n in mixer.heads)]
    for mixer in mixers:
        if mixer.kind == "attention":
            raise ValueError(
                f"{min(h for h in heads if h.layer == mixer.layer)} is a head of attention: it keeps no state"
            )
    to, of = ([_only_one(lm, example, at) for example in some] for some in (examples, sources))
    kept = record(lm, mixers, _texts(lm, sources), _watch_input)  # a mixer, a source: [pos, d_model]
    with lm.edited(f"going on from another {cache}: {', '.join(map(str, heads))}") as edit:
        edit.varies_from = dict(zip(examples, to)).get
        for mixer, inputs in zip(mixers, kept):
            ours = [n - mixer.first for n in mixer.heads if Head(mixer.layer, n) in heads]
            read = [hidden[: position + 1] for hidden, position in zip(inputs, of)]
            go_on(lm, edit, mixer, ours, to, read, cache)
        return Score.of(logprobs_of(lm, rows_of(lm, examples), share=False)[0], examples)


def read_state(lm: LM, examples: Iterable[Example], layer: int, at: Where = "last") -> torch.Tensor:
    """What an SSM layer keeps of each prompt after a position: states [n, n_heads, d_head, d_state], float32.

    They lie on the CPU, as all that `ga` returns. A float64 model's stay float64.

    Raises:
        ValueError: no examples; the layer has no SSM; not exactly one position in a prompt.
    """
    examples = list(examples)
    if not examples:
        raise ValueError("no examples to read the state of: the list is empty")
    mixers = [mixer for mixer in lm.mixers if mixer.layer == layer and mixer.kind != "attention"]
    if not mixers:
        having = sorted({mixer.layer for mixer in lm.mixers if mixer.kind != "attention"})
        raise ValueError(f"layer {layer} of {lm.name} keeps no state: layers with an SSM are {having}")
    read = record(lm, mixers, _texts(lm, examples), _watch_input)[0]
    places = [_only_one(lm, example, at) for example in examples]
    with weights_of(mixers[0].module):
        scans = (scan_of(mixers[0].module, hidden[: place + 1]) for hidden, place in zip(read, places))
        return torch.stack([scan.state(range(mixers[0].n_heads)).cpu() for scan in scans])


def _texts(lm: LM, examples: list[Example]) -> list[Row]:
    """One text of each example, its prompt and a choice: "last" may lie behind the prompt."""
    texts = {row.index: row for row in rows_of(lm, examples)}
    return [texts[index] for index in range(len(examples))]


def _watch_input(edit: Edit, mixer: Mixer, keep: Callable) -> None:
    edit.hook(
        mixer.module.register_forward_pre_hook,
        lambda module, args, kwargs: keep(mixer_input(args, kwargs)),
        with_kwargs=True,
    )


def _only_one(lm: LM, example: Example, at: Where) -> int:
    found = positions(lm, example, at)
    if len(found) != 1:
        raise ValueError(f"{len(found)} positions: a state is exchanged at one position of each prompt")
    return found[0]


def _some(lm: LM, heads: Iterable[Head | str]) -> list[Head]:
    heads = sorted(set(check_heads(lm, heads)))
    if not heads:
        raise ValueError("no heads given: name at least one, such as ['L1H0']")
    return heads


def _paired(examples: Iterable[Example], sources: Iterable[Example]) -> tuple[list[Example], list[Example]]:
    examples, sources = list(examples), list(sources)
    if len(examples) != len(sources) or not examples:
        raise ValueError(f"{len(examples)} examples and {len(sources)} sources: expected one source for each")
    return examples, sources


def _later(lm: LM, through: Iterable[Head | str], heads: list[Head]) -> list[Head]:
    receivers = _some(lm, through)
    if receivers[0].layer <= heads[-1].layer:
        raise ValueError(
            f"through {receivers[0]}: only heads in layers after {heads[-1]} can receive its change"
        )
    return receivers


def _columns(mixer: Mixer, heads: list[Head], device: torch.device) -> torch.Tensor:
    """Which columns of a mixer's z belong to these heads: bool [n_heads * d_head]."""
    ours = [Head(mixer.layer, number) in heads for number in mixer.heads]
    return torch.tensor(ours, device=device).repeat_interleave(mixer.d_head)


def _writer(
    lm: LM, heads: list[Head], to: list[list[int]], written: dict[tuple[int, int], list[torch.Tensor]]
) -> Callable[[Mixer, torch.Tensor], torch.Tensor]:
    """A function that puts the sources' z into z [row, pos, n_heads * d_head] of a mixer, a copy of it."""

    def write(mixer: Mixer, z: torch.Tensor) -> torch.Tensor:
        z, span = z.clone(), lm.running
        if (mixer.layer, mixer.first) not in written:
            return z
        rows, places, values = [], [], []
        for row, index in enumerate(span.indices):
            for number, position in enumerate(to[index] if index >= 0 else []):
                if 0 <= position - span.start < z.shape[1]:
                    rows.append(row)
                    places.append(position - span.start)
                    values.append(written[mixer.layer, mixer.first][index][number])
        if rows:
            columns = _columns(mixer, heads, z.device)
            z[rows, places] = torch.where(columns, torch.stack(values), z[rows, places])
        return z

    return write


def _path(lm: LM, mixer: Mixer, write: Callable[[Mixer, torch.Tensor], torch.Tensor], receivers: list[Head]):
    """A hook on z of three copies of a batch.

    CLEAN: nothing is changed. SENT: the patched heads' change is on its way, all other heads are frozen.
    RECEIVED: the result, in which the receivers write what they make of that change.
    """

    def change(z):
        if not lm.running.indices:  # nobody's text, in one copy: finds out how the model continues
            return None
        z = z.unflatten(0, (3, -1)).clone()  # [copy, row, pos, n_heads * d_head]
        received = _columns(mixer, receivers, z.device)
        z[RECEIVED] = torch.where(received, z[SENT], z[RECEIVED])
        z[SENT] = write(mixer, z[CLEAN])
        return z.flatten(0, 1)

    return change
