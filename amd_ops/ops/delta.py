"""One token of a gated delta rule's layer (qwen3_next's linear attention): its convolution, its rule, its norm.

H heads of values V wide, of which G consecutive ones share a head of queries and keys K wide (Hk = H / G); W columns of
a convolution over C channels. Tiers: triton (one launch each; inference) -> torch and eager (stock's own operations in
stock's order).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import always
from .tiers import make_op

# -- the causal convolution of one token


def stock_conv(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activated: bool) -> Tensor:
    """qwen3_next's statements; the state is written in place."""
    width = state.shape[-1]
    new = torch.cat([state, x], dim=-1).to(weight.dtype)
    state.copy_(new[:, :, -width:])
    out = F.conv1d(new, weight.unsqueeze(1), bias, padding=0, groups=x.shape[1])[:, :, -x.shape[2] :]
    return (F.silu(out) if activated else out).to(x.dtype)


_conv = make_op("conv_step", "USE_OPTIMIZED_OPS", torch=always(stock_conv), eager=stock_conv)


@_conv.public
def conv_step(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, *, activated: bool = True
) -> Tensor:
    """Return the newest column of a causal convolution by channels: x [B, C, S], state [B, C, W], weight [C, W], bias
    [C] -> [B, C, S] in x's dtype, through silu with ``activated``. The state moves on by x, in place.

    Raises ArgumentError on unusable arguments.

    Examples:
        >>> state = torch.tensor([[[1.0, 2.0]]])
        >>> amd_ops.conv_step(torch.tensor([[[3.0]]]), state, torch.ones(1, 2), activated=False), state
        (tensor([[[5.]]]), tensor([[[2., 3.]]]))
    """
    _conv.calls += 1
    try:
        result: Tensor = _conv.call(x, state, weight, bias, activated)
    except TORCH_ERRORS:
        for name, tensor, rank in (("x", x, 3), ("state", state, 3), ("weight", weight, 2)):
            if not isinstance(tensor, Tensor) or tensor.dim() != rank:
                raise complaint("conv_step", name, describe(tensor), f"a tensor of {rank} dimensions") from None
        if state.shape[:2] != x.shape[:2] or weight.shape != state.shape[1:]:
            wanted = f"[{x.shape[0]}, {x.shape[1]}, W] and [{x.shape[1]}, W]"
            raise complaint(
                "conv_step", "state and weight", f"{describe(state)} and {describe(weight)}", wanted
            ) from None
        raise
    return result


# -- the rule


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)


def stock_delta(
    query: Tensor, key: Tensor, value: Tensor, b: Tensor, a: Tensor, a_log: Tensor, dt_bias: Tensor, state: Tensor,
    early: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """qwen3_next's statements around ``torch_recurrent_gated_delta_rule``, and those of that function."""
    dtype = query.dtype
    beta = b.sigmoid()
    g = -a_log.float().exp() * F.softplus(a.float() + dt_bias)
    share = value.shape[2] // key.shape[2]
    if share > 1:
        query, key = query.repeat_interleave(share, dim=2), key.repeat_interleave(share, dim=2)
    if early:
        query, key = _unit(query), _unit(key)
    given = [x.transpose(1, 2) for x in (query, key, value, beta, g)]
    if early:
        query, key, value, beta, g = [x.contiguous().to(torch.float32) for x in given]
        query = query * (1 / (query.shape[-1] ** 0.5))
    else:
        query, key, value, beta, g = [x.to(torch.float32, memory_format=torch.contiguous_format) for x in given]
        query, key = _unit(query), _unit(key)
        query = query / (query.shape[-1] ** 0.5)
    out = torch.zeros_like(value)
    state = state.to(value)
    for i in range(value.shape[2]):
        q_t, k_t, v_t = query[:, :, i], key[:, :, i], value[:, :, i]
        state = state * g[:, :, i].exp()[..., None, None]
        memory = (state * k_t.unsqueeze(-1)).sum(dim=-2)
        delta = (v_t - memory) * beta[:, :, i].unsqueeze(-1)
        state = state + k_t.unsqueeze(-1) * delta.unsqueeze(-2)
        out[:, :, i] = (state * q_t.unsqueeze(-1)).sum(dim=-2)
    return out.transpose(1, 2).contiguous().to(dtype), state


_delta = make_op("delta_step", "USE_OPTIMIZED_OPS", torch=always(stock_delta), eager=stock_delta)


@_delta.public
def delta_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    b: Tensor,
    a: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    *,
    early: bool = False,
) -> tuple[Tensor, Tensor]:
    """Move a gated delta rule on: query and key [B, S, Hk, K], value [B, S, H, V], b and a [B, S, H], a_log and dt_bias
    [H], state [B, H, K, V] -> (output [B, S, H, V] in query's dtype, the new state in fp32).

    The state decays by exp(-exp(a_log) * softplus(a + dt_bias)) and learns sigmoid(b) of what it is off by. Queries and
    keys are brought to unit length: in fp32, or ``early``, in their own dtype (transformers 4). Raises ArgumentError on
    unusable arguments.

    Examples:
        >>> q, gate, head = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1), 30.0), torch.zeros(1)
        >>> out, state = amd_ops.delta_step(q, q, 3 * q, gate, -gate, head, head, torch.zeros(1, 1, 1, 1))
        >>> out.round(), state.round()  # all of it is learnt
        (tensor([[[[3.]]]]), tensor([[[[3.]]]]))
    """
    _delta.calls += 1
    try:
        result: tuple[Tensor, Tensor] = _delta.call(query, key, value, b, a, a_log, dt_bias, state, early)
    except TORCH_ERRORS:
        _diagnose(query, key, value, b, a, a_log, dt_bias, state)
        raise
    return result


