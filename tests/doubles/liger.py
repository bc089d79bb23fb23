"""A stand-in for liger-kernel 0.8.5 that runs on a CPU: its autograd functions, their signatures and their traps.

    with fake_liger() as double:
        ...
        assert double.calls == ["LigerRMSNormFunction"]

Like the real one it rotates in place, writes gradients over what it saved, answers in the input's dtype and reads one
half of each table. Stricter than the real one it refuses whatever that would copy, and every use of those traps that a
caller could notice: tensors that somebody else holds too, gradients through them, a weight of another dtype.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LONGEST = 65536
HOMES = {
    "LigerRMSNormFunction": "rms_norm",
    "LigerFusedAddRMSNormFunction": "fused_add_rms_norm",
    "LigerFusedGateUpSiLUMulFunction": "swiglu",
    "LigerGELUMulFunction": "geglu",
    "LigerRopeFunction": "rope",
}


class Violation(AssertionError):
    """A call that real liger would refuse, or answer wrongly, or for which it would write over somebody's memory."""


@dataclass
class Double:
    """What the installed stand-in records, and how it is broken.

    missing: functions that do not exist. wrong: function -> what to do to its (first) result. raises: function ->
    exception. import_error: raised by the import of any of its modules. whole_heads: without partial rotation.
    tolerated: violations do not fail the test at the end.
    """

    missing: frozenset[str] = frozenset()
    wrong: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    wrong_gradient: frozenset[str] = frozenset()
    raises: dict[str, Exception] = field(default_factory=dict)
    import_error: Exception | None = None
    whole_heads: bool = False
    tolerated: bool = False
    calls: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def require(self, condition: bool, message: str) -> None:
        """Record and raise a Violation unless ``condition`` holds."""
        if not condition:
            self.violations.append(message)
            raise Violation(message)

    def enter(self, name: str, *tensors: Tensor) -> None:
        """The start of every forward."""
        self.calls.append(name)
        if name in self.raises:
            raise self.raises[name]
        for tensor in tensors:
            self.require(tensor.dtype in FLOATS, f"{name}: {tensor.dtype}")
            self.require(tensor.is_contiguous(), f"{name}: strides {tensor.stride()} would be copied")
            self.require(tensor.shape[-1] <= LONGEST, f"{name}: rows of {tensor.shape[-1]}")
            self.require(tensor.numel() > 0, f"{name}: empty")

    def leave(self, name: str, result: Tensor) -> Tensor:
        """The end of every forward."""
        return self.wrong[name](result) if name in self.wrong else result

    def gradient(self, name: str, result: Tensor) -> Tensor:
        """The end of every backward."""
        return result * 1.1 if name in self.wrong_gradient else result


def _norm(double: Double, name: str, x: Tensor, w: Tensor, eps: float, offset: float, mode: str) -> Tensor:
    double.require((mode, offset) in (("llama", 0.0), ("gemma", 1.0), ("gemma", 0.0)), f"{name}: {mode}, {offset}")
    double.require(mode == "gemma" or w.dtype == x.dtype, f"{name}: weight {w.dtype}, input {x.dtype}")
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    if mode == "llama":
        normed = normed.to(x.dtype).float()
    return double.leave(name, (normed * (w.float() + offset)).to(x.dtype))


def _norm_gradient(x: Tensor, w: Tensor, dy: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    x32, grad = x.float(), dy.float() * (w.float() + offset)
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    normed = x32 * scale
    dx = scale * (grad - normed * (grad * normed).mean(-1, keepdim=True))
    return dx.to(x.dtype), (dy.float() * normed).flatten(0, -2).sum(0).to(w.dtype)


def _norms(double: Double) -> dict[str, type[torch.autograd.Function]]:
    """The norms, with the real argument names."""

    class LigerRMSNormFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):  # type: ignore[no-untyped-def]
            name = "LigerRMSNormFunction"
            double.enter(name, X, W)
            double.require(not in_place, f"{name}: in_place would write over the output's gradient")
            ctx.save_for_backward(X, W)
            ctx.rest = eps, offset
            return _norm(double, name, X, W, eps, offset, casting_mode)

        @staticmethod
        def backward(ctx, dY):  # type: ignore[no-untyped-def]
            dx, dw = _norm_gradient(*ctx.saved_tensors, dY, *ctx.rest)
            return double.gradient("LigerRMSNormFunction", dx), dw, None, None, None, None, None

    class LigerFusedAddRMSNormFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):  # type: ignore[no-untyped-def]
            name = "LigerFusedAddRMSNormFunction"
            double.enter(name, X, R, W)
            double.require(not in_place, f"{name}: in_place would write over the output's gradient")
            total = X + R
            ctx.save_for_backward(total, W)
            ctx.rest = eps, offset
            return _norm(double, name, total, W, eps, offset, casting_mode), total

        @staticmethod
        def backward(ctx, dY, dS_out):  # type: ignore[no-untyped-def]
            dx, dw = _norm_gradient(*ctx.saved_tensors, dY, *ctx.rest)
            dx = double.gradient("LigerFusedAddRMSNormFunction", dx + dS_out)
            return dx, dx, dw, None, None, None, None, None

    return {one.__name__: one for one in (LigerRMSNormFunction, LigerFusedAddRMSNormFunction)}


