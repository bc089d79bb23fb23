"""Attention through aiter's Triton kernel where its CK and assembly kernels do not run: what it takes and is given,
what is declined and why, what its probe finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import amd_ops
from amd_ops.backends.aiter.triton_attention import CUT
from tests.aiter.support import BF16, Gpu, declined, rand
from tests.aiter.test_attention import PADDINGS, compare_kept_rows, full_mask, qkv
from tests.doubles import formulas
from tests.doubles.aiter import Faults, fake_aiter
from tests.doubles.aiter.wrong import one_sequence, slightly, unwritten

NEWEST = "v0.1.22"
TARGETS = [(version, "gfx1100") for version in ("v0.1.7.post3", "v0.1.9.post1", "v0.1.16", "v0.1.20.post1", NEWEST)]
TARGETS += [(NEWEST, "gfx90a"), (NEWEST, "gfx1151"), (NEWEST, "gfx1201")]
ULPS = 2.0
DENSE, PACKED = "triton.flash_attn_func", "triton.flash_attn_varlen_func"


def start(version: str, arch: str, faults: Faults | None = None) -> Iterator[Gpu]:
    torch.manual_seed(0)
    asked = amd_ops.override(use_aiter_attention=1, strict=1)
    with fake_aiter(version, arch, 96, faults=faults) as double, asked, torch.no_grad():
        amd_ops.reset_counters()
        yield Gpu(double)


def declines(gpu: Gpu, *args: Any, **options: Any) -> tuple[Tensor, str]:
    """The result of a call that the Triton kernel declines, and the reason."""
    out, _ = gpu.declines("attention", *args, **options)
    return out, declined("attention", "aiter:triton")[0]


@pytest.fixture(params=TARGETS, ids="-".join)
def radeon(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """Chips without CK attention, under versions that take a cut from the caller."""
    yield from start(*request.param)


@pytest.fixture
def one() -> Iterator[Gpu]:
    yield from start(NEWEST, "gfx1100")


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (1, 9), (3, 9), (1, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_dense_calls_are_one_launch(radeon: Gpu, rows: int, columns: int, causal: bool) -> None:
    q, k, v = qkv(rows, columns)
    out, (call,) = radeon.takes("attention", q, k, v, is_causal=causal)
    assert call.name == DENSE
    assert out.is_contiguous()
    formulas.close(out, formulas.attention(q, k, v, causal=causal), ULPS)
    assert call["config"] == (None if radeon.double.arch in radeon.double.catalog.triton["cuts"] else CUT)


def test_a_cut_that_aiter_has_not_is_told(radeon: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    has_one = radeon.double.arch in radeon.double.catalog.triton["cuts"]
    with caplog.at_level("WARNING", logger="amd_ops"):
        radeon.takes("attention", *qkv(7, 7))
    assert any("aiter's own cut raised" in text for text in caplog.messages) is not has_one


def test_the_report_and_explain_name_the_kernel(one: Gpu) -> None:
    q, k, v = qkv(4, 4)
    one.takes("attention", q, k, v)
    rows = {tier["tier"]: tier for row in amd_ops.report().as_dict()["ops"] for tier in row["tiers"]}
    assert rows["aiter:triton"]["calls"] == amd_ops.report().calls("attention", "aiter") == 2
    assert "gfx1100 is not one of gfx942, gfx950" in rows["aiter"]["declined"][0]["reason"]
    verdict = amd_ops.explain("attention", q, k, v)
    assert verdict.tier == "aiter:triton"
    assert not verdict.verdicts[0].ok


@pytest.mark.parametrize("size", [8, 64, 80, 96, 128, 256])
def test_head_sizes(radeon: Gpu, size: int) -> None:
    q, k, v = qkv(3, 6, size)
    out, _ = radeon.takes("attention", q, k, v)
    formulas.close(out, formulas.attention(q, k, v), ULPS)


@pytest.mark.parametrize(("size", "value_size"), [(192, 128), (80, 64), (96, 64)])
def test_narrower_values_are_taken_where_both_parts_are_powers_of_two(one: Gpu, size: int, value_size: int) -> None:
    q, k, v = qkv(3, 6, size)
    out, _ = one.takes("attention", q, k, v[..., :value_size].contiguous())
    formulas.close(out, formulas.attention(q, k, v[..., :value_size]), ULPS)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (6, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, BF16])
def test_grouped_heads_and_both_dtypes(one: Gpu, heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in qkv(5, 5, heads=heads, kv_heads=kv_heads))
    out, (call,) = one.takes("attention", q, k, v, scaling=0.3)
    assert call["k"].shape[2] == kv_heads
    formulas.close(out, formulas.attention(q, k, v, 0.3), ULPS)


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (1, 9), (3, 9)])
@pytest.mark.parametrize("window", [2, 4, 50])
@pytest.mark.parametrize("causal", [True, False])
def test_windows_bound_the_past_alone(one: Gpu, rows: int, columns: int, window: int, causal: bool) -> None:
    q, k, v = qkv(rows, columns)
    out, (call,) = one.takes("attention", q, k, v, sliding_window=window, is_causal=causal)
    assert call["window_size"] == ((window - 1, -1) if window < columns else (-1, -1))
    formulas.close(out, formulas.attention(q, k, v, window=window, causal=causal), ULPS)


@pytest.mark.parametrize("version", ["v0.1.7.post3", "v0.1.9.post1"])
def test_versions_without_windows_decline_them(version: str) -> None:
    for gpu in start(version, "gfx1100"):
        q, k, v = qkv(7, 7)
        out, reason = declines(gpu, q, k, v, sliding_window=4)
        assert "Sliding Window is not supported" in reason
        formulas.close(out, formulas.attention(q, k, v, window=4), ULPS)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_sinks_where_they_exist(radeon: Gpu, dtype: torch.dtype) -> None:
    q, k, v = qkv(5, 9)
    sinks = torch.randn(4).to(dtype)
    expected = formulas.attention(q, k, v, sinks=sinks)
    if radeon.version == "v0.1.7.post3":
        out, reason = declines(radeon, q, k, v, sinks=sinks)
        assert reason == "aiter's Triton attention has no sinks"
    else:
        out, (call,) = radeon.takes("attention", q, k, v, sinks=sinks)
        assert call["sink"].dtype == torch.float32
    formulas.close(out, expected, ULPS)


@pytest.mark.parametrize("side", PADDINGS)
@pytest.mark.parametrize("window", [None, 3])
def test_padded_batches_are_packed(one: Gpu, side: str, window: int | None) -> None:
    q, k, v = qkv(7, 7)
    keep = PADDINGS[side]
    out, (call,) = one.takes("attention", q, k, v, is_causal=False, attention_mask=full_mask(keep, 7, window))
    assert call.name == PACKED
    compare_kept_rows(out, q, k, v, keep, window)


def with_grad() -> tuple[Any, ...]:
    q, k, v = qkv(3, 3)
    return q.requires_grad_(), k, v


DECLINES: dict[str, tuple[Callable[[], tuple[Any, ...]], dict[str, Any], str]] = {
    "soft cap": (lambda: tuple(qkv(4, 4)), {"softcap": 2.0}, "has no soft cap"),
    "dropout": (lambda: tuple(qkv(4, 4)), {"dropout": 0.1}, "dropout is on"),
    "a window of one key": (lambda: tuple(qkv(4, 4)), {"sliding_window": 1}, "a window of one key for none"),
    "fp32": (lambda: tuple(t.float() for t in qkv(4, 4)), {}, "torch.float32 is neither"),
    "a head of 20": (lambda: tuple(qkv(3, 3, 20)), {}, "head_dim 20/20"),
    "a head of 264": (lambda: tuple(qkv(3, 3, 264)), {}, "head_dim 264/264"),
    "values of 48": (lambda: (*qkv(3, 3, 64)[:2], rand(2, 3, 2, 48)), {}, "head_dim 64/48: aiter's Triton"),
    "wider values": (lambda: (*qkv(3, 3, 64)[:2], rand(2, 3, 2, 128)), {}, "head_dim 64/128: aiter's Triton"),
    "a gradient": (with_grad, {}, "a gradient is needed and aiter's Triton attention is used for inference only"),
    "strides": (lambda: tuple(t.transpose(1, 3).contiguous().transpose(1, 3) for t in qkv(4, 4)), {}, "not dense"),
    "a mask per head": (
        lambda: tuple(qkv(3, 3)),
        {"is_causal": False, "attention_mask": torch.ones(1, 4, 3, 3, dtype=torch.bool)},
        "differs from head to head",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLINES)
def test_what_the_kernel_cannot_do_is_declined(one: Gpu, name: str) -> None:
    make, options, expected = DECLINES[name]
    with torch.enable_grad():
        q, k, v = make()
        out, reason = declines(one, q, k, v, **options)
    assert expected in reason
    assert out.shape == (*q.shape[:3], v.shape[3])
    assert one.double.kernels() == [], "nothing was launched"


def test_a_version_without_a_cut_for_the_chip_is_declined() -> None:
    """v0.1.5 names its files after cards and its kernel takes other numbers than ours: the probe's error is told."""
    for gpu in start("v0.1.5.post4", "gfx1100"):
        out, reason = declines(gpu, *qkv(4, 4))
        assert "KeyError" in reason
        assert out.shape == (2, 4, 4, 16)


