"""The optional CUDA kernels of mamba-ssm: are they here, install them, check them.

They make SSMs faster and leaner on a GPU; everything runs without them. They are for 16-bit models: in
float32 they are off by 2e-3, plain PyTorch by 8e-6. In every session the first call of each kernel compiles
for tens of seconds.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec

import torch

from ga_utils.models.device import AMPERE, choose_dtype
from ga_utils.models.discrete_mamba2 import ssd

PACKAGES = ("causal-conv1d", "mamba-ssm")
BUILD_HERE = "--no-build-isolation"  # of pip; else it builds against another torch than the one installed


def why_no_kernels(kind: str = "mamba") -> str | None:
    """None if kernels for a kind of scan can be used here, else the reason.

    kind: "deltanet" asks for flash-linear-attention's, which Hugging Face takes for Gated DeltaNet; anything
        else for mamba-ssm's.
    """
    if reason := _unfit_gpu():
        return reason
    if kind == "deltanet":
        return None if find_spec("fla") else "not installed: pip install flash-linear-attention"
    if missing := _missing_packages():
        return f"{', '.join(missing)} not installed: ga.install_kernels()"
    try:
        for module in ("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.selective_scan_interface"):
            import_module(module)
    except ImportError as error:  # built for another torch, or too old for this transformers
        return f"installed, but can't be imported ({error})"
    return None


def _unfit_gpu() -> str | None:
    """Why this machine's GPU can't run the kernels; None if it can."""
    if not torch.cuda.is_available():
        return "no GPU"
    if torch.cuda.get_device_capability() < AMPERE:
        return "this GPU is older than Ampere, which Triton needs"
    return None


def _missing_packages() -> list[str]:
    return [package for package in PACKAGES if not any(distributions(name=package))]


def install_kernels() -> None:
    """Install mamba-ssm's kernels if the GPU can run them, or check them if they are there.

    Prints what happened and what to do next.

    Where no ready-made wheel fits they are compiled, which takes many minutes. If that fails, nothing stays
    installed. In every session the first call of each kernel compiles for tens of seconds.

    Raises:
        RuntimeError: the kernels are installed and give other numbers than plain PyTorch.
    """
    if reason := _unfit_gpu():
        print(f"No kernels here: {reason}. Plain PyTorch serves instead; nothing else changes.")
        return
    missing = _missing_packages()
    if not missing and (reason := why_no_kernels()):
        print(f"The kernels are {reason}.")
        print(f"Install them anew: pip install --force-reinstall --no-deps {BUILD_HERE} {' '.join(PACKAGES)}")
        return
    if not missing:
        print("Checking the kernels; the first call of each compiles for tens of seconds.")
        print(f"The kernels agree with plain PyTorch, largest difference {check_kernels():.1e}.")
        return
    print(f"Installing {' and '.join(missing)}. Without a ready-made wheel this compiles for many minutes.")
    if problem := _install_together(missing):
        print(f"The kernels could not be installed, and nothing was changed. pip says: {problem}")
        print(
            "Plain PyTorch goes on serving. To try again you need internet and, where no ready-made wheel "
            f"fits, a C++ compiler, nvcc of CUDA {torch.version.cuda}, and setuptools, wheel and ninja."
        )
    else:
        print(
            "Now restart the session (Runtime, Restart session): kernels are looked for when the course is "
            "imported. Then run this cell again: it checks them."
        )


def _install_together(packages: list[str]) -> str | None:
    """Install all of these packages, none of which is there yet, or leave none of them behind.

    Returns:
        None, or the line of pip's output that says best what went wrong.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    done = None
    try:
        command = [*pip, "install", BUILD_HERE, *packages]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:  # also after Ctrl-C
        if done is None or done.returncode:
            subprocess.run([*pip, "uninstall", "-y", *packages], capture_output=True)
    return _telling_line(done.stdout) if done.returncode else None


def _telling_line(output: str) -> str:
    """The line of pip's output that says what went wrong: a failed build's last, else pip's last error."""
    lines = [line.strip(" │╰─>×") for line in output.splitlines() if line.strip()] or ["nothing"]
    if any("Retrying (" in line for line in lines):
        return "no connection to the package index"
    if "[end of output]" in lines:
        return lines[max(0, lines.index("[end of output]") - 1)]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines)[-1]


@torch.no_grad()
def check_kernels(tolerance: float = 2e-2) -> float:
    """Compare both kernels in 16 bit with plain PyTorch in float32, on the same random inputs.

    Returns:
        The largest difference, relative to the largest output. Rounding an output to bfloat16 makes 4e-3.

    Raises:
        RuntimeError: the difference exceeds `tolerance`.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    torch.manual_seed(0)
    half = {"device": "cuda", "dtype": choose_dtype("auto", "cuda")}
    x, B, C = (torch.randn(2, 100, 4, size, **half) for size in (64, 16, 16))
    dt, A = torch.rand(2, 100, 4, **half), -torch.rand(4, device="cuda")
    fast = mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=64)
    x, dt, B, C = (part.float() for part in (x, dt, B, C))
    plain, _ = ssd(x * dt[..., None], dt * A, B, C, 64)
    worst = _relative_difference(fast, plain)

    # Mamba-1's decay differs by channel and state; the recurrence itself is the reference.
    x, dt = torch.randn(2, 32, 50, **half), torch.rand(2, 32, 50, **half)
    B, C, A = torch.randn(2, 8, 50, **half), torch.randn(2, 8, 50, **half), -torch.rand(32, 8, device="cuda")
    fast = selective_scan_fn(x, dt, A, B, C)
    x, dt, B, C = (part.float() for part in (x, dt, B, C))
    h, steps = x.new_zeros(2, 32, 8), []
    for t in range(50):
        h = (dt[:, :, t, None] * A).exp() * h + dt[:, :, t, None] * B[:, None, :, t] * x[:, :, t, None]
        steps.append((h * C[:, None, :, t]).sum(-1))
    worst = max(worst, _relative_difference(fast, torch.stack(steps, -1)))
    if worst > tolerance:
        raise RuntimeError(
            f"mamba-ssm's kernels differ from plain PyTorch by {worst:.1%}: "
            f"uninstall {' and '.join(PACKAGES)}"
        )
    return worst


def _relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b).abs().max() / b.abs().max()).item()
