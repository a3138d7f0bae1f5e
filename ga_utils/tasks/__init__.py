"""The tasks, each a list of `Example`s: `ga.tasks.mmlu(lm, n=200, seed=0)`.

A model that speaks the tiny world is asked about that (`tiny`, offline), any other model is asked questions
of public data sets (`benchmarks`: needs the extra `eval`, and downloads at the first use). Tasks draw from
other random streams (`task-...`) than training does (`train-...`), whatever the seeds. A chance level that
is given once holds for both kinds of questions. All tasks raise a ValueError if there are fewer than `n`
questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ga_utils.examples import Example
from ga_utils.models.lm import LM
from ga_utils.tasks import benchmarks, texts, tiny, world

__all__ = [
    "ENGLISH",
    "Example",
    "bbh",
    "dialogue",
    "english",
    "gsm8k",
    "induction",
    "knowledge",
    "kv_retrieval",
    "mmlu",
    "mmlu_content",
]

ENGLISH = texts.ENGLISH  # the kinds of short English texts

VALUES = {"numbers": world.NUMBERS, "digits": world.NUMBERS[:10]}  # of a dictionary
TWO_DIGITS = world.NUMBERS[10:]  # to real models, so that no number begins another one


def mmlu(
    lm: LM, n: int = 200, seed: int = 0, shots: int = 0, subjects: list[str] | None = None
) -> list[Example]:
    """Questions with lettered options, answered by a letter: knowledge *and* retrieval. Chance is 25 %.

    Args:
        shots: how many solved questions of the same subject come first, 0 to 5 (the paper uses 5). Real data
            only.
        subjects: MMLU's names, such as "anatomy"; all 57 by default. Real data only.
    """
    if _speaks_tiny(lm):
        _only_real(shots=shots, subjects=subjects)
        return _draw("mmlu", tiny.mmlu, n, seed)
    return benchmarks.mmlu(_positive(n), seed, shots, subjects, content=False)


def mmlu_content(
    lm: LM, n: int = 200, seed: int = 0, shots: int = 0, subjects: list[str] | None = None
) -> list[Example]:
    """The same questions as `mmlu` with the same seed, scored by the options' text: no letter to retrieve."""
    if _speaks_tiny(lm):
        _only_real(shots=shots, subjects=subjects)
        return _draw("mmlu", tiny.mmlu_content, n, seed)
    return benchmarks.mmlu(_positive(n), seed, shots, subjects, content=True)


def knowledge(lm: LM, n: int = 200, seed: int = 0, sets: list[str] | None = None) -> list[Example]:
    """Facts to complete, scored by the likelihood of the continuation: knowledge, no retrieval.

    Tiny world: chance is 25 %. Real data: an even mixture of ARC (easy and challenge), PIQA, OpenBookQA,
    HellaSwag and Winogrande, or of those that `sets` names (keys of `benchmarks.KNOWLEDGE`). Chance is 25 %,
    for PIQA and Winogrande 50 %.
    """
    if _speaks_tiny(lm):
        _only_real(sets=sets)
        return _draw("knowledge", tiny.knowledge, n, seed)
    return benchmarks.knowledge(_positive(n), seed, sets)


def kv_retrieval(
    lm: LM, n_pairs: int = 8, n: int = 200, seed: int = 0, values: str = "numbers"
) -> list[Example]:
    """A dictionary of random pairs, and one key to look up: retrieval, no knowledge. Chance is 1/n_pairs.

    Real models read the paper's wording (`tiny.kv_memorize`). No data set is needed.

    Args:
        values: "numbers": 0 to 99 in the tiny world, where each is one token; real models get 10 to 99,
            because many a tokenizer splits numbers into digits, and " 5" can't be less likely than " 58",
            which it begins. "digits": 0 to 9, so that a value is one token.
    """
    if values not in VALUES:
        raise ValueError(f"values={values!r}: expected one of {', '.join(VALUES)}")
    is_tiny = _speaks_tiny(lm)
    ask = tiny.kv_retrieval if is_tiny else tiny.kv_memorize
    drawn = TWO_DIGITS if values == "numbers" and not is_tiny else VALUES[values]
    most = min(len(world.NOUNS), len(drawn))
    if not 2 <= n_pairs <= most:
        raise ValueError(f"n_pairs={n_pairs}: there are keys for 2 to {most} pairs")
    stream = f"kv-{n_pairs}" if values == "numbers" else f"kv-{values}-{n_pairs}"
    return _draw(stream, lambda rng: ask(rng, n_pairs, drawn), n, seed)


