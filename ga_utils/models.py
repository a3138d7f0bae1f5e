"""Which models the course knows, and `LM`: a Hugging Face model, its tokenizer, and its heads in one list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ga_utils.world import data_dir

TINY = ("tiny-llama", "tiny-llama-minimal")


@dataclass(frozen=True)
class Mixer:
    """The sequence-mixing part of one layer, seen through its heads.

    The output of a mixer is `out_proj(z)` with z [batch, pos, n_heads * d_head]; head h owns columns
    h*d_head to (h+1)*d_head of z. That is the last place where heads are separate: after `out_proj`
    they are summed, so slices of a mixer's *output* are not heads.
    """

    layer: int
    kind: str  # "attention"
    n_heads: int
    d_head: int
    out_proj: nn.Linear
    module: nn.Module

    def columns(self, head: int) -> slice:
        """The columns of z, and of `out_proj.weight`, that belong to one head."""
        return slice(head * self.d_head, (head + 1) * self.d_head)

    def is_alive(self, head: int) -> bool:
        """False for a head that was pruned: its columns of `out_proj` are all zero."""
        return bool(self.out_proj.weight[:, self.columns(head)].any())


@dataclass(eq=False)
class LM:
    """A causal language model whose heads can be named, watched and disabled."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def decoder(self) -> nn.Module:
        """The module that owns the list `layers`: everything but the output head."""
        return self.model.model

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def mixers(self) -> list[Mixer]:
        return [_mixer(layer, i) for i, layer in enumerate(self.layers)]

    @property
    def n_heads(self) -> int:
        """The largest number of heads in a layer: the width of a [n_layers, n_heads] table."""
        return max(mixer.n_heads for mixer in self.mixers)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def max_length(self) -> int:
        """The longest text, in tokens, that the model's positions reach."""
        return self.model.config.max_position_embeddings

    def __repr__(self):
        heads = sorted({mixer.n_heads for mixer in self.mixers})
        shape = f"{self.n_layers} layers of {'/'.join(map(str, heads))} heads"
        return f"LM({self.name}: {type(self.model).__name__}, {shape}, {self.device}, {self.model.dtype})"


def load_model(name: str, device: str = "auto", dtype: str | torch.dtype = "auto", n_layers: int | None = None) -> LM:
    """Load a model of the course by name, or any Llama-type checkpoint from a local folder.

    Args:
        name: one of `TINY`, or a folder that holds `config.json`, safetensors weights and a tokenizer.
        device: "auto" takes the GPU if there is one.
        dtype: "auto" is float32 on a CPU, so that results repeat; on a GPU bfloat16, or float16 where
            the hardware has no bfloat16 (T4).
        n_layers: load only the first layers. The later layers' weights are never read.

    Raises:
        ValueError: unknown name (lists the known ones), or `n_layers` out of range.
    """
    folder = data_dir() / "models" / name if name in TINY else Path(name)
    if not (folder / "config.json").is_file():
        if name in TINY:
            raise ValueError(f"{name} is missing from {folder.parent}: build it with  python -m ga_utils.train {name}")
        raise ValueError(f"unknown model {name!r}: known are {', '.join(TINY)}, or a folder with a config.json")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = torch.float32 if torch.device(device).type == "cpu" else _half(device)
    config = AutoConfig.from_pretrained(folder)
    if n_layers is not None:
        if not 1 <= n_layers <= config.num_hidden_layers:
            raise ValueError(
                f"n_layers={n_layers}: {name} has {config.num_hidden_layers} layers, ask for 1 or more of them"
            )
        config.num_hidden_layers = n_layers
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, use_safetensors=True)
    return wrap(model.to(device), AutoTokenizer.from_pretrained(folder), name=name)


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> LM:
    """Wrap a Llama-type Hugging Face model: a decoder whose layers have `self_attn.o_proj`.

    The model is put in eval mode and otherwise left as it is.

    Raises:
        ValueError: the model is not built like that; the message names what was looked for.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not layers or not all(hasattr(getattr(layer, "self_attn", None), "o_proj") for layer in layers):
        raise ValueError(
            f"{type(model).__name__} is not supported: expected model.layers[i].self_attn.o_proj in every layer"
        )
    return LM(model.eval(), tokenizer, name or model.config.name_or_path or type(model).__name__)


def _mixer(layer: nn.Module, index: int) -> Mixer:
    attention = layer.self_attn
    n_heads = attention.o_proj.in_features // attention.head_dim
    return Mixer(index, "attention", n_heads, attention.head_dim, attention.o_proj, attention)


def _half(device: str) -> torch.dtype:
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
