"""Experts that are 3-D parameters: the op where the module's own formula is known and chosen, the module elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amd_ops
from tests.doubles import experts_chooser

from .test_residual import reasons

chooser = experts_chooser.load()
HIDDEN, IDS = torch.randn(6, 24), torch.tensor([[0, 3], [1, 2], [3, 0], [2, 3], [1, 0], [3, 1]])
WEIGHTS = torch.rand(6, 2)
OWN = "the experts' gate is one of their own"
FORMULA = "the experts' implementation is {!r}, not stock's own formula"


def plain_class() -> type[Any]:
    """A class with a marked loop, as the overlaid text has it, made anew since tests decorate and patch it."""

    class Gated(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(4, 2 * 16, 24) / 5)
            self.down_proj = nn.Parameter(torch.randn(4, 24, 16) / 4)
            self.act_fn = config.act

        def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            return chooser.loop_over(hidden, ids, weights, functools.partial(chooser.gated, self))

        forward._amd_experts = "gated"  # type: ignore[attr-defined]

    return Gated


def clamped_class() -> type[Any]:
    """The same of the clamped form."""

    class Clamped(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.gate_up_proj, self.gate_up_proj_bias = self._pair(24, 32)
            self.down_proj, self.down_proj_bias = self._pair(16, 24)
            self.alpha, self.limit = 1.7, 0.6

        def _pair(self, size: int, width: int) -> tuple[nn.Parameter, nn.Parameter]:
            return nn.Parameter(torch.randn(4, size, width) / 4), nn.Parameter(torch.randn(4, width))

        def _apply_gate(self, both: Tensor) -> Tensor:
            gate, up = both[..., ::2].clamp(max=self.limit), both[..., 1::2].clamp(min=-self.limit, max=self.limit)
            return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))

        def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            def run(expert: int, x: Tensor) -> Tensor:
                middle = self._apply_gate(x @ self.gate_up_proj[expert] + self.gate_up_proj_bias[expert])
                return middle @ self.down_proj[expert] + self.down_proj_bias[expert]

            return chooser.loop_over(hidden, ids, weights, run)

        forward._amd_experts = "clamped"  # type: ignore[attr-defined]

    return Clamped


def config(name: str | None = "grouped_mm", act: Any = None) -> SimpleNamespace:
    return SimpleNamespace(_experts_implementation=name, act=nn.SiLU() if act is None else act)


def make(name: str | None = "grouped_mm", act: Any = None) -> Any:
    return chooser.use_experts_implementation(plain_class())(config(name, act))


@pytest.fixture(autouse=True)
def on() -> Any:
    with amd_ops.override(use_fused_projections=1, use_optimized_ops=1), torch.no_grad():
        amd_ops.reset_counters()
        yield


def calls() -> tuple[int, int]:
    """How often the op and how often the module itself ran."""
    (row,) = [row for row in amd_ops.report().as_dict()["ops"] if row["op"] == "moe_block"]
    return row["tiers"][0]["calls"], row["tiers"][1]["calls"]


def agree(experts: Any, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> None:
    given = HIDDEN[rows].to(dtype), IDS[rows], WEIGHTS[rows].to(dtype)
    found = amd_ops.stacked_experts(experts, *given)
    bound = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(found, experts(*given), rtol=bound, atol=bound)


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh")])
@pytest.mark.parametrize("name", [None, "eager", "grouped_mm", "batched_mm"])
def test_stock_formulas_go_to_the_op(name: str | None, act: nn.Module) -> None:
    experts = make(name, act)
    for rows in (slice(None), slice(1), slice(0)):
        agree(experts, rows)
    agree(experts.bfloat16(), dtype=torch.bfloat16)
    assert calls() == (4, 0)


def test_the_clamped_form_goes_to_its_op() -> None:
    experts = chooser.use_experts_implementation(clamped_class())(config("eager"))
    for rows in (slice(None), slice(1), slice(0)):
        agree(experts, rows)
    assert calls() == (3, 0)
    assert {row["op"] for row in amd_ops.report().as_dict()["ops"] if row["calls"]} >= {"clamped_moe", "moe_block"}


def test_a_class_without_the_decorator_is_known_by_its_own_mark() -> None:
    agree(plain_class()(config()))
    agree(clamped_class()(config()))
    assert calls() == (2, 0)


def test_a_subclass_without_a_forward_of_its_own_is_the_same() -> None:
    class Same(type(make())):  # type: ignore[misc]
        pass

    agree(Same(config()))
    assert calls() == (1, 0)


def hooked(experts: Any) -> Any:
    experts.register_forward_hook(lambda module, arguments, output: output * 2)
    return experts


def patched(experts: Any) -> Any:
    stock = experts.forward
    experts.forward = lambda *given: stock(*given) * 2
    return experts


def another_forward(experts: Any) -> Any:
    class Other(type(experts)):  # type: ignore[misc]
        def forward(self, *given: Tensor) -> Tensor:
            return super().forward(*given) * 2

    return Other(config())


def another_wrapper(experts: Any) -> Any:
    class Wrapped(type(experts)):  # type: ignore[misc]
        pass

    stock = Wrapped.forward
    Wrapped.forward = functools.wraps(stock)(lambda self, *given: stock(self, *given) * 2)
    return Wrapped(config())


def wrapped_below(experts: Any) -> Any:
    """Somebody wraps the loop before transformers' decorator does: the mark is copied, the formula is another."""
    changed = plain_class()
    stock = changed.forward
    changed.forward = functools.wraps(stock)(lambda self, *given: stock(self, *given) * 2)
    return chooser.use_experts_implementation(changed)(config("eager"))


