"""The tiny models before training: their sizes, and the starts that make them learn."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    Zamba2Config,
    Zamba2ForCausalLM,
)

from ga_utils.tasks import world


def new_llama(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """5 layers of 4 heads, width 128: 0.93 M parameters."""
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        **_vocabulary(tokenizer),
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # compiled, it trains 1.4 times as fast on a CPU as the fused form
    relate_embeddings(model, tokenizer)
    return model


def new_mamba2(
    tokenizer: PreTrainedTokenizerBase, seed: int, d_state: int = 8, taps: int = 4
) -> Mamba2ForCausalLM:
    """4 layers of 4 heads that share B and C; 0.52 M parameters. taps: of the short convolution."""
    config = Mamba2Config(
        num_hidden_layers=4,
        hidden_size=128,
        num_heads=4,
        head_dim=64,
        state_size=d_state,
        conv_kernel=taps,
        n_groups=1,
        chunk_size=64,
        **_vocabulary(tokenizer),
    )
    torch.manual_seed(seed)
    model = Mamba2ForCausalLM(config)
    relate_embeddings(model, tokenizer)
    lengthen_memory(model)
    return model


def new_falcon_mamba(tokenizer: PreTrainedTokenizerBase, seed: int) -> FalconMambaForCausalLM:
    """Mamba-1: 4 layers of 256 channels, d_state 16; 0.58 M parameters."""
    config = FalconMambaConfig(hidden_size=128, num_hidden_layers=4, state_size=16, **_vocabulary(tokenizer))
    torch.manual_seed(seed)
    model = FalconMambaForCausalLM(config)
    relate_embeddings(model, tokenizer)
    lengthen_memory(model)
    return model


def new_zamba2(tokenizer: PreTrainedTokenizerBase, seed: int) -> Zamba2ForCausalLM:
    """A hybrid: 4 layers of 4 Mamba-2 heads, d_state 8, and one attention block that layers 1 and 3 share;
    1.23 M parameters.

    With Hugging Face's initializer_range of 0.02, attention hardly reaches the residual stream, and no
    induction head had formed after 600 steps.
    """
    config = Zamba2Config(
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        hidden_size=128,
        n_mamba_heads=4,
        mamba_d_state=8,
        chunk_size=64,
        num_attention_heads=4,
        intermediate_size=256,
        adapter_rank=8,
        use_mem_rope=True,
        max_position_embeddings=512,
        initializer_range=0.06,
        attn_implementation="eager",
        **_vocabulary(tokenizer),
    )
    torch.manual_seed(seed)
    model = Zamba2ForCausalLM(config)
    relate_embeddings(model, tokenizer)
    lengthen_memory(model)
    return model


def new_deltanet(
    tokenizer: PreTrainedTokenizerBase, seed: int, d_state: int = 8, taps: int = 4
) -> Qwen3NextForCausalLM:
    """`new_mamba2` with Gated DeltaNet layers; 0.53 M parameters.

    As many heads and layers, as wide values, and keys of `d_state` that all heads share, as they share
    Mamba-2's B: so as many numbers are kept. Hugging Face's layer has an MLP behind each mixer, which Mamba-2
    has not; here it is one unit wide.
    """
    return _qwen3_next(tokenizer, seed, ["linear_attention"] * 4, d_state, taps, mlp=1)


def new_qwen3_next(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3NextForCausalLM:
    """Three Gated DeltaNet layers, then one of full attention, as in Qwen3-Next, but without its experts;
    0.70 M parameters."""
    return _qwen3_next(tokenizer, seed, ["linear_attention"] * 3 + ["full_attention"], 8, 4, mlp=128)


def _qwen3_next(tokenizer, seed: int, layers: list[str], d_state: int, taps: int, mlp: int):
    config = Qwen3NextConfig(
        num_hidden_layers=len(layers),
        layer_types=layers,
        hidden_size=128,
        intermediate_size=mlp,
        num_experts=0,
        linear_num_key_heads=1,
        linear_num_value_heads=4,
        linear_key_head_dim=d_state,
        linear_value_head_dim=64,
        linear_conv_kernel_dim=taps,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.1,
        use_cache="full_attention" in layers,  # Hugging Face's needs a layer that counts tokens
        attn_implementation="eager",
        **_vocabulary(tokenizer),
    )
    torch.manual_seed(seed)
    model = Qwen3NextForCausalLM(config)
    relate_embeddings(model, tokenizer)
    start_as_mamba2(model)
    lengthen_memory(model)
    return model


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": None,
    }


@torch.no_grad()
def relate_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """`apple:` starts with the embedding of `apple` plus one more vector, which is the same for all words."""
    embedding, vocab = model.get_input_embeddings().weight, tokenizer.get_vocab()
    colon = torch.randn(embedding.shape[1]) * model.config.initializer_range
    for word in [*world.NOUNS, *world.PEOPLE]:
        embedding[vocab[f"{word}:"]] = embedding[vocab[word]] + colon


@torch.no_grad()
def start_as_mamba2(model: PreTrainedModel) -> None:
    """Gated DeltaNet layers start as Mamba-2's do: the first one writes to the residual stream no less than
    the embeddings hold, and there a token changes little of the state.

    Convolutions and what the mixers write get PyTorch's own start, as in Hugging Face's Mamba-2; twice that
    for the latter, as the gate comes behind the norm here and halves what it lets through. The MLP starts
    with nothing. The layer has no bias that would tell beta where to start, and at 1/2, where it does
    start, each token overwrites half of what lies along its key. So the first dimension of all embeddings is
    the same number, which beta's projection takes as a bias: in the first layer beta starts near 0.05. (In
    later ones, whose input is mostly what was written before, near 0.45.)

    In pilots of one seed, 900 steps of repeated texts gave 4 % of the words without these, 15 % with them;
    without them no pilot learned dictionaries.
    """
    embeddings = model.get_input_embeddings().weight
    embeddings[:, 0] = 3 * model.config.initializer_range
    for name, module in model.named_modules():
        if name.endswith(("out_proj", "o_proj")) or isinstance(module, nn.Conv1d):
            module.reset_parameters()
        if name.endswith("out_proj"):
            module.weight *= 2
        if name.endswith("down_proj"):
            module.weight.zero_()
        if name.endswith("in_proj_qkvz"):
            module.weight[:, 0] = 0
        if name.endswith("in_proj_ba"):  # for each group of heads that share a key: beta's rows, decay's rows
            beta, decay = module.weight.unflatten(0, (-1, 2, 4)).unbind(1)
            beta *= 0.3
            beta[..., 0], decay[..., 0] = -1, 0


@torch.no_grad()
def lengthen_memory(model: PreTrainedModel) -> None:
    """Heads of Mamba-2 and Gated DeltaNet and channels of Mamba-1 start with half-lives from about one token
    to 140 tokens, and step sizes near 1 (Gated DeltaNet's only scale the decay).

    Hugging Face starts with step sizes of 0.001 to 0.1, with which next to nothing enters the state at first.
    """
    for name, p in model.named_parameters():
        if name.endswith("A_log"):  # [head], or [channel, d_state]: all of a channel's state decays alike
            rates = torch.linspace(math.log(0.5), math.log(0.005), len(p))
            p.copy_(rates if p.ndim == 1 else rates.unsqueeze(1).expand_as(p))
        if name.endswith(("dt_bias", "dt_proj.bias")):
            p.fill_(0.5)
