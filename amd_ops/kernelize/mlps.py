"""Gated MLPs and gated activations, by the shape of what their forward returns."""

from __future__ import annotations

import ast
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from . import source

_SILU = {"F.silu", "nn.functional.silu", "torch.nn.functional.silu", "functional.silu"}


@dataclass(frozen=True)
class GatedMLP:
    """``down(act(gate(x)) * up(x))``: attribute names. ``act`` is "" where the forward calls F.silu itself."""

    argument: str
    gate: str
    up: str
    down: str
    act: str


@dataclass(frozen=True)
class GatedActivation:
    """``act(first half) * second half`` of one tensor: the parameter's name and the name of our op."""

    argument: str
    op: str


def match_mlp(node: ast.FunctionDef) -> GatedMLP | None:
    """Return the gated MLP that a forward is, written in one expression or over single-use locals."""
    if len(node.args.args) != 2 or node.args.vararg or node.args.kwarg or node.args.kwonlyargs:
        return None
    owner, argument = (a.arg for a in node.args.args)
    returned = source.single_expression(node)
    inside = _method_call(returned, owner) if returned is not None else None
    if inside is None:
        return None
    down, product = inside
    if not isinstance(product, ast.BinOp) or not isinstance(product.op, ast.Mult):
        return None
    # Only one order is the same computation in floating point as well: both are, a product commutes.
    for activated, plain in ((product.left, product.right), (product.right, product.left)):
        act, gate = _activation(activated, owner)
        up = _method_call(plain, owner)
        if gate is not None and up is not None and _is_argument(gate[1], argument) and _is_argument(up[1], argument):
            names = (gate[0], up[0], down)
            if len(set(names)) == 3:
                return GatedMLP(argument, *names, act)
    return None


def _activation(node: ast.expr, owner: str) -> tuple[str, tuple[str, ast.expr] | None]:
    """Return the activation's attribute name ("" for F.silu) and the (name, argument) of the projection inside it."""
    if not isinstance(node, ast.Call) or node.keywords or len(node.args) != 1:
        return "", None
    inner = _method_call(node.args[0], owner)
    if source.dotted(node.func) in _SILU:
        return "", inner
    if source.is_self_attribute(node.func, owner):
        assert isinstance(node.func, ast.Attribute)
        return node.func.attr, inner
    return "", None


def _method_call(node: ast.AST, owner: str) -> tuple[str, ast.expr] | None:
    """Return (name, argument) of ``self.name(argument)``."""
    if (
        isinstance(node, ast.Call)
        and not node.keywords
        and len(node.args) == 1
        and source.is_self_attribute(node.func, owner)
    ):
        assert isinstance(node.func, ast.Attribute)
        return node.func.attr, node.args[0]
    return None


def _is_argument(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def looks_gated(node: ast.FunctionDef) -> bool:
    """Say whether a one-tensor forward halves its input and multiplies: only then is a decline worth a reason."""
    called = {source.dotted(call.func).rsplit(".", 1)[-1] for call in source.calls(node)}
    return bool(called & {"chunk", "split"}) and bool(called & {"silu", "gelu"}) and len(node.args.args) == 2


def match_activation(cls: type[nn.Module], node: ast.FunctionDef) -> GatedActivation | str:
    """Return the gated activation that a class without parameters is, found by computing; or the reason why not."""
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute) and source.is_self_attribute(item, node.args.args[0].arg):
            return f"forward reads self.{item.attr}"
    argument = node.args.args[1].arg
    stand_in = cls.__new__(cls)
    nn.Module.__init__(stand_in)
    x = 2 * torch.randn(8, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = x.chunk(2, dim=-1)
    try:
        expected = cls.forward(stand_in, x)
    except Exception as error:  # noqa: BLE001 - a forward that cannot take one tensor is not ours
        return f"forward fails on one tensor ({type(error).__name__})"
    formulas = {
        "silu_and_mul": F.silu(first) * second,
        "gelu_and_mul": F.gelu(first) * second,
        "gelu_tanh_and_mul": F.gelu(first, approximate="tanh") * second,
    }
    for op, value in formulas.items():
        if (
            isinstance(expected, torch.Tensor)
            and expected.shape == value.shape
            and torch.allclose(expected, value, rtol=1e-9, atol=1e-12)
        ):
            return GatedActivation(argument, op)
    return "neither silu, gelu nor tanh gelu of the first half times the second"
