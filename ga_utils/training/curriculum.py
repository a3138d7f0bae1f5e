"""Training text for the tiny models: items of the tiny world packed densely into fixed-length rows.

Loss on one final answer token alone stays on a plateau for millions of tokens, so a row packs several
items and every answer in it counts fully, all other text a little (`BACKGROUND`). Everything is drawn
from `random.Random(f"train-{seed}-{step}")`: a step's rows never depend on the steps before it, which
makes training resumable, and evaluation seeds can never meet them.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field, replace

import torch

from ga_utils.tasks import tiny, world

BACKGROUND = 0.05  # loss weight of a token that is not part of an answer
SINGLE = 4.0  # and of an item's only answer token, where 35 tokens of text stand around it
SINGLES = (
    "mmlu",
    "mmlu_mixed",
    "mmlu_first",
    "mmlu_more",
    "mmlu_more_mixed",
    "gsm8k",
    "gsm8k_easy",
    "bbh",
    "bbh_easy",
    "bbh_partner",
)
GUIDED = ("mmlu", "mmlu_mixed", "mmlu_more", "mmlu_more_mixed", "which")  # options first, then a question
KINDS = ("repeat", "fact", "content", "kv", "kv_short", "which", "dialogue", "dialogue_easy", *SINGLES)


@dataclass(frozen=True)
class Stage:
    """A stretch of training: how many steps, which items (share of tokens), how long the dictionaries."""

    steps: int
    share: dict[str, float]
    max_pairs: int = 8
    max_swaps: int = 2
    length: int = 192  # tokens in a row
    rows: int = 20  # rows in a step
    fact_rows: int = 0  # and rows of facts alone
    guided: float = 0.0  # share of lettered items of which the question sees closing tokens alone (`seen_by`)


@dataclass
class TrainingRow:
    """Token ids and loss weights of one packed row; `kinds` says which kind of answer a token belongs to."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    guided: list[tuple[int, int]] = field(default_factory=list)  # where guided items begin and end

    def add(self, ids: list[int], weight: float, kind: int = -1) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)
        self.kinds += [kind] * len(ids)


class Writer:
    """Draws items and packs them into rows of token ids."""

    def __init__(self, tokenizer):
        self.vocab = tokenizer.get_vocab()
        self.pattern = re.compile(world.TOKEN_PATTERN)
        self.bos = tokenizer.bos_token_id

    def encode(self, text: str) -> list[int]:
        """Same ids as the tokenizer without its <bos> (a test says so), without its overhead."""
        return [self.vocab[word] for word in self.pattern.findall(text)]

    def rows(self, rng: random.Random, stage: Stage) -> list[TrainingRow]:
        facts = replace(stage, share={"fact": 0.7, "content": 0.3})
        return [self.row(rng, stage) for _ in range(stage.rows)] + [
            self.row(rng, facts) for _ in range(stage.fact_rows)
        ]

    def row(self, rng: random.Random, stage: Stage) -> TrainingRow:
        row = TrainingRow()
        row.add([self.bos], 0.0)
        while len(row.ids) < stage.length:
            (kind,) = rng.choices(list(stage.share), list(stage.share.values()))
            weight = SINGLE if kind in SINGLES else 1.0
            start = len(row.ids)
            for text, is_answer in _parts(rng, kind, stage):
                row.add(
                    self.encode(text),
                    weight if is_answer else BACKGROUND,
                    KINDS.index(kind) if is_answer else -1,
                )
            if kind in GUIDED and rng.random() < stage.guided:
                row.guided.append((start, len(row.ids)))
        n = stage.length
        return TrainingRow(row.ids[:n], row.weights[:n], row.kinds[:n], row.guided)


def _parts(rng: random.Random, kind: str, stage: Stage) -> list[tuple[str, bool]]:
    """One item as (text, does it count fully) pieces, ending in a newline."""
    if kind == "repeat":  # the same random words twice: the classic nursery of induction heads
        words = " ".join(rng.choices(world.NOUNS + world.POOL + world.NUMBERS, k=rng.randint(10, 40)))
        return [(words + "\n", False), (words + "\n", True)]
    if kind in ("kv", "kv_short"):
        return _dictionary_parts(rng, stage, short=kind == "kv_short")
    if kind.startswith("mmlu_more"):
        return _four_towns_parts(rng, mixed=kind.endswith("mixed"))
    if kind == "which":
        return _which_parts(rng)
    if kind.startswith("dialogue"):
        story = tiny.dialogue(rng, lookalike=kind == "dialogue")
        return _asked(
            story.text + "\n",
            [(f"{q}?", choices[answer]) for q, choices, answer in rng.sample(story.questions, 3)],
        )
    make = {
        "fact": tiny.knowledge,
        "mmlu": tiny.mmlu,
        "mmlu_mixed": lambda rng: tiny.mmlu(rng, mixed=True),
        "mmlu_first": lambda rng: tiny.mmlu(rng, question_first=True),
        "content": tiny.mmlu_content,
        "gsm8k": lambda rng: tiny.gsm8k(rng).ask(rng, "gsm8k"),
        "gsm8k_easy": lambda rng: tiny.gsm8k(rng).ask(rng, "gsm8k", easy=True),
        "bbh": lambda rng: tiny.bbh(rng, rng.randint(1, stage.max_swaps)).ask(rng, "bbh"),
        "bbh_easy": lambda rng: tiny.bbh(rng, 0).ask(rng, "bbh"),
        "bbh_partner": lambda rng: tiny.bbh(rng).ask(rng, "bbh", easy=True),
    }
    example = make[kind](rng)
    return [(example.prompt, False), (example.choices[example.answer], True), ("\n", False)]


