"""One token of a gated delta rule's layer: each call against what the installed transformers has."""

from __future__ import annotations

import functools
import inspect
from types import FunctionType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import amd_ops
from amd_ops.forward import delta
from amd_ops.modules import original

module: Any = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RULE = module.torch_recurrent_gated_delta_rule
EARLY = "cu_seqlens" not in str(inspect.signature(RULE)) and "kwargs" not in inspect.signature(RULE).parameters
"""transformers 4 brings heads to unit length in their own dtype."""
CONV = getattr(module, "torch_causal_conv1d_update", None) or module.causal_conv1d_update


def parts(dtype: torch.dtype, shared: int = 2, heads: int = 4, size: int = 8, columns: int = 6) -> list[Tensor]:
    """What a layer hands to the rule: heads cut from one projection, logits of b and a, weights, the state."""
    mixed = torch.randn(3, 2 * shared * size + heads * columns, 1).to(dtype).transpose(1, 2)
    q, k, v = mixed.split([shared * size, shared * size, heads * columns], dim=-1)
    made = [q.reshape(3, 1, -1, size), k.reshape(3, 1, -1, size), v.reshape(3, 1, -1, columns)]
    made += [torch.randn(3, 1, heads).to(dtype), torch.randn(3, 1, heads).to(dtype) * 2]
    return [*made, torch.rand(heads).to(dtype), torch.rand(heads).to(dtype), torch.randn(3, heads, size, columns)]


def stock(q: Tensor, k: Tensor, v: Tensor, b: Tensor, a: Tensor, a_log: Tensor, dt: Tensor, state: Tensor) -> Any:
    """The statements of the layer's forward."""
    beta = b.sigmoid()
    g = -a_log.float().exp() * F.softplus(a.float() + dt)
    share = v.shape[2] // k.shape[2]
    if EARLY and share > 1:
        q, k = q.repeat_interleave(share, dim=2), k.repeat_interleave(share, dim=2)
    return RULE(q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rule_is_stocks_bit_for_bit(dtype: torch.dtype, shared: int) -> None:
    given = parts(dtype, shared)
    kept = [one.clone() for one in given]
    got = amd_ops.gated_delta_rule(*given, RULE, RULE, EARLY)
    assert got is not None
    for ours, theirs in zip(got, stock(*given), strict=True):
        assert ours.dtype is theirs.dtype
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
    assert all(torch.equal(*pair) for pair in zip(given, kept, strict=True)), "the state is a new one, as in stock"


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_orders_of_roundings_are_near_each_other(dtype: torch.dtype) -> None:
    given = parts(dtype)
    first, second = (amd_ops.delta_step(*given, early=early)[0].float() for early in (False, True))
    assert (first - second).norm() <= (2e-2 if dtype is not torch.float32 else 1e-6) * first.norm()


def test_gradients_are_those_of_stock() -> None:
    found = []
    for run in (lambda *t: amd_ops.gated_delta_rule(*t, RULE, RULE, EARLY), stock):
        torch.manual_seed(0)
        given = [one.detach().requires_grad_() for one in parts(torch.float32)]
        out, state = run(*given)
        (out.square().sum() + state.square().sum()).backward()
        found.append([one.grad for one in given])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_another_rule_several_tokens_and_packed_ones_are_left_to_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    given = parts(torch.float32)

    @functools.wraps(RULE)
    def wrapped(*args: Any, **words: Any) -> Any:
        return RULE(*args, **words)

    copied = FunctionType(stock.__code__, stock.__globals__, "torch_recurrent_gated_delta_rule")
    amd_ops.reset_counters()
    for rule in (wrapped, copied, print):
        assert amd_ops.gated_delta_rule(*given, rule, rule, EARLY) is None
    assert amd_ops.gated_delta_rule(*given, wrapped, RULE, EARLY) is None
    many = [given[0].repeat(1, 2, 1, 1), *given[1:]]
    assert amd_ops.gated_delta_rule(*many, RULE, RULE, EARLY) is None
    assert amd_ops.gated_delta_rule(*given[:-1], None, RULE, RULE, EARLY) is None
    words = {"cu_seq_lens_q": torch.tensor([0, 1])}
    assert amd_ops.gated_delta_rule(*given, RULE, RULE, EARLY, words) is None
    text = str(amd_ops.report())
    for reason in ("4x the rule is not the file's own", "2x the rule is not moved on by one", "sequences are packed"):
        assert reason in text
    monkeypatch.setattr(delta, "_compiling", lambda: True)
    assert amd_ops.gated_delta_rule(*given, RULE, RULE, EARLY) is None


@pytest.mark.skipif(EARLY, reason="transformers 4 chooses in the layer's __init__")
def test_a_package_that_transformers_prefers_to_its_own_function_is_stock() -> None:
    cells = dict(zip(RULE.__code__.co_freevars, RULE.__closure__, strict=True))
    assert delta._of_torch(RULE)
    assert original(cells["torch_function"].cell_contents, "torch_recurrent_gated_delta_rule")
    before = cells["implementation"].cell_contents
    cells["implementation"].cell_contents = print
    try:
        assert not delta._of_torch(RULE)
    finally:
        cells["implementation"].cell_contents = before


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_convolution_and_its_state_are_stocks_bit_for_bit(dtype: torch.dtype, bias: bool) -> None:
    x = torch.randn(2, 1, 7).to(dtype).transpose(1, 2)
    states = [torch.linspace(-2, 2, 56).view(2, 7, 4).to(dtype) for _ in range(2)]
    weight, shift = torch.randn(7, 4).to(dtype), torch.randn(7).to(dtype) if bias else None
    got = amd_ops.causal_conv(x, states[0], weight, shift, "silu")
    want = CONV(x, states[1], weight, shift, "silu")
    assert got is not None
    assert torch.equal(got, want)
    assert torch.equal(*states), "in place, as in stock"


def test_a_convolution_without_an_activation() -> None:
    x, state, weight = torch.randn(2, 7, 1), torch.randn(2, 7, 3), torch.randn(7, 3)
    want = (torch.cat([state, x], -1)[..., 1:] * weight).sum(-1, keepdim=True)
    got = amd_ops.causal_conv(x, state, weight, None, None)
    assert got is not None
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"activation": "gelu"}, "activation is not silu"),
        ({"x": torch.ones(2, 7, 2)}, "not of one token"),
        ({"weight": torch.ones(7, 3)}, "of another shape"),
    ],
)
def test_other_convolutions_are_left_to_stock(changed: dict[str, Any], reason: str) -> None:
    amd_ops.reset_counters()
    given = {"x": torch.ones(2, 7, 1), "state": torch.zeros(2, 7, 4), "weight": torch.ones(7, 4), "bias": None}
    assert amd_ops.causal_conv(**{**given, "activation": "silu", **changed}) is None
    assert given["state"].abs().sum() == 0
    assert reason in str(amd_ops.report())


