"""top_k_softmax, grouped_top_k and router_logits: one launch each, of kernels/router.py. Inference only."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..probing import disagreement, made_up, needs_grad
from .common import DTYPES, unfit
from .configs import waves
from .experts import FEW_TOKENS, GRADIENT, MANY, MOST_EXPERTS
from .kernels import router as kernels
from .layout import Via, directly, power_of_two, specialised
from .target import Target

MOST_GROUPS = 64


def _unfit_logits(target: Target, logits: Tensor, top_k: int) -> str:
    if logits.dim() != 2 or logits.shape[1] > MOST_EXPERTS or not 0 < top_k <= logits.shape[1]:
        return f"the logits are not [T, E] of at most {MOST_EXPERTS} experts, k of them chosen"
    if logits.stride(1) != 1:
        return "the logits' rows are not dense"
    return GRADIENT if needs_grad(logits) else unfit(target, logits)


def _apart(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> str:
    """Compare choices as sets, and weights in the order of the ids."""
    (weights, ids), (exact, known) = got, want
    if not torch.equal(ids.sort(dim=1).values, known.sort(dim=1).values):
        return "its probe chooses other experts than the formula"
    if weights.shape == ids.shape:
        weights, exact = weights.gather(1, ids.argsort(dim=1)), exact.gather(1, known.argsort(dim=1))
    return disagreement(weights, exact)


def launch_top_k_softmax(
    logits: Tensor, top_k: int, spread: bool, wave: int, dtype: torch.dtype | None = None, *, via: Via = directly
) -> tuple[Tensor, Tensor]:
    """(weights [T, k], or [T, E] with ``spread``, in ``dtype`` or the logits', ids int64 [T, k])."""
    tokens, count = logits.shape
    weights = logits.new_empty((tokens, count if spread else top_k), dtype=dtype)
    ids = torch.empty((tokens, top_k), dtype=torch.int64, device=logits.device)
    block = power_of_two(count)
    via(kernels.top_k_softmax)[(tokens,)](
        logits, weights, ids, logits.stride(0),
        E=count, K=top_k, SPREAD=spread, BLOCK=block, SLOTS=power_of_two(top_k), num_warps=waves(block, wave),
    )  # fmt: skip
    return weights, ids


def _top_k_softmax(reference: Callable[..., Any], target: Target) -> Candidate:
    def check(logits: Tensor, top_k: int, spread: bool, dtype: torch.dtype) -> str:
        return _unfit_logits(target, logits, top_k) or ("" if dtype in DTYPES else f"weights in {dtype}")

    def run(logits: Tensor, top_k: int, spread: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return launch_top_k_softmax(logits, top_k, spread, target.wave, dtype)

    def variant(logits: Tensor, top_k: int, spread: bool, dtype: torch.dtype) -> Hashable:
        return logits.dtype, logits.shape[1], top_k, spread, dtype

    def probe(logits: Tensor, *rest: Any) -> str:
        with torch.inference_mode():
            sample = made_up((3, logits.shape[1]), logits.dtype, logits.device, 22)
            return _apart(run(sample, *rest), reference(sample, *rest))

    return Candidate(run, check, variant, probe)


def launch_grouped_top_k(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    groups: int,
    kept: int,
    renormalise: bool,
    scale: float,
    fill: float,
    *,
    wave: int,
    via: Via = directly,
) -> tuple[Tensor, Tensor]:
    """(weights [T, k] in the logits' dtype, ids int64 [T, k])."""
    tokens, count = logits.shape
    weights = logits.new_empty((tokens, top_k))
    ids = torch.empty((tokens, top_k), dtype=torch.int64, device=logits.device)
    block = power_of_two(count)
    via(kernels.grouped_top_k)[(tokens,)](
        logits, bias, weights, ids, scale, logits.stride(0),
        E=count, K=top_k, GROUPS=groups, KEPT=kept, NORMALISE=renormalise, ZERO=fill == 0.0,
        BLOCK=block, SLOTS=power_of_two(top_k), BLOCK_G=power_of_two(groups), num_warps=waves(block, wave),
    )  # fmt: skip
    return weights, ids


def _grouped_top_k(reference: Callable[..., Any], target: Target) -> Candidate:
    def check(
        logits: Tensor, bias: Tensor, top_k: int, groups: int, kept: int, renormalise: bool, scale: float, fill: float
    ) -> str:
        reason = _unfit_logits(target, logits, top_k)
        if reason:
            return reason
        if logits.dtype is not torch.float32:
            return f"the logits are {logits.dtype}: only fp32 scores are rounded nowhere"
        if bias.shape != logits.shape[1:] or bias.stride(0) != 1:
            return "the correction is not one dense number per expert"
        if fill not in (0.0, -math.inf):
            return "what is not chosen counts neither as zero nor as nothing"
        if not 0 < groups <= MOST_GROUPS or logits.shape[1] % groups or not 0 < kept <= groups:
            return f"the experts are not in 1 to {MOST_GROUPS} groups of one size"
        size = logits.shape[1] // groups
        if size < 2 or (fill != 0.0 and top_k > kept * size):
            return "the groups have less than two experts, or those kept have less than k"
        return unfit(target, bias)

    def run(logits: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return launch_grouped_top_k(logits, bias, *rest, wave=target.wave)

    def variant(logits: Tensor, bias: Tensor, top_k: int, groups: int, kept: int, *rest: Any) -> Hashable:
        return bias.dtype, logits.shape[1], top_k, groups, kept, *rest

    def probe(logits: Tensor, bias: Tensor, *rest: Any) -> str:
        with torch.inference_mode():
            sample = made_up((3, logits.shape[1]), logits.dtype, logits.device, 23)
            shift = made_up(tuple(bias.shape), bias.dtype, bias.device, 24) * 0.25
            return _apart(run(sample, shift, *rest), reference(sample, shift, *rest))

    return Candidate(run, check, variant, probe)


def launch_router_logits(hidden: Tensor, weight: Tensor, wave: int, via: Via = directly) -> Tensor:
    """[T, E] fp32 of hidden [T, H] and weight [E, H]."""
    tokens, count = hidden.shape[0], weight.shape[0]
    out = torch.empty((tokens, count), dtype=torch.float32, device=hidden.device)
    block = min(power_of_two(hidden.shape[1]), 512)
    rows = min(max(2048 // block, 1), power_of_two(count))
    via(kernels.router_logits)[(tokens, -(-count // rows))](
        hidden, weight, out, hidden.stride(0), weight.stride(0),
        E=count, H=hidden.shape[1], BLOCK_N=rows, BLOCK_H=block, num_warps=waves(rows * block, wave),
    )  # fmt: skip
    return out


def _router_logits(reference: Callable[..., Any], target: Target) -> Candidate:
    def check(hidden: Tensor, weight: Tensor) -> str:
        if needs_grad(hidden, weight):
            return GRADIENT
        if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
            return "the hidden states and the weight are not [T, H] and [E, H]"
        if hidden.shape[0] > FEW_TOKENS:
            return MANY
        if hidden.stride(1) != 1 or weight.stride(1) != 1:
            return "the last dimension of the hidden states or of the weight is not dense"
        if torch.is_autocast_enabled(target.type):
            return "autocast chooses the dtype of the product"
        return unfit(target, hidden, weight)

    def run(hidden: Tensor, weight: Tensor) -> Tensor:
        return launch_router_logits(hidden, weight, target.wave)

    def variant(hidden: Tensor, weight: Tensor) -> Hashable:
        return hidden.dtype, weight.dtype, weight.shape, specialised((hidden.stride(0), weight.stride(0)))

    def probe(hidden: Tensor, weight: Tensor) -> str:
        with torch.inference_mode():
            sample = made_up((2, hidden.shape[1]), hidden.dtype, hidden.device, 25)
            return disagreement(run(sample, weight), reference(sample, weight))

    return Candidate(run, check, variant, probe)


_MAKERS = {"top_k_softmax": _top_k_softmax, "grouped_top_k": _grouped_top_k, "router_logits": _router_logits}


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of a router's op."""
    return _MAKERS[op](reference, target)
