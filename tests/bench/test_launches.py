"""A launch count says what the tier that answered launches: one kernel, or all that torch needs for it."""

from __future__ import annotations

from collections import Counter

import torch
from rocm_overlay.bench import launches

import amd_ops
from tests.doubles.aiter import fake_aiter

X = torch.randn(4, 64).bfloat16()
WEIGHT = torch.randn(64).bfloat16()


def counted(run: object) -> tuple[int, Counter[str]]:
    assert callable(run)
    with torch.inference_mode():
        run()  # binds and proves
        names: Counter[str] = Counter()
        return launches.count(run, names)["once"], names


def test_a_call_that_a_kernel_answers_counts_once() -> None:
    with fake_aiter("v0.1.20.post1", "gfx942", 304), amd_ops.override(use_optimized_ops=1):
        assert counted(lambda: amd_ops.rms_norm(X, WEIGHT, 1e-6)) == (1, Counter({"aiter::rms_norm": 1}))


def test_a_call_that_torch_answers_counts_what_torch_launches() -> None:
    with amd_ops.override(use_optimized_ops=1, tiers="torch,eager"):
        once, names = counted(lambda: amd_ops.softmax_top_k(torch.randn(4, 8), 2))
    assert once == names.total() > 3
    assert {"softmax", "topk", "sum", "div"} <= set(names)


def test_a_call_that_a_kernel_declines_counts_what_torch_launches() -> None:
    with fake_aiter("v0.1.20.post1", "gfx942", 304), amd_ops.override(use_optimized_ops=1, tiers="aiter,eager"):
        once, names = counted(lambda: amd_ops.rms_norm(X.float(), WEIGHT.float(), 1e-6))
    assert once > 1
    assert not any(name.startswith("aiter") for name in names)


def test_views_and_conversions_that_convert_nothing_launch_nothing() -> None:
    assert counted(lambda: X.view(2, 2, 64).transpose(0, 1).to(torch.bfloat16).flatten(2)) == (0, Counter())
    assert counted(lambda: X.to(torch.float32).t().contiguous())[0] == 2
