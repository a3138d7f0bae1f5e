"""The paper's architectures at full width and reduced depth, with random weights, saved and loaded again."""

import os
import subprocess
import sys
from pathlib import Path

import families
import nbformat
import numpy as np
import pytest
import torch
from full_width import SHAPES
from nbclient import NotebookClient
from transformers import AutoConfig, AutoModelForCausalLM

import ga_utils as ga

TESTS = Path(__file__).parent
NOTEBOOKS = TESTS.parent / "notebooks"
FEW = {
    "llama-3.1-8b-instruct": {"num_hidden_layers": 2},
    "llamba-8b": {"n_layer": 2},
    "falcon-mamba-7b-instruct": {"num_hidden_layers": 2},
    "zamba2-7b": {"num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1},
}


def at_full_width(name: str, tokenizer) -> ga.LM:
    """Two layers of the real width with the tiny world's words: 1 to 2.5 GB in bfloat16."""
    family, values = SHAPES[name]
    config = AutoConfig.for_model(family, **values | FEW[name] | {"vocab_size": len(tokenizer)})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return ga.wrap(model, tokenizer, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_at_full_width_each_family_loads_ablates_sweeps_maps_and_replaces(name, tokenizer, tmp_path):
    made = at_full_width(name, tokenizer)
    made.model.save_pretrained(tmp_path, max_shard_size="400MB")
    tokenizer.save_pretrained(tmp_path)
    lm = ga.load_model(str(tmp_path), device="cpu", dtype=torch.bfloat16)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()  # the model is read; pytest would keep gigabytes of files
    examples = ga.tasks.mmlu(lm, n=1)
    whole = ga.evaluate(lm, examples).logprobs
    assert np.array_equal(whole, ga.evaluate(made, examples).logprobs)
    paper = dict(zip(FEW, [(32, 32), (32, 32), (8192, 8192), (112, 144)]))  # heads in each layer
    assert tuple(len([h for h in ga.alive_heads(lm) if h.layer == i]) for i in range(2)) == paper[name]
    head = ga.alive_heads(lm)[-1]
    sweep = ga.sweep_heads(lm, examples, [head, ga.alive_heads(lm)[0]], progress=False)
    with ga.ablate(lm, [head]):
        alone = ga.evaluate(lm, examples)
    assert abs(sweep.logprob[head.layer, head.head] - alone.right_logprob) < 0.05  # bfloat16
    maps = ga.attention_map(lm, examples[0].prompt, 1, heads=[head.head])
    assert maps.shape[0] == 1 and maps.shape[1] == maps.shape[2] and maps.isfinite().all()
    if name == "llamba-8b":
        teacher = at_full_width("llama-3.1-8b-instruct", tokenizer)
        with ga.replace_head(lm, teacher, 1, 3):
            replaced = ga.evaluate(lm, examples).logprobs
        assert not np.array_equal(replaced, whole) and np.array_equal(
            ga.evaluate(lm, examples).logprobs, whole
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "notebook, family",
    [("00_start_here", f) for f in ("llama", "llamba", "falcon_mamba", "zamba2")]
    + [("02_finding_ga_heads", "llama"), ("03_ablating_heads_on_mmlu", "llama")],
)
def test_notebooks_run_on_a_local_checkpoint_of_each_family(notebook, family, tokenizer, tmp_path):
    """Only MODEL and the number of questions are changed. Random weights know nothing; all cells must run."""
    # A Mamba-1 layer has twice as many channels as the model is wide, and each is swept.
    sizes = {"llama": {"num_hidden_layers": 4}, "falcon_mamba": {"num_hidden_layers": 2, "hidden_size": 8}}
    lm = families.build(family, tokenizer, **sizes.get(family, {}))
    lm.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    book = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", 4)
    (cell,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
    first, *rest = cell.source.splitlines()
    assert first.startswith("MODEL = ")
    cell.source = "\n".join([f'MODEL = "{tmp_path}"', *rest])
    fewer = f"import sys; sys.path.append({str(TESTS)!r}); import fewer; fewer.fewer_questions()"
    book.cells.insert(book.cells.index(cell), nbformat.v4.new_code_cell(fewer))
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()


def test_a_notebook_without_the_course_says_how_to_get_it(tmp_path):
    """The install cell, run where `ga_utils` can't be imported."""
    book = nbformat.read(NOTEBOOKS / "00_start_here.ipynb", 4)
    (cell,) = [cell for cell in book.cells if "install" in cell.metadata.get("tags", [])]
    code = cell.source.replace("    %pip", "    get_ipython().run_line_magic('pip', '')  # %pip")
    script = f"import sys\nsys.modules['ga_utils'] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode and "say where the course is" in done.stderr
