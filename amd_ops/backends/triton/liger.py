"""liger-kernel's Triton functions behind the contract of this tier (read from its 0.8.5; found by argument names).

What its functions do that ours must not, and what is made of it here:

- they copy what is not contiguous: such calls are declined, ours read strides;
- the norms answer in the input's dtype, and by default write the input's gradient over the output's: told not to;
- the GELU reads two dense halves, and its backward writes over them: one row at a time, and no gradients;
- the rotation works in place, also in the backward: it gets copies, and no gradients;
- it reads one half of each table: both must be equal, which is looked up once per table (one host sync).

Imports no liger before ``make`` is called.
"""

from __future__ import annotations

import importlib
import inspect
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate, capturing
from .. import Unusable
from ..probing import made_up, needs_grad, prove, wanting
from . import norm, rope
from .common import apply, unfit
from .target import Target

LONGEST = 65536
"""The longest row that liger holds in one block."""
_BLOCK_ROWS, _BLOCK_WIDTH = 32768, 256
"""From so many rows of at most this width on, its norm takes another kernel."""


def _function(module: str, name: str, *arguments: str) -> tuple[Any, tuple[str, ...]]:
    """An autograd function of liger and its argument names, which must begin with ``arguments``."""
    home = f"liger_kernel.ops.{module}"
    try:
        importlib.import_module("liger_kernel")
        found = getattr(importlib.import_module(home), name, None)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "liger_kernel":
            raise Unusable("liger_kernel is not installed") from error
        text = str(error).strip().splitlines()
        raise Unusable(
            f"import {home} failed: {type(error).__name__}: {text[0][:160] if text else ''}".rstrip(": ")
        ) from error
    if found is None:
        raise Unusable(f"this liger_kernel has no {name}")
    names = tuple(inspect.signature(found.forward).parameters)[1:]
    if names[: len(arguments)] != arguments:
        raise Unusable(f"liger's {name}({', '.join(names)}) is not a form known here")
    return found, names


def _rounding(form: str, x: Tensor, weight: Tensor) -> tuple[float, str] | str:
    """(offset, casting mode) with which liger rounds where the stock module of this form does, or why it cannot."""
    if form in ("gemma", "fp32_weight"):
        return (1.0 if form == "gemma" else 0.0), "gemma"
    if weight.dtype is not x.dtype:
        return f"the weight is {weight.dtype}, the input {x.dtype}, and liger answers in the input's dtype"
    return 0.0, "llama"


class _Norm:
    """rms_norm and add_rms_norm; ``more`` is the residual."""

    def __init__(self, function: Any, reference: Callable[..., Any], target: Target) -> None:
        self.function, self.reference, self.target = function, reference, target

    def check(self, x: Tensor, weight: Tensor, form: str, *more: Tensor) -> str:
        reason = norm.misfit(x, weight, form, *more)
        if reason:
            return reason
        rounding = _rounding(form, x, weight)
        if isinstance(rounding, str):
            return rounding
        if x.shape[-1] > LONGEST:
            return f"liger takes rows of up to {LONGEST}"
        return unfit(self.target, x, weight, *more) or _strided(x, weight, *more)

    def run(self, tensors: tuple[Tensor, ...], eps: float, form: str) -> Any:
        """``tensors`` are x, (residual,) weight; False: no gradient is written over another one."""
        rounding = _rounding(form, tensors[0], tensors[-1])
        assert isinstance(rounding, tuple)
        return apply(self.function, *tensors, eps, *rounding, False)

    def variant(self, x: Tensor, weight: Tensor, form: str, *more: Tensor) -> Hashable:
        grads = tuple(t.requires_grad for t in (x, weight, *more)) if needs_grad(x, weight, *more) else ()
        return form, x.dtype, weight.dtype, x.shape[-1], _in_blocks(x), grads

    def probe(self, x: Tensor, weight: Tensor, eps: float, form: str, *more: Tensor) -> str:
        samples = norm.made_up_norm(_BLOCK_ROWS + 3 if _in_blocks(x) else 5, x, weight, *more)
        return prove(lambda *made: self.run(made[:-2], *made[-2:]), self.reference, samples, (eps, form))


def _in_blocks(x: Tensor) -> bool:
    return x.shape[-1] <= _BLOCK_WIDTH and x.numel() >= _BLOCK_ROWS * x.shape[-1]


def _strided(*tensors: Tensor) -> str:
    return "" if all(t.is_contiguous() for t in tensors) else "a tensor is not contiguous and liger would copy it"


def _rms_norm(reference: Callable[..., Any], target: Target) -> Candidate:
    function, _ = _function("rms_norm", "LigerRMSNormFunction", "X", "W", "eps", "offset", "casting_mode", "in_place")
    made = _Norm(function, reference, target)
    return Candidate(
        lambda x, weight, eps, form: made.run((x, weight), eps, form),
        lambda x, weight, eps, form: made.check(x, weight, form),
        lambda x, weight, eps, form: made.variant(x, weight, form),
        made.probe,
    )


