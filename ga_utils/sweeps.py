"""Which heads, and which layers, does a task need? Disable each in turn and score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ga_utils.heads import Head, ablate, alive_heads, check_heads, skip_layers, truncate
from ga_utils.items import Example
from ga_utils.models import LM
from ga_utils.scoring import Score, evaluate


@dataclass(frozen=True)
class HeadSweep:
    """What each head is worth to a task.

    accuracy: [n_layers, n_heads], 0 to 1, with that one head disabled; NaN where a head was not swept.
    logprob: [n_layers, n_heads], mean log-probability of the right choice among the choices, likewise.
    baseline: the `Score` with nothing disabled.
    """

    accuracy: np.ndarray
    logprob: np.ndarray
    baseline: Score

    @property
    def drop(self) -> np.ndarray:
        """[n_layers, n_heads]: accuracy lost by disabling the head (0.4 is 40 points)."""
        return self.baseline.accuracy - self.accuracy

    def top(self, k: int) -> list[Head]:
        """The k heads that cost the most accuracy, worst first; ties go to the larger loss of log-probability."""
        swept = [Head(int(layer), int(head)) for layer, head in np.argwhere(~np.isnan(self.accuracy))]
        return sorted(swept, key=lambda h: (self.accuracy[h.layer, h.head], self.logprob[h.layer, h.head]))[:k]

    def frame(self) -> pd.DataFrame:
        """One row for each swept head, worst first: head, layer, accuracy, drop, logprob."""
        rows = [(str(h), h.layer, self.accuracy[h.layer, h.head], self.drop[h.layer, h.head], self.logprob[h.layer, h.head])
                for h in self.top(self.accuracy.size)]  # fmt: skip
        return pd.DataFrame(rows, columns=["head", "layer", "accuracy", "drop", "logprob"])

    def plot(self, **kwargs):
        """A heat map of `drop`; see `ga.plots.head_sweep`."""
        from ga_utils import plots

        return plots.head_sweep(self, **kwargs)


def sweep_heads(
    lm: LM,
    examples: list[Example],
    heads: Iterable[Head | str] | None = None,
    mode: str = "zero",
    reference: list[Example] | None = None,
    progress: bool = True,
) -> HeadSweep:
    """Disable one head at a time, exactly, and evaluate the examples each time.

    Args:
        heads: which to try; by default all that are alive (a pruned head has nothing to disable).
        mode, reference: as in `ablate`.
    """
    heads = alive_heads(lm) if heads is None else check_heads(lm, heads)
    baseline = evaluate(lm, examples)
    accuracy = np.full((lm.n_layers, lm.n_heads), np.nan)
    logprob = accuracy.copy()
    for head in tqdm(heads, desc="heads", disable=not progress, leave=False):
        with ablate(lm, [head], mode, reference):
            score = evaluate(lm, examples)
        accuracy[head.layer, head.head] = score.accuracy
        logprob[head.layer, head.head] = score.right_logprob
    return HeadSweep(accuracy, logprob, baseline)


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
        from ga_utils import plots

        return plots.layer_sweep(self, **kwargs)


def sweep_layers(lm: LM, tasks: dict[str, list[Example]], how: str = "prefix", progress: bool = True) -> LayerSweep:
    """Score tasks on ever shorter models, or with one layer skipped at a time.

    Args:
        tasks: name -> examples.
        how: "prefix": keep the first 1, 2, ... n_layers layers. "leave_one_out": skip layer 0, then 1, ...
    """
    if how not in ("prefix", "leave_one_out"):
        raise ValueError(f'how={how!r}: expected "prefix" or "leave_one_out"')
    if not tasks:
        raise ValueError("no tasks: pass a dict such as {'mmlu': examples}")
    x = list(range(1, lm.n_layers + 1)) if how == "prefix" else list(range(lm.n_layers))
    scores: dict[str, list[Score]] = {task: [] for task in tasks}
    bar = tqdm(total=len(x) * len(tasks), desc="layers", disable=not progress, leave=False)
    for layer in x:
        with truncate(lm, layer) if how == "prefix" else skip_layers(lm, [layer]):
            for task, examples in tasks.items():
                scores[task].append(evaluate(lm, examples))
                bar.update()
    bar.close()
    return LayerSweep(how, x, scores)
