"""RMS norm, in the four forms that transformers' models use. They differ in half precision, so a form is never guessed.

    llama        w * (x32 / rms(x32)).to(x.dtype)            rounds before the weight
    gemma        ((x32 / rms(x32)) * (1 + w32)).to(x.dtype)  offset weight, one rounding
    fp32_weight  (w * (x32 / rms(x32))).to(x.dtype)          one rounding (olmo2, gpt_oss)
    t5           w * (x / rms(x32)), rounded to w.dtype before the weight only when that is half precision

x [..., D] of any float dtype, w [D], x32 = x in fp32. Tiers: aiter -> triton (ours) -> torch (F.rms_norm where it
computes the same) -> eager.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import Candidate
from ..torch_features import rounds_norms_once, tried
from .tiers import make_op

FORMS = ("llama", "gemma", "fp32_weight", "t5")
_HALF = (torch.float16, torch.bfloat16)
ROUNDS_OTHERWISE = "this torch has no rms_norm that rounds once, at its end"
_compiling = torch.compiler.is_dynamo_compiling


def eager_rms_norm(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
    """Plain formulas, in the order of operations of the stock modules: the reference."""
    if weight.shape != x.shape[-1:] or not x.is_floating_point():
        raise ValueError("unusable arguments")  # broadcasting would hide them; the public function names them
    x32 = x.to(torch.float32)
    scale = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    if form == "llama":
        return weight * (x32 * scale).to(x.dtype)
    if form == "gemma":
        return (x32 * scale * (1.0 + weight.float())).type_as(x)
    if form == "fp32_weight":
        return (weight * (x32 * scale)).to(x.dtype)
    if form != "t5":
        raise ValueError("unknown form")
    normed = x * scale
    return weight * (normed.to(weight.dtype) if weight.dtype in _HALF else normed)


def torch_rms_norm(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
    """F.rms_norm normalises in fp32 and rounds once, at its end: the forms differ in what may happen before that
    rounding.
    """
    shape = weight.shape
    if form == "llama":
        if x.dtype is torch.float32 and weight.dtype is torch.float32:
            return F.rms_norm(x, shape, weight, eps)
        return weight * F.rms_norm(x, shape, None, eps).to(x.dtype)  # autocast makes rms_norm return fp32
    if form == "gemma":
        return F.rms_norm(x.float(), shape, 1.0 + weight.float(), eps).type_as(x)
    if form == "fp32_weight" and weight.dtype is x.dtype:
        return F.rms_norm(x, shape, weight, eps).to(x.dtype)
    return eager_rms_norm(x, weight, eps, form)


def _sum(x: Tensor, residual: Tensor) -> Tensor:
    if x.shape != residual.shape or x.dtype is not residual.dtype:
        raise ValueError("unusable arguments")  # as above
    return residual + x


def eager_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> tuple[Tensor, Tensor]:
    """residual + x, then the plain norm."""
    total = _sum(x, residual)
    return eager_rms_norm(total, weight, eps, form), total


def torch_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> tuple[Tensor, Tensor]:
    """residual + x, then torch's norm. Never in place: hooks and recorders may hold the residual."""
    total = _sum(x, residual)
    return torch_rms_norm(total, weight, eps, form), total


_rms_norm = make_op(
    "rms_norm",
    "USE_OPTIMIZED_OPS",
    torch=tried(Candidate(torch_rms_norm), rounds_norms_once, ROUNDS_OTHERWISE),
    eager=eager_rms_norm,
)
_add_rms_norm = make_op(
    "add_rms_norm",
    "USE_OPTIMIZED_OPS",
    torch=tried(Candidate(torch_add_rms_norm), rounds_norms_once, ROUNDS_OTHERWISE),
    eager=eager_add_rms_norm,
)


@_rms_norm.public
def rms_norm(x: Tensor, weight: Tensor, eps: float, *, form: str = "llama") -> Tensor:
    """Normalise the last dimension of x by its root mean square and scale it.

    x [..., D], weight [D], eps >= 0, form one of FORMS (see the module text). Returns [..., D] in x's dtype; in the
    llama and t5 forms, as in the stock modules, in the promoted dtype of x and weight. Raises ArgumentError on
    unusable arguments.

    Examples:
        >>> amd_ops.rms_norm(torch.tensor([[3.0, -3.0]]), torch.tensor([1.0, 2.0]), 0.0)
        tensor([[ 1., -2.]])
    """
    if _compiling():
        return torch_rms_norm(x, weight, eps, form)
    if not eps >= 0.0:
        _diagnose("rms_norm", x, weight, eps, form)
    _rms_norm.calls += 1
    try:
        result: Tensor = _rms_norm.call(x, weight, eps, form)
    except TORCH_ERRORS:
        _diagnose("rms_norm", x, weight, eps, form)
        raise
    return result


@_add_rms_norm.public
def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, form: str = "llama"
) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise the sum: ``(rms_norm(residual + x), residual + x)``.

    x and residual [..., D] of one shape, dtype and device; the rest as in rms_norm. Neither input is written to.

    Examples:
        >>> normed, total = amd_ops.add_rms_norm(torch.ones(2, 4), torch.ones(2, 4), torch.ones(4), 0.0)
        >>> normed[0], total[0]
        (tensor([1., 1., 1., 1.]), tensor([2., 2., 2., 2.]))
    """
    if _compiling():
        return torch_add_rms_norm(x, residual, weight, eps, form)
    if not eps >= 0.0:
        _diagnose("add_rms_norm", x, weight, eps, form, residual)
    _add_rms_norm.calls += 1
    try:
        result: tuple[Tensor, Tensor] = _add_rms_norm.call(x, residual, weight, eps, form)
    except TORCH_ERRORS:
        _diagnose("add_rms_norm", x, weight, eps, form, residual)
        raise
    return result


def _diagnose(op: str, x: Tensor, weight: Tensor, eps: float, form: str, residual: Tensor | None = None) -> None:
    if form not in FORMS:
        raise complaint(op, "form", repr(form), f"one of {', '.join(FORMS)}")
    if not eps >= 0.0:
        raise complaint(op, "eps", eps, "a number that is not negative")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 1:
        raise complaint(op, "x", describe(x), "a float tensor [..., D]")
    if not isinstance(weight, Tensor) or weight.shape != x.shape[-1:]:
        raise complaint(op, "weight", describe(weight), f"[{x.shape[-1]}], the last dimension of x")
    if weight.device != x.device:
        raise complaint(op, "weight", f"on {weight.device}", f"{x.device}, where x is")
    if residual is not None and (residual.shape, residual.dtype, residual.device) != (x.shape, x.dtype, x.device):
        raise complaint(op, "residual", describe(residual), f"{describe(x)}, as x")
