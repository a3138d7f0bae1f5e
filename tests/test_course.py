"""`make course` and `make refresh`, and what the README and the teacher's pack say about the course."""

import re
import shutil
import sys

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError

import build
from ga_utils.checks import ALL
from images import retrieval

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


def write(path, *cells):
    language = {"name": "python", "pygments_lexer": "ipython3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata={"language_info": language}), path)


def make_course(root):
    """A course of two notebooks: one prints 42, a bar and a warning; one has figures and would fail."""
    shutil.copytree(build.ROOT / "notebooks" / "site", root / "notebooks" / "site")
    noisy = "from tqdm.auto import tqdm\nimport sys\nfor _ in tqdm(range(2)): pass\nprint(6 * 7)"
    write(
        root / "notebooks" / "00_x.ipynb",
        markdown("# First\n\n## A part\n\n[next](01_y.ipynb#Self-quiz)"),
        code(noisy),
        code("print('noise', file=sys.stderr)"),
    )
    figures = [nbformat.v4.new_output("display_data", {"image/png": PIXEL}) for _ in range(2)]
    write(
        root / "notebooks" / "01_y.ipynb",
        markdown("# Second\n\n[map](../README.md), [facts](../data/facts.csv)"),
        code("1 / 0", outputs=figures, metadata={"alt": ["one", 'two, "quoted"']}),
        code("3", outputs=figures[:1], metadata={"alt": ["three"], "jupyter": {"outputs_hidden": True}}),
        markdown("## Self-quiz"),
    )
    files = {
        "README.md": "# Course\n\n[first](notebooks/00_x.ipynb) [licence](LICENSE)",
        "LICENSE": "free",
        "pyproject.toml": "[project]\nname = 'x'\n",
        "data/facts.csv": "a,b",
        **{f"{folder}/README.md": f"# About {folder}" for folder in ("notebooks", "ga_utils", "data")},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def project(tmp_path, monkeypatch):
    make_course(tmp_path)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of a course whose first notebook was run, and whose second was changed after its run."""
    root = make_course(tmp_path_factory.mktemp("course"))
    notebook = nbformat.read(root / "notebooks" / "00_x.ipynb", as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="42, as run")]
    write(root / "build" / "00_x.ipynb", *notebook.cells)
    write(root / "build" / "01_y.ipynb", markdown("# Second"), code("print('an old run')"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "ROOT", root)
        build.site(root / "site")
    return root / "site"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["build.py", *map(str, arguments)])
    build.main()


def test_run_writes_a_copy_and_the_site_and_leaves_the_source_alone(project, monkeypatch, capfd):
    source = project / "notebooks" / "00_x.ipynb"
    before = source.read_text()
    run(monkeypatch, "run", source)  # the other one would fail
    assert source.read_text() == before
    assert {path.name for path in (project / "build").iterdir()} == {"00_x.ipynb", "site"}
    assert "42" in (project / "build" / "00_x.ipynb").read_text()
    site = project / "build" / "site"
    assert "42" in (site / "notebooks" / "00_x.html").read_text()
    assert "Second" in (site / "notebooks" / "01_y.html").read_text()
    printed = capfd.readouterr()
    assert "00_x: done in" in printed.out and str(site / "index.html") in printed.out
    assert "WARNING:" not in printed.err  # such as a link that leads nowhere


def test_a_page_shows_the_last_run_of_the_notebook_as_it_is_now(site):
    assert "42, as run" in (site / "notebooks" / "00_x.html").read_text()
    assert "an old run" not in (site / "notebooks" / "01_y.html").read_text()


def links(page):
    return re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', page.read_text())


def test_links_lead_from_page_to_page_and_to_files(site):
    pages = [page for page in site.glob("**/*.html") if page.parent.name != "_static"]
    assert {page.relative_to(site).as_posix() for page in pages} >= {
        "index.html",
        *(f"notebooks/{name}.html" for name in ("00_x", "01_y", "README")),
        *(f"{name}/README.html" for name in ("ga_utils", "data")),
    }
    for page in pages:
        targets = [link for link in links(page) if not link.startswith("#")]
        assert targets and all((page.parent / link.split("#")[0]).exists() for link in targets), page.name
    (quiz,) = [link for link in links(site / "notebooks" / "00_x.html") if link.startswith("01_y.html#")]
    assert f'id="{quiz.split("#")[1]}"' in (site / "notebooks" / "01_y.html").read_text()
    (facts,) = [link for link in links(site / "notebooks" / "01_y.html") if link.endswith("facts.csv")]
    assert (site / "notebooks" / facts).read_text() == "a,b"


def test_every_page_has_all_others_in_its_side_bar(site):
    for name in ("index", "notebooks/00_x", "data/README"):
        text = (site / f"{name}.html").read_text()
        nav = text[text.index('id="pst-primary-sidebar"') : text.index('id="main-content"')]
        titles = ("First", "Second", "For the teacher", "The package, ga_utils", "The tiny models")
        assert all(title in nav for title in titles), name


def test_pages_describe_their_figures_in_order(site):
    page = (site / "notebooks" / "01_y.html").read_text()
    assert re.findall(r'<img alt="([^"]*)"', page) == ["one", "two, &quot;quoted&quot;", "three"]


def test_an_output_that_is_collapsed_in_jupyterlab_is_folded(site):
    page = (site / "notebooks" / "01_y.html").read_text()
    folded = re.findall(r"<details.*?</details>", page, re.DOTALL)
    assert ["three" in part for part in folded] == [True] and "two" not in folded[0]


def test_notebooks_have_a_launch_button_once_the_course_has_an_address(project, site):
    address = "urls.Course = 'git+https://github.com/a/b.git'"
    (project / "pyproject.toml").write_text(f"[project]\nname = 'x'\n{address}\n")
    build.site(project / "published")
    target = "https://colab.research.google.com/github/a/b/blob/main/notebooks/00_x.ipynb"
    assert target in links(project / "published" / "notebooks" / "00_x.html")
    for page in (site / "notebooks" / "00_x.html", project / "published" / "index.html"):
        assert "colab" not in page.read_text()


def test_refresh_rewrites_outputs_without_bars_noise_or_widget_state(project, monkeypatch):
    source = project / "notebooks" / "00_x.ipynb"
    run(monkeypatch, "refresh", source)
    notebook = nbformat.read(source, as_version=4)
    assert [output.text for cell in notebook.cells[1:] for output in cell.outputs] == ["42\n"]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]
    assert "widgets" not in notebook.metadata and not (project / "build").exists()


def test_a_failing_cell_stops_the_run_and_writes_nothing(project, monkeypatch):
    source = project / "notebooks" / "01_y.ipynb"
    before = source.read_text()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(monkeypatch, "refresh", source)
    assert source.read_text() == before


def test_a_slow_cell_is_reported_while_it_runs_and_stopped_only_after_its_time(tmp_path, monkeypatch, capsys):
    write(tmp_path / "slow.ipynb", markdown("# Slow"), code("1"), code("import time; time.sleep(1.5)"))
    build.execute(tmp_path / "slow.ipynb", report_every=0.5)
    assert re.search(r"^slow: cell 3 of 3 has been running for 1 s$", capsys.readouterr().out, re.MULTILINE)
    assert build.CELL_SECONDS >= 900
    monkeypatch.setattr(build, "CELL_SECONDS", 1)
    with pytest.raises(CellTimeoutError, match="time.sleep"):
        build.execute(tmp_path / "slow.ipynb")


def test_the_readmes_picture_shows_what_the_model_does():
    """Drawn anew, it says the same, up to two points; and the README says what it shows."""
    folder = build.ROOT / "notebooks" / "images"
    words, numbers = zip(
        *(read_picture(svg) for svg in (retrieval.picture(), (folder / "retrieval.svg").read_text()))
    )
    assert words[0] == words[1] and numbers[0] == pytest.approx(numbers[1], abs=2)
    readme = (build.ROOT / "README.md").read_text().split("```")[0]
    stated = {float(number) for number in re.findall(r"([\d.]+) %", readme)}
    assert stated and stated <= set(numbers[1])


def read_picture(svg):
    texts = re.findall(r"<text [^>]*>(.*?)</text>", svg)
    number = r"\d+(?:\.\d+)?"
    return [re.sub(number, "#", text) for text in texts], [
        float(n) for t in texts for n in re.findall(number, t)
    ]


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
