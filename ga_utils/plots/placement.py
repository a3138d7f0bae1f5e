"""Figures of a choice among heads: what random choices give, and what accuracy costs in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from ga_utils.plots.style import CYCLE, GREY, MARKERS, axes, not_empty, tidy


def spread(
    x: Iterable[float],
    draws: Iterable[Iterable[float]],
    xlabel: str,
    label: str = "drawn at random",
    ax: Axes | None = None,
) -> Axes:
    """Accuracies of many random draws at each x: their median, a band from the 5th to the 95th percentile,
    and each draw as a faint dot. Percentiles are accuracies of draws, never a value between two of them.

    Raises a ValueError if there is nothing to draw, or if an x has no draws.
    """
    x, draws = list(x), [np.fromiter(some, float) for some in draws]
    if not x or len(draws) != len(x) or not all(map(len, draws)):
        raise ValueError(
            f"{len(x)} places on the x axis and draws {[len(d) for d in draws]}: expected some for each"
        )
    ax = axes(ax, 6.5, 3.5)
    low, median, high = np.array([percentiles(some) for some in draws]).T
    ax.fill_between(x, low, high, color=GREY, alpha=0.2, lw=0, label=f"{label}, 5 to 95 %")
    ax.plot(x, median, color=GREY, marker="x", label=f"{label}, median")
    step = min(np.diff(sorted(x)), default=1) / 4
    for place, some in zip(x, draws):
        jitter = np.random.default_rng(0).uniform(-step, step, len(some))
        ax.plot(place + jitter, some, ".", color=GREY, alpha=0.25, ms=4)
    ax.set(xlabel=xlabel, xticks=x)
    tidy(ax, percent=True)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def percentiles(draws: Iterable[float]) -> np.ndarray:
    """The 5th, the 50th and the 95th percentile, each of them one of the draws."""
    return np.percentile(np.fromiter(draws, float), [5, 50, 95], method="inverted_cdf")


def tradeoff(
    series: Mapping[str, Iterable[tuple[float, float]]],
    xlabel: str = "numbers kept",
    chance: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy over memory, {label: (numbers kept, accuracy) for each model}; the x axis is logarithmic.

    The points of a label are joined in the order of their memory. `chance` is dashed.
    Raises a ValueError if there is nothing to draw, or if a label has no points.
    """
    ax = axes(ax, 6.5, 3.8)
    for i, (label, points) in enumerate(not_empty(series).items()):
        at = np.array(sorted(points), dtype=float)
        if at.ndim != 2 or at.shape[1] != 2:
            raise ValueError(f"{label!r} has points {at.shape}: expected (numbers kept, accuracy) for each")
        style = {"color": CYCLE[i % 6], "marker": MARKERS[i % 6], "ls": "-", "clip_on": False}
        ax.plot(*at.T, label=label, **style)
    if chance is not None:
        ax.axhline(chance, ls="--", color=GREY, label="chance", zorder=0)
    ax.set(xlabel=xlabel, xscale="log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.xaxis.set_minor_locator(NullLocator())
    tidy(ax, percent=True)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax
