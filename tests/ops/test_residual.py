"""The residual stream: sums in one op with the norm or the GEMM, and every reason to leave them to stock."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import amd_ops
from amd_ops.forward.residual import torch_linear_add

from .reference import close, rms_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Norm(nn.Module):
    """As an overlaid text has it: the formula, and the mark on the function."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        self.weight = nn.Parameter(1.0 + 0.3 * torch.randn(size))
        self.variance_epsilon = 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return amd_ops.rms_norm(x, self.weight, self.variance_epsilon)

    forward._amd_rms_norm = ("weight", "variance_epsilon", "llama")  # type: ignore[attr-defined]


class Mlp(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
        self.down_proj = nn.Linear(40, 24, bias=bias)
        self.act_fn = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    forward._amd_gated_mlp = {}  # type: ignore[attr-defined]  # noqa: RUF012 - as in the overlaid text


class Adapter(nn.Module):
    """What an adapter library puts in the place of a Linear: its weight is the base layer's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base

    @property
    def weight(self) -> nn.Parameter:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) * 1.5


class OtherNorm(Norm):
    """A subclass with a forward of its own takes the mark away."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Marked(torch.Tensor):
    """Some tensor subclass."""


X, R = torch.randn(2, 3, 24), torch.randn(2, 3, 24)
OFF_THE_MARK = "the norm's forward is not one that the overlaid text marks as an RMS norm"


def reasons(site: str) -> dict[str, int]:
    for row in amd_ops.report().as_dict()["ops"]:
        if row["op"] == site:
            return {d["reason"]: d["calls"] for d in row["tiers"][0]["declined"]}
    return {}


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    width=st.integers(1, 20),
    size=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    tier=st.sampled_from(("torch", "eager")),
    owned=st.booleans(),
    sliced=st.booleans(),
)
def test_linear_add_agrees_with_fp64(
    lead: list[int], width: int, size: int, dtype: torch.dtype, tier: str, owned: bool, sliced: bool
) -> None:
    x, weight = torch.randn(*lead, width).to(dtype), torch.randn(size, width).to(dtype)
    residual = torch.randn(*lead, size + 2).to(dtype)[..., 1:-1] if sliced else torch.randn(*lead, size).to(dtype)
    kept, want = residual.clone(), residual.double() + x.double() @ weight.double().t()
    with torch.no_grad(), amd_ops.override(tiers=tier):
        out = amd_ops.linear_add(x, weight, residual, owned=owned)
    assert out.dtype is dtype
    terms = residual.double().abs() + x.double().abs() @ weight.double().abs().t()  # cancellation
    assert bool(((out.double() - want).abs() <= (2e-6 if dtype is torch.float32 else 1.6e-2) * terms + 1e-6).all())
    assert owned or torch.equal(residual, kept)


def test_an_owned_residual_is_used_up_only_outside_autograd() -> None:
    weight = torch.randn(24, 24)
    residual = R.clone()
    with torch.no_grad():
        out = torch_linear_add(X, weight, residual, True)
    assert out.data_ptr() == residual.data_ptr()
    kept, wanted = R.clone(), torch.randn(24, 24).requires_grad_()
    out = torch_linear_add(X, wanted, kept, True)
    assert torch.equal(kept, R)
    out.square().sum().backward()
    reference = wanted.detach().clone().requires_grad_()
    (R + X @ reference.t()).square().sum().backward()
    torch.testing.assert_close(wanted.grad, reference.grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(24, 23)}, r"weight is \[24, 23\].*expected \[N, 24\]"),
        ({"residual": R[:1]}, r"residual is \[1, 3, 24\].*expected \[2, 3, 24\]"),
        ({"residual": R.double()}, "residual is torch.float64"),
        ({"weight": torch.ones(24, 24, device="meta")}, "weight is on meta"),
    ],
)
@pytest.mark.parametrize("tier", ["torch", "eager"])
def test_bad_arguments_are_named(change: dict[str, Any], message: str, tier: str) -> None:
    good = {"x": X, "weight": torch.ones(24, 24), "residual": R}
    with amd_ops.override(tiers=tier), pytest.raises(amd_ops.ArgumentError, match=message):
        amd_ops.linear_add(**{**good, **change})


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_norm_is_the_norm_of_the_sum(dtype: torch.dtype) -> None:
    norm, x, residual = Norm().to(dtype), X.to(dtype), R.to(dtype)
    kept = x.clone(), residual.clone()
    with torch.no_grad():
        found = amd_ops.add_norm(norm, x, residual)
    assert found is not None
    assert torch.equal(found[1], residual + x)
    close(found[0], rms_norm(residual + x, norm.weight.detach(), 1e-5, "llama"), 2.0)
    assert torch.equal(x, kept[0])
    assert torch.equal(residual, kept[1])


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, arguments, output: output * 2)
    return module


