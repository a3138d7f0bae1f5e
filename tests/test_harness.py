"""`ga.lm_eval` runs the harness itself, whose own scoring code makes it a check of `ga.evaluate`, too."""

import copy
import json
import re
import sys

import datasets
import families
import lm_eval.api.task as harness
import numpy as np
import pandas as pd
import pytest
import torch

import ga_utils as ga

TEMPLATE = {
    "output_type": "multiple_choice",
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "prompt",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def as_task(tmp_path, monkeypatch):
    """Examples as a task of the harness, read from a file."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(examples: list[ga.Example], name: str = "mine", **changes) -> dict:
        rows = [{"prompt": e.prompt, "choices": e.choices, "answer": e.answer} for e in examples]
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"data_files": {"test": str(tmp_path / f"{name}.json")}}
        return TEMPLATE | {"task": name, "dataset_kwargs": files} | changes

    return make


def accuracy(frame: pd.DataFrame) -> float:
    (row,) = frame[frame.metric == "acc"].to_dict("records")
    return row["value"]


@pytest.mark.slow  # the first use reads the harness's list of tasks
def test_equals_our_score_with_heads_on_and_off(minimal, as_task):
    letters = ga.tasks.mmlu(minimal, n=40)
    task = as_task(letters)
    whole = ga.lm_eval(minimal, [task])
    assert list(whole.columns) == ["task", "metric", "filter", "value", "stderr", "n"]
    assert whole.task.tolist() == ["mine"] and whole.n.tolist() == [40]
    values = [accuracy(whole)]
    assert values[0] == pytest.approx(ga.evaluate(minimal, letters).accuracy)
    p = values[0]
    assert whole.stderr[0] == pytest.approx(np.sqrt(p * (1 - p) / 39))
    for context in (
        ga.ablate(minimal, ["L2H1"]),
        ga.ablate(minimal, ["L2H1"], "resample", letters[:9]),
        ga.mask_last_row(minimal),
        ga.truncate(minimal, 3),
    ):
        with context:
            values.append(accuracy(ga.lm_eval(minimal, [task])))
            assert values[-1] == pytest.approx(ga.evaluate(minimal, letters).accuracy)
    assert max(values[1:4]) < 0.5 < values[0]  # so the hooks were at work in the harness, too


@pytest.mark.parametrize("family", ["llama", "llamba", "mamba2", "falcon_mamba", "zamba2"])
def test_every_single_answer_is_the_same(family, tokenizer, as_task, monkeypatch):
    """Choices of several tokens, one question at a time, on models that answer at random."""
    lm = families.build(family, tokenizer)
    examples = ga.tasks.mmlu_content(ga.LM(lm.model, tokenizer, family), n=12)
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    logprobs = []
    process = harness.ConfigurableTask.process_results
    monkeypatch.setattr(
        harness.ConfigurableTask,
        "process_results",
        lambda task, doc, results: logprobs.append([ll for ll, _ in results]) or process(task, doc, results),
    )
    ga.lm_eval(lm, [as_task(examples)])
    np.testing.assert_allclose(logprobs, ga.evaluate(lm, examples).logprobs, atol=1e-3)
    after = dict(lm.model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[name], p) for name, p in before.items())


def test_inside_a_borrowed_layer(tiny, as_task):
    student = ga.load_model("tiny-llamba-unaligned", device="cpu")
    examples = ga.tasks.kv_retrieval(student, n_pairs=12, n=30)
    with ga.replace_layer(student, tiny, 2):
        assert accuracy(ga.lm_eval(student, [as_task(examples)])) == pytest.approx(
            ga.evaluate(student, examples).accuracy
        )


@pytest.mark.parametrize("rest", [" is red moon.", " is"], ids=["several tokens", "one token"])
def test_winograndes_form_scores_the_text_after_the_option(tiny, as_task, rest):
    """One text is scored after each of several others: `Example.given`."""
    towns = ["Arvo", "Belin"]
    examples = [
        ga.Example(f"The {relation} of ", (rest,) * 2, k % 2, "winogrande", given=tuple(towns))
        for k, relation in enumerate(["flag", "song", "gift", "feast", "crest", "dance", "tale", "drink"])
    ]
    task = as_task(
        examples,
        doc_to_text="{{answer}}",
        doc_to_target="{{choices[0]}}",
        doc_to_choice="{{[prompt + 'Arvo', prompt + 'Belin']}}",
    )
    score = ga.evaluate(tiny, examples)
    assert 0 < score.accuracy < 1 and accuracy(ga.lm_eval(tiny, [task])) == pytest.approx(score.accuracy)


def test_answers_that_are_generated(minimal, as_task):
    """And `evaluate` among all numbers agrees, where the first token generated is the whole answer."""
    examples = ga.tasks.kv_retrieval(minimal, n_pairs=3, n=20)
    task = as_task(
        examples,
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="{{choices[answer].strip()}}",
        target_delimiter=" ",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 1, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    numbers = tuple(f" {n}" for n in range(100))
    among_all = [ga.Example(e.prompt, numbers, int(e.choices[e.answer]), e.task) for e in examples]
    for heads in ([], ["L1H0"]):
        with ga.ablate(minimal, heads):
            (row,) = ga.lm_eval(minimal, [task]).to_dict("records")
            assert row["metric"] == "exact_match" and row["value"] == pytest.approx(
                ga.evaluate(minimal, among_all).accuracy
            )


def test_limit_shots_several_tasks_and_task_objects(minimal, as_task):
    letters = ga.tasks.mmlu(minimal, n=10)
    tasks = [as_task(letters, "a"), harness.ConfigurableTask(config=as_task(letters, "b"))]
    frame = ga.lm_eval(minimal, tasks, limit=4, shots=1)
    assert frame.task.tolist() == ["a", "b"] and frame.n.tolist() == [4, 4]
    assert tasks[1].instances[0].args[0].count("Question:") == 2  # one shown, one asked


def test_leaves_the_tokenizer_and_the_random_numbers_alone(minimal, as_task, monkeypatch):
    monkeypatch.setattr(minimal, "tokenizer", copy.deepcopy(minimal.tokenizer))
    minimal.tokenizer.pad_token = None
    np.random.seed(5), torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(()).item()
    np.random.seed(5), torch.manual_seed(5)
    ga.lm_eval(minimal, [as_task(ga.tasks.knowledge(minimal, n=3))])
    assert minimal.tokenizer.pad_token is None
    assert (np.random.rand(), torch.rand(()).item()) == expected


def test_nonsense_is_refused(tiny, monkeypatch):
    with pytest.raises(ValueError, match="no tasks"):
        ga.lm_eval(tiny, [])
    with pytest.raises(ValueError, match="limit=0"):
        ga.lm_eval(tiny, ["arc_easy"], limit=0)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "ga-utils[eval]"')):
        ga.lm_eval(tiny, ["arc_easy"])
