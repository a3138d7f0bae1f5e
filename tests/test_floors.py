"""The shipped models against the floors that the course promises, on seeds that training never used, n =
1,000.
"""

import numpy as np
import pytest

import ga_utils as ga

pytestmark = pytest.mark.slow
SEED = 777_001  # neither training (other streams altogether) nor the search below uses it

FLOORS = {
    "mmlu": (ga.tasks.mmlu, {}, 0.97),
    "knowledge": (ga.tasks.knowledge, {}, 0.97),
    "KV 8": (ga.tasks.kv_retrieval, {"n_pairs": 8}, 0.95),
    "KV 16": (ga.tasks.kv_retrieval, {"n_pairs": 16}, 0.85),
    "gsm8k": (ga.tasks.gsm8k, {}, 0.85),
    "bbh": (ga.tasks.bbh, {}, 0.85),
    "dialogue": (ga.tasks.dialogue, {}, 0.85),
}


CASES = [pytest.param(*case, id=name) for name, case in FLOORS.items()]


@pytest.mark.parametrize("task, options, floor", CASES)
def test_tiny_llama_reaches_its_floor(tiny, task, options, floor):
    assert ga.evaluate(tiny, task(tiny, n=1000, seed=SEED, **options)).accuracy >= floor


@pytest.fixture(scope="module")
def first(minimal):
    """The headline's model: the fewest first layers of tiny-llama-minimal that know 90 % of the facts."""
    facts = {"knowledge": ga.tasks.knowledge(minimal, n=300, seed=5)}
    knows = ga.sweep_layers(minimal, facts, progress=False).frame()["knowledge"]
    return ga.load_model("tiny-llama-minimal", device="cpu", n_layers=int(knows.index[knows >= 0.9][0]))


@pytest.fixture(scope="module")
def roles(first):
    letters, knowledge = ga.tasks.mmlu(first, n=300, seed=5), ga.tasks.knowledge(first, n=300, seed=5)
    return ga.find_roles(first, letters, knowledge, progress=False)


def test_one_gather_head_and_a_later_aggregate_head(minimal, roles):
    assert len(ga.alive_heads(minimal)) >= 12
    (gather,) = roles.gather
    assert gather.layer < roles.aggregate.layer
    assert roles.gather_score[gather.layer, gather.head] > 0.5
    assert roles.aggregate_score[roles.aggregate.layer, roles.aggregate.head] > 0.5


@pytest.mark.parametrize("seed", [SEED, SEED + 1, SEED + 2])
def test_either_head_alone_takes_letters_to_chance_and_leaves_knowledge(first, roles, seed):
    letters, knowledge = ga.tasks.mmlu(first, n=1000, seed=seed), ga.tasks.knowledge(first, n=1000, seed=seed)
    assert ga.evaluate(first, letters).accuracy >= 0.70
    for head in (*roles.gather, roles.aggregate):
        with ga.ablate(first, [head]):
            assert ga.evaluate(first, letters).accuracy <= 0.32
            assert ga.evaluate(first, knowledge).accuracy >= 0.90


def test_the_whole_minimal_model_can_do_everything(minimal):
    for task, options, floor in FLOORS.values():
        assert ga.evaluate(minimal, task(minimal, n=500, seed=SEED, **options)).accuracy >= floor - 0.02


def test_the_median_other_head_costs_little(first, roles):
    team = [*roles.gather, roles.aggregate]
    others = [h for h in ga.alive_heads(first) if h not in team]
    sweep = ga.sweep_heads(first, ga.tasks.mmlu(first, n=1000, seed=SEED), others, progress=False)
    assert np.nanmedian(sweep.drop) <= 0.03


def test_kv_retrieval_falls_without_the_aggregate_head_the_more_the_more_pairs(minimal, roles):
    drops = []
    for pairs in (2, 4, 8, 16):
        examples = ga.tasks.kv_retrieval(minimal, n_pairs=pairs, n=500, seed=SEED)
        whole = ga.evaluate(minimal, examples).accuracy
        with ga.ablate(minimal, [roles.aggregate]):
            drops.append(whole - ga.evaluate(minimal, examples).accuracy)
    assert drops == sorted(drops) and drops[-1] > 0.1


def test_letters_fall_at_one_layer_and_knowledge_gradually(tiny):
    tasks = {
        "letters": ga.tasks.mmlu(tiny, n=500, seed=SEED),
        "knowledge": ga.tasks.knowledge(tiny, n=500, seed=SEED),
    }
    frame = ga.sweep_layers(tiny, tasks, progress=False).frame()
    steps = frame.diff().dropna()
    assert steps["letters"].max() > 0.5  # one layer makes most of the difference
    assert frame["knowledge"].iloc[1] - 0.25 > 0.5 * (
        frame["knowledge"].iloc[-1] - 0.25
    )  # early layers know most of it