@pytest.mark.parametrize("wrong", [slightly, unwritten])
def test_a_wrong_answer_is_noticed(wrong: Callable[[Tensor], Tensor]) -> None:
    for gpu in start(NEWEST, "gfx1100", Faults(wrong={DENSE: wrong, PACKED: wrong})):
        q, k, v = qkv(4, 4)
        out, reason = declines(gpu, q, k, v)
        assert "disagrees" in reason
        formulas.close(out, formulas.attention(q, k, v), ULPS)


CONFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a lost window": (DENSE, {"window_size": (-1, -1)}, {"sliding_window": 3}),
    "lost sinks": (DENSE, {"sink": None}, {"sinks": torch.randn(4)}),
    "lost causality": (DENSE, {"causal": False}, {}),
}


@pytest.mark.parametrize("name", CONFUSED)
def test_an_argument_that_the_kernel_ignores_is_noticed(name: str) -> None:
    kernel, ignored, options = CONFUSED[name]
    for gpu in start(NEWEST, "gfx1100", Faults(altered={kernel: lambda arguments: ignored})):
        q, k, v = qkv(6, 8)
        _, reason = declines(gpu, q, k, v, **options)
        assert "disagrees" in reason


def test_packing_that_forgets_where_sequences_end_is_noticed() -> None:
    for gpu in start(NEWEST, "gfx1100", Faults(altered={PACKED: one_sequence})):
        q, k, v = qkv(7, 7)
        mask = full_mask(PADDINGS["left"], 7)
        _, reason = declines(gpu, q, k, v, is_causal=False, attention_mask=mask)
        assert "disagrees" in reason


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_where_ck_is_missing_triton_takes_over(arch: str) -> None:
    faults = Faults(missing=frozenset({"flash_attn_func", "flash_attn_varlen_func"}))
    for gpu in start(NEWEST, arch, faults):
        q, k, v = qkv(5, 7)
        out, (call,) = gpu.takes("attention", q, k, v)
        assert call.name == DENSE
        assert call["config"] is None, "aiter has a cut of its own"
        formulas.close(out, formulas.attention(q, k, v), ULPS)
        assert "has no flash_attn_func" in str(amd_ops.report())


