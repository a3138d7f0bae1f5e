"""Short texts in plain English for a small real language model: what it can be asked without any data set.

Each function makes one question. All but `common` are about names and things that are drawn at random, so the
answer can only come from the text. Words are common ones that most tokenizers keep whole.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from ga_utils.examples import Example

NAMES = (
    "Anna Ben Clara David Emma Frank Grace Henry Julia Kevin Laura Mark Nancy Oscar Paul Rose Sam Tom Victor"
    " Wendy"
).split()
CITIES = "Paris London Rome Berlin Madrid Tokyo Cairo Delhi Boston Chicago Dublin Vienna".split()
THINGS = "lamp book chair ball knife cup hat key phone ring clock drum".split()
PLACES = "store park school beach office library station garden".split()
GIFTS = "drink book ring gift letter ball flower map".split()
JOBS = "doctor teacher farmer painter lawyer baker pilot nurse".split()
COLOURS = "red blue green white black yellow brown pink".split()

CAPITALS = dict(
    pair.split("-")
    for pair in (
        "France-Paris Italy-Rome Japan-Tokyo Egypt-Cairo Spain-Madrid Germany-Berlin Russia-Moscow "
        "China-Beijing Greece-Athens Austria-Vienna Ireland-Dublin Portugal-Lisbon Poland-Warsaw "
        "Norway-Oslo Sweden-Stockholm Denmark-Copenhagen Hungary-Budapest Cuba-Havana Peru-Lima "
        "Canada-Ottawa Turkey-Ankara Iran-Tehran Iraq-Baghdad Kenya-Nairobi Thailand-Bangkok England-London"
    ).split()
)
OPPOSITES = dict(
    pair.split("-")
    for pair in (
        "hot-cold big-small day-night up-down left-right black-white good-bad old-young open-closed "
        "rich-poor fast-slow high-low hard-soft wet-dry early-late happy-sad full-empty light-dark "
        "strong-weak love-hate war-peace true-false begin-end buy-sell push-pull"
    ).split()
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
COMMON = [  # groups of sentences and how they end; wrong endings come from the same group
    {f"The capital of {country} is": city for country, city in CAPITALS.items()},
    {f"The opposite of {word} is": other for word, other in OPPOSITES.items()},
    {f"The day after {day} is": after for day, after in zip(DAYS, [*DAYS[1:], DAYS[0]])},
    {f"The month after {month} is": after for month, after in zip(MONTHS, [*MONTHS[1:], MONTHS[0]])},
]


def _ask(prompt: str, choices: list[str], answer: str, task: str) -> Example:
    return Example(prompt, tuple(f" {choice}" for choice in choices), choices.index(answer), task)


def gift(rng: random.Random) -> Example:
    """Indirect object identification (Wang et al. 2022, arXiv 2211.00593). Chance is 50 %.

    When Anna and Ben went to the store, Ben gave a drink to       <- asked for: " Anna", against " Ben"
    """
    giver, taker = rng.sample(NAMES, 2)
    first, second = rng.sample([giver, taker], 2)
    place, thing = rng.choice(PLACES), rng.choice(GIFTS)
    prompt = f"When {first} and {second} went to the {place}, {giver} gave a {thing} to"
    return _ask(prompt, [first, second], taker, "gift")


def missing(rng: random.Random) -> Example:
    """The same with four people, three of whom give. Chance is 25 %.

    When Anna, Ben, Sam and Tom went to the store, Tom, Anna and Ben gave a drink to       <- " Sam"
    """
    people = rng.sample(NAMES, 4)
    taker, *givers = rng.sample(people, 4)
    place, thing = rng.choice(PLACES), rng.choice(GIFTS)
    prompt = f"When {_listed(people)} went to the {place}, {_listed(givers)} gave a {thing} to"
    return _ask(prompt, people, taker, "missing")


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def homes(rng: random.Random) -> Example:
    """A dictionary as sentences. Chance is 25 %.

    Anna lives in Paris. Ben lives in Rome. ... We all know that Ben lives in       <- " Rome"
    """
    people, cities = rng.sample(NAMES, 4), rng.sample(CITIES, 4)
    told = " ".join(f"{person} lives in {city}." for person, city in zip(people, cities))
    asked = rng.randrange(4)
    return _ask(f"{told} We all know that {people[asked]} lives in", cities, cities[asked], "homes")


def homes_asked(rng: random.Random) -> Example:
    """`homes` as a question. Chance is 25 %.

    ... ⏎ Question: In which city does Ben live? ⏎ Answer: Ben lives in       <- " Rome"
    """
    people, cities = rng.sample(NAMES, 4), rng.sample(CITIES, 4)
    told = "\n".join(f"{person} lives in {city}." for person, city in zip(people, cities))
    asked = rng.randrange(4)
    question = f"Question: In which city does {people[asked]} live?\nAnswer: {people[asked]} lives in"
    return _ask(f"{told}\n{question}", cities, cities[asked], "homes_asked")


def owner(rng: random.Random) -> Example:
    """Look up by the value, answer with the key. Chance is 25 %.

    Anna bought a lamp. Ben bought a ring. ... The ring was bought by       <- " Ben"
    """
    people, things = rng.sample(NAMES, 4), rng.sample(THINGS, 4)
    told = " ".join(f"{person} bought a {thing}." for person, thing in zip(people, things))
    asked = rng.randrange(4)
    return _ask(f"{told} The {things[asked]} was bought by", people, people[asked], "owner")


def colour(rng: random.Random) -> Example:
    """Chance is 25 %.

    The lamp is red. The ring is blue. ... So the colour of the ring is       <- " blue"
    """
    things, colours = rng.sample(THINGS, 4), rng.sample(COLOURS, 4)
    told = " ".join(f"The {thing} is {colour}." for thing, colour in zip(things, colours))
    asked = rng.randrange(4)
    return _ask(f"{told} So the colour of the {things[asked]} is", colours, colours[asked], "colour")


def job(rng: random.Random) -> Example:
    """Chance is 25 %.

    Anna is a doctor from Paris. Ben is a baker from Rome. ... The baker, whose name is       <- " Ben"
    """
    people, jobs, cities = rng.sample(NAMES, 4), rng.sample(JOBS, 4), rng.sample(CITIES, 4)
    told = " ".join(f"{who} is a {does} from {city}." for who, does, city in zip(people, jobs, cities))
    asked = rng.randrange(4)
    return _ask(f"{told} The {jobs[asked]}, whose name is", people, people[asked], "job")


def dog(rng: random.Random) -> Example:
    """A name from earlier in a story, against the other person of the story and two strangers. Chance is
    25 %.
    """
    finder, owner, *strangers = rng.sample(NAMES, 4)
    story = (
        f"One day {finder} found a small dog in the garden. It was cold and hungry, so {finder} took it "
        f'inside and gave it some milk. Later, {owner} knocked on the door. "Is that my dog?" asked'
    )
    return _ask(story, rng.sample([finder, owner, *strangers], 4), owner, "dog")


def words(rng: random.Random) -> Example:
    """`tiny.kv_memorize` with cities for values. Chance is 25 %.

    Memorize the following dictionary: ⏎ lamp:Paris ⏎ ... ⏎ The value of the key 'lamp' is       <- " Paris"
    """
    things, cities = rng.sample(THINGS, 4), rng.sample(CITIES, 4)
    lines = "\n".join(f"{thing}:{city}" for thing, city in zip(things, cities))
    asked = rng.randrange(4)
    prompt = f"Memorize the following dictionary:\n{lines}\nThe value of the key '{things[asked]}' is"
    return _ask(prompt, cities, cities[asked], "words")


def common(rng: random.Random) -> Example:
    """Common knowledge, a sentence to complete: no retrieval. Chance is 25 %.

    The opposite of hot is       <- " cold", against other words' opposites
    """
    prompt, options, answer = _common(rng)
    return _ask(prompt, options, answer, "common")


def common_letters(rng: random.Random) -> Example:
    """The same with lettered options, as in MMLU. Chance is 25 %."""
    prompt, options, answer = _common(rng)
    lines = "".join(f"{letter}. {option}\n" for letter, option in zip("ABCD", options))
    return _ask(f"{prompt}\n{lines}Answer:", list("ABCD"), "ABCD"[options.index(answer)], "common_letters")


def _common(rng: random.Random) -> tuple[str, list[str], str]:
    group = rng.choice(COMMON)
    prompt, answer = rng.choice(list(group.items()))
    wrong = rng.sample([other for other in group.values() if other != answer], 3)
    return prompt, rng.sample([answer, *wrong], 4), answer


ENGLISH: dict[str, Callable[[random.Random], Example]] = {
    make.__name__: make
    for make in (
        gift,
        missing,
        homes,
        homes_asked,
        owner,
        colour,
        job,
        dog,
        words,
        common,
        common_letters,
    )
}


WORD = re.compile(r" [a-z]{3,}")


def induction(rng: random.Random, tokenizer: PreTrainedTokenizerBase, length: int) -> Example:
    """Random tokens, and their beginning once more: which comes next? Against three others of them.

    river the stone moon wolf ... river the stone       <- asked for: " moon"
    """
    drawn = rng.sample(_whole_words(tokenizer), length)
    place = rng.randrange(length // 2, length)
    wrong = rng.sample([word for word in drawn if word != drawn[place]], 3)
    choices = rng.sample([drawn[place], *wrong], 4)
    prompt = "".join([*drawn, *drawn[:place]])
    return Example(prompt, tuple(choices), choices.index(drawn[place]), "induction")


@lru_cache(maxsize=4)
def _whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """All words that are one token with the space before them, and stay one when the text is read again."""
    every = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    texts = [text for text in dict.fromkeys(f" {text.strip()}" for text in every) if WORD.fullmatch(text)]
    tokens = tokenizer(texts, add_special_tokens=False).input_ids
    return [text for text, ids in zip(texts, tokens) if len(ids) == 1]
