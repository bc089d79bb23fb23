"""Training through tier triton: gradients against fp64, what is kept, what is refused, and a step of whole models on a
fake GPU whose aiter has attention alone to train with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import amd_ops
from amd_ops.backends.backward import SecondDerivativeError
from amd_ops.backends.triton.configs import Config
from amd_ops.backends.triton.qk_rope import launch_norm_rope_backward
from amd_ops.backends.triton.rope import Norms
from tests.doubles.aiter import fake_aiter
from tests.doubles.formulas import rope_tables
from tests.parity import gradients
from tests.triton.interpreted.support import ran


@pytest.fixture(autouse=True)
def graded(asked: None) -> Iterator[None]:
    with torch.enable_grad():
        yield


def tables(length: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = rope_tables(torch.arange(length), width, dtype)
    return cos[None], sin[None]


def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def calls() -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    """Every op that trains, and leaves of its own."""
    cos, sin = tables(3, 8, torch.float32)
    heads = [made(2, 4, 3, 8), made(2, 2, 3, 8)]
    return {
        "rms_norm": (lambda x, w: amd_ops.rms_norm(x, w, 1e-6), [made(4, 16), made(16)]),
        "add_rms_norm": (
            lambda x, r, w: amd_ops.add_rms_norm(x, r, w, 1e-6), [made(4, 16), made(4, 16), made(16)]
        ),
        "silu_and_mul": (amd_ops.silu_and_mul, [made(4, 16)]),
        "gelu_and_mul": (amd_ops.gelu_and_mul, [made(4, 16)]),
        "gelu_tanh_and_mul": (amd_ops.gelu_tanh_and_mul, [made(4, 16)]),
        "apply_rope": (lambda q, k: amd_ops.apply_rope(q, k, cos, sin), heads),
        "qk_norm_rope": (
            lambda q, k, a, b: amd_ops.qk_norm_rope(q, k, a, b, 1e-6, cos, sin), [*heads, made(8), made(8)]
        ),
    }  # fmt: skip


OPS = tuple(calls())


def total(result: Any) -> Tensor:
    parts = result if isinstance(result, tuple) else (result,)
    return sum((part.float().pow(3).sum() for part in parts), torch.zeros(()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["llama", "gemma", "fp32_weight"])
@pytest.mark.parametrize(("size", "width", "rows", "programs"), [(24, 24, 4, 3), (16, 8, 1, 100), (32, 32, 2, 1)])
def test_head_norms_and_rotation_against_fp64(
    form: str, size: int, width: int, rows: int, programs: int, dtype: torch.dtype
) -> None:
    both = torch.randn(2, 3, 7, size).to(dtype).transpose(1, 2)
    q, k = both[:, :5], both[:, 5:]  # slices of one projection
    cos, sin = tables(3, width, dtype)
    weights = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    dq = torch.randn(2, 5, 3, size).to(dtype)
    dk = torch.randn(size).to(dtype).expand(2, 2, 3, size)
    norms = Norms(*weights, 1e-6, form)
    got = launch_norm_rope_backward(q, k, norms, cos, sin, dq, dk, Config(rows, 32, 1), programs)
    exact = [t.double().requires_grad_() for t in (q, k, *weights)]
    turned = []
    for x, w in ((exact[0], exact[2]), (exact[1], exact[3])):
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + w if form == "gemma" else w)
        part, rest = normed[..., :width], normed[..., width:]
        half = torch.cat((-part[..., width // 2 :], part[..., : width // 2]), -1)
        turned.append(torch.cat((part * cos.double()[:, None] + half * sin.double()[:, None], rest), -1))
    torch.autograd.backward(turned, [dq.double(), dk.double()])
    limit = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for ours, right in zip(got, (t.grad for t in exact), strict=True):
        assert right is not None
        assert ours.dtype is dtype
        assert (ours.double() - right).norm() <= limit * right.norm()


@pytest.mark.parametrize("op", OPS)
def test_a_second_derivative_is_refused_even_for_a_constant_gradient(op: str) -> None:
    """Of a plain sum the incoming gradient is a constant, and torch's once_differentiable says nothing."""
    call, leaves = calls()[op]
    out = call(*leaves)
    loss = sum(part.sum() for part in (out if isinstance(out, tuple) else (out,)))
    for gradient in torch.autograd.grad(loss, leaves, create_graph=True):
        with pytest.raises(SecondDerivativeError, match=r"tier triton.*AMD_OPS_TIERS=torch,eager"):
            gradient.pow(2).sum().backward(retain_graph=True)
    with amd_ops.override(tiers="torch,eager"):
        out = call(*leaves)
        loss = sum(part.pow(3).sum() for part in (out if isinstance(out, tuple) else (out,)))
        torch.autograd.grad(loss, leaves, create_graph=True)[0].pow(2).sum().backward()


