"""One token of a gated delta rule's layer: the causal convolution, the rule, and the gated norm, a launch each.

fp32 inside; rounds where stock's statements round.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import activation, narrow, rounded, sigmoid


@triton.jit(do_not_specialize=["channels"])
def conv_step(
    x, state, weight, bias, y, channels, x_sb, x_sc, s_sb, s_sc, s_sw,
    W: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """y [B, C] = the last W columns of state [B, C, W] and x [B, C], times weight [C, W]; the state becomes these."""
    TYPE: tl.constexpr = y.dtype.element_ty
    batch = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.arange(0, BLOCK_W)[None, :]
    inside = channel < channels
    new = tl.load(x + batch * x_sb + channel * x_sc, mask=inside, other=0.0)
    own = state + batch * s_sb + channel[:, None] * s_sc + slot * s_sw
    moved = tl.load(own + s_sw, mask=inside[:, None] & (slot < W - 1), other=0.0)
    window = tl.where(slot == W - 1, new[:, None], moved)
    taps = tl.load(weight + channel[:, None] * W + slot, mask=inside[:, None] & (slot < W), other=0.0)
    value = window.to(tl.float32)
    value = tl.where(value == value, value, value + 1.0)  # else fp16 products become dot2, whose roundings are its own
    total = tl.sum(tl.where(slot < W, value * taps.to(tl.float32), 0.0), axis=1)
    if BIAS:
        total += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        total = activation(rounded(total, TYPE), "silu")
    tl.debug_barrier()  # what one thread reads another may write
    tl.store(own, window, mask=inside[:, None] & (slot < W))
    tl.store(y + batch * channels + channel, narrow(total, TYPE), mask=inside)


@triton.jit
def _unit(value, TYPE: tl.constexpr, EARLY: tl.constexpr):
    """A head brought to unit length, in its own dtype (``EARLY``) or in fp32."""
    if EARLY:
        total = rounded(tl.sum(rounded(value * value, TYPE), axis=0), TYPE)
        return rounded(value * rounded(tl.rsqrt(rounded(total + 1e-6, TYPE)), TYPE), TYPE)
    else:
        return value * tl.rsqrt(tl.sum(value * value, axis=0) + 1e-6)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), and x itself above 20; as exact for small exponentials as log1p."""
    small = tl.exp(tl.minimum(x, 20.0))
    total = 1.0 + small
    exact = tl.where(total == 1.0, small, tl.log(total) * (small / (total - 1.0)))
    return tl.where(x > 20.0, x, exact)


@triton.jit(do_not_specialize=["heads", "share", "scale"])
def delta_step(
    query, key, value, b, a, a_log, dt_bias, state, out, after, heads, share, scale,
    q_sb, q_sh, k_sb, k_sh, v_sb, v_sh, b_sb, b_sh, a_sb, a_sh, s_sb, s_sh, s_sk,
    K: tl.constexpr, V: tl.constexpr, EARLY: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """out [B, H, V] and ``after`` [B, H, K, V] of one token. A program takes BLOCK_V columns of one head's state."""
    TYPE: tl.constexpr = query.dtype.element_ty
    row = tl.program_id(0)
    batch = row // heads
    head = row % heads
    shared = head // share
    at = tl.arange(0, BLOCK_K)
    col = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    q = tl.load(query + batch * q_sb + shared * q_sh + at, mask=at < K, other=0.0).to(tl.float32)
    k = tl.load(key + batch * k_sb + shared * k_sh + at, mask=at < K, other=0.0).to(tl.float32)
    v = tl.load(value + batch * v_sb + head * v_sh + col, mask=col < V, other=0.0).to(tl.float32)
    q = _unit(q, TYPE, EARLY) * scale
    k = _unit(k, TYPE, EARLY)
    learnt = rounded(sigmoid(tl.load(b + batch * b_sb + head * b_sh).to(tl.float32)), TYPE)
    step = tl.load(a + batch * a_sb + head * a_sh).to(tl.float32) + tl.load(dt_bias + head).to(tl.float32)
    decay = tl.exp(-tl.exp(tl.load(a_log + head).to(tl.float32)) * _softplus(step))
    mask = (at < K)[:, None] & (col < V)[None, :]
    own = state + batch * s_sb + head * s_sh + at[:, None] * s_sk + col[None, :]
    kept = tl.load(own, mask=mask, other=0.0).to(tl.float32) * decay
    delta = (v - tl.sum(kept * k[:, None], axis=0)) * learnt
    kept += k[:, None] * delta[None, :]
    tl.store(after + (row * K + at[:, None]) * V + col[None, :], kept, mask=mask)
    tl.store(out + row * V + col, narrow(tl.sum(kept * q[:, None], axis=0), TYPE), mask=col < V)


@triton.jit(do_not_specialize=["rows", "eps"])
def gated_rms_norm(x, gate, weight, y, rows, eps, x_s, g_s, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y [rows, D] = the norm of x's rows times the weight, times silu of the gate's rows."""
    TYPE: tl.constexpr = y.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (col < D)
    value = tl.load(x + row * x_s + col, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(weight + col, mask=col < D, other=0.0).to(tl.float32)
    open_ = tl.load(gate + row * g_s + col, mask=mask, other=0.0).to(tl.float32)
    normed = value * tl.rsqrt(tl.sum(value * value, axis=1)[:, None] / D + eps)
    scaled = rounded(rounded(normed, TYPE) * scale, TYPE)
    tl.store(y + row * D + col, narrow(scaled * activation(open_, "silu"), TYPE), mask=mask)
