"""linear on every CPU tier, and apply_linear's idea of a Linear that may be replaced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import amd_ops

from .reference import close
from .test_norm import DTYPES, SHAPES, laid_out


@settings(max_examples=60, deadline=None)
@given(
    lead=SHAPES,
    inputs=st.integers(1, 16),
    outputs=st.integers(0, 9),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(("dense", "transposed", "sliced")),
    tier=st.sampled_from(("torch", "eager")),
)
def test_every_tier_agrees_with_fp64(
    lead: list[int], inputs: int, outputs: int, bias: bool, dtype: torch.dtype, layout: str, tier: str
) -> None:
    x, weight = laid_out((*lead, inputs), dtype, layout), torch.randn(outputs, inputs).to(dtype)
    shift = torch.randn(outputs).to(dtype) if bias else None
    with amd_ops.override(tiers=tier):
        out = amd_ops.linear(x, weight, shift)
    want = x.double() @ weight.double().t()
    assert out.dtype is dtype
    close(out, want if shift is None else want + shift.double(), 8.0)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.randn(4, 9), None, r"weight is \[4, 9\].*expected \[N, 8\]"),
        (torch.randn(4, 8).bfloat16(), None, "weight is torch.bfloat16, expected torch.float32"),
        (torch.randn(4, 8), torch.randn(5), r"bias is \[5\]"),
        (torch.randn(4, 8), torch.randn(4).double(), "bias is torch.float64"),
    ],
)
def test_bad_arguments_are_named(weight: torch.Tensor, bias: torch.Tensor | None, message: str) -> None:
    with pytest.raises(amd_ops.ArgumentError, match=message):
        amd_ops.linear(torch.randn(2, 8), weight, bias)


def site() -> tuple[int, dict[str, int]]:
    """Calls that took our path, and the reasons of those that did not."""
    for row in amd_ops.report().as_dict()["ops"]:
        if row["op"] == "apply_linear":
            return row["tiers"][0]["calls"], {d["reason"]: d["calls"] for d in row["tiers"][0]["declined"]}
    return 0, {}


def test_a_plain_linear_is_replaced() -> None:
    module, x = nn.Linear(8, 4), torch.randn(3, 8)
    assert torch.equal(amd_ops.apply_linear(module, x), module(x))
    assert site() == (1, {})


class Quantised(nn.Linear):
    pass


class Wrapper(nn.Module):
    """Like an adapter: has a ``weight`` that is not the whole story."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 4)

    @property
    def weight(self) -> nn.Parameter:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + 1.0


class Subclass(torch.Tensor):
    pass


def spoiled(how: str) -> nn.Module:
    module = nn.Linear(8, 4)
    if how == "subclass":
        return Quantised(8, 4)
    if how == "adapter":
        return Wrapper()
    if how == "hook":
        module.register_forward_hook(lambda m, args, out: out + 1.0)
    if how == "pre-hook":
        module.register_forward_pre_hook(lambda m, args: (args[0] * 2.0,))
    if how == "backward hook":
        module.register_full_backward_hook(lambda m, gi, go: None)
    if how == "patched":
        old = module.forward
        module.forward = lambda x: old(x) + 1.0  # type: ignore[method-assign]
    if how == "parametrised":
        nn.utils.parametrizations.weight_norm(module)
    if how == "weight subclass":
        module.weight = nn.Parameter(torch.randn(4, 8).as_subclass(Subclass))
    return module


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("subclass", "Quantised is not exactly nn.Linear"),
        ("adapter", "Wrapper is not exactly nn.Linear"),
        ("hook", "a hook is registered on the Linear"),
        ("pre-hook", "a hook is registered on the Linear"),
        ("backward hook", "a hook is registered on the Linear"),
        ("patched", "the Linear's forward has been patched"),
        ("parametrised", "ParametrizedLinear is not exactly nn.Linear"),
        ("weight subclass", "a parameter of the Linear is not a plain nn.Parameter"),
    ],
)
def test_anything_else_is_called_as_it_is(how: str, reason: str) -> None:
    module, x = spoiled(how), torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(amd_ops.apply_linear(module, x), module(x))
    assert site() == (0, {reason: 1})


def test_a_global_hook_is_respected() -> None:
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(m))
    try:
        amd_ops.apply_linear(nn.Linear(8, 4), torch.randn(1, 8))
    finally:
        handle.remove()
    assert len(seen) == 1
    assert site() == (0, {"a global module hook is registered": 1})


def test_a_patched_linear_class_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: torch.full((1,), 7.0))
    assert float(amd_ops.apply_linear(nn.Linear(8, 4), torch.randn(1, 8))) == 7.0


def test_a_failed_patch_put_back_by_a_recorder_does_not_count() -> None:
    from amd_ops.modules import is_patched

    module = nn.Linear(8, 4)
    module.forward = module.forward  # type: ignore[method-assign]
    assert not is_patched(module)
    module.forward = nn.Linear(8, 4).forward  # type: ignore[method-assign]
    assert is_patched(module)
