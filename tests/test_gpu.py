"""What `make gpu` runs, as far as a CPU can show: small models, reports, and what it says without a GPU."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat import v4

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
import measures
import printed
import report
from shapes import build, questions


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing_and_what_to_do(capsys):
    with pytest.raises(SystemExit) as stopped:
        report.main([])
    assert stopped.value.code == 2
    assert "no NVIDIA GPU" in (said := capsys.readouterr().err) and "make gpu PYTHON=python" in said


@pytest.mark.parametrize(
    "arguments, words", [(["speeed"], "unknown: speeed"), (["--device", "cpu"], "for --quick")]
)
def test_arguments_that_make_no_sense_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit):
        report.main(arguments)
    assert words in capsys.readouterr().err


def test_a_quick_run_on_a_cpu_writes_both_reports(tmp_path):
    result = report.main(["memory", "speed", "--quick", "--device", "cpu", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "gpu.json").read_text()) == result
    assert all(row["ok"] for part in ("memory", "speed") for row in result[part])
    page = (tmp_path / "gpu.md").read_text()
    assert torch.__version__ in page and "transformers" in page
    assert all(f"| {row['what']} | ok |" in page for part in ("memory", "speed") for row in result[part])


def test_prompts_have_the_lengths_asked_for():
    lm = build("llama-3.1-8b-instruct", "cpu", torch.float32, narrow=True)
    lengths = [len(ids) for ids in lm.tokenize([example.prompt for example in questions(lm, [20, 57])])]
    assert all(0 <= length - asked <= 5 for length, asked in zip(lengths, [20, 57]))


def test_running_out_of_memory_and_too_high_a_peak_are_failures(monkeypatch):
    def too_much():
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    failed = measures.row("cpu", "too much", too_much)
    assert not failed["ok"] and "9 GiB" in failed["note"]
    monkeypatch.setattr(measures, "timed", lambda device, work: (work(), 1.0, 16.0))
    assert not measures.row("cuda", "16 GB", list, limit_gb=15)["ok"]
    assert measures.row("cuda", "16 GB", list, limit_gb=20)["ok"]


def notebook(*cells: tuple[str, str]) -> nbformat.NotebookNode:
    """One that prints: (source, text) for each cell."""
    return v4.new_notebook(
        cells=[
            v4.new_code_cell(source, outputs=[v4.new_output("stream", name="stdout", text=text)])
            for source, text in cells
        ]
    )


def test_other_lines_are_shown_and_fail_a_notebook_only_where_they_are_checked():
    committed = notebook(("# NBVAL_CHECK_OUTPUT\nprint(a)", "29.0 %\nsame\n"), ("print(t)", "3 s\n"))
    slower = notebook(("# NBVAL_CHECK_OUTPUT\nprint(a)", "29.0 %\nsame\n"), ("print(t)", "4 s\n"))
    other = notebook(("# NBVAL_CHECK_OUTPUT\nprint(a)", "30.5 %\nsame\n"), ("print(t)", "3 s\n"))
    assert printed.differences(committed, committed) == ([], True)
    assert printed.differences(committed, slower) == (["cell 2: -3 s", "cell 2: +4 s"], True)
    assert printed.differences(committed, other) == (
        ["cell 1 (checked): -29.0 %", "cell 1 (checked): +30.5 %"],
        False,
    )


def test_a_notebook_that_stops_is_a_failure_with_its_error(tmp_path):
    path = tmp_path / "broken.ipynb"
    broken = v4.new_notebook(cells=[v4.new_code_cell("1 / 0")])
    broken.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(broken, path)
    (row,) = printed.notebooks([path])
    assert not row["ok"] and "ZeroDivisionError" in row["note"]
