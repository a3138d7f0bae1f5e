"""Llamba from Llama: what is carried over, what the alignment compares, and that it leaves nothing behind."""

import random

import families
import pytest
import torch

from ga_utils.training import loop
from ga_utils.training.curriculum import Stage, Writer, batch
from ga_utils.training.distill import Alignment, from_llama, prediction_loss, written

STAGE = Stage(60, {"kv": 0.5, "mmlu": 0.5}, max_pairs=4, length=64, rows=4)


@pytest.fixture
def pair(tokenizer):
    teacher = families.build("llama", tokenizer, num_key_value_heads=4).model
    torch.manual_seed(0)
    return teacher, from_llama(teacher, d_state=4)


def test_everything_but_the_mixers_is_the_teachers(pair):
    teacher, student = pair
    theirs = {
        k.replace("model.", "backbone."): v for k, v in teacher.state_dict().items() if "self_attn" not in k
    }
    names = {
        "backbone.embed_tokens.weight": "backbone.embedding.weight",
        "backbone.norm.weight": "backbone.final_layernorm.weight",
    }
    own = student.state_dict()
    assert {names.get(k, k) for k in theirs} == {k for k in own if ".mixer." not in k}
    assert all(torch.equal(own[names.get(k, k)], v) for k, v in theirs.items())


def test_a_mixer_starts_with_an_open_gate_and_the_teachers_values(pair):
    """With the state cut off (C = 0) and the skip at 1, the untrained mixer writes o_proj(v), head by
    head."""
    teacher, student = pair
    mixer, attention = student.backbone.layers[1].mixer, teacher.model.layers[1].self_attn
    inner, width = mixer.d_inner, mixer.n_qk_heads * mixer.d_state
    with torch.no_grad():
        mixer.in_proj.weight[inner + width : inner + 2 * width] = 0
        mixer.D.fill_(1)
        u = torch.randn(2, 9, 32)
        torch.testing.assert_close(mixer(u), attention.o_proj(attention.v_proj(u)), atol=1e-3, rtol=1e-3)


def test_what_heads_write_adds_up_to_what_the_layer_writes(pair):
    projection = pair[0].model.layers[0].self_attn.o_proj
    z = torch.randn(2, 5, 32)
    torch.testing.assert_close(written(z, projection.weight, 4).sum(2), projection(z), atol=1e-5, rtol=1e-5)


def test_aligning_lowers_the_error_trains_the_student_alone_and_leaves_no_hook(pair, tokenizer, tmp_path):
    teacher, student = pair
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    data = batch(Writer(tokenizer).rows(random.Random(1), STAGE))
    alignment = Alignment(teacher, student)
    error = alignment(student, data)[0].item()
    run = loop.TrainingState(student, loop.optimizers(student, 3e-3), tmp_path)
    loop.train(run, [STAGE], 3e-3, "align-test", Writer(tokenizer), alignment)
    assert alignment(student, data)[0].item() < 0.8 * error
    alignment.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in pair for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_predicting_what_the_teacher_predicts_costs_nothing_more(pair, tokenizer):
    """The divergence of a model from itself is 0: what is left is the next-token loss."""
    teacher, _ = pair
    data = batch(Writer(tokenizer).rows(random.Random(1), STAGE))
    own, alone = prediction_loss(teacher)(teacher, data)[0], loop.answer_loss(teacher, data)[0]
    assert own.item() == pytest.approx(alone.item(), rel=1e-3)


def test_hints_compare_the_residual_stream_after_the_layers_named(pair, tokenizer):
    """Summed up by hand, from hooks on the layers. The last hint is at the student's last layer, after which
    Hugging Face's list goes on with the final norm."""
    teacher, _ = pair
    student = families.build("falcon_mamba", tokenizer).model.train()
    data, hints = batch(Writer(tokenizer).rows(random.Random(1), STAGE)), {0: 0, 1: 1, 3: 2}
    own, theirs = {0: student.get_input_embeddings()}, {0: teacher.get_input_embeddings()}
    own |= dict(enumerate(student.backbone.layers, start=1))
    theirs |= dict(enumerate(teacher.model.layers, start=1))
    seen = {}
    for layer in [*own.values(), *theirs.values()]:
        layer.register_forward_hook(lambda module, _, x: seen.update({module: x}))
    total, shown = prediction_loss(teacher, hints)(student, data)
    plain, _ = prediction_loss(teacher)(student, data)
    errors = [
        (seen[own[i]] - seen[theirs[k]]).norm() ** 2 / seen[theirs[k]].norm() ** 2 for i, k in hints.items()
    ]
    assert total.item() - plain.item() == pytest.approx(sum(errors).item(), rel=1e-2)
    assert [shown[f"hint {i}"] for i in hints] == pytest.approx([error.item() for error in errors], rel=1e-2)
