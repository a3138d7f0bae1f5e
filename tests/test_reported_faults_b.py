"""Faults that users of such tools report elsewhere, one test for each: the right number, or a sentence that
says what is wrong and what would be right.
"""

import by_hand
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ga_utils as ga

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
