"""Faults that users of tools like this one have reported: each situation gives the right number, or an error
that says what is wrong and what would be right.

The order is that of the list of reports. What is right is computed by hand: texts and tokens found without
`ga_utils`, Hugging Face's own forward, hooks of our own (`by_hand`), weights changed instead of hooks.
"""

import copy
import re
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import by_hand
import families
import numpy as np
import pytest
import sample_rows
import torch
from live_memory import LiveMemory
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

import ga_utils as ga
from ga_utils import attention
from ga_utils.direct import direct_logits
from ga_utils.models.budget import budget
from ga_utils.models.mixers import weight_of
from ga_utils.tasks import benchmarks

CAPITALS = "The capital of France is Paris, in France. The capital of Germany is Berlin, in Germany.\n"


def byte_level(bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's or SmolLM2's: a space belongs to the word behind it, digits stand alone.

    bos, eos: every text begins, or ends, with such a token.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    special = ["<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([CAPITALS] * 9, trainer)
    around = f"{'<bos> ' * bos}$A{' <eos>' * eos}"
    made.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(token, made.token_to_id(token)) for token in special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>" if bos else None, eos_token="<eos>"
    )


def llama(tokenizer, dtype=torch.float32, **changes) -> ga.LM:
    """Random weights, large enough that attention is far from uniform."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), **{"initializer_range": 0.3} | sizes | changes)
    return ga.wrap(LlamaForCausalLM(config).to(dtype), tokenizer, "random")


@torch.no_grad()
def logprob(lm: ga.LM, before: list[int], scored: list[int]) -> float:
    """Of some tokens after others, by one forward pass of Hugging Face's model."""
    logits = lm.model(torch.tensor([before + scored]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(logits[len(before) - 1 + i, token].item() for i, token in enumerate(scored))


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


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with sample_rows.downloaded(tmp_path_factory):
        yield


@pytest.mark.parametrize("shots", range(6))
def test_1_few_shot_segments_are_those_of_the_question_that_is_asked(rows, shots, monkeypatch):
    """A perfect Aggregate head, which attends from the last token to the right option's end, scores 1."""
    lm = llama(byte_level(), max_position_embeddings=4096)
    examples = ga.tasks.mmlu(lm, n=18, shots=shots)
    assert any(sample_rows.LISTED in example.prompt.split("\n\n")[-1] for example in examples)

    def perfect(lm, texts, heads, use, examples):
        for i, (ids, example) in enumerate(zip(texts, examples)):
            subject, number = re.findall(r"(\w+) test (\d)", example.prompt)[-1]
            right = sample_rows.TEST[subject][int(number)]["choices"][example.answer]
            line = f"{example.choices[example.answer].strip()}. {right}\n"
            newline = lm.tokenizer(example.prompt).char_to_token(example.prompt.rindex(line) + len(line) - 1)
            A = torch.zeros(4, len(ids), len(ids))
            A[:, -1, newline] = 1
            for mixer in lm.mixers:
                use(mixer, list(mixer.heads), i, A)

    monkeypatch.setattr(attention, "read_patterns", perfect)
    assert (ga.aggregate_score(lm, examples, progress=False) == 1).all()


@pytest.mark.parametrize("bos, eos", [(False, False), (False, True), (True, True)])
def test_2_where_prompt_and_choice_meet(bos, eos):
    """White space between them is scored with the choice, as in lm-evaluation-harness, and EOS never is."""
    lm, bare = llama(byte_level(bos, eos)), byte_level()
    begin = [0] if bos else []
    for prompt, space in (
        ("The capital of France is", " "),
        ("The capital of France is", "\n"),
        ("5 and", " "),
    ):
        choices, right = ("Berlin, in Germany", "Paris, in France", "58"), []
        for choice in choices:
            before, whole = bare([prompt, prompt + space + choice]).input_ids
            assert whole[: len(before)] == before
            right.append(logprob(lm, begin + before, whole[len(before) :]))
        for example in (
            ga.Example(prompt + space, choices, 1, "space in the prompt"),
            ga.Example(prompt, tuple(space + choice for choice in choices), 1, "space in the choice"),
        ):
            np.testing.assert_allclose(ga.evaluate(lm, [example]).logprobs[0], right, atol=1e-4)
    # "F" + "rance" is one token with the space before it. As in the harness, the prompt is read as it stands
    # alone, and as many tokens of the whole text are skipped as it has.
    before, *wholes = bare(["The F", "The France is Paris", "The Fog is"]).input_ids
    assert wholes[0][: len(before)] != before
    right = [logprob(lm, begin + before, whole[len(before) :]) for whole in wholes]
    merged = ga.Example("The F", ("rance is Paris", "og is"), 0, "merged")
    np.testing.assert_allclose(ga.evaluate(lm, [merged]).logprobs[0], right, atol=1e-4)
    with pytest.raises(
        ValueError, match="'ris' adds no token .*: the tokenizer merges the end of the prompt"
    ):
        ga.evaluate(lm, [ga.Example("The capital is Pa", ("ris", "dua"), 0, "nothing is left")])


def test_3_no_value_of_a_dictionary_begins_another_one():
    """P(" 5") can't be less than P(" 58") where digits are tokens: such a question can't be answered."""
    lm = llama(byte_level(), max_position_embeddings=4096)
    for n_pairs in (8, 90):
        examples = ga.tasks.kv_retrieval(lm, n_pairs=n_pairs, n=20)
        for example in examples:
            texts = lm.tokenizer([example.prompt + choice for choice in example.choices]).input_ids
            assert not any(a != b and b[: len(a)] == a for a in texts for b in texts)
    numbers = {choice for example in examples for choice in example.choices}
    assert numbers == {f" {number}" for number in range(10, 100)}
    good = ga.Example("x:5\ny:58\ny is", (" 5\n", " 58\n"), 1, "t")
    bad = ga.Example("x:5\ny:58\ny is", (" 58", " 7", " 5"), 0, "t")
    said = r"example 1: the tokens of choice ' 5' begin those of ' 58', .* so it is in 2 of the examples"
    for run in (ga.evaluate, lambda *args: ga.sweep_heads(*args, heads=["L0H0"], progress=False)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(lm, [good])
        with pytest.warns(UserWarning, match=said) as found:
            run(lm, [good, bad, bad])
        assert found[0].filename == __file__


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_layers(model):
    for i, layer in enumerate(model.base_model.layers):
        model.base_model.layers[i] = torch.compile(layer, backend="eager")
    return model


def compiled_mixers(model):
    for layer in model.base_model.layers:
        mixer = next(module for name, module in layer.named_children() if name in ("self_attn", "mixer"))
        mixer.forward = torch.compile(mixer.forward, backend="eager")
    return model


WAYS = [compiled, compiled_in_place, compiled_forward, compiled_layers, compiled_mixers]


def is_compiling() -> bool:
    ran = []

    def backend(graph, inputs):
        ran.append(True)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(1))
    return bool(ran)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mamba2"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_4_hooks_are_called_in_a_compiled_model(family, way, tokenizer):
    """Code compiled beforehand would call none of them, and changes nothing. Here it runs uncompiled."""
    torch._dynamo.reset()
    plain = families.build(family, tokenizer)
    ids, heads = plain.encode("The flag of Arvo is"), [ga.Head(1, h) for h in plain.mixers[1].heads]
    model = way(copy.deepcopy(plain.model))
    before = model(ids, use_cache=False).logits
    lm, seen = ga.wrap(model, tokenizer), []
    edits = {
        "ablate": lambda lm: ga.ablate(lm, heads),
        "keep_only": lambda lm: ga.keep_only(lm, heads[:1]),
        "mask_last_row": lambda lm: ga.mask_last_row(lm, lm.mixers[0].kind),
        "skip_layers": lambda lm: ga.skip_layers(lm, [1]),
        "truncate": lambda lm: ga.truncate(lm, 2),
    }
    for name, edit in edits.items():
        with edit(plain):
            right = plain.model(ids, use_cache=False).logits
        assert (right - before).abs().max() > 0.1
        with edit(lm):
            for running in (lm.model, model):
                torch.testing.assert_close(running(ids, use_cache=False).logits, right, msg=name)
        torch.testing.assert_close(lm.model(ids, use_cache=False).logits, before, msg=name)
    with lm.mixers[0].on_z(seen.append):
        lm.model(ids, use_cache=False)
    assert len(seen) == 1
    examples = ga.tasks.knowledge(lm, n=2)
    np.testing.assert_allclose(
        ga.evaluate(lm, examples).logprobs, ga.evaluate(plain, examples).logprobs, 1e-5
    )
    maps = (ga.attention_map(some, examples[0].prompt, 1) for some in (lm, plain))
    torch.testing.assert_close(*maps)
    assert is_compiling(), "outside, whatever was compiled is again"


class Packed(torch.nn.Module):
    """A linear map that keeps its weight as two 4-bit numbers a byte, [in / 2, out], and a scale a row."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("scale", linear.weight.detach().abs().amax(1) / 7)
        codes = (linear.weight.detach().T / self.scale).round().to(torch.int8) + 8
        self.register_buffer("packed", codes[::2] * 16 + codes[1::2] - 128)

    def dequantised(self) -> torch.Tensor:
        codes = self.packed.int() + 128
        return (torch.stack([codes // 16, codes % 16], 1).flatten(0, 1) - 8).T * self.scale[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.dequantised())


def packed(model: LlamaForCausalLM, folder) -> tuple[LlamaForCausalLM, list[torch.Tensor]]:
    """The model in 4 bits, and the weights [out, in] that its output projections then have."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Packed(getattr(layer.self_attn, name)))
    return model, [layer.self_attn.o_proj.dequantised() for layer in model.model.layers]


def bitsandbytes(kind: str):
    def make(model: LlamaForCausalLM, folder):
        bnb = pytest.importorskip("bitsandbytes")
        model.save_pretrained(folder)
        how = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype="float32"
        )
        made = LlamaForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.float32)
        weights = [layer.self_attn.o_proj.weight for layer in made.model.layers]
        return made, [bnb.functional.dequantize_4bit(weight.data, weight.quant_state) for weight in weights]

    return make


@torch.no_grad()
@pytest.mark.parametrize(
    "make, close",
    # On a CPU, bitsandbytes multiplies in bfloat16.
    [(packed, 1e-5), (bitsandbytes("nf4"), 2e-2), (bitsandbytes("fp4"), 2e-2)],
    ids=["own", "nf4", "fp4"],
)
def test_5_heads_of_quantised_weights(make, close, tokenizer, tmp_path):
    plain = llama(tokenizer, hidden_size=64, intermediate_size=64)
    plain.layers[1].self_attn.o_proj.weight[:, 16:32] = 0  # L1H1 is pruned
    model, weights = make(plain.model, tmp_path)
    lm = ga.wrap(model, tokenizer)
    alive = [ga.Head(layer, head) for layer in range(3) for head in range(4) if (layer, head) != (1, 1)]
    assert ga.heads.alive_heads(lm) == alive
    for mixer, weight in zip(lm.mixers, weights):
        torch.testing.assert_close(weight_of(mixer.out_proj), weight, atol=close, rtol=close)
    examples = ga.tasks.kv_retrieval(lm, n_pairs=4, n=3)
    for mode, reference in (("zero", None), ("mean", examples)):
        sweep = ga.sweep_heads(lm, examples, mode=mode, reference=reference, progress=False)
        assert np.isfinite(sweep.accuracy).sum() == 11
        for head in (alive[0], alive[-1]):
            with ga.ablate(lm, [head], mode, reference):
                right = ga.evaluate(lm, examples).right_logprob
            assert sweep.logprob[head.layer, head.head] == pytest.approx(right, abs=10 * close)
    # Zero ablation is what zeroing columns of the dequantised weight does.
    for layer, weight in zip(lm.layers, weights):
        layer.self_attn.o_proj = torch.nn.Linear(64, 64, bias=False)
        layer.self_attn.o_proj.weight.copy_(weight)
    lm.layers[2].self_attn.o_proj.weight[:, 48:] = 0
    with ga.ablate(ga.wrap(make(plain.model, tmp_path)[0], tokenizer), ["L2H3"]) as ablated:
        np.testing.assert_allclose(
            ga.evaluate(ablated, examples).logprobs, ga.evaluate(lm, examples).logprobs, atol=10 * close
        )


def test_5_a_screen_without_gradients_says_so(tokenizer):
    lm = llama(tokenizer)
    project = lm.layers[1].self_attn.o_proj.forward
    lm.layers[1].self_attn.o_proj.forward = lambda x: project(x.detach())
    with pytest.raises(ValueError, match='method="screen" needs gradients, .* use method="exact"'):
        ga.sweep_heads(lm, ga.tasks.mmlu(lm, n=2), method="screen", progress=False)


def everything(lm: ga.LM) -> list[np.ndarray]:
    """Something of all that puts hooks on a model."""
    examples = ga.tasks.kv_retrieval(lm, n_pairs=4, n=4) + ga.tasks.mmlu(lm, n=2)
    with ga.ablate(lm, ["L2H1"], mode="mean", reference=examples):
        ablated = ga.evaluate(lm, examples).logprobs
    return [
        ablated,
        ga.evaluate(lm, examples).logprobs,
        ga.sweep_heads(lm, examples, progress=False).logprob,
        ga.sweep_heads(lm, examples, method="screen", k=2, progress=False).estimate,
        ga.attention_map(lm, examples[0].prompt, 2).numpy(),
        ga.steer(lm, ["L2H1"], examples, "closing").logprobs,
    ]


@pytest.fixture
def switching():
    """Threads take turns as often as Python allows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_6_two_models_in_two_threads(tokenizer, switching):
    models = [families.build(family, tokenizer) for family in ("llama", "falcon_h1")]
    right = [everything(lm) for lm in models]
    state = [(repr(lm), lm.model.config._attn_implementation) for lm in models]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(everything, models))
    for ours, theirs in zip(found, right):
        for a, b in zip(ours, theirs):
            np.testing.assert_array_equal(a, b)
    assert state == [(repr(lm), lm.model.config._attn_implementation) for lm in models]
    assert not any(m._forward_hooks or m._forward_pre_hooks for lm in models for m in lm.model.modules())
    assert is_compiling()


def test_6_models_loaded_in_two_threads_leave_hugging_faces_settings(switching):
    before = logging.get_verbosity()
    with ThreadPoolExecutor(4) as threads:
        found = list(
            threads.map(lambda name: ga.load_model(name, device="cpu"), ["tiny-llama", "tiny-mamba2"] * 4)
        )
    assert [lm.model.config.model_type for lm in found] == ["llama", "mamba2"] * 4
    assert logging.get_verbosity() == before


@pytest.mark.parametrize("what", ["score", "map"])
def test_6_one_model_in_two_threads_is_refused(what, tokenizer):
    """Each would call the other's hooks."""
    lm = llama(tokenizer)
    (example,) = ga.tasks.mmlu(lm, n=1)
    works = {
        "score": lambda: ga.evaluate(lm, [example]),
        "map": lambda: ga.attention_map(lm, example.prompt, 0),
    }
    right, refused = ga.evaluate(lm, [example]), []

    def meanwhile(z):
        if not refused:  # in the middle of a pass of this thread
            with ThreadPoolExecutor(1) as other:
                refused.append(other.submit(works[what]).exception())

    with lm.mixers[1].on_z(meanwhile):
        assert ga.evaluate(lm, [example]) == right
    assert isinstance(refused[0], RuntimeError) and "random is at work in another thread" in str(refused[0])
    with ThreadPoolExecutor(1) as other:
        assert other.submit(works["score"]).result() == right, "one after the other is fine"


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
    "deepseek_v2": MLA
    | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16},
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
        cut = lm.model(lm.encode(PROMPT), use_cache=False).logits
    handle = lm.layers[3].register_forward_hook(lambda layer, args, kwargs, output: args[0], with_kwargs=True)
    with torch.no_grad():
        torch.testing.assert_close(cut, lm.model(lm.encode(PROMPT), use_cache=False).logits)
    handle.remove()


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


