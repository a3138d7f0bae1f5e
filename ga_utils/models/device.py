"""What this machine offers a model: its device, the dtype that suits it, memory and disk space that are free."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

GB = 1e9


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str | torch.device) -> torch.dtype:
    """float32 on a CPU, so that results repeat; on a GPU bfloat16, or float16 where bfloat16 is not native (T4)."""
    if torch.device(device).type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def free_gb(device: str | torch.device) -> float:
    """Memory that is free now, on the GPU or of the machine, in units of 10^9 bytes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GB
    return psutil.virtual_memory().available / GB


def free_disk_gb(folder: Path) -> float:
    """Free space where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return psutil.disk_usage(str(folder)).free / GB
