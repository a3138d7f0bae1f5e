"""`make course` and `make refresh`: copies and a site go to build/, outputs are clean, a failing cell stops the run."""

import re
import sys

import build
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from ga_utils.checks import ALL


@pytest.fixture
def project(tmp_path, monkeypatch):
    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell(
            "from tqdm.auto import tqdm\nimport sys\nfor _ in tqdm(range(2)): pass\nprint(6 * 7)"
        ),
        nbformat.v4.new_code_cell("print('noise', file=sys.stderr)"),
    ]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "00_x.ipynb")
    (tmp_path / "README.md").write_text("# Course\n\n[first](notebooks/00_x.ipynb#Title) [licence](LICENSE)")
    (tmp_path / "LICENSE").write_text("free")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["course", *arguments])
    build.main()


def test_run_writes_notebook_and_page_and_leaves_the_source_alone(project, monkeypatch):
    source = project / "notebooks" / "00_x.ipynb"
    before = source.read_text()
    run(monkeypatch, "run")
    assert source.read_text() == before
    assert {path.name for path in (project / "build").iterdir()} == {
        "00_x.ipynb",
        "00_x.html",
        "index.html",
        "LICENSE",
    }
    page = (project / "build" / "00_x.html").read_text()
    assert "42" in page and 'src="http' not in page and 'href="http' not in page


def links(path):
    return re.findall(r'<a [^>]*?href="([^"#]+)', path.read_text())


def test_the_site_leads_from_page_to_page_and_shows_what_was_not_run(project, monkeypatch):
    second = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Second\n\n[map](../README.md)"),
            nbformat.v4.new_code_cell("1 / 0"),
        ]
    )
    nbformat.write(second, project / "notebooks" / "01_y.ipynb")
    run(monkeypatch, "run", str(project / "notebooks" / "00_x.ipynb"))  # the second would fail
    build = project / "build"
    assert {path.name for path in build.glob("*.html")} == {"00_x.html", "01_y.html", "index.html"}
    assert not (build / "01_y.ipynb").exists()
    assert 'href="00_x.html#Title"' in (build / "index.html").read_text()
    assert "LICENSE" in links(build / "index.html") and (build / "LICENSE").read_text() == "free"
    bottom = re.search(r'aria-label="Pages">(.*)</nav>', (build / "01_y.html").read_text())[1]
    assert "← Title" in bottom and 'href="00_x.html"' in bottom and "→" not in bottom
    for path in build.glob("*.html"):
        assert links(path) and all((build / target).exists() for target in links(path)), path.name
        text = path.read_text()
        assert re.search(r'<meta content="width=device-width[^>]*name="viewport"', text)
        assert text.count('aria-current="page"') >= 1 and f'href="{path.name}" aria-current' in text


def test_refresh_rewrites_outputs_without_bars_noise_or_widget_state(project, monkeypatch):
    run(monkeypatch, "refresh")
    notebook = nbformat.read(project / "notebooks" / "00_x.ipynb", as_version=4)
    assert [output.text for cell in notebook.cells[1:] for output in cell.outputs] == ["42\n"]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]
    assert "widgets" not in notebook.metadata and not (project / "build").exists()


def test_a_failing_cell_stops_the_run_and_writes_nothing(project, monkeypatch):
    path = project / "notebooks" / "00_x.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = "1 / 0"
    nbformat.write(notebook, path)
    before = path.read_text()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(monkeypatch, "refresh")
    assert path.read_text() == before


def test_a_page_describes_its_figures_in_their_order():
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
    figures = [nbformat.v4.new_output("display_data", {"image/png": pixel}) for _ in range(2)]
    cells = [
        nbformat.v4.new_code_cell("a", outputs=figures, metadata={"alt": ["first", 'second, "quoted"']}),
        nbformat.v4.new_code_cell("b", outputs=figures[:1], metadata={"alt": ["third"]}),
    ]
    page = build.page(nbformat.v4.new_notebook(cells=cells))
    assert re.findall(r'<img alt="([^"]*)"', page) == ["first", "second, &quot;quoted&quot;", "third"]


PACK = (build.ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")


def test_the_teachers_paths_take_the_minutes_they_claim():
    paths = re.findall(r"\*\*(\d+) minutes\*\*.*?\n\n(.*?)\n\n", PACK, re.DOTALL)
    assert [name for name, _ in paths] == ["60", "90", "180"]
    for name, table in paths:
        assert sum(int(row) for row in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)) == int(name)


@pytest.mark.parametrize(
    "path", sorted((build.ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_the_teachers_pack_knows_every_figure_and_every_quiz_question(path):
    notebook = nbformat.read(path, as_version=4)
    part = re.search(rf"^## {path.stem[:2]} (.*?)(?=^## |\Z)", PACK, re.DOTALL | re.MULTILINE)[1]
    figures = sum(
        "image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert len(re.findall(r"^\| ", part, re.MULTILINE)) == figures + 1  # the table's head
    (quiz,) = [cell.source for cell in notebook.cells if cell.source.startswith("## Self-quiz")]
    answers = re.search(r"^Quiz: (.*?)\n\n", part, re.DOTALL | re.MULTILINE)[1]
    assert re.findall(r"\*\*(\d)\*\*", answers) == re.findall(r"<summary>(\d)\.", quiz)
    minutes = int(re.search(r"\*\*Time\*\*: (\d+) minutes", notebook.cells[0].source)[1])
    assert minutes == [int(n) for n in re.findall(r"\d+", PACK.split("alone:")[1])][int(path.stem[:2])]


def test_everything_the_teachers_pack_names_exists():
    assert all(
        (build.ROOT / "notebooks" / target).exists() for target in re.findall(r"\]\(([^)#h][^)#]*)\)", PACK)
    )
    checks = re.findall(r"they do (.*?) \|", PACK)
    assert {name for line in checks for name in re.findall(r"`(\w+)`", line)} <= set(ALL)
