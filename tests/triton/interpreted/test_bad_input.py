"""What no kernel here takes, for every op of the tier: declined with the reason, and the right number from below."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import amd_ops
from amd_ops.backends.triton import providers, tier
from amd_ops.backends.triton.target import Target
from amd_ops.forward.qk_rope import qk_norm_rope, rope_into_cache
from tests.ops.test_rope import heads, tables

from .support import ran

experts = importlib.import_module("amd_ops.ops.moe")  # the package has a function of this name
F32 = torch.float32
Inputs = list[Tensor]
OPS = sorted(providers.HOMES["ours"])
OWN = ("linear_cross_entropy",)
"""Their kernels read results of torch's products alone: where inputs begin and how far they go is torch's care."""


def sound(op: str) -> tuple[Callable[..., Any], Inputs]:
    """A call that the tier takes: its function of tensors, and those; the first is the one that tests spoil."""
    q, k, v = heads(1, 2, 3, 8, 1, F32), heads(1, 2, 3, 8, 1, F32), heads(1, 2, 3, 8, 1, F32)
    cos, sin = tables(1, 3, 8, F32)
    rows, weight = torch.randn(4, 16), torch.randn(16)
    if op == "rms_norm":
        return lambda x, w: amd_ops.rms_norm(x, w, 1e-6), [rows, weight]
    if op == "add_rms_norm":
        return lambda x, r, w: amd_ops.add_rms_norm(x, r, w, 1e-6), [rows, torch.randn(4, 16), weight]
    if op == "apply_rope":
        return amd_ops.apply_rope, [q, k, cos, sin]
    if op == "qk_norm_rope":
        return lambda q, k, a, b, c, s: qk_norm_rope(q, k, a, b, 1e-6, c, s), [q, k, *torch.randn(2, 8), cos, sin]
    if op == "rope_into_cache":
        at = torch.arange(3)
        return lambda *t: (rope_into_cache(*t, at), *t[5:]), [q, k, v, cos, sin, *torch.zeros(2, 1, 2, 6, 8)]
    if op == "softmax_top_k":
        return lambda x: experts.softmax_top_k(x, 2), [rows]
    w1, w2, weights, ids = torch.randn(3, 32, 16), torch.randn(3, 16, 16), torch.rand(4, 2), torch.tensor([[0, 2]] * 4)
    if op == "moe":
        return lambda x, *e: amd_ops.moe(x, *e, ids, activation="silu"), [rows, w1, w2, weights]
    if op == "clamped_moe":
        biases = torch.randn(3, 32), torch.randn(3, 16)
        parts = [rows, w1.mT.contiguous(), biases[0], w2, biases[1], weights]
        return lambda x, *e: experts.clamped_moe(x, *e, ids), parts
    if op == "top_k_softmax":
        return lambda x: amd_ops.top_k_softmax(x, 2), [rows]
    if op == "grouped_top_k":
        return lambda x, b: amd_ops.grouped_top_k(x, b, 2, groups=4, kept=2), [rows, torch.randn(16)]
    if op == "router_logits":
        return amd_ops.router_logits, [rows, torch.randn(3, 16)]
    if op == "join_rope":
        return amd_ops.join_rope, [*torch.randn(3, 1, 2, 3, 8), torch.randn(1, 1, 3, 8), cos, sin]
    if op == "sink_attention":
        return attended, [torch.randn(1, 4, 1, 8), k, v, torch.randn(4)]
    if op == "conv_step":
        return lambda x, s, w: (amd_ops.conv_step(x, s, w), s), [*torch.randn(2, 1, 8, 1), torch.randn(8, 1)]
    if op == "delta_step":
        more = [*torch.randn(2, 1, 1, 2), *torch.rand(2, 2), torch.randn(1, 2, 8, 8)]
        return amd_ops.delta_step, [*torch.randn(3, 1, 1, 2, 8), *more]
    if op == "gated_rms_norm":
        return lambda x, g, w: amd_ops.gated_rms_norm(x, g, w, 1e-6), [rows, torch.randn(4, 16), weight]
    if op == "sigmoid_gate":
        return amd_ops.sigmoid_gate, [rows, torch.randn(4, 2, 8)]
    if op == "add_shared":
        return amd_ops.add_shared, [*torch.randn(3, 4, 16), torch.randn(1, 16)]
    if op == "linear_cross_entropy":
        return lost, [rows, torch.randn(5, 16)]
    return getattr(amd_ops, op), [rows]


def attended(*tensors: Tensor) -> Tensor:
    """Another toggle asks for it than the one that asks for all others here."""
    with amd_ops.override(use_aiter_attention=1):
        return amd_ops.sink_attention(*tensors)


def lost(x: Tensor, weight: Tensor) -> Tensor:
    """As above."""
    with amd_ops.override(use_fused_cross_entropy=1):
        return amd_ops.linear_cross_entropy(x, weight, torch.tensor([0, 4, -100, 2]))


def misaligned(x: Tensor) -> Tensor:
    """The same numbers in the same layout, four bytes further on."""
    room = x.new_empty(x.numel() + 1)
    return room[1:].as_strided(x.shape, x.stride(), 1).copy_(x)


SPOILT: dict[str, tuple[Callable[[Inputs], Inputs], str]] = {
    "fp64": (lambda inputs: [t.double() for t in inputs], "torch.float64 is not fp32, fp16 or bf16"),
    "misaligned": (lambda inputs: [misaligned(inputs[0]), *inputs[1:]], "does not start at a multiple of 16 bytes"),
}


@pytest.mark.parametrize(
    ("op", "kind"), [(op, kind) for op in OPS for kind in SPOILT if kind != "misaligned" or op not in OWN]
)
def test_it_is_declined_with_the_reason_and_the_number_is_right(asked: None, op: str, kind: str) -> None:
    call, inputs = sound(op)
    call(*[t.clone() for t in inputs])
    assert ran(op) == 1, "the sound call is taken"
    spoil, reason = SPOILT[kind]
    spoilt = spoil(inputs)
    with amd_ops.override(strict=0), pytest.warns(amd_ops.DeclinedWarning, match=reason):
        got = call(*spoilt)
    with pytest.raises(amd_ops.DeclinedError, match=f"{op}: tier triton.*{reason}"):
        call(*spoilt)
    with amd_ops.override(tiers="eager"):
        torch.testing.assert_close(got, call(*[t.clone() for t in spoil(inputs)]), rtol=1e-5, atol=1e-6)
    assert ran(op) == 1


@pytest.mark.parametrize("op", OPS)
def test_cpu_tensors_are_kept_from_a_gpus_kernels(asked: None, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier, "_found", Target("cuda", "gfx1100", 32, 96))
    call, inputs = sound(op)
    providers.forget()
    with (
        amd_ops.override(strict=0),
        pytest.warns(amd_ops.DeclinedWarning, match="a tensor is on cpu, the GPU's"),
    ):
        call(*inputs)
    assert ran(op) == 0
    providers.forget()


def state(batch: int) -> Inputs:
    """A rule's arguments for so many sequences of 64 heads, whose states are 128 x 128."""
    heads, one = torch.zeros(128).expand(batch, 1, 64, 128), torch.zeros(64).expand(batch, 1, 64)
    return [
        heads,
        heads,
        heads,
        one,
        one,
        torch.zeros(64),
        torch.zeros(64),
        torch.zeros(128).expand(batch, 64, 128, 128),
    ]


