"""The shipped models against the floors that the course promises, on seeds that training never used, n = 1,000."""

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


NOT_YET = {"bbh": "the shipped model tracks one swap in 59 % of the items; the floor is 85 %"}
CASES = [
    pytest.param(*case, id=name, marks=pytest.mark.xfail(strict=True, reason=NOT_YET[name]) if name in NOT_YET else ())
    for name, case in FLOORS.items()
]


@pytest.mark.parametrize("task, options, floor", CASES)
def test_tiny_llama_reaches_its_floor(tiny, task, options, floor):
    assert ga.evaluate(tiny, task(tiny, n=1000, seed=SEED, **options)).accuracy >= floor


@pytest.fixture(scope="module")
def roles(minimal):
    letters, knowledge = ga.tasks.mmlu(minimal, n=300, seed=5), ga.tasks.knowledge(minimal, n=300, seed=5)
    return ga.find_roles(minimal, letters, knowledge, progress=False)


def test_the_minimal_model_has_gather_heads_and_a_later_aggregate_head(minimal, roles):
    assert len(ga.alive_heads(minimal)) >= 12
    assert roles.gather and roles.aggregate
    assert all(head.layer < roles.aggregate.layer for head in roles.gather)
    assert all(roles.gather_score[head.layer, head.head] > 0.35 for head in roles.gather)
    assert roles.aggregate_score[roles.aggregate.layer, roles.aggregate.head] > 0.35


@pytest.fixture(scope="module")
def without(minimal, roles):
    """Scores on letters and knowledge with all Gather heads, or the one Aggregate head, disabled."""
    letters = ga.tasks.mmlu(minimal, n=1000, seed=SEED)
    knowledge = ga.tasks.knowledge(minimal, n=1000, seed=SEED)
    assert ga.evaluate(minimal, letters).accuracy >= 0.95
    scores = {}
    for role, heads in (("gather", roles.gather), ("aggregate", [roles.aggregate])):
        with ga.ablate(minimal, heads):
            scores[role] = ga.evaluate(minimal, letters), ga.evaluate(minimal, knowledge)
    return scores


def test_one_aggregate_head_carries_letters_and_no_knowledge(without):
    letters, knowledge = without["aggregate"]
    assert letters.accuracy <= 0.45 and knowledge.accuracy >= 0.95


@pytest.mark.xfail(strict=True, reason="the goal is 32 %; the shipped model still gets 33.8 % of the letters")
def test_without_the_aggregate_head_letters_are_at_chance(without):
    assert without["aggregate"][0].accuracy <= 0.32


def test_without_the_gather_heads_letters_are_at_chance_and_knowledge_keeps_more(without):
    letters, knowledge = without["gather"]
    assert letters.accuracy <= 0.32 and knowledge.ci95[0] > letters.ci95[1]


@pytest.mark.xfail(strict=True, reason="the goal is one Gather head; the shipped model shares the role among three")
def test_there_is_a_single_gather_head(roles):
    assert len(roles.gather) == 1


def test_the_median_other_head_costs_little(minimal, roles):
    team = [*roles.gather, roles.aggregate]
    others = [h for h in ga.alive_heads(minimal) if h not in team]
    sweep = ga.sweep_heads(minimal, ga.tasks.mmlu(minimal, n=1000, seed=SEED), others, progress=False)
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
    tasks = {"letters": ga.tasks.mmlu(tiny, n=500, seed=SEED), "knowledge": ga.tasks.knowledge(tiny, n=500, seed=SEED)}
    frame = ga.sweep_layers(tiny, tasks, progress=False).frame()
    steps = frame.diff().dropna()
    assert steps["letters"].max() > 0.5  # one layer makes most of the difference
    assert frame["knowledge"].iloc[1] - 0.25 > 0.5 * (
        frame["knowledge"].iloc[-1] - 0.25
    )  # early layers know most of it