def pre_hooked(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(lambda module, arguments: None)
    return module


def patched(module: nn.Module) -> nn.Module:
    stock = module.forward
    module.forward = lambda x: stock(x) * 2  # type: ignore[method-assign]
    return module


def strange_weight(norm: nn.Module) -> nn.Module:
    class Sharded(nn.Parameter):
        pass

    norm.weight = Sharded(torch.ones(24))
    return norm


def wrapped_class(norm: nn.Module) -> nn.Module:
    """A patch on the class that copies what it wraps: the mark comes along, the formula does not."""

    class Patched(Norm):
        pass

    @functools.wraps(Norm.forward)
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return Norm.forward(self, x) * 2

    Patched.forward = forward  # type: ignore[method-assign]
    return Patched()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hooked, "a hook is registered on the module"),
        (pre_hooked, "a hook is registered on the module"),
        (patched, "the module's forward has been patched"),
        (strange_weight, "the norm's weight is not a plain nn.Parameter"),
        (wrapped_class, OFF_THE_MARK),
        (lambda norm: OtherNorm(), OFF_THE_MARK),
        (lambda norm: nn.LayerNorm(24), OFF_THE_MARK),
    ],
)
def test_a_norm_that_is_more_than_its_formula_is_left_to_stock(make: Callable[..., nn.Module], reason: str) -> None:
    assert amd_ops.add_norm(make(Norm()), X, R) is None
    assert reasons("add_norm") == {reason: 1}


def test_a_subclass_without_a_forward_of_its_own_keeps_the_mark() -> None:
    class Same(Norm):
        pass

    assert amd_ops.add_norm(Same(), X, R) is not None


@pytest.mark.parametrize("x", [X.bfloat16(), X[:1], X.as_subclass(Marked)])
def test_hidden_states_that_do_not_fit_are_left_to_stock(x: torch.Tensor) -> None:
    assert amd_ops.add_norm(Norm(), x, R) is None
    assert amd_ops.mlp_add(Mlp(), x, R) is None
    assert len(reasons("add_norm")) == len(reasons("mlp_add")) == 1


def test_a_norm_that_widens_is_left_to_stock_behind_it() -> None:
    assert amd_ops.mlp_add(Mlp(), X.double(), R, True) is None  # a float64 weight made x so, in the llama form
    assert len(reasons("mlp_add")) == 1
    with pytest.raises(amd_ops.ArgumentError, match="residual is"):
        amd_ops.mlp_add(Mlp(), X[:1], R, True)


@pytest.mark.parametrize(
    ("dropout", "reason"),
    [
        (nn.Dropout(0.5).train(), "dropout is on"),
        (hooked(nn.Dropout(0.5)).eval(), "a hook is registered on the module"),
        (nn.Identity(), "what stands for the dropout is not exactly nn.Dropout"),
        (nn.Dropout(0.5).eval(), None),
        (nn.Dropout(0.0).train(), None),
    ],
)
def test_a_dropout_that_does_something_is_left_to_stock(dropout: nn.Module, reason: str | None) -> None:
    normed = amd_ops.add_norm(Norm(), X, R, dropout=dropout)
    added = amd_ops.mlp_add(Mlp(), X, R, dropout=dropout)
    assert (normed is None) == (added is None) == (reason is not None)
    assert list(reasons("add_norm")) == list(reasons("mlp_add")) == ([] if reason is None else [reason])


def test_a_global_hook_is_honoured() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, arguments, output: None)
    try:
        assert amd_ops.add_norm(Norm(), X, R) is None
        assert amd_ops.mlp_add(Mlp(), X, R) is None
    finally:
        handle.remove()
    assert reasons("add_norm") == {"a global module hook is registered": 1}


@pytest.mark.parametrize("fused", [0, 1])
@pytest.mark.parametrize("owned", [False, True])
def test_mlp_add_is_the_residual_and_the_mlp(fused: int, owned: bool) -> None:
    mlp, residual = Mlp(), R.clone()
    with torch.no_grad(), amd_ops.override(use_fused_projections=fused, use_optimized_ops=1):
        want = R + mlp(X)
        found = amd_ops.mlp_add(mlp, X, residual, owned)
    assert found is not None
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert owned or torch.equal(residual, R)


def test_mlp_add_trains_as_stock_does() -> None:
    grads = []
    for ours in (False, True):
        torch.manual_seed(5)
        mlp = Mlp()
        out = amd_ops.mlp_add(mlp, X, R, True) if ours else R + mlp(X)
        assert out is not None
        out.square().sum().backward()
        grads.append([parameter.grad for parameter in mlp.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def with_down(down: Callable[[nn.Linear], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def make(mlp: nn.Module) -> nn.Module:
        mlp.down_proj = down(mlp.down_proj)
        return mlp

    return make


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hooked, "a hook is registered on the module"),
        (patched, "the module's forward has been patched"),
        (lambda mlp: Mlp(bias=True), "the down projection has a bias"),
        (with_down(hooked), "a hook is registered on the Linear"),
        (with_down(Adapter), "Adapter is not exactly nn.Linear"),
        (nn.Sequential, "the module's forward is not one that the overlaid text marks as a gated MLP"),
    ],
)
def test_an_mlp_that_is_more_than_its_formula_is_left_to_stock(make: Callable[..., nn.Module], reason: str) -> None:
    assert amd_ops.mlp_add(make(Mlp()), X, R) is None
    assert reasons("mlp_add") == {reason: 1}


def test_autocast_is_left_to_stock() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert amd_ops.mlp_add(Mlp(), X, R) is None
    assert reasons("mlp_add") == {"autocast chooses the dtype of the down projection": 1}


def test_declines_of_a_shape_that_a_layer_does_not_have_are_no_error_in_strict_mode() -> None:
    with amd_ops.override(strict=1, use_optimized_ops=1, use_fused_projections=1):
        assert amd_ops.add_norm(nn.LayerNorm(24), X, R) is None
