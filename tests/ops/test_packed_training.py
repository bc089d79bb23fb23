"""Packed projections under autograd: the gradients of the three Linears, one GEMM each way, and torch's own errors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import amd_ops
from amd_ops import frozen
from amd_ops.preparation import unique_bytes

from .test_projections import NAMES, Attention, Mlp, counts, single

X = torch.randn(2, 5, 24)


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    with amd_ops.override(use_fused_projections=1):
        yield


def loss_of(outs: Any) -> Tensor:
    """A scalar whose gradient differs in every element."""
    total: Tensor = sum((out.double() * (index + 1)).sin().sum() for index, out in enumerate(outs))
    return total


def ours(attn: nn.Module, x: Tensor) -> Tensor:
    return loss_of(amd_ops.qkv_proj(attn, x))


def stock(attn: nn.Module, x: Tensor) -> Tensor:
    return loss_of(single(attn, x))


def gradients(attn: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor | None]:
    """Those of x and of every parameter, after one backward of a copy."""
    twin, x = copy.deepcopy(attn), x.detach().clone().requires_grad_(x.requires_grad)
    run(twin, x).backward()
    return [x.grad, *(parameter.grad for parameter in twin.parameters())]


def agree(attn: nn.Module, x: Tensor, **close: float) -> None:
    """The same gradients are there, and they are the same."""
    for got, want in zip(gradients(attn, x, ours), gradients(attn, x, stock), strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, **(close or {"rtol": 1e-5, "atol": 1e-5}))


@settings(deadline=None, max_examples=40)
@given(
    wants=st.tuples(*[st.booleans()] * 7),
    bias=st.booleans(),
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_every_frozen_subset(wants: tuple[bool, ...], bias: bool, sizes: tuple[int, int, int]) -> None:
    attn = Attention(bias, sizes)
    x = X.clone().requires_grad_(wants[6])
    for parameter, want in zip(attn.parameters(), wants, strict=False):
        parameter.requires_grad_(want)
    if not x.requires_grad and not any(parameter.requires_grad for parameter in attn.parameters()):
        assert not any(out.requires_grad for out in amd_ops.qkv_proj(attn, x))
        return
    agree(attn, x)


def test_rounds_as_the_linears_do_in_half_precision() -> None:
    attn = Attention(bias=True).bfloat16()
    exact, x = copy.deepcopy(attn).double(), X.bfloat16().requires_grad_()
    truth = gradients(exact, x.double().detach().requires_grad_(), stock)
    for got, want, true in zip(gradients(attn, x, ours), gradients(attn, x, stock), truth, strict=True):
        assert got is not None and want is not None and true is not None  # noqa: PT018
        assert (got.double() - true).norm() <= 1.5 * (want.double() - true).norm()


class Gemms(TorchDispatchMode):
    """Counts products of matrices."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("mm", "addmm", "bmm")
        return func(*args, **(kwargs or {}))


def test_three_products_instead_of_nine() -> None:
    attn, x = Attention(), X.clone().requires_grad_()
    with Gemms() as mine:
        ours(attn, x).backward()
    with Gemms() as theirs:
        stock(attn, x).backward()
    assert (mine.count, theirs.count) == (3, 9)
    assert counts() == (1, {})