@pytest.mark.parametrize("weight_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_stocks_bit_for_bit(dtype: torch.dtype, weight_dtype: torch.dtype | None) -> None:
    made = module.Qwen3NextRMSNormGated(12, eps=1e-6).to(weight_dtype or dtype)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(0.2, 2, 12))
        x, gate = torch.randn(5, 12).to(dtype), torch.randn(5, 12).to(dtype) * 3
        want = made(x, gate)
        got = amd_ops.gated_norm(x, gate, made.weight, 1e-6, "silu")
    assert got is not None
    assert got.dtype is want.dtype
    assert torch.equal(got, want)


def test_another_gate_is_left_to_stock() -> None:
    amd_ops.reset_counters()
    x = torch.ones(2, 4)
    assert amd_ops.gated_norm(x, x, torch.ones(4), 1e-6, "gelu") is None
    assert amd_ops.gated_norm(x, None, torch.ones(4), 1e-6, "silu") is None
    assert amd_ops.gated_norm(x, x[:, :1], torch.ones(4), 1e-6, "silu") is None
    text = str(amd_ops.report())
    assert "the gate's activation is not silu" in text
    assert "2x the gate is not of x's shape" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: amd_ops.conv_step(torch.ones(2, 3), torch.ones(2, 3, 4), torch.ones(3, 4)), "x is .*3 dimensions"),
        (lambda: amd_ops.conv_step(torch.ones(2, 3, 1), torch.ones(2, 5, 4), torch.ones(3, 4)), "state and weight"),
        (lambda: amd_ops.delta_step(*parts(torch.float32)[:3], *[torch.ones(2)] * 5), r"b is .*\[3, 1, 4\]"),
        (lambda: amd_ops.delta_step(*parts(torch.float32)[:7], torch.ones(3)), r"state is .*\[3, 4, 8, 6\]"),
        (lambda: amd_ops.gated_rms_norm(torch.ones(2, 3), torch.ones(2, 4), torch.ones(3), 0.0), r"gate is .*\[2, 3\]"),
        (lambda: amd_ops.gated_rms_norm(torch.ones(2, 3), torch.ones(2, 3), torch.ones(4), 0.0), r"weight is .*\[3\]"),
    ],
)
def test_the_argument_that_is_unusable_is_named(call: Any, message: str) -> None:
    with pytest.raises(amd_ops.ArgumentError, match=message):
        call()
