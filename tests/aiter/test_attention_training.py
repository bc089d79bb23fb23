"""Attention with gradients in tier aiter: which kernels run forward and backward, how right they are, what declines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import amd_ops
from amd_ops.backends.backward import SecondDerivativeError
from tests.aiter.support import ON, Gpu, declined, rand
from tests.doubles.aiter import Faults, fake_aiter, wrong
from tests.doubles.aiter.rounding import truncates

LENGTHS = {"short": (9, 9), "chunk": (24, 40), "whole": (64, 64), "long": (135, 150), "decode": (1, 24)}
ROUNDINGS = {True: 3.0, False: 1.5}
"""How much further from fp64 than stock's bf16 a result may be: where CK cuts bits off, and where it rounds."""


@pytest.fixture(name="gpu")
def graded_gpu(gpu: Gpu) -> Iterator[Gpu]:
    with torch.enable_grad():
        yield gpu


@pytest.fixture(name="primary")
def graded_primary(primary: Gpu) -> Iterator[Gpu]:
    with torch.enable_grad():
        yield primary


@pytest.fixture(name="one")
def graded_one(one: Gpu) -> Iterator[Gpu]:
    with torch.enable_grad():
        yield one


def leaves(rows: int, columns: int, size: int = 16, heads: int = 4, kv_heads: int = 2) -> list[Tensor]:
    shapes = [(2, rows, heads, size), (2, columns, kv_heads, size), (2, columns, kv_heads, size)]
    return [rand(*shape).requires_grad_() for shape in shapes]


def copies(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]


def found(qkv: list[Tensor], keep: Tensor | None = None, **options: Any) -> list[Tensor]:
    """The result and the gradients of one call; rows that are padding count for nothing."""
    out = amd_ops.attention(*qkv, **options)
    seed = torch.cos(torch.arange(out.numel(), dtype=torch.float32)).view(out.shape)
    if keep is not None:
        seed = seed * keep[:, :, None, None]
        out = out * keep[:, :, None, None]
    out.backward(seed.to(out.dtype))
    return [out.detach(), *(t.grad for t in qkv if t.grad is not None)]


def in_torch(qkv: list[Tensor], dtype: torch.dtype, keep: Tensor | None = None, **options: Any) -> list[Tensor]:
    with amd_ops.override(tiers="torch,eager"):
        return found(copies(qkv, dtype), keep, **options)


def far(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def hold_to_stock(gpu: Gpu, qkv: list[Tensor], keep: Tensor | None = None, **options: Any) -> list[str]:
    """Train twice; the second run must be in tier aiter, and no further from fp64 than stock's bf16 by a factor. Return
    the kernels of the second run.
    """
    exact, stock = in_torch(qkv, torch.float64, keep, **options), in_torch(qkv, torch.bfloat16, keep, **options)
    found(copies(qkv, torch.bfloat16), keep, **options)
    before = amd_ops.report().calls("attention", "aiter")
    gpu.double.clear()
    got = found(copies(qkv, torch.bfloat16), keep, **options)
    assert amd_ops.report().calls("attention", "aiter") == before + 1, str(amd_ops.report())
    factor = ROUNDINGS[truncates(gpu.double.arch, "attention")]
    for ours, theirs, right in zip(got, stock, exact, strict=True):
        assert far(ours, right) <= factor * far(theirs, right)
    return gpu.double.kernels()


@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("causal", [True, False])
def test_dense_gradients(gpu: Gpu, case: str, causal: bool) -> None:
    assert hold_to_stock(gpu, leaves(*LENGTHS[case]), is_causal=causal) == ["mha_fwd", "mha_bwd"]


@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("size", [64, 128])
def test_head_sizes_with_an_assembly_backward(primary: Gpu, case: str, size: int) -> None:
    forward, backward = hold_to_stock(primary, leaves(*LENGTHS[case], size))
    assembly = LENGTHS[case][0] > 16 and (size == 128 or primary.double.arch == "gfx942")
    assert backward == ("fmha_v3_bwd" if assembly else "mha_bwd")
    assert forward == ("fmha_v3_fwd" if case == "long" and size == 128 else "mha_fwd")


@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("window", [4, 40, 500])
def test_sliding_windows(primary: Gpu, size: int, window: int) -> None:
    hold_to_stock(primary, leaves(64, 64, size), sliding_window=window)


def test_an_equal_number_of_heads(primary: Gpu) -> None:
    hold_to_stock(primary, leaves(64, 64, 128, heads=2, kv_heads=2))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("window", [None, 5])
def test_padded_batches_go_through_the_packed_form(primary: Gpu, side: str, size: int, window: int | None) -> None:
    keep = torch.ones(2, 24, dtype=torch.bool)
    keep[0, :7] = False
    keep = keep if side == "left" else keep.flip(1)
    row, column = torch.arange(24)[:, None], torch.arange(24)[None]
    seen = (column <= row) if window is None else (column <= row) & (column > row - window)
    mask = seen[None, None] & keep[:, None, None, :]
    kernels = hold_to_stock(primary, leaves(24, 24, size), keep, is_causal=False, attention_mask=mask)
    assert all("varlen" in kernel for kernel in kernels)


def test_every_layout_of_queries_keys_and_values(one: Gpu) -> None:
    """Slices of one projection, heads in front of tokens, dense: the backward chooses its kernel by them, too."""
    packed = rand(2, 64, 8, 128)
    slices = [packed[:, :, :4], packed[:, :, 4:6], packed[:, :, 6:]]
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in slices]
    before = len(one.double.calls)
    for qkv in (slices, turned, [x.contiguous() for x in slices]):
        hold_to_stock(one, [x.detach().requires_grad_() for x in qkv])
    assert len(one.double.calls) > before