def wrapped_by_an_object(experts: Any) -> Any:
    """A wrapper that is no function: it has no globals."""

    class Call:
        def __init__(self, stock: Callable[..., Tensor]) -> None:
            functools.update_wrapper(self, stock)

        def __get__(self, owner: Any, kind: type) -> Any:
            return self if owner is None else lambda *given: self.__wrapped__(owner, *given) * 2  # type: ignore[attr-defined]

    class Wrapped(type(experts)):  # type: ignore[misc]
        pass

    Wrapped.forward = Call(Wrapped.forward)
    return Wrapped(config())


def another_gate(experts: Any) -> Any:
    class Other(type(experts)):  # type: ignore[misc]
        def _apply_gate(self, both: Tensor) -> Tensor:
            return both.chunk(2, dim=-1)[1]

    return Other(config())


def another_clamped_gate(experts: Any) -> Any:
    class Other(clamped_class()):  # type: ignore[misc]
        def _apply_gate(self, both: Tensor) -> Tensor:
            return both[..., ::2]

    return Other(config())


def patched_gate(experts: Any) -> Any:
    experts._apply_gate = lambda both: both.chunk(2, dim=-1)[1]
    return experts


def spread(experts: Any) -> Any:
    experts._is_expert_parallel = True
    return experts


def sharded(experts: Any) -> Any:
    class Shard(nn.Parameter):
        pass

    experts.down_proj = Shard(experts.down_proj.detach())
    return experts


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hooked, "a hook is registered on the module"),
        (patched, "the module's forward has been patched"),
        (another_forward, "the experts' forward is not one that the overlaid text marks"),
        (another_wrapper, "the experts' forward is not one that the overlaid text marks"),
        (wrapped_by_an_object, "the experts' forward is not one that the overlaid text marks"),
        (wrapped_below, "the experts' forward is not one that the overlaid text marks"),
        (another_gate, OWN),
        (another_clamped_gate, "the experts' gate is not the one of their class"),
        (patched_gate, "the experts' gate has been patched"),
        (spread, "the experts are spread over ranks"),
        (sharded, "the experts' parameters or the hidden states are not plain"),
        (lambda experts: make("sonicmoe"), FORMULA.format("sonicmoe")),
        (lambda experts: make(act=nn.ReLU()), "the experts' activation has no fused form"),
        (lambda experts: experts.double(), "the experts and the hidden states differ in dtype or device"),
    ],
)
def test_what_is_more_than_the_formula_runs_itself(change: Callable[[Any], Any], reason: str) -> None:
    experts = change(make())
    given = HIDDEN if experts.down_proj.dtype is HIDDEN.dtype else HIDDEN.bfloat16(), IDS, WEIGHTS
    if given[0].dtype is torch.bfloat16:
        with pytest.raises(RuntimeError):  # stock's own answer to two dtypes
            amd_ops.stacked_experts(experts, *given)
    else:
        assert torch.equal(amd_ops.stacked_experts(experts, *given), experts(*given))
    assert calls() == (0, 1)
    assert reasons("moe_block") == {reason: 1}


def test_an_implementation_that_was_replaced_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = make()
    monkeypatch.setitem(chooser.ALL_EXPERTS_FUNCTIONS, "grouped_mm", lambda self, hidden, ids, weights: hidden * 0)
    assert not amd_ops.stacked_experts(experts, HIDDEN, IDS, WEIGHTS).any()
    assert reasons("moe_block") == {FORMULA.format("grouped_mm"): 1}


def test_autocast_and_wanted_gradients_are_left_to_stock() -> None:
    experts = make("eager")
    with torch.autocast("cpu", torch.bfloat16):
        amd_ops.stacked_experts(experts, HIDDEN, IDS, WEIGHTS)
    with torch.enable_grad():
        amd_ops.stacked_experts(experts, HIDDEN, IDS, WEIGHTS).sum().backward()
    assert experts.down_proj.grad is not None
    wanted = {"autocast chooses the dtype of the experts": 1, "gradients of the weights are wanted": 1}
    assert reasons("moe_block") == wanted


def test_frozen_experts_pass_gradients_on() -> None:
    experts = make().requires_grad_(False)
    grads = []
    with torch.enable_grad():
        for run in (experts, functools.partial(amd_ops.stacked_experts, experts)):
            hidden = HIDDEN.clone().requires_grad_()
            run(hidden, IDS, WEIGHTS).square().sum().backward()
            grads.append(hidden.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)
    assert calls() == (1, 0)


@pytest.mark.parametrize(
    "given",
    [
        (HIDDEN.view(2, 3, 24), IDS, WEIGHTS),
        (HIDDEN, IDS[:, 0], WEIGHTS),
        (HIDDEN, IDS, WEIGHTS[:, :1]),
    ],
)
def test_shapes_that_the_op_does_not_have_are_the_modules_matter(given: tuple[Tensor, ...]) -> None:
    class Lenient(plain_class()):  # type: ignore[misc]
        def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            return hidden

        forward._amd_experts = "gated"  # type: ignore[attr-defined]

    assert amd_ops.stacked_experts(Lenient(config()), *given) is given[0]
    assert reasons("moe_block") == {"the hidden states, ids and weights are not [T, H], [T, k] and [T, k]": 1}


def test_strict_mode_says_what_stands_in_the_way() -> None:
    with amd_ops.override(use_fused_projections=1, strict=1), pytest.raises(amd_ops.DeclinedError, match="sonicmoe"):
        amd_ops.stacked_experts(make("sonicmoe"), HIDDEN, IDS, WEIGHTS)
