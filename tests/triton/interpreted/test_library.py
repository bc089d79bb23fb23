"""The kernels as torch ops: schema, fake implementation, autograd registration, and a graph without a break."""

from __future__ import annotations

import pytest
import torch

from amd_ops.backends.triton import library
from amd_ops.ops.activation import eager_silu_and_mul
from amd_ops.ops.norm import eager_add_rms_norm, eager_rms_norm
from amd_ops.ops.rope import torch_rope
from tests.ops.test_rope import heads, tables

ops = torch.ops.amd_ops


def made(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


CALLS = {
    "rms_norm": (library.rms_norm, lambda d: (made(2, 3, 8, dtype=d), made(8, dtype=d), 1e-6, "llama")),
    "add_rms_norm": (
        library.add_rms_norm,
        lambda d: (made(2, 8, dtype=d), made(2, 8, dtype=d), made(8, dtype=d), 1e-6, "gemma"),
    ),
    "gated": (library.gated, lambda d: (made(3, 8, dtype=d), "gelu")),
    "apply_rope": (
        library.apply_rope,
        lambda d: (
            heads(2, 4, 3, 8, 1, d).requires_grad_(), heads(2, 2, 3, 8, 1, d).requires_grad_(), *tables(2, 3, 8, d), 1,
            False,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_registration_keeps_torchs_rules(name: str, dtype: torch.dtype) -> None:
    op, arguments = CALLS[name]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, arguments(dtype), test_utils=tests)


def test_a_graph_of_them_has_no_break_and_the_gradients_of_eager() -> None:
    def block(x, r, w, q, k, cos, sin, n, a, g, t):  # type: ignore[no-untyped-def]
        y, total = a(x, r, w)
        z = g(n(y, w))
        return z.square().sum() + total.sum() + sum(u.pow(3).sum() for u in t(q, k, cos, sin))

    mine = (
        lambda x, w: ops.triton_rms_norm(x, w, 1e-6, "llama"),
        lambda x, r, w: ops.triton_add_rms_norm(x, r, w, 1e-6, "llama"),
        lambda x: ops.triton_gated(x, "silu"),
        lambda q, k, c, s: ops.triton_apply_rope(q, k, c, s, 1, False),
    )
    theirs = (
        lambda x, w: eager_rms_norm(x, w, 1e-6, "llama"),
        lambda x, r, w: eager_add_rms_norm(x, r, w, 1e-6, "llama"),
        eager_silu_and_mul,
        lambda q, k, c, s: torch_rope(q, k, c, s, 1),
    )
    compiled = torch.compile(lambda *args: block(*args, *mine), backend="aot_eager", fullgraph=True)
    grads = []
    for run in (compiled, lambda *args: block(*args, *theirs)):
        torch.manual_seed(3)
        args = [made(4, 8), made(4, 8), made(8), heads(1, 2, 3, 8, 1, torch.float32).requires_grad_(), made(1, 1, 3, 8)]
        value = run(*args, *tables(1, 3, 8, torch.float32))
        value.backward()
        grads.append([value.detach(), *(arg.grad for arg in args)])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
