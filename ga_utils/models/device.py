"""What this machine offers a model: its devices, the dtype that suits each, free memory and disk space."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

GB = 1e9  # bytes; sizes in the course are decimal, as on the Hugging Face hub
AMPERE = (8, 0)  # compute capability of the first NVIDIA GPUs with fast bfloat16
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)
}
DTYPES |= {"float64": torch.float64}  # for checks of numbers; no checkpoint is stored in it


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
    except (RuntimeError, TypeError):  # not the name of any device
        wanted = None
    if (
        wanted is None
        or (wanted if wanted.index is not None else torch.device(wanted.type, 0)) not in available
    ):
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        names = ", ".join(str(known) if known.type == "cuda" else known.type for known in available)
        raise ValueError(f"device={device!r}: this machine has {names} (torch {torch.__version__}, {build})")
    return wanted


def _devices() -> list[torch.device]:
    """All devices of this machine that the course can use, each with its index."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = [torch.device("mps", 0)] if torch.backends.mps.is_available() else []
    return [torch.device("cpu", 0), *(torch.device("cuda", i) for i in range(gpus)), *apple]


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


def free_disk_gb(folder: Path) -> float:
    """Free space on the disk where `folder` is, or will be, in units of 10^9 bytes."""
    while not folder.exists():
        folder = folder.parent
    return psutil.disk_usage(str(folder)).free / GB
