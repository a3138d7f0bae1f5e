"""A small table as a picture: conditions by tasks, layers by places."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from ga_utils.plots.style import axes, not_empty


def table(shares: Mapping[str, Mapping[str, float]], title: str = "", ax: Axes | None = None) -> Axes:
    """Shares from 0 to 1, {row: {column: share}}, as numbers in percent on colours from light to dark.

    Raises a ValueError if there is nothing to draw, or if the rows have different columns.
    """
    rows, columns = list(not_empty(shares)), list(not_empty(next(iter(shares.values()))))
    for row, values in shares.items():
        if list(values) != columns:
            raise ValueError(f"row {row!r} has {', '.join(values)}: expected {', '.join(columns)}")
    found = np.array([[float(shares[row][column]) for column in columns] for row in rows])
    ax = axes(ax, 2.2 + 0.85 * len(columns), 0.7 + 0.32 * len(rows))
    ax.imshow(found, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(found):
        if not np.isnan(value):
            colour = "white" if value > 0.6 else "black"
            ax.text(column, row, f"{100 * value:.0f} %", ha="center", va="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_title(title, fontsize=11)
    ax.tick_params(length=0)
    return ax
