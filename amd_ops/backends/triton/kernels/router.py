"""What routers do with a row of logits, in one program: the choice of K experts and their weights."""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import narrow, rounded, sigmoid


@triton.jit
def _largest(choice, value, col, E: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr):
    """Columns of the K largest of ``choice``, the first of equal ones, with ``value`` there, and what was left.

    A NaN is never found: columns stay below E, and the caller makes NaN of such a row's weights.
    """
    slot = tl.arange(0, SLOTS)
    found = tl.zeros([SLOTS], tl.float32)
    chosen = tl.zeros([SLOTS], tl.int32)
    free = col < E
    for k in tl.static_range(K):
        best = tl.max(tl.where(free, choice, -float("inf")), axis=0)
        at = tl.min(tl.where(free & (choice == best), col, E - 1), axis=0)
        found = tl.where(slot == k, tl.sum(tl.where(col == at, value, 0.0), axis=0), found)
        chosen = tl.where(slot == k, at, chosen)
        free = free & (col != at)
    return found, chosen, free


@triton.jit(do_not_specialize=["s_t"])
def top_k_softmax(
    logits, weights, ids, s_t,
    E: tl.constexpr, K: tl.constexpr, SPREAD: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The K largest of one row of E logits: ids [T, K] and the softmax of these alone.

    Weights are rounded once, [T, K], or with SPREAD [T, E] with zeros for the others.
    """
    TYPE: tl.constexpr = weights.dtype.element_ty
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(logits + row * s_t + col, mask=col < E, other=-float("inf")).to(tl.float32)
    known = tl.where(x == x, x, -float("inf"))
    best, chosen, free = _largest(known, known, col, E, K, SLOTS)
    slot = tl.arange(0, SLOTS)
    top = tl.max(known, axis=0)
    total = tl.sum(tl.where(slot < K, tl.exp(best - top), 0.0), axis=0)
    total = tl.where(tl.sum(tl.where(x == x, 0, 1), axis=0) > 0, float("nan"), total)
    if SPREAD:
        share = tl.where(free, 0.0, tl.exp(known - top) / total)
        tl.store(weights + row * E + col, narrow(share, TYPE), mask=col < E)
    else:
        share = tl.exp(best - top) / total
        tl.store(weights + row * K + slot, narrow(share, TYPE), mask=slot < K)
    tl.store(ids + row * K + slot, chosen, mask=slot < K)


@triton.jit
def _kept(choice, col, E: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr, BLOCK_G: tl.constexpr):
    """Whether a column is in one of the KEPT groups whose two best columns have the largest sum."""
    SIZE: tl.constexpr = E // GROUPS
    group = tl.arange(0, BLOCK_G)
    total = tl.zeros([BLOCK_G], tl.float32)
    for g in tl.static_range(GROUPS):
        own = (col // SIZE == g) & (col < E)
        first = tl.max(tl.where(own, choice, -float("inf")), axis=0)
        at = tl.min(tl.where(own & (choice == first), col, E), axis=0)
        second = tl.max(tl.where(own & (col != at), choice, -float("inf")), axis=0)
        total = tl.where(group == g, first + second, total)
    _, chosen, _ = _largest(total, total, group, GROUPS, KEPT, BLOCK_G)
    inside = col < 0
    for k in tl.static_range(KEPT):
        inside = inside | (col // SIZE == tl.sum(tl.where(group == k, chosen, 0), axis=0))
    return inside


@triton.jit(do_not_specialize=["s_t", "scale"])
def grouped_top_k(
    logits, bias, weights, ids, scale, s_t,
    E: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr, NORMALISE: tl.constexpr,
    ZERO: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """The K largest of sigmoid(one row of E logits) + bias in KEPT of GROUPS groups: ids, weights [T, K].

    Experts of other groups count as zero with ZERO, as nothing without. Weights are the sigmoids.
    """
    TYPE: tl.constexpr = weights.dtype.element_ty
    row = tl.program_id(0)
    col = tl.arange(0, BLOCK)
    x = tl.load(logits + row * s_t + col, mask=col < E, other=0.0).to(tl.float32)
    score = rounded(sigmoid(x), TYPE)
    choice = score + tl.load(bias + col, mask=col < E, other=0.0).to(tl.float32)
    lost = tl.sum(tl.where(choice == choice, 0, 1), axis=0) > 0
    choice = tl.where(choice == choice, choice, -float("inf"))
    if KEPT < GROUPS:
        inside = _kept(choice, col, E, GROUPS, KEPT, BLOCK_G)
        choice = tl.where(inside, choice, 0.0 if ZERO else -float("inf"))
    best, chosen, _ = _largest(choice, score, col, E, K, SLOTS)
    slot = tl.arange(0, SLOTS)
    if NORMALISE:
        best = best / (tl.sum(tl.where(slot < K, best, 0.0), axis=0) + 1e-20)
    best = tl.where(lost, float("nan"), best * scale)
    tl.store(weights + row * K + slot, narrow(best, TYPE), mask=slot < K)
    tl.store(ids + row * K + slot, chosen, mask=slot < K)


@triton.jit(do_not_specialize=["s_t"])
def router_logits(
    x, w, y, s_t, s_e,
    E: tl.constexpr, H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """y [T, E] fp32 = x [T, H] @ w [E, H]^T in fp32, whatever x and w are: each token reads w for itself."""
    token = tl.program_id(0)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
    for start in range(0, H, BLOCK_H):
        at = start + tl.arange(0, BLOCK_H)
        value = tl.load(x + token * s_t + at, mask=at < H, other=0.0).to(tl.float32)
        mask = (col < E)[:, None] & (at < H)[None, :]
        total += tl.load(w + col[:, None] * s_e + at[None, :], mask=mask, other=0.0).to(tl.float32) * value[None, :]
    tl.store(y + token * E + col, tl.sum(total, axis=1), mask=col < E)
