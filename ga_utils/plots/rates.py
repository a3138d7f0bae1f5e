"""Figures for interventions: how often the answer follows, for the parts in question and for all others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes

from ga_utils.plots.style import BLUE, CYCLE, GREY, HATCHES, RED, axes, not_empty, tidy


def rates(
    rows: Mapping[str, Mapping[str, float]],
    marked: Iterable[str] = (),
    xlabel: str = "answers that follow",
    chance: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Shares from 0 to 1 as a distribution in percent, {row: {name of a head or team: share}}.

    A dot is a head or a team; those in `marked` are red and named, wherever they lie; neighbours share a
    label. `chance` is dashed.
    Raises a ValueError if there is nothing to draw, or if a marked name is in no row.
    """
    named = list(map(str, marked))
    for name in named:
        if not any(name in map(str, row) for row in not_empty(rows).values()):
            raise ValueError(f"{name} is in none of the rows {', '.join(rows)}")
    ax = axes(ax, 6.4, 1 + 0.85 * len(not_empty(rows)))
    for y, row in enumerate(rows.values()):
        shares = {str(name): 100 * float(share) for name, share in row.items()}
        others = np.array([share for name, share in shares.items() if name not in named])
        jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(others))
        ax.plot(others, y + jitter, "o", color=BLUE, alpha=0.5, clip_on=False)
        for names in _neighbours({name: shares[name] for name in named if name in shares}):
            ax.plot([shares[name] for name in names], [y] * len(names), "D", color=RED, clip_on=False)
            at = sum(shares[name] for name in names) / len(names)
            side = {"ha": "right" if at > 80 else "left" if at < 20 else "center"}
            label = ", ".join(names)
            ax.annotate(label, (at, y), (0, 10), textcoords="offset points", fontsize=9, **side)
    if chance is not None:
        ax.axvline(100 * chance, ls="--", color=GREY)
        ax.annotate(" chance", (100 * chance, 1), xycoords=("data", "axes fraction"), color=GREY, fontsize=9)
    ax.set(xlabel=xlabel, xlim=(-2, 102), yticks=range(len(rows)), yticklabels=list(rows))
    ax.set(ylim=(len(rows) - 0.4, -0.6))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0f} %")
    tidy(ax, grid="x")
    return ax


def outcomes(
    rows: Mapping[str, Mapping[str, float]], xlabel: str = "answers", ax: Axes | None = None
) -> Axes:
    """What comes of each intervention, {row: {outcome: share from 0 to 1}}: bars end to end, in percent.

    Shares of a tenth or more are written into their bar.
    Raises a ValueError if there is nothing to draw, or if rows differ in their outcomes.
    """
    labels = list(next(iter(not_empty(rows).values())))
    for name, row in rows.items():
        if list(row) != labels:
            raise ValueError(f"{name!r} has outcomes {', '.join(row)}: expected {', '.join(labels)}")
    ax = axes(ax, 7, 1 + 0.35 * len(rows))
    ends = [0.0] * len(rows)
    for i, label in enumerate(labels):
        shares = [100 * float(row[label]) for row in rows.values()]
        style = {"color": CYCLE[i % 6], "hatch": HATCHES[i % 6], "edgecolor": "white", "height": 0.7}
        ax.barh(list(rows), shares, left=ends, label=label, **style)
        for y, (share, end) in enumerate(zip(shares, ends)):
            if share >= 10:
                box = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 1.5}
                ax.text(end + share / 2, y, f"{share:.0f} %", ha="center", va="center", fontsize=9, bbox=box)
        ends = [end + share for end, share in zip(ends, shares)]
    ax.set(xlabel=xlabel, xlim=(0, 100))
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0f} %")
    tidy(ax, grid="x")
    ax.legend(frameon=False, ncols=len(labels), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


def _neighbours(shares: Mapping[str, float]) -> list[list[str]]:
    """Names in groups: those within 4 percent of the group's first share one label."""
    groups: dict[str, list[str]] = {}
    for name, share in shares.items():
        first = next((other for other in groups if abs(shares[other] - share) < 4), name)
        groups.setdefault(first, []).append(name)
    return list(groups.values())
