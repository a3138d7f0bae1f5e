"""`replace_layer` and `replace_head` against models put together by hand."""

import copy

import families
import pytest
import torch
from conftest import logits

import ga_utils as ga

PROMPT = "Dictionary:\napple: 17\nlamp: 4\nQuestion: what is the value of lamp?\nAnswer:"


REPLACE = {
    "layer": lambda student, teacher: ga.replace_layer(student, teacher, 1),
    "head": lambda student, teacher: ga.replace_head(student, teacher, 1, 2),
}


@pytest.fixture
def pair(tokenizer):
    student, teacher = families.build("llamba", tokenizer), families.build("llama", tokenizer)
    return student, teacher


def by_hand(student, teacher, layer, block):
    """The student's forward, spelled out, with `block(hidden)` for one layer."""
    ids = student.tokenizer(PROMPT, return_tensors="pt").input_ids
    backbone = student.model.backbone
    with torch.no_grad():
        hidden = backbone.embedding(ids)
        for i, own in enumerate(backbone.layers):
            hidden = block(hidden) if i == layer else own(hidden)
        return student.model.lm_head(backbone.final_layernorm(hidden))[0]


def llama_layer(teacher, layer, hidden):
    """Hugging Face's own layer on a residual stream: a Llama of one layer, without its final norm."""
    one = copy.deepcopy(teacher.model.model)
    one.layers, one.norm = one.layers[layer : layer + 1], torch.nn.Identity()
    one.layers[0].self_attn.layer_idx = 0
    return one(inputs_embeds=hidden, use_cache=False).last_hidden_state


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_replaced_layer_is_the_teachers(pair, layer):
    student, teacher = pair
    expected = by_hand(student, teacher, layer, lambda hidden: llama_layer(teacher, layer, hidden))
    with ga.replace_layer(student, teacher, layer):
        assert student.mixers[layer].kind == "attention"
        torch.testing.assert_close(logits(student, PROMPT), expected, atol=1e-4, rtol=1e-4)
        with ga.ablate(student, [ga.Head(layer, 1)]):
            assert not torch.allclose(logits(student, PROMPT), expected, atol=1e-3)


