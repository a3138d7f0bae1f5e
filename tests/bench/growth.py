"""How the cost of a sweep grows with heads, layers, prompts and tokens: build/bench_growth.png.

One number varies at a time, the others stay as in `BASE`; small enough for a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
from cases import Case
from contenders import ours, plain
from matplotlib.figure import Figure
from sweeps import BUILD, clock
from tqdm.auto import tqdm

from ga_utils.plots.style import CYCLE, MARKERS

BASE = Case("base", width=128, vocabulary=2000, prompts=8, peer_heads=8, repeats=3)
GRIDS = {
    "n_heads": ("heads in each of 8 layers", (4, 8, 16)),
    "n_layers": ("layers of 8 heads", (2, 4, 8, 16)),
    "prompts": ("prompts of 64 tokens", (4, 16, 64)),
    "tokens": ("tokens in each of 8 prompts", (32, 64, 128, 256)),
}
CONTENDERS = ("plain Hugging Face loop", "ours, exact", "ours, screened")


def measure(case: Case) -> dict[str, list[float]]:
    """Seconds for all heads in each repeat; contenders take turns, the loop runs some heads and is scaled."""
    loop = plain(case)
    loop(case.heads[:1]), ours(case, "exact", case.heads[:1]), ours(case, "screen", case.heads[:1])
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for repeat in range(case.repeats):
        heads = case.some_heads(repeat)
        times[CONTENDERS[0]].append(clock(loop, heads)[0] * len(case.heads) / len(heads))
        times[CONTENDERS[1]].append(clock(ours, case, "exact")[0])
        times[CONTENDERS[2]].append(clock(ours, case, "screen")[0])
    return times


def grow(
    base: Case, grids: dict[str, tuple[str, tuple[int, ...]]]
) -> dict[str, list[dict[str, list[float]]]]:
    """{what grows: [times at each of its values]}."""
    bar = tqdm(
        total=sum(len(values) for _, values in grids.values()), desc="growth", unit="case", leave=False
    )
    grown: dict[str, list] = {what: [] for what in grids}
    for what, (_, values) in grids.items():
        for value in values:
            grown[what].append(measure(replace(base, **{what: value})))
            bar.update()
    bar.close()
    return grown


def plot(
    grids: dict[str, tuple[str, tuple[int, ...]]], grown: dict[str, list[dict[str, list[float]]]]
) -> Figure:
    """Medians on logarithmic axes, with bars from the fastest to the slowest repeat."""
    figure, axes = plt.subplots(
        1, len(grids), figsize=(3.1 * len(grids), 3.4), layout="constrained", sharey=True
    )
    for ax, (what, (label, values)) in zip(axes, grids.items()):
        for i, name in enumerate(CONTENDERS):
            seconds = [times[name] for times in grown[what]]
            middle = [statistics.median(s) for s in seconds]
            error = [
                [m - min(s) for m, s in zip(middle, seconds)],
                [max(s) - m for m, s in zip(middle, seconds)],
            ]
            ax.errorbar(values, middle, yerr=error, label=name, color=CYCLE[i], marker=MARKERS[i], capsize=3)
        ax.set(xlabel=label, xscale="log", yscale="log")
        ax.set_xticks(values, [str(value) for value in values])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seconds for a sweep of all heads")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper center")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUILD / "bench_growth.png")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    plot(GRIDS, grow(BASE, GRIDS)).savefig(out, dpi=150)
    print(f"growth with {', '.join(GRIDS)}: {out}")