@pytest.mark.parametrize("frozen", range(3))
def test_what_is_frozen_gets_no_gradient(one: Gpu, frozen: int) -> None:
    qkv = leaves(24, 24)
    qkv[frozen].requires_grad_(False)
    out = amd_ops.attention(*qkv)
    out.float().pow(2).sum().backward()
    assert amd_ops.report().calls("attention", "aiter") == 1
    assert [t.grad is not None for t in qkv] == [index != frozen for index in range(3)]


def test_deterministic_algorithms_reach_the_backward(primary: Gpu) -> None:
    qkv = leaves(64, 64, 128)
    torch.use_deterministic_algorithms(True)
    try:
        kernels = hold_to_stock(primary, qkv)
    finally:
        torch.use_deterministic_algorithms(False)
    (call,) = [call for call in primary.double.calls if call.name.endswith("bwd")]
    one_block = primary.double.arch == "gfx950"  # up to 256 keys in one block: no order to keep
    assert kernels[-1] == ("fmha_v3_bwd" if one_block else "mha_bwd")
    assert call["deterministic"] is not one_block
    hold_to_stock(primary, qkv)
    assert primary.double.kernels()[-1] == "fmha_v3_bwd"


def test_a_gradient_with_gaps_reaches_the_kernel_dense(one: Gpu) -> None:
    for _ in range(2):
        q, k, v = leaves(24, 24)
        amd_ops.attention(q, k, v).sum().backward()  # the gradient of a sum is one number, expanded
    call = one.double.called("mha_bwd", "op")[-1]
    assert call["dout"].stride == (24 * 4 * 16, 4 * 16, 16, 1)


def test_one_probe_per_variant(one: Gpu) -> None:
    for _ in range(3):
        found(leaves(24, 24))
    assert len(one.double.called("mha_bwd", "op")) == 4


def test_under_autocast_attention_trains_in_the_chosen_dtype(one: Gpu) -> None:
    """The first call under autocast is probed apart from it."""
    qkv = leaves(24, 24)
    with torch.autocast("cpu", torch.bfloat16):
        cast = found(copies(qkv, torch.bfloat16))
    plain = found(copies(qkv, torch.bfloat16))
    assert amd_ops.report().calls("attention", "aiter") == 2
    assert all(torch.equal(a, b) for a, b in zip(cast, plain, strict=True))


# --- declined --------------------------------------------------------------------------------------------------------


def declines(gpu: Gpu, reason: str, *qkv: Tensor, **options: Any) -> None:
    out, said = gpu.declines("attention", *qkv, **options)
    assert reason in said
    out.float().pow(2).sum().backward()
    assert all(t.grad is not None for t in qkv)


def test_soft_caps(one: Gpu) -> None:
    declines(one, "backward has no soft cap", *leaves(9, 9), softcap=2.0)