@pytest.mark.parametrize("teacher_head", [None, 3])
def test_a_replaced_head_is_weight_surgery_on_both(pair, teacher_head):
    """Zero the student's columns, zero all of the teacher's but one head's, add the two mixers' outputs."""
    student, teacher = pair
    layer, head = 1, 2
    own, theirs = copy.deepcopy(student.layers[layer]), copy.deepcopy(teacher)
    own.mixer.out_proj.weight.data[:, student.mixers[layer].columns(head)] = 0
    kept = teacher.mixers[layer].columns(head if teacher_head is None else teacher_head)
    weight = torch.zeros_like(theirs.layers[layer].self_attn.o_proj.weight)
    weight[:, kept] = teacher.layers[layer].self_attn.o_proj.weight[:, kept]
    theirs.layers[layer].self_attn.o_proj.weight.data = weight
    theirs.layers[layer].mlp.down_proj.weight.data.zero_()

    def block(hidden):
        attention = llama_layer(theirs, layer, hidden) - hidden
        hidden = hidden + own.mixer(own.input_layernorm(hidden)) + attention
        return hidden + own.mlp(own.post_attention_layernorm(hidden))

    expected = by_hand(student, teacher, layer, block)
    with ga.replace_head(student, teacher, layer, head, teacher_head):
        torch.testing.assert_close(logits(student, PROMPT), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("replace", REPLACE)
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_afterwards_both_are_as_before(pair, replace, error):
    before = [(logits(lm, PROMPT), {k: v.clone() for k, v in lm.model.state_dict().items()}) for lm in pair]
    try:
        with REPLACE[replace](*pair):
            assert not torch.equal(logits(pair[0], PROMPT), before[0][0])
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    for lm, (seen, state) in zip(pair, before):
        assert torch.equal(logits(lm, PROMPT), seen)
        assert all(torch.equal(v, state[k]) for k, v in lm.model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


# float64 leaves nothing to rounding, but Hugging Face's eager attention takes its softmax in float32, where a
# float64 row that sees nothing but padding becomes NaN.
@pytest.mark.parametrize(
    "attention, dtype, tolerance", [("sdpa", torch.float64, 1e-5), ("eager", torch.float32, 5e-5)]
)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("replace", REPLACE)
def test_padding_changes_nothing(tokenizer, replace, side, attention, dtype, tolerance):
    student, teacher = (families.build(family, tokenizer, dtype) for family in ("llamba", "llama"))
    teacher.model.set_attn_implementation(attention)
    prompts = [PROMPT, PROMPT.replace("apple: 17\n", ""), "apple"]
    padded = student.tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side)
    assert not padded.attention_mask.all()
    with REPLACE[replace](student, teacher), torch.no_grad():
        found = student.model(**padded, use_cache=False).logits
        for prompt, row, mask in zip(prompts, found, padded.attention_mask.bool()):
            torch.testing.assert_close(row[mask], logits(student, prompt), atol=tolerance, rtol=0)
    assert found.isfinite().all()


def test_padding_and_batches_change_no_score(pair):
    examples = ga.tasks.kv_retrieval(pair[0], n_pairs=3, n=3) + ga.tasks.mmlu(pair[0], n=3)
    with ga.replace_head(*pair, 1, 2), ga.replace_layer(*pair, 2):
        one, many = (ga.evaluate(pair[0], examples, batch_size=size).logprobs for size in (1, 6))
    assert torch.allclose(torch.tensor(one), torch.tensor(many), atol=1e-4, equal_nan=True)


def test_the_model_says_what_is_replaced_and_reset_undoes_it(pair):
    student, teacher = pair
    before = logits(student, PROMPT)
    for replace, words in (
        (ga.replace_layer(*pair, 1), "layer 1 replaced by llama's"),
        (ga.replace_head(*pair, 1, 2, 3), "L1H2 replaced by llama's L1H3"),
    ):
        replace.__enter__()
        assert words in [edit.what for edit in student.edits]
        assert not torch.equal(logits(student, PROMPT), before)
        ga.reset(student)
        assert torch.equal(logits(student, PROMPT), before) and not student.edits


def test_a_hybrid_generates_with_its_cache_what_it_generates_without(pair):
    ids = pair[0].encode(PROMPT)
    for replace in (ga.replace_layer(*pair, 1), ga.replace_head(*pair, 1, 2)):
        with replace:
            texts = [pair[0].model.generate(ids, max_new_tokens=6, use_cache=use) for use in (True, False)]
            assert torch.equal(*texts) and texts[0].shape[1] == ids.shape[1] + 6
            padded = {
                "input_ids": torch.cat([ids, ids], 1),
                "attention_mask": torch.cat([0 * ids, 0 * ids + 1], 1),
            }
            with pytest.raises(ValueError, match="use_cache=False"):
                pair[0].model(**padded, use_cache=True)


def test_the_map_of_a_borrowed_layer_is_the_teachers_on_that_input(pair):
    """Layer 0 has the same input in both, if the embeddings are the same."""
    student, teacher = pair
    student.model.get_input_embeddings().load_state_dict(teacher.model.get_input_embeddings().state_dict())
    expected, before = (
        ga.attention_map(teacher, PROMPT, 0),
        [lm.model.config._attn_implementation for lm in pair],
    )
    with ga.replace_layer(student, teacher, 0):
        torch.testing.assert_close(ga.attention_map(student, PROMPT, 0), expected)
    assert [lm.model.config._attn_implementation for lm in pair] == before and "sdpa" in before


def test_nonsense_is_refused(pair, tokenizer):
    student, teacher = pair
    with pytest.raises(ValueError, match="the teacher must be a Llama, mistral is a MistralForCausalLM"):
        mistral = families.build("mistral", tokenizer, **families.CONFIGS["llama"], sliding_window=5)
        ga.replace_layer(student, mistral, 1).__enter__()
    with (
        ga.replace_layer(student, teacher, 1),
        pytest.raises(ValueError, match="layer 1 of llamba is the teacher's already"),
    ):
        ga.replace_head(student, teacher, 1, 2).__enter__()
    with pytest.raises(ValueError, match="dtype and device must be the same"):
        ga.replace_layer(student, families.build("llama", tokenizer, torch.float64), 1).__enter__()
    with pytest.raises(ValueError, match="layer 7: llamba has layers 0–2"):
        ga.replace_layer(student, teacher, 7).__enter__()
    with pytest.raises(ValueError, match="L1H9: layer 1 has heads 0–3"):
        ga.replace_head(student, teacher, 1, 9).__enter__()
    with pytest.raises(ValueError, match="the student must be a Llamba, llama is a LlamaForCausalLM"):
        ga.replace_layer(teacher, student, 1).__enter__()
    with pytest.raises(ValueError, match="the teacher must be a Llama, mamba2 is a Mamba2ForCausalLM"):
        ga.replace_layer(student, families.build("mamba2", tokenizer), 1).__enter__()
    with pytest.raises(ValueError, match="llamba has width 32 and llama 64"):
        ga.replace_layer(student, families.build("llama", tokenizer, hidden_size=64), 1).__enter__()
