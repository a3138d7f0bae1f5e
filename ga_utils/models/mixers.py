"""Where a model's heads are, and how they are reached: mixers, and edits that can be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from weakref import WeakSet

import torch
from torch import nn

from ga_utils.examples import Example
from ga_utils.models.deltanet import is_deltanet
from ga_utils.models.device import fetched

# Where a decoder layer keeps its mixers, by family; Zamba2's hybrid layers hold theirs one level down.
MIXERS = ("self_attn", "shared_transformer.self_attn", "mamba", "mamba_decoder.mamba", "mixer", "linear_attn")

Change = Callable[[torch.Tensor], torch.Tensor | None]  # gets z, returns what replaces it, or None


class Uncompiled:
    """While it holds any edit, of whichever model, everything that `torch.compile` has made runs uncompiled.

    Compiled code doesn't call hooks that were registered after its first run, and doesn't say so. And what is
    compiled under an edit would go on calling its hooks.
    """

    def __init__(self):
        # No lock: a Ctrl-C right after it was taken would leave it so, and the next edit would wait forever.
        self.edits: WeakSet[Edit] = WeakSet()

    def hold(self, edit: Edit) -> None:
        self.edits.add(edit)
        torch.compiler.set_stance("force_eager")

    def release(self, edit: Edit) -> None:
        """Afterwards torch compiles as it does by default, where no other edit is in force."""
        if edit in self.edits:
            self.edits.discard(edit)
            if not self.edits:
                torch.compiler.set_stance("default")


UNCOMPILED = Uncompiled()


class Edit:
    """Hooks and swaps that are undone together, however far they got.

    what: how `repr(lm)` shows it, such as "disabled: L1H0".
    last_rows: how many positions at the end of a text it treats otherwise than the rest.
    varies_from: called with an example, gives the position from which on its text is treated otherwise than
        those of other examples; what texts share is run once up to there. None: no such positions.
    """

    def __init__(self, what: str = "hooks"):
        self.what, self.last_rows, self.in_force = what, 0, True
        self.varies_from: Callable[[Example], int] | None = None
        self._undo: list[Callable] = [lambda: UNCOMPILED.release(self)]

    def uncompile(self) -> None:
        """Whatever `torch.compile` has made runs uncompiled until this is undone."""
        UNCOMPILED.hold(self)

    def hook(self, register: Callable, function: Callable, **how) -> None:
        """Register a hook, `register` being for example `module.register_forward_hook`."""

        # A Ctrl-C may come between a hook's registration and the note of how to remove it. Such a hook stays
        # where it is, but does nothing once the edit is undone.
        def guarded(*args, **kwargs):
            return function(*args, **kwargs) if self.in_force else None

        self._undo.append(register(guarded, **how).remove)

    def guard_backward(self, model, args, output) -> None:
        """A forward hook of the model: with gradient checkpointing, the backward pass runs layers again, and
        must find the edit in force.
        """
        logits = getattr(output, "logits", None)
        if not model.training or logits is None or not logits.requires_grad:
            return
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            logits.register_hook(self._check_in_force)

    def _check_in_force(self, gradient: torch.Tensor) -> None:
        if not self.in_force:
            raise RuntimeError(
                f"{self.what}: gradient checkpointing runs layers again in the backward pass, when this was "
                "over already: call backward() inside the `with` block, or turn checkpointing off"
            )

    def swap(self, owner, name: str, value) -> None:
        """Set an attribute of a module or a configuration, or an item of a ModuleList, whose name is its
        number.
        """
        before = getattr(owner, name)
        hides_method = name not in vars(owner) and callable(getattr(type(owner), name, None))
        self._undo.append(
            lambda: vars(owner).pop(name, None) if hides_method else setattr(owner, name, before)
        )
        setattr(owner, name, value)

    def undo(self) -> None:
        """Take everything off again, the latest first. Doing it twice does no harm."""
        self.in_force = False
        while self._undo:
            self._undo[-1]()
            self._undo.pop()


@dataclass(frozen=True)
class Mixer:
    """A sequence-mixing module of one layer, seen through its heads.

        decoder layer (block)
        ├── norm
        ├── mixer (module): self_attn, mamba, ...
        │   ├── q_proj, k_proj, v_proj, or in_proj and conv1d
        │   ├── softmax(q kᵀ) v, or the scan          makes z [batch, pos, n_heads * d_head]
        │   │       z = [ head 0 | head 1 | ... ]     heads lie side by side: here they can be told apart
        │   └── out_proj (or o_proj)                  out = Σ_h z_h W_hᵀ: from here on heads are summed
        └── norm, MLP

    So `ablate` and the others edit z, the input of `out_proj`; slices of a mixer's *output* are not heads.
    A Mamba-1 head is one channel (d_head 1). A hybrid layer may have attention and an SSM side by side: the
    SSM's heads are then numbered after those of attention, from `first` on.
    """

    layer: int
    kind: str  # "attention" | "mamba1" | "mamba2" | "deltanet"
    n_heads: int
    d_head: int
    out_proj: nn.Linear
    module: nn.Module
    block: nn.Module  # the decoder layer that it belongs to
    first: int = 0
    shared: bool = False  # whether the same module serves other layers, too (Zamba2 in some versions)

    @property
    def heads(self) -> range:
        """The numbers of its heads among all heads of the layer."""
        return range(self.first, self.first + self.n_heads)

    def columns(self, head: int) -> slice:
        """The columns of z, and of `out_proj.weight`, that belong to one head."""
        return slice((head - self.first) * self.d_head, (head - self.first + 1) * self.d_head)

    def alive(self) -> list[int]:
        """The heads that write something; a pruned head's columns of `out_proj` are all zero."""
        written = weight_of(self.out_proj).any(dim=0).unflatten(0, (self.n_heads, self.d_head)).any(dim=1)
        return [self.first + i for i in written.nonzero()[:, 0].tolist()]

    def hook_z(self, edit: Edit, change: Change, first: bool = False) -> None:
        """While `edit` is in force, call `change(z)` whenever this layer's heads have run.

        What it returns, if anything, replaces z; `first`: before other edits do. Only within this layer:
        Zamba2 runs one attention block at several depths. Inside, a RuntimeError says so if the mixer ran
        without calling its `out_proj`, as it does where a fused kernel computes both; or if gradient
        checkpointing would run a shared module again, without a sign of the layer that it is run for.
        """
        state = {"inside": False, "ran": False, "seen": False}

        def enter(module, args):
            if self.shared and module.training and getattr(module, "gradient_checkpointing", False):
                raise RuntimeError(
                    f"layer {self.layer} shares its {type(self.module).__name__} with other layers, so its "
                    "heads can't be told apart under gradient checkpointing: turn that off"
                )
            state.update(inside=True, ran=False, seen=False)

        def runs(module, args):
            state["ran"] = True

        def at_z(module, args):
            # Gradient checkpointing runs a layer's inside again, but not always the layer's own hooks.
            if state["inside"] or not self.shared:
                state["seen"] = True
                new = change(args[0])
                return None if new is None else (new, *args[1:])

        def leave(module, args, output):
            state["inside"] = False
            if state["ran"] and not state["seen"] and output is not None:
                raise RuntimeError(
                    f"layer {self.layer}: {type(self.module).__name__} ran without calling its output "
                    "projection, "
                    "so its heads can't be reached: a fused kernel did both. Put the model in eval mode, "
                    "or turn "
                    "the kernel off"
                )

        edit.hook(self.block.register_forward_pre_hook, enter)
        edit.hook(self.module.register_forward_pre_hook, runs)
        edit.hook(self.out_proj.register_forward_pre_hook, at_z, prepend=first)
        edit.hook(self.block.register_forward_hook, leave, always_call=True)

    @contextmanager
    def on_z(self, change: Change) -> Iterator[None]:
        """`hook_z` for as long as the context lasts."""
        edit = Edit()
        try:
            edit.uncompile()
            self.hook_z(edit, change)
            yield
        finally:
            edit.undo()


