"""The course's figures. Every function draws on the current or a given Axes and returns it.

Colours are Okabe and Ito's, which people with colour-blindness can tell apart, and are always backed by a
marker, a label or a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from ga_utils.scoring import Score

BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#7F7F7F",
)
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
MARKERS = "osD^vP"


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def _percent(ax: Axes) -> None:
    ax.set_ylim(0, 1.03)
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3)


def _errors(scores: Sequence[Score]) -> np.ndarray:
    """[2, n]: distances from the accuracy down and up to the ends of its 95 % interval."""
    return np.array([[s.accuracy - s.ci95[0], s.ci95[1] - s.accuracy] for s in scores]).T.clip(min=0)


def curves(
    x: Sequence[float],
    scores: Mapping[str, Sequence[Score]],
    xlabel: str,
    chance: Sequence[float] | float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy over x, one line with 95 % intervals for each entry; `chance` is drawn dashed."""
    ax = _axes(ax, 6, 3.5)
    for i, (label, line) in enumerate(scores.items()):
        ax.errorbar(
            x,
            [s.accuracy for s in line],
            yerr=_errors(line),
            label=label,
            capsize=3,
            color=CYCLE[i % 6],
            marker=MARKERS[i % 6],
            clip_on=False,
        )
    if chance is not None:
        ax.plot(x, np.broadcast_to(chance, len(x)), "--", color=GREY, label="chance", zorder=0)
    ax.set(xlabel=xlabel, ylabel="accuracy", xticks=x)
    _percent(ax)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def means(groups: Mapping[str, np.ndarray], ylabel: str, ax: Axes | None = None) -> Axes:
    """The mean of each group of values with its 95 % interval (normal), over the values themselves as faint dots."""
    ax = _axes(ax, 1.5 + 1.3 * len(groups), 3.3)
    for i, values in enumerate(groups.values()):
        values = np.asarray(values)
        spread = np.random.default_rng(0).uniform(-0.15, 0.15, len(values))
        ax.plot(i + spread, values, ".", color=CYCLE[i % 6], alpha=0.25)
        ax.errorbar(
            i,
            values.mean(),
            1.96 * values.std(ddof=1) / len(values) ** 0.5,
            color="black",
            capsize=5,
            marker=MARKERS[i % 6],
        )
        ax.text(i + 0.2, values.mean(), f"{values.mean():.2f}", va="center")
    ax.set(xticks=range(len(groups)), xticklabels=list(groups), ylabel=ylabel, xlim=(-0.5, len(groups) - 0.3))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3)
    return ax


