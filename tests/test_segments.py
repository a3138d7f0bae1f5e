"""Segments against places found by hand in the text, for several kinds of tokenizers and of prompts."""

import re

import pytest
import sample_rows
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizerLegacy, PreTrainedTokenizerFast

import ga_utils as ga

WORDS = "The following are multiple choice questions about anatomy.\n\nWhich? \nA. it's 1\nB. 🙂 é\nIt:"


def byte_level(add_prefix_space=False, trim_offsets=False) -> Tokenizer:
    """As in GPT-2, Llama 3 or SmolLM2: a space belongs to the word after it, an emoji is several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS] * 9, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As in Llama 2 or Mistral: "▁" for a space, one more in front, BOS, and bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator([WORDS.replace("\n", " ").replace("🙂", "")] * 9, trainer)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tokenizer


def merges_newlines() -> Tokenizer:
    """Full stop and newline, and two newlines, are one token each."""
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(r"\.?\n+", "isolated")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["?"], show_progress=False)
    tokenizer.train_from_iterator([WORDS + ".\n" * 20], trainer)
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level(),
    "byte level, offsets without spaces": byte_level(trim_offsets=True),
    "byte level, a space in front": byte_level(add_prefix_space=True, trim_offsets=True),
    "SentencePiece": sentencepiece(),
    "merged newlines": merges_newlines(),
}


@pytest.fixture(params=TOKENIZERS)
def lm(request):
    """All of a model that segments depend on."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[request.param])
    return ga.LM(None, tokenizer, request.param)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with sample_rows.downloaded(tmp_path_factory):
        yield


def assert_segments(lm, example: ga.Example, lines: list[str]) -> None:
    """The segments are where the tokenizer says that the last such `lines` of the prompt are."""
    encoded = lm.tokenizer(example.prompt)
    begin = example.prompt.rindex("".join(lines))
    for line, segment in zip(lines, ga.segments(lm, example), strict=True):
        assert line.endswith("\n")
        assert segment.start == encoded.char_to_token(begin)
        assert segment.end == encoded.char_to_token(begin + len(line) - 1)
        assert segment.closing == [segment.end, segment.end + 1]
        begin += len(line)


@pytest.mark.parametrize("shots", range(6))
def test_mmlu_with_solved_questions_in_front(rows, lm, shots):
    """Among them questions that themselves hold lines A to D, before their options."""
    examples = ga.tasks.mmlu(lm, n=18, shots=shots)
    assert sum(sample_rows.LISTED in example.prompt.split("\n\n")[-1] for example in examples) == 3
    for example in examples:
        subject, number = re.findall(r"(\w+) test (\d)", example.prompt)[-1]
        choices = sample_rows.TEST[subject][int(number)]["choices"]
        lines = [f"{letter}. {choice}\n" for letter, choice in zip("ABCD", choices)]
        assert example.prompt.endswith("".join(lines) + "Answer:")
        assert_segments(lm, example, lines)


def pairs(*values: int) -> list[str]:
    return [f"key{i}: {value}\n" for i, value in enumerate(values)]


def question(before: str, lines: list[str], after: str) -> tuple[ga.Example, list[str]]:
    """Choices are the lines' letters or values."""
    choices = tuple(re.sub(r"\..*|\S*:", "", line).rstrip("\n") for line in lines)
    return ga.Example(before + "".join(lines) + after, choices, 0, "mine"), lines