def vast(op: str) -> Inputs:
    """Arguments of 2**32 numbers each that take no memory, their last dimension dense."""
    rows, weight = torch.zeros(2**8).expand(2**24, 2**8), torch.ones(2**8)
    q, table = torch.zeros(2**8).expand(1, 2**16, 2**8, 2**8), torch.zeros(1, 2**8, 2**8)
    hidden, shares = torch.zeros(4, 2**16), torch.zeros(4, 2)
    up, gate_up, down = (torch.zeros(m).expand(3, n, m) for n, m in ((2**17, 2**16), (2**16, 2**17), (2**16, 2**16)))
    return {
        "moe": [hidden, up, down, shares],
        "clamped_moe": [hidden, gate_up, torch.zeros(3, 2**17), down, torch.zeros(3, 2**16), shares],
        "rms_norm": [rows, weight],
        "add_rms_norm": [rows, rows, weight],
        "apply_rope": [q, q, table, table],
        "qk_norm_rope": [q, q, weight, weight, table, table],
        "rope_into_cache": [q, q, q, table, table, q, q],
        "grouped_top_k": [rows, torch.zeros(2**8)],
        "router_logits": [torch.zeros(4, 2**8), rows],
        "join_rope": [q, q, q, q[:, :1], table, table],
        "conv_step": [
            hidden.expand(2**16, 4, 2**16).mT[..., :1],
            torch.zeros(1).expand(2**16, 2**16, 4),
            torch.zeros(2**16, 4),
        ],
        "delta_step": state(2**12),
        "gated_rms_norm": [rows, rows, weight],
        "sigmoid_gate": [rows, rows],
        "add_shared": [rows, rows, rows, weight[None]],
        "sink_attention": [q[:, :, :1], q, q, torch.zeros(2**16)],
    }.get(op, [rows])


@pytest.mark.parametrize("op", OWN)
def test_what_torch_reads_may_begin_anywhere(asked: None, op: str) -> None:
    call, inputs = sound(op)
    torch.testing.assert_close(call(*map(misaligned, inputs)), call(*inputs))
    assert ran(op) == 2


@pytest.mark.parametrize("op", [op for op in OPS if op not in OWN])
def test_sizes_beyond_32_bits_are_declined(asked: None, op: str) -> None:
    call, _ = sound(op)
    with pytest.raises(amd_ops.DeclinedError, match=f"{op}: tier triton.*too large for 32-bit indexing"):
        call(*vast(op))
