"""The web site's settings, for Sphinx. `python -m sphinx -c notebooks/site . build/site` builds the pages.

Pages are made from the notebooks and README files where they lie, so that a link that works on GitHub or in
JupyterLab works on the site. `make course` runs the notebooks first; the site then shows those runs.
"""

import re
import tomllib
from pathlib import Path

import nbformat
from docutils import nodes

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"  # executed copies of the notebooks: build/02_finding_ga_heads.ipynb
CONTENTS = """
```{toctree}
:hidden:
:glob:
:caption: Notebooks
notebooks/[0-9]*
```

```{toctree}
:hidden:
:caption: Besides
For the teacher <notebooks/README>
The package, ga_utils <ga_utils/README>
The tiny models and their world <data/README>
```
"""

project = html_title = "Gather and Aggregate"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["README.md", "notebooks/*", "ga_utils/README.md", "data/README.md"]
exclude_patterns = [".*", "build", "runs", "tests", "data/models", "notebooks/site", "notebooks/images"]
nb_execution_mode = "off"
nb_merge_streams = True  # what a loop prints is one block
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_copyright = html_use_index = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the side bar has the search field already
    "use_fullscreen_button": False,
    "footer_content_items": [],
}


# Colab opens notebooks from GitHub. The buttons appear once the course has an address there.
address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Course", "")
if "github.com/" in address:
    html_theme_options["repository_url"] = address.removeprefix("git+").removesuffix(".git")
    html_theme_options["repository_branch"] = "main"
    html_theme_options["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}


def prepare(app, docname: str, source: list[str]) -> None:
    """Before a page is read: add the side bar's contents to the README, and a run's outputs to a notebook."""
    if docname == root_doc:
        source[0] += CONTENTS
    path = Path(app.env.doc2path(docname))
    if path.suffix != ".ipynb":
        return
    notebook = nbformat.reads(source[0], as_version=4)
    copy = BUILD / path.name
    if copy.exists():
        executed = nbformat.read(copy, as_version=4)
        if [cell.source for cell in executed.cells] == [cell.source for cell in notebook.cells]:
            notebook = executed
    for cell in notebook.cells:
        if cell.cell_type == "markdown":  # JupyterLab's address of a heading, #Words, is #words here
            cell.source = re.sub(r"\.ipynb#[^)]+", lambda link: link[0].lower(), cell.source)
        if cell.metadata.get("jupyter", {}).get("outputs_hidden"):  # collapsed in JupyterLab
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-output"]
    source[0] = nbformat.writes(notebook)


def describe_figures(app, doctree: nodes.document) -> None:
    """Give a cell's figures their alternative texts, the list `alt` in the cell's metadata, in order."""
    for cell in doctree.findall(nodes.container):
        if texts := cell.get("cell_metadata", {}).get("alt"):
            for image, text in zip(cell.findall(nodes.image), texts):
                image["alt"] = text


def setup(app) -> None:
    app.connect("source-read", prepare)
    app.connect("doctree-read", describe_figures)
