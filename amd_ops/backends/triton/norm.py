"""rms_norm and add_rms_norm on the kernels of kernels/norm.py, with their backward (rows up to MAX_BLOCK)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..backward import once
from ..probing import made_up, needs_grad, prove, wanting
from . import launch, tuning
from .common import apply, unfit
from .configs import FEW, MAX_BLOCK, Config, for_rows
from .kernels import norm as kernels
from .layout import MAX_OFFSET, Rows, Via, directly, reach, rows_of, specialised
from .target import Target

FORMS = ("llama", "gemma", "fp32_weight", "t5")
PROGRAMS_PER_UNIT = 4


def misfit(x: Tensor, weight: Tensor, form: str, *more: Tensor) -> str:
    """Say what no kernel of these ops takes, whoever wrote it; ``more`` is the residual."""
    if form not in FORMS or weight.dim() != 1 or x.dim() < 1 or weight.shape[0] != x.shape[-1]:
        return "unusable arguments"
    for other in more:
        if other.shape != x.shape or other.dtype is not x.dtype:
            return "the residual's shape or dtype is not the input's"
    return ""


def made_up_norm(rows: int, x: Tensor, weight: Tensor, *more: Tensor) -> list[Tensor]:
    """Made-up x, (residual,) weight of a call's dtypes and row length, wanting the gradients that it wants."""
    made = [made_up((rows, x.shape[-1]), t.dtype, x.device, seed) for seed, t in enumerate((x, *more), 4)]
    return wanting([*made, made_up((x.shape[-1],), weight.dtype, x.device, 6)], (x, *more, weight))


def result_type(form: str, x: torch.dtype, weight: torch.dtype) -> torch.dtype:
    """Return the dtype in which the stock module of this form answers."""
    if form == "llama":
        return torch.promote_types(x, weight)
    if form == "t5":  # a half-precision weight rounds what comes before it; an fp32 one meets an fp32 tensor
        return weight
    return x


def _dense(x: Tensor) -> tuple[Tensor, Rows]:
    """Return x, or a dense copy of it where its strides are out of the kernels' reach, and its rows."""
    rows = rows_of(x)
    if rows is None or reach(x) > MAX_OFFSET:
        x = x.contiguous()
        rows = 1, 1, x.shape[-1], 0, 0, 1
    return x, rows


