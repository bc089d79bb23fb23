"""Linears that transformers' tensor-parallel plan has spread: known by their hooks or forwards, packed as local shards,
or left.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import amd_ops
from amd_ops.weights import shards

pytest.importorskip("transformers.integrations.tensor_parallel")
dist = pytest.importorskip("torch.distributed")
FORWARDS = importlib.util.find_spec("transformers.distributed.tensor_parallel") is not None
"""transformers 5 puts a forward on the instance where 4 registers two hooks."""
plan = importlib.import_module(f"transformers.{'distributed' if FORWARDS else 'integrations'}.tensor_parallel")
if not FORWARDS and not hasattr(plan, "distribute_module"):
    pytest.skip("this transformers registers other hooks", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning")


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    """A mesh of one rank: hooks and DTensors are those of many."""
    if dist.is_initialized():  # by another file of this process; it has one rank, too
        yield dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        return
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.o_proj = nn.Linear(8, 8, bias=False)


def spread(linear: nn.Module, style: Any, mesh: Any) -> None:
    """Do what transformers does with a Linear of its plan."""
    if FORWARDS:
        for name in list(linear._parameters):
            style.shard_param(linear, name, mesh)
        style.install_forward(linear, mesh)
        return
    for name in list(linear._parameters):
        whole = linear._parameters[name]
        if whole is not None:
            linear._parameters[name] = style.partition_tensor(whole.data, whole, name, whole.dtype, True, 0, mesh)
    style.prepare_module_tp(linear, mesh)


@pytest.fixture
def attention(mesh: Any) -> Attention:
    torch.manual_seed(0)
    made = Attention().eval()
    for name in ("q_proj", "k_proj", "v_proj"):
        spread(getattr(made, name), plan.ColwiseParallel(), mesh)
    spread(made.o_proj, plan.RowwiseParallel(), mesh)
    return made


def projected(attention: Attention, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(getattr(attention, name)(x) for name in ("q_proj", "k_proj", "v_proj"))


def run(attention: Attention, x: torch.Tensor) -> tuple[bool, str]:
    """Compare our projections with the modules' own; return whether they were fused, and the reason why not."""
    with torch.no_grad():
        stock = projected(attention, x)
    amd_ops.reset_counters()
    with torch.no_grad(), amd_ops.override(use_fused_projections=1, tiers="torch,eager"):
        ours = amd_ops.qkv_proj(attention, x)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, stock, strict=True))
    row = next(row for row in amd_ops.report().as_dict()["ops"] if row["op"] == "qkv_proj")
    reasons = [entry["reason"] for tier in row["tiers"] for entry in tier["declined"]]
    return any(tier["calls"] for tier in row["tiers"] if tier["tier"] == "fused"), "; ".join(reasons)


def test_columns_of_a_replicated_input_are_one_product(attention: Attention) -> None:
    x = torch.randn(3, 8)
    names = [name for name, _ in attention.named_parameters()]
    assert run(attention, x) == (True, "")
    first = attention.q_proj.weight._local_tensor
    assert first.untyped_storage().nbytes() == 16 * 8 * 4, "the shards lie in one matrix"
    assert run(attention, x) == (True, "")
    assert [name for name, _ in attention.named_parameters()] == names


def test_whatever_writes_a_weight_is_seen(attention: Attention) -> None:
    x = torch.randn(3, 8)
    assert run(attention, x)[0]
    with torch.no_grad():
        attention.k_proj.weight.mul_(2.0)
        attention.v_proj.weight.to_local()[0] = 7.0
    assert run(attention, x) == (True, "")
    attention.q_proj.weight = nn.Parameter(attention.q_proj.weight.detach().clone())
    assert run(attention, x) == (True, ""), "packed anew"


def test_gradients_are_left_to_the_plan(attention: Attention) -> None:
    x = torch.randn(3, 8)
    with amd_ops.override(use_fused_projections=1, tiers="torch,eager"):
        amd_ops.reset_counters()
        sum(part.sum() for part in amd_ops.qkv_proj(attention, x)).backward()  # type: ignore[union-attr]
    assert attention.q_proj.weight.grad is not None
    assert shards.GRADIENTS in str(amd_ops.report())


def test_a_hook_of_somebody_else_is_honoured(attention: Attention) -> None:
    seen = []
    handle = attention.q_proj.register_forward_hook(lambda module, args, out: seen.append(out))
    fused, reason = run(attention, torch.randn(3, 8))
    assert not fused
    assert "a hook is registered on the Linear" in reason
    assert len(seen) == 2, "stock's call and ours"
    handle.remove()
    assert run(attention, torch.randn(3, 8))[0]


