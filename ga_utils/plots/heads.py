"""Figures of heads: what each costs, where each looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from ga_utils.heads import Head
from ga_utils.plots.accuracies import curves
from ga_utils.plots.style import BLUE, GREY, RED, axes, not_empty, peak, tidy


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
    ax = axes(ax, 4.8, 4.2)
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
    tidy(ax, grid="both")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.12))
    return ax


def effects(sweeps: Mapping, marked: Iterable[Head | str] = (), ax: Axes | None = None) -> Axes:
    """What disabling each head costs, all heads as a distribution: a row for each of {label: HeadSweep}.

    A dot is a head; those in `marked` are red and named, wherever they lie, and the row says where among all
    heads the median is.

    Raises:
        ValueError: there is nothing to draw, or a marked head was disabled in none of the sweeps.
    """
    rows = {
        label: {str(h): 100 * s.drop[h.layer, h.head] for h in s.top(s.drop.size)}
        for label, s in not_empty(sweeps).items()
    }
    named = list(map(str, marked))
    for head in named:
        if not any(head in lost for lost in rows.values()):
            raise ValueError(f"{head} was disabled in none of these sweeps")
    ax = axes(ax, 6.4, 0.9 + 0.9 * len(rows))
    for y, lost in enumerate(rows.values()):
        others = np.array([value for head, value in lost.items() if head not in named])
        jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(others))
        ax.plot(others, y + jitter, "o", color=BLUE, alpha=0.5, clip_on=False)
        ax.plot([np.median(list(lost.values()))] * 2, [y - 0.32, y + 0.32], color=GREY, lw=1)
        points = {head: np.array([lost[head], y]) for head in named if head in lost}
        ax.plot([x for x, _ in points.values()], [y] * len(points), "D", color=RED, clip_on=False)
        for names in _neighbours(points):
            label = {"textcoords": "offset points", "ha": "center", "fontsize": 9}
            ax.annotate("\n".join(names), np.mean([points[name] for name in names], 0), (0, 9), **label)
    labels = [f"{label}\n({len(lost)} heads)" for label, lost in rows.items()]
    ax.set(xlabel="points of accuracy lost when it is disabled", yticks=range(len(rows)), yticklabels=labels)
    ax.set(ylim=(-0.6, len(rows) - 0.35))
    ax.invert_yaxis()
    tidy(ax, grid="x")
    return ax


def picks(shares: np.ndarray, title: str = "", ax: Axes | None = None) -> Axes:
    """Which option a head picks: `ga.option_shares` of one head [right, option] as a small table.

    A row for each place of the right option: a head that picks it is dark along the diagonal.
    Raises a ValueError unless the table is square.
    """
    shares = np.asarray(shares, dtype=float)
    if shares.ndim != 2 or shares.shape[0] != shares.shape[1]:
        raise ValueError(f"expected a table [right, option], got shape {shares.shape}")
    ax = axes(ax, 3.9, 3.1)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (right, option), value in np.ndenumerate(shares):
        if not np.isnan(value):
            colour = "white" if value > 0.6 else "black"
            ax.text(option, right, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    letters = [chr(ord("A") + i) for i in range(len(shares))]
    ax.set_xticks(range(len(shares)), letters)
    ax.set_yticks(range(len(shares)), letters)
    ax.set(xlabel="closing tokens of option", ylabel="right option", title=title)
    ax.figure.colorbar(image, ax=ax, label="attention of the last token")
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
    ax = axes(ax, 2.2 + 0.62 * min(heads, 16), 1 + 0.45 * min(layers, 16))
    ax.set_facecolor("#DDDDDD")
    top = largest or peak(table)
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
    ax = axes(ax, *2 * [1.5 + 0.17 * len(shown)])
    signed, top = (values < 0).any(), peak(np.abs(values))  # implicit attention may be negative
    image = ax.imshow(values, cmap="RdBu" if signed else "Blues", vmin=-top if signed else 0, vmax=top)
    text = {"fontsize": 7, "parse_math": False}  # the token "$$" is not a formula
    ax.set_xticks(range(len(shown)), shown, rotation=90, **text)
    ax.set_yticks(range(len(shown)), shown, **text)
    for query, key in marks:
        ax.add_patch(plt.Rectangle((key - 0.5, query - 0.5), 1, 1, fill=False, edgecolor=RED, lw=1.5))
    ax.set(xlabel="looks at (key)", ylabel="from (query)", title=title)
    ax.figure.colorbar(image, ax=ax, label="attention", shrink=0.6)
    return ax


def _neighbours(points: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Groups of names whose points (x, y) lie within 4 of the group's first one, in both directions."""
    groups: dict[str, list[str]] = {}
    for name, point in points.items():
        first = next((first for first in groups if (abs(points[first] - point) < 4).all()), name)
        groups.setdefault(first, []).append(name)
    return list(groups.values())