def bars(
    scores: Mapping[str, Score],
    chance: float | None = None,
    highlight: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """One bar for each score, with its 95 % interval and its number; `highlight`ed bars stand out."""
    ax = _axes(ax, 1.2 + 1.1 * len(scores), 3.2)
    values = list(scores.values())
    colours = [RED if label in highlight else BLUE for label in scores]
    ax.bar(list(scores), [s.accuracy for s in values], color=colours, yerr=_errors(values), capsize=4)
    for i, score in enumerate(values):
        ax.text(i, 0.02, f"{score.accuracy:.0%}", ha="center", color="white", fontweight="bold")
    if chance is not None:
        ax.axhline(chance, ls="--", color=GREY)
        ax.text(len(values) - 0.5, chance, " chance", va="center", color=GREY)
    ax.set_ylabel("accuracy")
    _percent(ax)
    return ax


def grouped_bars(
    groups: Mapping[str, Mapping[str, Score]],
    chance: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Bars side by side: {bar label: {group on the x axis: Score}}, with 95 % intervals and chance ticks."""
    labels = list(next(iter(groups.values())))
    ax = _axes(ax, 2 + 0.45 * len(labels) * len(groups), 3.5)
    width = 0.8 / len(groups)
    for i, (label, scores) in enumerate(groups.items()):
        at = np.arange(len(labels)) + (i - (len(groups) - 1) / 2) * width
        line = [scores[name] for name in labels]
        ax.bar(
            at,
            [s.accuracy for s in line],
            width,
            yerr=_errors(line),
            capsize=2,
            label=label,
            color=CYCLE[i % 6],
            hatch=["", "//", "..", "xx", "\\\\", "++"][i % 6],
            edgecolor="white",
        )
    for i, name in enumerate(labels if chance else ()):
        ax.hlines(
            chance[name], i - 0.45, i + 0.45, color="black", ls="--", label="chance" if i == 0 else None
        )
    ax.set(xticks=range(len(labels)), xticklabels=labels, ylabel="accuracy")
    _percent(ax)
    ax.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.02))
    return ax


def guess(ax: Axes, value: float | None, at: str | tuple[str, str] | float | None = None) -> Axes:
    """Draw a reader's guess (`ga.predict`) into a figure; nothing where there is none.

    Args:
        value: in percent, at the place `at` of a figure of accuracies; without `at`, a place on the x axis.
        at: the label of a bar; (label of the bar, group on the x axis) for grouped bars; or a number on the x axis.

    Raises:
        ValueError: the figure has no bar of that name.
    """
    if value is None:
        return ax
    if at is None:
        ax.axvline(value, color=PINK, ls=":", lw=2)
        ax.annotate(" your guess", (value, 0.02), xycoords=("data", "axes fraction"), fontsize=9)
    else:
        if isinstance(at, str | tuple):
            label, group = at if isinstance(at, tuple) else (None, at)
            groups = [text.get_text() for text in ax.get_xticklabels()]
            series = {c.get_label(): c.patches for c in ax.containers if isinstance(c, BarContainer)}
            if group not in groups or (label is not None and label not in series):
                raise ValueError(
                    f"no bar {at!r} in this figure: it has {', '.join([*groups, *(series if label else ())])}"
                )
            at = groups.index(group)
            if label is not None:
                bar = series[label][at]
                at = bar.get_x() + bar.get_width() / 2
        ax.plot(at, value / 100, "*", ms=15, color=PINK, mec="black", zorder=5)
        ax.annotate(
            "your guess",
            (at, value / 100),
            xytext=(9, 4),
            textcoords="offset points",
            fontsize=9,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1},
        )
    return ax


def head_sweep(sweep, ax: Axes | None = None) -> Axes:
    """Heat map of accuracy lost, in points, by disabling each head; grey: pruned or not swept."""
    return head_table(100 * sweep.drop, "accuracy lost (points)", decimals=0, largest=100, ax=ax)


def two_sweeps(x, y, xlabel: str, ylabel: str, ax: Axes | None = None) -> Axes:
    """Each swept head as a dot: what disabling it costs one task against what it costs another, in points.

    Heads that would lie on top of one another share a label.
    """
    ax = _axes(ax, 4.8, 4.2)
    clusters: list[list[tuple[float, float, str]]] = []
    for head in y.top(y.accuracy.size):
        at = 100 * x.drop[head.layer, head.head], 100 * y.drop[head.layer, head.head]
        near = next((c for c in clusters if abs(c[0][0] - at[0]) < 4 and abs(c[0][1] - at[1]) < 4), None)
        if near is None:
            clusters.append(near := [])
        near.append((*at, str(head)))
    for cluster in clusters:
        across, up, names = zip(*cluster)
        costly = max(*across, *up) > 10
        ax.plot(across, up, "o", color=RED if costly else BLUE, alpha=0.8, clip_on=False)
        label = ", ".join(names) if costly else f"{len(names)} heads"
        ax.annotate(
            label, (across[0], up[0]), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9
        )
    largest = 1.1 * max(max(point[:2]) for cluster in clusters for point in cluster)
    ax.plot([0, largest], [0, largest], "--", color=GREY, lw=0.8, zorder=0, label="both lose the same")
    ax.set(
        xlabel=f"{xlabel}: points lost",
        ylabel=f"{ylabel}: points lost",
        xlim=(-3, largest),
        ylim=(-3, largest),
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.12))
    return ax


def head_table(
    table: np.ndarray, label: str, decimals: int = 2, largest: float | None = None, ax: Axes | None = None
) -> Axes:
    """A [n_layers, n_heads] table as a heat map, layer 0 at the bottom; numbers are written in small tables."""
    layers, heads = table.shape
    ax = _axes(ax, 2.2 + 0.62 * min(heads, 16), 1 + 0.45 * min(layers, 16))
    ax.set_facecolor("#DDDDDD")
    top = largest if largest is not None else max(float(np.nanmax(table)), 1e-9)
    image = ax.imshow(table, cmap="cividis", vmin=0, vmax=top, aspect="auto", origin="lower")
    if table.size <= 128:
        for (layer, head), value in np.ndenumerate(table):
            if not np.isnan(value):
                light = value < 0.6 * top
                ax.text(
                    head,
                    layer,
                    f"{value:.{decimals}f}".replace("-0", "0")
                    if abs(value) < 0.5 * 10**-decimals
                    else f"{value:.{decimals}f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if light else "black",
                )
        ax.set(xticks=range(heads), yticks=range(layers))
    ax.set(xlabel="head", ylabel="layer")
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def layer_sweep(sweep, ax: Axes | None = None) -> Axes:
    """Accuracy of each task over the layers kept, or left out."""
    xlabel = "layers kept" if sweep.how == "prefix" else "layer left out"
    return curves(sweep.x, sweep.scores, xlabel, ax=ax)


def pattern(
    A: torch.Tensor,
    tokens: Sequence[str],
    title: str = "",
    marks: Sequence[tuple[int, int]] = (),
    ax: Axes | None = None,
) -> Axes:
    """One head's attention matrix [query, key] with its tokens; `marks` draws a box around (query, key) cells."""
    size = 1.5 + 0.17 * len(tokens)
    ax = _axes(ax, size, size)
    top = max(float(A.abs().max()), 1e-9)
    ax.imshow(
        A.numpy(), cmap="Blues" if (A >= 0).all() else "RdBu", vmin=0 if (A >= 0).all() else -top, vmax=top
    )
    shown = [token.replace("\n", "⏎") for token in tokens]
    ax.set_xticks(range(len(shown)), shown, rotation=90, fontsize=7)
    ax.set_yticks(range(len(shown)), shown, fontsize=7)
    for query, key in marks:
        ax.add_patch(plt.Rectangle((key - 0.5, query - 0.5), 1, 1, fill=False, edgecolor=RED, lw=1.5))
    ax.set(xlabel="looks at (key)", ylabel="from (query)", title=title)
    return ax
