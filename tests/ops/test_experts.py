"""A list of experts in two matrices: no extra byte, stock's parameters, and stock's loop wherever that is unsure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import amd_ops
from amd_ops.forward.experts import DOWN, GATE_UP, packed_experts
from amd_ops.preparation import unique_bytes

from .test_residual import Adapter, Mlp, reasons

TOKENS = torch.randn(5, 24)


class Block(nn.Module):
    """Experts with stock's loop, which the op must agree with."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(24, 4, bias=False)
        self.experts = nn.ModuleList([Mlp(bias) for _ in range(4)])

    def stock(self, x: torch.Tensor) -> torch.Tensor:
        weights, ids = torch.topk(F.softmax(self.gate(x), dim=1, dtype=torch.float), 2, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows, slots = torch.where(ids == index)
            out.index_add_(0, rows, expert(x[rows]) * weights[rows, slots, None])
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor | None:
        return amd_ops.softmax_moe(self.experts, x, self.gate(x), 2, True)


@pytest.fixture(autouse=True)
def fused() -> Any:
    with amd_ops.override(use_fused_projections=1, use_optimized_ops=1), torch.no_grad():
        yield


def agree(block: Block, x: torch.Tensor = TOKENS) -> None:
    out = block(x)
    assert out is not None
    torch.testing.assert_close(out, block.stock(x), rtol=1e-5, atol=1e-5)


def test_the_packed_experts_are_the_experts_and_cost_no_byte() -> None:
    block = Block()
    names, before = list(block.state_dict()), unique_bytes(block)
    values = [value.clone() for value in block.state_dict().values()]
    agree(block)
    agree(block, TOKENS[:1])
    agree(block, TOKENS[:0])
    assert unique_bytes(block) == before
    assert list(block.state_dict()) == names
    assert all(torch.equal(a, b) for a, b in zip(block.state_dict().values(), values, strict=True))
    packed = packed_experts(block.experts)
    assert not isinstance(packed, str)
    w1, w2 = packed.matrices()
    assert w1[2, 40:].data_ptr() == block.experts[2].up_proj.weight.data_ptr()
    assert w2[3].data_ptr() == block.experts[3].down_proj.weight.data_ptr()


def test_experts_that_were_packed_one_by_one_are_packed_together() -> None:
    block = Block()
    for expert in block.experts:
        amd_ops.gated_mlp(expert, TOKENS)  # packs gate and up of this expert alone
    before = unique_bytes(block)
    agree(block)
    assert unique_bytes(block) == before
    assert all("_amd_packed" not in expert.__dict__ for expert in block.experts)


def test_updates_in_place_are_seen() -> None:
    block = Block()
    agree(block)
    block.experts[1].down_proj.weight.mul_(2.0)
    block.load_state_dict({name: value + 0.1 for name, value in block.state_dict().items()})
    agree(block)


def replace_parameter(block: Block) -> None:
    block.experts[1].gate_proj.weight = nn.Parameter(torch.randn(40, 24))


def replace_linear(block: Block) -> None:
    block.experts[3].down_proj = nn.Linear(40, 24, bias=False)


def replace_expert(block: Block) -> None:
    block.experts[0] = Mlp()


def to_another_dtype(block: Block) -> None:
    block.to(torch.float64)


@pytest.mark.parametrize("change", [replace_parameter, replace_linear, replace_expert, to_another_dtype])
def test_what_moves_is_packed_again(change: Callable[[Block], None]) -> None:
    block = Block()
    agree(block)
    change(block)
    agree(block, TOKENS.to(block.gate.weight.dtype))
    assert not reasons("moe_block")


def hook_linear(block: Block) -> None:
    block.experts[2].up_proj.register_forward_hook(lambda module, arguments, output: output * 2)


def hook_expert(block: Block) -> None:
    block.experts[2].register_forward_pre_hook(lambda module, arguments: None)


def hook_activation(block: Block) -> None:
    block.experts[1].act_fn.register_forward_hook(lambda module, arguments, output: output * 2)


def patch_expert(block: Block) -> None:
    block.experts[1].forward = lambda x: x


def wrap_linear(block: Block) -> None:
    block.experts[0].gate_proj = Adapter(block.experts[0].gate_proj)


@pytest.mark.parametrize("change", [hook_linear, hook_expert, hook_activation, patch_expert, wrap_linear])
@pytest.mark.parametrize("used_before", [True, False])
@pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning")
def test_watched_and_wrapped_experts_are_left_to_stock(change: Callable[[Block], None], used_before: bool) -> None:
    block = Block()
    if used_before:
        agree(block)
    change(block)
    assert block(TOKENS) is None
    assert len(reasons("moe_block")) == 1


@pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning")
def test_biases_gradients_autocast_and_other_modules_are_left_to_stock() -> None:
    assert Block(bias=True)(TOKENS) is None
    block = Block()
    with torch.enable_grad():
        assert block(TOKENS) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert block(TOKENS) is None
    assert amd_ops.softmax_moe(nn.ModuleList([nn.Identity()]), TOKENS, torch.randn(5, 1), 1, True) is None
    assert set(reasons("moe_block")) == {
        "an expert has a bias",
        "gradients of the weights are wanted",
        "autocast chooses the dtype of the experts",
        "the experts' forward is not one that the overlaid text marks as a gated MLP",
    }


def test_strict_mode_raises_where_fusion_was_asked_for() -> None:
    with amd_ops.override(strict=1), pytest.raises(amd_ops.DeclinedError, match="an expert has a bias"):
        Block(bias=True)(TOKENS)


def test_frozen_experts_pass_gradients_to_their_input() -> None:
    block = Block().requires_grad_(False)
    with torch.enable_grad():
        grads = []
        for forward in (block, block.stock):
            x = TOKENS.clone().requires_grad_()
            forward(x).square().sum().backward()
            grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


def test_a_copy_has_matrices_of_its_own() -> None:
    block = Block()
    agree(block)
    twin = copy.deepcopy(block)
    for parameter in twin.parameters():
        parameter.mul_(0.5)
    agree(twin)
    agree(block)


def test_prepare_and_restore() -> None:
    block = Block()
    report = amd_ops.prepare(block)
    assert [packing.linears for packing in report.fused] == [GATE_UP, DOWN]
    assert report.bytes_added == 0
    packed = packed_experts(block.experts)
    assert not isinstance(packed, str)
    kept = packed.matrices()  # so that their memory is not given to anybody else
    storages = {p.untyped_storage().data_ptr() for p in block.experts.parameters()}
    agree(block)
    amd_ops.restore(block)
    again = {p.untyped_storage().data_ptr() for p in block.experts.parameters()}
    assert len(again) == 12
    assert not again & storages
    del kept
    agree(block)
