"""Direct logit attribution: what each head's write at the last token adds to the logits of the choices.

The residual stream is a sum, and the logits are linear in it once the final norm's scale is known:

    logits = U · (gain * residual / rms)        residual = embedding + Σ heads W_O z + Σ MLPs

So every head has its own term. It counts what the head says to the output itself, not what later layers make
of it. (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ga_utils.examples import Example
from ga_utils.models.batches import rows_of
from ga_utils.models.device import fetched
from ga_utils.models.lm import LM
from ga_utils.models.mixers import weight_of
from ga_utils.segments import positions


@torch.no_grad()
def direct_logits(lm: LM, examples: Iterable[Example]) -> np.ndarray:
    """What each head adds to each choice's logit: [n_examples, n_layers, n_heads, n_choices].

    Works under `ablate`. Only for models whose final norm is Llama's, an RMSNorm without a bias, and whose
    logits are not scaled or capped; and for choices that differ in their last token alone: letters, or digits
    behind a space that is a token of its own.

    Raises:
        ValueError: no examples, choices that differ in more, or a model of another kind.
    """
    examples = list(examples)
    if not examples:
        raise ValueError("no examples: the list is empty")
    n_choices = max(len(example.choices) for example in examples)
    found = np.full((len(examples), lm.n_layers, lm.n_heads, n_choices), np.nan)
    for number, example in enumerate(examples):
        z, readout = last_z(lm, example)
        for mixer in lm.mixers:
            written = (z[mixer.layer] * weight_of(mixer.out_proj)).unflatten(-1, (mixer.n_heads, -1)).sum(-1)
            found[number, mixer.layer, mixer.heads, : len(example.choices)] = (readout @ written).T.cpu()
    return found


@torch.no_grad()
def last_z(lm: LM, example: Example) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """z at the position "last", {layer: [n_heads * d_head]}, and the readout [n_choices, d_model].

    readout @ residual are the choices' logits: rows of the output head, times the final norm's gain and
    scale on this prompt.
    """
    row, *more = rows_of(lm, [example])
    if more:
        raise ValueError(
            "choices that differ in more than their last token have no single logit: use letters"
        )
    lm.check_tokens(token for text in row.texts for token in text)
    (last,), z, into_norm = positions(lm, example, "last"), {}, []
    with lm.edited("reading") as edit, lm.evaluating():
        for mixer in lm.mixers:
            mixer.hook_z(edit, lambda whole, layer=mixer.layer: z.update({layer: whole[0, last].clone()}))
        norm = lm.decoder.norm
        edit.hook(norm.register_forward_pre_hook, lambda module, args: into_norm.append(args[0][0, last]))
        logits = lm.model(torch.tensor([row.ids], device=lm.device)).logits[0, last]
    residual, tokens = into_norm[0], [tokens[-1] for _, _, tokens in row.reads]
    epsilon = getattr(norm, "variance_epsilon", 0)  # Gemma's norms have none, and are refused below
    gain = fetched(norm) if hasattr(norm, "weight") else 0
    scale = torch.rsqrt(residual.square().mean() + epsilon)
    readout = weight_of(lm.model.get_output_embeddings())[tokens] * gain * scale
    off = (readout @ residual - logits[tokens]).abs().max()
    if off > min(100 * torch.finfo(logits.dtype).eps, 0.05) * max(1, logits.abs().max()):
        raise ValueError(
            f"the logits of a {type(lm.model).__name__} are not its output head times Llama's RMSNorm (they "
            f"differ by {off:.2g}): its final norm, a {type(norm).__name__}, is another one, or logits are "
            "scaled, capped or have a bias. So heads have no terms in them that could be read off"
        )
    return z, readout
