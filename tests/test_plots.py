"""What the figures show is what they were given; degenerate input is drawn the right way up, or refused."""

import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import ga_utils as ga

NAN = np.nan


@pytest.fixture(autouse=True)
def drawn_without_a_warning():
    """Every figure of a test is drawn at its end: some faults only show then."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            yield
            for number in plt.get_fignums():
                plt.figure(number).canvas.draw()
        finally:
            plt.close("all")


def score(accuracy: float, n: int = 100) -> ga.Score:
    right = np.arange(n) < round(accuracy * n)
    return ga.Score(right, np.zeros((n, 2)), np.zeros(n, int))


def swept(drop, baseline: float = 0.5) -> ga.HeadSweep:
    """A sweep of a model with one row of `drop` for each layer."""
    accuracy = baseline - np.array(drop, float)
    return ga.HeadSweep(accuracy, np.log(np.maximum(accuracy, 1e-3)), score(baseline))


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


# What is drawn


def test_curves_are_the_accuracies_with_their_intervals_and_chance():
    scores = {"a": [score(0.5), score(0.9)], "b": [score(0.2), score(0.3)]}
    ax = ga.plots.curves([2, 8], scores, "pairs", chance=[0.5, 0.125])
    drawn = [line.get_xydata().tolist() for line in ax.lines if len(line.get_xydata()) == 2]
    for expected in ([[2, 0.5], [8, 0.9]], [[2, 0.2], [8, 0.3]], [[2, 0.5], [8, 0.125]]):
        assert any(np.allclose(line, expected) for line in drawn)
    ends = ax.collections[0].get_segments()[0][:, 1]
    assert ends == pytest.approx(score(0.5).ci95)
    assert ax.get_xlabel() == "pairs" and ax.get_ylabel() == "accuracy"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["chance", "a", "b"]


def test_a_table_shows_its_shares_row_by_row():
    ax = ga.plots.table({"none": {"letters": 0.96, "KV": 1.0}, "all": {"letters": NAN, "KV": 0.125}}, "off")
    assert texts(ax) == ["96 %", "100 %", "12 %"] and ax.get_title() == "off"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["letters", "KV"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["none", "all"]
    (image,) = ax.images
    assert image.get_array()[1, 1] == 0.125 and image.get_array().mask[1, 0]
    with pytest.raises(ValueError, match="row 'b' has y: expected x"):
        ga.plots.table({"a": {"x": 1}, "b": {"y": 1}})
    with pytest.raises(ValueError, match="nothing to draw"):
        ga.plots.table({})


def test_bands_are_the_mean_and_the_range_of_runs():
    runs = {"a": [[0.5, 0.9], [0.7, 0.1]], "b": [[0.2, 0.3]]}
    ax = ga.plots.bands([2, 8], runs, "pairs", chance=[0.5, 0.125])
    drawn = [line.get_xydata().tolist() for line in ax.lines]
    for expected in ([[2, 0.6], [8, 0.5]], [[2, 0.2], [8, 0.3]], [[2, 0.5], [8, 0.125]]):
        assert any(np.allclose(line, expected) for line in drawn)
    corners = ax.collections[0].get_paths()[0].vertices.round(6).tolist()
    assert all(corner in corners for corner in ([2, 0.5], [2, 0.7], [8, 0.1], [8, 0.9]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a (2)", "b (1)", "chance"]


@pytest.mark.parametrize("runs", [{"a": [0.5, 0.9]}, {"a": [[0.5, 0.9, 0.1]]}, {"a": []}])
def test_bands_refuse_numbers_that_are_not_one_for_each_run_and_place(runs):
    with pytest.raises(ValueError, match=r"'a' has numbers .* expected \[run, 2 places"):
        ga.plots.bands([2, 8], runs, "pairs")


def test_effects_show_every_head_and_name_the_marked_ones():
    sweeps = {"letters": swept([[0.4, 0.0], [NAN, -0.02]]), "knowledge": swept([[0.0, 0.1], [0.0, 0.0]])}
    ax = ga.plots.effects(sweeps, ["L0H0", ga.Head(1, 1)])
    dots = sorted(x for line in ax.lines if line.get_marker() in "oD" for x in line.get_xdata())
    assert dots == pytest.approx([-2, 0, 0, 0, 0, 10, 40])
    assert [text.get_text() for text in ax.texts] == ["L0H0", "L1H1", "L0H0\nL1H1"]  # one where both lie
    assert [t.get_text() for t in ax.get_yticklabels()] == ["letters\n(3 heads)", "knowledge\n(4 heads)"]
    medians = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "None"]
    assert medians == pytest.approx([0, 0])


def test_picks_shows_a_row_for_each_right_option():
    ax = ga.plots.picks(np.array([[0.9, 0.05], [NAN, NAN]]), "L2H0")
    assert [text.get_text() for text in ax.texts] == ["0.90", "0.05"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["A", "B"] and ax.get_title() == "L2H0"


def test_what_can_be_read_only_once_gives_the_same_figure():
    def lines(ax):
        return [line.get_xydata().tolist() for line in ax.lines]

    given = {"a": [score(0.5), score(0.9)]}
    once = {"a": (s for s in given["a"])}
    listed = ga.plots.curves([1, 2], given, "x", chance=[0.5, 0.25])
    assert lines(ga.plots.curves(iter([1, 2]), once, "x", chance=iter([0.5, 0.25]))) == lines(listed)

    bars = ga.plots.bars({"a": score(0.5), "b": score(0.1), "c": score(0.3)}, highlight=iter(["a", "c"]))
    colours = [patch.get_facecolor() for patch in bars.patches]
    assert colours[0] == colours[2] != colours[1]

    values = [0.1, 0.4, 0.7]
    assert lines(ga.plots.means({"a": iter(values)}, "y")) == lines(ga.plots.means({"a": values}, "y"))

    ax = ga.plots.pattern(torch.eye(2), iter("ab"), marks=iter([(0, 1)]))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"] and len(ax.patches) == 1


def test_means_have_a_normal_interval():
    ax = ga.plots.means({"a": [1.0, 2.0, 3.0], "b": torch.tensor([5.0, 5.0])}, "y")
    low, high = ax.collections[0].get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(2 - 1.96 / 3**0.5), pytest.approx(2 + 1.96 / 3**0.5))
    assert texts(ax) == ["2.00", "5.00"]


def test_grouped_bars_take_each_score_to_its_place_whatever_the_order():
    ax = ga.plots.grouped_bars(
        {"whole": {"a": score(0.9), "b": score(0.8)}, "without": {"b": score(0.2), "a": score(0.3)}},
        chance={"b": 0.5, "a": 0.25, "c": 0.1},
    )
    heights = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in ax.patches}
    assert heights == {-0.2: 0.9, 0.8: 0.8, 0.2: 0.3, 1.2: 0.2}
    chance = [line.get_segments()[0][0] for line in ax.collections[-2:]]
    assert [(round(x), y) for x, y in np.round(chance, 2) + [0.45, 0]] == [(0, 0.25), (1, 0.5)]


def test_a_sweep_is_drawn_in_points_lost_and_never_as_minus_zero():
    ax = swept([[0.6, -0.001], [NAN, 0.25]], baseline=0.9).plot()
    numbers = {text.get_position(): text.get_text() for text in ax.texts}
    assert numbers == {(0, 0): "60", (1, 0): "0", (1, 1): "25"}  # (head, layer); the head not swept has none
    assert ax.get_ylim()[0] < ax.get_ylim()[1], "layer 0 is at the bottom"


def test_layer_sweeps_say_what_their_axis_counts():
    scores = {"letters": [score(0.3), score(0.9)]}
    assert ga.LayerSweep("prefix", [1, 2], scores).plot().get_xlabel() == "layers kept"
    left_out = ga.LayerSweep("leave_one_out", [0, 1], scores)
    assert left_out.plot().get_xlabel() == left_out.frame().index.name == "layer left out"
    assert left_out.frame()["letters"].tolist() == [0.3, 0.9]


def test_two_sweeps_name_the_costly_heads_and_gather_the_others():
    know = swept([[0.0, 0.01, 0.0], [0.3, 0.0, NAN]])
    letters = swept([[0.4, 0.01, 0.0], [0.35, 0.38, 0.2]])
    ax = ga.plots.two_sweeps(know, letters, "knowledge", "letters")
    assert texts(ax) == ["L0H0, L1H1", "L1H0", "2 heads"]  # L1H2 was not disabled in both
    points = sorted(tuple(point) for line in ax.lines[:-1] for point in np.round(line.get_xydata(), 6))
    assert points == [(0, 0), (0, 38), (0, 40), (1, 1), (30, 35)]
    assert ax.get_xlabel() == "knowledge: points lost" and ax.get_ylabel() == "letters: points lost"


# Degenerate input


@pytest.mark.parametrize(
    "x, y",
    [
        ([[-0.2, -0.3]], [[-0.1, -0.4]]),  # every head does harm
        ([[0.0, 0.0]], [[0.0, 0.0]]),
        ([[0.5]], [[0.6]]),  # a single head
        ([[-0.9]], [[0.0]]),
        ([[0.001, 0.002]], [[-0.001, 0.0]]),
    ],
)
def test_two_sweeps_axes_point_up_and_right_and_hold_every_head(x, y):
    ax = ga.plots.two_sweeps(swept(x), swept(y), "x", "y")
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < right and bottom < top and (left, right) == (bottom, top)
    for across, up in zip(np.ravel(x), np.ravel(y)):
        assert left < 100 * across < right and bottom < 100 * up < top


@pytest.mark.parametrize(
    "table", [[[NAN, NAN]], [[0.0, 0.0]], [[-3.0, -1.0]], [[5.0]], [[NAN, -1.0]]], ids=str
)
def test_tables_of_any_numbers_have_a_colour_scale_from_0_up(table):
    ax = ga.plots.head_table(np.array(table), "cost")
    low, high = ax.images[0].get_clim()
    assert low == 0 < high <= 5
    assert [float(text) for text in texts(ax)] == [value for value in np.ravel(table) if not np.isnan(value)]


@pytest.mark.parametrize("A", [[[0.0, 0.0], [0.0, 0.0]], [[NAN, NAN], [NAN, NAN]], [[NAN, 0.0], [0.5, -0.2]]])
def test_patterns_of_any_numbers_have_a_colour_scale(A):
    low, high = ga.plots.pattern(torch.tensor(A), "ab").images[0].get_clim()
    assert low in (0, -high) and high > 0
    assert low == 0 or np.nanmin(A) < 0


def test_a_pattern_may_be_of_any_precision_and_its_tokens_any_text():
    A = torch.eye(3, dtype=torch.bfloat16, requires_grad=True)
    ax = ga.plots.pattern(A, ["$$", "$x_", "a\n"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["$$", "$x_", "a⏎"]


def test_a_single_score_or_question_is_drawn():
    one = score(1.0, n=1)
    assert [bar.get_height() for bar in ga.plots.bars({"a": one}).patches] == [1]
    ga.plots.curves([1], {"a": [one]}, "x")
    ga.plots.grouped_bars({"a": {"b": one}})


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: ga.plots.curves([], {}, "x"), "nothing to draw"),
        (lambda: ga.plots.bars({}), "nothing to draw"),
        (lambda: ga.plots.grouped_bars({}), "nothing to draw"),
        (lambda: ga.plots.grouped_bars({"a": {}}), "nothing to draw"),
        (lambda: ga.plots.means({}, "y"), "nothing to draw"),
        (lambda: ga.plots.means({"a": []}, "y"), "'a' has no interval"),
        (lambda: ga.plots.means({"a": [1.0]}, "y"), "'a' has no interval"),
        (lambda: ga.plots.means({"a": [1.0, NAN]}, "y"), "'a' has no interval"),
        (lambda: ga.plots.curves([1, 2], {"a": [score(0.5)]}, "x"), "'a' has 1 scores for 2 places"),
        (lambda: ga.plots.bars({"a": score(0.5)}, highlight="ab"), "the bars are a"),
        (
            lambda: ga.plots.grouped_bars({"a": {"x": score(0.5)}, "b": {"y": score(0.5)}}),
            "'b' has scores for y: expected x",
        ),
        (
            lambda: ga.plots.grouped_bars({"a": {"x": score(0.5)}}, chance={"y": 0.5}),
            "chance is given for y: expected x",
        ),
        (lambda: ga.plots.head_table(np.zeros(3), "cost"), r"expected a table .* got shape \(3,\)"),
        (lambda: ga.plots.head_table(np.zeros((0, 3)), "cost"), "expected a table"),
        (lambda: ga.plots.pattern(torch.eye(3), "ab"), "does not fit 2 tokens"),
        (
            lambda: ga.plots.two_sweeps(swept([[NAN]]), swept([[0.1]]), "x", "y"),
            "no head was disabled in both",
        ),
        (lambda: ga.plots.two_sweeps(swept([[0.1, NAN]]), swept([[NAN, 0.1]]), "x", "y"), "no head"),
        (lambda: ga.plots.two_sweeps(swept([[0.1]]), swept([[0.1, 0.2]]), "x", "y"), "same shape"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
    assert not plt.get_fignums(), "an empty figure is left behind, and a notebook would show it"


# Results


def test_an_empty_sweep_says_so_and_a_full_one_names_its_worst_heads():
    assert repr(swept([[NAN, NAN]])).startswith("HeadSweep(0 heads disabled; baseline 50.0%")
    assert swept([[NAN, NAN]]).top(3) == [] and len(swept([[NAN, NAN]]).frame()) == 0
    assert repr(swept([[0.1, 0.4]])).startswith("HeadSweep(2 heads disabled; worst L0H1, L0H0; baseline")


def test_sweeps_are_equal_when_their_numbers_are():
    one = swept([[0.1, NAN], [0.3, 0.0]])
    same = replace(one, accuracy=one.accuracy.copy(), logprob=one.logprob.copy())
    assert one == one and one == same
    assert one != swept([[0.1, NAN], [0.3, 0.1]]) and one != replace(one, estimate=one.logprob)
    assert one != swept([[0.1, NAN, 0.3]]) and one != "L0H0"
    screened = replace(one, estimate=np.ones((2, 2)))
    assert screened == replace(one, estimate=np.ones((2, 2))) and screened != replace(
        one, estimate=one.accuracy
    )


def test_roles_are_equal_when_their_numbers_are():
    evidence = pd.DataFrame({"heads": ["L0H0"], "confirmed": [NAN]})
    heads = [ga.Head(0, 0)], [ga.Head(0, 1)]
    roles = ga.Roles(*heads, evidence, swept([[0.4, 0.5]]), np.zeros((1, 2)), np.ones((1, 2)))
    assert roles == replace(roles, gather=[ga.Head(0, 0)], evidence=evidence.copy())
    assert roles != replace(roles, gather_score=np.ones((1, 2))) and roles != replace(roles, gather=[])
    assert roles != replace(roles, evidence=evidence.assign(heads="L0H1"))
