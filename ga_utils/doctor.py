"""What this machine can run, on one screen: `ga.doctor()` in a notebook, `python -m ga_utils` in a shell."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import constants, get_token
from packaging.requirements import Requirement

from ga_utils.models.catalog import MODELS, TINY, WORKING_GB
from ga_utils.models.device import AMPERE, GB, choose_device, choose_dtype, free_disk_gb, free_gb
from ga_utils.models.kernels import why_no_kernels
from ga_utils.models.scan_memory import plain_scan_bytes

USUAL_GPUS = (("T4", 15), ("L4", 22), ("A100", 40))  # name, GB of memory that a model can use
PROMPTS, TOKENS = 16, 60  # the batch for which the report says what a scan takes without kernels


@dataclass(frozen=True)
class Report:
    """What `doctor` found, readable in a terminal and in a notebook.

    facts: what was looked at -> what was found. models: a table, one row for each model of the paper.
    advice: what to do next, in order.
    """

    facts: dict[str, str]
    models: pd.DataFrame
    advice: list[str]

    def __repr__(self):
        width = max(map(len, self.facts))
        facts = "\n".join(f"{what:{width}}  {finding}" for what, finding in self.facts.items())
        advice = "\n".join(f"- {line}" for line in self.advice)
        return f"{facts}\n\n{self.models.to_string(index=False)}\n\n{advice}"

    def _repr_html_(self):
        left = "style='text-align:left'"
        rows = "".join(
            f"<tr><th {left}>{escape(what)}</th><td {left}>{escape(finding)}</td></tr>"
            for what, finding in self.facts.items()
        )
        advice = "".join(f"<li>{escape(line)}</li>" for line in self.advice)
        return f"<table>{rows}</table>{self.models.to_html(index=False)}<ul>{advice}</ul>"


def doctor() -> Report:
    """Look at Python, packages, GPU, memory, kernels and token; say which models fit. Downloads nothing."""
    device = choose_device()
    dtype, free = choose_dtype("auto", device), free_gb(device)
    no_kernels, no_deltanet_kernels = why_no_kernels(), why_no_kernels("deltanet")
    tested = "" if _in_range("transformers") else " (outside the tested range)"
    memory = "GPU" if device.type == "cuda" else "machine"
    no_datasets = 'no: pip install "ga-utils[eval]"'
    facts = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers") + tested,
        "GPU": _gpu(),
        "free memory": f"{free:.1f} GB of the {memory}, models are read in {_name(dtype)}",
        "free disk": f"{free_disk_gb(Path(constants.HF_HUB_CACHE)):.0f} GB for downloads",
        "mamba-ssm kernels": no_kernels or "installed; the first call of each compiles for tens of seconds",
        "Gated DeltaNet kernels": no_deltanet_kernels or "flash-linear-attention is installed",
        "real data sets": f"datasets {version('datasets')}" if find_spec("datasets") else no_datasets,
        "hub token": "present" if get_token() else "none (needed for gated models only)",
    }
    models = pd.DataFrame([_row(name, dtype, free) for name in MODELS])
    return Report(facts, models, _advice(device, no_kernels, no_kernels or no_deltanet_kernels, models))


def _row(name: str, dtype: torch.dtype, free: float) -> dict[str, object]:
    """A model's line of the table; what a scan takes is empty where kernels run it, or there is none."""
    entry = MODELS[name]
    fits = entry.fitting_layers(dtype, free)
    runs = "whole" if fits == entry.layers else f"first {fits} layers" if fits else "no"
    if entry.minimal and 0 < fits < entry.minimal:
        runs += ", too few for the paper's heads"
    minimal = f"{entry.minimal} ({entry.size(dtype, entry.minimal):.1f} GB)" if entry.minimal else ""
    plain = entry.scan and why_no_kernels(entry.scan.kind)
    taken = f"{plain_scan_bytes(entry.scan, PROMPTS, TOKENS, dtype) / GB:.1f}" if plain else ""
    return {
        "model": name,
        "layers": entry.layers,
        f"GB in {_name(dtype)}": round(entry.size(dtype), 1),
        "paper's first layers": minimal,
        "runs here": runs,
        "least GPU": _least_gpu(name),
        "licence": entry.licence,
        f"GB of a scan, {PROMPTS} x {TOKENS} tokens": taken,
    }


def _least_gpu(name: str) -> str:
    """The smallest usual GPU for the paper's experiment: the minimal model where the paper has one."""
    need = MODELS[name].size(torch.float16, MODELS[name].minimal) + WORKING_GB
    return next((f"{gpu} ({gb} GB)" for gpu, gb in USUAL_GPUS if need <= gb), "80 GB")


def _advice(device: torch.device, no_mamba: str | None, plain: str | None, models: pd.DataFrame) -> list[str]:
    """no_mamba: why there are no kernels for Mamba. plain: why some scan has none."""
    advice = [f"MODEL = {TINY[0]!r} and the other tiny models run here, offline."]
    runs = models["runs here"]
    whole = models[runs == "whole"]["model"].tolist()
    if whole:
        advice.append(f"Whole models that fit: {', '.join(whole)}.")
    parts = models[runs.str.startswith("first") & ~runs.str.contains("too few")]["model"].tolist()
    if parts:
        advice.append(f"In part, with load_model(name, n_layers=...): {', '.join(parts)}.")
    if device.type == "cpu":
        advice.append(
            "There is no GPU: models of 1B and more may fit, but take minutes for each call. "
            "In Colab: Runtime, Change runtime type, T4 GPU."
        )
    elif no_mamba:
        advice.append("Mamba-1 models (Falcon-Mamba) are slow without kernels: use few prompts (n=20).")
    if plain:
        advice.append(
            "Without kernels an SSM layer's scan takes memory beside the weights: see the last column, "
            f"for {PROMPTS} prompts of {TOKENS} tokens. It grows with the number and length of the prompts. "
            "Mamba-2 (Zamba2, Mamba2) counts each prompt as whole chunks of 256 tokens."
        )
    if not _in_range("transformers"):
        requirement = _requirement("transformers")
        advice.append(f'Wrong transformers: pip install "{requirement}", then restart the session.')
    return advice


def _gpu() -> str:
    if torch.cuda.is_available():
        at = torch.cuda.get_device_properties(0)
        native = "bfloat16" if (at.major, at.minor) >= AMPERE else "no fast bfloat16, so float16"
        return f"{at.name}, {at.total_memory / GB:.1f} GB, {native}"
    return 'Apple, used where you say device="mps"' if torch.backends.mps.is_available() else "none"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _requirement(package: str) -> Requirement:
    return next(r for r in map(Requirement, requires("ga-utils") or ()) if r.name == package)


def _in_range(package: str) -> bool:
    try:
        return _requirement(package).specifier.contains(version(package), prereleases=True)
    except (PackageNotFoundError, StopIteration):  # the course is used from its folder, not installed
        return True
