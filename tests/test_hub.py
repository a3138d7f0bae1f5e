"""Models from the hub: only needed shards, broken downloads taken up, damage named. Against a hub on localhost."""

import json
import os
import subprocess
import sys
import time
from types import ModuleType

import families
import pytest
import torch
from conftest import logits
from fake_hub import COMMIT, FakeHub

import ga_utils as ga
from ga_utils.models import catalog, hub
from ga_utils.models.loading import INDEX, layer_of

PROMPT = "Dictionary:\napple: 17\nlamp: 4\nQuestion: what is the value of lamp?\nAnswer:"
# What a learner's session does, in a process of its own: the hub client reads its settings once, when it is imported.
SESSION = """
import sys, torch, ga_utils as ga
from ga_utils.models import catalog
repos = sys.argv[1].split(",")
catalog.MODELS["m"] = catalog.Entry(
    tuple(catalog.Source(repo, {revision!r}) for repo in repos), "none", 4, 0.001, 0.0005)
try:
    lm = ga.load_model("m", device="cpu", n_layers=2)
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
ids = lm.tokenizer({prompt!r}, return_tensors="pt").input_ids
torch.save(lm.model(ids).logits[0].detach(), sys.argv[2])
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("checkpoint")
    lm = families.build("llama", tokenizer, num_hidden_layers=4)
    lm.model.save_pretrained(folder, max_shard_size="40KB")
    lm.tokenizer.save_pretrained(folder)
    with ga.truncate(lm, 2):
        expected = logits(lm, PROMPT)
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    needed = {file for name, file in index.items() if layer_of(name) < 2}
    later = {*index.values()} - needed
    assert needed and later
    return folder, expected, needed, later


@pytest.fixture
def server(checkpoint):
    served = FakeHub({"org/model": checkpoint[0]})
    yield served
    served.server.shutdown()


def session(server, tmp_path, repos="org/model", revision=COMMIT, **environment):
    script = SESSION.format(revision=revision, prompt=PROMPT)
    settings = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, repos, str(tmp_path / "logits.pt")],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def test_only_needed_shards_are_fetched_and_give_the_truncated_model(checkpoint, server, tmp_path):
    _, expected, needed, later = checkpoint
    code, output = session(server, tmp_path, HF_TOKEN="hf_notforprint")
    assert code == 0, output
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    fetched = {file for method, _, file, _, _ in server.requests if method == "GET"}
    assert needed <= fetched and not later & fetched
    assert {key for *_, key in server.requests} == {
        "Bearer hf_notforprint"
    } and "hf_notforprint" not in output
    server.requests.clear()
    code, output = session(server, tmp_path, HF_HUB_OFFLINE="1")  # from the cache, without a network
    assert code == 0 and not server.requests, output


def test_a_broken_download_is_taken_up_where_it_stopped(checkpoint, server, tmp_path):
    _, expected, needed, _ = checkpoint
    largest = max(needed, key=lambda file: (checkpoint[0] / file).stat().st_size)
    server.breaks, server.break_after = largest, (checkpoint[0] / largest).stat().st_size // 3
    code, output = session(server, tmp_path)
    assert code != 0 and "broke off" in output and "run this again" in output
    server.breaks, first = None, len(server.got(largest))
    code, output = session(server, tmp_path)
    assert code == 0, output
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    assert server.got(largest)[0] == 0 and all(start > 0 for start in server.got(largest)[first:])


def test_a_damaged_shard_is_named_removed_and_fetched_again(checkpoint, server, tmp_path):
    _, expected, needed, _ = checkpoint
    server.damage = sorted(needed)[-1]
    code, output = session(server, tmp_path)
    assert code != 0 and f"{server.damage} of org/model arrived damaged" in output
    server.damage = None
    code, output = session(server, tmp_path)
    assert code == 0, output
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_the_next_source_is_tried_and_all_failures_are_told(checkpoint, server, tmp_path):
    server.repos["org/gated"] = checkpoint[0]
    server.gated.add("org/gated")
    code, output = session(server, tmp_path, "org/gated,org/gone,org/model")
    assert code == 0, output
    code, output = session(server, tmp_path, "org/gated,org/gone")
    assert (
        code != 0
        and "org/gated is gated: accept its licence" in output
        and "org/gone does not exist" in output
    )
    code, output = session(server, tmp_path, "org/other", HF_HUB_OFFLINE="1")
    assert code != 0 and f"hf download org/other --revision {COMMIT}" in output


def test_without_a_pinned_revision_the_commit_is_told(server, tmp_path):
    code, output = session(server, tmp_path, revision=None)
    assert code == 0 and f"took the newest: {COMMIT}" in output


def test_tokens_come_from_the_environment_a_login_or_colab_with_a_time_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub, "COLAB_WAIT", 0.2)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert hub.token() is None
    colab, userdata = ModuleType("google.colab"), ModuleType("google.colab.userdata")
    colab.userdata, userdata.get = userdata, lambda name: "from colab"
    for name, module in {
        "google": ModuleType("google"),
        "google.colab": colab,
        "google.colab.userdata": userdata,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert hub.token() == "from colab"
    userdata.get, began = (lambda name: time.sleep(30)), time.monotonic()
    assert hub.token() is None and time.monotonic() - began < 5
    (tmp_path / "token").write_text("from login\n")
    assert hub.token() == "from login"
    monkeypatch.setenv("HF_TOKEN", "from environment")
    assert hub.token() == "from environment"


def test_what_does_not_fit_is_told_before_any_download(monkeypatch):
    monkeypatch.setattr(catalog, "free_gb", lambda device: 15.0)
    monkeypatch.setattr("ga_utils.models.lm.fetch", lambda *args: pytest.fail("tried to download"))
    with pytest.raises(
        ValueError,
        match=r"float16 takes 16\.1 GB.*has 15\.0 GB free: n_layers=26 would fit.*minimal model has 18",
    ):
        ga.load_model("llama-3.1-8b-instruct", device="cpu", dtype=torch.float16)
    with pytest.raises(ValueError, match="n_layers=40: llama-3.1-8b-instruct has 32 layers"):
        ga.load_model("llama-3.1-8b-instruct", device="cpu", dtype=torch.float16, n_layers=40)
    asked = []
    monkeypatch.setattr(
        "ga_utils.models.lm.fetch", lambda name, entry, n_layers: asked.append(n_layers) or 1 / 0
    )
    for n_layers in (18, "fit"):
        with (
            pytest.raises(ZeroDivisionError),
            pytest.warns(UserWarning) if n_layers == "fit" else pytest.MonkeyPatch.context(),
        ):
            ga.load_model("llama-3.1-8b-instruct", device="cpu", dtype=torch.float16, n_layers=n_layers)
    assert asked == [18, 26]
