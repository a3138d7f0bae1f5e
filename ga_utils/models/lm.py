"""Which models the course knows, and `LM`: a Hugging Face model, its tokenizer, and its heads in one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from os.path import abspath, expanduser
from threading import get_ident

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ga_utils.models import llamba, tokens  # noqa: F401  makes Llamba known to AutoModelForCausalLM
from ga_utils.models.catalog import MODELS, TINY, check_n_layers, layers_to_load
from ga_utils.models.device import choose_device, choose_dtype
from ga_utils.models.gguf_files import dequantised
from ga_utils.models.hub import fetch
from ga_utils.models.loading import local_copy, read_model, size_of
from ga_utils.models.mixers import Edit, Mixer, mixers_of
from ga_utils.models.supported import check_supported, decoder_of, inside_of

SMALL = 100e6  # bytes of weights
UNLIMITED = 1 << 20  # stands in for the context length of a model that has none


@dataclass(eq=False)
class LM:
    """A causal language model whose heads can be named, watched and disabled.

    source: the arguments with which `load_model` loads it again on another machine; None for a wrapped model.
    edits: what is in force now, in the order in which it was made; `ga.reset(lm)` undoes all of it.
    running: the tokens that `ga_utils` is running through the model at the moment (a `continuation.Span`),
        for hooks that depend on positions; None when you call `lm.model` yourself.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: dict | None = None
    edits: list[Edit] = field(default_factory=list, repr=False)
    running: object | None = field(default=None, repr=False)
    thread: int | None = field(default=None, repr=False)  # the one in which `ga_utils` is running the model
    budget: object | None = field(default=None, repr=False)  # of one forward pass, see `models.budget`
    continues: str | None = field(default="unknown", repr=False)  # see `models.continuation.how_to_continue`

    @property
    def decoder(self) -> nn.Module:
        """The module that owns the list `layers`: everything but the output head."""
        return decoder_of(self.model)

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def mixers(self) -> list[Mixer]:
        """All mixers, in order; a layer may have none (an MLP layer), one, or two (attention and an SSM)."""
        found = [mixer for i, layer in enumerate(self.layers) for mixer in mixers_of(layer, i)]
        times = Counter(id(mixer.module) for mixer in found)
        return [replace(m, shared=True) if times[id(m.module)] > 1 else m for m in found]

    @property
    def n_heads(self) -> int:
        """The largest number of heads in a layer: the width of a [n_layers, n_heads] table."""
        return max(mixer.heads.stop for mixer in self.mixers)

    @property
    def device(self) -> torch.device:
        """Where tokens go. Of a model whose weights are offloaded, where they are brought to."""
        spread = getattr(self.model, "hf_device_map", None)
        if self.model.device.type != "meta" or spread is None:
            return self.model.device
        return torch.device(next((place for place in spread.values() if place not in ("cpu", "disk")), "cpu"))

    @property
    def max_length(self) -> int:
        """The longest text, in tokens, that the model's positions reach."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or UNLIMITED

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, as the beginning of something: after the tokenizer's BOS, if it has one,
        and without the EOS that some tokenizers put behind every text. A text that begins with BOS gets no
        second, and one that the chat template begins gets no other special tokens than the template's.
        """
        return tokens.tokenize(self.tokenizer, texts)

    def check_tokens(self, ids: Iterable[int]) -> None:
        """Raises a ValueError that names the first token for which the model has no embedding."""
        known = self.model.get_input_embeddings().weight.shape[0]
        token = next((token for token in ids if token >= known), None)
        if token is not None:
            raise ValueError(
                f"token {token} ({self.tokenizer.convert_ids_to_tokens(token)!r}): {self.name} has "
                f"embeddings for tokens 0–{known - 1} alone. Give `wrap` the model's own tokenizer, or call "
                "model.resize_token_embeddings(len(tokenizer))"
            )

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where in the text each token that `encode` gives begins and ends.

        Raises:
            ValueError: a slow tokenizer, which does not say so.
        """
        return tokens.offsets(self.tokenizer, text)

    def chat(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the tokenizer's chat template writes it: a prompt for an `Example`, whose choices
        then need no space in front.

        Args:
            messages: such as [{"role": "user", "content": "Where is Paris?"}]. The text ends where the
                assistant's answer begins; if the last message is the assistant's, with that message.

        Raises:
            ValueError: the tokenizer has no chat template, or puts special tokens around the text that the
                template has not.
        """
        return tokens.conversation(self.tokenizer, messages)

    def encode(self, text: str) -> torch.Tensor:
        """The tokens of a text as `tokenize` gives them: ids [1, pos] on the model's device.

        Raises:
            ValueError: a token for which the model has no embedding.
        """
        (ids,) = self.tokenize([text])
        self.check_tokens(ids)
        return torch.tensor([ids], device=self.device)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode inside, so that dropout leaves results alone; each module's own mode comes back."""
        training = [module for module in self.model.modules() if module.training]
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def edited(self, what: str = "hooks") -> Iterator[Edit]:
        """An `Edit` of this model to put hooks and swaps on; undone at the end, also after an exception."""
        edit = Edit(what)
        self.edits.append(edit)  # before anything is changed, so that `reset` knows of it
        try:
            edit.uncompile()
            edit.hook(self.model.register_forward_hook, edit.guard_backward)
            yield edit
        finally:
            edit.undo()
            if edit in self.edits:
                self.edits.remove(edit)

    @contextmanager
    def at_work(self, span: object | None) -> Iterator[None]:
        """Inside, `ga_utils` runs the model, and hooks find as `running` what it runs.

        Raises:
            RuntimeError: it is running the model in another thread, whose hooks would be called here, too.
        """
        before = self.running, self.thread
        if before[1] not in (None, get_ident()):
            raise RuntimeError(
                f"{self.name} is at work in another thread, and hooks of both would mix: take turns, or give "
                "each thread a model of its own (copy.deepcopy(model))"
            )
        try:
            self.running, self.thread = span, get_ident()
            yield
        finally:
            self.running, self.thread = before

    def __repr__(self):
        heads = sorted({(mixer.n_heads, mixer.kind) for mixer in self.mixers})
        shape = f"{self.n_layers} layers of {' / '.join(f'{n} {kind}' for n, kind in heads)} heads"
        edits = "".join(f"; {what}" for what in dict.fromkeys(edit.what for edit in self.edits))
        return (
            f"LM({self.name}: {type(self.model).__name__}, {shape}, {self.device}, {self.model.dtype}{edits})"
        )


