"""Which models the course knows, and `LM`: a Hugging Face model, its tokenizer, and its heads in one list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ga_utils.interrupts import held
from ga_utils.models import llamba  # noqa: F401  makes Llamba known to AutoModelForCausalLM
from ga_utils.models.catalog import MODELS, TINY, layers_to_load
from ga_utils.models.device import default_device, default_dtype
from ga_utils.models.hub import fetch
from ga_utils.models.loading import check_sums, data_dir, read_model

# Where a decoder layer keeps its mixers, by family; Zamba2's hybrid layers hold theirs one level down.
MIXERS = ("self_attn", "shared_transformer.self_attn", "mamba", "mamba_decoder.mamba", "mixer")
UNLIMITED = 1 << 20  # what stands in for a context length where a model has none


@dataclass(frozen=True)
class Mixer:
    """A sequence-mixing module of one layer, seen through its heads.

    The output of a mixer is `out_proj(z)` with z [batch, pos, n_heads * d_head]. That is the last place where
    heads are separate: after `out_proj` they are summed, so slices of a mixer's *output* are not heads.
    A Mamba-1 head is one channel (d_head 1). In a hybrid layer with attention and an SSM, the SSM's heads are
    counted on after those of attention: `first` is the number of this mixer's first head.
    """

    layer: int
    kind: str  # "attention" | "mamba1" | "mamba2"
    n_heads: int
    d_head: int
    out_proj: nn.Linear
    module: nn.Module
    block: nn.Module  # the decoder layer that it belongs to
    first: int = 0

    @property
    def heads(self) -> range:
        """The numbers of its heads among all heads of the layer."""
        return range(self.first, self.first + self.n_heads)

    def columns(self, head: int) -> slice:
        """The columns of z, and of `out_proj.weight`, that belong to one head."""
        return slice((head - self.first) * self.d_head, (head - self.first + 1) * self.d_head)

    def is_alive(self, head: int) -> bool:
        """False for a head that was pruned: its columns of `out_proj` are all zero."""
        return bool(self.out_proj.weight[:, self.columns(head)].any())

    @contextmanager
    def on_z(self, edit: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
        """Call `edit(z)` whenever this layer's heads have run; what it returns, if anything, replaces z.

        Only within this layer: Zamba2 may run one attention block at several depths.

        Raises:
            RuntimeError: inside, when the mixer runs without its `out_proj`: a fused kernel has swallowed it.
        """
        state = {"inside": False, "seen": False}

        def enter(module, args):
            state.update(inside=True, seen=False)

        def look(module, args):
            if state["inside"]:
                state["seen"] = True
                new = edit(args[0])
                return None if new is None else (new, *args[1:])

        def leave(module, args, output):
            inside, state["inside"] = state["inside"], False
            if inside and output is not None and not state["seen"]:
                raise RuntimeError(
                    f"layer {self.layer}: {type(self.module).__name__} ran without calling its output projection, so its "
                    "heads can't be reached: a fused kernel did both; put the model in eval mode or turn the kernel off"
                )

        with held() as gate, ExitStack() as hooks:
            hooks.callback(self.block.register_forward_pre_hook(enter).remove)
            hooks.callback(self.out_proj.register_forward_pre_hook(look).remove)
            hooks.callback(self.block.register_forward_hook(leave, always_call=True).remove)
            with gate.opened():
                yield


class Edit:
    """Hooks and swaps that are undone together, however far they got.

    what: how `repr(lm)` shows it, such as "disabled: L1H0"; None for hooks that only watch.
    last_rows: how many positions at the end of a text it treats otherwise than the rest.
    """

    def __init__(self, what: str | None = None):
        self.what, self.last_rows, self.in_force = what, 0, True
        self._undo: list[Callable] = []

    def hook(self, register: Callable, function: Callable, **how) -> None:
        """Register a hook, `register` being for example `module.register_forward_hook`."""

        # A Ctrl-C may come between a hook's registration and the note of how to remove it. Such a hook stays
        # where it is, but does nothing once the edit is undone.
        def guarded(*args, **kwargs):
            return function(*args, **kwargs) if self.in_force else None

        self._undo.append(register(guarded, **how).remove)

    def swap(self, owner: nn.Module, name: str, value) -> None:
        """Set an attribute of a module, or an item of a ModuleList where `name` is its index."""
        kept = isinstance(getattr(type(owner), name, None), property) or name in vars(owner)
        had = kept or isinstance(getattr(owner, name, None), nn.Module)
        before = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, before) if had else vars(owner).pop(name, None))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Take everything off again, the latest first. Doing it twice does no harm."""
        self.in_force = False
        while self._undo:
            self._undo[-1]()
            self._undo.pop()


