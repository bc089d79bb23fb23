"""A replacement found by structure is believed only after it agreed with the original: once per class, dtype and
device type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..checks import OutOfMemoryError
from ..dispatch import capturing
from ..modules import why_not_unwatched, why_torch_is_altered
from ..tolerances import ONE_CALL, SMALLEST_SCALE, TOLERANCES, gap
from .binding import forward_was_replaced

Key = tuple[Any, torch.dtype, str]
# Largest difference allowed, relative to the largest value of the original's result.
TOLERANCE = {getattr(torch, dtype): row.relative for (why, dtype, _), row in TOLERANCES.items() if why == ONE_CALL}

_verdicts: dict[Key, str] = {}


def agreement(got: Any, expected: Any) -> str:
    """Return "" when two results (tensors or tuples of them) agree, else what differs."""
    if isinstance(expected, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            return "results have another structure"
        return next((text for text in map(agreement, got, expected) if text), "")
    if not isinstance(expected, torch.Tensor):
        return "" if got is expected or got == expected else "results are not tensors and differ"
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape or got.dtype != expected.dtype:
        return f"result is {_shape(got)}, the original's is {_shape(expected)}"
    found = gap(expected.detach().double(), got.detach().double())
    if found.largest == math.inf:
        return "infinities or NaN at other places"
    allowed = TOLERANCE.get(expected.dtype, 0.0) * max(found.scale, SMALLEST_SCALE[ONE_CALL])
    if found.largest <= allowed:
        return ""
    return f"differs from the original by {found.largest:.2e}, allowed {allowed:.2e}"


@dataclass(frozen=True)
class Place:
    """Where a replacement is put: the device type of its tensors, and ``miss(reason)`` for calls that go to the
    original.
    """

    tensors: str
    miss: Callable[[str], None]


class Proof:
    """The proof of one replacement in one kernelized class.

    ``key`` stands for the code that is replaced, ``fast`` replaces ``original``, ``measure`` is the position of the
    argument whose dtype counts. ``proven`` are the dtypes proven so far; callers test them inline and call ``first``
    for any other.
    """

    def __init__(
        self, name: str, key: Any, fast: Callable[..., Any], original: Callable[..., Any], measure: int, place: Place
    ) -> None:
        self.name, self.key = name, (name, key)
        self.fast, self.original, self.measure, self.place = fast, original, measure, place
        self.proven = {
            dtype
            for (known, dtype, device), verdict in _verdicts.items()
            if known == self.key and device == place.tensors and not verdict
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args[self.measure].dtype in self.proven:
            return self.fast(*args, **kwargs)
        return self.first(*args, **kwargs)

    def first(self, *args: Any, **kwargs: Any) -> Any:
        """Run the original, and compare the replacement with it unless that was done before."""
        value = args[self.measure]
        if torch.compiler.is_compiling() or value.device.type != self.place.tensors:
            return self.original(*args, **kwargs)
        found: Key = (self.key, value.dtype, value.device.type)
        verdict = _verdicts.get(found)
        waiting = _not_now(args) if verdict is None else ""
        result = self.original(*args, **kwargs)
        if waiting:
            self.place.miss(f"{self.name}: {waiting}")
            return result
        if verdict is None:
            verdict = _verdicts[found] = _compare(self.fast, args, kwargs, result)
        if verdict:
            self.place.miss(f"{self.name} in {str(value.dtype).removeprefix('torch.')} is not proven: {verdict}")
        else:
            self.proven.add(value.dtype)
        return result


def _compare(fast: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any) -> str:
    with torch.no_grad():
        try:
            return agreement(fast(*args, **kwargs), expected)
        except OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the first run raises is the verdict; kept and counted
            return f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _not_now(args: tuple[Any, ...]) -> str:
    """Say why both versions cannot be run now: a probe may neither be captured nor run twice what other people put in.

    The question is asked until there is a verdict, so all that could tell is looked at.
    """
    if capturing():
        return "not proven yet and a stream is being captured"
    reason = why_torch_is_altered() or next(filter(None, map(_why_it_would_tell, args)), "")
    return f"not proven yet and {reason}" if reason else ""


def _why_it_would_tell(argument: Any) -> str:
    """Say what of somebody else's runs below a module; of the module itself its weights alone are asked for."""
    if not isinstance(argument, nn.Module):
        return ""
    for module in argument.modules():
        reason = "its weights are computed" if "parametrizations" in module._modules else ""
        if not reason and module is not argument:
            replaced = forward_was_replaced(type(module))
            reason = "the forward of its class was replaced" if replaced else why_not_unwatched(module)
        if reason:
            return f"of {type(module).__name__}: {reason}"
    return ""


def forget() -> None:
    """Drop all verdicts (tests, or after amd_ops.refresh())."""
    _verdicts.clear()


def _shape(value: Any) -> str:
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
