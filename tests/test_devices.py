"""Every notebook on a machine with a GPU, as far as a CPU can tell: see labels.py."""

from __future__ import annotations

import ast
import io
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path

import by_hand
import families
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from fewer import fewer_questions
from IPython.core.formatters import DisplayFormatter
from IPython.core.inputtransformer2 import TransformerManager
from labels import CPU, CUDA, Labels

import ga_utils as ga

FOLDER = Path(__file__).parent.parent / "notebooks"


@pytest.fixture
def labels():
    return Labels()


@pytest.fixture
def gpu(labels, monkeypatch):
    """`ga.load_model` loads to the GPU, whose memory is 15 GB, unless it is told device="cpu"."""
    load = ga.load_model

    def load_model(*args, device="auto", **kwargs):
        with labels.pause():
            lm = load(*args, device="cpu", **kwargs)
        if device != "cpu":
            labels.put(lm.model)
        return lm

    monkeypatch.setattr(ga, "load_model", load_model)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (15 * 10**9, 15 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "labels")
    return labels


# Expressions of c, on the CPU, and g, on the GPU, and what PyTorch does with them on a machine that has one.

ALLOWED = {
    "moved": ("g.cpu() + c", "cpu"),
    "moved by name": ("c.to(device='cuda') + g", "cuda:0"),
    "moved like another": ("c.to(g) + g", "cuda:0"),
    "moved and cast": ("g.to('cpu', torch.float64) + c", "cpu"),
    "moved, unnamed": ("c.cuda() + g", "cuda:0"),
    "made there": ("torch.zeros(3, device=g.device) + g", "cuda:0"),
    "made like it": ("torch.zeros_like(g) + g.new_ones(3)", "cuda:0"),
    "made like it, elsewhere": ("torch.ones_like(g, device='cpu') + c", "cpu"),
    "a view": ("g[1:] + g.data[:2]", "cuda:0"),
    "a parameter": ("torch.nn.Parameter(g).detach() + g", "cuda:0"),
    "a number from the CPU": ("g * torch.tensor(2.0)", "cuda:0"),
    "an index from the CPU": ("g[torch.tensor([0, 2])] + g[:2]", "cuda:0"),
    "a written scalar": ("g.index_put((torch.tensor([0]),), torch.tensor(1.0))", "cuda:0"),
    "copied across": ("c.clone().copy_(g) + c", "cpu"),
    "written across": ("[x := c.clone(), x.__setitem__(0, g[0])][0] + c", "cpu"),
    "read as numbers": ("torch.tensor([g[0].item(), float(g[1]), *g[2:].tolist()]) + c", "cpu"),
    "shown in NumPy": ("torch.from_numpy(np.asarray(g.cpu()) + g.cpu().numpy()) + c", "cpu"),
    "taken elsewhere": ("torch.as_tensor(g, device='cpu') + c", "cpu"),
    "taken from it": ("torch.as_tensor(g) + g", "cuda:0"),
    "a gradient": ("torch.autograd.grad((w := g.clone().requires_grad_()).cpu().sum(), w)[0] + g", "cuda:0"),
    "a layer": ("torch.nn.Linear(3, 3).to('cuda')(g)", "cuda:0"),
}
REFUSED = {
    "a sum": "g + c",
    "a product": "torch.ones(2, 3) @ g",
    "a sum in place": "g.add_(c)",
    "a sum in place, with a number": "torch.tensor(0.0).add_(g[0])",
    "joined": "torch.cat([g, c])",
    "stacked scalars": "torch.stack([g[0], c[0]])",
    "compared": "torch.allclose(g, c)",
    "chosen by rows": "g.index_fill(0, torch.tensor([1]), 0)",
    "an index from the GPU": "c[torch.zeros(1, dtype=torch.long, device='cuda')]",
    "an embedding": "torch.nn.functional.embedding(torch.tensor([0]), g[None])",
    "a product of Einstein's": "torch.einsum('i,j->ij', g, c)",
    "NumPy": "g.numpy()",
    "NumPy's array": "np.asarray(g)",
    "NumPy's function": "np.log(g)",
}


@pytest.fixture
def space(labels):
    c, g = torch.arange(3.0), torch.ones(3)
    labels.put(g)
    return {"torch": torch, "np": np, "c": c, "g": g}


@pytest.mark.parametrize("source, device", ALLOWED.values(), ids=ALLOWED)
def test_what_pytorch_allows_is_allowed_and_lies_where_pytorch_puts_it(labels, space, source, device):
    with labels.on():
        assert eval(source, space).device == torch.device(device)


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_what_pytorch_refuses_is_refused(labels, space, source):
    with labels.on(), pytest.raises((RuntimeError, TypeError), match="same device|to numpy"):
        eval(source, space)


