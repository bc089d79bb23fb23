"""The doubles of aiter.ops.triton and of liger-kernel refuse what the real ones would answer wrongly, or do so too."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from amd_ops.backends.aiter.triton_attention import CUT
from tests.doubles.aiter import Violation, fake_aiter
from tests.doubles.liger import HOMES, fake_liger
from tests.doubles.liger import Violation as Refused

BF16 = torch.bfloat16


def attention(version: str = "v0.1.20.post1", **options: Any) -> torch.Tensor:
    home = "mha" if version == "v0.1.9.post1" else "attention.mha"
    q = torch.randn(1, 4, 2, 16).to(BF16)
    with fake_aiter(version, "gfx1100", 96, attach=False, tolerate_violations=True) as double:
        function = double.load(f"aiter.ops.triton.{home}").flash_attn_func
        result: torch.Tensor = function(q, q, q, causal=True, **{"config": CUT, **options})
        return result


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"window_size": (0, -1)}, Violation, "counts as none"),
        ({"window_size": (2, 0)}, ValueError, "window_size_right"),
        ({"window_size": (2, -1), "version": "v0.1.9.post1"}, ValueError, "Sliding Window"),
        ({"config": None}, FileNotFoundError, "gfx1100-MHA-DEFAULT.json"),
        ({"config": {**CUT, "BLOCK": 1}}, KeyError, "unrecognised"),
        ({"dropout_p": 0.1}, Violation, "dropout"),
        ({"sink": torch.randn(3)}, Violation, "sink has shape"),
    ],
)
def test_triton_attention_refuses(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        attention(**options)


def test_triton_attention_answers_what_it_takes() -> None:
    assert attention().shape == (1, 4, 2, 16)


def rows(width: int = 8, **how: Any) -> torch.Tensor:
    return torch.randn(2, width, **how)


CALLS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "three heads": (
        "rope.rope", "past the end of 3", lambda f: f(*(torch.randn(4, 3, 8),) * 2, *tables(), 0, False, False),
    ),
    "a position off the table": (
        "rope.rope", "off the table",
        lambda f: f(*(torch.randn(4, 2, 8),) * 2, *tables()[:2], torch.arange(4) + 1, 0, False, False),
    ),
    "rows of 24 bytes": ("normalization.rmsnorm", "promises aligned", lambda f: f(rows(6), torch.ones(6), 1e-6)),
    "strides": ("normalization.rmsnorm", "not contiguous", lambda f: f(rows(16)[:, :8], torch.ones(8), 1e-6)),
    "a gradient": (
        "normalization.rmsnorm", "grad is needed", lambda f: f(rows(requires_grad=True), torch.ones(8), 1e-6),
    ),
}  # fmt: skip


def tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(4, 8), torch.randn(4, 8), torch.arange(4)


@pytest.mark.parametrize("name", CALLS)
def test_triton_kernels_refuse(name: str) -> None:
    home, text, call = CALLS[name]
    function = "rope_cached_thd_positions_2c_fwd" if home == "rope.rope" else "rms_norm"
    with fake_aiter("v0.1.20.post1", "gfx1100", 96, attach=False, tolerate_violations=True) as double:
        found = getattr(double.load(f"aiter.ops.triton.{home}"), function)
        with pytest.raises(Violation, match=text):
            call(found)


LIGER: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "a gradient over another": ("LigerRMSNormFunction", (rows(), torch.ones(8), 1e-6), "in_place"),
    "strides": ("LigerRMSNormFunction", (rows(16)[:, :8], torch.ones(8), 1e-6, 0.0, "llama", False), "would be copied"),
    "a weight of another dtype": (
        "LigerRMSNormFunction", (rows().half(), torch.ones(8), 1e-6, 0.0, "llama", False), "weight torch.float32",
    ),
    "a form that no model has": (
        "LigerRMSNormFunction", (rows(), torch.ones(8), 1e-6, 1.0, "llama", False), "llama, 1.0",
    ),
    "silu over its input": ("LigerFusedGateUpSiLUMulFunction", (rows(), True), "in_place"),
    "gelu with a gradient": ("LigerGELUMulFunction", (rows(requires_grad=True), rows()), "write over the inputs"),
    "rope with a gradient": (
        "LigerRopeFunction",
        (*(torch.randn(1, 3, 2, 8, requires_grad=True).transpose(1, 2),) * 2, *(torch.ones(1, 3, 8),) * 2),
        "write over the gradients",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIGER)
def test_liger_refuses(name: str) -> None:
    function, args, text = LIGER[name]
    with fake_liger(tolerated=True):
        module = importlib.import_module(f"liger_kernel.ops.{HOMES[function]}")
        with pytest.raises(Refused, match=text):
            getattr(module, function).apply(*args)


def test_a_violation_that_somebody_swallowed_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="against its contract"), fake_liger() as double:
        double.violations.append("seen")


def test_liger_rotates_in_place_and_reads_one_half_of_a_table() -> None:
    x = torch.randn(1, 3, 2, 8)
    q, k = x.clone().transpose(1, 2), x.clone().transpose(1, 2)
    cos = torch.cat((torch.zeros(1, 3, 4), torch.full((1, 3, 4), 9.0)), -1)
    with fake_liger():
        module = importlib.import_module("liger_kernel.ops.rope")
        with torch.no_grad():
            out, _ = module.LigerRopeFunction.apply(q, k, cos, torch.zeros(1, 3, 8))
    assert out.data_ptr() == q.data_ptr()
    assert not q.any(), "the nines of the second half were never read"
