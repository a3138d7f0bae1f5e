"""lm-evaluation-harness itself, on a model as it stands: also inside `ablate`, `truncate` and the like."""

from __future__ import annotations

import copy
from functools import cache

import pandas as pd

from ga_utils.models.lm import LM
from ga_utils.tasks.datasets import INSTALL


def lm_eval(lm: LM, tasks: list, limit: int | float | None = None, shots: int | None = None) -> pd.DataFrame:
    """Run the harness's tasks with its own prompts, scoring and metrics. Downloads what the tasks need.

    Slower than `ga.evaluate`, but these are the numbers that papers report. Texts run one at a time, so
    that no padding comes between the end of a text and `mask_last_row`. Tasks that generate text (gsm8k)
    use a cache, so they can't run inside `replace_layer` or `replace_head`, and `ablate(mode="resample")`
    means nothing to them.

    Args:
        tasks: what the harness takes: names ("arc_easy", "mmlu"), paths of task files, task dictionaries or
            Task objects.
        limit: only the first `limit` questions of each task (below 1: that share of them); None is all.
        shots: how many solved questions are shown first; None is the task's own number.

    Returns:
        One row for each task (or group of tasks) and metric, with columns task, metric, filter (how the
        answer was read off the output), value, stderr (standard error; NaN where the harness has none) and
        n (how many questions were asked).

    Raises:
        ModuleNotFoundError: the extra `eval` is not installed.
        ValueError: no tasks, or a `limit` that is not positive.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(INSTALL) from error
    if not tasks:
        raise ValueError('no tasks: pass a list such as ["arc_easy"]')
    if limit is not None and limit <= 0:
        raise ValueError(f"limit={limit}: expected a positive number of questions, or None for all")
    tokenizer = copy.deepcopy(lm.tokenizer)  # the harness may give it a padding token
    if tokenizer.eos_token is None:
        # No text of the tiny world ever ends, but the harness wants a token at which generation stops.
        tokenizer.eos_token = tokenizer.bos_token or tokenizer.unk_token
    with lm.evaluating():
        results = simple_evaluate(
            model=HFLM(lm.model, tokenizer=tokenizer, backend="causal", max_length=lm.max_length),
            tasks=[tasks] if isinstance(tasks, str) else list(tasks),
            limit=limit,
            num_fewshot=shots,
            task_manager=_task_manager(),
            log_samples=False,
            random_seed=None,  # leave everybody's random numbers alone
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    return _table(results)


def _table(results: dict) -> pd.DataFrame:
    """What `simple_evaluate` returns, as a table; its keys are "metric,filter" and "metric_stderr,filter"."""
    asked, rows = results["n-samples"], []
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, _, answer_filter = key.partition(",")
            if answer_filter and not metric.endswith("_stderr"):
                stderr = pd.to_numeric(values.get(f"{metric}_stderr,{answer_filter}"), errors="coerce")
                n = asked[task]["effective"] if task in asked else values.get("sample_len")
                rows.append((task, metric, answer_filter, value, stderr, n))
    return pd.DataFrame(rows, columns=["task", "metric", "filter", "value", "stderr", "n"])


@cache
def _task_manager():
    """The harness's list of its tasks, made once: it reads thousands of files, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()
