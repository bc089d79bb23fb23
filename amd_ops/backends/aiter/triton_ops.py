"""Kernels of ``aiter.ops.triton`` as a provider of tier triton: norms, rotation, silu. Inference only.

Facts of v0.1.5 to v0.1.20.post1 and of the main branch of 2026-08. The modules moved (flat names until v0.1.9, folders
since); nothing in them checks strides, alignment or missing gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import toggles
from ...dispatch import Candidate
from ..probing import apart, disagreement, made_up, needs_grad
from ..triton import norm, rope
from ..triton.common import unfit
from ..triton.target import Target
from .library import triton_function

_ALIGNMENT = 16
_MANY_ROWS, _NARROW = 8192, 2048
"""Above so many rows of at most this width the norm takes another kernel."""
_NEOX = 0
_INFERENCE = "a gradient is needed and aiter's Triton kernels are used for inference only"


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of ``op`` or raise Unusable."""
    return _MAKERS[op](reference, target)


def _close(got: Any, want: Any) -> str:
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    return next((reason for mine, theirs in pairs if (reason := disagreement(mine, theirs))), "")


def _unfit(target: Target, dense: Sequence[Tensor]) -> str:
    """Preconditions of the kernels that walk dense rows."""
    reason = unfit(target, *dense)
    if reason:
        return reason
    if needs_grad(*dense):
        return _INFERENCE
    return "" if all(t.is_contiguous() for t in dense) else "a tensor is not contiguous"


def _rounds_otherwise(form: str, x: Tensor, weight: Tensor) -> str:
    """The kernels round once, behind the weight, and know no offset."""
    if form == "gemma":
        return "aiter's Triton norm has no offset weight"
    if form == "fp32_weight":
        return ""
    if weight.dtype is not x.dtype:
        return f"the weight is {weight.dtype}, the input {x.dtype}, and aiter answers in the input's dtype"
    return "" if x.dtype is torch.float32 else f"aiter's Triton norm rounds once, form {form} also before the weight"


def _norm_check(target: Target, x: Tensor, weight: Tensor, form: str, *more: Tensor) -> str:
    reason = norm.misfit(x, weight, form, *more) or _rounds_otherwise(form, x, weight)
    if reason:
        return reason
    if x.shape[-1] * x.element_size() % _ALIGNMENT:
        return f"rows do not start at multiples of {_ALIGNMENT} bytes"
    return _unfit(target, (x, weight, *more))


def _many(x: Tensor) -> bool:
    return x.shape[-1] <= _NARROW and x.numel() > _MANY_ROWS * x.shape[-1]


def _norm_variant(x: Tensor, weight: Tensor, form: str) -> Hashable:
    return form, x.dtype, weight.dtype, x.shape[-1], _many(x)