@dataclass(eq=False)
class LM:
    """A causal language model whose heads can be named, watched and disabled.

    source: the arguments with which `load_model` loads it again on another machine; None for a wrapped model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: dict | None = None
    edits: list[Edit] = field(default_factory=list, repr=False)

    @property
    def decoder(self) -> nn.Module:
        """The module that owns the list `layers`: everything but the output head."""
        return self.model.base_model

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def mixers(self) -> list[Mixer]:
        """All mixers, in order; a layer may have none (an MLP layer), one, or two (attention and an SSM)."""
        return [mixer for i, layer in enumerate(self.layers) for mixer in _mixers(layer, i)]

    @property
    def n_heads(self) -> int:
        """The largest number of heads in a layer: the width of a [n_layers, n_heads] table."""
        return max(mixer.heads.stop for mixer in self.mixers)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def max_length(self) -> int:
        """The longest text, in tokens, that the model's positions reach."""
        return getattr(self.model.config, "max_position_embeddings", None) or UNLIMITED

    def encode(self, text: str) -> torch.Tensor:
        """The tokens of a text, the tokenizer's special ones included: ids [1, pos] on the model's device."""
        return self.tokenizer(text, return_tensors="pt").input_ids.to(self.device)

    @contextmanager
    def edited(self, what: str | None = None) -> Iterator[Edit]:
        """An `Edit` of this model to put hooks and swaps on; undone at the end, also after an exception."""
        edit = Edit(what)
        self.edits.append(edit)  # before anything is changed, so that `reset` knows of it
        try:
            yield edit
        finally:
            edit.undo()
            if edit in self.edits:
                self.edits.remove(edit)

    def __repr__(self):
        heads = sorted({(mixer.n_heads, mixer.kind) for mixer in self.mixers})
        shape = f"{self.n_layers} layers of {' / '.join(f'{n} {kind}' for n, kind in heads)} heads"
        return f"LM({self.name}: {type(self.model).__name__}, {shape}, {self.device}, {self.model.dtype})"


def reset(lm: LM) -> None:
    """Undo every edit of a model, the latest first: what a broken-off cell has left in force, and what is in
    force around this call."""
    while lm.edits:
        lm.edits[-1].undo()
        lm.edits.pop()


