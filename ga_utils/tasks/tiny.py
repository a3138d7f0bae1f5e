"""Items of the tiny world: prompts with choices, for training (`curriculum`) and for evaluation (`tasks`).

Why the options of a question look alike: each is four or five words from a pool of fourteen, and the four
form a square (two edits, each applied or not). One position, one word or the length leaves two options, so a
model has to put together words that stand apart, and the first token that can know the *whole* option is the
newline that ends it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ga_utils.examples import Example
from ga_utils.tasks.world import COUNTED, LETTERS, NOUNS, NUMBERS, PEOPLE, POOL, TOWNS, VERBS, facts


def alike(rng: random.Random, value: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The square of four look-alike values around `value`: neither, either, or both of two edits.

    A value is a core of four words, and may have a fifth in front of it or behind it. One edit takes the
    fifth word off, or puts one there; the other substitutes the core's second word (fifth word behind) or its
    third (in front), so that at least one word stands between what decides.

        river [amber] wolf salt            river [stone] wolf salt
        river [amber] wolf salt [moon]     river [stone] wolf salt [moon]

    Whoever knows one position, one word or the length is left with two options. Both edits are symmetric: who
    does not know the fact cannot tell which corner of the square is the true value.
    """
    new, fifth = rng.sample([word for word in POOL if word not in value], 2)
    behind, core = rng.random() < 0.5, value
    if len(value) == 5:
        core, fifth = (value[:4], value[4]) if behind else (value[1:], value[0])
    place = 1 if behind else 2

    def lengthen(words):
        return (*words, fifth) if behind else (fifth, *words)

    changed = (*core[:place], new, *core[place + 1 :])
    corners = [core, changed, lengthen(core), lengthen(changed)]
    return sorted(corners, key=lambda words: words != value)


def others(rng: random.Random, town: str, relation: str) -> list[tuple[str, ...]]:
    """The true value and the values that three other towns have in the same relation."""
    wrong = rng.sample([facts()[other, relation] for other in TOWNS if other != town], 3)
    return [facts()[town, relation], *wrong]


def mmlu(rng: random.Random, question_first: bool = False, mixed: bool = False) -> Example:
    """A lettered question.

        A. river stone wolf salt moon⏎        <- the newline is the end of option A's segment
        B. river amber wolf salt⏎
        C. river stone wolf salt⏎
        D. river amber wolf salt moon⏎
        Question: what is the flag of Arvo?⏎
        Answer:                     <- asked for: " A", " B", " C" or " D"

    The options stand before the question, unlike in MMLU itself. A small model that knows the question judges
    each option while it reads it and carries a running verdict along, which needs no Gather-and-Aggregate
    (data/README.md). `question_first=True` gives that form; one stage of training has some of it.
    `mixed=True` has the letters in random order, so that the next letter does not say which option just
    ended.
    """
    (town, relation), value = rng.choice(list(facts().items()))
    options = rng.sample(alike(rng, value), 4)
    letters = rng.sample(LETTERS, 4) if mixed else LETTERS
    lines = "".join(f"{letter}. {' '.join(option)}\n" for letter, option in zip(letters, options))
    question = f"Question: what is the {relation} of {town}?\n"
    prompt = f"{question}{lines}Answer:" if question_first else f"{lines}{question}Answer:"
    right = LETTERS.index(letters[options.index(value)])
    return Example(prompt, tuple(f" {letter}" for letter in LETTERS), right, "mmlu")


def mmlu_content(rng: random.Random) -> Example:
    """The same question without letters: the options are scored by their own text, up to the newline."""
    (town, relation), value = rng.choice(list(facts().items()))
    options = rng.sample(alike(rng, value), 4)
    prompt = f"Question: what is the {relation} of {town}?\nAnswer:"
    return Example(prompt, tuple(f" {' '.join(o)}\n" for o in options), options.index(value), "mmlu_content")


def knowledge(rng: random.Random) -> Example:
    """A cloze item, `The flag of Arvo is` + ` river amber wolf salt.`, against three other towns' values."""
    town, relation = rng.choice(list(facts()))
    value = facts()[town, relation]
    options = rng.sample(others(rng, town, relation), 4)
    return Example(
        f"The {relation} of {town} is",
        tuple(f" {' '.join(o)}." for o in options),
        options.index(value),
        "knowledge",
    )


def dictionary(
    rng: random.Random, n_pairs: int, values: Sequence[str] = NUMBERS
) -> tuple[str, dict[str, str]]:
    """A random dictionary as text (`Dictionary: ⏎ apple: 17 ⏎ ...`) and as a dict, keys and values
    distinct.
    """
    pairs = dict(zip(rng.sample(NOUNS, n_pairs), rng.sample(values, n_pairs)))
    return "Dictionary:\n" + "".join(f"{key}: {value}\n" for key, value in pairs.items()), pairs


def kv_query(key: str) -> str:
    return f"Question: what is the value of {key}?\nAnswer:"


def kv_retrieval(rng: random.Random, n_pairs: int = 8, values: Sequence[str] = NUMBERS) -> Example:
    """Look one key of a dictionary up; the choices are all values of the dictionary, so chance is 1/n_pairs.

    Dictionary:⏎
    apple: 17⏎
    lamp: 4⏎
    Question: what is the value of lamp?⏎
    Answer:                     <- asked for: " 4", against " 17"
    """
    text, pairs = dictionary(rng, n_pairs, values)
    answer = rng.randrange(n_pairs)
    return Example(
        text + kv_query(list(pairs)[answer]), tuple(f" {v}" for v in pairs.values()), answer, "kv_retrieval"
    )