def launch_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, form: str, config: Config, via: Via = directly
) -> tuple[Tensor, Tensor]:
    """(norm, residual + x), both dense in x's shape; without a residual the second is x itself."""
    x, rows = _dense(x)
    other, other_rows = (x, rows) if residual is None else _dense(residual)
    size = x.shape[-1]
    out = torch.empty(x.shape, dtype=result_type(form, x.dtype, weight.dtype), device=x.device)
    total = x if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    count = x.numel() // size
    via(kernels.rms_norm)[(-(-count // config.rows),)](
        x, other, weight, out, total, count, eps, *rows, *other_rows, weight.stride(0),
        D=size, FORM=form, ADD=residual is not None, ROWS=config.rows, BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip
    return out, total


def launch_norm_backward(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    dtotal: Tensor | None,
    eps: float,
    form: str,
    config: Config,
    programs: int,
    via: Via = directly,
) -> tuple[Tensor, Tensor]:
    """Gradients of x (or of the sum, ``dtotal`` added) and of the weight."""
    x, rows = _dense(x)
    dy, grads = _dense(dy)
    other, other_rows = (dy, grads) if dtotal is None else _dense(dtotal)
    size = x.shape[-1]
    count = x.numel() // size
    programs = min(-(-count // config.rows), programs)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = torch.empty((programs, size), dtype=torch.float32, device=x.device)
    via(kernels.rms_norm_backward)[(programs,)](
        x, weight, dy, other, dx, sums, count, eps, *rows, *grads, *other_rows, weight.stride(0),
        D=size, FORM=form, ADD=dtotal is not None, ROWS=config.rows, BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip
    return dx, sums.sum(0).to(weight.dtype)


class NormFunction(torch.autograd.Function):
    """The norm with its backward: x and weight are kept, the scale of a row is computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, form: str, config: Config, programs: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rest = eps, form, config, programs
        return launch_norm(x, None, weight, eps, form, config)[0]

    @staticmethod
    @once("rms_norm in tier triton")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dw = launch_norm_backward(x, weight, dy, None, *ctx.rest)
        return dx, dw, None, None, None, None


class AddNormFunction(torch.autograd.Function):
    """residual + x, normed. The sum is an output and is what the backward keeps."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str, config: Config, programs: int
    ) -> tuple[Tensor, Tensor]:
        out, total = launch_norm(x, residual, weight, eps, form, config)
        ctx.save_for_backward(total, weight)
        ctx.rest = eps, form, config, programs
        return out, total

    @staticmethod
    @once("add_rms_norm in tier triton")
    def backward(ctx: Any, dy: Tensor, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        dx, dw = launch_norm_backward(total, weight, dy, dtotal, *ctx.rest)
        return dx, dx, dw, None, None, None, None


def settled_norm(x: Tensor, residual: bool, weight: Tensor, eps: float, form: str, config: Config) -> launch.Run:
    """Return ``run(x, residual or None, weight)`` for dense rows like these: (norm, sum)."""
    size, count = x.shape[-1], x.shape[0]
    rows = (1, 1, size, 0, 0, 1)
    kind = result_type(form, x.dtype, weight.dtype)
    same = kind is x.dtype
    constants = {"D": size, "FORM": form, "ADD": residual, "ROWS": config.rows, "BLOCK": config.block}
    numbers = (count, eps, *rows, *rows, weight.stride(0))
    start = launch.settled(kernels.rms_norm, (-(-count // config.rows),), numbers, constants, config.warps)

    def run(x: Tensor, other: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(x) if same else torch.empty_like(x, dtype=kind)
        if other is None:
            start(x, x, weight, out, x)
            return out, x
        total = torch.empty_like(x)
        start(x, other, weight, out, total)
        return out, total

    return run


class Norm:
    """Both norm ops on one target."""

    def __init__(self, op: str, reference: Callable[..., Any], target: Target) -> None:
        self.reference, self.target = reference, target
        self.table = tuning.Table(op, target)
        self.programs = PROGRAMS_PER_UNIT * target.cu_count

    def config(self, x: Tensor) -> Config:
        """The cut for x's dtype, row length and class of row count."""
        key = (x.dtype, x.shape[-1], _few(x))
        return self.table.get(key) or self.table.put(key, for_rows(x.shape[-1], _few(x), self.target))

    def check(self, x: Tensor, weight: Tensor, form: str, *more: Tensor) -> str:
        """The conditions of both ops; ``more`` is the residual."""
        reason = misfit(x, weight, form, *more)
        if reason:
            return reason
        if x.shape[-1] > MAX_BLOCK and needs_grad(x, weight, *more):
            return f"the backward takes rows of up to {MAX_BLOCK}"
        return unfit(self.target, x, weight, *more)

    def variant(self, x: Tensor, weight: Tensor, form: str, *more: Tensor) -> Hashable:
        """Return the key under which one compiled kernel is cached and proved."""
        strides = [None if rows is None else specialised(rows[2:]) for rows in map(rows_of, (x, *more))]
        grads = tuple(t.requires_grad for t in (x, weight, *more)) if needs_grad(x, weight, *more) else ()
        return form, x.dtype, weight.dtype, x.shape[-1], _few(x), weight.stride(0) == 1, grads, *strides

    def samples(self, x: Tensor, weight: Tensor, *more: Tensor) -> list[Tensor]:
        """Made-up arguments of the same class of row count."""
        return made_up_norm(3 if _few(x) else FEW + 3, x, weight, *more)

    def tune(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, form: str) -> None:
        """Time the cuts on this call's own data."""
        guess, key = self.config(x), (x.dtype, x.shape[-1], _few(x))
        with torch.no_grad():
            self.table.tune(key, guess, lambda cut: launch_norm(x, residual, weight, eps, form, cut))


def _few(x: Tensor) -> bool:
    return x.numel() < FEW * x.shape[-1]


def _rms_norm(reference: Callable[..., Any], target: Target) -> Candidate:
    norm = Norm("rms_norm", reference, target)

    def run(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
        if needs_grad(x, weight):
            result: Tensor = apply(NormFunction, x, weight, eps, form, norm.config(x), norm.programs)
            return result
        return launch_norm(x, None, weight, eps, form, norm.config(x))[0]

    def probe(x: Tensor, weight: Tensor, eps: float, form: str) -> str:
        norm.tune(x, None, weight, eps, form)
        return prove(run, reference, norm.samples(x, weight), (eps, form))

    def bind(x: Tensor, weight: Tensor, eps: float, form: str) -> Callable[..., Tensor] | None:
        if x.dim() != 2 or not x.is_contiguous() or needs_grad(x, weight):
            return None
        fast = settled_norm(x, False, weight, eps, form, norm.config(x))
        return lambda x, weight, eps, form: fast(x, None, weight)[0]

    return Candidate(
        run,
        lambda x, weight, eps, form: norm.check(x, weight, form),
        lambda x, weight, eps, form: norm.variant(x, weight, form),
        probe,
        bind=bind,
    )


def _add_rms_norm(reference: Callable[..., Any], target: Target) -> Candidate:
    norm = Norm("add_rms_norm", reference, target)

    def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> tuple[Tensor, Tensor]:
        if needs_grad(x, residual, weight):
            both: tuple[Tensor, Tensor] = apply(
                AddNormFunction, x, residual, weight, eps, form, norm.config(x), norm.programs
            )
            return both
        return launch_norm(x, residual, weight, eps, form, norm.config(x))

    def probe(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> str:
        norm.tune(x, residual, weight, eps, form)
        return prove(run, reference, norm.samples(x, weight, residual), (eps, form))

    def bind(
        x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str
    ) -> Callable[..., tuple[Tensor, Tensor]] | None:
        dense = x.dim() == 2 and x.is_contiguous() and residual.is_contiguous()
        if not dense or needs_grad(x, residual, weight):
            return None
        fast = settled_norm(x, True, weight, eps, form, norm.config(x))
        return lambda x, residual, weight, eps, form: fast(x, residual, weight)

    return Candidate(
        run,
        lambda x, residual, weight, eps, form: norm.check(x, weight, form, residual),
        lambda x, residual, weight, eps, form: norm.variant(x, weight, form, residual),
        probe,
        bind=bind,
    )


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of rms_norm or add_rms_norm."""
    return (_rms_norm if op == "rms_norm" else _add_rms_norm)(reference, target)
