"""The memory that a piece of PyTorch takes at its peak, counted tensor by tensor, on any device."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Inside `with`: `now` and `peak`, the bytes that tensors made inside hold, and the most that they held.

    Only tensors on the model's device count, and its weights don't.
    """

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self.device = next(model.parameters()).device
        self.known = {id(p.untyped_storage()) for p in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.device == self.device:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self.known:
            self.known.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, id(storage), storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class OnMeta(LiveMemory):
    """`LiveMemory` for a model on the `meta` device, whose tensors have shapes and no numbers.

    Code that looks at numbers runs as well: a question about a number is answered with yes, and what is
    brought to the CPU is all zeros.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return True
        to_cpu = func is aten._to_copy.default and (kwargs or {}).get("device") == torch.device("cpu")
        if to_cpu and args[0].is_meta:
            return torch.zeros((), dtype=kwargs.get("dtype") or args[0].dtype).expand(args[0].shape)
        return super().__torch_dispatch__(func, types, args, kwargs)


def weights(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
