"""What a sweep found, as tables and figures."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ga_utils import plots
from ga_utils.heads import Head
from ga_utils.scoring import Score


@dataclass(frozen=True, eq=False)
class HeadSweep:
    """What disabling each head, one at a time, does to a task.

    accuracy: [n_layers, n_heads], 0 to 1, with only that head disabled; NaN where a head was not disabled.
    logprob: [n_layers, n_heads], mean log-probability of the right choice among the choices, likewise.
    baseline: the `Score` with nothing disabled.
    estimate: [n_layers, n_heads], only for method="screen": `logprob` as attribution estimates it, for every
        head. The most suspicious ones were then disabled, and have a number in `accuracy` as well.
    """

    accuracy: np.ndarray
    logprob: np.ndarray
    baseline: Score
    estimate: np.ndarray | None = None

    def __eq__(self, other) -> bool:
        return same_values(self, other)

    @property
    def drop(self) -> np.ndarray:
        """[n_layers, n_heads]: accuracy lost by disabling the head (0.4 is 40 points)."""
        return self.baseline.accuracy - self.accuracy

    def top(self, k: int) -> list[Head]:
        """The k heads that cost the most accuracy, worst first; a tie goes to the larger loss of logprob."""
        swept = [Head(int(layer), int(head)) for layer, head in np.argwhere(~np.isnan(self.accuracy))]
        swept.sort(key=lambda h: (self.accuracy[h.layer, h.head], self.logprob[h.layer, h.head]))
        return swept[:k]

    def frame(self) -> pd.DataFrame:
        """One row for each head that was disabled, worst first: head, layer, accuracy, drop, logprob."""
        rows, drop = [], self.drop
        for head in self.top(self.accuracy.size):
            at = head.layer, head.head
            rows.append((str(head), head.layer, self.accuracy[at], drop[at], self.logprob[at]))
        return pd.DataFrame(rows, columns=["head", "layer", "accuracy", "drop", "logprob"])

    def __repr__(self):
        disabled = f"{int((~np.isnan(self.accuracy)).sum())} heads disabled"
        if self.estimate is not None:
            disabled += f" of {int((~np.isnan(self.estimate)).sum())}, chosen by attribution"
        worst = f"worst {', '.join(map(str, self.top(3)))}; " if self.top(1) else ""
        return f"HeadSweep({disabled}; {worst}baseline {self.baseline})"

    def plot(self, ax: Axes | None = None) -> Axes:
        """A heat map of `drop`; see `ga.plots.head_sweep`."""
        return plots.head_sweep(self, ax)


@dataclass(frozen=True)
class LayerSweep:
    """What each task loses as layers go.

    how: "prefix" (only the first layers are kept) or "leave_one_out" (one layer is skipped).
    x: the numbers of layers kept, or the layers left out, counted from 0.
    scores: {task: a Score for each x}.
    """

    how: str
    x: list[int]
    scores: dict[str, list[Score]]

    @property
    def xlabel(self) -> str:
        """What `x` counts."""
        return "layers kept" if self.how == "prefix" else "layer left out"

    def frame(self) -> pd.DataFrame:
        """One column of accuracies for each task, one row for each x."""
        columns = {task: [score.accuracy for score in scores] for task, scores in self.scores.items()}
        return pd.DataFrame(columns, index=pd.Index(self.x, name=self.xlabel))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Curves over layers; see `ga.plots.layer_sweep`."""
        return plots.layer_sweep(self, ax)


def same_values(a, b) -> bool:
    """Whether two objects are of one dataclass and equal in every field; NaN equals NaN.

    For dataclasses with arrays: the `==` that `dataclass` writes would ask an array for a single truth value.
    """

    def same(x, y) -> bool:
        if isinstance(x, pd.DataFrame):
            return x.equals(y)
        if not isinstance(x, np.ndarray):
            return x is y or type(x) is type(y) and x == y
        return isinstance(y, np.ndarray) and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")

    return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