def _rms_norm(reference: Callable[..., Any], target: Target) -> Candidate:
    function, _ = triton_function("rms_norm", ("input", "weight", "epsilon"))

    def run(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
        result: Tensor = function(x.view(-1, x.shape[-1]), weight, eps)
        return result.view(x.shape)

    def compare(x: Tensor, weight: Tensor, eps: float, form: str) -> str:
        sample, scale = norm.made_up_norm(_MANY_ROWS + 3 if _many(x) else 5, x, weight)
        return _close(run(sample, scale, eps, form), reference(sample.float(), scale.float(), eps, form))

    return Candidate(
        run,
        lambda x, weight, eps, form: _norm_check(target, x, weight, form),
        lambda x, weight, eps, form: _norm_variant(x, weight, form),
        apart(compare),
    )


def _add_rms_norm(reference: Callable[..., Any], target: Target) -> Candidate:
    arguments = ("out", "input", "residual_in", "residual_out", "weight", "epsilon")
    function, _ = triton_function("rmsnorm2d_fwd_with_add", arguments)

    def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> tuple[Tensor, Tensor]:
        rows, before = x.view(-1, x.shape[-1]), residual.view(-1, x.shape[-1])
        out, after = torch.empty_like(rows), torch.empty_like(rows)
        function(out, rows, before, after, weight, eps)
        return out.view(x.shape), after.view(x.shape)

    def compare(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> str:
        sample, before, scale = norm.made_up_norm(5, x, weight, residual)
        want = reference(sample.float(), before.float(), scale.float(), eps, form)
        return _close(run(sample, before, scale, eps, form), want)

    return Candidate(
        run,
        lambda x, residual, weight, eps, form: _norm_check(target, x, weight, form, residual),
        lambda x, residual, weight, eps, form: _norm_variant(x, weight, form),
        apart(compare),
    )


def _silu(reference: Callable[..., Any], target: Target) -> Candidate:
    function, _ = triton_function("fused_silu_mul", ("x", "out"))

    def check(x: Tensor) -> str:
        if x.dim() < 1 or x.shape[-1] % 2:
            return "the last dimension is odd"
        return _unfit(target, (x,))

    def run(x: Tensor) -> Tensor:
        result: Tensor = function(x)
        return result

    def compare(x: Tensor) -> str:
        sample = made_up((3, x.shape[-1]), x.dtype, x.device, 1)
        return _close(run(sample), reference(sample.float()))

    return Candidate(run, check, lambda x: (x.dtype, x.shape[-1]), apart(compare))


@functools.lru_cache(maxsize=64)
def _positions(rows: int, length: int, where: torch.device) -> Tensor:
    """The row of the table for each token: its own one of ``rows`` * length, or that of its place in the sequence."""
    with torch.inference_mode(False):
        return torch.arange(length, device=where).repeat(rows)


def _rope(reference: Callable[..., Any], target: Target) -> Candidate:
    """One launch over [tokens, heads, D]: q, k, tables [rows, R] and the row of each token."""
    name = "rope_cached_thd_positions_2c_fwd"
    flags = ("rotate_style", "reuse_freqs_front_part", "nope_first", "transpose_output")
    function, _ = triton_function(name, ("x", "y", "cos", "sin", "positions", *flags))

    def check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> str:
        reason = rope.misfit(q, k, cos, sin, dim)
        if reason:
            return reason
        size, width = q.shape[3], cos.shape[2]
        if not q.dtype is k.dtype is cos.dtype:
            return f"q is {q.dtype}, k {k.dtype}, the tables {cos.dtype}: aiter's kernel takes one dtype"
        if size & (size - 1) or width not in (size, size // 2):
            return f"aiter's Triton rope turns all or half of a power of two, not {width} of {size}"
        if q.shape[dim] % k.shape[dim]:
            return "the heads of q are no multiple of those of k"
        if q.shape[dim] == k.shape[dim] and k.shape[dim] & (k.shape[dim] - 1):
            return f"aiter's Triton rope writes past the end of {k.shape[dim]} and {k.shape[dim]} heads"
        if needs_grad(q, k):
            return _INFERENCE
        if not (_walkable(q, dim) and _walkable(k, dim)):
            return "the tokens of q or k are not one dimension in memory, or a dimension is expanded"
        return unfit(target, q, k, cos, sin)

    def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        tokens = [t.transpose(1, 2).flatten(0, 1) if dim == 1 else t.flatten(0, 1) for t in (q, k)]
        batch, length = q.shape[0], q.shape[3 - dim]
        if cos.stride(0) == sin.stride(0) == 0:
            cos, sin = cos[:1], sin[:1]
        own = cos.shape[0] > 1
        tables = [t.reshape(-1, t.shape[2]) for t in (cos, sin)]
        at = _positions(1, batch * length, q.device) if own else _positions(batch, length, q.device)
        turned = function(*tokens, *tables, at, _NEOX, False, False)
        x, y = (t.unflatten(0, (batch, length)) for t in turned)
        return (x.transpose(1, 2), y.transpose(1, 2)) if dim == 1 else (x, y)

    def variant(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> Hashable:
        return q.dtype, q.shape[3], cos.shape[2], dim, q.shape[dim] == k.shape[dim], cos.shape[0] > 1

    def compare(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> str:
        x, y, c, s = rope.made_up_rope(5, q, k, cos, dim, (4, 4 if q.shape[dim] == k.shape[dim] else 2))
        return _close(run(x, y, c, s, dim), reference(x.float(), y.float(), c.float(), s.float(), dim))

    return Candidate(run, check, variant, apart(compare))


def _walkable(x: Tensor, dim: int) -> bool:
    """Whether batch and tokens of x are one dimension without a copy, the last is dense and none is expanded."""
    token = 3 - dim
    merged = x.shape[0] == 1 or x.shape[token] == 1 or x.stride(0) == x.shape[token] * x.stride(token)
    return merged and x.stride(3) == 1 and min(x.stride()) > 0


_MAKERS: dict[str, Callable[[Callable[..., Any], Target], Candidate]] = {
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "silu_and_mul": _silu,
    "apply_rope": _rope,
}

toggles.when_refreshed(_positions.cache_clear)
