"""Models from the hub: the needed shards alone, sources in order, and advice when none can be read.

`huggingface_hub` downloads, here from a hub on localhost.
"""

import json
import shutil
from types import SimpleNamespace

import families
import numpy as np
import psutil
import pytest
import torch
from conftest import logits
from fake_hub import COMMIT, FakeHub
from learner import Learner

import ga_utils as ga
from ga_utils.models.catalog import layers_to_load
from ga_utils.models.loading import INDEX, layer_of

PROMPT = "Dictionary:\napple: 17\nlamp: 4\nQuestion: what is the value of lamp?\nAnswer:"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    """A model of four layers in many shards: folder, logits of its first two, needed and later shards."""
    folder = tmp_path_factory.mktemp("checkpoint")
    lm = families.build("llama", tokenizer, num_hidden_layers=4)
    lm.model.save_pretrained(folder, max_shard_size="40KB")
    lm.tokenizer.save_pretrained(folder)
    with ga.truncate(lm, 2):
        expected = logits(lm, PROMPT).numpy()
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    needed = {file for name, file in index.items() if layer_of(name) < 2}
    later = {*index.values()} - needed
    assert needed and later
    return folder, expected, needed, later


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A hub and a learner who uses it, for all tests here; a test has its own repositories."""
    home = tmp_path_factory.mktemp("home")
    with FakeHub({}) as hub, Learner(HF_ENDPOINT=hub.url, HF_HOME=str(home)) as learner:
        yield hub, learner, home


@pytest.fixture
def hub(shared, checkpoint, tmp_path):
    """The hub without faults, with the checkpoint as hub.repo: nothing of it is in anybody's cache yet."""
    hub = shared[0]
    hub.reset()
    hub.repo = f"org/{tmp_path.name}"
    hub.repos[hub.repo] = checkpoint[0]
    return hub


@pytest.fixture
def load(hub, shared):
    """Load from hub.repo, or from other repositories: the logits, or what went wrong."""

    def run(*repos, **options):
        found, _ = shared[1].load(repos or [hub.repo], COMMIT, PROMPT, **options)
        return found

    return run


