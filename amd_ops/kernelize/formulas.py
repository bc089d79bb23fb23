"""Is this class an RMS norm (of which form?), a gated MLP or a gated activation? By what its forward does and returns;
a norm also by what it computes.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.norm import FORMS, eager_rms_norm
from . import rewrite

# Everything an RMS norm may call. One word outside this list and the class is not touched.
_CALLS = {"to", "float", "type_as", "pow", "square", "mean", "rsqrt", "sqrt"}
_STATEMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return)
_SAMPLE = (64, 256)
_EPS = 1e-5
# dtypes of (input, weight); the first two decide.
_CASES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
)
_LARGEST_SHARE = 0.02


@dataclass(frozen=True)
class Norm:
    """An RMS norm: its input's parameter name, the names of its weight and epsilon (or the constant), and its form."""

    argument: str
    weight: str
    eps: str | float
    form: str


def looks_normalising(node: ast.FunctionDef) -> bool:
    """Say whether a forward takes a mean and a root: only then is it worth a reason when it is declined."""
    called = {call.func.attr for call in rewrite.calls(node) if isinstance(call.func, ast.Attribute)}
    return ("mean" in called and bool(called & {"rsqrt", "sqrt"})) or "_norm" in called


def match_norm(cls: type[nn.Module], node: ast.FunctionDef) -> Norm | str:
    """Return the norm that a class is, or the reason why that is not sure."""
    if len(node.args.args) != 2 or node.args.vararg or node.args.kwarg or node.args.kwonlyargs:
        return "forward takes more than one tensor"
    owner, argument = (a.arg for a in node.args.args)
    parts = _Parts(cls, owner)
    problem = parts.read(node)
    if problem:
        return problem
    names = parts.data
    if parts.eps is None:
        return "no epsilon is added under the root"
    weights = names - {parts.eps} if isinstance(parts.eps, str) else names
    if len(weights) != 1:
        return f"expected one weight, forward reads {', '.join(sorted(weights)) or 'none'}"
    norm = Norm(argument, weights.pop(), parts.eps, "")
    form = _form(cls, norm)
    return form if form not in FORMS else Norm(norm.argument, norm.weight, norm.eps, form)


class _Parts:
    """What a forward and the helper methods it calls read from self, and whether they stay within the vocabulary."""

    def __init__(self, cls: type[nn.Module], owner: str) -> None:
        self.cls, self.owner = cls, owner
        self.data: set[str] = set()
        self.eps: str | float | None = None
        self.mean = self.root = False

    def read(self, node: ast.FunctionDef, depth: int = 0) -> str:
        """Read one method; returns the reason why it is no RMS norm, or ""."""
        for statement in rewrite.body(node):
            if not isinstance(statement, _STATEMENTS):
                return f"forward has a {type(statement).__name__.lower()} statement"
        owner = node.args.args[0].arg
        for item in [i for statement in rewrite.body(node) for i in ast.walk(statement)]:
            problem = self._item(item, owner, depth)
            if problem:
                return problem
        return "" if depth or (self.mean and self.root) else "forward takes no mean and root"

    def _item(self, item: ast.AST, owner: str, depth: int) -> str:
        if isinstance(item, ast.Call):
            return self._call(item, owner, depth)
        if isinstance(item, ast.BinOp) and isinstance(item.op, ast.Pow):
            return "forward uses ** in place of pow"
        if isinstance(item, ast.IfExp | ast.Lambda | ast.Subscript | ast.ListComp):
            return f"forward has a {type(item).__name__}"
        if (
            isinstance(item, ast.Attribute)
            and rewrite.is_self_attribute(item, owner)
            and not callable(getattr(self.cls, item.attr, None))
        ):
            self.data.add(item.attr)
        return ""

    def _call(self, call: ast.Call, owner: str, depth: int) -> str:
        func = call.func
        if isinstance(func, ast.Attribute) and rewrite.is_self_attribute(func, owner):
            method = getattr(self.cls, func.attr, None)
            if depth or method is None:
                return f"forward calls self.{func.attr}"
            return self.read(rewrite.parse(method), depth + 1)
        name = func.attr if isinstance(func, ast.Attribute) else rewrite.dotted(func)
        if name not in _CALLS:
            return f"forward calls {name or 'an expression'}"
        self.mean |= name == "mean"
        if name in ("rsqrt", "sqrt"):
            self.root = True
            self._epsilon(call)
        return ""

    def _epsilon(self, call: ast.Call) -> None:
        """Find what is added under the root: self.eps or a constant."""
        inside = [*call.args, *([call.func.value] if isinstance(call.func, ast.Attribute) else [])]
        for item in [i for part in inside for i in ast.walk(part)]:
            if isinstance(item, ast.BinOp) and isinstance(item.op, ast.Add):
                for side in (item.left, item.right):
                    if isinstance(side, ast.Constant) and isinstance(side.value, float):
                        self.eps = side.value
                    elif (
                        isinstance(side, ast.Attribute)
                        and isinstance(side.value, ast.Name)
                        and side.value.id != "torch"
                    ):
                        self.eps = side.attr


