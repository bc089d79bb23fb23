"""Ways in which programs touch a module between two forwards: each doubles what it gives and counts its calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import wrapt
from torch import nn
from torch.nn.utils import parametrize


class Seen:
    """How often what was touched was called, and what its results are multiplied by."""

    def __init__(self, factor: float = 2) -> None:
        self.calls, self.factor = 0, factor

    def twice(self, result: Any) -> Any:
        self.calls += 1
        if isinstance(result, tuple):
            return tuple(map(self._times, result))
        return self._times(result)

    def _times(self, part: Any) -> Any:
        return self.factor * part if isinstance(part, torch.Tensor) and part.is_floating_point() else part


Touch = Callable[[nn.Module, Seen], Any]


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    had, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had or not isinstance(owner, nn.Module):
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def instance_forward(module: nn.Module, seen: Seen) -> Iterator[None]:
    inner = module.forward
    with attribute(module, "forward", lambda *a, **k: seen.twice(inner(*a, **k))):
        yield


@contextmanager
def class_forward(module: nn.Module, seen: Seen) -> Iterator[None]:
    inner = type(module).forward
    with attribute(type(module), "forward", lambda self, *a, **k: seen.twice(inner(self, *a, **k))):
        yield


@contextmanager
def wrapped_class_forward(module: nn.Module, seen: Seen) -> Iterator[None]:
    inner = type(module).forward

    @functools.wraps(inner)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return seen.twice(inner(self, *args, **kwargs))

    with attribute(type(module), "forward", forward):
        yield


@contextmanager
def wrapt_class_forward(module: nn.Module, seen: Seen) -> Iterator[None]:
    def around(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        return seen.twice(wrapped(*args, **kwargs))

    with attribute(type(module), "forward", wrapt.FunctionWrapper(type(module).forward, around)):
        yield


@contextmanager
def subclass_call(module: nn.Module, seen: Seen) -> Iterator[None]:
    cls = type(module)

    class Sub(cls):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return seen.twice(super().__call__(*args, **kwargs))

    module.__class__ = Sub
    try:
        yield
    finally:
        module.__class__ = cls


@contextmanager
def call_impl(module: nn.Module, seen: Seen) -> Iterator[None]:
    inner = module._call_impl
    with attribute(module, "_call_impl", lambda *a, **k: seen.twice(inner(*a, **k))):
        yield


@contextmanager
def compiled(module: nn.Module, seen: Seen) -> Iterator[None]:
    inner = module._call_impl
    with attribute(module, "_compiled_call_impl", lambda *a, **k: seen.twice(inner(*a, **k))):
        yield


@contextmanager
def class_call(module: nn.Module, seen: Seen) -> Iterator[None]:
    inner = type(module).__call__
    with attribute(type(module), "__call__", lambda self, *a, **k: seen.twice(inner(self, *a, **k))):
        yield


@contextmanager
def forward_hook(module: nn.Module, seen: Seen) -> Iterator[None]:
    with module.register_forward_hook(lambda m, args, out: seen.twice(out)):
        yield


@contextmanager
def pre_hook(module: nn.Module, seen: Seen) -> Iterator[None]:
    with module.register_forward_pre_hook(lambda m, args: seen.twice(args)):
        yield


@contextmanager
def global_hook(module: nn.Module, seen: Seen) -> Iterator[None]:
    kind = type(module)
    hook = nn.modules.module.register_module_forward_hook(lambda m, a, out: seen.twice(out) if type(m) is kind else out)
    with hook:
        yield


@contextmanager
def backward_hook(module: nn.Module, seen: Seen) -> Iterator[None]:
    with module.register_full_backward_hook(lambda m, given, out: seen.twice(given)):
        yield


@contextmanager
def backward_pre_hook(module: nn.Module, seen: Seen) -> Iterator[None]:
    with module.register_full_backward_pre_hook(lambda m, out: seen.twice(out)):
        yield


class Doubled(nn.Module):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.seen.twice(weight)  # type: ignore[no-any-return]


@contextmanager
def parametrized(module: nn.Module, seen: Seen) -> Iterator[None]:
    if not isinstance(getattr(module, "weight", None), nn.Parameter):
        pytest.skip("it has no weight to parametrize")
    parametrize.register_parametrization(module, "weight", Doubled(seen))
    try:
        yield
    finally:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


WAYS = [
    instance_forward, class_forward, wrapped_class_forward, wrapt_class_forward, subclass_call, call_impl, compiled,
    class_call, forward_hook, pre_hook, global_hook, backward_hook, backward_pre_hook, parametrized,
]  # fmt: skip
