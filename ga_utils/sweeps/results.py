"""What a sweep found, as tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ga_utils import plots
from ga_utils.heads import Head
from ga_utils.scoring import Score


@dataclass(frozen=True)
class HeadSweep:
    """What each head is worth to a task.

    accuracy: [n_layers, n_heads], 0 to 1, with that one head disabled; NaN where a head was not swept.
    logprob: [n_layers, n_heads], mean log-probability of the right choice among the choices, likewise.
    baseline: the `Score` with nothing disabled.
    estimate: [n_layers, n_heads], only for method="screen": `logprob` of all heads as attribution estimates it. Where
        `accuracy` is a number, the head was disabled in earnest; everywhere else there is the estimate alone.
    """

    accuracy: np.ndarray
    logprob: np.ndarray
    baseline: Score
    estimate: np.ndarray | None = None

    @property
    def drop(self) -> np.ndarray:
        """[n_layers, n_heads]: accuracy lost by disabling the head (0.4 is 40 points)."""
        return self.baseline.accuracy - self.accuracy

    def top(self, k: int) -> list[Head]:
        """The k heads that cost the most accuracy, worst first; ties go to the larger loss of log-probability."""
        swept = [Head(int(layer), int(head)) for layer, head in np.argwhere(~np.isnan(self.accuracy))]
        return sorted(swept, key=lambda h: (self.accuracy[h.layer, h.head], self.logprob[h.layer, h.head]))[
            :k
        ]

    def frame(self) -> pd.DataFrame:
        """One row for each swept head, worst first: head, layer, accuracy, drop, logprob."""
        rows = [
            (
                str(h),
                h.layer,
                self.accuracy[h.layer, h.head],
                self.drop[h.layer, h.head],
                self.logprob[h.layer, h.head],
            )
            for h in self.top(self.accuracy.size)
        ]
        return pd.DataFrame(rows, columns=["head", "layer", "accuracy", "drop", "logprob"])

    def __repr__(self):
        exact = int((~np.isnan(self.accuracy)).sum())
        screened = (
            ""
            if self.estimate is None
            else f" of {int((~np.isnan(self.estimate)).sum())}, chosen by attribution"
        )
        return f"HeadSweep({exact} heads disabled{screened}; worst {', '.join(map(str, self.top(3)))}; baseline {self.baseline})"

    def plot(self, **kwargs):
        """A heat map of `drop`; see `ga.plots.head_sweep`."""
        return plots.head_sweep(self, **kwargs)


@dataclass(frozen=True)
class LayerSweep:
    """Accuracy of each task as layers go. scores: {task: [Score]}, aligned with `x`."""

    how: str
    x: list[int]
    scores: dict[str, list[Score]]

    def frame(self) -> pd.DataFrame:
        """One column of accuracies a task; the index is the number of layers kept, or the layer left out."""
        columns = {task: [score.accuracy for score in scores] for task, scores in self.scores.items()}
        return pd.DataFrame(
            columns, index=pd.Index(self.x, name="layers kept" if self.how == "prefix" else "layer left out")
        )

    def plot(self, **kwargs):
        """Curves over layers; see `ga.plots.layer_sweep`."""
        return plots.layer_sweep(self, **kwargs)
