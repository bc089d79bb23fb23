"""Which experts each token goes to, and with what weights: the routers of transformers behind one call each.

logits [T, E], one row per token. Tiers: triton (one launch; inference) -> torch and eager (stock's own operations in
stock's order, so the choice and the weights are stock's). Among equal logits torch promises no order; tier triton
takes the first. ``softmax_top_k``, the router of mixtral and qwen3_moe, is in ``moe.py`` beside the experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import always
from .tiers import make_op

# -- the softmax of the chosen alone


def stock_top_k_softmax(
    logits: Tensor, top_k: int, spread: bool, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The router of gpt_oss, and with ``dtype`` that of granitemoe: the softmax in the logits' dtype."""
    weights, ids = torch.topk(logits, top_k, dim=-1)
    weights = F.softmax(weights, dim=1, dtype=weights.dtype)
    if spread:
        weights = torch.zeros_like(logits).scatter_(1, ids, weights)
    return weights if dtype is None else weights.to(dtype), ids


_chosen = make_op(
    "top_k_softmax", "USE_OPTIMIZED_OPS", torch=always(stock_top_k_softmax), eager=stock_top_k_softmax
)  # fmt: skip


@_chosen.public
def top_k_softmax(
    logits: Tensor, top_k: int, *, spread: bool = False, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Choose top_k experts by logits [T, E] and weigh them by the softmax of their logits alone.

    Returns (weights [T, k] in ``dtype`` or the logits', ids int64 [T, k]); with ``spread`` the weights are [T, E], zero
    where an expert was not chosen. The softmax is rounded to the logits' dtype first. Raises ArgumentError on
    unusable arguments.

    Examples:
        >>> amd_ops.top_k_softmax(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), 2)[0]
        tensor([[0.5000, 0.5000]])
    """
    _chosen.calls += 1
    try:
        result: tuple[Tensor, Tensor] = _chosen.call(logits, top_k, spread, dtype or logits.dtype)
    except TORCH_ERRORS:
        _diagnose("top_k_softmax", logits, top_k)
        raise
    return result


# -- sigmoid scores with a correction, groups of experts


def stock_grouped_top_k(
    logits: Tensor, bias: Tensor, top_k: int, groups: int, kept: int, renormalise: bool, scale: float, fill: float
) -> tuple[Tensor, Tensor]:
    """deepseek_v3's router."""
    scores = logits.sigmoid()
    experts = logits.shape[-1]
    choice = scores + bias
    with torch.no_grad():
        group_scores = choice.view(-1, groups, experts // groups).topk(2, dim=-1)[0].sum(dim=-1)
        group_ids = torch.topk(group_scores, k=kept, dim=-1, sorted=False)[1]
        group_mask = torch.zeros_like(group_scores)
        group_mask.scatter_(1, group_ids, 1)
        mask = group_mask.unsqueeze(-1).expand(-1, groups, experts // groups).reshape(-1, experts)
        ids = torch.topk(choice.masked_fill(~mask.bool(), fill), k=top_k, dim=-1, sorted=False)[1]
    weights = scores.gather(1, ids)
    if renormalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * scale, ids


_grouped = make_op(
    "grouped_top_k", "USE_OPTIMIZED_OPS", torch=always(stock_grouped_top_k), eager=stock_grouped_top_k
)  # fmt: skip


@_grouped.public
def grouped_top_k(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    *,
    groups: int = 1,
    kept: int = 1,
    renormalise: bool = True,
    scale: float = 1.0,
    fill: float = float("-inf"),
) -> tuple[Tensor, Tensor]:
    """Choose top_k experts among the ``kept`` best of ``groups`` groups by sigmoid(logits [T, E]) + bias [E].

    A group is as good as its two best experts together; the choice of an expert of another group becomes ``fill``.
    Returns (weights [T, k] in the dtype of the logits, ids int64 [T, k]): sigmoid(logits) of the chosen, divided by
    their sum with ``renormalise``, times ``scale``. Raises ArgumentError on unusable arguments.

    Examples:
        >>> logits = torch.tensor([[0.0, 9.0, 8.0, 7.0]])
        >>> amd_ops.grouped_top_k(logits, torch.zeros(4), 2, groups=2)[1].sort().values
        tensor([[2, 3]])
    """
    _grouped.calls += 1
    try:
        result: tuple[Tensor, Tensor] = _grouped.call(logits, bias, top_k, groups, kept, renormalise, scale, fill)
    except TORCH_ERRORS:
        _diagnose("grouped_top_k", logits, top_k)
        if not isinstance(bias, Tensor) or bias.shape != logits.shape[1:]:
            raise complaint("grouped_top_k", "bias", describe(bias), f"[{logits.shape[1]}], one per expert") from None
        if groups < 1 or logits.shape[1] % groups or logits.shape[1] < 2 * groups or not 0 < kept <= groups:
            wanted = f"groups of at least two of {logits.shape[1]} experts, and 1 to {groups} of them kept"
            raise complaint("grouped_top_k", "groups and kept", f"{groups} and {kept}", wanted) from None
        raise
    return result


# -- logits in fp32 of weights of any dtype


def stock_router_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Both are brought to fp32 as wholes, as deepseek_v3's router does."""
    return F.linear(hidden.type(torch.float32), weight.type(torch.float32))


_logits = make_op(
    "router_logits", "USE_OPTIMIZED_OPS", torch=always(stock_router_logits), eager=stock_router_logits
)  # fmt: skip


@_logits.public
def router_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return hidden [T, H] @ weight [E, H]^T, multiplied and added in fp32: [T, E] fp32, whatever the two's dtypes are.

    Raises ArgumentError on unusable arguments.

    Examples:
        >>> amd_ops.router_logits(torch.ones(1, 2).bfloat16(), torch.ones(3, 2).bfloat16())
        tensor([[2., 2., 2.]])
    """
    _logits.calls += 1
    try:
        result: Tensor = _logits.call(hidden, weight)
    except TORCH_ERRORS:
        for name, tensor in (("hidden", hidden), ("weight", weight)):
            if not isinstance(tensor, Tensor) or tensor.dim() < 1 or tensor.shape[-1] != hidden.shape[-1]:
                wanted = "a tensor [T, H]" if name == "hidden" else f"[E, {hidden.shape[-1]}]"
                raise complaint("router_logits", name, describe(tensor), wanted) from None
        raise
    return result


def _diagnose(op: str, logits: Any, top_k: int) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
        raise complaint(op, "logits", describe(logits), "a float tensor [T, E]") from None
    if not 0 < top_k <= logits.shape[1]:
        raise complaint(op, "top_k", top_k, f"1 to {logits.shape[1]}") from None
