"""Arguments and results of a call, as JSON beside tensors: what a capture file holds.

A key-value cache is kept as the object that it is: its class, which must be transformers' own, and its attributes, of
which only one layer's tensors are kept. So what comes back takes the same code paths as the cache of the captured call.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

_PLAIN = (bool, int, float, str)
_PER_LAYER = ("layers", "key_cache", "value_cache")
"""Attributes of a cache that hold one entry per layer (the last two before transformers 4.54)."""
_CACHE = re.compile(r"(Cache|Layer)$")


class Unsaveable(ValueError):
    """An argument of a call cannot be kept; the text names its type."""


def encode(value: Any, tensors: dict[str, torch.Tensor] | None, layer: int | None) -> Any:
    """Return a JSON value for ``value``; its tensors go to ``tensors`` (None: they become None).

    ``layer`` is whose part of a cache is kept; None keeps no tensor of it. Raises Unsaveable.
    """
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        if tensors is None:
            return None
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, (torch.dtype, torch.device)):
        return {"torch": [type(value).__name__, str(value).removeprefix("torch.")]}
    if isinstance(value, slice):
        return {"slice": [encode(item, tensors, layer) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        pairs = [[encode(key, tensors, layer), encode(item, tensors, layer)] for key, item in value.items()]
        return {"dict": pairs} if type(value) is dict else {"output": [_class(value), pairs]}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [encode(item, tensors, layer) for item in value]}
    if isinstance(value, type):
        return {"class": _class(value)}
    if is_cache(value):
        return {"object": [_class(value), _state(value, tensors, layer)]}
    raise Unsaveable(f"an argument is a {type(value).__name__}, which cannot be kept")


def positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many positions a call is about; 0 where nothing tells.

    Hidden states are [..., positions, width], ids [..., positions]; a mask tells what is attended to, too.
    """
    named = (kwargs[name] for name in sorted(kwargs) if "mask" not in name)
    first = next((value for value in (*args, *named) if isinstance(value, torch.Tensor)), None)
    if first is None:
        return 0
    axis = -2 if first.is_floating_point() else -1
    return first.shape[axis] if first.dim() >= -axis else 1


def is_cache(value: Any) -> bool:
    """Return whether ``value`` is a key-value cache, or a layer of one, of a class of transformers' own."""
    kind = type(value)
    return kind.__module__.startswith("transformers.") and bool(_CACHE.search(kind.__name__)) and not callable(value)


def _class(value: Any) -> list[str]:
    kind = value if isinstance(value, type) else type(value)
    if not kind.__module__.startswith("transformers."):
        raise Unsaveable(f"an argument is a {kind.__name__} of {kind.__module__}, which cannot be kept")
    return [kind.__module__, kind.__qualname__]


def _state(cache: Any, tensors: dict[str, torch.Tensor] | None, layer: int | None) -> dict[str, Any]:
    """Encode a cache's attributes. What cannot be kept is left out: a copy that lacks what is read says so itself."""
    found = {}
    for name, value in vars(cache).items():
        try:
            if name in _PER_LAYER and isinstance(value, list):
                found[name] = {"list": [encode(item, tensors if index == layer else None, layer)
                                        for index, item in enumerate(value)]}  # fmt: skip
            else:
                found[name] = encode(value, tensors, layer)
        except Unsaveable:
            continue
    return found


def decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return what `encode` was given. Caches that are written in place come back with tensors of their own."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return _DECODERS[kind](content, tensors)


def _output(content: Any, tensors: dict[str, torch.Tensor]) -> Any:
    kind, pairs = content
    return _found(kind)(**{key: decode(item, tensors) for key, item in pairs if item is not None})


def _object(content: Any, tensors: dict[str, torch.Tensor]) -> Any:
    kind, state = content
    cls = _found(kind)
    made = cls.__new__(cls)
    in_place = not cls.__name__.startswith("Dynamic")
    for name, item in state.items():
        value = decode(item, tensors)
        if isinstance(value, list):  # the tensors of the layers lie in lists before transformers 4.54
            value = [_own(one, in_place) for one in value]
        vars(made)[name] = _own(value, in_place)
    return made


def _own(value: Any, in_place: bool) -> Any:
    if isinstance(value, torch.Tensor) and (in_place or not value.is_floating_point()):
        return value.clone()
    return value


def _found(kind: list[str]) -> Any:
    module, qualname = kind
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


_DECODERS: dict[str, Callable[[Any, dict[str, torch.Tensor]], Any]] = {
    "tensor": lambda content, tensors: tensors[content],
    "torch": lambda content, _: torch.device(content[1]) if content[0] == "device" else getattr(torch, content[1]),
    "slice": lambda content, tensors: slice(*(decode(item, tensors) for item in content)),
    "list": lambda content, tensors: [decode(item, tensors) for item in content],
    "tuple": lambda content, tensors: tuple(decode(item, tensors) for item in content),
    "dict": lambda content, tensors: {decode(key, tensors): decode(item, tensors) for key, item in content},
    "class": lambda content, _: _found(content),
    "output": _output,
    "object": _object,
}


def caches_of(value: Any) -> Iterator[Any]:
    """Yield the caches among the arguments of a call."""
    if is_cache(value):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from caches_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from caches_of(item)


def float_tensors(value: Any, *, caches: bool = False) -> list[torch.Tensor]:
    """Return the float tensors of a result, in order; those in caches only with ``caches``."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if is_cache(value):
        return float_tensors(vars(value), caches=True) if caches else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in float_tensors(item, caches=caches)]
    return []
