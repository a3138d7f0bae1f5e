"""The tasks, each a list of `Example`s: `ga.tasks.mmlu(lm, n=200, seed=0)`.

For a model that speaks the tiny world, items come from `ga_utils.items`, offline. Seeds here and seeds of
training never meet: training draws from `train-...` streams, tasks from `task-...` streams.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ga_utils import items, world
from ga_utils.items import Example
from ga_utils.models import LM

__all__ = ["Example", "bbh", "dialogue", "gsm8k", "knowledge", "kv_retrieval", "mmlu", "mmlu_content"]


def mmlu(lm: LM, n: int = 200, seed: int = 0) -> list[Example]:
    """Questions with lettered options, answered by a letter: knowledge *and* retrieval. Chance is 25 %."""
    return _draw(lm, "mmlu", items.mmlu, n, seed)


def mmlu_content(lm: LM, n: int = 200, seed: int = 0) -> list[Example]:
    """The same questions as `mmlu` with the same seed, scored by the options' text: no letter to retrieve."""
    return _draw(lm, "mmlu", items.mmlu_content, n, seed)


def knowledge(lm: LM, n: int = 200, seed: int = 0) -> list[Example]:
    """Facts to complete, scored by the likelihood of the continuation: knowledge, no retrieval. Chance is 25 %."""
    return _draw(lm, "knowledge", items.knowledge, n, seed)


def kv_retrieval(lm: LM, n_pairs: int = 8, n: int = 200, seed: int = 0) -> list[Example]:
    """A dictionary of random pairs and one key to look up: retrieval, no knowledge. Chance is 1/n_pairs."""
    if not 2 <= n_pairs <= len(world.NOUNS):
        raise ValueError(f"n_pairs={n_pairs}: the tiny world has keys for 2 to {len(world.NOUNS)} pairs")
    return _draw(lm, f"kv-{n_pairs}", lambda rng: items.kv_retrieval(rng, n_pairs), n, seed)


def gsm8k(lm: LM, n: int = 200, seed: int = 0) -> list[Example]:
    """Short stories that name numbers and ask for a sum. Chance is 25 %."""
    return _draw(lm, "gsm8k", lambda rng: items.gsm8k(rng).ask(rng, "gsm8k"), n, seed)


def bbh(lm: LM, n: int = 200, seed: int = 0) -> list[Example]:
    """Three people hold three things, two of them swap, who holds what? Chance is 33 %."""
    return _draw(lm, "bbh", lambda rng: items.bbh(rng).ask(rng, "bbh"), n, seed)


def dialogue(lm: LM, n: int = 200, seed: int = 0) -> list[Example]:
    """Four speakers, one line each: who said it? Chance is 25 %."""
    return _draw(lm, "dialogue", lambda rng: items.dialogue(rng).ask(rng, "dialogue"), n, seed)


def _draw(lm: LM, stream: str, make: Callable[[random.Random], Example], n: int, seed: int) -> list[Example]:
    if n < 1:
        raise ValueError(f"n={n}: ask for at least one example")
    vocab = lm.tokenizer.get_vocab()
    missing = [word for word in world.WORDS if word not in vocab]
    if missing:
        raise ValueError(
            f"{lm.name} does not speak the tiny world (its tokenizer lacks {missing[0]!r} and {len(missing) - 1} more words)"
        )
    rng = random.Random(f"task-{stream}-{seed}")
    return [make(rng) for _ in range(n)]
