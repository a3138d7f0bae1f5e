"""Five ways to disable heads one at a time. Each maker takes a case and returns `run(heads)`.

A peer's `run` gives the log-probabilities of the choices, [head, prompt, choice], with each head disabled.
Every peer has its own copy of the weights, gets token ids instead of text, and reads its answer off in the
same way. None keeps the full logits, [prompt, token, vocabulary], beyond the head that made them.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable

import torch
from cases import Case

import ga_utils as ga

Run = Callable[[list[ga.Head]], torch.Tensor]


def read(case: Case, last: torch.Tensor) -> torch.Tensor:
    """[prompt, choice] from logits [prompt, vocabulary] at the last position."""
    return last.log_softmax(-1).gather(1, case.choices)


def columns(case: Case, head: ga.Head) -> slice:
    d_head = case.width // case.n_heads
    return slice(head.head * d_head, (head.head + 1) * d_head)


def plain(case: Case, **options) -> Run:
    """The usual loop: a hook zeroes the head's columns before `o_proj`, and the whole model runs."""
    model = copy.deepcopy(case.lm.model)

    @torch.inference_mode()
    def run(heads):
        results = []
        for head in heads:
            where = columns(case, head)

            def zero(module, args, where=where):
                z = args[0].clone()
                z[..., where] = 0
                return (z,)

            hook = model.model.layers[head.layer].self_attn.o_proj.register_forward_pre_hook(zero)
            results.append(read(case, model(case.ids, **options).logits[:, -1]))
            hook.remove()
        return torch.stack(results)

    return run


def plain_last(case: Case) -> Run:
    """The same, knowing two options that spare work: logits of the last position only, and no cache."""
    return plain(case, logits_to_keep=1, use_cache=False)


def transformer_lens(case: Case) -> Run:
    from transformer_lens.model_bridge import TransformerBridge

    model = copy.deepcopy(case.lm.model)
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # it wants a configuration on disk, also for a model that it is given
        model.config.save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=model, tokenizer=case.tokenizer, device="cpu"
        )

    @torch.inference_mode()
    def run(heads):
        results = []
        for head in heads:

            def zero(z, hook, head=head.head):  # z [prompt, token, head, d_head]
                z[:, :, head] = 0
                return z

            hooks = [(f"blocks.{head.layer}.attn.hook_z", zero)]
            results.append(
                read(case, bridge.run_with_hooks(case.ids, fwd_hooks=hooks, return_type="logits")[:, -1])
            )
        return torch.stack(results)

    return run


def nnsight(case: Case) -> Run:
    from nnsight import TransformersModel

    model = TransformersModel(copy.deepcopy(case.lm.model), tokenizer=case.tokenizer)

    @torch.inference_mode()
    def run(heads):
        results = []
        for head in heads:
            where = columns(case, head)
            with model.trace(case.ids):
                model.model.layers[head.layer].self_attn.o_proj.input[..., where] = 0
                last = model.lm_head.output[:, -1].save()
            results.append(read(case, last))
        return torch.stack(results)

    return run


PEERS = {
    "plain Hugging Face loop": plain,
    "plain loop, last logits": plain_last,
    "TransformerLens": transformer_lens,
    "nnsight": nnsight,
}


def ours(case: Case, method: str, heads: list[ga.Head] | None = None) -> ga.HeadSweep:
    """All heads, from text, as a user calls it; the time of tokenizing and of the baseline is in it."""
    return ga.sweep_heads(case.lm, case.examples, heads=heads, method=method, progress=False)
