"""The course's figures. Each function draws on the Axes it is given, or on new ones, and returns them.

The colours are Okabe and Ito's, which colour-blind readers can tell apart. No figure relies on colour alone:
lines also differ in their markers, grouped bars in their hatches, and small tables show their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from ga_utils.scoring import Score

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, GREY = "#56B4E9", "#D55E00", "#7F7F7F"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
MARKERS = "osD^vP"
HATCHES = ("", "//", "..", "xx", "\\\\", "++")


def curves(
    x: Iterable[float],
    scores: Mapping[str, Iterable[Score]],
    xlabel: str,
    chance: Iterable[float] | float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy over x, one line with 95 % intervals for each label in {label: a Score for each x}.

    `chance`, the accuracy of guessing, is dashed: one number, or one for each x.
    Raises a ValueError if there is nothing to draw, or if a line has not one score for each x.
    """
    x, scores = list(x), {label: list(line) for label, line in _not_empty(scores).items()}
    for label, line in scores.items():
        if len(line) != len(x):
            raise ValueError(f"{label!r} has {len(line)} scores for {len(x)} places on the x axis")
    ax = _axes(ax, 6, 3.5)
    for i, (label, line) in enumerate(scores.items()):
        style = {"color": CYCLE[i % 6], "marker": MARKERS[i % 6], "capsize": 3, "clip_on": False}
        ax.errorbar(x, [score.accuracy for score in line], yerr=_errors(line), label=label, **style)
    if chance is not None:
        guessing = list(chance) if isinstance(chance, Iterable) else chance
        ax.plot(x, np.broadcast_to(guessing, len(x)), "--", color=GREY, label="chance", zorder=0)
    ax.set(xlabel=xlabel, xticks=x)
    _tidy(ax, percent=True)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def means(groups: Mapping[str, Iterable[float]], ylabel: str, ax: Axes | None = None) -> Axes:
    """The mean of each group with its 95 % interval (normal approximation), over its values as faint dots.

    Raises a ValueError if there are no groups, or if one has a NaN or fewer than two values.
    """
    arrays = {label: np.fromiter(values, float) for label, values in _not_empty(groups).items()}
    for label, values in arrays.items():
        if len(values) < 2 or np.isnan(values).any():
            raise ValueError(f"{label!r} has no interval: expected two or more numbers, got {values}")
    ax = _axes(ax, 1.5 + 1.3 * len(arrays), 3.3)
    for i, values in enumerate(arrays.values()):
        mean, n = values.mean(), len(values)
        x = i + np.random.default_rng(0).uniform(-0.15, 0.15, n)
        ax.plot(x, values, ".", color=CYCLE[i % 6], alpha=0.25)
        half = 1.96 * values.std(ddof=1) / n**0.5
        ax.errorbar(i, mean, half, color="black", capsize=5, marker=MARKERS[i % 6])
        ax.text(i + 0.2, mean, f"{mean:.2f}", va="center")
    ax.set(xticks=range(len(arrays)), xticklabels=list(arrays), ylabel=ylabel, xlim=(-0.5, len(arrays) - 0.3))
    _tidy(ax)
    return ax