@torch.no_grad()
def weight_of(linear: nn.Module) -> torch.Tensor:
    """The weight of a linear map, [out, in], dequantised, fetched, and merged with adapters where need be.

    Column i is what the map makes of the i-th unit vector. That holds for every kind of quantisation, with no
    need to know how it stores its numbers. Only hooks on the map itself are passed by.
    """
    weight = getattr(linear, "weight", None)
    if type(linear) is nn.Linear and type(weight) is nn.Parameter:
        return fetched(linear)
    some = weight if weight is not None else next(linear.buffers())
    dtype = some.dtype if some.is_floating_point() and some.dtype.itemsize > 1 else torch.float32
    device = "cpu" if some.device.type == "meta" else some.device  # offloaded: accelerate moves the input
    inputs = torch.eye(linear.in_features, dtype=dtype, device=device)
    return (linear.forward(inputs) - linear.forward(torch.zeros_like(inputs[:1]))).T


def mixers_of(layer: nn.Module, index: int) -> list[Mixer]:
    """The mixers of decoder layer number `index`."""
    found: list[Mixer] = []
    for path in MIXERS:
        module = reduce(lambda owner, part: getattr(owner, part, None), path.split("."), layer)
        shape = _shape(module)
        if shape:
            first = found[-1].heads.stop if found else 0
            found.append(Mixer(index, *shape, module, layer, first))
    return found


