"""What all figures share: colours, axes, intervals."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ga_utils.scoring import Score

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, GREY = "#56B4E9", "#D55E00", "#7F7F7F"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
MARKERS = "osD^vP"
HATCHES = ("", "//", "..", "xx", "\\\\", "++")


def axes(ax: Axes | None, width: float, height: float) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def tidy(ax: Axes, grid: str = "y", percent: bool = False) -> None:
    """No frame at the top and right, and a faint grid; `percent` is for a y axis of accuracies."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, alpha=0.3)
    if percent:
        ax.set(ylabel="accuracy", ylim=(0, 1.03))
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")


def errors(scores: list[Score]) -> np.ndarray:
    """[2, n]: distances from the accuracy down and up to the ends of its 95 % interval."""
    return np.array([[s.accuracy - s.ci95[0], s.ci95[1] - s.accuracy] for s in scores]).T.clip(min=0)


def peak(values: np.ndarray) -> float:
    """The largest number, for a colour scale that begins at 0; 1 where none is positive."""
    return float(values.max(initial=0, where=~np.isnan(values))) or 1.0


def not_empty(given: Mapping) -> Mapping:
    if not given:
        raise ValueError("nothing to draw: the dict is empty")
    return given
