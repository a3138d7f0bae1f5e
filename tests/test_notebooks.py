"""The notebooks' form: template, short cells, no head named in advance; and their exercises' checks."""

import ast
import re
import tomllib
from pathlib import Path
from statistics import median

import nbformat
import numpy as np
import pytest
import torch

import ga_utils as ga
from ga_utils.checks import ALL
from ga_utils.checks import NOTEBOOKS as EXERCISES
from ga_utils.checks.check import Check

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted(FOLDER.glob("*.ipynb"))}
each = pytest.mark.parametrize("notebook", NOTEBOOKS.values(), ids=NOTEBOOKS)
PAPERS_HEADS = {"L16H22", "L17H24"}


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@each
def test_follows_the_template(notebook):
    text = prose(notebook)
    for part in (
        "After this notebook you can",
        "You need to know",
        "**Time**",
        "**Hardware**",
        "## Recap",
        "## Self-quiz",
        "## References",
    ):
        assert part in text, part
    (parameters,) = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert parameters.source.startswith("MODEL = ")
    assert text.count("**What to see.**") >= 1 and "The paper" in text


def test_the_install_cell_is_the_same_everywhere_and_has_the_projects_address():
    cells = {
        name: [c.source for c in code(book) if "install" in c.metadata.get("tags", [])]
        for name, book in NOTEBOOKS.items()
    }
    (only,) = {tuple(found) for found in cells.values()}
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    assert len(only) == 1 and only[0].startswith(f'COURSE = "{project.get("urls", {}).get("Course", "")}"')
    for name, book in NOTEBOOKS.items():
        assert "install" in code(book)[0].metadata["tags"], f"{name}: the install cell comes first"


@each
def test_cells_are_short_and_explained(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code(notebook)]
    assert max(lengths) <= 25 and median(lengths) <= 6
    assert len(notebook.cells) - len(lengths) >= 0.7 * len(lengths)
    long = [line for cell in code(notebook) for line in cell.source.splitlines() if len(line) > 99]
    assert not long, "JupyterLab shows about 99 columns on a screen of 1,300 pixels"


