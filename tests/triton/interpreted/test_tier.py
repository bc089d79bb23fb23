"""Tier triton in the chain: its order, what it declines and why, what its probe catches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import amd_ops
from amd_ops import dispatch
from amd_ops.backends.triton import gate, norm, providers

from .support import ran

SERVED = sorted(providers.HOMES["ours"])
HEADS = torch.ones(1, 1, 8, 8)


@pytest.mark.parametrize("op", SERVED)
def test_the_tier_stands_between_aiter_and_torch(op: str) -> None:
    found = dispatch.ops[op]
    assert isinstance(found, dispatch.Op)
    names = [t.name for t in found.tiers]
    assert names in (["aiter", "triton", "torch", "eager"], ["triton", "torch", "eager"])
    assert not found.can("triton"), "no toggle asks for it"
    others = {"sink_attention": "use_aiter_attention", "linear_cross_entropy": "use_fused_cross_entropy"}
    toggle = others.get(op, "use_optimized_ops")
    with amd_ops.override(**{toggle: 1}):
        assert found.can("triton")
    with amd_ops.override(**{toggle: 1}, tiers="torch,eager"):
        assert not found.can("triton")


def rows() -> torch.Tensor:
    return torch.randn(4, 16)


DECLINES: dict[str, tuple[Callable[[], Any], str]] = {
    "fp64": (lambda: amd_ops.rms_norm(rows().double(), torch.ones(16), 1e-6), "float64 is not fp32, fp16 or bf16"),
    "an fp64 weight": (lambda: amd_ops.rms_norm(rows(), torch.ones(16).double(), 1e-6), "float64"),
    "fp64 gate": (lambda: amd_ops.silu_and_mul(rows().double()), "float64"),
    "misaligned": (lambda: amd_ops.rms_norm(torch.randn(65)[1:].view(4, 16), torch.ones(16), 1e-6), "16 bytes"),
    "misaligned columns": (lambda: amd_ops.gelu_and_mul(torch.randn(4, 17)[:, 1:]), "16 bytes"),
    "too many numbers": (lambda: amd_ops.silu_and_mul(torch.zeros(1).expand(2**16, 2**16)), "32-bit indexing"),
    "a subclass": (lambda: amd_ops.silu_and_mul(torch.randn(2, 4).as_subclass(Special)), "Special is not a plain"),
    "vmap": (lambda: torch.vmap(amd_ops.silu_and_mul)(rows()), "functorch"),
    "a forward gradient": (lambda: forward_gradient(rows()), "forward-mode"),
    "tables of another dtype each": (
        lambda: amd_ops.apply_rope(HEADS, HEADS, torch.ones(1, 8, 8), torch.ones(1, 8, 8).half()),
        "cos is torch.float32, sin torch.float16",
    ),
    "heads that are not dense": (
        lambda: amd_ops.apply_rope(HEADS.mT, HEADS, torch.ones(1, 8, 8), torch.ones(1, 8, 8)),
        "not dense",
    ),
}  # fmt: skip


class Special(torch.Tensor):
    pass


def forward_gradient(x: torch.Tensor) -> Any:
    with forward_ad.dual_level():
        return amd_ops.silu_and_mul(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("name", sorted(DECLINES))
def test_what_a_kernel_cannot_do_is_declined_with_the_reason(asked: None, name: str) -> None:
    call, reason = DECLINES[name]
    with pytest.raises(amd_ops.DeclinedError, match=f"tier triton.*{reason}"):
        call()


def test_tables_that_need_a_gradient_are_declined(asked: None) -> None:
    cos = torch.ones(1, 2, 8, requires_grad=True)
    with torch.enable_grad(), pytest.raises(amd_ops.DeclinedError, match="tables need a gradient"):
        amd_ops.apply_rope(torch.ones(1, 1, 2, 8), torch.ones(1, 1, 2, 8), cos, torch.ones(1, 2, 8))


def test_strides_beyond_32_bits_are_declined() -> None:
    from amd_ops.backends.triton.layout import reach, unreachable

    far = torch.empty_strided((2, 16), (2**31, 1), device="meta")
    assert reach(far) > 2**31 - 1
    assert "32-bit" in unreachable(far)


@pytest.mark.parametrize(
    ("module", "launch", "call"),
    [
        (gate, "launch_gate", lambda: amd_ops.silu_and_mul(torch.randn(2, 8))),
        (norm, "launch_norm", lambda: amd_ops.rms_norm(torch.randn(2, 8), torch.ones(8), 1e-6)),
    ],
)
def test_a_kernel_that_computes_wrongly_is_found_by_its_probe(
    monkeypatch: pytest.MonkeyPatch, asked: None, module: Any, launch: str, call: Callable[[], Any]
) -> None:
    right = getattr(module, launch)

    def wrong(*args: Any) -> Any:
        out = right(*args)
        (out[0] if isinstance(out, tuple) else out).mul_(1.1)
        return out

    monkeypatch.setattr(module, launch, wrong)
    with pytest.raises(amd_ops.DeclinedError, match="disagrees with the eager formula"):
        call()


def test_a_backward_that_computes_wrongly_is_found_by_its_probe(monkeypatch: pytest.MonkeyPatch, asked: None) -> None:
    right = gate.launch_gate_backward
    monkeypatch.setattr(gate, "launch_gate_backward", lambda *args: right(*args) * 1.1)
    amd_ops.silu_and_mul(torch.randn(2, 8))
    with torch.enable_grad(), pytest.raises(amd_ops.DeclinedError, match="backward: its probe disagrees"):
        amd_ops.silu_and_mul(torch.randn(2, 8, requires_grad=True))


def test_a_variant_is_probed_once_and_shown_by_explain(asked: None) -> None:
    x, weight = torch.randn(2, 8), torch.ones(8)
    before = amd_ops.explain("rms_norm", x, weight, 1e-6)
    assert before.tier == "triton"
    assert "compared with the eager formula" in str(before)
    amd_ops.rms_norm(x, weight, 1e-6)
    assert "compared" not in str(amd_ops.explain("rms_norm", x, weight, 1e-6))
    assert ran("rms_norm") == 1


def test_inputs_are_never_written_to(asked: None) -> None:
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    kept = [t.clone() for t in (x, residual, weight)]
    amd_ops.add_rms_norm(x, residual, weight, 1e-6)
    amd_ops.silu_and_mul(x)
    assert all(torch.equal(a, b) for a, b in zip((x, residual, weight), kept, strict=True))


def test_under_compile_the_public_ops_are_formulas_and_leave_the_tier_to_eager_calls(asked: None) -> None:
    def both(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return amd_ops.silu_and_mul(amd_ops.rms_norm(x, w, 1e-6))

    x, w = torch.randn(2, 8), torch.ones(8)
    compiled = torch.compile(both, backend="eager", fullgraph=True)
    with amd_ops.override(tiers="torch,eager"):
        expected = both(x, w)
    torch.testing.assert_close(compiled(x, w), expected)
    assert ran("rms_norm") == ran("silu_and_mul") == 0, "a compiler fuses the formulas better"
    torch.testing.assert_close(both(x, w), expected)
    assert ran("rms_norm") == ran("silu_and_mul") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(asked: None, dtype: torch.dtype) -> None:
    """It leaves the functions of a norm, a gated activation and a rotation alone."""
    x, weight, table = torch.randn(4, 16).to(dtype), torch.randn(16), torch.randn(1, 4, 16)
    heads = x.view(1, 1, 4, 16)
    calls: dict[str, Callable[[], Any]] = {
        "rms_norm": lambda: amd_ops.rms_norm(x, weight, 1e-6),
        "add_rms_norm": lambda: amd_ops.add_rms_norm(x, x, weight, 1e-6),
        "gelu_tanh_and_mul": lambda: amd_ops.gelu_tanh_and_mul(x),
        "apply_rope": lambda: amd_ops.apply_rope(heads, heads, table, table),
        "qk_norm_rope": lambda: amd_ops.qk_norm_rope(heads, heads, weight, weight, 1e-6, table, table),
    }
    for op, call in calls.items():
        plain = call()
        with torch.autocast("cpu", torch.bfloat16):
            cast = call()
            with amd_ops.override(tiers="eager"):
                stock = call()
        for a, b, c in zip(*(r if isinstance(r, tuple) else (r,) for r in (plain, cast, stock)), strict=True):
            assert torch.equal(a, b), op
            assert b.dtype is c.dtype, op
            assert (b.float() - c.float()).norm() <= 1e-2 * c.float().norm(), op
