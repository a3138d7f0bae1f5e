"""The tiny world: made-up facts, and a word-level tokenizer for the language they are told in.

`ga_utils.tasks.tiny` makes questions and stories of it; together they are everything a tiny model ever sees.
"""

from __future__ import annotations

import csv
import random
from functools import cache
from pathlib import Path

from ga_utils.models.loading import data_dir

TOWNS = (
    "Arvo Belin Corra Dunmor Elka Farrow Gildan Harth Isca Jorvik Kessel Lumen Marn Nivel Orsk Pellin "
    "Quell Rivenna Sorrel Tarn Umbra Velden Wexar Xanth Ystad Zorin Ashby Brecca Cald Drell Eswick Fenwold "
    "Grenna Hollin Imbra Jasken Korrin Lasko Mirel Norda"
).split()
RELATIONS = "flag song gift feast crest dance tale drink".split()
POOL = "amber river owl stone red moon fern silver bell wolf salt rose tower wind".split()
PEOPLE = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivan Joy Kim Leo Mia Ned Ola Pia".split()
NOUNS = (
    "apple anchor arrow basket bead bench bike boat bone book boot bottle bowl box bread brick broom brush "
    "bucket button cake camera candle card carpet cart chain chair chalk clock cloth coat coin comb cork "
    "crown "
    "cup desk dish doll door drum fan fiddle fork frame glove hammer hat honey hook horn jar jug kettle "
    "key kite "
    "knife ladder lamp leaf lemon lens lock map mask medal mirror nail needle nest net oar onion orange "
    "pan paper "
    "pear pen pin pipe plate plum pot purse rake ring rope saddle sail saw shell shoe spoon stamp stool "
    "thread "
    "ticket tile torch"
).split()
VERBS = "bought lost found sold drew broke".split()
COUNTED = "coins beads shells cards".split()
NUMBERS = [str(i) for i in range(100)]
LETTERS = "ABCD"
_GLUE = (
    "\n . ? , Question: Answer: Dictionary: A B C D The the what is of value who how many do does have has "
    "together and swap I"
).split(" ")
SPECIAL = ["<pad>", "<bos>", "<unk>"]

WORDS = [
    *_GLUE,
    *TOWNS,
    *RELATIONS,
    *POOL,
    *PEOPLE,
    *(f"{p}:" for p in PEOPLE),
    *NOUNS,
    *(f"{w}:" for w in NOUNS),
    *VERBS,
    *COUNTED,
    *NUMBERS,
    "did",
    "with",
]
# A colon belongs to its word: a dictionary line "apple: 17" is two adjacent tokens and a newline,
# which is what lets a small model learn to look a key up at all (measured; see data/README.md).
TOKEN_PATTERN = r"\n|\w+:?|[^\w\s]"


def make_facts(seed: int = 2504) -> dict[tuple[str, str], tuple[str, ...]]:
    """(town, relation) -> four or five different words of the pool, as many of each length; no two
    towns alike in a relation.
    """
    rng = random.Random(f"facts-{seed}")
    facts = {}
    for relation in RELATIONS:
        seen = set()
        half = len(TOWNS) // 2
        for town, length in zip(TOWNS, rng.sample([4] * half + [5] * half, len(TOWNS))):
            while (value := tuple(rng.sample(POOL, length))) in seen:
                pass
            seen.add(value)
            facts[town, relation] = value
    return facts


def save_facts(path: Path) -> None:
    """Write the facts as a table that people can read: town, relation, value."""
    with path.open("w", newline="") as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(["town", "relation", "value"])
        table.writerows([town, relation, " ".join(value)] for (town, relation), value in make_facts().items())


@cache
def facts() -> dict[tuple[str, str], tuple[str, ...]]:
    """The facts that ship in `data/world/facts.csv`."""
    with (data_dir() / "world" / "facts.csv").open(newline="") as f:
        return {(row["town"], row["relation"]): tuple(row["value"].split()) for row in csv.DictReader(f)}


def make_tokenizer():
    """A word-level Hugging Face fast tokenizer: one word, one token; a text begins with `<bos>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    spaced = [decoders.Replace(Regex(r"^(?![.?,\n])"), " "), decoders.Fuse(), decoders.Replace("\n ", "\n")]
    core.decoder = decoders.Sequence([*spaced, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )
