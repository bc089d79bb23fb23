"""RMS norms, with and without the residual add: the forms of transformers mapped to what each version computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from .. import Unusable
from ..probing import apart, disagreement, made_up, unusable
from .library import HALF, expect, function_of


def _norm_options(form: str, name: str, names: tuple[str, ...]) -> dict[str, Any] | str:
    """Map a form to the flags of a norm function, or say why it has none for it.

    The plain kernels round once (fp32_weight); use_model_sensitive_rmsnorm rounds before the weight (llama, and t5
    with half precision weights). A version without the flag rounds llama once: at most one bf16 step apart.
    """
    if form == "gemma":
        return {"gemma_norm": True} if "gemma_norm" in names else f"this aiter's {name} has no gemma_norm"
    if form in ("llama", "t5") and "use_model_sensitive_rmsnorm" in names:
        return {"use_model_sensitive_rmsnorm": 1}
    return {}


def _norm_check(kind: str, x: Tensor, weight: Tensor) -> str:
    if x.dtype not in HALF:
        return f"{x.dtype} is neither fp16 nor bf16"
    if weight.dtype is not x.dtype:
        return f"the weight is {weight.dtype}, the input {x.dtype}"
    return unusable(kind, x, weight) or ("" if weight.is_contiguous() else "the weight is not contiguous")


def _rows(x: Tensor) -> Tensor:
    """[..., D] -> contiguous [rows, D], the only form the norm kernels read."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def make_rms_norm(reference: Callable[..., Any], kind: str) -> Candidate:
    """``rmsnorm2d_fwd(input, weight, epsilon, ...)`` returns a new tensor; gemma's offset only exists in
    ``rmsnorm(out, ...)``.
    """
    plain, names = function_of("rmsnorm2d_fwd")
    expect("rmsnorm2d_fwd", names, ("input", "weight", "epsilon"))
    try:
        offset, offset_names = function_of("rmsnorm")
        expect("rmsnorm", offset_names, ("out", "input", "weight", "epsilon"))
    except Unusable:
        offset, offset_names = None, ()

    def check(x: Tensor, weight: Tensor, eps: float, form: str) -> str:
        if form == "gemma":
            if offset is None or "gemma_norm" not in offset_names:
                return "this aiter's rms norm has no offset weight (gemma_norm)"
            if x.shape[-1] > 8192:
                return "the offset-weight kernel takes rows of up to 8192"
        return _norm_check(kind, x, weight)

    def run(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
        rows = _rows(x)
        if form == "gemma":
            assert offset is not None
            out = torch.empty_like(rows)
            offset(out, rows, weight, eps, gemma_norm=True)
        else:
            options = _norm_options(form, "rmsnorm2d_fwd", names)
            assert isinstance(options, dict)
            out = plain(rows, weight, eps, **options)
        return out.view(x.shape)

    def compare(x: Tensor, weight: Tensor, eps: float, form: str) -> str:
        sample = made_up((5, x.shape[-1]), x.dtype, x.device, 2)
        scale = made_up((x.shape[-1],), x.dtype, x.device, 3)
        return disagreement(run(sample, scale, eps, form), reference(sample.float(), scale.float(), eps, form))

    def bind(x: Tensor, weight: Tensor, eps: float, form: str) -> Callable[..., Tensor] | None:
        options = _norm_options(form, "rmsnorm2d_fwd", names)
        if x.dim() != 2 or not x.is_contiguous() or form == "gemma" or isinstance(options, str):
            return None if x.dim() != 2 or not x.is_contiguous() else run
        return lambda x, weight, eps, form: plain(x, weight, eps, **options)

    variant = lambda x, weight, eps, form: (x.dtype, form, x.shape[-1])  # noqa: E731
    return Candidate(run, check, variant, apart(compare), bind=bind)


def make_add_rms_norm(reference: Callable[..., Any], kind: str) -> Candidate:
    """``rmsnorm2d_fwd_with_add(out, input, residual_in, residual_out, weight, epsilon, ...)``; flags by keyword:
    their order moved.
    """
    name = "rmsnorm2d_fwd_with_add"
    function, names = function_of(name)
    expect(name, names, ("out", "input", "residual_in", "residual_out", "weight", "epsilon"))

    def check(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> str:
        options = _norm_options(form, name, names)
        if isinstance(options, str):
            return options
        if residual.dtype is not x.dtype:
            return f"the residual is {residual.dtype}, the input {x.dtype}"
        if residual.shape != x.shape:
            return "the residual's shape is not the input's"
        return _norm_check(kind, x, weight) or unusable(kind, residual)

    def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> tuple[Tensor, Tensor]:
        rows, before = _rows(x), _rows(residual)
        out, after = torch.empty_like(rows), torch.empty_like(rows)
        options = _norm_options(form, name, names)
        assert isinstance(options, dict)
        function(out, rows, before, after, weight, eps, **options)
        return out.view(x.shape), after.view(x.shape)

    def compare(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> str:
        shape = (5, x.shape[-1])
        samples = [made_up(shape, x.dtype, x.device, seed) for seed in (4, 5)]
        scale = made_up(shape[1:], x.dtype, x.device, 6)
        got = run(samples[0], samples[1], scale, eps, form)
        want = reference(samples[0].float(), samples[1].float(), scale.float(), eps, form)
        return disagreement(got[0], want[0]) or disagreement(got[1], want[1])

    def bind(
        x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str
    ) -> Callable[..., tuple[Tensor, Tensor]] | None:
        options = _norm_options(form, name, names)
        if x.dim() != 2 or not x.is_contiguous() or not residual.is_contiguous() or isinstance(options, str):
            return None

        def fast(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> tuple[Tensor, Tensor]:
            out, after = torch.empty_like(x), torch.empty_like(x)
            function(out, x, residual, after, weight, eps, **options)
            return out, after

        return fast

    variant = lambda x, residual, weight, eps, form: (x.dtype, form, x.shape[-1])  # noqa: E731
    return Candidate(run, check, variant, apart(compare), bind=bind)
