"""What each model reads, and when: the mixtures of items, the stages of training, the rounds of pressing.

A mixture gives each kind of item (`curriculum.KINDS`) its share of the items drawn. The order of the stages
matters (data/README.md): each one forms a circuit that the next one builds on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ga_utils.training.curriculum import Stage

LOOKUP = {"repeat": 0.15, "kv_short": 0.35, "kv": 0.30, "fact": 0.20}
STORIES = {
    "fact": 0.16,
    "kv_short": 0.04,
    "kv": 0.13,
    "which": 0.25,
    "gsm8k_easy": 0.14,
    "bbh_easy": 0.10,
    "bbh_partner": 0.04,
    "dialogue_easy": 0.10,
    "dialogue": 0.10,
}
LETTERS = {
    "fact": 0.10,
    "content": 0.04,
    "kv": 0.08,
    "which": 0.08,
    "mmlu_more": 0.20,
    "mmlu": 0.24,
    "mmlu_first": 0.04,
    "gsm8k": 0.06,
    "gsm8k_easy": 0.02,
    "bbh": 0.05,
    "bbh_easy": 0.02,
    "bbh_partner": 0.05,
    "dialogue": 0.06,
}
SWAPS = {
    "fact": 0.11,
    "content": 0.04,
    "mmlu": 0.13,
    "mmlu_more": 0.03,
    "kv": 0.06,
    "gsm8k": 0.05,
    "gsm8k_easy": 0.02,
    "bbh": 0.26,
    "bbh_easy": 0.05,
    "bbh_partner": 0.22,
    "dialogue": 0.07,
}
SUMS = {
    "fact": 0.10,
    "content": 0.04,
    "mmlu": 0.10,
    "mmlu_mixed": 0.08,
    "kv": 0.07,
    "gsm8k": 0.33,
    "bbh": 0.21,
    "bbh_partner": 0.06,
    "dialogue": 0.05,
}
LAST = {
    "repeat": 0.02,
    "fact": 0.13,
    "content": 0.07,
    "mmlu": 0.18,
    "mmlu_mixed": 0.09,
    "mmlu_more_mixed": 0.03,
    "kv_short": 0.02,
    "kv": 0.17,
    "gsm8k": 0.11,
    "bbh": 0.12,
    "dialogue": 0.09,
}
STAGES = [
    Stage(300, {"repeat": 1.0}, length=128, rows=32),
    Stage(350, LOOKUP, max_pairs=6, length=128, rows=32),
    Stage(400, STORIES, max_pairs=12, guided=1.0),
    Stage(750, LETTERS, max_pairs=12, max_swaps=1, guided=1.0),
    Stage(900, SWAPS, max_pairs=16, max_swaps=1, guided=0.9),
    Stage(800, SUMS, max_pairs=24, max_swaps=1, guided=0.4),
    Stage(1000, LAST, max_pairs=32, max_swaps=1),
]
UNGUIDED = [replace(stage, guided=0.0) for stage in STAGES]
# An earlier share of lettered questions, with which tiny-llama-unguided was trained.
OWN_LETTERS = LETTERS | {"mmlu_more": 0.16, "mmlu": 0.14, "mmlu_first": 0.18}
UNGUIDED_1 = [replace(stage, share=OWN_LETTERS) if stage.share is LETTERS else stage for stage in UNGUIDED]
FEW_HEADS = Stage(
    0,
    LAST
    | {
        "mmlu": 0.30,
        "mmlu_mixed": 0.0,
        "mmlu_more_mixed": 0.0,
        "mmlu_more": 0.04,
        "fact": 0.05,
        "content": 0.04,
        "which": 0.04,
    },
    max_pairs=24,
    max_swaps=1,
    rows=17,
    fact_rows=3,
)


@dataclass(frozen=True)
class Round:
    """One round of tiny-llama-minimal: steps, peak learning rate, and the arguments of
    `sparsify.FewHeadsLoss`."""

    steps: int
    lr: float
    ramp: int
    at_all: float
    at_closings: float
    at_answers: float


ROUNDS = [
    Round(800, 1.0e-3, ramp=400, at_all=0.01, at_closings=0.12, at_answers=0.06),
    Round(1000, 1.5e-3, ramp=200, at_all=0.01, at_closings=0.08, at_answers=0.08),
    Round(700, 1.5e-3, ramp=100, at_all=0.01, at_closings=0.15, at_answers=0.12),
    Round(600, 1.5e-3, ramp=100, at_all=0.01, at_closings=0.15, at_answers=0.12),
    Round(500, 1.5e-3, ramp=50, at_all=0.01, at_closings=0.15, at_answers=0.30),
]

OPTIONS = {"fact": 0.16, "content": 0.06, "kv_short": 0.05, "kv": 0.20, "which": 0.32, "mmlu_more": 0.25}
EXAM = {"fact": 0.10, "content": 0.10, "kv": 0.16, "which": 0.10, "mmlu_more": 0.18, "mmlu": 0.40}
# No stories, sums or swaps for SSMs: with them, letters were still at 50 % after 2,000 steps.
SSM_STAGES = [
    Stage(300, {"repeat": 1.0}),
    Stage(350, LOOKUP, max_pairs=6),
    Stage(500, OPTIONS, max_pairs=12),
    Stage(1250, EXAM, max_pairs=24),
]
# Mamba-1 learns letters late as well, so it takes more steps, with half a batch each.
FALCON_STAGES = [
    *(replace(stage, rows=10) for stage in SSM_STAGES[:3]),
    Stage(4450, EXAM, max_pairs=24, rows=10),
]
DISTIL = Stage(0, LAST | {"repeat": 0.06, "kv": 0.25, "kv_short": 0.06}, max_pairs=32, max_swaps=1)