def test_7_layers_that_would_be_seen_only_in_part_are_refused(tokenizer):
    more = {"num_hidden_layers": 3, "lru_width": 32}
    message = "is not supported: .* layer 0 is a RecurrentGemmaDecoderLayer of .*RecurrentGemmaRecurrentBlock"
    with pytest.raises(ValueError, match=message):
        families.build("recurrent_gemma", tokenizer, **families.ATTENTION | more)


@pytest.mark.parametrize("family", ["llama", "mamba"])
@pytest.mark.parametrize("layer_of_nan", [0, 2], ids=["first layer", "last layer"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["NaN", "inf"])
@pytest.mark.parametrize("place", ["prompt's end", "inside a choice"])
def test_8_a_number_that_is_none_in_one_choice_alone_is_named(place, value, layer_of_nan, family, tokenizer):
    """As where 16 bits overflow at one token; the rest of the choice must not hide it."""
    lm = families.build(family, tokenizer)
    long = "apple: 17\n" * 6
    fine = ga.Example(f"{long}lamp:", (" river amber wolf", " river salt wolf"), 0, "t")
    bad = ga.Example(f"{long}lamp:", (" river stone wolf moon", " amber river"), 1, "t")
    at = tokenizer.convert_tokens_to_ids("lamp:" if place == "prompt's end" else "stone")
    here = []

    def note(module, args, kwargs):
        here[:] = [kwargs["input_ids"] == at]

    def overflow(module, args, output):
        return torch.where(here[0].unsqueeze(-1), value, output)

    lm.model.register_forward_pre_hook(note, with_kwargs=True)
    lm.layers[layer_of_nan].register_forward_hook(overflow)
    examples = [fine, bad] if place == "inside a choice" else [bad]
    said = rf"the model gives no number \(NaN\) on example {len(examples) - 1}"
    for run in (ga.evaluate, lambda *args: ga.sweep_heads(*args, ["L0H0"], progress=False)):
        with pytest.raises(ValueError, match=said):
            run(lm, examples)


def test_8_choices_that_are_all_impossible_are_no_answer(tokenizer):
    lm = llama(tokenizer)
    with torch.no_grad():
        lm.model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
        lm.model.lm_head.bias[tokenizer.convert_tokens_to_ids(["A", "B"])] = -torch.inf
    one = ga.Example("Answer:", (" A", " C"), 1, "t")
    assert ga.evaluate(lm, [one]).accuracy == 1
    with pytest.raises(ValueError, match="every choice of example 1 has probability 0"):
        ga.evaluate(lm, [one, ga.Example("Answer:", (" A", " B"), 0, "t")])


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


def conversational(template: str) -> PreTrainedTokenizerFast:
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
    tokenizer = conversational(TEMPLATES[template])
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
    bare = conversational("{% for m in messages %}{{ m.content }}{% endfor %}")  # begins as any text does
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


@torch.no_grad()
@pytest.mark.parametrize("method", ["exact", "screen"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_15_in_16_bits_a_head_that_does_nothing_costs_exactly_nothing(dtype, method, tokenizer):
    """Batches of other shapes alone would move log-probabilities by tenths of a nat."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 4}
    lm = llama(tokenizer, dtype, initializer_range=0.15, **sizes)
    for layer in lm.layers:
        layer.self_attn.o_proj.weight[:, 64:128] = 0  # head 1
    nothing = [ga.Head(layer, 1) for layer in range(4)]
    something = [ga.Head(1, head) for head in (0, 2, 3)]
    for examples in (
        ga.tasks.mmlu(lm, n=3),
        ga.tasks.kv_retrieval(lm, n_pairs=6, n=6),
        ga.tasks.knowledge(lm, n=6),
    ):
        how = {"method": method, "k": 7} if method == "screen" else {}
        sweep = ga.sweep_heads(lm, examples, [*nothing, *something], progress=False, **how)
        for head in nothing:
            assert sweep.logprob[head.layer, 1] == sweep.baseline.right_logprob
        assert all(sweep.logprob[1, head.head] != sweep.baseline.right_logprob for head in something)


# More reports than the list has, from the trackers that it names.


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


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 24,
}


@torch.no_grad()
def test_texts_on_either_side_of_longropes_threshold_do_not_mix(tokenizer):
    """ggml-org/llama.cpp #24823: Phi-3 and Phi-4 read short texts with one set of factors, long ones with
    another, and Hugging Face picks the set by the longest text of a batch.
    """
    lm = llama(tokenizer, rope_parameters=LONGROPE, max_position_embeddings=128)
    examples = [example for n in (3, 8, 3) for example in ga.tasks.kv_retrieval(lm, n_pairs=n, n=2)]
    told = "apple: 17\n" * 6  # 21 tokens with what follows: one choice ends within the threshold, one beyond
    examples += [ga.Example(f"{told}lamp:", (" 6 9", " 4 9" + " 5" * 9, " 9 4"), 1, "across the threshold")]
    right = []
    for example in examples:
        prompt, *wholes = lm.tokenize([example.prompt, *map(example.prompt.__add__, example.choices)])
        right.append([])
        for whole in wholes:  # as the harness does, without the last token, which is only predicted
            logp = lm.model(torch.tensor([whole[:-1]]), use_cache=False).logits[0].double().log_softmax(-1)
            right[-1].append(sum(logp[i - 1, whole[i]].item() for i in range(len(prompt), len(whole))))
    assert {len(whole) > 25 for whole in wholes} == {True, False}
    for batch_size in (1, 64, "auto"):
        assert by_hand.gap(ga.evaluate(lm, examples, batch_size), right) < 1e-4
    sweep = ga.sweep_heads(lm, examples, ["L1H1"], progress=False)
    assert by_hand.gap(sweep.baseline, right) < 1e-4
    with ga.ablate(lm, ["L1H1"]):
        alone = [ga.evaluate(lm, [example]).right_logprob for example in examples]
    assert sweep.logprob[1, 1] == pytest.approx(np.mean(alone), abs=1e-4)
    together, apart = (
        np.concatenate([ga.attention.closing_shares(lm, some, False) for some in of])
        for of in ([examples[:6]], [[example] for example in examples[:6]])
    )
    np.testing.assert_allclose(together, apart, atol=1e-5)
    with ga.ablate(lm, ["L0H0"], "mean", examples[:6]):
        mixed = ga.evaluate(lm, examples[:1]).logprobs
    lm.budget = replace(budget(lm), tokens=1)  # references are read one by one
    with ga.ablate(lm, ["L0H0"], "mean", examples[:6]):
        np.testing.assert_allclose(ga.evaluate(lm, examples[:1]).logprobs, mixed, atol=1e-4)


@pytest.mark.parametrize(
    "family, more",
    [
        ("cohere", {"logit_scale": 0.0625}),
        ("granite", {"logits_scaling": 8.0}),
        ("gemma2", {"head_dim": 8}),
        ("olmo", {}),
    ],
)
def test_direct_logits_that_would_not_add_up_are_refused(family, more, tokenizer):
    """TransformerLens #828: terms of heads that don't tally with the model's own logits."""
    lm = families.build(family, tokenizer, **families.ATTENTION | {"num_hidden_layers": 2} | more)
    with pytest.raises(ValueError, match="are not its output head times Llama's RMSNorm"):
        direct_logits(lm, ga.tasks.mmlu(lm, n=1))


@torch.no_grad()
def test_a_head_given_back_brings_no_bias(tokenizer):
    """The output bias belongs to the layer, not to any of its heads."""
    student, teacher = (
        families.build("llamba", tokenizer),
        families.build("llama", tokenizer, attention_bias=True),
    )
    ids = student.encode("The flag of Arvo is")
    found = []
    for size in (1, 0):
        for layer in teacher.layers:
            layer.self_attn.o_proj.bias.fill_(size)
        with ga.replace_head(student, teacher, layer=1, head=0):
            found.append(student.model(ids, use_cache=False).logits)
    torch.testing.assert_close(*found)


def test_a_tokenizer_that_knows_digits_alone(tokenizer):
    """Toy models of arithmetic: what the tokenizer puts behind texts was looked for behind the letter a."""
    core = Tokenizer(
        models.BPE({token: i for i, token in enumerate(["<bos>", "<eos>", *"0123456789+="])}, [])
    )
    around = [("<bos>", 0), ("<eos>", 1)]
    core.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=around)
    lm = llama(PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>"))
    assert lm.tokenize(["1+2=", "3"]) == [[0, 3, 12, 4, 13], [0, 5]]
    right = [logprob(lm, [0, 3, 12, 4, 13], [digit]) for digit in (5, 6)]
    np.testing.assert_allclose(
        ga.evaluate(lm, [ga.Example("1+2=", ("3", "4"), 0, "sum")]).logprobs, [right], 1e-5
    )


def test_an_output_projection_of_another_kind_is_refused(tokenizer):
    if "moshi" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no moshi")
    with pytest.raises(ValueError, match="MoshiForCausalLM is not supported"):
        families.build(
            "moshi", tokenizer, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48
        )


def test_the_users_own_hooks_stay(tokenizer):
    """TransformerLens #1636: helpers that took off hooks which they had not put there."""
    lm = llama(tokenizer)
    lm.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
    ids, (example,) = lm.encode("The flag of Arvo is"), ga.tasks.mmlu(lm, n=1)
    before = lm.model(ids).logits
    with ga.ablate(lm, ["L1H0"]):
        ga.evaluate(lm, [example])
    ga.attention_map(lm, example.prompt, 1)
    ga.sweep_heads(lm, [example], method="screen", k=1, progress=False)
    ga.reset(lm)
    assert torch.equal(lm.model(ids).logits, before)


def test_llama_3s_offsets():
    """huggingface/tokenizers #1553: whole words had no width, and segments would stand a token too late."""
    text = "Which?\nA. one thing\nB. another\nAnswer:"
    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([text] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    first, second = ga.segments(ga.LM(None, tokenizer, "llama-3"), ga.Example(text, ("A", "B"), 0, "t"))
    ids = tokenizer(text).input_ids
    words = ["".join(tokenizer.convert_ids_to_tokens(ids[s.start : s.end + 1])) for s in (first, second)]
    assert words == ["A.ĠoneĠthingĊ", "B.ĠanotherĊ"]


@torch.no_grad()
def test_masks_with_four_dimensions_say_where_texts_end_too(tokenizer):
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


def test_resampled_heads_know_the_position_while_generating_with_a_cache(tokenizer):
    """nnsight 466: interventions while a cache is in use."""
    lm = ga.wrap(small_llama(tokenizer), tokenizer)
    examples, scores = ga.tasks.mmlu(lm, n=3), []
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    with ga.ablate(lm, ["L0H1", "L1H2"], mode="resample", reference=examples):
        for use_cache in (True, False):
            out = lm.model.generate(lm.encode(PROMPT), use_cache=use_cache, output_scores=True, **how)
            scores.append(torch.stack(out.scores))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def test_the_default_dtype_is_nobodys_precision(tokenizer):
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


def test_a_screened_sweep_has_gradients_in_inference_mode(tokenizer):
    lm = ga.wrap(small_llama(tokenizer), tokenizer)
    examples = ga.tasks.mmlu(lm, n=3)
    expected = ga.sweep_heads(lm, examples, method="screen", k=2, progress=False)
    with torch.inference_mode():
        found = ga.sweep_heads(lm, examples, method="screen", k=2, progress=False)
    np.testing.assert_array_equal(found.estimate, expected.estimate)


@pytest.mark.parametrize("family", ["gemma3", "llava", "llama4_text"])
def test_the_language_model_inside_a_multimodal_one(family, tokenizer):
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
