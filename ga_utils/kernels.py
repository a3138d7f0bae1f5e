"""mamba-ssm's CUDA kernels: whether this GPU can have them, and whether they agree with plain PyTorch.

The course runs without them, and has not been run with them. They are compiled, which takes long, unless the project
offers a wheel for just this Python, torch and CUDA; Triton, which the Mamba-2 kernel needs, no longer supports GPUs before
Ampere (a T4 is one).
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import torch

PACKAGES = ("causal-conv1d", "mamba-ssm")
AMPERE = 8  # compute capability 8.0


def why_no_kernels() -> str | None:
    """None if mamba-ssm's kernels can be used here, else the reason."""
    if not torch.cuda.is_available():
        return "no GPU"
    if torch.cuda.get_device_capability()[0] < AMPERE:
        return "this GPU is older than Ampere, which Triton needs"
    missing = [package for package in PACKAGES if not find_spec(package.replace("-", "_"))]
    return f"{', '.join(missing)} not installed: ga.install_kernels()" if missing else None


def install_kernels() -> None:
    """Install mamba-ssm's kernels where the GPU allows, or check them if they are there; says what to do next.

    Raises:
        RuntimeError: they are installed and give other numbers than plain PyTorch.
    """
    reason = why_no_kernels()
    if reason is None:
        print("kernels agree with plain PyTorch, largest difference", f"{check_kernels():.1e}")
    elif "not installed" not in reason:
        print(f"No kernels here: {reason}. Plain PyTorch serves instead; nothing else changes.")
    else:
        print("Installing; without a ready wheel this compiles, which takes long.")
        subprocess.run([sys.executable, "-m", "pip", "install", "--no-build-isolation", *PACKAGES], check=True)
        print("Now restart the session (Runtime, Restart session): kernels are looked for when the course is imported. "
              "Then run this cell again: it checks them.")  # fmt: skip


@torch.no_grad()
def check_kernels(tolerance: float = 1e-2) -> float:
    """Largest relative difference between kernel and plain PyTorch on random inputs, Mamba-1 and Mamba-2 (float32)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    from ga_utils.llamba import ssd

    torch.manual_seed(0)
    x, B, C = (torch.randn(2, 100, 4, size, device="cuda") for size in (64, 16, 16))
    dt, A = torch.rand(2, 100, 4, device="cuda"), -torch.rand(4, device="cuda")
    fast = mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=64)
    plain, _ = ssd(x * dt[..., None], dt * A, B, C, 64)
    worst = _difference(fast, plain)

    # Mamba-1 is Mamba-2 with a decay for each channel and state: there the recurrence itself is the reference.
    x, dt, A = torch.randn(2, 32, 50, device="cuda"), torch.rand(2, 32, 50, device="cuda"), -torch.rand(32, 8, device="cuda")
    B, C = torch.randn(2, 8, 50, device="cuda"), torch.randn(2, 8, 50, device="cuda")
    h, steps = x.new_zeros(2, 32, 8), []
    for t in range(50):
        h = (dt[:, :, t, None] * A).exp() * h + dt[:, :, t, None] * B[:, None, :, t] * x[:, :, t, None]
        steps.append((h * C[:, None, :, t]).sum(-1))
    worst = max(worst, _difference(selective_scan_fn(x, dt, A, B, C), torch.stack(steps, -1)))
    if worst > tolerance:
        raise RuntimeError(f"mamba-ssm's kernels differ from plain PyTorch by {worst:.1%}: uninstall {' and '.join(PACKAGES)}")
    return worst


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()
