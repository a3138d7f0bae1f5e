"""The doctor says what fits before anything is downloaded; sizes are those of the real architectures."""

import subprocess
import sys

import pytest
import torch
import transformers
from full_width import SHAPES, on_meta
from packaging.version import Version

import ga_utils as ga
from ga_utils import doctor
from ga_utils.models import catalog
from ga_utils.models.loading import layer_of


def skip_zamba2_of_5_15(name):
    if name == "zamba2-7b" and Version(transformers.__version__) < Version("5.16"):
        pytest.skip(
            "transformers 5.15 numbers shared blocks by layer: models with two of them can't be built"
        )


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_in_the_registry_are_those_of_the_architecture(name):
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


def test_a_t4_gets_the_minimal_model(monkeypatch):
    monkeypatch.setattr(doctor, "default_device", lambda: "cuda")
    monkeypatch.setattr(doctor, "default_dtype", lambda device: torch.float16)
    monkeypatch.setattr(doctor, "free_gb", lambda device: 14.6)
    monkeypatch.setattr(doctor, "_gpu", lambda: "Tesla T4")
    monkeypatch.setattr(doctor, "why_no_kernels", lambda: "too old")
    report = ga.doctor()
    models = report.models.set_index("model")["runs here"]
    assert models["llama-3.1-8b-instruct"] == "first 25 layers" and models["llama-3.2-1b"] == "whole"
    assert report.models.set_index("model")["least GPU"]["llama-3.1-8b-instruct"].startswith("T4")
    assert any("few prompts" in line for line in report.advice)
    monkeypatch.setattr(doctor, "free_gb", lambda device: 9.0)
    assert "too few" in ga.doctor().models.set_index("model")["runs here"]["llama-3.1-8b-instruct"]


def test_the_token_is_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_notforprint")
    report = ga.doctor()
    assert report.facts["hub token"] == "present"
    assert "hf_notforprint" not in repr(report) + report._repr_html_()


def test_in_a_terminal():
    done = subprocess.run(
        [sys.executable, "-m", "ga_utils.doctor"], capture_output=True, text=True, check=True
    )
    assert "Python" in done.stdout and "llama-3.1-8b-instruct" in done.stdout and not done.stderr


def test_without_a_gpu_no_kernels_are_installed(capsys, monkeypatch):
    monkeypatch.setattr("ga_utils.doctor.subprocess.run", lambda *a, **k: pytest.fail("tried to install"))
    if not torch.cuda.is_available():
        ga.install_kernels()
        assert "no GPU" in capsys.readouterr().out
