"""The doctor says what fits before anything is downloaded; sizes are those of the real architectures."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers
from full_width import SHAPES, on_meta
from packaging.version import Version

import ga_utils as ga
from ga_utils.models import catalog, kernels
from ga_utils.models.loading import layer_of


def skip_zamba2_of_5_15(name):
    if name == "zamba2-7b" and Version(transformers.__version__) < Version("5.16"):
        pytest.skip(
            "transformers 5.15 numbers shared blocks by layer: models with two of them can't be built"
        )


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_in_the_catalog_are_those_of_the_architecture(name):
    skip_zamba2_of_5_15(name)
    entry, model = catalog.MODELS[name], on_meta(name)
    numbers = {False: 0, True: 0}
    for weight, p in model.named_parameters():
        numbers[layer_of(weight) >= 0 and "shared_transformer" not in weight] += p.numel()
    assert 2 * sum(numbers.values()) / 1e9 == pytest.approx(entry.gb, abs=0.01)
    assert len(model.base_model.layers) == entry.layers
    assert 2 * numbers[False] / 1e9 == pytest.approx(entry.fixed_gb, abs=0.01)
    assert entry.size(torch.float32) == pytest.approx(2 * entry.gb)


def test_heads_of_the_paper_exist_in_their_models():
    for name, entry in catalog.MODELS.items():
        heads = [ga.Head.parse(text) for text in entry.gather + entry.aggregate]
        assert all(head.layer < entry.minimal <= entry.layers for head in heads)
        if heads:
            assert max(head.layer for head in heads) == entry.minimal - 1
            known = {mixer.layer: mixer.heads for mixer in ga.wrap(on_meta(name), None).mixers}
            assert all(head.head in known[head.layer] for head in heads)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with another GPU than it has: its name, compute capability, and free GB."""

    def has(name: str, capability: tuple[int, int], free: float):
        of_card = SimpleNamespace(name=name, total_memory=16e9, major=capability[0], minor=capability[1])
        answers = {
            "is_available": True,
            "get_device_capability": capability,
            "get_device_properties": of_card,
            "mem_get_info": (int(free * 1e9), 16_000_000_000),
        }
        for question, answer in answers.items():
            monkeypatch.setattr(torch.cuda, question, lambda device=None, answer=answer: answer)
        return ga.doctor()

    return has


def test_a_t4_gets_the_minimal_model_in_float16(gpu):
    report = gpu("Tesla T4", (7, 5), 14.6)
    models = report.models.set_index("model")
    assert models["runs here"]["llama-3.1-8b-instruct"] == "first 25 layers"
    assert models["runs here"]["llama-3.2-1b"] == "whole"
    assert models["least GPU"]["llama-3.1-8b-instruct"].startswith("T4")
    assert models["GB in float16"]["llama-3.1-8b-instruct"] == 16.1
    assert report.facts["GPU"] == "Tesla T4, 16.0 GB, no fast bfloat16, so float16"
    assert "older than Ampere" in report.facts["mamba-ssm kernels"]
    assert any("few prompts" in line for line in report.advice)
    models = gpu("Tesla T4", (7, 5), 9.0).models.set_index("model")
    assert models["runs here"]["llama-3.1-8b-instruct"] == "first 12 layers, too few for the paper's heads"


def test_without_kernels_the_report_says_what_a_scan_takes(gpu):
    """Measured on an H200, 16 prompts of 60 tokens through Zamba2-7B: 47 GB, 15 of which are weights."""
    report = gpu("NVIDIA H200", (9, 0), 139)
    assert "mamba-ssm not installed: ga.install_kernels()" in report.facts["mamba-ssm kernels"]
    scans = report.models.set_index("model")["GB of a scan, 16 x 60 tokens"]
    before_518 = Version(transformers.__version__) < Version("5.18")  # what was measured
    assert float(scans["zamba2-7b"]) == pytest.approx(47 - 15 if before_518 else 2.6, rel=0.1)
    assert scans["llama-3.1-8b-instruct"] == "" and float(scans["falcon-mamba-7b-instruct"]) > 1
    assert any("takes memory beside the weights" in line for line in report.advice)


def test_each_kind_of_scan_has_kernels_of_its_own(gpu, monkeypatch):
    """With flash-linear-attention alone, Gated DeltaNet's scans take nothing beside the weights."""
    scans = []
    for there in (None, True):
        monkeypatch.setattr(kernels, "find_spec", lambda name, there=there: there if name == "fla" else None)
        report = gpu("NVIDIA H200", (9, 0), 139)
        scans.append(report.models.set_index("model")["GB of a scan, 16 x 60 tokens"])
        assert ("pip install" in report.facts["Gated DeltaNet kernels"]) == (not there)
    without, with_fla = scans
    assert float(without["qwen3.5-2b"]) > 0 and with_fla["qwen3.5-2b"] == ""
    assert without["zamba2-7b"] == with_fla["zamba2-7b"] != ""


def test_the_token_is_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_notforprint")
    report = ga.doctor()
    assert report.facts["hub token"] == "present"
    assert "hf_notforprint" not in repr(report) + report._repr_html_()


def test_in_a_terminal():
    command = [sys.executable, "-m", "ga_utils"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Python" in done.stdout and "llama-3.1-8b-instruct" in done.stdout and not done.stderr


FRESH = """
import importlib, sys, types
for name in sys.argv[1:]:
    importlib.import_module(f"ga_utils.{name}")
    assert not isinstance(getattr(sys.modules["ga_utils"], name), types.ModuleType), name
"""


def test_importing_a_module_leaves_the_public_names_as_they_are():
    """On first import Python sets `ga.doctor` to the module `ga_utils.doctor`; `ga` must set it again."""
    public = {name: getattr(ga, name) for name in ga.__all__}
    modules = [module.name for module in pkgutil.walk_packages(ga.__path__, "ga_utils.")]
    for module in modules:
        if not module.endswith("__main__"):  # running it prints the report
            importlib.import_module(module)
    assert {name: getattr(ga, name) for name in ga.__all__} == public
    functions = [name for name, value in public.items() if not isinstance(value, ModuleType)]
    same_named = [name for name in functions if f"ga_utils.{name}" in modules]
    assert {"doctor", "segments"} <= set(same_named)
    subprocess.run([sys.executable, "-c", FRESH, *same_named], check=True)