@each
def test_outputs_are_those_of_one_clean_run(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [
        output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "widgets" not in notebook.metadata
    checked = [cell.outputs for cell in code(notebook) if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert {output.output_type for output in sum(checked, [])} == {"stream"}, "nbval compares prints only"
    text = nbformat.writes(notebook)
    assert len(text) < 3_000_000 and "/work/" not in text and "/root/" not in text and "unpkg" not in text


def has_picture(cell):
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


@each
def test_every_figure_is_captioned_and_described(notebook):
    """The text says what to see before the next figure comes; readers who cannot see it get a description."""
    figures = [i for i, cell in enumerate(notebook.cells) if has_picture(cell)]
    for here, following in zip(figures, [*figures[1:], len(notebook.cells)]):
        cell, after = notebook.cells[here], notebook.cells[here + 1 : following]
        assert any("**What to see.**" in c.source for c in after if c.cell_type == "markdown"), cell.source
        n_pictures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
        assert [len(text) > 40 for text in cell.metadata.get("alt", [])] == [True] * n_pictures, cell.source


@each
def test_a_prediction_comes_before_its_figure_and_is_drawn_into_it(notebook):
    cells = [cell.source for cell in code(notebook)]
    asked = {
        found[1]: i for i, source in enumerate(cells) if (found := re.match(r"(\w+) = ga\.predict\(", source))
    }
    assert asked
    for name, i in asked.items():
        (drawn,) = [
            k for k, source in enumerate(cells) if re.search(rf"ga\.plots\.guess\(.*\b{name}\.value", source)
        ]
        assert drawn > i and has_picture(code(notebook)[drawn])


def test_notebooks_link_to_their_neighbours_and_to_the_one_glossary():
    names = list(NOTEBOOKS)
    for i, notebook in enumerate(NOTEBOOKS.values()):
        top, bottom = notebook.cells[0].source.splitlines()[-1], notebook.cells[-1].source.splitlines()[-1]
        assert "(../README.md)" in top
        assert [name for name in names if f"({name}.ipynb)" in top] == names[max(i - 1, 0) : i] + names[
            i + 1 : i + 2
        ]
        assert f"({names[i + 1]}.ipynb)" in bottom if names[i + 1 :] else "(../README.md)" in bottom
        assert i == 0 or "(00_start_here.ipynb#Words)" in top
    (shown,) = [c for notebook in NOTEBOOKS.values() for c in code(notebook) if "ga.glossary()" in c.source]
    assert "Gather-and-Aggregate" in shown.outputs[0].data["text/markdown"]
    assert any(c.source.startswith("## Words") for c in NOTEBOOKS["00_start_here"].cells)


@each
def test_no_head_is_named_in_advance(notebook):
    """Code may name L1H0, an arbitrary head for a demonstration; those that matter come from a search."""
    for cell in code(notebook):
        assert set(re.findall(r"L\d+H\d+", cell.source)) <= {"L1H0"}
    assert set(re.findall(r"L\d+H\d+", prose(notebook))) <= PAPERS_HEADS


@each
def test_no_cell_writes_a_file(notebook):
    """So that they also run from a folder that can't be written to; "auto" checkpoints are in the cache."""
    writes = re.compile(
        r"open\(|\.write|\.to_(csv|json|pickle)\(|\.save|savefig\(|checkpoint=(?!\"auto\")|mkdir|^!",
        re.MULTILINE,
    )
    assert [found[0] for cell in code(notebook) for found in [writes.search(cell.source)] if found] == []


def exercises():
    for name, notebook in NOTEBOOKS.items():
        for i, cell in enumerate(notebook.cells):
            if found := re.search(
                r"ga\.checks\.(\w+)\((\w+)\)", cell.source if cell.cell_type == "code" else ""
            ):
                yield pytest.param(
                    found[1], cell.source, notebook.cells[i + 1].source, id=f"{name[:2]}-{found[1]}"
                )


@pytest.mark.parametrize("name, stub, folded", list(exercises()))
def test_solutions_pass_and_stubs_count_as_not_attempted(name, stub, folded, capsys):
    assert "<summary>Hint" in folded
    solution = re.search(r"<summary>Solution.*?```python\n(.*?)```", folded, re.DOTALL)[1]
    signatures = []
    for source, expected in (
        (solution, f"✓ {name}"),
        (stub.split("ga.checks")[0], f"· {name}: not attempted yet"),
    ):
        space = {"ga": ga}
        exec("import numpy as np, torch, random\n" + source, space)
        assert ALL[name].verdict(space[name]).startswith(expected)
        signatures.append(ast.unparse(ast.parse(source).body[-1].args))
    assert signatures[0] == signatures[1]


@pytest.mark.parametrize("number", EXERCISES)
def test_four_to_six_exercises_from_a_warm_up_to_a_bonus(number):
    (notebook,) = [notebook for name, notebook in NOTEBOOKS.items() if name.startswith(number)]
    given = [
        found for cell in code(notebook) for found in re.findall(r"ga\.checks\.(\w+)\(\w+\)", cell.source)
    ]
    assert given == [check.name for check in EXERCISES[number]] and 4 <= len(given) <= 6
    boxes = re.findall(
        r"\*\*Difficulty\*\* ([●○]{4})(.*?) · \*\*about \d+ minutes\*\* · check: `ga.checks.(\w+)`",
        prose(notebook),
    )
    assert [name for _, _, name in boxes] == given
    assert boxes[0][0] == "●○○○" and [bool(bonus) for *_, bonus, _ in boxes] == [
        dots == "●●●●" for dots, *_ in boxes
    ]
    assert sum(dots == "●●●●" for dots, *_ in boxes) >= 1
    assert any("ga.checks.progress()" in cell.source for cell in code(notebook))


def test_progress_shows_the_last_verdict_of_each_exercise_tried(capsys):
    ga.checks.OUTCOMES.clear()
    ga.checks.progress()
    assert "no exercise was checked" in capsys.readouterr().out
    assert not ga.checks.gap_closed(lambda student, hybrid, teacher: 2.0)
    assert ga.checks.gap_closed(ga.checks.gap_closed.reference)
    ga.checks.greedy(lambda score, heads, k: None)
    ga.checks.holds_one(lambda n_heads, n_good, k: 0.0)
    capsys.readouterr()
    ga.checks.progress()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("05: 1 of 5 right")
    assert (
        line.split("right")[1].split()
        == "✓ gap_closed · swap_head · silence_last ✗ holds_one · greedy".split()
    )


MISTAKES = [
    pytest.param(c, h, f, id=f"{c.name}-{i}")
    for c in ALL.values()
    for i, (h, f) in enumerate(c.mistakes.items())
]


@pytest.mark.parametrize("check, hint, mistake", MISTAKES)
def test_usual_mistakes_fail_with_their_own_hint(check, hint, mistake):
    assert check.verdict(mistake) == f"✗ {check.name}: {hint}"


@pytest.mark.parametrize("check", ALL.values(), ids=ALL)
def test_checks_know_two_mistakes_and_survive_anything(check):
    assert len(check.mistakes) >= 2
    assert "raised" in check.verdict(lambda *args: 1 / 0)
    assert check.verdict(lambda *args: "nonsense").startswith("✗")
    assert check.verdict(check.reference).startswith("✓")


def test_a_result_in_place_of_the_function_is_told_so():
    assert "pass the function itself" in ALL["gap_closed"].verdict(0.5)


def test_a_right_answer_that_changes_its_argument_is_told_so():
    def in_place(z, head, d_head):
        z[..., head * d_head : (head + 1) * d_head] = 0
        return z

    assert "you changed the tensor you were given" in ALL["zero_head"].verdict(in_place)


def takes(*args):
    return lambda rng: args


@pytest.mark.parametrize(
    "expected, given, accepted",
    [
        (3, np.int64(3), True),
        (3, 3.0, False),
        (3, torch.tensor(3), False),
        (True, np.True_, True),
        (True, 1, False),
        (0.5, np.float32(0.5), True),
        (0.5, torch.tensor(0.5), True),
        (["L1H0"], (ga.Head(1, 0),), True),
        (["L1H0", "L2H1"], ["L2H1", "L1H0"], False),
        ([(1, 2)], [[1, 2]], True),
        ({"L1H0": 0.5}, {ga.Head(1, 0): np.float64(0.5)}, True),
        ({"L1H0": 0.5}, {"L1H1": 0.5}, False),
        ({"a", "b"}, ["a", "b"], False),
        ("a", ["a"], False),
    ],
)
def test_what_counts_as_the_same_answer(expected, given, accepted):
    check = Check("toy", reference=lambda: expected, inputs=takes())
    assert check.verdict(lambda: given).startswith("✓" if accepted else "✗")


@pytest.mark.parametrize("argument", [[3, 1, 2], {"a": 1}, {1, 2}])
def test_any_argument_that_is_changed_is_noticed(argument):
    def in_place(some):
        found = sorted(some)
        some.clear()
        return found

    check = Check("toy", reference=sorted, inputs=takes(argument))
    assert f"you changed the {type(argument).__name__} you were given" in check.verdict(in_place)


def test_the_same_answer_gets_the_same_verdict_each_time():
    nearly = Check("toy", lambda x: x, lambda rng: (rng.random(),))
    verdicts = {nearly.verdict(lambda x: x if x < 0.8 else 0.0) for _ in range(20)}
    assert len(verdicts) == 1


def test_a_mistake_that_raises_does_not_hide_the_next_ones_hint():
    mistakes = {"first": lambda x: 1 // 0, "second": lambda x: x + 1}
    check = Check("toy", lambda x: x, lambda rng: (rng.randrange(9),), mistakes)
    assert check.verdict(lambda x: x + 1) == "✗ toy: second"