def _asked(text: str, questions: list[tuple[str, str]]) -> list[tuple[str, bool]]:
    """A text and several questions about it, each with its answer."""
    parts = [(text, False)]
    for question, answer in questions:
        parts += [(f"Question: {question}\nAnswer:", False), (answer, True), ("\n", False)]
    return parts


def _lettered(
    rng: random.Random, options: list[str], mixed: bool = False
) -> tuple[str, list[tuple[str, str]]]:
    """Options as lettered lines, and (option, letter) pairs in random order."""
    letters = rng.sample(world.LETTERS, 4) if mixed else world.LETTERS
    lines = "".join(f"{letter}. {option}\n" for letter, option in zip(letters, options))
    return lines, rng.sample([(option, f" {letter}") for letter, option in zip(letters, options)], 4)


def _four_towns_parts(rng: random.Random, mixed: bool) -> list[tuple[str, bool]]:
    """Four towns' values as options, then a question about each town: options can't be judged while being
    read.
    """
    relation = rng.choice(world.RELATIONS)
    towns = {" ".join(world.facts()[town, relation]): town for town in rng.sample(world.TOWNS, 4)}
    lines, pairs = _lettered(rng, list(towns), mixed)
    return _asked(
        lines, [(f"what is the {relation} of {towns[option]}?", letter) for option, letter in pairs]
    )


def _which_parts(rng: random.Random) -> list[tuple[str, bool]]:
    """Lettered options, single words or look-alikes, and three of them asked for by their text: no knowledge
    needed.
    """
    value = rng.choice(list(world.facts().values()))
    options = (
        rng.sample(world.NOUNS, 4)
        if rng.random() < 0.5
        else [" ".join(o) for o in rng.sample(tiny.alike(rng, value), 4)]
    )
    lines, pairs = _lettered(rng, options)
    return _asked(lines, [(f"who has {option}?", letter) for option, letter in pairs[:3]])


def _dictionary_parts(rng: random.Random, stage: Stage, short: bool) -> list[tuple[str, bool]]:
    """A dictionary, then up to eight of its keys asked for: as a bare `apple: 17` line, or as a question."""
    text, pairs = tiny.dictionary(rng, rng.randint(2, stage.max_pairs))
    keys = rng.sample(list(pairs), min(len(pairs), 8))
    if short:
        return [
            (text, False),
            *(part for key in keys for part in ((f"{key}:", False), (f" {pairs[key]}\n", True))),
        ]
    return _asked(text, [(f"what is the value of {key}?", f" {pairs[key]}") for key in keys[:4]])


def batch(rows: list[TrainingRow], writer: Writer | None = None) -> dict[str, torch.Tensor]:
    """Stack equally long rows: ids, weights, kinds, each [row, pos].

    Where a row has guided items, also a mask to be added to attention's logits, [row, 1, query, key].
    """
    data = {
        "ids": torch.tensor([row.ids for row in rows]),
        "weights": torch.tensor([row.weights for row in rows]),
        "kinds": torch.tensor([row.kinds for row in rows]),
    }
    if any(row.guided for row in rows):
        seen = torch.stack([seen_by(row, writer.vocab) for row in rows]).unsqueeze(1)
        data["mask"] = torch.zeros(seen.shape).masked_fill(~seen, -1e9)  # not -inf: bfloat16 has no 0 * inf
    return data


def seen_by(row: TrainingRow, vocab: dict[str, int]) -> torch.Tensor:
    """Which tokens each token may look at, bool [query, key]: all before it, but for guided items.

    There, of the options, the question sees nothing, and "Answer:" sees the closing tokens alone:

        A  .  amber  river  fern  moon  ⏎  B  .  ...  ⏎  Question:  what  is  ...  Answer:
        ·  ·    ·      ·      ·     ·   x  x  ·  ...  x      x                      ^ sees the x

    "Question:" closes the last option, so it may read that one.
    """
    ids = torch.tensor(row.ids)
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    newline, question, answer = (ids == vocab[word] for word in ("\n", "Question:", "Answer:"))
    closing = newline | torch.cat([newline[:1], newline[:-1]])
    for start, stop in row.guided:
        asked = start + question[start:stop].nonzero().flatten()
        if len(asked):  # it may begin so close to the row's end that the question is cut off
            first = int(asked[0])
            seen[first + 1 : stop, start:first] = False
            answers = first + answer[first:stop].nonzero().flatten()
            closers = start + closing[start:first].nonzero().flatten()
            seen[answers[:, None], closers[closers > start]] = True
    return seen
