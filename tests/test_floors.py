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


FRESH = [SEED, SEED + 1, SEED + 2]


@pytest.fixture(scope="module")
def roles(tiny):
    letters, knowledge = ga.tasks.mmlu(tiny, n=300, seed=5), ga.tasks.knowledge(tiny, n=300, seed=5)
    return ga.find_roles(tiny, letters, knowledge, progress=False)


def closing(lm, option):
    """A function from an example to the closing tokens of an option, counted from the right one."""
    return lambda example: ga.segments(lm, example)[(example.answer + option) % 4].closing


def follows(score, examples, option) -> float:
    return (score.chosen == [(example.answer + option) % 4 for example in examples]).mean()


def test_the_whole_model_has_a_team_of_gather_heads_and_a_later_team_of_aggregate_heads(tiny, roles):
    assert len(ga.alive_heads(tiny)) == 20  # nothing was pruned
    assert roles.gather and len(roles.aggregate) >= 2
    assert max(h.layer for h in roles.gather) < min(h.layer for h in roles.aggregate)
    alone = [roles.letters.drop[h.layer, h.head] for h in roles.aggregate]
    assert max(alone) < 0.1  # each alone costs little: it is the team that matters


@pytest.mark.parametrize("place", ["closing", "last"])
def test_a_role_is_needed_where_it_is_said_to_work_and_nowhere_else(tiny, roles, place):
    """The Gather team at closing tokens; at the last token all heads that look like Aggregate heads."""
    table = roles.evidence
    lookers = list(table.heads[(table.role == "Aggregate") & table.share.notna()])
    heads = roles.gather if place == "closing" else lookers
    for seed in FRESH:
        letters = ga.tasks.mmlu(tiny, n=500, seed=seed)
        with ga.ablate(tiny, heads, at=place):
            assert ga.evaluate(tiny, letters).accuracy <= 0.32
        with ga.ablate(tiny, heads, but=place):
            assert ga.evaluate(tiny, letters).accuracy >= 0.75
        with ga.ablate(tiny, heads):
            assert ga.evaluate(tiny, ga.tasks.knowledge(tiny, n=500, seed=seed)).accuracy >= 0.9


@pytest.mark.parametrize("seed", FRESH)
def test_the_answer_follows_where_the_aggregate_team_is_made_to_look(tiny, roles, seed):
    letters = ga.tasks.mmlu(tiny, n=300, seed=seed)
    for option in range(4):
        score = ga.steer(tiny, roles.aggregate, letters, closing(tiny, option))
        assert follows(score, letters, option) >= 0.85


@pytest.mark.parametrize("through", [None, "team"], ids=["everything", "the team alone"])
@pytest.mark.parametrize("seed", FRESH)
def test_the_answer_follows_what_gather_heads_wrote(tiny, roles, seed, through):
    """A double dissociation. The letter is brought by one head, the words by four others. Swapped between two
    options, either moves the answer to the other option; both together leave it where it was.
    """
    letters = ga.tasks.mmlu(tiny, n=300, seed=seed)
    ends, swapped = (
        lambda e, pair=pair: [p for option in pair for p in closing(tiny, option)(e)]
        for pair in ((0, 1), (1, 0))
    )
    through = roles.aggregate if through else None

    def swap(heads):
        return ga.patch(tiny, heads, letters, letters, at=ends, source_at=swapped, through=through)

    letter, words = ["L1H2"], ["L0H0", "L0H1", "L0H3", "L1H1"]
    assert follows(swap(letter), letters, 1) >= 0.85
    assert follows(swap(words), letters, 1) >= 0.85
    everything = [f"L{layer}H{head}" for layer in (0, 1) for head in range(4)]
    assert follows(swap(everything), letters, 0) >= 0.85


def test_the_median_other_head_costs_little(tiny, roles):
    others = [h for h in ga.alive_heads(tiny) if h not in (*roles.gather, *roles.aggregate)]
    sweep = ga.sweep_heads(tiny, ga.tasks.mmlu(tiny, n=1000, seed=SEED), others, progress=False)
    assert np.nanmedian(sweep.drop) <= 0.03


def test_without_the_guide_letters_are_answered_in_another_way():
    lm = ga.load_model("tiny-llama-unguided", device="cpu")
    letters, knowledge = ga.tasks.mmlu(lm, n=300, seed=5), ga.tasks.knowledge(lm, n=300, seed=5)
    roles = ga.find_roles(lm, letters, knowledge, progress=False)
    assert ga.evaluate(lm, letters).accuracy >= 0.97 and roles.aggregate == []


def test_without_one_aggregate_head_dictionaries_lose_more_the_more_pairs(tiny):
    """Figure 4 on a model that loses partly: the loss as a share of the skill."""
    lost = []
    for pairs in (4, 16, 32):
        examples = ga.tasks.kv_retrieval(tiny, n_pairs=pairs, n=500, seed=SEED)
        whole, chance = ga.evaluate(tiny, examples).accuracy, 1 / pairs
        with ga.ablate(tiny, ["L2H1"]):
            lost.append((whole - ga.evaluate(tiny, examples).accuracy) / (whole - chance))
    assert lost == sorted(lost) and lost[-1] > lost[0] + 0.05


def test_letters_come_with_one_layer(tiny):
    letters = ga.tasks.mmlu(tiny, n=500, seed=SEED)
    steps = ga.sweep_layers(tiny, {"letters": letters}, progress=False).frame()["letters"].diff().dropna()
    assert steps.max() > 0.5 and steps.drop(steps.idxmax()).max() < 0.1
