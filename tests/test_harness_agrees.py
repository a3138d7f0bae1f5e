"""The same log-probabilities as lm-evaluation-harness: texts that make tokenizers stumble."""

import copy

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import ga_utils as ga

ODD = [  # question, options: made up, with what real rows have
    ("What's 2² − 3 ≥ ½·n?", ("n ≤ 2", "n < 2", "n = −2", "n ∈ ∅")),
    ("Which is “Ærøskøbing”?", ("a town", "Ålesund’s twin", "naïve café", "東京")),
    ("Tabs\tand  two spaces?", ("  both ", "one\tof them", "neither", "both")),
    ("A. not an option\nB. nor this\nAnswer: which?", ("A", "B.", "Answer:", "C. D.")),
    ("Emoji 🙂 or 👩‍👧?", ("🙂", "👩‍👧", "🙃🙂", "none 🙂")),
    ("Cost: $1,000.50 (50 %)?", ("$1,000", "$1,000.5", "$1,000.50", "1000.50 $")),
]


def letters(question: str, options: tuple[str, ...], answer: int) -> ga.Example:
    lines = "".join(f"{letter}. {option}\n" for letter, option in zip("ABCD", options))
    return ga.Example(f"{question}\n{lines}Answer:", (" A", " B", " C", " D"), answer, "letters")


def content(question: str, options: tuple[str, ...], answer: int) -> ga.Example:
    return ga.Example(f"Question: {question}\nAnswer:", tuple(f" {o}" for o in options), answer, "content")


def space_in_prompt(question: str, options: tuple[str, ...], answer: int) -> ga.Example:
    return ga.Example(f"Question: {question}\nAnswer: ", options, answer, "space in prompt")


def digits(question: str, options: tuple[str, ...], answer: int) -> ga.Example:
    return ga.Example(f"{question} It is", (" 7", " 58", " 5", " 1000"), answer, "digits")


FORMS = [letters, content, space_in_prompt, digits]


def sentencepiece() -> PreTrainedTokenizerFast:
    """Of Llama 2's kind: ▁ for spaces, also before the first word; bytes for what it lacks; BOS."""
    words = "▁A ▁B ▁C ▁D ▁a ▁is ▁It ▁town ▁one ▁both An sw er ▁An sw er: ▁Q uestion ▁n on e ▁5 ▁7 58".split()
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?'$"))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = [(piece, 0.0) for piece in pieces]
    vocab += [(piece, -float(10 - len(piece))) for piece in dict.fromkeys([*words, *letters])]
    made = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.fixture(scope="module")
def llama2_like() -> ga.LM:
    tokenizer = sentencepiece()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    return ga.wrap(LlamaForCausalLM(config), tokenizer, "llama2-like")


def harness(lm: ga.LM, examples: list[ga.Example]) -> np.ndarray:
    """[n_examples, n_choices] by the harness: its tokens, its forward pass, its sums."""
    adds_bos = lm.tokenizer("a").input_ids[0] == lm.tokenizer.bos_token_id
    theirs = HFLM(
        lm.model,
        tokenizer=copy.deepcopy(lm.tokenizer),
        backend="causal",
        add_bos_token=adds_bos,
        batch_size=1,
    )
    asked = [Instance("loglikelihood", {}, pair, 0) for example in examples for pair in example.texts]
    found = theirs.loglikelihood(asked, disable_tqdm=True)
    return np.array([logprob for logprob, _ in found]).reshape(len(examples), -1)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("which", ["real", "llama2_like"])
def test_letters_contents_and_prompts_that_end_in_a_space(which, form, request):
    lm = request.getfixturevalue(which)
    examples = [form(question, options, i % 4) for i, (question, options) in enumerate(ODD)]
    ours = ga.evaluate(lm, examples).logprobs
    np.testing.assert_allclose(ours, harness(lm, examples), atol=1e-4)


@pytest.mark.parametrize("which", ["real", "llama2_like"])
def test_a_prompt_that_begins_with_bos_gets_no_second_one(which, request):
    lm = request.getfixturevalue(which)
    plain = [content(*ODD[0], 0), letters(*ODD[1], 1)]
    begun = [ga.Example(lm.tokenizer.bos_token + e.prompt, e.choices, e.answer, e.task) for e in plain]
    ours = ga.evaluate(lm, begun).logprobs
    np.testing.assert_allclose(ours, harness(lm, begun), atol=1e-4)
    adds_bos = lm.tokenizer("a").input_ids[0] == lm.tokenizer.bos_token_id
    assert np.allclose(ours, ga.evaluate(lm, plain).logprobs, atol=1e-4) == adds_bos