def _form(cls: type[nn.Module], norm: Norm) -> str:
    """Find the form by computing: a stand-in with random weights against the four formulas, in fp32 and in bf16.

    fp32 must agree to rounding. In bf16 the right form agrees in (nearly) every bit, the others in about two of three.
    Returns the form or the reason why none is sure.
    """
    stand_in = cls.__new__(cls)
    nn.Module.__init__(stand_in)
    if isinstance(norm.eps, str):
        setattr(stand_in, norm.eps, _EPS)
    shares: dict[str, list[float]] = {form: [] for form in FORMS}
    for dtypes in _CASES:
        expected, computed = _compute(stand_in, norm, *dtypes)
        if isinstance(expected, str):
            return expected
        for form in FORMS:
            shares[form].append(_difference(computed[form], expected, dtypes[0]))
    right = [form for form, share in shares.items() if max(share[:2]) <= _LARGEST_SHARE]
    if not right:
        return "no form of RMS norm computes the same"
    # Mixed dtypes only tell forms apart that agree otherwise: not every module is written for them.
    return min(right, key=lambda form: sum(shares[form]))


def _compute(
    stand_in: nn.Module, norm: Norm, dtype: torch.dtype, weight_dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_SAMPLE[1], generator=generator).to(weight_dtype)
    x = (3 * torch.randn(_SAMPLE, generator=generator)).to(dtype)
    setattr(stand_in, norm.weight, nn.Parameter(weight))
    eps = _EPS if isinstance(norm.eps, str) else norm.eps
    with torch.no_grad():
        try:
            expected = type(stand_in).forward(stand_in, x)
        except Exception as error:  # noqa: BLE001 - a forward that needs more than weight and epsilon is not ours
            return f"forward needs more than {norm.weight} and epsilon ({type(error).__name__})", {}
        return expected, {form: eager_rms_norm(x, weight, eps, form) for form in FORMS}


def _difference(got: Any, expected: Any, dtype: torch.dtype) -> float:
    """Share of elements that differ: beyond rounding in fp32, in any bit in bf16. 1 for another shape or dtype."""
    if not isinstance(expected, torch.Tensor) or got.shape != expected.shape or got.dtype != expected.dtype:
        return 1.0
    if dtype is torch.float32:
        return float((~torch.isclose(got, expected, rtol=1e-5, atol=1e-6)).float().mean())
    return float((got != expected).float().mean())


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
    returned = rewrite.single_expression(node)
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
    if rewrite.dotted(node.func) in _SILU:
        return "", inner
    if rewrite.is_self_attribute(node.func, owner):
        assert isinstance(node.func, ast.Attribute)
        return node.func.attr, inner
    return "", None


def _method_call(node: ast.AST, owner: str) -> tuple[str, ast.expr] | None:
    """Return (name, argument) of ``self.name(argument)``."""
    if (
        isinstance(node, ast.Call)
        and not node.keywords
        and len(node.args) == 1
        and rewrite.is_self_attribute(node.func, owner)
    ):
        assert isinstance(node.func, ast.Attribute)
        return node.func.attr, node.args[0]
    return None


def _is_argument(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def looks_gated(node: ast.FunctionDef) -> bool:
    """Say whether a one-tensor forward halves its input and multiplies: only then is a decline worth a reason."""
    called = {rewrite.dotted(call.func).rsplit(".", 1)[-1] for call in rewrite.calls(node)}
    return bool(called & {"chunk", "split"}) and bool(called & {"silu", "gelu"}) and len(node.args.args) == 2


def match_activation(cls: type[nn.Module], node: ast.FunctionDef) -> GatedActivation | str:
    """Return the gated activation that a class without parameters is, found by computing; or the reason why not."""
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute) and rewrite.is_self_attribute(item, node.args.args[0].arg):
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