def test_accumulation_optimisers_and_no_byte_more() -> None:
    """Gradients of several backwards add up, and every kind of optimiser writes into the packed rows."""
    for optimiser in (
        lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
        lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
        lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, foreach=False),
    ):
        attn = Attention(bias=True)
        twin, before = copy.deepcopy(attn), unique_bytes(attn)
        steps = [(attn, ours, optimiser(attn.parameters())), (twin, stock, optimiser(twin.parameters()))]
        for count in range(4):
            for module, run, step in steps:
                step.zero_grad(set_to_none=count % 2 == 0)
                for scale in (1.0, 0.5):
                    (run(module, X * scale) * scale).backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
                step.step()
        for mine, theirs in zip(attn.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert unique_bytes(attn) == before
    assert counts()[1] == {}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed(reentrant: bool) -> None:
    def run(attn: nn.Module, x: Tensor) -> Tensor:
        return loss_of(checkpoint(lambda y: tuple(amd_ops.qkv_proj(attn, y)), x, use_reentrant=reentrant))

    attn, x = Attention(), X.clone().requires_grad_()
    for got, want in zip(gradients(attn, x, run), gradients(attn, x, stock), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast(dtype: torch.dtype) -> None:
    """Products in bf16, gradients of the weights in their own dtype; fp64 is left alone, as in stock."""
    attn, x = Attention(bias=True).to(dtype), X.clone().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outs = amd_ops.qkv_proj(attn, x)
        assert [out.dtype for out in outs] == [out.dtype for out in single(attn, x)]
        agree(attn, x, rtol=2e-2, atol=2e-2)
    assert counts()[1] == {}


def test_another_dtype_of_the_input_is_torchs_error() -> None:
    attn = Attention().bfloat16()
    for run in (ours, stock):
        with pytest.raises(RuntimeError, match="same dtype"):
            run(attn, X.clone().requires_grad_())


def test_second_derivatives() -> None:
    """A penalty on the gradient of x differentiates the backward itself."""

    def run(attn: nn.Module, x: Tensor, forward: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(forward(attn, x), x, create_graph=True)
        return first.double().square().sum()

    attn, x = Attention(bias=True), X.clone().requires_grad_()
    got, want = (gradients(attn, x, lambda a, y, f=forward: run(a, y, f)) for forward in (ours, stock))
    for mine, theirs in zip(got, want, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_graph_that_is_kept_may_be_run_again() -> None:
    attn = Attention()
    total = ours(attn, X)
    total.backward(retain_graph=True)
    first = [parameter.grad.clone() for parameter in attn.parameters() if parameter.grad is not None]
    total.backward()
    for parameter, once in zip(attn.parameters(), first, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * once)


@pytest.mark.parametrize("what", ["weight", "x"])
def test_writes_between_forward_and_backward_are_torchs_error(what: str) -> None:
    for run in (ours, stock):
        attn, x = Attention(), (X * 1.0).requires_grad_()
        y = x * 1.0
        total = run(attn, y)
        with torch.no_grad():
            (attn.k_proj.weight if what == "weight" else y).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


def test_weights_replaced_between_forward_and_backward() -> None:
    """Stock's graph keeps the memory that its forward has read, so ours does."""
    found = []
    for run in (ours, stock):
        torch.manual_seed(1)
        attn, x = Attention(), X.clone().requires_grad_()
        total = run(attn, x)
        for name in NAMES:
            getattr(attn, name).weight.data = torch.ones_like(getattr(attn, name).weight)
        total.backward()
        found.append(x.grad)
    got, want = found
    assert got is not None
    assert want is not None
    torch.testing.assert_close(got, want)


def test_results_may_be_written_to_as_in_stock() -> None:
    attn = Attention()
    for run in (lambda: amd_ops.qkv_proj(attn, X), lambda: single(attn, X)):
        q, k, v = run()
        q *= 0.5
        loss_of((q, k, v)).backward()
    grads = [parameter.grad for parameter in attn.parameters()]
    assert all(gradient is not None for gradient in grads)


def test_other_owners_of_the_memory_keep_it() -> None:
    """Weights that are parts of a flat buffer, as sharding optimisers make them, stay where they are."""
    attn = Attention()
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in attn.parameters()])
    at = 0
    for parameter in attn.parameters():
        parameter.data = flat[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
    with pytest.warns(amd_ops.DeclinedWarning, match="storage is shared"):
        ours(attn, X).backward()
    assert counts()[0] == 0
    flat.zero_()
    assert not attn.q_proj.weight.any()


def test_hooks_of_parameters_see_their_own_gradients() -> None:
    attn, seen = Attention(), []
    for parameter in attn.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append((p.shape, p.grad.shape)))
    ours(attn, X).backward()
    assert sorted(seen) == sorted((p.shape, p.shape) for p in attn.parameters())
    assert all(p.grad.is_contiguous() and not p.grad._is_view() for p in attn.parameters() if p.grad is not None)


def test_gate_and_up() -> None:
    """One product each way, and half of what stock's statements save between forward and backward."""
    mlp, x = Mlp(bias=True), X.clone().requires_grad_()
    twin = copy.deepcopy(mlp)

    def saved(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = run()
        weights = {one.untyped_storage().data_ptr() for one in (*mlp.parameters(), *twin.parameters())}
        return sum(one.untyped_storage().nbytes() for where, one in kept.items() if where not in weights), out

    with amd_ops.override(use_optimized_ops=1, tiers="torch"):
        mine, got = saved(lambda: amd_ops.gated_mlp(mlp, x))
        theirs, want = saved(lambda: twin(x))
        loss_of([got]).backward()
    first, x.grad = x.grad, None
    loss_of([want]).backward()
    torch.testing.assert_close(first, x.grad)
    for one, other in zip(mlp.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    half = X.shape[0] * X.shape[1] * 40 * 4
    assert theirs - mine == half


def test_an_adapter_in_the_middle_leaves_the_others_alone() -> None:
    """LoRA on q and v: k is what it was; gate and up, whose weights are frozen, still share a product."""
    peft = pytest.importorskip("peft")

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.mlp = Attention(sizes=(24, 24, 24)), Mlp()

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = amd_ops.qkv_proj(self.attn, x)
            return amd_ops.gated_mlp(self.mlp, q + k * v)

    layer = Layer()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.inject_adapter_in_model(config, layer)
    found = []
    for on in (1, 0):
        model.zero_grad()
        with amd_ops.override(use_fused_projections=on), warnings.catch_warnings():
            warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
            loss_of([model(X)]).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert {name.rpartition(".lora_")[0] for name in found[0]} == {"attn.q_proj", "attn.v_proj"}
    for name, got in found[0].items():
        torch.testing.assert_close(got, found[1][name])
    rows = {row["op"]: row["tiers"][0] for row in amd_ops.report().as_dict()["ops"]}
    assert rows["gated_mlp"]["calls"] == 1
    assert "is not exactly nn.Linear" in rows["qkv_proj"]["declined"][0]["reason"]


def test_a_frozen_weight_that_wants_a_gradient_gets_it() -> None:
    attn = Attention()
    twin = copy.deepcopy(attn)
    with torch.no_grad():
        amd_ops.qkv_proj(attn, X)
    for name in NAMES:
        frozen.watch(attn.get_submodule(name).weight, lambda reason: None)
    with pytest.warns(amd_ops.DeclinedWarning, match="froze"):
        ours(attn, X).backward()
    stock(twin, X).backward()
    for name in NAMES:
        torch.testing.assert_close(attn.get_submodule(name).weight.grad, twin.get_submodule(name).weight.grad)
    assert any("froze" in reason for reason in counts()[1])
