"""Is this function the rotary embedding of q and k in the rotate-half layout? By its vocabulary, then by computing."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..ops.rope import eager_rope
from . import rewrite

_METHODS = {"unsqueeze", "chunk", "float", "to", "type_as", "split", "size"}
_FUNCTIONS = {"torch.cat", "torch.concat", "torch.chunk", "torch.split"}
_STATEMENTS = (ast.Assign, ast.AnnAssign, ast.Return)


@dataclass(frozen=True)
class Rotary:
    """``dim`` is where cos and sin are unsqueezed by default; ``flat`` means that they come as [S, R], without a
    batch.
    """

    dim: int
    flat: bool


def match(function: Any) -> Rotary | None:
    """Return how a function applies rotary embeddings, or None when it is not sure that it does just that."""
    plain = _behind(function)
    return None if plain is None else _match(plain)


def _behind(function: Any) -> Callable[..., Any] | None:
    """Return the function itself, or the one that a module of the ``kernels`` library calls and nothing else.

    That library makes a module of a function under ``use_kernel_forward_from_hub``, so that a kernel can take its
    place; once one has, the module is not the function any more. A decorator that hands the function back as it is
    (transformers 5 without that library) leaves the very function, whatever is written above it.
    """
    if inspect.isfunction(function):
        return function if inspect.unwrap(function) is function else None
    if not isinstance(function, nn.Module) or "forward" in vars(function):
        return None
    forward = type(function).forward
    if not inspect.isfunction(forward):
        return None
    cells = dict(zip(forward.__code__.co_freevars, forward.__closure__ or (), strict=True))
    try:
        text = [ast.unparse(statement) for statement in rewrite.body(rewrite.parse(forward))]
    except rewrite.Unreadable:
        return None
    for name, cell in cells.items():
        if text == [f"return {name}(*args, **kwargs)"]:
            return _behind(cell.cell_contents)
    return None


@lru_cache(maxsize=256)
def _match(function: Callable[..., Any]) -> Rotary | None:
    try:
        if not _pure(function, 0):
            return None
    except rewrite.Unreadable:
        return None
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) < 4 or any(p.default is p.empty for p in parameters[4:]):
        return None
    for candidate in (Rotary(1, False), Rotary(2, False), Rotary(1, True)):
        if _computes(function, candidate):
            return candidate
    return None


def _pure(function: Callable[..., Any], depth: int) -> bool:
    """Straight-line code that calls only tensor methods and one level of helpers of the same kind."""
    node = rewrite.parse(function)
    if inspect.unwrap(function) is not function or not all(
        isinstance(statement, _STATEMENTS) for statement in rewrite.body(node)
    ):
        return False
    return all(_allowed(call, function, depth) for call in rewrite.calls(ast.Module(rewrite.body(node), [])))


def _allowed(call: ast.Call, function: Callable[..., Any], depth: int) -> bool:
    name = rewrite.dotted(call.func)
    if name in _FUNCTIONS or (isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS):
        return True
    helper = function.__globals__.get(name)
    return depth == 0 and inspect.isfunction(helper) and _pure(helper, 1)


def _computes(function: Callable[..., Any], rotary: Rotary) -> bool:
    generator = torch.Generator().manual_seed(0)
    batch, heads, kv, length, width = 2, 4, 2, 3, 8
    q, k = (torch.randn(batch, n, length, width, dtype=torch.float64, generator=generator) for n in (heads, kv))
    angles = torch.randn(
        *([] if rotary.flat else [batch]), length, width // 2, dtype=torch.float64, generator=generator
    )
    cos, sin = (torch.cat((f(angles), f(angles)), dim=-1) for f in (torch.cos, torch.sin))
    if rotary.dim == 2:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    try:
        got = function(q, k, cos, sin)
    except Exception:  # noqa: BLE001 - a function that cannot take these shapes is simply not this one
        return False
    expected = eager_rope(q, k, *((cos[None], sin[None]) if rotary.flat else (cos, sin)), rotary.dim)
    return (
        isinstance(got, tuple)
        and len(got) == 2
        and all(
            g.shape == e.shape and torch.allclose(g, e, rtol=1e-9, atol=1e-12)
            for g, e in zip(got, expected, strict=True)
        )
    )
