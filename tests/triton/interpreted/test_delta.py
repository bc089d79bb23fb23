"""One token of a gated delta rule's layer, a launch each: convolution, rule and norm against stock's own operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import amd_ops
from amd_ops.backends.triton import delta
from amd_ops.backends.triton.target import Target
from amd_ops.ops.delta import stock_conv, stock_delta, stock_gated_norm

from .support import DTYPES, few, ran, steps_apart

TARGET = Target("cpu", "interpreter", 32, 1)


@few(24)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from((1, 7, 300)),
    width=st.integers(1, 5),
    bias=st.booleans(),
    activated=st.booleans(),
    turned=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_a_convolution_and_its_state(
    batch: int, channels: int, width: int, bias: bool, activated: bool, turned: bool, dtype: torch.dtype
) -> None:
    x = torch.randn(batch, 1, channels).to(dtype).transpose(1, 2)
    ours = torch.randn(batch, channels, width).to(dtype)
    theirs = ours.clone()
    ours = ours.mT.contiguous().mT if turned else ours
    weight, shift = torch.randn(channels, width).to(dtype), torch.randn(channels).to(dtype) if bias else None
    got = delta.launch_conv(x, ours, weight, shift, activated, wave=32)
    want = stock_conv(x, theirs, weight, shift, activated)
    assert torch.equal(ours, theirs), "every bit of the state is stock's"
    assert got.shape == want.shape
    if dtype is torch.float32:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    else:
        torch.testing.assert_close(got, want, rtol=2e-2 if dtype is torch.bfloat16 else 2e-3, atol=2e-3)


def parts(
    batch: int, shared: int, share: int, size: int, columns: int, dtype: torch.dtype, small: torch.dtype
) -> list[Tensor]:
    """Views as the layer makes them, weights in ``small``."""
    heads = shared * share
    mixed = torch.randn(batch, 2 * shared * size + heads * columns, 1).to(dtype).transpose(1, 2)
    q, k, v = mixed.split([shared * size, shared * size, heads * columns], dim=-1)
    both = torch.randn(batch, 1, shared, 2 * share).to(dtype) * 2
    b, a = (one.reshape(batch, 1, heads) for one in both.split([share, share], dim=3))
    made = [q.reshape(batch, 1, -1, size), k.reshape(batch, 1, -1, size), v.reshape(batch, 1, -1, columns), b, a]
    return [*made, torch.rand(heads).to(small), torch.rand(heads).to(small), torch.randn(batch, heads, size, columns)]


@few(24)
@given(
    batch=st.integers(1, 2),
    shared=st.integers(1, 2),
    share=st.integers(1, 3),
    size=st.sampled_from((4, 24, 32)),
    columns=st.sampled_from((8, 40)),
    early=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    small=st.booleans(),
)
def test_a_rule(
    batch: int, shared: int, share: int, size: int, columns: int, early: bool, dtype: torch.dtype, small: bool
) -> None:
    made = parts(batch, shared, share, size, columns, dtype, dtype if small else torch.float32)
    kept = made[-1].clone()
    out, state = delta.launch_delta(*made, early, wave=32)
    want, after = stock_delta(*made, early)
    assert torch.equal(made[-1], kept), "the state that was is left as it was"
    assert out.dtype is want.dtype
    assert state.dtype is after.dtype
    # Early, a sum of rounded squares may fall on the other side of a rounding edge: one step of the heads' dtype.
    edge = 0.0 if dtype is torch.float32 or not early else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(state, after, rtol=1e-5 + edge, atol=1e-5 + 4 * edge)
    allowed = 1e-5 if dtype is torch.float32 else (2 if early else 1) * torch.finfo(dtype).eps
    torch.testing.assert_close(out.float(), want.float(), rtol=allowed, atol=max(allowed, 4 * edge))


@pytest.mark.parametrize("dtype", DTYPES)
def test_decay_and_learning_rate_at_their_ends(dtype: torch.dtype) -> None:
    """Softplus far on both sides, gates that are shut and open."""
    made = parts(1, 1, 6, 8, 8, dtype, torch.float32)
    made[3] = torch.tensor([[[-80.0, 80.0, 0.0, 0.0, 0.0, 0.0]]]).to(dtype)
    made[4] = torch.tensor([[[-80.0, -20.0, -12.0, 19.5, 20.5, 80.0]]]).to(dtype)
    made[6] = torch.zeros(6)
    for ours, theirs in zip(delta.launch_delta(*made, False, wave=32), stock_delta(*made, False), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(
            ours.float(), theirs.float(), rtol=2e-2 if ours.dtype is not torch.float32 else 1e-5, atol=1e-5
        )


@few(16)
@given(
    rows=st.integers(1, 9),
    size=st.sampled_from((1, 24, 128, 200)),
    sliced=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_a_gated_norm(rows: int, size: int, sliced: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, size).to(dtype), torch.randn(size).to(dtype)
    gate = (torch.randn(rows, size + 16).to(dtype) * 3)[:, 16:] if sliced else torch.randn(rows, size).to(dtype)
    got, want = delta.launch_gated_norm(x, gate, weight, 1e-6, TARGET), stock_gated_norm(x, gate, weight, 1e-6)
    if dtype is torch.float32:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    else:
        assert steps_apart(got, want) <= 2


def test_what_it_does_not_take_is_declined_with_the_reason(asked: None) -> None:
    good = parts(1, 2, 2, 8, 8, torch.float32, torch.float32)
    x, state, weight = torch.randn(1, 6, 1), torch.randn(1, 6, 4), torch.randn(6, 4)
    rows = torch.randn(3, 8)
    wide = [*parts(1, 1, 1, 512, 8, torch.float32, torch.float32)]
    cases: list[tuple[Any, str]] = [
        (lambda: amd_ops.conv_step(x, state.half(), weight), "not of one dtype"),
        (lambda: amd_ops.conv_step(x, state[:, :, ::2], weight[:, ::2].contiguous()), "the state is not dense"),
        (lambda: amd_ops.conv_step(x, state, weight.mT.contiguous().mT), "the weight or the bias is not dense"),
        (lambda: amd_ops.conv_step(x, torch.randn(1, 6, 17), torch.randn(6, 17)), "more than 16 columns"),
        (lambda: amd_ops.delta_step(good[0].half(), *good[1:]), "not of one dtype"),
        (lambda: amd_ops.delta_step(good[0].mT.contiguous().mT, *good[1:]), "not dense in its last dimension"),
        (lambda: amd_ops.delta_step(*good[:5], good[5].repeat(2)[::2], *good[6:]), "the weights are not dense"),
        (lambda: amd_ops.delta_step(*wide), "K is above 256"),
        (lambda: amd_ops.gated_rms_norm(rows, rows.half(), torch.ones(8), 1e-6), "not of one dtype"),
        (lambda: amd_ops.gated_rms_norm(rows.T.contiguous().T, rows, torch.ones(8), 1e-6), "neither dense nor"),
        (lambda: amd_ops.gated_rms_norm(rows, rows, torch.ones(16)[::2], 1e-6), "the weight is not dense"),
    ]
    for call, reason in cases:
        with pytest.raises(amd_ops.DeclinedError, match=reason):
            call()


def test_gradients_several_tokens_and_nothing_at_all_are_left_to_torch(asked: None) -> None:
    good = parts(1, 2, 2, 8, 8, torch.float32, torch.float32)
    with torch.enable_grad():
        amd_ops.delta_step(good[0].detach().requires_grad_(), *good[1:])[0].sum().backward()
        x = torch.randn(3, 8).requires_grad_()
        amd_ops.gated_rms_norm(x, torch.randn(3, 8), torch.ones(8), 1e-6).sum().backward()
        new = torch.randn(1, 6, 1).requires_grad_()
        amd_ops.conv_step(new, torch.zeros(1, 6, 4), torch.ones(6, 4)).sum().backward()
    twice = [one.repeat(1, 2, *[1] * (one.dim() - 2)) for one in good[:5]]
    amd_ops.delta_step(*twice, *good[5:])
    amd_ops.conv_step(torch.randn(1, 6, 2), torch.zeros(1, 6, 4), torch.ones(6, 4))
    amd_ops.gated_rms_norm(torch.empty(0, 8), torch.empty(0, 8), torch.ones(8), 1e-6)
    assert ran("delta_step") == ran("conv_step") == ran("gated_rms_norm") == 0


@pytest.mark.parametrize("name", ["launch_conv", "launch_delta", "launch_gated_norm"])
def test_a_kernel_that_computes_wrongly_is_found_by_its_probe(
    monkeypatch: pytest.MonkeyPatch, asked: None, name: str
) -> None:
    right = getattr(delta, name)

    def wrong(*args: Any, **words: Any) -> Any:
        out = right(*args, **words)
        (out[-1] if isinstance(out, tuple) else out).mul_(1.1)
        return out

    monkeypatch.setattr(delta, name, wrong)
    calls = {
        "launch_conv": lambda: amd_ops.conv_step(torch.randn(1, 6, 1), torch.randn(1, 6, 4), torch.randn(6, 4)),
        "launch_delta": lambda: amd_ops.delta_step(*parts(1, 2, 2, 8, 8, torch.float32, torch.float32)),
        "launch_gated_norm": lambda: amd_ops.gated_rms_norm(*torch.randn(2, 3, 8), torch.ones(8), 1e-6),
    }
    with pytest.raises(amd_ops.DeclinedError, match="disagrees with the eager formula"):
        calls[name]()


def test_a_state_that_does_not_move_on_is_found_by_the_probe(monkeypatch: pytest.MonkeyPatch, asked: None) -> None:
    right = delta.launch_conv
    monkeypatch.setattr(delta, "launch_conv", lambda x, s, *rest, **words: right(x, s.clone(), *rest, **words))
    state = torch.randn(1, 6, 4)
    kept = state.clone()
    with pytest.raises(amd_ops.DeclinedError, match="disagrees with the eager formula"):
        amd_ops.conv_step(torch.randn(1, 6, 1), state, torch.randn(6, 4))
    assert torch.equal(state, kept)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_what_qwen3_next_computes(asked: None, dtype: torch.dtype) -> None:
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    early = not hasattr(module, "causal_conv1d_fn") or module.causal_conv1d_fn is None
    rule = module.torch_recurrent_gated_delta_rule
    made = parts(2, 2, 2, 16, 16, dtype, torch.float32)
    got = amd_ops.gated_delta_rule(*made, rule, rule, early)
    assert got is not None
    assert ran("delta_step") == 1
    for ours, theirs in zip(got, stock_delta(*made, early), strict=True):
        torch.testing.assert_close(
            ours.float(), theirs.float(), rtol=2e-2, atol=2e-2 if dtype is not torch.float32 else 1e-5
        )