def bars(
    scores: Mapping[str, Score],
    chance: float | None = None,
    highlight: Iterable[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """One bar for each score, with its 95 % interval and its number; those in `highlight` are red.

    Raises a ValueError if there are no scores, or if a label to highlight has no bar.
    """
    labels, values, red = list(_not_empty(scores)), list(scores.values()), list(highlight)
    if not set(red) <= set(labels):
        raise ValueError(f"highlight={red}: the bars are {', '.join(labels)}")
    ax = _axes(ax, 1.2 + 1.1 * len(labels), 3.2)
    colours = [RED if label in red else BLUE for label in labels]
    ax.bar(labels, [score.accuracy for score in values], color=colours, yerr=_errors(values), capsize=4)
    for i, score in enumerate(values):
        ax.text(i, 0.02, f"{score.accuracy:.0%}", ha="center", color="white", fontweight="bold")
    if chance is not None:
        ax.axhline(chance, ls="--", color=GREY)
        ax.text(len(values) - 0.5, chance, " chance", va="center", color=GREY)
    _tidy(ax, percent=True)
    return ax


def grouped_bars(
    groups: Mapping[str, Mapping[str, Score]],
    chance: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Bars side by side, with 95 % intervals: {label in the legend: {place on the x axis: Score}}.

    `chance`, {place: the accuracy of guessing}, is dashed.
    Raises a ValueError if there is nothing to draw, or if a label or `chance` lacks a place.
    """
    places = list(_not_empty(next(iter(_not_empty(groups).values()))))
    for label, row in groups.items():
        if set(row) != set(places):
            raise ValueError(f"{label!r} has scores for {', '.join(row)}: expected {', '.join(places)}")
    if chance and not set(places) <= set(chance):
        raise ValueError(f"chance is given for {', '.join(chance)}: expected {', '.join(places)}")
    ax = _axes(ax, 2 + 0.45 * len(places) * len(groups), 3.5)
    width = 0.8 / len(groups)
    for i, (label, row) in enumerate(groups.items()):
        at = np.arange(len(places)) + (i - (len(groups) - 1) / 2) * width
        scores = [row[place] for place in places]
        style = {"color": CYCLE[i % 6], "hatch": HATCHES[i % 6], "edgecolor": "white", "capsize": 2}
        ax.bar(at, [score.accuracy for score in scores], width, yerr=_errors(scores), label=label, **style)
    for i, place in enumerate(places if chance else ()):
        label = None if i else "chance"
        ax.hlines(chance[place], i - 0.45, i + 0.45, color="black", ls="--", label=label)
    ax.set(xticks=range(len(places)), xticklabels=places)
    _tidy(ax, percent=True)
    ax.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.02))
    return ax


def guess(ax: Axes, value: float | None, at: str | tuple[str, str] | float | None = None) -> Axes:
    """Draw a reader's guess (`ga.predict`) into a figure; without a guess, do nothing.

    Args:
        value: in percent, at the place `at` of a figure of accuracies; without `at`, a place on the x axis.
        at: the label of a bar; (label in the legend, place) of a grouped bar; or a number on the x axis.

    Raises:
        ValueError: the figure has no such bar.
    """
    if value is None:
        return ax
    if at is None:
        ax.axvline(value, color=PINK, ls=":", lw=2)
        ax.annotate(" your guess", (value, 0.02), xycoords=("data", "axes fraction"), fontsize=9)
        return ax
    x = _middle_of_bar(ax, at) if isinstance(at, str | tuple) else at
    ax.plot(x, value / 100, "*", ms=15, color=PINK, mec="black", zorder=5)
    box = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1}
    ax.annotate("your guess", (x, value / 100), (9, 4), textcoords="offset points", fontsize=9, bbox=box)
    return ax


def head_sweep(sweep, ax: Axes | None = None) -> Axes:
    """Heat map of a HeadSweep: points of accuracy lost by disabling each head; grey: pruned or not swept."""
    return head_table(100 * sweep.drop, "accuracy lost (points)", decimals=0, largest=100, ax=ax)


def layer_sweep(sweep, ax: Axes | None = None) -> Axes:
    """Curves of a LayerSweep: each task's accuracy over the number of layers kept, or the layer left out."""
    return curves(sweep.x, sweep.scores, sweep.xlabel, ax=ax)


def two_sweeps(x, y, xlabel: str, ylabel: str, ax: Axes | None = None) -> Axes:
    """Two HeadSweeps: what disabling each head costs one task against what it costs another, in points.

    Heads within 4 points of each other share a label. Those that cost more than 10 points are red and named.
    Raises a ValueError if the sweeps' tables differ in shape, or if no head is in both.
    """
    lost = 100 * np.stack([x.drop, y.drop], -1)  # [n_layers, n_heads, 2]
    points = {str(head): lost[head.layer, head.head] for head in y.top(y.drop.size)}
    points = {name: point for name, point in points.items() if not np.isnan(point).any()}
    if not points:
        raise ValueError("no head was disabled in both sweeps")
    ax = _axes(ax, 4.8, 4.2)
    for names in _neighbours(points):
        at = np.array([points[name] for name in names])
        costly = at.max() > 10
        ax.plot(*at.T, "o", color=RED if costly else BLUE, alpha=0.8, clip_on=False)
        label = ", ".join(names) if costly else f"{len(names)} heads"
        ax.annotate(label, at[0], (8, 0), textcoords="offset points", va="center", fontsize=9)
    # Losses may all be zero or, where every head does harm, negative: the axes still point up and right.
    found = np.array(list(points.values()))
    ends = min(-3, 1.1 * found.min()), max(10, 1.1 * found.max())
    ax.plot(ends, ends, "--", color=GREY, lw=0.8, zorder=0, label="both lose the same")
    ax.set(xlabel=f"{xlabel}: points lost", ylabel=f"{ylabel}: points lost", xlim=ends, ylim=ends)
    _tidy(ax, grid="both")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.12))
    return ax


def head_table(
    table: np.ndarray, label: str, decimals: int = 2, largest: float | None = None, ax: Axes | None = None
) -> Axes:
    """A table [n_layers, n_heads] as a heat map, layer 0 at the bottom; small tables show their numbers.

    NaN is grey. Colours go from 0 to `largest`, by default the largest number.
    Raises a ValueError if it is not a table.
    """
    table = np.asarray(table, dtype=float)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"expected a table [n_layers, n_heads], got shape {table.shape}")
    layers, heads = table.shape
    ax = _axes(ax, 2.2 + 0.62 * min(heads, 16), 1 + 0.45 * min(layers, 16))
    ax.set_facecolor("#DDDDDD")
    top = largest or _largest(table)
    image = ax.imshow(table, cmap="cividis", vmin=0, vmax=top, aspect="auto", origin="lower")
    if table.size <= 128:
        for (layer, head), value in np.ndenumerate(table):
            if not np.isnan(value):
                style = {"ha": "center", "va": "center", "color": "white" if value < 0.6 * top else "black"}
                ax.text(head, layer, f"{value:z.{decimals}f}", fontsize=8, **style)  # z: no "-0"
        ax.set(xticks=range(heads), yticks=range(layers))
    ax.set(xlabel="head", ylabel="layer")
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def pattern(
    A: torch.Tensor,
    tokens: Iterable[str],
    title: str = "",
    marks: Iterable[tuple[int, int]] = (),
    ax: Axes | None = None,
) -> Axes:
    """One head's attention A [query, key] with its tokens, and a box around each (query, key) in `marks`.

    Raises a ValueError unless there is one token for each query and key.
    """
    shown, values = [token.replace("\n", "⏎") for token in tokens], A.detach().float().cpu().numpy()
    if values.shape != (len(shown), len(shown)):
        raise ValueError(f"a pattern of shape {values.shape} does not fit {len(shown)} tokens")
    ax = _axes(ax, *2 * [1.5 + 0.17 * len(shown)])
    signed, top = (values < 0).any(), _largest(np.abs(values))  # implicit attention may be negative
    ax.imshow(values, cmap="RdBu" if signed else "Blues", vmin=-top if signed else 0, vmax=top)
    text = {"fontsize": 7, "parse_math": False}  # the token "$$" is not a formula
    ax.set_xticks(range(len(shown)), shown, rotation=90, **text)
    ax.set_yticks(range(len(shown)), shown, **text)
    for query, key in marks:
        ax.add_patch(plt.Rectangle((key - 0.5, query - 0.5), 1, 1, fill=False, edgecolor=RED, lw=1.5))
    ax.set(xlabel="looks at (key)", ylabel="from (query)", title=title)
    return ax


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def _tidy(ax: Axes, grid: str = "y", percent: bool = False) -> None:
    """No frame at the top and right, and a faint grid; `percent` is for a y axis of accuracies."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, alpha=0.3)
    if percent:
        ax.set(ylabel="accuracy", ylim=(0, 1.03))
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")


def _errors(scores: list[Score]) -> np.ndarray:
    """[2, n]: distances from the accuracy down and up to the ends of its 95 % interval."""
    return np.array([[s.accuracy - s.ci95[0], s.ci95[1] - s.accuracy] for s in scores]).T.clip(min=0)


def _largest(values: np.ndarray) -> float:
    """The largest number, for a colour scale that begins at 0; 1 where none is positive."""
    return float(values.max(initial=0, where=~np.isnan(values))) or 1.0


def _not_empty(given: Mapping) -> Mapping:
    if not given:
        raise ValueError("nothing to draw: the dict is empty")
    return given


def _middle_of_bar(ax: Axes, at: str | tuple[str, str]) -> float:
    """The x of a bar, found by its place on the x axis, or by its label in the legend and its place."""
    label, place = at if isinstance(at, tuple) else (None, at)
    places = [text.get_text() for text in ax.get_xticklabels()]
    series = {c.get_label(): c.patches for c in ax.containers if isinstance(c, BarContainer)}
    if place not in places or (label is not None and label not in series):
        known = ", ".join([*places, *(series if label else ())])
        raise ValueError(f"no bar {at!r} in this figure: it has {known}")
    if label is None:
        return places.index(place)
    bar = series[label][places.index(place)]
    return bar.get_x() + bar.get_width() / 2


def _neighbours(points: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Groups of names whose points (x, y) lie within 4 of the group's first one, in both directions."""
    groups: dict[str, list[str]] = {}
    for name, point in points.items():
        first = next((first for first in groups if (abs(points[first] - point) < 4).all()), name)
        groups.setdefault(first, []).append(name)
    return list(groups.values())
