"""The course's figures. Each function draws on the Axes it is given, or on new ones, and returns them.

The colours are Okabe and Ito's, which colour-blind readers can tell apart. No figure relies on colour alone:
lines also differ in their markers, grouped bars in their hatches, and small tables show their numbers.
"""

from ga_utils.plots.accuracies import bands, bars, curves, grouped_bars, guess, means
from ga_utils.plots.heads import effects, head_sweep, head_table, layer_sweep, pattern, picks, two_sweeps
from ga_utils.plots.placement import percentiles, spread, tradeoff
from ga_utils.plots.rates import outcomes
from ga_utils.plots.style import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY
from ga_utils.plots.tables import table

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PINK",
    "RED",
    "SKY",
    "bands",
    "bars",
    "curves",
    "effects",
    "grouped_bars",
    "guess",
    "head_sweep",
    "head_table",
    "layer_sweep",
    "means",
    "outcomes",
    "pattern",
    "percentiles",
    "picks",
    "spread",
    "table",
    "tradeoff",
    "two_sweeps",
]
