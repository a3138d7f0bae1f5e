"""Every check against tables of right and wrong answers that people give: `answers_nb00.py` and so on."""

import answers_nb00
import answers_nb01
import answers_nb02
import answers_nb03
import answers_nb04
import answers_nb05
import answers_nb06
import numpy as np
import pytest

from ga_utils.checks import ALL
from ga_utils.checks import NOTEBOOKS as EXERCISES

TABLES = {
    "00": answers_nb00,
    "01": answers_nb01,
    "02": answers_nb02,
    "03": answers_nb03,
    "04": answers_nb04,
    "05": answers_nb05,
    "06": answers_nb06,
}


def cases(kind: str):
    return [
        pytest.param(name, answer, id=f"{name}-{i}")
        for tables in TABLES.values()
        for name, answers in getattr(tables, kind).items()
        for i, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("name, answer", cases("RIGHT"))
def test_right_answers_pass_every_time(name, answer):
    assert {ALL[name].verdict(answer)[0] for _ in range(20)} == {"✓"}


@pytest.mark.parametrize("name, answer", cases("WRONG"))
def test_wrong_answers_fail_every_time_and_are_told_why(name, answer):
    function, hint = answer
    for verdict in {ALL[name].verdict(function) for _ in range(20)}:
        assert verdict.startswith("✗") and hint in verdict


@pytest.mark.parametrize("notebook", TABLES)
def test_every_exercise_has_five_right_and_five_wrong_answers(notebook):
    names = {check.name for check in EXERCISES[notebook]}
    for kind in ("RIGHT", "WRONG"):
        table = getattr(TABLES[notebook], kind)
        assert set(table) == names and all(len(answers) >= 5 for answers in table.values())


def test_the_paired_test_counts_numpys_booleans():
    before, after = np.arange(300) < 250, np.arange(300) < 100
    p = ALL["paired_p"].reference
    assert p(before, after) == p(before.tolist(), after.tolist()) < 1e-6