def _diagnose(query: Any, key: Any, value: Any, b: Any, a: Any, a_log: Any, dt_bias: Any, state: Any) -> None:
    """Name the argument of delta_step that does not fit the others."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 4:
            raise complaint("delta_step", name, describe(tensor), "a tensor of 4 dimensions") from None
    heads = value.shape[2]
    if query.shape != key.shape or key.shape[:2] != value.shape[:2] or heads % max(key.shape[2], 1):
        wanted = f"two of one shape, with a number of heads of which {heads} is a multiple"
        raise complaint("delta_step", "query and key", f"{describe(query)} and {describe(key)}", wanted) from None
    for name, tensor, shape in (
        ("b", b, value.shape[:3]),
        ("a", a, value.shape[:3]),
        ("a_log", a_log, value.shape[2:3]),
        ("dt_bias", dt_bias, value.shape[2:3]),
        ("state", state, (value.shape[0], heads, key.shape[3], value.shape[3])),
    ):
        if not isinstance(tensor, Tensor) or tensor.shape != shape:
            raise complaint("delta_step", name, describe(tensor), f"{list(shape)}") from None


# -- the norm behind it


def stock_gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """qwen3_next's statements."""
    dtype = x.dtype
    normed = x.to(torch.float32)
    variance = normed.pow(2).mean(-1, keepdim=True)
    normed = normed * torch.rsqrt(variance + eps)
    scaled = weight * normed.to(dtype)
    return (scaled * F.silu(gate.to(torch.float32))).to(dtype)


_norm = make_op("gated_rms_norm", "USE_OPTIMIZED_OPS", torch=always(stock_gated_norm), eager=stock_gated_norm)


@_norm.public
def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of x [..., D] with weight [D], times silu(gate [..., D]): [..., D] in x's dtype.

    Rounds to x's dtype before the weight, and once behind the gate. Raises ArgumentError on unusable arguments.

    Examples:
        >>> amd_ops.gated_rms_norm(torch.tensor([[3.0, 3.0]]), torch.tensor([[0.0, 20.0]]), torch.ones(2), 0.0)
        tensor([[ 0., 20.]])
    """
    _norm.calls += 1
    try:
        result: Tensor = _norm.call(x, gate, weight, eps)
    except TORCH_ERRORS:
        for name, tensor in (("x", x), ("gate", gate), ("weight", weight)):
            if not isinstance(tensor, Tensor):
                raise complaint("gated_rms_norm", name, describe(tensor), "a tensor") from None
            shape = x.shape[-1:] if name == "weight" else x.shape
            if tensor.shape != shape:
                raise complaint("gated_rms_norm", name, describe(tensor), f"{list(shape)}") from None
        raise
    return result