OPTIONS = ["A. 🙂 é\n", "B. it's\n", "C. 🙂 é\n", "D. A. it's\n"]  # two have the same text
DICTIONARY = pairs(4, 17, 1)
SHOT = "Dictionary:\n" + "".join(pairs(17, 4, 1)) + "Question: key1?\nAnswer: 4\n"
AFTER = "Question: key0?\nAnswer:"
PROMPTS = {
    "no empty line between shots": question(SHOT + SHOT + "Dictionary:\n", DICTIONARY, AFTER),
    "empty lines between shots": question(f"{SHOT}\n{SHOT}\nDictionary:\n", DICTIONARY, AFTER),
    "the question in a paragraph of its own": question(SHOT + "\n", DICTIONARY, "\n" + AFTER),
    "one dictionary, several questions": question(
        "Dictionary:\n", DICTIONARY, f"Question: key1?\nAnswer: 17\nQuestion: key2?\nAnswer: 1\n{AFTER}"
    ),
    "no space after the colon": question("", ["a:4\n", "b:17\n"], "The value of the key 'a' is"),
    "letters as values": question("Answer: A\n\nAnswer: B\n\n", ["x: A\n", "y: B\n"], "Answer:"),
    "equal options": question("Which?\n", OPTIONS, "Answer:"),
    "few-shot": question(f"Which?\n{''.join(OPTIONS)}Answer: B\n\nWhy?\n", OPTIONS, "Answer:"),
    "nothing before": question("", OPTIONS, "Answer:"),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_other_prompts(lm, prompt):
    assert_segments(lm, *PROMPTS[prompt])


def test_the_tiny_world(tokenizer):
    lm = ga.LM(None, tokenizer, "tiny")
    for example in ga.tasks.mmlu(lm, n=20, seed=2):
        assert_segments(lm, example, re.findall(r"[A-D]\. .*\n", example.prompt))
    for example in ga.tasks.kv_retrieval(lm, n=20, seed=2):
        assert_segments(lm, example, re.findall(r".*: \d+\n", example.prompt))


def test_segments_come_in_the_order_of_the_choices(lm):
    example, _ = PROMPTS["no empty line between shots"]
    swapped = ga.Example(example.prompt, example.choices[::-1], 0, "mine")
    assert ga.segments(lm, swapped) == ga.segments(lm, example)[::-1]


def test_empty_lines_between_the_options_of_a_single_question(lm):
    example = ga.Example("Which?\n\nA. one\n\nB. two\n\nAnswer:", ("A", "B"), 1, "mine")
    first, second = ga.segments(lm, example)
    token = lm.tokenizer(example.prompt).char_to_token
    at = [example.prompt.index(part) for part in ("A. one", "\n\nB", "B. two", "\n\nAnswer")]
    assert [first.start, first.end, second.start, second.end] == [token(i) for i in at]


def test_a_tokenizer_without_newlines_closes_a_line_at_the_token_after_it():
    """Such as T5's: the first token of the next line is the first to know that a line is over."""
    tokenizer = Tokenizer(models.WordLevel({"A.": 0, "B.": 1, "x": 2, "y": 3, "Answer:": 4}, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    lm = ga.LM(None, PreTrainedTokenizerFast(tokenizer_object=tokenizer), "words")
    first, second = ga.segments(lm, ga.Example("A. x\nB. y\nAnswer: x", ("A", "B"), 0, "mine"))
    assert (first.start, first.end, second.start, second.end) == (0, 2, 2, 4)


@pytest.mark.parametrize(
    "prompt, choices, message",
    [
        ("k: 17\nm: 4\n", ("17", "4"), "ends with the line of choice '4': no token after it closes"),
        ("k: 17\nm: 4\nAnswer:", ("17", "5"), "no paragraph with a line for each of the choices"),
        ("(A) x\n(B) y\nAnswer:", ("(A)", "(B)"), "no paragraph with a line for each"),
        # Answers to earlier questions are no options, and options of earlier questions are not this one's.
        ("Answer: A\n\nAnswer: B\n\nQuestion?\nAnswer:", ("A", "B"), "no paragraph"),
        ("Answer: A\n\nAnswer: B\n\nQuestion?\nIt is", ("A", "B"), "no paragraph"),
        ("A. x\nB. y\nAnswer: A\n\nA. x\n\nB. y\nAnswer:", ("A", "B"), "no paragraph"),
        ("A. x\nB. y\nC. z\n\nA. x\nB. y\nAnswer:", ("A", "B", "C"), "no paragraph"),
    ],
)
def test_prompts_without_segments_are_refused(lm, prompt, choices, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ga.segments(lm, ga.Example(prompt, choices, 0, "mine"))


def test_a_slow_tokenizer_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\na\n")
    slow = BertTokenizerLegacy(tmp_path / "vocab.txt")
    assert not slow.is_fast
    with pytest.raises(ValueError, match="BertTokenizerLegacy is a slow tokenizer"):
        ga.segments(ga.LM(None, slow, "bert"), PROMPTS["equal options"][0])
