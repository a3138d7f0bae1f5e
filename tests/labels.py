"""A GPU made of labels: tensors in the machine's memory, some of which count as being on "cuda:0".

A label belongs to a storage, so views, parameters, `.data` and saved gradients share it. Two modes work
together. `_Calls` sees what Python calls: it replaces device arguments, answers `.device`, and moves tensors.
`_Operations` sees every operation that PyTorch carries out, also in the backward pass: it labels what is
computed from labelled tensors, and raises as PyTorch does when the two kinds meet.

What it can't see: code that asks for CUDA itself (`torch.cuda`, `torch.Generator(device="cuda")`), and
devices that torch functions written in Python ask for on their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MEET = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
INDICES = "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
NO_NUMPY = (
    "can't convert cuda:0 device type tensor to numpy. "
    "Use Tensor.cpu() to copy the tensor to host memory first."
)

aten = torch.ops.aten
CROSSING = {aten.copy_, aten.fill_}  # write into their first tensor from any device
INDEXING = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
JOINING = {aten.cat, aten.stack}  # unlike arithmetic, they refuse scalars from the CPU too


class Labels:
    """Which storages are on the GPU.

    Inside `with labels.on():` tensors behave as on a machine with a GPU. `put` labels a tensor or a module in
    place.
    """

    def __init__(self):
        self._labelled: set[StorageWeakRef] = set()
        self._most = 1 << 17  # labels to keep before those of freed storages are thrown away
        self.paused = False

    @contextmanager
    def on(self) -> Iterator[None]:
        with _Calls(self), _Operations(self):
            yield

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, operations run as if there were no labels, and give none."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def put(self, what: torch.Tensor | torch.nn.Module) -> None:
        of_module = isinstance(what, torch.nn.Module)
        for tensor in (*what.parameters(), *what.buffers()) if of_module else (what,):
            self._labelled.add(_storage(tensor))
        if len(self._labelled) > self._most:
            self._labelled = {storage for storage in self._labelled if not storage.expired()}
            self._most = max(self._most, 2 * len(self._labelled))

    def has(self, tensor: torch.Tensor) -> bool:
        return _storage(tensor) in self._labelled

    def move(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The tensor itself if it is on the device, else a copy there; gradients go back the same way."""
        on_gpu = device.type == "cuda"
        return tensor if self.has(tensor) == on_gpu else _Move.apply(tensor, self, device)

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        return CUDA if self.has(tensor) else CPU


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _tensors(values) -> Iterator[torch.Tensor]:
    """All tensors in arguments or results."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, labels, device):
        ctx.labels, ctx.back = labels, labels.device_of(tensor)
        with labels.pause():
            moved = tensor.clone()
        if device.type == "cuda":
            labels.put(moved)
        return moved

    @staticmethod
    def backward(ctx, gradient):
        return ctx.labels.move(gradient, ctx.back), None, None


class _Operations(TorchDispatchMode):
    def __init__(self, labels: Labels):
        super().__init__()
        self.labels = labels

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, labels = kwargs or {}, self.labels
        if labels.paused:
            return func(*args, **kwargs)
        operation = func.overloadpacket
        given = [(tensor, labels.has(tensor)) for tensor in _tensors((args, kwargs))]
        on_gpu = any(labelled for _, labelled in given)
        if on_gpu and operation not in CROSSING and not all(labelled for _, labelled in given):
            self._check(operation, args, given)
        found = func(*args, **kwargs)
        if on_gpu and operation not in CROSSING:
            for tensor in _tensors(found):
                labels.put(tensor)
        return found

    def _check(self, operation, args, given: list[tuple[torch.Tensor, bool]]) -> None:
        """Raise unless PyTorch allows this operation on tensors of both kinds."""
        if operation in INDEXING:
            if not self.labels.has(args[0]):
                raise RuntimeError(INDICES)
            given = [pair for pair in given if all(pair[0] is not index for index in args[1])]
        stray = [tensor for tensor, labelled in given if not labelled]
        written = operation.__name__.endswith("_") and not given[0][1]
        if written or (stray and operation in JOINING) or any(tensor.ndim for tensor in stray):
            raise RuntimeError(f"{MEET} ({operation})")


class _Calls(TorchFunctionMode):
    def __init__(self, labels: Labels):
        super().__init__()
        self.labels = labels

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, labels = kwargs or {}, self.labels
        if labels.paused:
            return func(*args, **kwargs)
        if func == torch.Tensor.device.__get__:
            return CUDA if labels.has(args[0]) else func(*args)
        if func == torch.Tensor.is_cuda.__get__:
            return labels.has(args[0])
        if func == torch.Tensor.is_cpu.__get__:
            return not labels.has(args[0])
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            if labels.has(args[0]) and not kwargs.get("force"):
                raise TypeError(NO_NUMPY)
        elif func is torch.Tensor.__repr__:
            text = func(*args, **kwargs)
            return f"{text[:-1]}, device='cuda:0')" if labels.has(args[0]) else text
        elif func is torch.Tensor.cpu:
            return labels.move(args[0], CPU)
        elif func is torch.Tensor.cuda:
            return labels.move(args[0], CUDA)
        elif func is torch.Tensor.to:
            return self._to(*args, **kwargs)
        elif func in (torch.tensor, torch.as_tensor) and isinstance(args[0], torch.Tensor):
            kwargs = {"device": labels.device_of(args[0])} | kwargs
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        return self._make(func, args, kwargs)

    def _to(self, tensor, *args, device=None, dtype=None, **kwargs):
        """Tensor.to(dtype), .to(device, dtype), .to(other), and the same by name."""
        flags = []
        for arg in args:
            if isinstance(arg, torch.Tensor):
                device, dtype = self.labels.device_of(arg), arg.dtype
            elif isinstance(arg, torch.dtype):
                dtype = arg
            elif isinstance(arg, bool):
                flags.append(arg)
            elif arg is not None:
                device = arg
        if device is not None and _device(device).type in ("cpu", "cuda"):
            tensor, device = self.labels.move(tensor, _device(device)), None
        elsewhere = [] if device is None else [device]  # such as "meta"
        return tensor.to(*elsewhere, dtype or tensor.dtype, *flags, **kwargs)

    def _make(self, func, args, kwargs):
        """A function that makes a tensor on a device, such as torch.zeros(3, device=...)."""
        device = _device(kwargs["device"])
        if device.type not in ("cpu", "cuda"):
            return func(*args, **kwargs)
        with self.labels.pause():
            made = func(*args, **kwargs | {"device": CPU})
        sources = {_storage(tensor) for tensor in _tensors(args)}
        if _storage(made) in sources:  # torch.as_tensor takes what it was given
            return self.labels.move(made, device)
        if device.type == "cuda":
            self.labels.put(made)
        return made


def _device(device) -> torch.device:
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
