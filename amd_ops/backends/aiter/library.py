"""Finding functions of aiter, and learning their argument names, in whatever version is installed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

from .. import Unusable

HALF = (torch.float16, torch.bfloat16)
_TRITON = "aiter.ops.triton."
_TRITON_HOMES = {
    "rms_norm": ("normalization.rmsnorm", "rmsnorm"),
    "rmsnorm2d_fwd_with_add": ("normalization.rmsnorm", "rmsnorm"),
    "rope_cached_thd_positions_2c_fwd": ("rope.rope", "rope"),
    "fused_silu_mul": ("activation",),
    "flash_attn_func": ("attention.mha", "mha"),
    "flash_attn_varlen_func": ("attention.mha", "mha"),
}
"""The modules of ``aiter.ops.triton`` that have had a function, newest first."""
_import_error: str | None = None


def forget() -> None:
    """Drop the verdict of the import."""
    global _import_error
    _import_error = None


def module_of(name: str) -> Any:
    """Import a module of aiter. Off ROCm, on unknown chips and half-built trees it raises nearly anything; keep the
    reason.
    """
    global _import_error
    if _import_error is not None:
        raise Unusable(_import_error)
    try:
        return importlib.import_module(name)
    except Exception as error:
        text = str(error).strip().splitlines()
        reason = f"import {name} failed: {type(error).__name__}: {text[0][:160] if text else ''}".rstrip(": ")
        if name == "aiter":
            _import_error = reason
        raise Unusable(reason) from error


def function_of(name: str, home: str = "aiter") -> tuple[Callable[..., Any], tuple[str, ...]]:
    """Return a public function of aiter and its argument names (from the registered schema where the wrapper hides
    them). Where its home is gone, aiter itself may still have it.
    """
    root = module_of("aiter")
    try:
        owner = module_of(home)
    except Unusable:
        # The functions of aiter.ops.triton have namesakes among those of aiter itself.
        if home.startswith(_TRITON) or not hasattr(root, name):
            raise
        owner = root
    found = getattr(owner, name, None)
    if found is None:
        raise Unusable(f"this aiter has no {name}")
    names = _names(name, found)
    if names is None:
        raise Unusable(f"the arguments of aiter's {name} cannot be read")
    return found, names


def _names(name: str, function: Callable[..., Any]) -> tuple[str, ...] | None:
    try:
        parameters = inspect.signature(function).parameters.values()
        if all(p.kind is p.POSITIONAL_OR_KEYWORD or p.kind is p.KEYWORD_ONLY for p in parameters):
            return tuple(p.name for p in parameters)
    except (TypeError, ValueError):
        pass  # a builtin: the schema below decides
    packet = getattr(torch.ops.aiter, name, None)
    if packet is None:
        return None
    return tuple(argument.name for argument in packet.default._schema.arguments if argument.name != "dummy")


def expect(name: str, names: tuple[str, ...], first: tuple[str, ...], *needed: str) -> None:
    """Raise unless the argument names begin with ``first`` and contain ``needed``."""
    if names[: len(first)] != first or not set(needed) <= set(names):
        raise Unusable(f"aiter's {name}({', '.join(names)}) is not a form known here")


def triton_function(name: str, first: tuple[str, ...], *needed: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """Return a function of ``aiter.ops.triton`` and its argument names, which must begin with ``first``."""
    reasons = []
    for home in _TRITON_HOMES[name]:
        try:
            found, names = function_of(name, _TRITON + home)
        except Unusable as reason:
            reasons.append(str(reason))
        else:
            expect(f"Triton {name}", names, first, *needed)
            return found, names
    raise Unusable("; ".join(dict.fromkeys(reasons)))
