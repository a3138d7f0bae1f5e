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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
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


MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
GEMMA = {
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 16,
}
INKLING = {"head_dim": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8}
NOT_ALONE = {  # layers given more than the residual stream, or whose values have a width of their own
    "gemma3n_text": GEMMA
    | {"num_hidden_layers": 4, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": GEMMA | {"num_hidden_layers": 4, "global_head_dim": 16},
    "inkling_text": INKLING | {"num_hidden_layers": 2, "d_rel": 4, "mlp_layer_types": ["dense"] * 2},
    "deepseek_v2": MLA
    | EXPERTS
    | {"num_key_value_heads": 4, "num_hidden_layers": 3, "topk_group": 1, "n_group": 1},
    "deepseek_v3": MLA
    | EXPERTS
    | {"num_key_value_heads": 4, "num_hidden_layers": 3, "topk_group": 1, "n_group": 1},
}


def given_more(family: str, tokenizer) -> ga.LM:
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    more = {"vocab_size_per_layer_input": len(tokenizer)} if "gemma" in family else {}
    return families.build(family, tokenizer, **families.ATTENTION | NOT_ALONE[family] | more)


@torch.no_grad()
@pytest.mark.parametrize("family", NOT_ALONE)
def test_7_layers_that_are_given_more_than_the_residual_stream(family, tokenizer):
    """Per-layer inputs, keys and values of earlier layers, latent attention: as by Hugging Face's forward."""
    lm = given_more(family, tokenizer)
    examples = ga.tasks.kv_retrieval(lm, n_pairs=4, n=2) + ga.tasks.knowledge(lm, n=2)
    baseline = [by_hand.logprobs(lm, example) for example in examples]
    heads = [ga.Head(mixer.layer, 1) for mixer in lm.mixers]
    sweep = ga.sweep_heads(lm, examples, heads, progress=False)
    assert by_hand.gap(ga.evaluate(lm, examples), baseline) < 1e-4
    assert by_hand.gap(sweep.baseline, baseline) < 1e-4

    def silent(head):
        def change(spot, z):
            z[:, spot.columns([head])] = 0
            return z

        return change

    for head in heads:
        right = np.array([by_hand.logprobs(lm, example, silent(head)) for example in examples])
        with ga.ablate(lm, [head]):
            assert by_hand.gap(ga.evaluate(lm, examples), right) < 1e-4
        among = torch.tensor(right).log_softmax(-1)[range(4), [example.answer for example in examples]]
        assert sweep.logprob[head.layer, 1] == pytest.approx(among.mean().item(), abs=1e-4)
    screened = ga.sweep_heads(lm, examples, heads, method="screen", k=1, progress=False)
    assert by_hand.gap(screened.baseline, baseline) < 1e-4
    ids, layers = lm.encode(examples[0].prompt), list(lm.layers)
    for n in range(1, lm.n_layers):
        with ga.truncate(lm, n):
            found = lm.model(ids, use_cache=False).logits
        handles = [
            layer.register_forward_hook(lambda module, args, kwargs, output: args[0], with_kwargs=True)
            for layer in layers[n:]
        ]
        torch.testing.assert_close(found, lm.model(ids, use_cache=False).logits)
        for handle in handles:
            handle.remove()
    maps = [ga.attention_map(lm, examples[0].prompt, layer) for layer in range(lm.n_layers)]
    lm.model.set_attn_implementation("eager")
    theirs = lm.model(ids, use_cache=False, output_attentions=True).attentions
    for ours, right in zip(maps, theirs, strict=True):
        torch.testing.assert_close(ours, right[0].float())


def test_7_layers_that_would_be_seen_only_in_part_are_refused(tokenizer):
    more = {"num_hidden_layers": 3, "lru_width": 32}
    message = (
        "is not supported: .* layer 0 is a RecurrentGemmaDecoderLayer of temporal_pre_norm, temporal_block"
    )
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
