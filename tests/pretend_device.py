"""A pretend accelerator: tensors on the CPU that claim to be on another device, to count what a GPU would wait for.

A `PretendTensor` wraps a CPU tensor and reports the device `meta`. Inside `PretendDevice`, factory functions called for that
device return wrapped tensors, an operation that mixes wrapped and plain tensors raises, and every operation that makes the host
wait for a real device is recorded with the line of the project that calls it.
"""

import collections
import contextlib
import traceback
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
READS_VALUES = {
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "unique_consecutive", "_unique2",
    "bincount", "repeat_interleave",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"copy_", "_to_copy"}


class PretendTensor(torch.Tensor):
    """Reports the device `meta`; its values are those of the CPU tensor `inner`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        wrapper = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **layout)
        wrapper.inner = inner
        return wrapper

    def tolist(self):
        """As on a real device: a copy to the host."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return PretendDevice().__torch_dispatch__(function, types, args, kwargs)


class PretendDevice(TorchDispatchMode):
    """Runs operations on wrapped tensors. `waits` counts (kind, line of the project)."""

    def __init__(self):
        super().__init__()
        self.waits = collections.Counter()
        self._patches = contextlib.ExitStack()

    def __enter__(self):
        for name in ("tensor", "as_tensor"):  # with values of the host, they bypass dispatch
            self._patches.enter_context(mock.patch.object(torch, name, self._from_host(getattr(torch, name))))
        of_device = torch.Generator
        create = lambda device="cpu": of_device("cpu" if torch.device(device) == DEVICE else device)  # noqa: E731
        self._patches.enter_context(mock.patch.object(torch, "Generator", create))
        return super().__enter__()

    def __exit__(self, *exception):
        self._patches.close()
        return super().__exit__(*exception)

    def _from_host(self, factory):
        def create(data, *args, device=None, **kwargs):
            if device is None or torch.device(device) != DEVICE:
                return factory(data, *args, **kwargs)
            if isinstance(data, torch.Tensor):
                return factory(data, *args, device=device, **kwargs)
            self.waits["values of the host", _caller()] += 1
            return PretendTensor(factory(data, *args, **kwargs))

        return create

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        wrapped = any(isinstance(leaf, PretendTensor) for leaf in leaves)
        name = function._overloadpacket.__name__
        device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        plain = [leaf for leaf in leaves if not isinstance(leaf, PretendTensor) and leaf.ndim]
        if wrapped and plain and name not in COPIES:
            raise RuntimeError(f"{name} mixes the device with CPU tensors {[tuple(leaf.shape) for leaf in plain]} at {_caller()}")
        kind = self._wait(name, args, device, wrapped=wrapped)
        if kind:
            self.waits[kind, _caller()] += 1
        created = device == DEVICE
        if created:
            kwargs["device"] = torch.device("cpu")
        is_pinned = kwargs.pop("pin_memory", False)
        result = function(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
        if is_pinned:
            result.is_pinned_memory = True
        to_host = name == "_to_copy" and device is not None and not created
        if name == "_local_scalar_dense" or to_host or not (wrapped or created):
            return result
        return tree_map(lambda value: _wrap(value, leaves), result)

    @staticmethod
    def _wait(name, args, device, *, wrapped):
        """The kind of wait, or None."""
        if wrapped and name in READS_VALUES:
            return name
        if wrapped and name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1]):
            return "boolean index"
        if name == "_to_copy" and device is not None and wrapped and device != DEVICE:
            return "copy to the host"
        if name == "copy_" and wrapped:
            target, source = (isinstance(tensor, PretendTensor) for tensor in args[:2])
            if args[2:] == (True,) and any(getattr(tensor, "is_pinned_memory", False) for tensor in args[:2]):
                return None  # the copy is asynchronous
            return "copy to the host" if source and not target else "copy from the host" if target and not source else None
        copies_here = name == "_to_copy" and device == DEVICE and not wrapped
        return "copy from the host" if copies_here else None


def to_device(module_or_tensor):
    """A tensor, or a module in place, on the pretend device; nothing if it is there already."""
    if isinstance(module_or_tensor, PretendTensor):
        return module_or_tensor
    if isinstance(module_or_tensor, torch.Tensor):
        return PretendTensor(module_or_tensor.detach().clone())
    for module in module_or_tensor.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(to_device(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = to_device(buffer)
    return module_or_tensor


def on_device(batch):
    """A named tuple, or one within one, with its tensors on the pretend device."""
    move = lambda field: on_device(field) if isinstance(field, tuple) else to_device(field)  # noqa: E731
    return type(batch)(*(move(field) if isinstance(field, (tuple, torch.Tensor)) else field for field in batch))


def _unwrap(value):
    return value.inner if isinstance(value, PretendTensor) else value


def _wrap(value, leaves):
    if not isinstance(value, torch.Tensor):
        return value
    for leaf in leaves:  # operations in place return their argument
        if value is _unwrap(leaf):
            return leaf
    return PretendTensor(value)


def _caller():
    """File and line of the project (or else of the library) that calls the operation."""
    frames = [frame for frame in traceback.extract_stack() if "pretend_device" not in frame.filename]
    ours = [frame for frame in frames if "/mg3d/" in frame.filename and "site-packages" not in frame.filename]
    frame = (ours or [frame for frame in frames if "/torch/" not in frame.filename] or frames)[-1]
    return f"{frame.filename.rpartition('/mg3d/')[2]}:{frame.lineno} {frame.line}"