def kv_memorize(rng: random.Random, n_pairs: int, values: Sequence[str] = NUMBERS) -> Example:
    """`kv_retrieval` in the wording of the paper (appendix A.5), for models that know English.

    Memorize the following dictionary:⏎
    apple:17⏎
    lamp:4⏎
    The value of the key 'lamp' is      <- asked for: " 4", against " 17"
    """
    _, pairs = dictionary(rng, n_pairs, values)
    answer = rng.randrange(n_pairs)
    lines = "".join(f"{key}:{value}\n" for key, value in pairs.items())
    prompt = f"Memorize the following dictionary:\n{lines}The value of the key '{list(pairs)[answer]}' is"
    return Example(prompt, tuple(f" {value}" for value in pairs.values()), answer, "kv_retrieval")


@dataclass(frozen=True)
class Story:
    """A short text and everything that can be asked about it: (question, choices, index of the right one).

    `easier` are questions that a single look-up answers; only training asks them.
    """

    text: str
    questions: list[tuple[str, tuple[str, ...], int]]
    easier: list[tuple[str, tuple[str, ...], int]] = field(default_factory=list)

    def ask(self, rng: random.Random, task: str, easy: bool = False) -> Example:
        question, choices, answer = rng.choice(self.easier if easy else self.questions)
        return Example(f"{self.text}\nQuestion: {question}?\nAnswer:", choices, answer, task)


def gsm8k(rng: random.Random) -> Story:
    """Find two of three numbers named earlier and add them; wrong choices are the story's other sums.

    Ada has 3 coins. Ben has 5 coins. Kim has 9 coins.⏎
    Question: how many coins do Kim and Ada have together?⏎
    Answer:                     <- asked for: " 12", against " 8", " 14" and the sum of all, " 17"
    """
    people, thing = rng.sample(PEOPLE, 3), rng.choice(COUNTED)
    while True:  # until the three sums differ
        count = {person: rng.randint(2, 9) for person in people}  # not 1: no singular
        sums = {pair: count[pair[0]] + count[pair[1]] for pair in combinations(people, 2)}
        if len(set(sums.values())) == 3:
            break
    totals = rng.sample([*sums.values(), sum(count.values())], 4)
    choices = tuple(f" {n}" for n in totals)
    asked = [(rng.sample(pair, 2), totals.index(total)) for pair, total in sums.items()]
    questions = [
        (f"how many {thing} do {a} and {b} have together", choices, answer) for (a, b), answer in asked
    ]
    numbers = tuple(f" {n}" for n in range(10))
    easier = [(f"how many {thing} does {person} have", numbers, n) for person, n in count.items()]
    return Story(" ".join(f"{person} has {n} {thing}." for person, n in count.items()), questions, easier)


def bbh(rng: random.Random, n_swaps: int = 1) -> Story:
    """Object tracking, as in BIG-Bench Hard: three people hold three things, two swap, who holds what?

    Kim has the lens. Ola has the box. Ivan has the dish.⏎
    Ivan and Kim swap.⏎
    Question: what does Ivan have?⏎
    Answer:                     <- asked for: " lens", against " box" and " dish"
    """
    people, things = rng.sample(PEOPLE, 3), rng.sample(NOUNS, 3)
    held, swapped = dict(zip(people, things)), []
    text = " ".join(f"{person} has the {thing}." for person, thing in held.items())
    for _ in range(n_swaps):
        a, b = rng.sample(people, 2)
        held[a], held[b] = held[b], held[a]
        swapped = [(a, b), (b, a)]  # of the last swap
        text += f"\n{a} and {b} swap."
    choices = tuple(f" {thing}" for thing in things)
    questions = [(f"what does {person} have", choices, things.index(held[person])) for person in people]
    names = tuple(f" {person}" for person in people)
    partners = [(f"who did {x} swap with", names, people.index(y)) for x, y in swapped]
    return Story(text, questions, partners)


def dialogue(rng: random.Random, lookalike: bool = True) -> Story:
    """Who said what: four speakers, two verbs x two things, so that only a whole line identifies its speaker.

    Gus: I found the bottle.⏎
    Mia: I drew the bottle.⏎
    Joy: I drew the kite.⏎
    Ivan: I found the kite.⏎
    Question: who drew the bottle?⏎
    Answer:                     <- asked for: " Mia", against the other speakers

    `lookalike=False` gives every line verb and thing of its own: the easy form, for training.
    """
    people, verbs, things = rng.sample(PEOPLE, 4), rng.sample(VERBS, 4), rng.sample(NOUNS, 4)
    lines = (
        [(verb, thing) for verb in verbs[:2] for thing in things[:2]]
        if lookalike
        else list(zip(verbs, things))
    )
    said = rng.sample(lines, 4)
    text = "\n".join(f"{person}: I {verb} the {thing}." for person, (verb, thing) in zip(people, said))
    choices = tuple(f" {person}" for person in people)
    return Story(text, [(f"who {verb} the {thing}", choices, i) for i, (verb, thing) in enumerate(said)])
