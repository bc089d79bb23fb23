"""The real liger-kernel in Triton's interpreter, as far as that computes it rightly (products of two bf16 it does not).

Not collected by its name: test_interpreter.py runs this file where liger_kernel is installed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import pytest
import torch

import amd_ops
from tests.doubles.liger import HOMES, fake_liger
from tests.ops.reference import close, gated, rms_norm, rope
from tests.ops.test_rope import heads, tables

from .test_providers import choosing, quietly, ran, why

EXACT = (torch.float32, torch.float16)


@pytest.fixture(autouse=True)
def chosen(clean_toggles: None) -> Iterator[None]:
    with choosing("liger,ours"), torch.no_grad():
        yield


@pytest.mark.parametrize("name", HOMES)
def test_the_double_has_the_real_arguments(name: str) -> None:
    def arguments() -> list[tuple[str, object]]:
        function = getattr(importlib.import_module(f"liger_kernel.ops.{HOMES[name]}"), name)
        return [(p.name, p.default) for p in inspect.signature(function.forward).parameters.values()]

    real = arguments()
    with fake_liger():
        assert arguments() == real


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize("rows", [1, 2])
def test_its_rotation_runs_and_leaves_its_inputs_alone(dtype: torch.dtype, dim: int, width: int, rows: int) -> None:
    q, k = heads(2, 4, 3, 16, dim, dtype), heads(2, 2, 3, 16, dim, dtype)
    kept = q.clone(), k.clone()
    cos, sin = tables(rows, 3, width, dtype)
    for out, x in zip(amd_ops.apply_rope(q, k, cos, sin, dim), (q, k), strict=True):
        close(out, rope(x, cos, sin, dim), 2.0)
    assert torch.equal(q, kept[0])
    assert torch.equal(k, kept[1])
    assert ran("apply_rope", "liger") == 1


def test_tables_whose_halves_differ_would_come_out_wrong_and_are_declined() -> None:
    q = heads(1, 2, 3, 16, 1, torch.float32)
    cos, sin = torch.randn(1, 3, 16), torch.randn(1, 3, 16)
    for out in quietly(lambda: amd_ops.apply_rope(q, q, cos, sin)):
        close(out, rope(q, cos, sin, 1), 2.0)
    assert ran("apply_rope", "liger") == 0


@pytest.mark.parametrize("dtype", EXACT)
def test_its_silu_runs_forward_and_backward(dtype: torch.dtype) -> None:
    x = torch.randn(3, 48).to(dtype).requires_grad_()
    kept = x.detach().clone()
    with torch.enable_grad():
        out = amd_ops.silu_and_mul(x)
        out.sum().backward()
    x64 = kept.double().requires_grad_()
    with torch.enable_grad():
        gate, up = x64.chunk(2, -1)
        (torch.nn.functional.silu(gate) * up).sum().backward()
    close(out.detach(), gated(kept, "silu"), 4.0)
    assert x.grad is not None
    assert x64.grad is not None
    close(x.grad, x64.grad, 4.0)
    assert torch.equal(x.detach(), kept)
    assert ran("silu_and_mul", "liger") == 1


@pytest.mark.parametrize("op", ["silu_and_mul", "apply_rope"])
def test_what_the_interpreter_gets_wrong_is_found_by_the_probe_and_ours_runs(op: str) -> None:
    x, q = torch.randn(3, 48).bfloat16(), heads(1, 2, 3, 16, 1, torch.bfloat16)
    cos, sin = tables(1, 3, 16, torch.bfloat16)
    if op == "silu_and_mul":
        close(quietly(lambda: amd_ops.silu_and_mul(x)), gated(x, "silu"), 2.0)
    else:
        close(quietly(lambda: amd_ops.apply_rope(q, q, cos, sin))[0], rope(q, cos, sin, 1), 2.0)
    assert "disagrees with the eager formula" in why(op, "liger")
    assert (ran(op, "liger"), ran(op, "")) == (0, 1)


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "gelu_tanh_and_mul"])
def test_what_the_interpreter_cannot_run_of_it_is_a_reason_and_ours_runs(op: str) -> None:
    """Its kernels convert Python numbers and call libdevice there; on a GPU they may serve."""
    x, w = torch.randn(1, 32), torch.randn(32)
    calls = {
        "rms_norm": (lambda: amd_ops.rms_norm(x, w, 1e-6), rms_norm(x, w, 1e-6, "llama")),
        "add_rms_norm": (lambda: amd_ops.add_rms_norm(x, x, w, 1e-6)[0], rms_norm(x + x, w, 1e-6, "llama")),
        "gelu_tanh_and_mul": (lambda: amd_ops.gelu_tanh_and_mul(x), gated(x, "gelu_tanh")),
    }
    call, want = calls[op]
    with amd_ops.override(strict=0):
        close(quietly(call), want, 2.0)
    assert "its probe raised" in why(op, "liger")
    assert (ran(op, "liger"), ran(op, "")) == (0, 1)
