"""Installing mamba-ssm's kernels: both packages or none, and two lines that say what happened.

pip really runs, in an environment of its own, on packages made up here.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pytest
import torch

import ga_utils as ga
from ga_utils.models.kernels import check_kernels, why_no_kernels

PACKAGES = {"causal-conv1d", "mamba-ssm"}


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """A Python environment that has pip and setuptools, borrowed from ours, and nothing of its own."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    ours = {os.path.dirname(os.path.dirname(find_spec(name).origin)) for name in ("pip", "setuptools")}
    with open(os.path.join(packages, "borrowed.pth"), "w") as f:
        f.write("\n".join(ours))
    return str(python), packages


@pytest.fixture
def index(environment, tmp_path, monkeypatch):
    """A machine with an Ampere GPU, whose pip installs into `environment` from this folder alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(sys, "executable", environment[0])
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_REQUIRE_VIRTUALENV"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    subprocess.run([environment[0], "-m", "pip", "uninstall", "-y", *PACKAGES], capture_output=True)


def installed(environment) -> set[str]:
    """Which of the two packages are installed in the environment."""
    return {dist.name for dist in distributions(path=[environment[1]])} & PACKAGES


def wheel(folder, name: str) -> None:
    """A package that installs without being built."""
    module = name.replace("-", "_")
    files = {
        f"{module}/__init__.py": "",
        f"{module}-9.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 9\n",
        f"{module}-9.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{module}-9.dist-info/RECORD"
    with zipfile.ZipFile(folder / f"{module}-9-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(record, "".join(f"{path},,\n" for path in [*files, record]))


def broken_source(folder, name: str) -> None:
    """A package that must be built, on a machine where that fails."""
    with tarfile.open(folder / f"{name}-9.tar.gz", "w:gz") as archive:
        setup = b"raise RuntimeError('nvcc was not found')\n"
        for path, text in (("setup.py", setup), ("PKG-INFO", f"Name: {name}\nVersion: 9\n".encode())):
            entry = tarfile.TarInfo(f"{name}-9/{path}")
            entry.size = len(text)
            archive.addfile(entry, BytesIO(text))


def told(capsys) -> tuple[str, str]:
    """What `install_kernels` says after a failure: what happened, and what to do."""
    ga.install_kernels()
    begun, happened, advice = capsys.readouterr().out.splitlines()
    assert begun.startswith("Installing ") and happened.startswith(
        "The kernels could not be installed, and nothing"
    )
    assert advice.startswith("Plain PyTorch goes on serving. To try again you need internet")
    return happened, advice


def test_both_are_installed_and_a_restart_is_asked_for(index, environment, capsys):
    wheel(index, "causal-conv1d")
    wheel(index, "mamba-ssm")
    ga.install_kernels()
    assert installed(environment) == PACKAGES
    assert "Now restart the session" in capsys.readouterr().out


def test_without_a_network(index, environment, capsys, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody answers there
    monkeypatch.setenv("PIP_RETRIES", "1")
    happened, _ = told(capsys)
    assert happened.endswith("pip says: no connection to the package index") and not installed(environment)


def test_a_package_that_is_nowhere(index, environment, capsys):
    wheel(index, "causal-conv1d")
    happened, _ = told(capsys)
    assert "pip says: ERROR: No matching distribution found for mamba-ssm" in happened
    assert not installed(environment)


def test_a_build_that_fails(index, environment, capsys):
    wheel(index, "causal-conv1d")
    broken_source(index, "mamba-ssm")
    happened, advice = told(capsys)
    assert (
        happened.endswith("pip says: RuntimeError: nvcc was not found") and "a C++ compiler, nvcc" in advice
    )
    assert not installed(environment)


def test_if_the_second_fails_the_first_is_taken_back(index, environment, capsys):
    """pip unpacks mamba-ssm first; a file lies where the folder of causal-conv1d should be."""
    wheel(index, "causal-conv1d")
    wheel(index, "mamba-ssm")
    obstacle = Path(environment[1]) / "causal_conv1d"
    obstacle.touch()
    pip = [environment[0], "-m", "pip"]
    subprocess.run([*pip, "install", "causal-conv1d", "mamba-ssm"], capture_output=True)
    assert installed(environment) == {"mamba-ssm"}  # this is what pip alone leaves behind
    subprocess.run([*pip, "uninstall", "-y", "mamba-ssm"], capture_output=True)
    happened, _ = told(capsys)
    obstacle.unlink()
    assert "pip says: ERROR: Could not install packages" in happened and not installed(environment)


def test_one_that_was_there_before_stays(index, environment, capsys, monkeypatch):
    wheel(index, "causal-conv1d")
    pip = [environment[0], "-m", "pip", "install", "-q", "causal-conv1d"]
    subprocess.run(pip, check=True)
    monkeypatch.syspath_prepend(environment[1])
    broken_source(index, "mamba-ssm")
    assert why_no_kernels() == "mamba-ssm not installed: ga.install_kernels()"
    told(capsys)
    assert installed(environment) == {"causal-conv1d"}


def test_an_environment_without_pip(index, tmp_path, capsys, monkeypatch):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / ("Scripts" if os.name == "nt" else "bin") / "python"))
    happened, _ = told(capsys)
    assert "No module named pip" in happened


def test_kernels_that_are_installed_but_broken_are_said_to_be(index, tmp_path, capsys, monkeypatch):
    for name in ("causal_conv1d", "mamba_ssm"):
        for folder in (name, f"{name}-9.dist-info"):
            (tmp_path / "packages" / folder).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").write_text("raise ImportError('undefined symbol')")
        (tmp_path / "packages" / f"{name}-9.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 9\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    assert why_no_kernels() == "installed, but can't be imported (undefined symbol)"
    ga.install_kernels()
    happened, advice = capsys.readouterr().out.splitlines()
    assert "can't be imported (undefined symbol)" in happened
    assert "pip install --force-reinstall --no-deps --no-build-isolation causal-conv1d mamba-ssm" in advice


@pytest.mark.parametrize("capability, reason", [(None, "no GPU"), ((7, 5), "older than Ampere")])
def test_where_the_gpu_can_not_run_them_nothing_is_installed(
    capability, reason, index, environment, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    wheel(index, "causal-conv1d")
    wheel(index, "mamba-ssm")
    ga.install_kernels()
    assert reason in capsys.readouterr().out and reason in why_no_kernels() and not installed(environment)


@pytest.mark.skipif(why_no_kernels() is not None, reason="needs a GPU and mamba-ssm's kernels")
def test_the_kernels_agree_with_plain_pytorch(capsys):
    assert 0 < check_kernels() < 2e-2
    ga.install_kernels()
    assert "the first call of each compiles for tens of seconds" in capsys.readouterr().out
