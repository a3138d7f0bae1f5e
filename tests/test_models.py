"""Loading and wrapping."""

import re
from pathlib import Path

import pytest
import torch
from conftest import logits, random_llama
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import ga_utils as ga
from ga_utils.models.catalog import TINY
from ga_utils.models.device import choose_device, choose_dtype, free_gb
from ga_utils.models.loading import data_dir

MODELS = data_dir() / "models"
PROMPT = "The flag of Arvo is"
CLASSES = {
    "tiny-llama": "LlamaForCausalLM",
    "tiny-llama-minimal": "LlamaForCausalLM",
    "tiny-falcon-mamba": "FalconMambaForCausalLM",
    "tiny-mamba2": "Mamba2ForCausalLM",
    "tiny-mamba2-d4": "Mamba2ForCausalLM",
    "tiny-mamba2-d16": "Mamba2ForCausalLM",
    "tiny-deltanet": "Qwen3NextForCausalLM",
    "tiny-qwen3-next": "Qwen3NextForCausalLM",
    "tiny-zamba2": "Zamba2ForCausalLM",
    "tiny-llama-unguided": "LlamaForCausalLM",
    "tiny-llama-unguided-2": "LlamaForCausalLM",
}  # all others are Llambas


@pytest.mark.parametrize("name", TINY)
def test_shipped_models_load_with_transformers_alone(name):
    model = AutoModelForCausalLM.from_pretrained(MODELS / name)
    assert type(model).__name__ == CLASSES.get(name, "LlambaForCausalLM")
    files = {path.name for path in (MODELS / name).iterdir()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json"}
    lm = ga.load_model(name, device="cpu")
    assert lm.name == name and lm.model.dtype == torch.float32 and not lm.model.training
    ids = lm.tokenizer(PROMPT, return_tensors="pt").input_ids
    assert torch.equal(model.eval()(ids).logits[0], logits(lm, PROMPT))


def test_all_models_together_stay_under_60_mb():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 60e6


def test_first_layers_equal_the_truncated_model(tiny):
    short = ga.load_model("tiny-llama", device="cpu", n_layers=2)
    with ga.truncate(tiny, 2):
        assert torch.equal(logits(short, PROMPT), logits(tiny, PROMPT))
    assert short.n_layers == 2 and short.model.config.num_hidden_layers == 2


def test_a_local_folder_loads_by_text_by_path_and_from_home(tmp_path, lm, monkeypatch):
    lm.model.save_pretrained(tmp_path / "mine")
    lm.tokenizer.save_pretrained(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "mine"), tmp_path / "mine", Path("mine"), "~/mine", Path("~/mine")):
        assert torch.equal(logits(ga.load_model(name, device="cpu"), PROMPT), logits(lm, PROMPT))


def test_a_path_is_a_folder_even_where_a_model_has_that_name(tmp_path, lm, monkeypatch):
    lm.model.save_pretrained(tmp_path / "tiny-llama")
    lm.tokenizer.save_pretrained(tmp_path / "tiny-llama")
    monkeypatch.chdir(tmp_path)
    assert ga.load_model(Path("tiny-llama"), device="cpu").n_layers == lm.n_layers == 3
    assert ga.load_model("tiny-llama", device="cpu").n_layers == 5


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
def test_a_dtype_may_be_given_by_name(name):
    for dtype in (name, f"torch.{name}", getattr(torch, name)):
        lm = ga.load_model("tiny-llama-minimal", device="cpu", dtype=dtype)
        assert {p.dtype for p in lm.model.parameters()} == {getattr(torch, name)}
    assert choose_dtype("auto", "cpu") == torch.float32


@pytest.mark.parametrize("dtype", ["float", "fp16", "int8", "torch.int64", torch.int8, None, 16, ""])
def test_other_dtypes_are_refused(dtype):
    accepted = "auto, float32, float16, bfloat16, float64"
    with pytest.raises(ValueError, match=re.escape(f"dtype={dtype!r}: on cpu give one of {accepted}")):
        ga.load_model("tiny-llama", device="cpu", dtype=dtype)


@pytest.mark.parametrize("n_layers", ["all", "2", True, False, 2.0, [2], torch.tensor([1, 2])])
def test_a_number_of_layers_is_a_whole_number_or_a_known_word(n_layers):
    for name in ("tiny-llama", "llama-3.1-8b-instruct"):
        with pytest.raises(
            ValueError, match=r'give a number of layers, None for all of them, "fit" or "minimal"'
        ):
            ga.load_model(name, device="cpu", n_layers=n_layers)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU has")
@pytest.mark.parametrize(
    "device", ["cuda", "cuda:7", "gpu", "mps", "meta", "cpu:1", "", 0, None, torch.device("cuda")]
)
def test_devices_that_are_not_here_are_refused(device):
    if torch.backends.mps.is_available() and device == "mps":
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match=re.escape(f"device={device!r}: this machine has cpu")):
        ga.load_model("tiny-llama", device=device)


def test_devices_that_are_here_are_taken():
    for device in ("cpu", "cpu:0", torch.device("cpu")):
        assert ga.load_model("tiny-llama", device=device).device.type == "cpu"


def test_of_two_gpus_the_third_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(choose_device("cuda:1")) == "cuda:1" and str(choose_device()) == "cuda"
    with pytest.raises(ValueError, match="device='cuda:2': this machine has cpu, cuda:0, cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize("capability, dtype", [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_a_gpu_gets_bfloat16_where_it_is_native(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert choose_dtype("auto", "cuda") == dtype


def test_an_apple_gpu_is_taken_when_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 3_000_000_000)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 1_000_000_000)
    assert str(choose_device("mps")) == "mps" and choose_device("auto").type != "mps"
    assert choose_dtype("auto", "mps") == torch.float16 and choose_dtype("float32", "mps") == torch.float32
    assert free_gb("mps") == min(2.0, free_gb("cpu"))
    with pytest.raises(ValueError, match="on mps give one of auto, float32, float16, bfloat16, or"):
        choose_dtype("float64", "mps")


def test_mixers_describe_the_heads(tokenizer):
    mixer = random_llama(tokenizer, kv_heads=2).mixers[1]
    assert (mixer.layer, mixer.kind, mixer.n_heads, mixer.d_head) == (1, "attention", 6, 16)
    assert mixer.columns(2) == slice(32, 48)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: ga.load_model("tiny-lama"),
            "unknown model 'tiny-lama': known are tiny-llama, tiny-llama-unguided, ",
        ),
        (lambda: ga.load_model(Path("/no/such")), "unknown model '/no/such': known are tiny-llama"),
        (lambda: ga.load_model("tiny-llama", n_layers=0), "n_layers=0: tiny-llama has 5 layers"),
        (lambda: ga.load_model("tiny-llama", n_layers=-2), "n_layers=-2: tiny-llama has 5 layers"),
        (lambda: ga.load_model("tiny-llama", n_layers=6), "n_layers=6: tiny-llama has 5 layers"),
        (
            lambda: ga.wrap(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1)), None),
            "GPT2LMHeadModel is not supported",
        ),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("small", "dtype"), [(100e6, torch.float32), (0, torch.float16)])
def test_models_of_a_few_megabytes_are_float32_on_every_device(small, dtype, monkeypatch):
    """On "meta", which stands for a GPU without fast bfloat16."""
    monkeypatch.setattr("ga_utils.models.lm.choose_device", lambda device: torch.device("meta"))
    monkeypatch.setattr("ga_utils.models.lm.SMALL", small)
    assert ga.load_model("tiny-llama").model.dtype == dtype