def test_both_devices_say_what_they_are(labels, space):
    with labels.on():
        assert (space["g"].device, space["c"].device) == (CUDA, CPU)
        assert space["g"].is_cuda and not space["g"].is_cpu and "device='cuda:0'" in repr(space["g"])
        assert not space["c"].is_cuda and space["c"].is_cpu and "device" not in repr(space["c"])


# What stopped the notebooks on an H200.
MISTAKES = {
    "ids": 'lm.model(lm.tokenizer(text, return_tensors="pt").input_ids)',
    "NumPy": "lm.model(lm.encode(text)).logits.detach().numpy()",
    "an index": "lm.model(lm.encode(text)).logits.index_fill(1, torch.tensor([0]), 0)",
    "a map": "ga.attention_map(lm, text, layer=0) @ lm.model(lm.encode(text)).logits[0]",
}


@pytest.mark.parametrize("source", MISTAKES.values(), ids=MISTAKES)
def test_the_mistakes_of_earlier_notebooks_are_found(gpu, source):
    lm = ga.load_model("tiny-llama-minimal")
    space = {"ga": ga, "lm": lm, "torch": torch, "text": "What color is the house?"}
    eval(source, space)  # on a CPU nobody sees them
    with gpu.on(), pytest.raises((RuntimeError, TypeError), match="same device|to numpy"):
        eval(source, space)


class OnlyEvaluated(ast.NodeTransformer):
    """`assert x` becomes `x`: with few questions a claim about numbers may fail."""

    def visit_Assert(self, node):
        return ast.Expr(node.test)


def run_cell(source: str, space: dict) -> str:
    """Run a cell as Jupyter does, and return what it prints and shows."""
    tree = OnlyEvaluated().visit(ast.parse(TransformerManager().transform_cell(source)))
    shown = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        shown = ast.fix_missing_locations(ast.Expression(tree.body.pop().value))
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        exec(compile(ast.fix_missing_locations(tree), "cell", "exec"), space)
        value = shown and eval(compile(shown, "cell", "eval"), space)
        data, _ = DisplayFormatter().format(value)
    return printed.getvalue() + data.get("text/plain", "")


def run_notebook(path: Path, labels: Labels) -> dict[int, str]:
    """Run all cells, also after one that fails; number of the cell -> what went wrong.

    A cell also fails if it prints a tensor together with its device: its output would not be that of a CPU.
    """
    space, failed = {"__name__": "__main__"}, {}
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "code":
            try:
                with labels.on():
                    shown = run_cell(cell.source, space)
                if "device='cuda:0'" in shown:
                    failed[number] = f"prints a tensor on the GPU:\n{shown}"
            except Exception:
                failed[number] = f"{cell.source}\n\n{traceback.format_exc(limit=-8)}"
            plt.close("all")
    return failed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_every_notebook_runs_on_a_gpu(name, gpu, monkeypatch):
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: None)
    fewer_questions(monkeypatch.setattr)
    failed = run_notebook(FOLDER / f"{name}.ipynb", gpu)
    assert not failed, "\n\n".join(f"cell [{number}]: {what}" for number, what in failed.items())


@pytest.mark.parametrize("free", [15 * 10**9, 10**5], ids=["enough memory", "hardly any"])
@pytest.mark.parametrize("family", [name for name in families.CONFIGS if name not in by_hand.EXPERTS[1:]])
def test_what_ga_returns_lies_on_the_cpu_in_float32(family, free, gpu, tokenizer, monkeypatch):
    """With hardly any free memory a sweep keeps what it records on the CPU."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, 15 * 10**9))
    # Hugging Face counts tokens per expert by an operation that the CPU lacks; not so Jamba, if it has one.
    lm = families.build(family, tokenizer, **{"num_experts": 1} if family == "jamba" else {})
    gpu.put(lm.model)
    examples = ga.tasks.mmlu(lm, n=2)
    ssm = next((mixer.layer for mixer in lm.mixers if mixer.kind != "attention"), None)
    heads = ga.alive_heads(lm)[:2]
    with gpu.on():
        assert lm.encode("apple").device == lm.device == CUDA
        seen = [ga.attention_map(lm, examples[0].prompt, heads[0].layer, heads=[0])]
        if ssm is not None:
            scan = ga.scan(lm, examples[0].prompt, ssm)
            seen += [getattr(scan, field.name) for field in fields(scan)]
            seen.append(ga.read_state(lm, examples, ssm))
        assert {(tensor.device, tensor.dtype) for tensor in seen} == {(CPU, torch.float32)}
        for mode in ("zero", "mean", "resample"):
            with ga.ablate(lm, heads, mode, reference=examples):
                ga.evaluate(lm, examples)
        for method in ("exact", "screen"):
            ga.sweep_heads(lm, examples, heads, method=method, progress=False)
        ga.gather_score(lm, examples, progress=False)