def test_only_needed_shards_are_fetched_and_give_the_truncated_model(checkpoint, hub, load, shared):
    _, expected, needed, later = checkpoint
    assert np.array_equal(load(), expected)
    assert needed <= hub.fetched() and not later & hub.fetched()
    hub.requests.clear()
    with Learner(HF_HOME=str(shared[2]), HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") as offline:
        found, _ = offline.load([hub.repo], COMMIT, PROMPT)  # from the cache
        problem, _ = offline.load(["org/other"], COMMIT, PROMPT)
    assert np.array_equal(found, expected) and not hub.requests
    command = f"hf download org/other --revision {COMMIT}"
    assert f"where there is internet, run  {command}  and copy that folder here" in problem


def test_a_connection_that_breaks_once_costs_a_second_try_at_most(checkpoint, hub, load):
    """Of the hub's client, 2.4 tries again by itself; 1.5 does not."""
    _, expected, needed, _ = checkpoint
    hub.breaks[sorted(needed)[0]] = 1
    found = load()
    if isinstance(found, str):
        assert "run this again" in found
        found = load()
    assert np.array_equal(found, expected)


def test_after_a_download_that_failed_complete_shards_are_not_fetched_again(checkpoint, hub, load):
    _, expected, needed, _ = checkpoint
    *first, last = sorted(needed)
    hub.breaks[last] = 1000
    problem = load()
    assert f"the download of {hub.repo} broke off" in problem and "run this again" in problem
    hub.breaks.clear()
    hub.requests.clear()
    assert np.array_equal(load(), expected)
    assert last in hub.fetched() and not set(first) & hub.fetched()


def test_a_shard_that_arrives_too_short_is_not_used(checkpoint, hub, load):
    _, expected, needed, _ = checkpoint
    hub.short.add(sorted(needed)[-1])
    assert f"the download of {hub.repo} broke off" in load()
    hub.short.clear()
    assert np.array_equal(load(), expected)


def test_the_next_source_is_tried_and_all_failures_are_told(checkpoint, hub, load):
    hub.repos["org/gated"] = checkpoint[0]
    hub.gated.add("org/gated")
    assert np.array_equal(load("org/gated", "org/gone", hub.repo), checkpoint[1])
    problem = load("org/gated", "org/gone")
    assert "org/gated is gated: accept its licence at https://huggingface.co/org/gated" in problem
    assert "org/gone does not exist, or is private" in problem


def test_a_tokenizer_may_lie_elsewhere_and_is_named_itself(checkpoint, hub, load):
    hub.repos |= {"org/words": checkpoint[0], "org/gated": checkpoint[0]}
    hub.gated.add("org/gated")
    assert np.array_equal(load(tokenizer="org/words"), checkpoint[1])
    assert "m: no source could be read. org/gated is gated" in load(tokenizer="org/gated")


def test_without_a_pinned_revision_the_commit_is_told(checkpoint, hub, shared):
    found, printed = shared[1].load([hub.repo], None, PROMPT)
    assert np.array_equal(found, checkpoint[1])
    assert f"{hub.repo}: no revision is pinned, took the newest: {COMMIT}" in printed


def test_pickled_weights_are_not_read(checkpoint, hub, load, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(checkpoint[0], folder, ignore=shutil.ignore_patterns("*safetensors*"))
    torch.save({}, folder / "pytorch_model.bin")
    hub.repos[hub.repo] = folder
    assert f"{hub.repo} has no model.safetensors: only safetensors are read here" in load()
    assert "pytorch_model.bin" not in hub.fetched()


def test_a_disk_that_is_too_small_is_noticed_before_any_shard_is_fetched(checkpoint, hub, load):
    _, _, needed, _ = checkpoint
    hub.huge.add(sorted(needed)[0])
    problem = load()
    assert f"{hub.repo}: 1000000 GB to download" in problem and "set HF_HOME to a larger disk" in problem
    assert not needed & hub.fetched()


def test_layers_that_cant_be_loaded_alone_are_refused_before_any_shard_is_fetched(
    hub, load, tokenizer, tmp_path
):
    """OLMo Hybrid is never without attention, and here that comes in the third layer."""
    lm = families.build("olmo_hybrid", tokenizer, layer_types=families.RECURRENT)
    lm.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    hub.repos[hub.repo] = tmp_path
    assert "the first 2 layers of a olmo_hybrid can't be loaded alone" in load()
    assert not any(file.endswith(".safetensors") for file in hub.fetched())


@pytest.mark.parametrize("source", ["environment", "login", "colab", None])
def test_the_hubs_client_finds_the_token_and_it_is_not_shown(source, checkpoint, hub, shared, tmp_path):
    found, login = None, shared[2] / "token"
    if source == "login":
        login.write_text("hf_login\n")
    if source == "colab":
        with Learner(colab=True, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path)) as in_colab:
            found, printed = in_colab.load([hub.repo], COMMIT, PROMPT)
    else:
        token = "hf_environment" if source == "environment" else ""
        found, printed = shared[1].load([hub.repo], COMMIT, PROMPT, token=token)
    login.unlink(missing_ok=True)
    assert np.array_equal(found, checkpoint[1])
    assert {key for *_, key in hub.requests} == {f"Bearer hf_{source}" if source else None}
    assert "hf_" not in printed


def test_a_token_that_the_hub_refuses_is_the_reason_given(hub, load):
    hub.wrong_token = "Bearer hf_old"
    problem = load(token="hf_old")
    assert f"{hub.repo}: the hub refuses the token that it was given" in problem and "hf_old" not in problem


def test_what_does_not_fit_into_memory_is_told_before_any_download(monkeypatch):
    name, dtype = "llama-3.1-8b-instruct", torch.float16
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=15e9))
    too_large = r"float16 takes 16\.1 GB.*has 15\.0 GB free: n_layers=26 would fit.*minimal model has 18"
    with pytest.raises(ValueError, match=too_large):
        ga.load_model(name, device="cpu", dtype=dtype)
    with pytest.raises(ValueError, match=f"n_layers=40: {name} has 32 layers"):
        ga.load_model(name, device="cpu", dtype=dtype, n_layers=40)
    with pytest.raises(ValueError, match="no source could be read"):  # it fits, so it would be downloaded
        ga.load_model(name, device="cpu", dtype=dtype, n_layers=26)
    assert layers_to_load(name, "cpu", dtype, 18) == layers_to_load(name, "cpu", dtype, "minimal") == 18
    with pytest.warns(UserWarning, match="26 of 32 layers fit into 15.0 GB"):
        assert layers_to_load(name, "cpu", dtype, "fit") == 26
    assert layers_to_load("llama-3.2-1b", "cpu", dtype, "fit") is None
