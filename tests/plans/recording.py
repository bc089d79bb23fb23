"""A stand-in for a captured graph on the CPU: what was dispatched once is run again, on the very same memory.

As in a real capture, Python runs once: numbers that were read from tensors then would be baked in, and looking at a
tensor on the host is an error. It is no kinder than a graph: outputs keep their addresses, and nothing is allocated
anew. Only Triton's interpreter, which computes beside torch's dispatcher, cannot be recorded.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LOOKS = frozenset(("_local_scalar_dense", "item", "equal", "nonzero", "is_nonzero", "allclose"))
"""Ops that wait for the device: a graph cannot hold them."""


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what is dispatched while it is entered; :meth:`replay` runs it again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in LOOKS, f"{name} waits for the device during a capture"
        result = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs or {}))}
        made = [one for one in _tensors(result) if one.untyped_storage().data_ptr() not in given]
        self.calls.append((func, args, kwargs or {}, made))
        return result

    def replay(self) -> None:
        """Run all of it again: new results go where the old ones are."""
        for func, args, kwargs, made in self.calls:
            given = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs))}
            found = _tensors(func(*args, **kwargs))
            fresh = [one for one in found if one.untyped_storage().data_ptr() not in given]
            for old, new in zip(made, fresh, strict=True):
                old.copy_(new)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [one for part in value for one in _tensors(part)] if isinstance(value, (list, tuple)) else []
