"""A learner's session in another process, since the hub client reads its settings when it is imported."""

import builtins
import multiprocessing
import os
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import ModuleSpec
from io import StringIO
from unittest import mock


class Learner:
    """Loads models from the hub in another process, with the environment variables given."""

    def __init__(self, colab: bool = False, **environment: str):
        self.pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_in_colab if colab else None
        )
        with mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "0", "HF_TOKEN": ""} | environment):
            self.pool.submit(os.getpid).result()  # starts the process, while the variables are set

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown()

    def load(self, repos: list[str], revision: str | None, prompt: str, tokenizer=None, token: str = ""):
        """The first two layers' logits on a prompt or, as text, the error; and what was printed meanwhile."""
        return self.pool.submit(_load, repos, revision, prompt, tokenizer, token).result(timeout=120)


def _load(repos, revision, prompt, tokenizer, token):
    import torch

    import ga_utils as ga
    from ga_utils.models.catalog import MODELS, Entry, Repository

    os.environ["HF_TOKEN"] = token
    words = Repository(tokenizer, revision) if tokenizer else None
    sources = tuple(Repository(repo, revision) for repo in repos)
    MODELS["m"] = Entry(sources, "none", layers=4, gb=0.001, fixed_gb=0.0005, tokenizer=words)
    with redirect_stdout(StringIO()) as printed, redirect_stderr(printed), torch.no_grad():
        try:
            lm = ga.load_model("m", device="cpu", n_layers=2)
            result = lm.model(lm.tokenizer(prompt, return_tensors="pt").input_ids).logits[0].numpy()
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
    return result, printed.getvalue()


def _in_colab():
    """What `huggingface_hub` looks for in a Colab runtime: its shell, and its vault of secrets."""
    builtins.get_ipython = lambda: "google.colab"
    names = ("google", "google.colab", "google.colab.userdata", "google.colab.errors")
    google, colab, userdata, errors = (types.ModuleType(name) for name in names)
    userdata.get = lambda name: {"HF_TOKEN": "hf_colab"}[name]
    userdata.NotebookAccessError = userdata.SecretNotFoundError = errors.Error = type(
        "Error", (Exception,), {}
    )
    colab.userdata, colab.errors, google.colab = userdata, errors, colab
    for module in (google, colab, userdata, errors):
        module.__spec__ = ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