def test_sinks(primary: Gpu) -> None:
    declines(primary, "sinks", *leaves(9, 9), sinks=torch.randn(4))


def test_dropout(one: Gpu) -> None:
    declines(one, "dropout", *leaves(9, 9), dropout=0.5)


def test_a_window_of_one_key(one: Gpu) -> None:
    declines(one, "one key for none", *leaves(24, 24, 64), sliding_window=1)


def test_queries_that_see_no_key(one: Gpu) -> None:
    declines(one, "some queries see no key", *leaves(24, 9))


def test_head_sizes(one: Gpu) -> None:
    declines(one, "head_dim 20/20", *leaves(9, 9, 20))


def faulty(faults: Faults, **options: Any) -> str:
    """What tier aiter says of a training call on an installation with faults."""
    torch.manual_seed(0)
    with fake_aiter("v0.1.20.post1", "gfx942", 304, faults=faults), amd_ops.override(**ON):
        amd_ops.reset_counters()
        qkv = leaves(64, 64, 64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
            got = found(qkv, **options)
            assert amd_ops.report().calls("attention", "aiter") == 0
            (reason,) = declined("attention")
            exact = in_torch(qkv, torch.float64, **options)
        assert all(far(ours, right) < 0.01 for ours, right in zip(got, exact, strict=True))
    return reason


@pytest.mark.parametrize("corrupt", [wrong.slightly, wrong.badly, wrong.unwritten])
def test_a_backward_that_answers_wrongly_is_never_used(corrupt: Any) -> None:
    assert "backward: its probe disagrees" in faulty(Faults(wrong={"fmha_v3_bwd": corrupt}))


def test_a_backward_that_does_not_build_is_never_used() -> None:
    reason = faulty(Faults(raises={"fmha_v3_bwd": RuntimeError("invalid argument for fmha_v3_bwd")}))
    assert "invalid argument for fmha_v3_bwd" in reason


def test_a_backward_without_causality_is_never_used() -> None:
    reason = faulty(Faults(altered={"fmha_v3_bwd": lambda _: {"is_causal": False}}))
    assert "backward: its probe disagrees" in reason


def test_a_forward_that_is_right_for_inference_stays_in_use() -> None:
    """What is wrong is the backward's variant alone."""
    faults = Faults(wrong={"mha_bwd": wrong.badly})
    with fake_aiter("v0.1.20.post1", "gfx942", 304, faults=faults), amd_ops.override(**ON):
        qkv = leaves(24, 24)
        with pytest.warns(amd_ops.DeclinedWarning, match="backward"):
            amd_ops.attention(*qkv)
        with torch.no_grad():
            amd_ops.attention(*qkv)
        assert amd_ops.report().calls("attention", "aiter") == 1


def test_an_aiter_whose_functions_take_no_return_lse(monkeypatch: pytest.MonkeyPatch) -> None:
    from amd_ops.backends.aiter import attention_training

    monkeypatch.setattr(attention_training, "NAMES", ("return_lse", "deterministic", "gone"))
    with fake_aiter(), amd_ops.override(**ON), pytest.warns(amd_ops.DeclinedWarning, match="has no return_lse or"):
        amd_ops.attention(*leaves(9, 9))


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_second_derivative_is_refused_where_it_is_asked_for(one: Gpu) -> None:
    q, k, v = leaves(24, 24)
    gradients = torch.autograd.grad(amd_ops.attention(q, k, v).float().sum(), (q, k, v), create_graph=True)
    assert all(g.requires_grad for g in gradients)
    for gradient in gradients:
        with pytest.raises(SecondDerivativeError, match=r"attention in tier aiter.*AMD_OPS_TIERS=torch,eager"):
            gradient.float().pow(2).sum().backward(retain_graph=True)


def test_a_graph_that_is_kept_gives_the_same_gradients_twice(one: Gpu) -> None:
    qkv = leaves(24, 24)
    loss = amd_ops.attention(*qkv).float().pow(2).sum()
    first = torch.autograd.grad(loss, qkv, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, qkv), strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, qkv)


def test_an_input_that_is_modified_in_between_is_torchs_own_error(one: Gpu) -> None:
    q, k, v = leaves(24, 24)
    changed = k * 1.0
    out = amd_ops.attention(q, changed, v)
    changed.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.float().sum().backward()
