"""Experts of few tokens: the router's choice, and two products of a vector with the matrices of the experts that it
names. Every chosen (token, expert) pair reads its own weights: for a handful of tokens nothing is read twice.

Offsets inside one expert are int32, those of the expert int64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import activation, narrow, rounded, sigmoid


@triton.jit(do_not_specialize=["s_t"])
def softmax_top_k(
    logits, weights, ids, s_t,
    E: tl.constexpr, K: tl.constexpr, NORMALISE: tl.constexpr, ROUND: tl.constexpr,
    BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The K largest probabilities of one row of E logits, the first of equal ones: ids and weights [T, K].

    Weights are divided by their sum with NORMALISE and rounded to ROUND ("bf16", "fp16" or ""). A row with a NaN gets
    NaN and ids in range.
    """
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(logits + row * s_t + col, mask=col < E, other=-float("inf")).to(tl.float32)
    power = tl.exp(x - tl.max(x, axis=0))
    total = tl.sum(power, axis=0)
    left = tl.where(col < E, power / total, -1.0)
    slot = tl.arange(0, SLOTS)
    best = tl.zeros([SLOTS], tl.float32)
    chosen = tl.zeros([SLOTS], tl.int32)
    for k in tl.static_range(K):
        value = tl.max(left, axis=0)
        at = tl.min(tl.where(left == value, col, E - 1), axis=0)
        best = tl.where(slot == k, value, best)
        chosen = tl.where(slot == k, at, chosen)
        left = tl.where(col == at, -1.0, left)
    if NORMALISE:
        best = best / tl.sum(best, axis=0)
    if ROUND == "bf16":
        best = rounded(best, tl.bfloat16)
    elif ROUND == "fp16":
        best = rounded(best, tl.float16)
    best = tl.where(total == total, best, total)
    tl.store(weights + row * K + slot, narrow(best, weights.dtype.element_ty), mask=slot < K)
    tl.store(ids + row * K + slot, chosen, mask=slot < K)


@triton.jit
def _gated(gate, up, alpha, limit, KIND: tl.constexpr, TYPE: tl.constexpr):
    """act(gate) * up, rounded where the stock formulas round; "clamped" is (up + 1) * gate * sigmoid(alpha * gate)."""
    if KIND == "clamped":
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        inner = rounded(sigmoid(rounded(gate * alpha, TYPE)), TYPE)
        return rounded(up + 1.0, TYPE) * rounded(gate * inner, TYPE)
    else:
        return rounded(activation(gate, KIND), TYPE) * up


@triton.jit(do_not_specialize=["alpha", "limit"])
def gate_up(
    x, w, bias, ids, y, alpha, limit,
    s_t, s_e, s_r, b_e,
    K: tl.constexpr, H: tl.constexpr, N: tl.constexpr, KIND: tl.constexpr, CLAMPED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """y [T * K, N] = gate of x [T, H] by the matrices of a pair's expert, whose rows are s_r apart.

    [2N, H], gate rows in front of up rows; CLAMPED: [H, 2N], gate and up side by side, with a bias [2N].
    """
    TYPE: tl.constexpr = x.dtype.element_ty
    pair = tl.program_id(0)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.load(ids + pair).to(tl.int64)
    own = w + expert * s_e
    inside = col < N
    if CLAMPED:
        wide = tl.program_id(1) * 2 * BLOCK_N + tl.arange(0, 2 * BLOCK_N)
        both = tl.zeros([2 * BLOCK_N], tl.float32)
        for start in range(0, H, BLOCK_H):
            row = start + tl.arange(0, BLOCK_H)
            value = tl.load(x + (pair // K) * s_t + row, mask=row < H, other=0.0).to(tl.float32)[:, None]
            mask = (row < H)[:, None] & (wide < 2 * N)[None, :]
            tile = tl.load(own + row[:, None] * s_r + wide[None, :], mask=mask, other=0.0).to(tl.float32)
            both += tl.sum(tile * value, axis=0)
        both += tl.load(bias + expert * b_e + wide, mask=wide < 2 * N, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, [BLOCK_N, 2]))
    else:
        first = tl.zeros([BLOCK_N], tl.float32)
        second = tl.zeros([BLOCK_N], tl.float32)
        for start in range(0, H, BLOCK_H):
            row = start + tl.arange(0, BLOCK_H)
            value = tl.load(x + (pair // K) * s_t + row, mask=row < H, other=0.0).to(tl.float32)[None, :]
            at = col[:, None] * s_r + row[None, :]
            mask = inside[:, None] & (row < H)[None, :]
            first += tl.sum(tl.load(own + at, mask=mask, other=0.0).to(tl.float32) * value, axis=1)
            second += tl.sum(tl.load(own + N * s_r + at, mask=mask, other=0.0).to(tl.float32) * value, axis=1)
    out = _gated(rounded(first, TYPE), rounded(second, TYPE), alpha, limit, KIND, TYPE)
    tl.store(y + pair * N + col, narrow(out, TYPE), mask=inside)


@triton.jit
def down(
    x, w, bias, weights, ids, y,
    s_e, s_r, b_e,
    K: tl.constexpr, H: tl.constexpr, N: tl.constexpr, CLAMPED: tl.constexpr, EXPERTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """y [T, N] = the weighted sum over a token's K pairs of x [T * K, H] times their experts' matrices.

    [N, H], rows s_r apart; CLAMPED: [H, N] with a bias [N]. Weights [T, K], with EXPERTS [T, EXPERTS].
    """
    TYPE: tl.constexpr = x.dtype.element_ty
    token = tl.program_id(0)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = col < N
    total = tl.zeros([BLOCK_N], tl.float32)
    for k in range(0, K):
        pair = token * K + k
        expert = tl.load(ids + pair).to(tl.int64)
        own = w + expert * s_e
        part = tl.zeros([BLOCK_N], tl.float32)
        for start in range(0, H, BLOCK_H):
            row = start + tl.arange(0, BLOCK_H)
            value = tl.load(x + pair * H + row, mask=row < H, other=0.0).to(tl.float32)
            if CLAMPED:
                mask = (row < H)[:, None] & inside[None, :]
                tile = tl.load(own + row[:, None] * s_r + col[None, :], mask=mask, other=0.0).to(tl.float32)
                part += tl.sum(tile * value[:, None], axis=0)
            else:
                mask = inside[:, None] & (row < H)[None, :]
                tile = tl.load(own + col[:, None] * s_r + row[None, :], mask=mask, other=0.0).to(tl.float32)
                part += tl.sum(tile * value[None, :], axis=1)
        if CLAMPED:
            part += tl.load(bias + expert * b_e + col, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(weights + (token * EXPERTS + expert if EXPERTS > 0 else pair))
        total += rounded(part, TYPE) * weight.to(tl.float32)
    tl.store(y + token * N + col, narrow(total, TYPE), mask=inside)
