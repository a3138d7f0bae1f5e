"""Which models can be wrapped, and what is said of the others."""

from __future__ import annotations

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel

from ga_utils.models.mixers import MIXERS, conv_of, mixers_of


def inside_of(model: nn.Module) -> nn.Module:
    """The model inside what `torch.compile`, DataParallel and the like have made of it."""
    return extract_model_from_parallel(model, keep_torch_compile=False)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The module that owns the list `layers`; of a multimodal model, its language model's."""
    known = model.base_model, model.get_decoder(), getattr(model, "model", None)
    return next((module for module in known if hasattr(module, "layers")), model.base_model)


def check_supported(model: nn.Module, tokenizer) -> None:
    """Raises a ValueError that says why a model or a tokenizer can't be wrapped, and what to do, if anything.

    tokenizer: None is allowed for a model that reads no text.
    """
    if not isinstance(model, PreTrainedModel):
        found = f"{type(model).__name__} is no Hugging Face model"
        if hasattr(model, "merge_and_unload"):  # peft
            found += (
                ": merge the adapter, wrap(model.merge_and_unload(), ...), or pass model.get_base_model()"
            )
        raise ValueError(found)
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(model).__name__} has no output head, so nothing predicts the next token: load it with "
            "AutoModelForCausalLM"
        )
    if hasattr(tokenizer, "tokenizer"):  # what multimodal models have
        raise ValueError(
            f"{type(tokenizer).__name__} is no tokenizer: pass the one inside, processor.tokenizer"
        )
    layers = getattr(decoder_of(model), "layers", None)
    # A layer without heads must be known to be one: NemotronH's MLP layers, whose MLP is called `mixer`, too,
    # and LFM2's short convolutions.
    unknown = [
        i
        for i, layer in enumerate(layers or ())
        if not (mixers_of(layer, i) or hasattr(layer, "mixer") or conv_of(layer))
    ]
    if not layers or unknown or not any(mixers_of(layer, i) for i, layer in enumerate(layers)):
        which = "no layer has one"
        if unknown:
            layer = layers[unknown[0]]
            parts = ", ".join(f"{name} ({type(part).__name__})" for name, part in layer.named_children())
            which = f"layer {unknown[0]} is a {type(layer).__name__} of {parts}"
        raise ValueError(
            f"{type(model).__name__} is not supported: expected a list `layers` whose layers hold "
            "softmax attention, Mamba or Gated DeltaNet as in the models that are known, under one of the "
            f"names {', '.join(MIXERS)}; {which}"
        )
