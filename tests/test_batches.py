"""The one batcher: tokens cut as the harness cuts them, shared text run once, logits where they are read."""

from types import SimpleNamespace

import by_hand
import families
import numpy as np
import pytest
import torch
from lm_eval.api.model import TemplateLM
from test_segments import TOKENIZERS
from transformers import PreTrainedTokenizerFast

import ga_utils as ga
from ga_utils.models.batches import plan, rows_of

SHOT = "Dictionary:\napple: 17\nlamp: 4\ndrum: 52\nQuestion: what is the value of lamp?\nAnswer: 4\n"
CONTEXTS = ["Which? it's", "Which? ", "Which?\n\n", "A. it's 1", "it", "🙂", "The following are mult", "é  "]
CHOICES = [" it's", "it's 1", " A", "iple choice", "é", " 🙂 é", "\nA. it", "s"]
CONFIG = SimpleNamespace(max_position_embeddings=1000, get_text_config=lambda: CONFIG)
NO_MODEL = SimpleNamespace(config=CONFIG)


def few_shot(examples):
    return [ga.Example(SHOT + e.prompt, e.choices, e.answer, e.task) for e in examples]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prompt_and_choice_are_cut_where_the_harness_cuts_them(name):
    """Its own code against ours, on prompts that end in spaces and on tokens that span the cut."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[name])
    lm = ga.LM(NO_MODEL, tokenizer, name)
    harness = SimpleNamespace(backend="causal", tok_encode=lambda text: tokenizer(text).input_ids)
    compared = 0
    for context in CONTEXTS:
        for a, b in zip(CHOICES, CHOICES[1:]):
            theirs = [TemplateLM._encode_pair(harness, context, choice) for choice in (a, b)]
            example = ga.Example(context, (a, b), 0, "t")
            if not all(added for _, added in theirs) or theirs[0] == theirs[1]:
                with pytest.raises(ValueError, match="adds no token|has the same tokens"):
                    rows_of(lm, [example])
                continue
            read = {}
            for row in rows_of(lm, [example]):
                for choice, positions, tokens in row.reads:
                    read[choice] = (row.ids[: positions[0] + 1], tokens)
                    assert row.ids[positions[0] + 1 : positions[-1] + 1] == tokens[:-1]
            assert [read[0], read[1]] == theirs, (context, a, b)
            compared += 1
    assert compared > 30


def test_a_choice_that_can_not_be_told_apart_is_refused_with_the_reason():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["merged newlines"])
    lm = ga.LM(NO_MODEL, tokenizer, "merging")
    with pytest.raises(ValueError, match=r"choice '\\n' adds no token .* in '1\.': the tokenizer merges"):
        rows_of(lm, [ga.Example("1.", ("\n", "\n\n"), 0, "t")])


def tokens_run(lm, work) -> int:
    """How many tokens go through the model."""
    counted = []

    def count(module, args, kwargs):
        counted.append(kwargs["input_ids"].numel())

    handle = lm.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        work()
    finally:
        handle.remove()
    return sum(counted)


@pytest.mark.parametrize("family", families.CONFIGS)
def test_what_texts_share_goes_through_the_model_once(family, tokenizer):
    lm = families.build(family, tokenizer)
    pairs = zip(
        ga.tasks.mmlu(lm, n=4), ga.tasks.mmlu_content(lm, n=4)
    )  # long prompts, choices of several tokens
    examples = few_shot(ga.Example(m.prompt, c.choices, 0, "both") for m, c in pairs)
    ga.evaluate(lm, examples[:1])  # finds out how the model continues
    texts = [[lm.tokenize([e.prompt + choice])[0] for choice in e.choices] for e in examples]
    prompts = [lm.tokenize([e.prompt])[0] for e in examples]
    shared = next(i for i, tokens in enumerate(zip(*prompts)) if len(set(tokens)) > 1)
    widest = [max(map(len, of)) - 1 for of in texts]  # choices are padded to the longest of their batch
    least = shared + sum(len(p) - 1 - shared + 4 * (w - len(p) + 1) for p, w in zip(prompts, widest))
    assert tokens_run(lm, lambda: ga.evaluate(lm, examples)) == least
    assert sum(len(ids) for of in texts for ids in of) > 4 * least


def plain(lm, examples):
    """One whole text at a time, with Hugging Face's forward and nothing else."""
    table = []
    for example in examples:
        row = []
        for choice in example.choices:
            prompt, whole = lm.tokenize([example.prompt, example.prompt + choice])
            ids = torch.tensor([whole[:-1]])
            with torch.no_grad():
                logits = lm.model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
            logp = logits.log_softmax(-1)[torch.arange(len(whole) - 1), whole[1:]]
            row.append(logp[len(prompt) - 1 :].sum().item())
        table.append(row)
    return np.array(table)


