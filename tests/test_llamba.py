"""Llamba's forms agree with each other and with the recurrence that defines it; it answers to Hugging Face's
keywords; its checkpoints keep their names."""

import families
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from ga_utils.models import discrete_mamba2
from ga_utils.models.llamba import LlambaConfig, LlambaForCausalLM, ssd


@pytest.fixture
def model(tokenizer):
    return families.build("llamba", tokenizer).model


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_chunks_are_the_recurrence(length, chunk):
    torch.manual_seed(0)
    x, B, C = (torch.randn(2, length, 3, size, dtype=torch.float64) for size in (5, 4, 4))
    log_decay = -torch.rand(2, length, 3, dtype=torch.float64)
    state = h = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    expected = []
    for t in range(length):
        h = log_decay[:, t].exp()[..., None, None] * h + x[:, t, :, :, None] * B[:, t, :, None]
        expected.append((h * C[:, t, :, None]).sum(-1))
    y, last = ssd(x, log_decay, B, C, chunk, state)
    torch.testing.assert_close(y, torch.stack(expected, 1))
    torch.testing.assert_close(last, h)


def test_long_rows_stay_finite():
    """Fast decay over 2,000 positions: exp overflows unless it sees only differences, of the past alone."""
    x, B, C = torch.randn(1, 2000, 1, 4), torch.randn(1, 2000, 1, 4), torch.randn(1, 2000, 1, 4)
    x.requires_grad_()
    y, _ = ssd(x, torch.full((1, 2000, 1), -20.0), B, C, 128)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


@torch.no_grad()
def test_one_token_at_a_time_is_the_parallel_form(model):
    ids = torch.randint(3, 400, (2, 37))
    whole, states, steps = model(ids).logits, None, []
    for t in range(37):
        out = model(ids[:, t : t + 1], past_key_values=states, use_cache=True)
        states = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)
    first = model(ids[:, :20], use_cache=True)
    rest = model(ids[:, 20:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(rest.logits, whole[:, 20:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_generate_is_repeated_argmax(model):
    ids = torch.randint(3, 400, (2, 6))
    expected = ids
    for _ in range(8):
        expected = torch.cat([expected, model(expected).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)


@torch.no_grad()
def test_left_padding_and_embeddings_as_input(model):
    ids = torch.randint(3, 400, (2, 20))
    whole = model(ids).logits
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids], 1)
    mask = (torch.arange(25) >= 5).long().expand(2, -1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 5:], whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, whole)
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, whole[:, -1:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([3, 7])).logits, whole[:, [3, 7]])
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


@pytest.mark.parametrize("tied", [False, True])
def test_checkpoints_have_the_published_names_and_shapes(tied, model, tmp_path):
    config = LlambaConfig(**model.config.to_dict() | {"tie_embeddings": tied})
    LlambaForCausalLM(config).save_pretrained(tmp_path)
    d, v, q, n, i, vocab = 32, 4, 2, 4, 32, config.vocab_size
    layer = {
        "input_layernorm.weight": [d],
        "mixer.in_proj.weight": [2 * i + 2 * q * n + v, d],
        "mixer.z_bias": [i],
        "mixer.conv1d.weight": [i + 2 * q * n, 1, 4],
        "mixer.conv1d.bias": [i + 2 * q * n],
        "mixer.D": [v],
        "mixer.out_proj.weight": [d, i],
        "post_attention_layernorm.weight": [d],
        "mlp.gate_proj.weight": [48, d],
        "mlp.up_proj.weight": [48, d],
        "mlp.down_proj.weight": [d, 48],
    }
    expected = {"backbone.embedding.weight": [vocab, d], "backbone.final_layernorm.weight": [d]}
    expected |= {
        f"backbone.layers.{number}.{name}": shape for number in range(3) for name, shape in layer.items()
    }
    expected |= {} if tied else {"lm_head.weight": [vocab, d]}
    assert {name: list(t.shape) for name, t in load_file(tmp_path / "model.safetensors").items()} == expected
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, LlambaForCausalLM)
    assert (again.lm_head.weight is again.backbone.embedding.weight) == tied


def test_configurations_that_are_not_llambas_are_refused():
    with pytest.raises(ValueError, match="n_v_heads must be a multiple"):
        LlambaConfig(ssm_cfg={"n_v_heads": 4, "n_qk_heads": 3})
    with pytest.raises(ValueError, match="only Llamba's own activations"):
        LlambaConfig(ssm_cfg={"activation": "silu"})