@pytest.mark.parametrize("op", OPS)
def test_only_inputs_are_kept_and_none_is_written_to(op: str) -> None:
    call, leaves = calls()[op]
    total(call(*leaves)).backward()
    before, kept = [leaf.detach().clone() for leaf in leaves], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        result = call(*leaves)
    parts = result if isinstance(result, tuple) else (result,)
    table_shape = (1, 3, 8)
    for tensor in kept:
        table = tensor.shape == table_shape
        summed = op == "add_rms_norm" and tensor.data_ptr() == parts[1].data_ptr()  # what the model keeps anyhow
        assert table or summed or any(tensor.data_ptr() == leaf.data_ptr() for leaf in leaves), tensor.shape
    total(result).backward()
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_gradients_are_the_same_bits_every_time(op: str) -> None:
    """Also those of weights, which sum over all rows: partial sums in a fixed order, no atomics."""
    call, leaves = calls()[op]
    first = torch.autograd.grad(total(call(*leaves)), leaves)
    again = torch.autograd.grad(total(call(*leaves)), leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("op", [op for op in OPS if op != "apply_rope"])  # a rotation's gradient does not read them
def test_an_input_that_is_modified_in_between_is_torchs_own_error(op: str) -> None:
    call, leaves = calls()[op]
    changed = [leaf * 1.0 for leaf in leaves]
    loss = total(call(*changed))
    for tensor in changed:
        tensor.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def _saving(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op in (torch.ops.aten.mm.default, torch.ops.aten.mul.Tensor)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("kind", ["reentrant", "plain", "selective"])
def test_a_first_call_inside_a_checkpoint(kind: str) -> None:
    """Its probe happens in the forward and not in the recomputation, and must not be counted by either."""
    x, weight = made(4, 16), made(16)
    options: dict[str, Any] = {"use_reentrant": kind == "reentrant"}
    if kind == "selective":
        options["context_fn"] = lambda: create_selective_checkpoint_contexts(_saving)

    def layer(x: Tensor) -> Tensor:
        return amd_ops.silu_and_mul(amd_ops.rms_norm(x * 2.0, weight, 1e-6) * 3.0)

    amd_ops.refresh()
    with amd_ops.override(use_optimized_ops=1, strict=1):
        got = (
            torch.autograd.grad(checkpoint(layer, x, **options).pow(3).sum(), (x, weight))
            if (kind != "reentrant")
            else _by_backward(checkpoint(layer, x, **options).pow(3).sum(), x, weight)
        )
        assert ran("rms_norm") > 0
        want = torch.autograd.grad(layer(x).pow(3).sum(), (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def _by_backward(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    loss.backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


ATTENTION = {"mha_fwd", "mha_varlen_fwd", "mha_bwd", "mha_varlen_bwd"}
FAST = ("aiter", "triton", "fused", "routed", "packed")


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_training_step_on_a_gpu_with_aiter_and_triton(architecture: str) -> None:
    """Attention in tier aiter, norms, activations and rotations in tier triton: no call in a lower tier, no warning."""
    toggles = {"use_aiter_attention": 1, "use_optimized_ops": 1, "use_fused_projections": 1}
    dtype = torch.bfloat16
    size = {"layers": 1, "length": 9}
    right, stock = (gradients.stock(architecture, "padded", kind, **size) for kind in (torch.float64, dtype))
    with fake_aiter("v0.1.20.post1", "gfx950", 256) as double, amd_ops.override(**toggles, strict=0):
        amd_ops.reset_counters()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "amd_ops: [a-z_]*(attention|norm|rope|and_mul)", amd_ops.DeclinedWarning)
            found = gradients.overlay(architecture, "padded", dtype, **size)
        report = amd_ops.report()
    assert gradients.distance(found, right) <= 1.5 * gradients.distance(stock, right)
    assert set(double.kernels()) == {"mha_varlen_fwd", "mha_varlen_bwd"}
    expected = {"attention": "aiter", "rms_norm": "triton", "add_rms_norm": "triton"}
    expected["apply_rope" if architecture == "llama" else "qk_norm_rope"] = "triton"
    rows = {row["op"]: row["tiers"] for row in report.as_dict()["ops"]}
    for op, tier in expected.items():
        lower = sum(row["calls"] for row in rows[op] if row["tier"] in ("torch", "eager"))
        fast = report.calls(op, tier)
        assert fast >= 9 * lower, str(report)
        assert fast > 0, str(report)
    reasons = [entry["reason"] for row in rows["rms_norm"] if row["tier"] == "aiter" for entry in row["declined"]]
    assert reasons == ["a gradient is needed and aiter's op has no backward"]
