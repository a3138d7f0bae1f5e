"""What this machine can run, in one screen: `ga.doctor()` in a notebook, `python -m ga_utils` in a terminal."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

from ga_utils.models import hub
from ga_utils.models.catalog import MODELS, ROOM, TINY
from ga_utils.models.device import GB, default_device, default_dtype, free_disk_gb, free_gb

PACKAGES = ("causal-conv1d", "mamba-ssm")
AMPERE = 8  # compute capability 8.0


@dataclass(frozen=True)
class Report:
    """facts: what -> finding. models: a table, one row for each model of the paper. advice: what to do next, in order."""

    facts: dict[str, str]
    models: pd.DataFrame
    advice: list[str]

    def __repr__(self):
        width = max(map(len, self.facts))
        facts = "\n".join(f"{what:{width}}  {finding}" for what, finding in self.facts.items())
        advice = "\n".join(f"- {line}" for line in self.advice)
        return f"{facts}\n\n{self.models.to_string(index=False)}\n\n{advice}"

    def _repr_html_(self):
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(a)}</th><td style='text-align:left'>{escape(b)}</td></tr>"
            for a, b in self.facts.items()
        )
        advice = "".join(f"<li>{escape(line)}</li>" for line in self.advice)
        return f"<table>{rows}</table>{self.models.to_html(index=False)}<ul>{advice}</ul>"


def doctor() -> Report:
    """Look at Python, the packages, the GPU, memory, kernels and token; say which models fit. Nothing is downloaded."""
    device = default_device()
    dtype, free = default_dtype(device), free_gb(device)
    no_kernels = why_no_kernels()
    facts = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers")
        + ("" if _in_range("transformers") else " (outside the tested range)"),
        "GPU": _gpu() if device == "cuda" else "none",
        "free memory": f"{free:.1f} GB of the {'GPU' if device == 'cuda' else 'machine'}, models are read in {_name(dtype)}",
        "free disk": f"{free_disk_gb(Path(constants.HF_HUB_CACHE)):.0f} GB for downloads",
        "mamba-ssm kernels": no_kernels or "installed",
        "real data sets": "datasets " + version("datasets")
        if find_spec("datasets")
        else 'no: pip install "ga-utils[eval]"',
        "hub token": "present" if hub.token() else "none (needed for gated models only)",
    }
    models = pd.DataFrame([_row(name, dtype, free) for name in MODELS])
    return Report(facts, models, _advice(device, no_kernels, models))


def _row(name: str, dtype: torch.dtype, free: float) -> dict[str, object]:
    entry = MODELS[name]
    fits = entry.fitting_layers(dtype, free)
    if fits == entry.layers:
        runs = "whole"
    elif fits == 0:
        runs = "no"
    else:
        runs = f"first {fits} layers" + (
            ", too few for the paper's heads" if entry.minimal and fits < entry.minimal else ""
        )
    return {
        "model": name,
        "layers": entry.layers,
        f"GB in {_name(dtype)}": round(entry.size(dtype), 1),
        "paper's first layers": f"{entry.minimal} ({entry.size(dtype, entry.minimal):.1f} GB)"
        if entry.minimal
        else "",
        "runs here": runs,
        "least GPU": _least_gpu(name),
        "licence": entry.licence,
    }


def _least_gpu(name: str) -> str:
    """The smallest usual GPU for the paper's experiment: the minimal model where the paper has one."""
    need = MODELS[name].size(torch.float16, MODELS[name].minimal) + ROOM
    return next(
        (f"{gpu} ({gb} GB)" for gpu, gb in (("T4", 15), ("L4", 22), ("A100", 40)) if need <= gb), "80 GB"
    )


def _advice(device: str, no_kernels: str | None, models: pd.DataFrame) -> list[str]:
    advice = [f"MODEL = {TINY[0]!r} and the other tiny models run here, offline."]
    whole = models[models["runs here"] == "whole"]["model"].tolist()
    if whole:
        advice.append(f"Whole models that fit: {', '.join(whole)}.")
    parts = models[
        models["runs here"].str.startswith("first") & ~models["runs here"].str.contains("too few")
    ]["model"].tolist()
    if parts:
        advice.append(f"In part, with load_model(name, n_layers=...): {', '.join(parts)}.")
    if device == "cpu":
        advice.append(
            "There is no GPU: models of 1B and more fit, perhaps, but take minutes for each call. "
            "In Colab: Runtime, Change runtime type, T4 GPU."
        )
    elif no_kernels:
        advice.append("Mamba-1 models (Falcon-Mamba) are slow without kernels: use few prompts (n=20).")
    if not _in_range("transformers"):
        advice.append(
            f'Wrong transformers: pip install "{_requirement("transformers")}", then restart the session.'
        )
    return advice


def _gpu() -> str:
    at = torch.cuda.get_device_properties(0)
    native = "bfloat16" if at.major >= 8 else "no fast bfloat16, so float16"
    return f"{at.name}, {at.total_memory / GB:.1f} GB, {native}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _requirement(package: str) -> Requirement:
    return next(r for r in map(Requirement, requires("ga-utils") or ()) if r.name == package)


def _in_range(package: str) -> bool:
    try:
        return _requirement(package).specifier.contains(version(package), prereleases=True)
    except (PackageNotFoundError, StopIteration):  # the package is used from its folder, not installed
        return True


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
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--no-build-isolation", *PACKAGES], check=True
        )
        print(
            "Now restart the session (Runtime, Restart session): kernels are looked for when the course is imported. "
            "Then run this cell again: it checks them."
        )


@torch.no_grad()
def check_kernels(tolerance: float = 1e-2) -> float:
    """Largest relative difference between kernel and plain PyTorch on random inputs, Mamba-1 and Mamba-2 (float32)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    from ga_utils.models.llamba import ssd

    torch.manual_seed(0)
    x, B, C = (torch.randn(2, 100, 4, size, device="cuda") for size in (64, 16, 16))
    dt, A = torch.rand(2, 100, 4, device="cuda"), -torch.rand(4, device="cuda")
    fast = mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=64)
    plain, _ = ssd(x * dt[..., None], dt * A, B, C, 64)
    worst = _difference(fast, plain)

    # Mamba-1 is Mamba-2 with a decay for each channel and state: there the recurrence itself is the reference.
    x, dt, A = (
        torch.randn(2, 32, 50, device="cuda"),
        torch.rand(2, 32, 50, device="cuda"),
        -torch.rand(32, 8, device="cuda"),
    )
    B, C = torch.randn(2, 8, 50, device="cuda"), torch.randn(2, 8, 50, device="cuda")
    h, steps = x.new_zeros(2, 32, 8), []
    for t in range(50):
        h = (dt[:, :, t, None] * A).exp() * h + dt[:, :, t, None] * B[:, None, :, t] * x[:, :, t, None]
        steps.append((h * C[:, None, :, t]).sum(-1))
    worst = max(worst, _difference(selective_scan_fn(x, dt, A, B, C), torch.stack(steps, -1)))
    if worst > tolerance:
        raise RuntimeError(
            f"mamba-ssm's kernels differ from plain PyTorch by {worst:.1%}: uninstall {' and '.join(PACKAGES)}"
        )
    return worst


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()