def test_without_either_both_reasons_are_told_and_strict_mode_raises() -> None:
    names = frozenset({"triton.flash_attn_func"})
    for _ in start(NEWEST, "gfx1100", Faults(missing=names)):
        q, k, v = qkv(4, 4)
        with amd_ops.override(strict=0):
            with pytest.warns(amd_ops.DeclinedWarning, match="gfx1100 is not one of"):
                amd_ops.attention(q, k, v)
            assert "has no flash_attn_func" in declined("attention", "aiter:triton")[0]
        with pytest.raises(amd_ops.DeclinedError, match="gfx1100 is not one of"):
            amd_ops.attention(q, k, v)


@pytest.mark.parametrize("error", [RuntimeError("no hipcc"), KeyError("gfx1100")])
def test_an_aiter_that_does_not_import_is_a_reason(error: Exception) -> None:
    for _ in start(NEWEST, "gfx1100", Faults(import_error=error)):
        with amd_ops.override(strict=0), pytest.warns(amd_ops.DeclinedWarning):
            amd_ops.attention(*qkv(4, 4))
        assert f"import aiter failed: {type(error).__name__}" in str(amd_ops.report())


def test_force_eager_attention_skips_it(one: Gpu) -> None:
    with amd_ops.override(force_eager_attention=1, strict=0):
        amd_ops.attention(*qkv(4, 4))
    assert one.double.imports == []