def reset(lm: LM) -> None:
    """Undo every edit of a model, the latest first: what a broken-off cell has left in force, and what is in
    force around this call."""
    while lm.edits:
        lm.edits[-1].undo()
        lm.edits.pop()
    lm.running = lm.thread = None


def load_model(
    name: str | PathLike,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    n_layers: int | str | None = None,
) -> LM:
    """Load a model of the course by name, or any checkpoint of a supported family from this machine.

    Args:
        name: one of `catalog.TINY` (they ship with the course) or `catalog.MODELS` (downloaded once, at a
            pinned revision), or a folder that holds `config.json`, safetensors weights and a tokenizer, or a
            GGUF file, which is dequantised once (`gguf_files`). A path may be a `Path` or begin with "~".
        device: "auto" takes the NVIDIA GPU if there is one, else the CPU; or a name such as "cuda:1" or
            "mps".
        dtype: a torch dtype or its name. "auto" is float32 on a CPU and for models of less than 100 MB, so
            that results repeat on every machine; on a GPU bfloat16, or float16 where the hardware has no
            fast bfloat16 (T4) and on Apple's.
        n_layers: only so many first layers; files that hold later layers alone are neither downloaded nor
            opened. "fit": the whole model if it fits into the memory that is free, else as many first layers
            as do. "minimal": the first layers up to the paper's Aggregate head, where the paper has one, else
            as "fit".

    Raises:
        ValueError: an unknown name, device or dtype (lists the known ones), `n_layers` out of range, a model
            that does not fit into memory (said before it is downloaded), no way to download it, weights
            missing from the files, a GGUF file that can't be read, or a file of a model that ships missing or
            damaged (its SHA-256 is checked).
        ModuleNotFoundError: a GGUF file needs the package `gguf`.
    """
    device = choose_device(device)
    n_layers = check_n_layers(n_layers)
    # A `Path` is a folder, even if it is called like a model.
    name = abspath(expanduser(name)) if isinstance(name, PathLike) else expanduser(name)
    local = local_copy(name)
    small = local is not None and size_of(local) < SMALL
    dtype = torch.float32 if dtype == "auto" and small else choose_dtype(dtype, device)
    if name in MODELS:
        n_layers = layers_to_load(name, device, dtype, n_layers)
    elif n_layers in ("fit", "minimal"):
        n_layers = None
    if local is None:
        weights, words = fetch(name, MODELS[name], n_layers)
    else:
        weights = words = dequantised(local, dtype) if local.is_file() else local
    model = read_model(weights, dtype, n_layers, device)
    lm = wrap(model, AutoTokenizer.from_pretrained(words), name=name)
    lm.source = {"name": name if name in (*TINY, *MODELS) else str(local.resolve()), "n_layers": n_layers}
    return lm


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> LM:
    """Wrap a Hugging Face model whose layers mix positions by attention, Mamba-1, Mamba-2 or Gated DeltaNet.

    Known to work: Llama-type decoders, Llamba, Mamba, FalconMamba, Mamba2, and the hybrids Zamba2, Bamba,
    Jamba, FalconH1, NemotronH, GraniteMoeHybrid, Qwen3-Next, Qwen3.5 and OLMo Hybrid; Gemma 3n and 4,
    DeepSeek V2 and V3, gpt-oss, and LFM2, whose layers of a short convolution alone have no heads. The model
    is put in eval mode and otherwise left as it is. A compiled model is unwrapped, and runs uncompiled
    wherever hooks are at work.

    Raises:
        ValueError: the model is not built like that; the message names what was looked for. Or something
            else is wrapped around it, or it has no output head.
    """
    model = inside_of(model)
    check_supported(model, tokenizer)
    return LM(model.eval(), tokenizer, name or model.config.name_or_path or type(model).__name__)