@pytest.mark.parametrize("family", families.CONFIGS)
def test_sharing_changes_nothing_under_any_context_manager(family, tokenizer):
    # In float64: with weights as large as these, float32 rounds Zamba2's log-probabilities off by 2e-4.
    dtype = torch.float32 if family in by_hand.EXPERTS else torch.float64  # experts have no float64
    lm, teacher = (families.build(name, tokenizer, dtype) for name in (family, "llama"))
    examples = few_shot(ga.tasks.mmlu_content(lm, n=3)) + few_shot(ga.tasks.mmlu(lm, n=2))
    heads = [ga.alive_heads(lm)[i] for i in (0, 3, -2)]
    contexts = [
        lambda: ga.ablate(lm, heads[:1]),
        lambda: ga.ablate(lm, heads, "mean", examples[:2]),
        lambda: ga.ablate(lm, heads, "resample", examples[:2]),
        lambda: ga.keep_only(lm, heads[:1]),
        lambda: ga.skip_layers(lm, [1]),
        lambda: ga.truncate(lm, lm.n_layers - 1),
        lambda: ga.mask_last_row(lm, lm.mixers[-1].kind),
        lambda: ga.mask_last_row(lm, lm.mixers[-1].kind, rows=12),  # reaches into what is shared
    ]
    if family == "llamba":
        contexts += [lambda: ga.replace_layer(lm, teacher, 1), lambda: ga.replace_head(lm, teacher, 1, 2)]
    for context in contexts:
        with context():
            expected = plain(lm, examples)
            assert np.abs(ga.evaluate(lm, examples).logprobs - expected).max() < 1e-4
            assert plan(lm, rows_of(lm, examples))[0] is not None, "the shot is shared"
    assert not lm.edits


def test_logits_are_made_only_where_answers_are_read(lm):
    examples = ga.tasks.mmlu(lm, n=5) + ga.tasks.mmlu_content(lm, n=2) + ga.tasks.knowledge(lm, n=3)
    ga.evaluate(lm, examples[:1])  # finds out how the model continues
    rows, made = rows_of(lm, examples), []
    handle = lm.model.lm_head.register_forward_hook(
        lambda module, args, out: made.append(out.shape[:-1].numel())
    )
    ga.evaluate(lm, examples)
    handle.remove()
    assert sum(made) == sum(len({p for _, where, _ in row.reads for p in where}) for row in rows)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_is_a_number_of_texts_and_examples_stay_whole(batch_size, lm):
    examples = ga.tasks.mmlu(lm, n=7) + ga.tasks.mmlu_content(lm, n=3)
    _, batches = plan(lm, rows_of(lm, examples), batch_size)
    for batch in batches:
        n_examples = len({id(example) for example in batch[-1].examples})
        assert len(batch[-1].ids) <= batch_size or n_examples == 1
    expected = ga.evaluate(lm, examples).logprobs
    assert np.nanmax(np.abs(ga.evaluate(lm, examples, batch_size=batch_size).logprobs - expected)) < 1e-4


def test_an_edit_around_the_first_call_does_not_decide_how_a_model_continues(lm):
    examples = few_shot(ga.tasks.mmlu_content(lm, n=3))
    with ga.mask_last_row(lm):
        expected = plain(lm, examples)
        assert np.abs(ga.evaluate(lm, examples).logprobs - expected).max() < 1e-4
    assert plan(lm, rows_of(lm, examples))[0] is not None
