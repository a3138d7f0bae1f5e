"""Checks for a machine with an NVIDIA GPU: `make gpu`, or `python tests/gpu/report.py`. About ten minutes.

Memory of 8B shapes under a cap of 15 GB, speed of a sweep, all notebooks. Weights are random: no downloads.
Results: build/gpu.json and build/gpu.md, with the names of the card and the versions.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import measures  # noqa: E402
import printed  # noqa: E402

PARTS = ("memory", "speed", "notebooks")


def machine(device: str) -> dict:
    """What the figures were measured on."""
    card = {"card": "none, a CPU"}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        card = {"card": properties.name, "card_gb": round(properties.total_memory / 1e9, 1)}
    kernels = [name for name in ("mamba_ssm", "causal_conv1d") if find_spec(name)]
    return card | {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "kernels": ", ".join(kernels) or "none",
    }


def markdown(result: dict) -> str:
    """The report as a page: one table for each part."""
    lines = ["# On a GPU", "", ", ".join(f"{key} {value}" for key, value in result["machine"].items())]
    for part in PARTS:
        if part in result:
            lines += ["", f"## {part}", "", "| | | seconds | GB at the peak | |", "|---|---|---|---|---|"]
            for row in result[part]:
                seconds, peak = (
                    "" if row.get(key) is None else f"{row[key]:.1f}" for key in ("seconds", "peak_gb")
                )
                mark = "ok" if row["ok"] else "**failed**"
                lines.append(f"| {row['what']} | {mark} | {seconds} | {peak} | {row.get('note', '')} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="small models: checks the script, measures nothing"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: with --quick only")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder for gpu.json and gpu.md")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu is for --quick: 8 billion parameters take hours on a CPU")
    if options.device == "cuda" and not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        parser.error(
            f"no NVIDIA GPU here that PyTorch can use (torch {torch.__version__}, built {built}). "
            "Where there is one, choose a Python whose PyTorch sees it: make gpu PYTHON=python"
        )
    works = {
        "memory": lambda: measures.memory(options.device, options.quick),
        "speed": lambda: measures.speed(options.device, options.quick),
        "notebooks": printed.notebooks,
    }
    result: dict = {"machine": machine(options.device)}
    for part in options.parts or PARTS:
        result[part] = works[part]()
        for row in result[part]:
            print("ok    " if row["ok"] else "FAILED", part, row["what"], row.get("note", ""), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(result, indent=1))
    (options.out / "gpu.md").write_text(markdown(result))
    return result


if __name__ == "__main__":
    done = main()
    failed = [row for part in PARTS for row in done.get(part, []) if not row["ok"]]
    sys.exit(1 if failed else 0)