def load_model(
    name: str, device: str = "auto", dtype: str | torch.dtype = "auto", n_layers: int | str | None = None
) -> LM:
    """Load a model of the course by name, or any checkpoint of a supported family from a local folder.

    Args:
        name: one of `registry.TINY` (they ship with the course) or `registry.MODELS` (downloaded once, at a pinned
            revision), or a folder that holds `config.json`, safetensors weights and a tokenizer.
        device: "auto" takes the GPU if there is one.
        dtype: "auto" is float32 on a CPU, so that results repeat; on a GPU bfloat16, or float16 where
            the hardware has no bfloat16 (T4).
        n_layers: only the first layers; files that hold later layers alone are neither downloaded nor opened.
            "fit": the whole model if it fits into the memory that is free, else as many first layers as do. "minimal":
            the first layers up to the paper's Aggregate head, where the paper has one, else as "fit".

    Raises:
        ValueError: unknown name (lists the known ones), `n_layers` out of range, a model that does not fit into memory
            (said before it is downloaded), no way to download it, weights missing from the files, or a file of a model
            that ships missing or damaged (its SHA-256 is checked).
    """
    device = default_device() if device == "auto" else device
    dtype = default_dtype(device) if dtype == "auto" else dtype
    if name in MODELS:
        n_layers = layers_to_load(name, device, dtype, n_layers)
        weights, words = fetch(name, MODELS[name], n_layers)
    else:
        weights = words = _folder(name)
        n_layers = None if n_layers in ("fit", "minimal") else n_layers
    model = read_model(weights, dtype, n_layers, device)
    lm = wrap(model, AutoTokenizer.from_pretrained(words), name=name)
    lm.source = {"name": name if name in (*TINY, *MODELS) else str(weights.resolve()), "n_layers": n_layers}
    return lm


def _folder(name: str) -> Path:
    if name in TINY:
        check_sums(data_dir() / "models" / name)
        return data_dir() / "models" / name
    if (Path(name) / "config.json").is_file():
        return Path(name)
    raise ValueError(
        f"unknown model {name!r}: known are {', '.join([*TINY, *MODELS])}, or a folder with a config.json"
    )


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> LM:
    """Wrap a Hugging Face model whose layers mix positions by softmax attention, Mamba-1 or Mamba-2.

    Known to work: Llama-type decoders, Llamba, Mamba, FalconMamba, Mamba2, and the hybrids Zamba2, Bamba, Jamba,
    FalconH1, NemotronH and GraniteMoeHybrid. The model is put in eval mode and otherwise left as it is.

    Raises:
        ValueError: the model is not built like that; the message names what was looked for.
    """
    layers = getattr(model.base_model, "layers", None)
    # A layer without heads must be known to be one: NemotronH's MLP layers, whose MLP is called `mixer`, too.
    unknown = [
        i for i, layer in enumerate(layers or ()) if not (_mixers(layer, i) or hasattr(layer, "mixer"))
    ]
    if not layers or unknown or not any(_mixers(layer, i) for i, layer in enumerate(layers)):
        which = (
            f"layer {unknown[0]} is a {type(layers[unknown[0]]).__name__}" if unknown else "no layer has one"
        )
        raise ValueError(
            f"{type(model).__name__} is not supported: expected a list `layers` whose layers hold softmax attention with "
            f"an o_proj, or Mamba with an out_proj, under one of the names {', '.join(MIXERS)}; {which}"
        )
    return LM(model.eval(), tokenizer, name or model.config.name_or_path or type(model).__name__)


def _mixers(layer: nn.Module, index: int) -> list[Mixer]:
    found: list[Mixer] = []
    for path in MIXERS:
        module = reduce(lambda owner, part: getattr(owner, part, None), path.split("."), layer)
        shape = _shape(module)
        if shape:
            first = found[-1].heads.stop if found else 0
            found.append(Mixer(index, *shape, module, layer, first))
    return found


def _shape(module: nn.Module | None) -> tuple[str, int, int, nn.Linear] | None:
    """kind, n_heads, d_head and output projection of a mixer; None for anything else."""
    if hasattr(module, "o_proj") and hasattr(module, "head_dim"):
        n_heads = module.o_proj.in_features // module.head_dim
        return "attention", n_heads, module.head_dim, module.o_proj
    if hasattr(module, "x_proj"):  # Mamba-1: B, C and dt are read off the convolved x
        return "mamba1", module.out_proj.in_features, 1, module.out_proj
    if hasattr(module, "conv1d") and (
        hasattr(module, "n_groups") or hasattr(module, "z_bias")
    ):  # Mamba2, or Llamba
        n_heads = module.D.numel()
        return "mamba2", n_heads, module.out_proj.in_features // n_heads, module.out_proj
    return None
