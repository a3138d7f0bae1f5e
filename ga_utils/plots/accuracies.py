"""Figures of accuracies: curves, bars, and a reader's guess in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from ga_utils.plots.style import (
    BLUE,
    CYCLE,
    GREY,
    HATCHES,
    MARKERS,
    PINK,
    RED,
    axes,
    errors,
    not_empty,
    tidy,
)
from ga_utils.scoring import Score


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
    x, scores = list(x), {label: list(line) for label, line in not_empty(scores).items()}
    for label, line in scores.items():
        if len(line) != len(x):
            raise ValueError(f"{label!r} has {len(line)} scores for {len(x)} places on the x axis")
    ax = axes(ax, 6, 3.5)
    for i, (label, line) in enumerate(scores.items()):
        style = {"color": CYCLE[i % 6], "marker": MARKERS[i % 6], "capsize": 3, "clip_on": False}
        ax.errorbar(x, [score.accuracy for score in line], yerr=errors(line), label=label, **style)
    if chance is not None:
        guessing = list(chance) if isinstance(chance, Iterable) else chance
        ax.plot(x, np.broadcast_to(guessing, len(x)), "--", color=GREY, label="chance", zorder=0)
    ax.set(xlabel=xlabel, xticks=x)
    tidy(ax, percent=True)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def bands(
    x: Iterable[float],
    runs: Mapping[str, Iterable[Iterable[float]]],
    xlabel: str,
    chance: Iterable[float] | float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy over x of several runs for each label: a line through their mean, a band from worst to best.

    `runs` is {label: [run, x]}; `chance` as in `curves`.
    Raises a ValueError if there is nothing to draw, or if a label's numbers are not [run, x].
    """
    x, ax = list(x), axes(ax, 6, 3.5)
    for i, (label, accuracies) in enumerate(not_empty(runs).items()):
        of = np.array(list(accuracies), dtype=float)
        if of.ndim != 2 or of.shape[1] != len(x):
            raise ValueError(
                f"{label!r} has numbers {of.shape}: expected [run, {len(x)} places on the x axis]"
            )
        colour = CYCLE[i % 6]
        ax.fill_between(x, of.min(0), of.max(0), color=colour, alpha=0.2, lw=0)
        ax.plot(
            x, of.mean(0), color=colour, marker=MARKERS[i % 6], label=f"{label} ({len(of)})", clip_on=False
        )
    if chance is not None:
        guessing = list(chance) if isinstance(chance, Iterable) else chance
        ax.plot(x, np.broadcast_to(guessing, len(x)), "--", color=GREY, label="chance", zorder=0)
    ax.set(xlabel=xlabel, xticks=x)
    tidy(ax, percent=True)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), title="runs in brackets")
    return ax


def means(groups: Mapping[str, Iterable[float]], ylabel: str, ax: Axes | None = None) -> Axes:
    """The mean of each group with its 95 % interval (normal approximation), over its values as faint dots.

    Raises a ValueError if there are no groups, or if one has a NaN or fewer than two values.
    """
    arrays = {label: np.fromiter(values, float) for label, values in not_empty(groups).items()}
    for label, values in arrays.items():
        if len(values) < 2 or np.isnan(values).any():
            raise ValueError(f"{label!r} has no interval: expected two or more numbers, got {values}")
    ax = axes(ax, 1.5 + 1.3 * len(arrays), 3.3)
    for i, values in enumerate(arrays.values()):
        mean, n = values.mean(), len(values)
        x = i + np.random.default_rng(0).uniform(-0.15, 0.15, n)
        ax.plot(x, values, ".", color=CYCLE[i % 6], alpha=0.25)
        half = 1.96 * values.std(ddof=1) / n**0.5
        ax.errorbar(i, mean, half, color="black", capsize=5, marker=MARKERS[i % 6])
        ax.text(i + 0.2, mean, f"{mean:.2f}", va="center")
    ax.set(xticks=range(len(arrays)), xticklabels=list(arrays), ylabel=ylabel, xlim=(-0.5, len(arrays) - 0.3))
    tidy(ax)
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
    labels, values, red = list(not_empty(scores)), list(scores.values()), list(highlight)
    if not set(red) <= set(labels):
        raise ValueError(f"highlight={red}: the bars are {', '.join(labels)}")
    ax = axes(ax, 1.2 + 1.1 * len(labels), 3.2)
    colours = [RED if label in red else BLUE for label in labels]
    ax.bar(labels, [score.accuracy for score in values], color=colours, yerr=errors(values), capsize=4)
    for i, score in enumerate(values):
        ax.text(i, 0.02, f"{score.accuracy:.0%}", ha="center", color="white", fontweight="bold")
    if chance is not None:
        ax.axhline(chance, ls="--", color=GREY)
        ax.text(len(values) - 0.5, chance, " chance", va="center", color=GREY)
    tidy(ax, percent=True)
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
    places = list(not_empty(next(iter(not_empty(groups).values()))))
    for label, row in groups.items():
        if set(row) != set(places):
            raise ValueError(f"{label!r} has scores for {', '.join(row)}: expected {', '.join(places)}")
    if chance and not set(places) <= set(chance):
        raise ValueError(f"chance is given for {', '.join(chance)}: expected {', '.join(places)}")
    ax = axes(ax, 2 + 0.45 * len(places) * len(groups), 3.5)
    width = 0.8 / len(groups)
    for i, (label, row) in enumerate(groups.items()):
        at = np.arange(len(places)) + (i - (len(groups) - 1) / 2) * width
        scores = [row[place] for place in places]
        style = {"color": CYCLE[i % 6], "hatch": HATCHES[i % 6], "edgecolor": "white", "capsize": 2}
        ax.bar(at, [score.accuracy for score in scores], width, yerr=errors(scores), label=label, **style)
    for i, place in enumerate(places if chance else ()):
        label = None if i else "chance"
        ax.hlines(chance[place], i - 0.45, i + 0.45, color="black", ls="--", label=label)
    ax.set(xticks=range(len(places)), xticklabels=places)
    tidy(ax, percent=True)
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