@pytest.mark.skipif(not FORWARDS, reason="this transformers registers hooks")
def test_a_forward_that_only_looks_like_the_plans_is_honoured(attention: Attention) -> None:
    planned = attention.q_proj.forward

    def tp_forward(*args: Any, **kwargs: Any) -> Any:
        return 2 * planned(*args, **kwargs)

    tp_forward.__qualname__ = planned.__qualname__
    attention.q_proj.forward = tp_forward  # type: ignore[method-assign]
    assert shards.style_of(attention.q_proj) is None
    assert not run(attention, torch.randn(3, 8))[0]


@pytest.mark.skipif(not FORWARDS, reason="this transformers registers hooks")
@pytest.mark.parametrize("where", ["class", "layer"])
def test_a_plan_that_somebody_changed_is_honoured(
    where: str, attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = dict(zip(attention.q_proj.forward.__code__.co_freevars, attention.q_proj.forward.__closure__, strict=True))
    layer = closed["self"].cell_contents
    plans = layer.transform_output_post_forward
    changed = type(layer) if where == "class" else layer
    monkeypatch.setattr(changed, "transform_output_post_forward", lambda *args: 2 * plans(*args[-3:]))
    assert shards.style_of(attention.q_proj) is None
    assert not run(attention, torch.randn(3, 8))[0]


@pytest.mark.skipif(not FORWARDS, reason="this transformers registers hooks")
def test_a_plan_around_somebody_elses_forward_is_honoured(mesh: Any) -> None:
    made = Attention().eval()
    made.q_proj.forward = lambda x: nn.functional.linear(x, made.q_proj.weight) * 3  # type: ignore[method-assign]
    spread(made.q_proj, plan.ColwiseParallel(), mesh)
    assert shards.style_of(made.q_proj) is None


@pytest.mark.skipif(FORWARDS, reason="this transformers registers no hooks")
def test_a_hook_that_only_looks_like_the_plans_is_honoured(attention: Attention) -> None:
    def distribute_module(module: nn.Module) -> None:
        module._forward_hooks.clear()
        module.register_forward_hook(lambda mod, inputs, outputs: outputs.to_local() * 2)

    distribute_module(attention.q_proj)
    assert shards.style_of(attention.q_proj) is None
    assert not run(attention, torch.randn(3, 8))[0]


def test_another_style_goes_through_its_own_hook(mesh: Any) -> None:
    torch.manual_seed(0)
    made = Attention().eval()
    for name in ("q_proj", "k_proj", "v_proj"):
        spread(getattr(made, name), plan.ColwiseParallel(output_layouts=plan.Replicate()), mesh)
    fused, reason = run(made, torch.randn(3, 8))
    assert not fused
    assert "a style other than columns" in reason


@pytest.mark.skipif(not FORWARDS, reason="this transformers registers hooks")
@pytest.mark.parametrize("bias", [False, True])
def test_a_row_parallel_linear_is_summed_by_the_plan_which_adds_its_bias(
    bias: bool, mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    linear, x, summed = nn.Linear(8, 8, bias=bias).eval(), torch.randn(3, 8), []
    spread(linear, plan.RowwiseParallel(), mesh)
    with torch.no_grad():
        stock = linear(x)
        reduce = dist.all_reduce
        monkeypatch.setattr(dist, "all_reduce", lambda found, **how: summed.append(found.shape) or reduce(found, **how))
        with amd_ops.override(use_aiter_gemm=1, tiers="torch,eager"):
            amd_ops.reset_counters()
            ours = amd_ops.apply_linear(linear, x)
    assert torch.equal(ours, stock)
    assert summed == [(3, 8)]
    assert amd_ops.report().calls("apply_linear") == 1


@pytest.mark.skipif(FORWARDS, reason="this transformers registers no hooks")
def test_a_row_parallel_linear_keeps_its_sum_over_the_ranks(
    attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(3, 8)
    with torch.no_grad():
        stock = torch.zeros(3, 8) + attention.o_proj(x)
    summed = []
    output = plan.RowwiseParallel._prepare_output_fn
    (hook,) = attention.o_proj._forward_hooks.values()
    cell = hook.__closure__[hook.__code__.co_freevars.index("output_fn")]
    assert cell.cell_contents.func is output
    with torch.no_grad(), amd_ops.override(use_aiter_gemm=1, tiers="torch,eager"):
        amd_ops.reset_counters()
        redistribute = torch.distributed.tensor.DTensor.redistribute
        monkeypatch.setattr(
            torch.distributed.tensor.DTensor, "redistribute",
            lambda self, *args, **options: summed.append(self.placements) or redistribute(self, *args, **options),
        )  # fmt: skip
        ours = torch.zeros(3, 8) + amd_ops.apply_linear(attention.o_proj, x)
    assert torch.equal(ours, stock)
    assert [placement.is_partial() for placements in summed for placement in placements] == [True]
    assert amd_ops.report().calls("apply_linear") == 1
