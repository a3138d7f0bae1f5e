"""What this machine offers a model: its devices, the dtype that suits each, free memory and disk space."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import torch
from accelerate.utils import align_module_device
from huggingface_hub import constants
from torch import nn

GB = 1e9  # bytes; sizes in the course are decimal, as on the Hugging Face hub
AMPERE = (8, 0)  # compute capability of the first NVIDIA GPUs with fast bfloat16
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,  # to tell rounding from a fault
}


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device that a model goes to.

    Args:
        device: "auto" is the first NVIDIA GPU if there is one, else the CPU. Otherwise a name such as "cpu",
            "cuda", "cuda:1" or "mps". An Apple GPU ("mps") is never taken unasked: it has no float64.

    Raises:
        ValueError: this machine has no such device; names those it has.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = _devices()
    try:
        wanted = torch.device(device)
        if (wanted.index or 0) < available.get(wanted.type, 0):
            return wanted
    except (RuntimeError, TypeError):
        pass  # not the name of any device
    numbered = [f"cuda:{i}" for i in range(available["cuda"])]
    names = ", ".join(["cpu", *numbered, *["mps"] * available["mps"]])
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    raise ValueError(f"device={device!r}: this machine has {names} (torch {torch.__version__}, {build})")


def _devices() -> dict[str, int]:
    """How many devices of each kind that the course can use are here."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"cpu": 1, "cuda": cuda, "mps": int(torch.backends.mps.is_available())}


def choose_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """The floating-point type that a model's weights are read in.

    Args:
        dtype: a torch dtype or its name, with or without "torch.". "auto" is float32 on a CPU, so that
            results repeat; on an NVIDIA GPU bfloat16, or float16 where bfloat16 is not native (T4); on an
            Apple GPU float16.

    Raises:
        ValueError: no such type, or one that the device can't compute in; names those that are accepted.
    """
    device = torch.device(device)
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE
        return torch.bfloat16 if native else torch.float16
    accepted = {name: kind for name, kind in DTYPES.items() if (device.type, name) != ("mps", "float64")}
    found = accepted.get(str(dtype).removeprefix("torch."))
    if found is None:
        names = ", ".join(["auto", *accepted])
        raise ValueError(
            f"dtype={dtype!r}: on {device.type} give one of {names}, or the torch dtype of that name"
        )
    return found


def free_gb(device: str | torch.device) -> float:
    """Memory that is free now, on the GPU or of the machine, in units of 10^9 bytes."""
    machine = psutil.virtual_memory().available
    match torch.device(device).type:
        case "cuda":
            return torch.cuda.mem_get_info(device)[0] / GB
        case "mps":  # an Apple GPU shares the machine's memory, and may use only a part of it
            return min(machine, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()) / GB
    return machine / GB


def fetched(module: nn.Module, name: str = "weight") -> torch.Tensor:
    """A module's weight, also where accelerate keeps it in memory or on disk until the module runs."""
    weight = getattr(module, name)
    if not weight.is_meta:
        return weight.detach()
    with align_module_device(module):
        return getattr(module, name).detach()


@contextmanager
def weights_of(module: nn.Module) -> Iterator[None]:
    """Inside, all weights of a module are there, also where accelerate keeps them until each part runs."""
    with ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(align_module_device(part))
        yield


def check_loaded(module: nn.Module, what: str) -> None:
    """Raises a ValueError if weights of a module are offloaded: then they are read anew before each run, and
    what has been changed in them is lost.
    """
    if any(p.is_meta for p in module.parameters()):
        raise ValueError(
            f"{what} has weights that are offloaded, and read anew before each run, so they can't be "
            'replaced: load the model whole, for example with device_map={"": "cpu"}'
        )


def cache_dir() -> Path:
    """Where results are kept that took long to make: the folder `ga_utils` in Hugging Face's (`HF_HOME`)."""
    return Path(constants.HF_HOME) / "ga_utils"


def free_disk_gb(folder: Path) -> float:
    """Free space on the disk where `folder` is, or will be, in units of 10^9 bytes."""
    while not folder.exists():
        folder = folder.parent
    return psutil.disk_usage(str(folder)).free / GB