def test_the_loss_is_the_mean_surprise_at_the_next_token(model):
    """Written out by hand, and equal to Hugging Face's own loss of causal language models."""
    ids = torch.randint(3, 400, (2, 20))
    labels = ids.clone()
    labels[0, :7] = labels[1, 15:] = -100
    out = model(ids, labels=labels)
    nats = []
    for row, wanted in zip(out.logits.log_softmax(-1), labels):
        nats += [-row[t, wanted[t + 1]] for t in range(19) if wanted[t + 1] >= 0]
    torch.testing.assert_close(out.loss, torch.stack(nats).mean())
    torch.testing.assert_close(out.loss, ForCausalLMLoss(out.logits, labels, out.logits.shape[-1]))
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model(ids).loss is None


@torch.no_grad()
def test_hidden_states_are_those_that_hooks_see_in_the_order_of_llamas(model, tokenizer):
    ids = torch.randint(3, 400, (2, 20))
    seen = []
    modules = [model.backbone.embedding, *model.backbone.layers[:-1], model.backbone.final_layernorm]
    hooks = [module.register_forward_hook(lambda *args: seen.append(args[-1])) for module in modules]
    out = model(ids, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    assert len(out.hidden_states) == 4 and all(map(torch.equal, out.hidden_states, seen))
    llama = families.build("llama", tokenizer).model
    for other in (model, llama):  # both as deep; in both the output head reads the last one
        states = other(ids, output_hidden_states=True).hidden_states
        assert len(states) == 4 and torch.equal(states[0], other.get_input_embeddings()(ids))
        torch.testing.assert_close(other.lm_head(states[-1]), other(ids).logits)
    assert model(ids).hidden_states is None
    as_tuple = model(ids, labels=ids, output_hidden_states=True, return_dict=False)
    assert [type(part) for part in as_tuple] == [torch.Tensor, torch.Tensor, tuple]


@torch.no_grad()
def test_generate_hands_out_hidden_states(model):
    ids = torch.randint(3, 400, (2, 6))
    wanted = {"output_hidden_states": True, "return_dict_in_generate": True}
    out = model.generate(ids, max_new_tokens=3, do_sample=False, **wanted)
    whole = model(out.sequences, output_hidden_states=True).hidden_states
    assert len(out.hidden_states) == 3  # one a step: the prompt, then one token at a time
    torch.testing.assert_close(out.hidden_states[0][2], whole[2][:, :6], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.hidden_states[2][3], whole[3][:, 7:8], atol=1e-4, rtol=1e-4)


def test_keywords_that_it_does_not_know_are_refused(model):
    ids = torch.randint(3, 400, (2, 6))
    for keyword in ("lables", "position_ids", "output_hidden_state"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{keyword}'"):
            model(ids, **{keyword: None})
    with pytest.raises(ValueError, match="no attention weights; ga.attention_map shows"):
        model(ids, output_attentions=True)
    with pytest.raises(ValueError, match="lables"):
        model.generate(ids, max_new_tokens=1, lables=ids)


@torch.no_grad()
def test_every_norm_takes_its_epsilon_from_the_configuration(model):
    config = LlambaConfig(**model.config.to_dict() | {"norm_epsilon": 0.25})
    model = LlambaForCausalLM(config).eval()
    checked = []

    def check(norm, args, output):
        x = args[0]
        by_hand = x / (x.pow(2).mean(-1, keepdim=True) + 0.25).sqrt() * norm.weight
        torch.testing.assert_close(output, by_hand)
        checked.append(norm)

    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.register_forward_hook(check)
    model(torch.randint(3, 400, (2, 6)))
    assert len(checked) == 2 * 3 + 1


@pytest.mark.skipif(
    not (torch.cuda.is_available() and discrete_mamba2.mamba_chunk_scan_combined),
    reason="needs a GPU and mamba-ssm's kernels",
)
@torch.no_grad()
def test_the_kernel_agrees_with_the_plain_form_and_serves_bfloat16_alone(model, monkeypatch):
    ids, model = torch.randint(3, 400, (2, 100), device="cuda"), model.cuda()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model.to(dtype)
        with_kernel = model(ids).logits
        with monkeypatch.context() as without:
            without.setattr(discrete_mamba2, "mamba_chunk_scan_combined", None)
            plain = model(ids).logits
        assert torch.equal(with_kernel, plain) == (dtype != torch.bfloat16)
    torch.testing.assert_close(with_kernel.softmax(-1), plain.softmax(-1), atol=0.05, rtol=0.05)
