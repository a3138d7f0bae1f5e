"""Faults that users of such tools report elsewhere, one test for each: the right number, or a sentence that
says what is wrong and what would be right.
"""

import copy

import by_hand
import families
import numpy as np
import pytest
import torch
from live_memory import LiveMemory
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import ga_utils as ga
from ga_utils.tasks import benchmarks

PROMPT = "Dictionary:\napple: 17\nlamp: 4\nQuestion: what is the value of lamp?\nAnswer:"


def small_llama(tokenizer, **changes) -> LlamaForCausalLM:
    """Two key-value heads for four heads, in two layers."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**shape | changes))


SINKS = {
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "inkling2_text": {  # adds a bias to the logits, too
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "d_rel": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    },
}

MLA = {"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "head_dim": 4}
MLA |= {"qk_nope_head_dim": 8, "v_head_dim": 6, "n_routed_experts": 4, "num_experts_per_tok": 2}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}
SHARING = SLIDING | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8}
MORE_THAN_A_STREAM = {
    # The last two layers use keys and values of earlier ones; there are four residual streams.
    "gemma3n_text": SHARING | {"activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 4},
    "gemma4_text": SHARING | {"global_head_dim": 8},
    "inkling_text": SINKS["inkling2_text"],
    # Values have a width of their own.
    "deepseek_v3": MLA
    | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16},
    "mimo_v2_flash": {
        "v_head_dim": 4,
        "swa_v_head_dim": 4,
        "swa_head_dim": 8,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
    },
    # Layers of a short convolution alone, without heads.
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
}


@pytest.fixture(params=MORE_THAN_A_STREAM)
def unusual(request, tokenizer) -> ga.LM:
    family = request.param
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {family}")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1}
    shape |= {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer)}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **shape | MORE_THAN_A_STREAM[family])
    )
    for p in model.parameters():
        p.data.normal_(std=0.3) if p.ndim > 1 else None
    return ga.wrap(model, tokenizer, family)


@torch.no_grad()
def whole_texts(lm: ga.LM, example: ga.Example) -> list[float]:
    """Each choice's log-probability, by Hugging Face's own forward on the whole text."""
    found = []
    for before, choice in example.texts:
        prompt, whole = lm.tokenize([before, before + choice])
        logp = lm.model(torch.tensor([whole[:-1]]), use_cache=False).logits[0].log_softmax(-1)
        found.append(sum(logp[i, whole[i + 1]].item() for i in range(len(prompt) - 1, len(whole) - 1)))
    return found


def test_7_layers_that_are_given_more_than_the_residual_stream(unusual):
    lm = unusual
    questions = ga.tasks.mmlu(lm, n=2)
    longer = [ga.Example(e.prompt, (" lamp apple", " 4", " 17 lamp lamp"), 1, "longer") for e in questions]
    examples = questions + longer
    expected = [whole_texts(lm, example) for example in examples]
    assert by_hand.gap(ga.evaluate(lm, examples), expected) < 1e-4
    heads = [ga.Head(mixer.layer, 1) for mixer in (lm.mixers[0], lm.mixers[-1])]
    for method in ("exact", "screen"):
        sweep = ga.sweep_heads(lm, examples, heads, method=method, progress=False)
        assert by_hand.gap(sweep.baseline, expected) < 1e-4
        for head in heads:
            cut = ga.LM(copy.deepcopy(lm.model), lm.tokenizer, "cut")
            attention = cut.layers[head.layer].self_attn
            out_proj = getattr(attention, "o_proj", None) or attention.out_proj
            width = out_proj.in_features // lm.model.config.num_attention_heads
            out_proj.weight.data[:, width : 2 * width] = 0
            logprobs = np.array([[*whole_texts(cut, example), np.nan][:4] for example in examples])
            right = ga.Score.of(logprobs, examples).right_logprob
            assert sweep.logprob[head.layer, 1] == pytest.approx(right, abs=1e-4)
    with ga.truncate(lm, 3), torch.no_grad():
        cut = lm.model(lm.encode(PROMPT)).logits
    with ga.skip_layers(lm, [3]), torch.no_grad():
        torch.testing.assert_close(cut, lm.model(lm.encode(PROMPT)).logits)


@torch.no_grad()
def test_7_their_maps_are_those_of_eager_attention(unusual):
    lm = unusual
    layers = sorted({mixer.layer for mixer in lm.mixers})
    found = [ga.attention_map(lm, PROMPT, layer) for layer in layers]
    lm.model.set_attn_implementation("eager")
    theirs = lm.model(lm.encode(PROMPT), output_attentions=True, use_cache=False).attentions
    theirs = [A[0] for A in theirs if A is not None]
    for A, expected in zip(found, theirs, strict=True):
        torch.testing.assert_close(A, expected)


def test_7_the_short_convolutions_of_lfm2_can_be_switched_off(tokenizer):
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 4, "pad_token_id": 0}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("lfm2", **shape | MORE_THAN_A_STREAM["lfm2"])
    )
    lm, cut = ga.wrap(model, tokenizer), ga.wrap(copy.deepcopy(model), tokenizer)
    cut.layers[2].conv.conv.weight.data[..., :-1] = 0
    examples = ga.tasks.mmlu(lm, n=2)
    before, expected = ga.evaluate(lm, examples), ga.evaluate(cut, examples)
    with ga.ablate_conv(lm, [2]):
        assert ga.evaluate(lm, examples) == expected != before
    with pytest.raises(ValueError, match="L0H1: layer 0 has no heads, only a short convolution"):
        ga.ablate(lm, ["L0H1"]).__enter__()


def test_7_layers_that_depend_on_one_another_are_not_loaded_in_part(tokenizer, tmp_path):
    shape = {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer), "hidden_size": 32}
    shape |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model("gemma3n_text", **shape | MORE_THAN_A_STREAM["gemma3n_text"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="first 3 layers of a gemma3n_text .* load all of it, and use ga.trunc"
    ):
        ga.load_model(tmp_path, n_layers=3)


def test_9_a_model_in_train_mode_is_scored_without_dropout_and_stays_in_train_mode(tokenizer):
    lm = ga.wrap(small_llama(tokenizer, attention_dropout=0.5), tokenizer)
    examples = ga.tasks.mmlu(lm, n=4)
    expected = [by_hand.logprobs(lm, example) for example in examples]  # `wrap` has put it in eval mode
    lm.model.train()
    lm.layers[0].eval()  # frozen, as when only the last layers are trained on
    modes = [module.training for module in lm.model.modules()]
    assert by_hand.gap(ga.evaluate(lm, examples), expected) < 1e-5
    sweep = ga.sweep_heads(lm, examples, ["L1H2"], progress=False)
    assert sweep.baseline == ga.evaluate(lm, examples)
    with ga.ablate(lm, ["L1H2"]):
        assert sweep.accuracy[1, 2] == ga.evaluate(lm, examples).accuracy
    assert [module.training for module in lm.model.modules()] == modes and not all(modes)


@pytest.mark.parametrize("how", [{"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_10_gradients_under_ablate_are_the_same_with_gradient_checkpointing(tokenizer, how):
    lm = ga.wrap(small_llama(tokenizer), tokenizer)
    ids = lm.encode(PROMPT)

    def loss():
        lm.model.zero_grad()
        return lm.model.train()(ids, labels=ids, use_cache=False).loss

    def gradients():
        return torch.cat([p.grad.flatten() for p in lm.model.parameters()])

    def zeroed(module, args):
        z = args[0].clone()
        z[..., 16:24] = 0  # the third of four heads
        return (z,)

    handle = lm.layers[1].self_attn.o_proj.register_forward_pre_hook(zeroed)
    loss().backward()
    expected = gradients()
    handle.remove()
    lm.model.gradient_checkpointing_enable(how)
    lm.model.enable_input_require_grads()
    with ga.ablate(lm, ["L1H2"]):
        loss().backward()
    torch.testing.assert_close(gradients(), expected)
    with ga.ablate(lm, ["L1H2"]):
        late = loss()
    with pytest.raises(RuntimeError, match=r"disabled: L1H2: .* call backward\(\) inside the `with` block"):
        late.backward()
    lm.layers[1].self_attn = lm.layers[0].self_attn  # run again, it would not know for which layer
    with ga.ablate(lm, ["L1H2"]), pytest.raises(RuntimeError, match="layer 1 shares its LlamaAttention"):
        loss()


def with_sinks(family: str, tokenizer) -> ga.LM:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {family}")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **shape | SINKS[family])
    model = AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        p.data.normal_(
            mean=2 if name.endswith("sinks") else 0, std=0.3
        ) if p.ndim > 1 or "sink" in name else 0
    return ga.wrap(model, tokenizer)


@torch.no_grad()
@pytest.mark.parametrize("family", SINKS)
def test_11_what_an_attention_sink_takes_is_given_to_no_token(family, tokenizer):
    lm = with_sinks(family, tokenizer)
    examples = ga.tasks.mmlu(lm, n=2)
    score = ga.aggregate_score(lm, examples, progress=False)
    found = [ga.attention_map(lm, examples[0].prompt, layer) for layer in range(2)]
    lm.model.set_attn_implementation("eager")
    texts = [lm.encode(example.prompt) for example in examples]
    theirs = [[A[0] for A in lm.model(ids, output_attentions=True).attentions] for ids in texts]
    assert min(A.sum(-1).min() for A in theirs[0]) < 0.5  # or there would be nothing to see
    for A, expected in zip(found, theirs[0]):
        torch.testing.assert_close(A, expected)
    closers = [by_hand.closing(lm, e)[2 * e.answer : 2 * e.answer + 2] for e in examples]
    by_example = [[A[:, -1, at].sum(-1).numpy() for A in maps] for maps, at in zip(theirs, closers)]
    np.testing.assert_allclose(score, np.mean(by_example, axis=0), atol=1e-6)


def test_11_attention_that_uses_something_unknown_is_not_guessed(tokenizer):
    lm = ga.wrap(small_llama(tokenizer), tokenizer)
    block, more = lm.layers[1].self_attn, {"indices": torch.zeros(1)}
    block.register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs | more), with_kwargs=True)
    with pytest.raises(RuntimeError, match="LlamaAttention computes its attention with 'indices'"):
        ga.attention_map(lm, PROMPT, 1)


TURNS = (
    "{% for m in messages %}[BEFORE]{{ m.role }}\n{{ m.content }}[AFTER]{% endfor %}"
    "{% if add_generation_prompt %}[BEFORE]assistant\n{% endif %}"
)
TEMPLATES = {  # as those of Llama 3, SmolLM2 and Zephyr
    "begins with BOS": "{{ bos_token }}" + TURNS.replace("[AFTER]", "<|im_end|>\n"),
    "begins with a special token": TURNS.replace("[AFTER]", "<|im_end|>\n"),
    "begins with words": TURNS.replace("[AFTER]", "{{ eos_token }}\n").replace("[BEFORE]", "Turn of the "),
}


def byte_level(template: str) -> PreTrainedTokenizerFast:
    """Puts BOS before and EOS behind every text, unless it is told not to."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["Which letter? user assistant A B C D"] * 5, trainer)
    around = [("<s>", 0), ("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    template = template.replace("[BEFORE]", "<|im_start|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )


@torch.no_grad()
@pytest.mark.parametrize("template", TEMPLATES)
def test_12_a_conversation_has_the_special_tokens_of_its_template_and_no_others(template):
    tokenizer = byte_level(TEMPLATES[template])
    lm = ga.wrap(small_llama(tokenizer), tokenizer)
    question = {"role": "user", "content": "Which letter?\nA. red\nB. blue\n"}
    begun = {"role": "assistant", "content": "It is letter"}
    for messages, choices in (([question], ("A", "B")), ([question, begun], (" A", " B"))):
        how = {"add_generation_prompt": len(messages) == 1, "continue_final_message": len(messages) == 2}
        ids = tokenizer.apply_chat_template(messages, return_dict=False, **how)
        text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
        assert lm.chat(messages) == text and lm.tokenize([text]) == [ids]
        added = [tokenizer(choice, add_special_tokens=False).input_ids for choice in choices]
        expected = [
            sum(
                lm.model(torch.tensor([ids + more])).logits[0].log_softmax(-1)[len(ids) + i - 1, token]
                for i, token in enumerate(more)
            )
            for more in added
        ]
        example = ga.Example(text, choices, 0, "chat")
        found = ga.evaluate(lm, [example]).logprobs[0]
        # White space at the end of a prompt may be scored with every choice, so differences are compared.
        assert found[0] - found[1] == pytest.approx((expected[0] - expected[1]).item(), abs=1e-4)
        letters = [text.index(f"{letter}. ") for letter in "AB"]
        starts = [lm.offsets(text)[segment.start][0] for segment in ga.segments(lm, example)]
        assert starts == letters


def test_12_a_conversation_that_cannot_be_read_says_why(tokenizer):
    lm = ga.wrap(small_llama(tokenizer), tokenizer)
    with pytest.raises(ValueError, match="this tokenizer has no chat template: write the prompt as plain"):
        lm.chat([{"role": "user", "content": "apple"}])
    with pytest.raises(ValueError, match=r"expected text; write a conversation as text with lm.chat"):
        ga.Example([{"role": "user", "content": "apple"}], (" A", " B"), 0, "chat")
    messages = [{"role": "user", "content": "Which letter?"}]
    bare = byte_level("{% for m in messages %}{{ m.content }}{% endfor %}")  # begins as any text does
    with pytest.raises(ValueError, match=r"other special tokens .* \(add_bos_token=False\)"):
        ga.wrap(small_llama(bare), bare).chat(messages)


@pytest.mark.parametrize("family", ["llama", "jamba"])
def test_13_a_model_whose_weights_lie_on_disk_works_as_if_they_were_here(family, tokenizer, tmp_path):
    whole = families.build(family, tokenizer)
    whole.model.save_pretrained(tmp_path / "model")
    places = {f"model.{name}": "disk" for name, _ in whole.decoder.named_children() if name != "layers"}
    places |= {f"model.layers.{i}": "disk" for i in range(whole.n_layers)} | {"lm_head": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk", dtype=torch.float32
    )
    lm, examples = ga.wrap(model, tokenizer), ga.tasks.mmlu(whole, n=2)
    assert model.device.type == "meta" and lm.device.type == "cpu"
    heads = [f"L{mixer.layer}H{mixer.first + 1}" for mixer in whole.mixers]
    assert ga.alive_heads(lm) == ga.alive_heads(whole)
    with ga.ablate(lm, heads[:1], at="last"), ga.ablate(whole, heads[:1], at="last"):
        assert ga.evaluate(lm, examples) == ga.evaluate(whole, examples)
    for mixer in whole.mixers:
        maps = (ga.attention_map(some, PROMPT, mixer.layer, [mixer.first]) for some in (lm, whole))
        torch.testing.assert_close(*maps)
    kept = [tmp_path / "disk.sqlite", tmp_path / "whole.sqlite"]
    tables = [
        ga.sweep_heads(some, examples, heads, method="screen", k=2, checkpoint=file, progress=False)
        for some, file in zip((lm, whole), kept)
    ]
    np.testing.assert_array_equal(tables[0].logprob, tables[1].logprob)
    if family == "jamba":  # the weights read from disk before each run would undo it, without a word
        with pytest.raises(ValueError, match="layer 0 .* offloaded, and read anew .* load the model whole"):
            ga.ablate_conv(lm).__enter__()


@torch.no_grad()
def test_14_the_map_of_one_head_takes_memory_for_one_head(tokenizer):
    lm = ga.wrap(small_llama(tokenizer, hidden_size=64, num_attention_heads=16), tokenizer)
    prompt = "lamp " * 2200
    lm.model.set_attn_implementation("eager")
    expected = lm.model(lm.encode(prompt), output_attentions=True).attentions[0][0, 9]
    lm.model.set_attn_implementation("sdpa")
    with LiveMemory(lm.model) as memory:
        A = ga.attention_map(lm, prompt, 0, heads=[9])
    torch.testing.assert_close(A[0], expected)
    # Twice the map, of 19 MB, Hugging Face's mask, and blocks of logits, masked logits and weights.
    assert memory.peak < 130e6
    with pytest.raises(ValueError, match="on 40001 tokens would take 6 GB: shorten the prompt"):
        ga.attention_map(lm, "lamp " * 40000, 0, heads=[9])


def test_16_a_token_beyond_the_vocabulary_is_named(tokenizer):
    lm = ga.wrap(small_llama(tokenizer), tokenizer, "small")
    lm.model.resize_token_embeddings(tokenizer.convert_tokens_to_ids("lamp"))  # "lamp" is the first too many
    named = r"token \d+ \('lamp'\): small has embeddings for tokens 0–\d+ alone\. .*\.resize_token_embeddings"
    choices = [ga.Example("Question:", (" lamp", " 4"), 1, "t"), ga.Example("lamp", (" 4", " 7"), 1, "t")]
    works = [
        *(lambda example=example: ga.evaluate(lm, [example]) for example in choices),
        lambda: ga.attention_map(lm, "lamp", 0),
        lambda: ga.sweep_heads(lm, choices, progress=False),
        lambda: lm.encode("lamp"),
    ]
    for work in works:
        with pytest.raises(ValueError, match=named):
            work()


def test_16_what_is_no_causal_language_model_is_refused_with_what_to_do(tokenizer):
    model = small_llama(tokenizer)
    mistakes = {
        "LlamaModel has no output head.*AutoModelForCausalLM": (model.model, tokenizer),
        "Sequential is no Hugging Face model": (torch.nn.Sequential(model), tokenizer),
        "Processor is no tokenizer: pass the one inside, processor.tokenizer": (model, Processor(tokenizer)),
    }
    for message, arguments in mistakes.items():
        with pytest.raises(ValueError, match=message):
            ga.wrap(*arguments)
    assert ga.wrap(torch.nn.DataParallel(model), tokenizer).model is model


class Processor:
    """As multimodal models have one."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


def test_16_an_adapter_is_refused_with_what_to_do_and_works_when_that_is_done(tokenizer):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["o_proj", "q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(small_llama(tokenizer), config)
    with pytest.raises(ValueError, match=r"merge_and_unload\(\), \.\.\.\), or pass model.get_base_model"):
        ga.wrap(model, tokenizer)
    inside = ga.wrap(model.get_base_model(), tokenizer)
    examples = ga.tasks.mmlu(inside, n=2)
    with ga.ablate(inside, ["L1H2"]):
        found = ga.evaluate(inside, examples)
    merged = ga.wrap(model.merge_and_unload(), tokenizer)
    with ga.ablate(merged, ["L1H2"]):
        np.testing.assert_allclose(found.logprobs, ga.evaluate(merged, examples).logprobs, atol=1e-4)


@pytest.mark.parametrize(
    "damage, message",
    [
        ({"answer": None}, "its answer is missing"),
        ({"choices": ["a", None, "c", "d"]}, "an option is missing"),
        ({"question": None}, "NoneType"),
    ],
    ids=str,
)
def test_16_a_row_of_mmlu_that_lacks_something_is_named(monkeypatch, damage, message):
    datasets = pytest.importorskip("datasets")
    row = {"question": "Which?", "subject": "anatomy", "choices": list("abcd"), "answer": 1}
    for split, shots in (("test", 0), ("dev", 1)):
        rows = {name: datasets.Dataset.from_list([row, row]) for name in ("test", "dev")}
        rows[split] = datasets.Dataset.from_list([row | damage])
        monkeypatch.setattr(benchmarks, "read", lambda data, rows=rows: rows[data.split])
        what = "MMLU" if split == "test" else "MMLU's dev split"
        with pytest.raises(ValueError, match=f"row 0 of {what} can't be asked.*'subject': 'anatomy'"):
            benchmarks.mmlu(1, 0, shots, None, False)
        if split == "test":
            with pytest.raises(ValueError, match=message):
                benchmarks.mmlu(1, 0, shots, None, False)


# Reports that the list does not name.


@torch.no_grad()
def test_further_masks_with_four_dimensions_say_where_texts_end_too(tokenizer):
    """TransformerLens 1609 and 1005: a mask in another form, padding in another place."""
    lm = ga.wrap(small_llama(tokenizer), tokenizer)
    ids = lm.encode(PROMPT).repeat(2, 1)
    flat = torch.ones_like(ids)
    flat[1, -3:] = 0
    square = (flat[:, None, None, :] * torch.ones(ids.shape[1], ids.shape[1]).tril()).bool()
    added = torch.zeros(square.shape).masked_fill(~square, torch.finfo(torch.float32).min)
    for edit in (lambda: ga.mask_last_row(lm), lambda: ga.ablate(lm, ["L1H2"], at="last")):
        with edit():
            found = [lm.model(ids, attention_mask=mask).logits[1, :-3] for mask in (flat, square, added)]
            short = lm.model(ids[1:, :-3]).logits[0]
        for logits in found:
            torch.testing.assert_close(logits, short)
    with (
        ga.mask_last_row(lm),
        pytest.raises(ValueError, match=r"does not say where texts end.*\[batch, pos\]"),
    ):
        lm.model(ids, attention_mask=torch.ones(1, dtype=torch.bool))


def test_further_resampled_heads_know_the_position_while_generating_with_a_cache(tokenizer):
    """nnsight 466: interventions while a cache is in use."""
    lm = ga.wrap(small_llama(tokenizer), tokenizer)
    examples, scores = ga.tasks.mmlu(lm, n=3), []
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    with ga.ablate(lm, ["L0H1", "L1H2"], mode="resample", reference=examples):
        for use_cache in (True, False):
            out = lm.model.generate(lm.encode(PROMPT), use_cache=use_cache, output_scores=True, **how)
            scores.append(torch.stack(out.scores))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def test_further_the_default_dtype_is_nobodys_precision(tokenizer):
    """`torch.set_default_dtype`, with which large models are made."""
    found, examples = [], []
    for dtype in (torch.float32, torch.bfloat16):
        lm = ga.wrap(small_llama(tokenizer), tokenizer)
        ssm = families.build("mamba2", tokenizer)
        examples = ga.tasks.mmlu(lm, n=3)
        try:
            torch.set_default_dtype(dtype)
            sweep = ga.sweep_heads(lm, examples, method="screen", k=2, progress=False)
            found.append([ga.attention_map(some, PROMPT, 1) for some in (lm, ssm)])
            found[-1] += [torch.tensor(sweep.estimate), torch.tensor(sweep.logprob)]
        finally:
            torch.set_default_dtype(torch.float32)
    for expected, got in zip(*found):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_further_a_screened_sweep_has_gradients_in_inference_mode(tokenizer):
    lm = ga.wrap(small_llama(tokenizer), tokenizer)
    examples = ga.tasks.mmlu(lm, n=3)
    expected = ga.sweep_heads(lm, examples, method="screen", k=2, progress=False)
    with torch.inference_mode():
        found = ga.sweep_heads(lm, examples, method="screen", k=2, progress=False)
    np.testing.assert_array_equal(found.estimate, expected.estimate)


@pytest.mark.parametrize("family", ["gemma3", "llava", "llama4_text"])
def test_further_the_language_model_inside_a_multimodal_one(family, tokenizer):
    """As pyvene 158: models other than the first one, whose decoder is not where it is in a Llama."""
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    image = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    image |= {"image_size": 16, "patch_size": 8}
    kinds = {"gemma3": ("gemma3_text", "siglip_vision_model"), "llava": ("llama", "clip_vision_model")}
    torch.manual_seed(0)
    if family in kinds:
        parts = [part | {"model_type": kind} for part, kind in zip((text, image), kinds[family])]
        config = AutoConfig.for_model(family, text_config=parts[0], vision_config=parts[1])
        model = AutoModelForImageTextToText.from_config(config)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **text))
    for p in model.parameters():
        p.data.normal_(std=0.3) if p.ndim > 1 else None
    lm = ga.wrap(model, tokenizer)
    examples = ga.tasks.mmlu(lm, n=2)
    expected = [whole_texts(lm, example) for example in examples]
    assert by_hand.gap(ga.evaluate(lm, examples), expected) < 1e-4
    sweep = ga.sweep_heads(lm, examples, ["L0H1"], progress=False)
    lm.layers[0].self_attn.o_proj.weight.data[:, 8:16] = 0
    cut = ga.Score.of(np.array([whole_texts(lm, example) for example in examples]), examples)
    assert sweep.logprob[0, 1] == pytest.approx(cut.right_logprob, abs=1e-4)