def gsm8k(lm: LM, n: int = 200, seed: int = 0) -> list[Example]:
    """Short stories with numbers, and a question about what follows from them. Chance is 25 %.

    Tiny world: choose the sum. Real data: after five solved questions, choose the worked solution. The other
    three are copies in which, in one line, a number of the question is swapped for another: one has to look
    up which number stood where, or check the arithmetic. Published GSM8K scores come from generated
    solutions: `ga.lm_eval(lm, ["gsm8k"])`.
    """
    if _speaks_tiny(lm):
        return _draw("gsm8k", lambda rng: tiny.gsm8k(rng).ask(rng, "gsm8k"), n, seed)
    return benchmarks.gsm8k(_positive(n), seed)


def bbh(lm: LM, n: int = 200, seed: int = 0, sets: list[str] | None = None) -> list[Example]:
    """Object tracking and other puzzles.

    Tiny world: three people hold three things, two of them swap, who holds what? Chance is 33 %.
    Real data: an even mixture of BIG-Bench Hard's 24 multiple-choice subsets, or of those that `sets` names,
    such as "tracking_shuffled_objects_three_objects", each after three solved questions. Chance is 5 to 50 %,
    by subset.
    """
    if _speaks_tiny(lm):
        _only_real(sets=sets)
        return _draw("bbh", lambda rng: tiny.bbh(rng).ask(rng, "bbh"), n, seed)
    return benchmarks.bbh(_positive(n), seed, sets)


def dialogue(lm: LM, n: int = 200, seed: int = 0) -> list[Example]:
    """Understanding a conversation.

    Tiny world: four speakers with one line each: who said it? Chance is 25 %.
    Real data: TimeDial: which phrase fills the gap, given what was said before and after?
    """
    if _speaks_tiny(lm):
        return _draw("dialogue", lambda rng: tiny.dialogue(rng).ask(rng, "dialogue"), n, seed)
    return benchmarks.dialogue(_positive(n), seed)


def english(lm: LM, kind: str = "gift", n: int = 200, seed: int = 0) -> list[Example]:
    """Short English texts, for models that know English and need no data set.

    Args:
        kind: one of `ENGLISH`; "gift" is indirect object identification, chance 50 %, "common" is common
            knowledge without retrieval. Chance is 25 % for all but "gift".
    """
    if kind not in ENGLISH:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(ENGLISH)}")
    if _speaks_tiny(lm):
        raise ValueError(
            "this model speaks the tiny world, which has no English: ask it ga.tasks.mmlu and so on"
        )
    return _draw(f"english-{kind}", ENGLISH[kind], n, seed)


def induction(lm: LM, n: int = 200, seed: int = 0, length: int = 12) -> list[Example]:
    """Random words, then the same words again up to somewhere in their second half: which comes next?

    Each word is one token. Chance is 25 %.
    """
    if length < 4:
        raise ValueError(
            f"length={length}: four different words are needed, the right one and three wrong ones"
        )
    return _draw(f"induction-{length}", lambda rng: texts.induction(rng, lm.tokenizer, length), n, seed)


def _speaks_tiny(lm: LM) -> bool:
    vocab = lm.tokenizer.get_vocab()
    return all(word in vocab for word in world.WORDS)


def _only_real(**arguments) -> None:
    """Refuse arguments that only tasks on real data have."""
    for name, value in arguments.items():
        if value:
            raise ValueError(
                f"{name}={value!r}: only tasks on real data have that; this model speaks the tiny world"
            )


def _positive(n: int) -> int:
    if n < 1:
        raise ValueError(f"n={n}: ask for at least one example")
    return n


def _draw(stream: str, make: Callable[[random.Random], Example], n: int, seed: int) -> list[Example]:
    rng = random.Random(f"task-{stream}-{seed}")
    return [make(rng) for _ in range(_positive(n))]
