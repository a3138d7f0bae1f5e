"""Which models the course knows: where they are, how large, under what licence, and what runs on this machine.

The tiny models ship in `data/models`. The paper's are on the Hugging Face hub; no figure in this course was measured
on one of those checkpoints. A revision is a commit of the hub's repository; None means that no commit was known when this
was written: `load_model` then takes the newest one and prints which, so that you can note it down.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from ga_utils.models.device import free_gb

TINY = (
    "tiny-llama",
    "tiny-llama-minimal",
    "tiny-llamba-unaligned",
    "tiny-llamba",
    "tiny-mamba2-d4",
    "tiny-mamba2",
    "tiny-mamba2-d16",
    "tiny-falcon-mamba",
    "tiny-zamba2",
)
ROOM = 1.5  # GB beside the weights, for activations, logits and the GPU's own context


@dataclass(frozen=True)
class Source:
    """A repository on the Hugging Face hub, and the commit of it that the course uses."""

    repo: str
    revision: str | None = None


@dataclass(frozen=True)
class Entry:
    """One model of the paper.

    sources: tried in this order; the first ones are mirrors without a gate, where the licence allows them.
    layers: number of decoder layers. gb: weights in 16 bit, in units of 10^9 bytes. fixed_gb: the part of them that
    any number of first layers needs (embeddings, output head, shared blocks); for zamba2-2.7b and -1.2b a guess, since
    their shapes are not at hand.
    minimal: first layers up to the Aggregate layer, the paper's minimal model. gather, aggregate: the paper's heads.
    tokenizer: where it comes from if not from `sources`.
    """

    sources: tuple[Source, ...]
    licence: str
    layers: int
    gb: float
    fixed_gb: float
    minimal: int | None = None
    gather: tuple[str, ...] = ()
    aggregate: tuple[str, ...] = ()
    tokenizer: Source | None = None

    def size(self, dtype: torch.dtype, n_layers: int | None = None) -> float:
        """GB of weights of the first `n_layers` layers (all by default)."""
        part = (n_layers or self.layers) / self.layers
        return (self.fixed_gb + part * (self.gb - self.fixed_gb)) * dtype.itemsize / 2

    def fitting_layers(self, dtype: torch.dtype, free_gb: float) -> int:
        """How many first layers fit into so much memory, 0 if none."""
        each = (self.gb - self.fixed_gb) / self.layers * dtype.itemsize / 2
        return max(0, min(self.layers, int((free_gb - ROOM - self.fixed_gb * dtype.itemsize / 2) / each)))


LLAMA_8B = (
    Source("unsloth/Meta-Llama-3.1-8B-Instruct", "a2856192dd7c25b842431f39c179a6c2c2f627d1"),
    Source("meta-llama/Llama-3.1-8B-Instruct", "0e9e39f249a16976918f6564b8830bc894c89659"),
)
LLAMA_1B = (Source("unsloth/Llama-3.2-1B-Instruct", "5a8abab4a5d6f164389b1079fb721cfab8d7126c"),)
FALCON_GATHER = tuple(f"L35H{channel}" for channel in (3186, 5143, 6607, 7305))
FALCON_AGGREGATE = tuple(f"L36H{channel}" for channel in (1565, 1906, 3873, 4925))

MODELS = {
    "llama-3.1-8b-instruct": Entry(
        LLAMA_8B, "Llama 3.1 Community License", 32, 16.06, 2.10, 18, ("L16H22",), ("L17H24",)
    ),
    "llama-3.2-1b": Entry(LLAMA_1B, "Llama 3.2 Community License", 16, 2.47, 0.53),
    "llamba-8b": Entry(
        (Source("cartesia-ai/Llamba-8B-untied"),),
        "see the model's card",
        32,
        17.68,
        2.10,
        18,
        ("L16H10",),
        ("L17H3", "L17H9"),
        LLAMA_8B[0],
    ),
    "llamba-8b-unaligned": Entry(
        (Source("goombalab/Llamba-8B-untied-unaligned"),),
        "see the model's card",
        32,
        17.68,
        2.10,
        18,
        tokenizer=LLAMA_8B[0],
    ),
    "llamba-1b": Entry(
        (Source("cartesia-ai/Llamba-1B"),), "see the model's card", 16, 2.81, 0.53, tokenizer=LLAMA_1B[0]
    ),
    "falcon-mamba-7b-instruct": Entry(
        (Source("tiiuae/falcon-mamba-7b-instruct"),),
        "TII Falcon-Mamba License 2.0",
        64,
        14.55,
        1.07,
        37,
        FALCON_GATHER,
        FALCON_AGGREGATE,
    ),
    "zamba2-7b": Entry((Source("Zyphra/Zamba2-7B"),), "Apache-2.0", 81, 14.71, 1.67),
    "zamba2-2.7b": Entry(
        (Source("Zyphra/Zamba2-2.7B", "31afeeac4c66b4851a54290ba57c995a68c87861"),),
        "Apache-2.0",
        54,
        5.37,
        0.9,
    ),
    "zamba2-1.2b": Entry((Source("Zyphra/Zamba2-1.2B"),), "Apache-2.0", 38, 2.43, 0.4),
    "mamba2-130m": Entry(
        (Source("AntonV/mamba2-130m-hf", "05e8773fc4ac1cd067e8a18a5c45372ce5178405"),),
        "Apache-2.0",
        24,
        0.26,
        0.08,
    ),
    "mamba2-1.3b": Entry((Source("AntonV/mamba2-1.3b-hf"),), "Apache-2.0", 48, 2.69, 0.21),
}


def layers_to_load(name: str, device: str, dtype: torch.dtype, n_layers: int | str | None) -> int | None:
    """Say before anything is downloaded whether a model of the paper fits.

    "fit": as many first layers as do. "minimal": those of the paper's minimal model, where it has one, else as "fit".

    Returns: the number of layers to load, None for all.

    Raises:
        ValueError: it does not fit into the memory that is free, or `n_layers` is out of range; says what would.
    """
    entry, free = MODELS[name], free_gb(device)
    fitting = entry.fitting_layers(dtype, free)
    if n_layers == "minimal":
        n_layers = entry.minimal or "fit"
    if n_layers == "fit":
        n_layers = None if fitting == entry.layers else max(fitting, 1)
        if n_layers:
            warnings.warn(
                f"{name}: {n_layers} of {entry.layers} layers fit into {free:.1f} GB; those are loaded",
                stacklevel=3,
            )
    if n_layers is not None and not 1 <= n_layers <= entry.layers:
        raise ValueError(f"n_layers={n_layers}: {name} has {entry.layers} layers, ask for 1 or more of them")
    if (n_layers or entry.layers) > fitting:
        wanted = f"{n_layers} layers of {name}" if n_layers else name
        advice = f"n_layers={fitting} would fit" if fitting else "a smaller model, or a larger GPU, is needed"
        if entry.minimal and fitting >= entry.minimal:
            advice += f" (the paper's minimal model has {entry.minimal})"
        raise ValueError(
            f"{wanted} in {str(dtype).removeprefix('torch.')} takes {entry.size(dtype, n_layers):.1f} GB and {ROOM} GB to work "
            f"in; {torch.device(device).type} has {free:.1f} GB free: {advice}. ga.doctor() shows what this machine can run"
        )
    return n_layers