def _add_rms_norm(reference: Callable[..., Any], target: Target) -> Candidate:
    arguments = ("X", "R", "W", "eps", "offset", "casting_mode", "in_place")
    function, _ = _function("fused_add_rms_norm", "LigerFusedAddRMSNormFunction", *arguments)
    made = _Norm(function, reference, target)
    return Candidate(
        lambda x, residual, weight, eps, form: made.run((x, residual, weight), eps, form),
        lambda x, residual, weight, eps, form: made.check(x, weight, form, residual),
        lambda x, residual, weight, eps, form: made.variant(x, weight, form, residual),
        lambda x, residual, weight, eps, form: made.probe(x, weight, eps, form, residual),
    )


def _gate(
    run: Callable[[Tensor], Tensor], limits: Callable[[Tensor], str], reference: Callable[..., Any], target: Target
) -> Candidate:
    """The candidate of a gated activation; ``limits`` says which calls this one function cannot take."""

    def check(x: Tensor) -> str:
        if x.dim() < 1 or x.shape[-1] % 2:
            return "the last dimension is odd"
        if x.shape[-1] > 2 * LONGEST:
            return f"liger takes halves of up to {LONGEST}"
        return unfit(target, x) or _strided(x) or limits(x)

    def probe(x: Tensor) -> str:
        rows = 1 if x.numel() == x.shape[-1] else 3
        return prove(run, reference, wanting([made_up((rows, x.shape[-1]), x.dtype, x.device, 1)], (x,)), ())

    return Candidate(run, check, lambda x: (x.dtype, x.shape[-1], needs_grad(x)), probe)


def _silu(reference: Callable[..., Any], target: Target) -> Candidate:
    """The function over gate and up in one tensor; False: its backward must not write over them."""
    function, _ = _function("swiglu", "LigerFusedGateUpSiLUMulFunction", "y", "in_place")
    return _gate(lambda x: apply(function, x, False), lambda x: "", reference, target)


def _gelu_tanh(reference: Callable[..., Any], target: Target) -> Candidate:
    function, _ = _function("geglu", "LigerGELUMulFunction", "a", "b")

    def limits(x: Tensor) -> str:
        if needs_grad(x):
            return "a gradient is needed and the backward of liger's GELU writes over its inputs"
        return "" if x.numel() == x.shape[-1] else "liger's GELU would copy both halves of more than one row"

    return _gate(lambda x: apply(function, *x.chunk(2, -1)), limits, reference, target)


class _Twins:
    """Which tables have two equal halves: one host sync per table, remembered by object and version."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[weakref.ref[Tensor], int, bool]] = {}

    def why_not(self, table: Tensor) -> str:
        """Return "" where both halves of ``table`` are equal, else what is wrong or not known."""
        if table.is_inference():
            return "tables of inference mode have no version, so that equal halves cannot be remembered"
        key, version = id(table), table._version
        found = self.known.get(key)
        if found is None or found[0]() is not table or found[1] != version:
            if capturing():
                return "the tables' halves have not been compared yet and a stream is being captured"
            half = table.shape[-1] // 2
            equal = torch.equal(table[..., :half], table[..., half:])
            found = weakref.ref(table, lambda _: self.known.pop(key, None)), version, equal
            self.known[key] = found
        return "" if found[2] else "the halves of a table differ and liger reads the first alone"


def _private(x: Tensor) -> Tensor:
    """[B, H, S, D] in new memory, dense as [B, S, H, D]: what liger works on in place."""
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


def _rope(reference: Callable[..., Any], target: Target) -> Candidate:
    function, names = _function("rope", "LigerRopeFunction", "q", "k", "cos", "sin")
    partial = "rotary_dim" in names
    twins = _Twins()

    def check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> str:
        reason = rope.misfit(q, k, cos, sin, dim)
        if reason:
            return reason
        if not q.dtype is k.dtype is cos.dtype:
            return f"q is {q.dtype}, k {k.dtype}, the tables {cos.dtype}, and liger answers in the inputs' dtype"
        if cos.shape[2] != q.shape[3] and not partial:
            return "this liger rotates whole heads only"
        if needs_grad(q, k):
            return "a gradient is needed and liger's backward writes over the gradients it is given"
        return unfit(target, q, k, cos, sin) or twins.why_not(cos) or twins.why_not(sin)

    def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        if dim == 2:
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        turned: tuple[Tensor, Tensor] = apply(function, _private(q), _private(k), cos, sin)
        return turned if dim == 1 else (turned[0].transpose(1, 2), turned[1].transpose(1, 2))

    def variant(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> Hashable:
        return q.dtype, q.shape[3], cos.shape[2], dim, cos.shape[0] > 1

    def probe(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> str:
        x, y, *tables = rope.made_up_rope(5, q, k, cos, dim)
        half = cos.shape[2] // 2
        return prove(run, reference, [x, y, *(torch.cat((t[..., :half],) * 2, -1) for t in tables)], (dim,))

    return Candidate(run, check, variant, probe)


_MAKERS: dict[str, Callable[[Callable[..., Any], Target], Candidate]] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "silu_and_mul": _silu,
    "gelu_tanh_and_mul": _gelu_tanh,
    "apply_rope": _rope,
}


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return liger's candidate of ``op`` or raise Unusable."""
    return _MAKERS[op](reference, target)