def convolutions(layers: Iterable[nn.Module]) -> dict[int, nn.Conv1d]:
    """The short convolutions of decoder layers, by the number of the layer.

    Raises:
        ValueError: a layer has another one, too, behind its mixers (Inkling) or over n-grams (Qwen4-Exp).
    """
    found = {}
    for i, layer in enumerate(layers):
        inside = (getattr(mixer.module, "conv1d", None) for mixer in mixers_of(layer, i))
        conv = next((conv for conv in (conv_of(layer), *inside) if conv), None)
        found |= {i: conv} if conv else {}
        for name, part in layer.named_modules():
            if isinstance(part, nn.Conv1d) and part is not conv:
                raise ValueError(f"layer {i} has a convolution that can't be switched off here: {name}")
    return found


def conv_of(layer: nn.Module) -> nn.Conv1d | None:
    """The short convolution of a decoder layer that mixes positions with nothing else (LFM2)."""
    return getattr(getattr(layer, "conv", None), "conv", None)


def _shape(module: nn.Module | None) -> tuple[str, int, int, nn.Linear] | None:
    """kind, n_heads, d_head and output projection of a mixer; None for anything else."""
    # LFM2's attention calls it out_proj, OLMo Hybrid's Gated DeltaNet o_proj. In multi-head latent attention
    # (DeepSeek) values have a width of their own, and z is made of values.
    out_proj = getattr(module, "o_proj", None) or getattr(module, "out_proj", None)
    d_head = getattr(module, "v_head_dim", None) or getattr(module, "head_dim", None)
    known = hasattr(out_proj, "in_features") and (hasattr(module, "q_proj") or hasattr(module, "o_proj"))
    if known and d_head and not hasattr(module, "conv1d"):
        return "attention", out_proj.in_features // d_head, d_head, out_proj
    if hasattr(module, "x_proj"):  # Mamba-1: B, C and dt are read off the convolved x
        return "mamba1", module.out_proj.in_features, 1, module.out_proj
    if hasattr(module, "conv1d") and (
        hasattr(module, "n_groups") or hasattr(module, "z_bias")
    ):  # Mamba2, or Llamba
        n_heads = module.D.numel()
        return "mamba2", n_heads, module.out_proj.in_features // n_heads, module.out_proj
    if module is not None and is_deltanet(module):  # its heads are those of the values
        return "deltanet", module.num_v_heads, module.head_v_dim, out_proj
    return None
