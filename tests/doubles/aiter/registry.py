"""Registration of ``torch.ops.aiter.*`` with the real schemas, and the Python functions around them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import catalog as catalogs
from .kernels import activation, attention, attention_backward, flash, gemm, guards, moe, norm, rope
from .state import Double

Kernel = Callable[[Double, str, dict[str, Any]], Any]

KERNELS: dict[str, Kernel] = {
    "mha_fwd": attention.mha_fwd,
    "mha_varlen_fwd": attention.mha_varlen_fwd,
    "fmha_v3_fwd": attention.fmha_v3_fwd,
    "fmha_v3_varlen_fwd": attention.fmha_v3_varlen_fwd,
    "mha_bwd": attention_backward.mha_bwd,
    "mha_varlen_bwd": attention_backward.mha_varlen_bwd,
    "fmha_v3_bwd": attention_backward.fmha_v3_bwd,
    "fmha_v3_varlen_bwd": attention_backward.fmha_v3_varlen_bwd,
    "gemm_a16w16": gemm.gemm_a16w16,
    "silu_and_mul": activation.silu_and_mul,
    "gelu_and_mul": activation.gelu_and_mul,
    "gelu_tanh_and_mul": activation.gelu_tanh_and_mul,
    "rms_norm": norm.rms_norm,
    "rmsnorm2d_fwd": norm.rms_norm,
    "rmsnorm2d_fwd_with_add": norm.add_rms_norm,
    "rms_norm_cu": norm.rms_norm_out,
    "fused_add_rms_norm_cu": norm.add_rms_norm_in_place,
    "rmsnorm": norm.rms_norm_out,
    "add_rmsnorm": norm.add_rms_norm,
    "fused_moe": moe.fused_moe,
    "rope_cached_fwd_impl": rope.rope_one,
    "rope_cached_2c_fwd_impl": rope.rope_two,
    "rope_cached_positions_2c_fwd_impl": rope.rope_two,
}

RESULT_ARGUMENTS = ("out", "output", "output_x", "input")  # where an op without a return value leaves its result


def run_kernel(double: Double, name: str, arguments: dict[str, Any]) -> Any:
    """One kernel launch: record, break as told, check, compute, miscompute as told."""
    double.record(name, "op", arguments)
    if name in double.faults.raises:
        raise double.faults.raises[name]
    guards.launch(double, name, arguments)
    if name in double.faults.altered:
        arguments = arguments | double.faults.altered[name](arguments)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):  # a kernel knows neither
        result = KERNELS[name](double, name, arguments)
        corrupt = double.faults.wrong.get(name)
        if corrupt is not None:
            target = result if isinstance(result, Tensor) else result[0] if result else _written(arguments)
            target.copy_(corrupt(target.clone()))
    return result


def _written(arguments: dict[str, Any]) -> Tensor:
    return next(arguments[key] for key in RESULT_ARGUMENTS if key in arguments)


def _owner(double: Double, name: str) -> catalogs.Catalog:
    """The tag whose form ``name`` has, after the fault ``schema_from``."""
    tag = double.faults.schema_from.get(name)
    return double.catalog if tag is None else catalogs.load(tag)


def register_ops(double: Double, library: torch.library.Library, module: str) -> None:
    """Define the ops that importing ``module`` registers: keys CPU and CUDA, a fake kernel, no autograd."""
    for name in double.catalog.ops_of(module):
        if name in double.faults.missing:
            continue
        library.define(_owner(double, name).ops[name]["schema"].removeprefix("aiter::"))
        kernel = functools.partial(_dispatch, double, name)
        for key in ("CPU", "CUDA"):
            library.impl(name, kernel, key)
        torch.library.register_fake(f"aiter::{name}", functools.partial(_fake, name), lib=library)


def _bound(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return catalogs.bind_schema(getattr(torch.ops.aiter, name).default._schema, args, kwargs)


def _dispatch(double: Double, name: str, *args: Any, **kwargs: Any) -> Any:
    return run_kernel(double, name, _bound(name, args, kwargs))


def _fake(name: str, *args: Any, **kwargs: Any) -> Any:
    """Shapes only, for tracing."""
    arguments = _bound(name, args, kwargs)
    if "q" in arguments:
        q, v = arguments["q"], arguments["v"]
        return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(0), q.new_empty(0), q.new_empty(0)
    if name == "gemm_a16w16":
        a, b = arguments["A"], arguments["B"]
        return a.new_empty(*a.shape[:-1], b.shape[0], dtype=arguments["otype"] or a.dtype)
    return torch.empty_like(arguments["input"]) if name in ("rms_norm", "rmsnorm2d_fwd") else None


def python_functions(double: Double, module: str) -> dict[str, Callable[..., Any]]:
    """The public functions of one submodule, with their real signatures."""
    made: dict[str, Callable[..., Any]] = {}
    for name in double.catalog.functions_of(module):
        if name not in double.faults.missing:
            params = _owner(double, name).functions[f"{module}.{name}"]
            made[name] = _python_function(double, module, name, params)
    return made


def _python_function(double: Double, module: str, name: str, params: list[str]) -> Callable[..., Any]:
    signature = catalogs.python_signature(params)

    def function(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        double.record(name, "function", arguments)
        if name in double.faults.raises:
            raise double.faults.raises[name]
        return _call(double, name, arguments)

    function.__name__ = function.__qualname__ = name
    function.__module__ = module
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def _call(double: Double, name: str, arguments: dict[str, Any]) -> Any:
    """Behind the Python function: the torch op where one is registered, otherwise the kernel itself."""
    if name == "flash_attn_func":
        return flash.flash_attn_func(double, arguments)
    if name == "flash_attn_varlen_func":
        return flash.flash_attn_varlen_func(double, arguments)
    if name == "shuffle_weight":
        return gemm.shuffle_weight(double, arguments)
    if name == "get_GEMM_A16W16_config":
        raise NotImplementedError("the double has no tuning table to look into")
    if name.startswith("rope_"):
        return rope.python_rope(double, name, arguments)
    if name == "mm":
        arguments = {"A": arguments.pop("inp"), "B": arguments.pop("weights"), **arguments}
        name = "gemm_a16w16"
    if name in double.catalog.ops:
        return getattr(torch.ops.aiter, name)(**arguments)
    return run_kernel(double, name, arguments)
