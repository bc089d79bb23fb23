"""The entry points for hand-written modeling code, with the same laws as the overlaid path."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import amd_ops
from tests.aiter.support import BF16, ON
from tests.doubles import formulas
from tests.doubles.aiter import fake_aiter


class Block(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(16, size, bias=bias) for size in (16, 8, 8))
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
        self.act_fn = nn.SiLU()


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().requires_grad_(False)


@pytest.fixture
def patched() -> Iterator[None]:
    undo = amd_ops.patch_linear_forward()
    yield
    undo()


def test_fusing_by_hand_adds_no_key_and_no_byte(block: Block) -> None:
    keys, state = list(block.state_dict()), {key: value.clone() for key, value in block.state_dict().items()}
    x = torch.randn(3, 16)
    want = [block.q_proj(x), block.k_proj(x), block.v_proj(x)]
    mlp = block.down_proj(block.act_fn(block.gate_proj(x)) * block.up_proj(x))
    assert amd_ops.fuse_qkv_projections(block) == ""
    assert amd_ops.fuse_gate_up_projections(block) == ""
    assert list(block.state_dict()) == keys
    assert all(torch.equal(value, state[key]) for key, value in block.state_dict().items())
    with amd_ops.override(use_fused_projections=1):
        for got, part in zip(amd_ops.qkv_proj(block, x), want, strict=True):
            torch.testing.assert_close(got, part)
        torch.testing.assert_close(amd_ops.gated_mlp(block, x), mlp)
        assert amd_ops.report().calls("qkv_proj", "fused") == 1
    amd_ops.restore(block)
    assert torch.equal(block.q_proj(x), want[0])


def test_what_cannot_be_fused_says_why(block: Block) -> None:
    assert "q_proj" in amd_ops.fuse_qkv_projections(nn.Linear(2, 2))
    block.k_proj.bias = None
    assert "bias" in amd_ops.fuse_qkv_projections(block)


def test_patching_linear_is_undone(patched: None) -> None:
    assert nn.Linear.forward.__module__ == "amd_ops.module_api"
    undo = amd_ops.patch_linear_forward()
    undo()
    assert nn.Linear.forward.__module__ == "torch.nn.modules.linear"
    undo()  # twice is once


def test_the_patch_keeps_results_hooks_gradients_and_subclasses(patched: None) -> None:
    class Doubling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    module, other, x = nn.Linear(16, 8), Doubling(16, 8), torch.randn(3, 16)
    want = nn.functional.linear(x, module.weight, module.bias)
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    with amd_ops.override(use_aiter_gemm=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
        assert torch.equal(module(x), want)
        module(x).sum().backward()
        assert torch.equal(other(x), nn.functional.linear(x, other.weight, other.bias) * 2)
    assert seen == [1, 1]
    assert module.weight.grad is not None
    assert amd_ops.report().calls("linear") == 2


def test_the_patch_reads_no_environment(patched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("the environment was read")

    module, x = nn.Linear(16, 8), torch.randn(3, 16)
    with amd_ops.override(use_aiter_gemm=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
        module(x)
        monkeypatch.setattr(os, "getenv", refuse)
        monkeypatch.setattr(type(os.environ), "__getitem__", refuse)
        module(x)
        monkeypatch.undo()


def test_a_patch_over_ours_is_not_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    undo = amd_ops.patch_linear_forward()
    ours = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: ours(self, x) + 0)
    with pytest.raises(RuntimeError, match="patched again"):
        undo()
    monkeypatch.undo()
    undo()
    assert nn.Linear.forward.__module__ == "torch.nn.modules.linear"


def test_fusion_goes_on_under_our_own_patch(patched: None, block: Block) -> None:
    assert amd_ops.fuse_qkv_projections(block) == ""


def test_preshuffling_by_hand() -> None:
    torch.manual_seed(0)
    with fake_aiter(), amd_ops.override(**ON, preshuffle_m_thresh=4), torch.no_grad():
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 48)).to(BF16)
        assert [path for path, _ in amd_ops.preshuffle_linear_weights(model, require_multiple=64).copies] == ["0"]
        with amd_ops.override(use_preshuffle=1):
            done = amd_ops.preshuffle_linear_weights(model)
            assert done.bytes_added == (64 + 48) * 64 * 2
            x = torch.randn(5, 64).to(BF16)
            for layer in model:
                formulas.close(amd_ops.linear_with_preshuffle(layer, x), formulas.linear(x, layer.weight, layer.bias))
        with pytest.raises(amd_ops.ArgumentError, match=r"layout is \(32, 16\), expected \(16, 16\)"):
            amd_ops.preshuffle_linear_weights(model, layout=(32, 16))
        with pytest.raises(amd_ops.ArgumentError, match="require_multiple"):
            amd_ops.preshuffle_linear_weights(model, require_multiple=0)


def test_the_questions_are_about_this_process() -> None:
    assert not amd_ops.get_use_aiter_attention()
    with fake_aiter():
        with amd_ops.override(use_aiter_attention=1):
            assert amd_ops.get_use_aiter_attention()
            assert not amd_ops.get_use_aiter_gemm()
        with amd_ops.override(use_aiter_gemm=1, tiers="torch"):
            assert not amd_ops.get_use_aiter_gemm()


def test_the_version_check_is_not_a_lower_bound() -> None:
    import transformers

    exact = transformers.__version__
    assert amd_ops.check_transformers_version([exact])
    assert amd_ops.check_transformers_version([".".join(exact.split(".")[:2])])
    assert not amd_ops.check_transformers_version(["4.52"])
    assert not amd_ops.check_transformers_version([exact[:-1]])


RECIPE = """
import torch, amd_ops
q, k, v = (torch.randn(1, 3, heads, 16) for heads in (4, 2, 2))
amd_ops.attention(q, k, v)
row = next(row for row in amd_ops.report().as_dict()["ops"] if row["op"] == "attention")
print(next(tier["tier"] for tier in row["tiers"] if tier["calls"]))
"""


@pytest.mark.parametrize(
    ("environment", "tier"),
    [
        ({"USE_AITER_ATTENTION": "1"}, "torch"),  # there is no GPU here: the request is told, and the next tier runs
        ({"USE_AITER_ATTENTION": "0"}, "torch"),
        ({"USE_AITER_ATTENTION": "0", "FORCE_EAGER_ATTENTION": "1"}, "eager"),
    ],
)
def test_each_tier_is_chosen_by_the_environment(environment: dict[str, str], tier: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", RECIPE]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == tier, done.stderr