def _activations(double: Double) -> dict[str, type[torch.autograd.Function]]:
    """The gated activations, with the real argument names."""

    class LigerFusedGateUpSiLUMulFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y, in_place=False):  # type: ignore[no-untyped-def]
            name = "LigerFusedGateUpSiLUMulFunction"
            double.enter(name, y)
            double.require(not in_place, f"{name}: in_place would write over the input")
            ctx.save_for_backward(y)
            gate, up = y.chunk(2, -1)
            return double.leave(name, F.silu(gate.float()).to(y.dtype) * up)

        @staticmethod
        def backward(ctx, dc):  # type: ignore[no-untyped-def]
            gate, up = ctx.saved_tensors[0].float().chunk(2, -1)
            sig = torch.sigmoid(gate)
            parts = (dc.float() * up * (sig + gate * sig * (1 - sig)), dc.float() * gate * sig)
            return double.gradient("LigerFusedGateUpSiLUMulFunction", torch.cat(parts, -1).to(dc.dtype)), None

    class LigerGELUMulFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):  # type: ignore[no-untyped-def]
            double.enter("LigerGELUMulFunction", a, b)
            needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
            double.require(not needed, "LigerGELUMulFunction: its backward would write over the inputs")
            return double.leave("LigerGELUMulFunction", F.gelu(a.float(), approximate="tanh").to(a.dtype) * b)

        @staticmethod
        def backward(ctx, dc):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    return {one.__name__: one for one in (LigerFusedGateUpSiLUMulFunction, LigerGELUMulFunction)}


def _rotations(double: Double) -> dict[str, type[torch.autograd.Function]]:
    """The rotation of this release, with the real argument names."""

    class LigerRopeFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):  # type: ignore[no-untyped-def]
            return _rotated(double, ctx, q, k, cos, sin)

        @staticmethod
        def backward(ctx, dq, dk):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    class WholeHeads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, cos, sin, position_ids=None, unsqueeze_dim=1):  # type: ignore[no-untyped-def]
            double.require(cos.shape[-1] == q.shape[-1], "LigerRopeFunction: this one rotates whole heads")
            return _rotated(double, ctx, q, k, cos, sin)

    return {"LigerRopeFunction": WholeHeads if double.whole_heads else LigerRopeFunction}


def _functions(double: Double) -> dict[str, type[torch.autograd.Function]]:
    made = {**_norms(double), **_activations(double), **_rotations(double)}
    return {name: function for name, function in made.items() if name not in double.missing}


def _rotated(double: Double, ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate in place what is dense as [B, S, H, D]; the first halves of the tables only."""
    name = "LigerRopeFunction"
    double.enter(name, q.transpose(1, 2), k.transpose(1, 2))
    double.require(not any(ctx.needs_input_grad[:2]), f"{name}: its backward would write over the gradients")
    double.require(q.dtype == k.dtype == cos.dtype == sin.dtype, f"{name}: {q.dtype}, {k.dtype}, {cos.dtype}")
    double.require(cos.dim() == 3 and cos.shape[0] in (1, q.shape[0]), f"{name}: tables {tuple(cos.shape)}")
    half = cos.shape[-1] // 2
    for x in (q, k):
        first, second = x[..., :half].clone(), x[..., half : 2 * half].clone()
        c, s = cos[..., :half].unsqueeze(1), sin[..., :half].unsqueeze(1)
        x[..., :half] = first * c - second * s
        x[..., half : 2 * half] = second * c + first * s
    ctx.mark_dirty(q, k)
    return double.leave(name, q), k


def _installed() -> dict[str, types.ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "liger_kernel"}


class _Broken(types.ModuleType):
    """A package whose modules fail to import."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.error = error

    @property
    def __path__(self) -> list[str]:
        raise self.error


@contextmanager
def fake_liger(**how: Any) -> Iterator[Double]:
    """Install the stand-in, broken as ``how`` says (see Double), and leave no trace. Violations fail the test."""
    double = Double(**how)
    before = _installed()
    for name in before:
        del sys.modules[name]
    package: types.ModuleType = types.ModuleType("liger_kernel.ops")
    if double.import_error is not None:
        package = _Broken("liger_kernel.ops", double.import_error)
    else:
        package.__path__ = []
    root = types.ModuleType("liger_kernel")
    root.__path__ = []
    sys.modules.update({"liger_kernel": root, "liger_kernel.ops": package})
    if double.import_error is None:
        functions = _functions(double)
        for name, home in HOMES.items():
            module = types.ModuleType(f"liger_kernel.ops.{home}")
            module.__dict__.update({name: functions[name]} if name in functions else {})
            sys.modules[module.__name__] = module
    try:
        yield double
        if double.violations and not double.tolerated:
            raise AssertionError("liger was called against its contract:\n  " + "\n  ".join(double.violations))
    finally:
        for name in _installed():
            del sys.modules[name]
        sys.modules.update(before)
