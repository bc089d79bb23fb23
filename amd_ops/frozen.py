"""Parameters that tell when somebody takes hold of their memory: what a derived copy that cannot alias rests on.

A write through ``.data``, a view or a numpy array changes nothing that could be looked at later: no version, no
address. So the moment *before* is watched. A frozen parameter has a class of its own, which sees every function and
attribute of torch that it is handed to. Those that only read (shapes, dtypes, F.linear) pass. Before any other one
runs, the parameter is thawed: its class is nn.Parameter again, and whoever derived something from it is told. A
parameter whose memory somebody holds already is not frozen.

Not seen are writers that never ask torch for the memory: a kernel of an extension module (pybind11) that gets the
parameter itself, and another process that got a GPU handle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_told: dict[int, tuple[Callable[[str], None], int]] = {}
"""By id of a frozen parameter: what to call when it is thawed or dies, and the address of its memory."""

_READ_ATTRIBUTES = (
    "shape", "dtype", "device", "requires_grad", "is_leaf", "grad", "grad_fn", "layout", "is_cuda", "is_cpu", "is_meta",
    "is_sparse", "is_quantized", "ndim", "names", "_version", "itemsize", "nbytes", "_backward_hooks", "retains_grad",
)  # fmt: skip
_READ_METHODS = (
    "size", "dim", "ndimension", "numel", "nelement", "element_size", "stride", "storage_offset", "is_contiguous",
    "is_floating_point", "is_inference", "is_same_size", "get_device", "requires_grad_", "__len__", "register_hook",
    "is_shared",
)  # fmt: skip
_READS = {
    *(getattr(getattr(Tensor, name, None), "__get__", None) for name in _READ_ATTRIBUTES),
    *(getattr(Tensor, name, None) for name in _READ_METHODS),
    *(getattr(getattr(Tensor, name), "__set__", None) for name in ("requires_grad", "grad")),
    F.linear, F.embedding, torch.is_floating_point, torch.numel,
}  # fmt: skip


class Frozen(nn.Parameter):
    """A parameter whose memory nobody has taken hold of since it was frozen."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not torch.compiler.is_dynamo_compiling() and func not in _READS:
            for parameter in _frozen_among((args, kwargs)):
                thaw(parameter, _name(func))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        thaw(self, "deepcopy")
        return self.__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        thaw(self, "pickle")
        return self.__reduce_ex__(protocol)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":  # torch.utils.swap_tensors
            _tell(self, "swap_tensors")
        super().__setattr__(name, value)

    def __del__(self) -> None:
        _tell(self, "the weight is gone")


def _name(func: Any) -> str:
    """What torch function or attribute it is (``Tensor.data``): attributes come as their descriptor's methods."""
    owner = getattr(func, "__self__", None)
    return str(getattr(owner, "__name__", None) or getattr(func, "__name__", func))


def _tell(parameter: Any, reason: str) -> None:
    told = _told.pop(id(parameter), None)
    if told is not None:
        told[0](reason)


def address(parameter: Any) -> int:
    """Return where the memory of a frozen parameter lies, 0 for one that is not frozen; nobody is asked for it."""
    known = _told.get(id(parameter)) if type(parameter) is Frozen else None
    return 0 if known is None else known[1]


def _frozen_among(found: Any) -> Iterator[Frozen]:
    if isinstance(found, Frozen):
        yield found
    elif isinstance(found, tuple | list):
        for one in found:
            yield from _frozen_among(one)
    elif isinstance(found, dict):
        yield from _frozen_among(list(found.values()))


def watch(parameter: nn.Parameter, told: Callable[[str], None]) -> None:
    """Freeze ``parameter``, for which why_not() is ""; ``told(reason)`` is called once, when it is thawed or dies."""
    _told[id(parameter)] = told, parameter.data_ptr()
    parameter.__class__ = Frozen


def forget(parameter: int) -> None:
    """Tell nobody about the parameter of this id any more."""
    _told.pop(parameter, None)


def why_not(parameter: Tensor) -> str:
    """Return "" when nobody but ``parameter`` can write to its memory, else who may."""
    if type(parameter) is Frozen:
        thaw(parameter, "frozen anew")
    if type(parameter) is not nn.Parameter:
        return "the weight is not a plain nn.Parameter"
    if parameter.is_meta:
        return "the weight is on meta"
    storage = parameter.untyped_storage()
    if parameter.device.type == "cpu" and storage.is_shared():
        return "the weight lives in memory shared with another process"
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None:
        return "this torch does not say who holds a weight's memory"
    if count(storage._cdata) > 2:
        return "the weight's memory is held by another tensor too (tied, a view, a state_dict that is still alive)"
    return ""


def thaw(parameter: Any, reason: str = "") -> None:
    """Make a frozen parameter a plain one again, and tell whoever froze it."""
    if type(parameter) is Frozen:
        object.__setattr__(parameter, "__class__", nn.Parameter)
    _tell(parameter, reason)


def is_plain(parameter: Any) -> bool:
    """Return True for a plain or frozen nn.Parameter of ours; one that nobody watches any more is made plain."""
    kind = type(parameter)
    if kind is nn.Parameter:
        return True
    if kind is Frozen:
        if id(parameter) not in _told:
            object.__setattr__(parameter, "__class__", nn.Parameter)
        return True
    return False
