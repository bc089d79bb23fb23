"""Mixture of experts: each token goes through its k chosen gated MLPs, and the results are added with its k weights.

hidden [T, H], w1 [E, 2I, H] (gate rows, then up rows), w2 [E, H, I], topk_weight [T, k] (fp32 in the sum), topk_ids
[T, k]. Tiers: aiter (fused_moe) -> triton (few tokens: two gathered products) -> torch (grouped GEMMs where the device
proves them, else two GEMMs per expert that was hit) -> eager (every expert on every token). The choice of experts is a
step of its own, from fp32 probabilities as in stock; tier torch takes stock's own operations, so that a near-tie falls
as it does there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import torch_features
from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import Site, always, capturing
from .activation import (
    eager_gelu_and_mul,
    eager_gelu_tanh_and_mul,
    eager_silu_and_mul,
    gelu_and_mul,
    gelu_tanh_and_mul,
    silu_and_mul,
)
from .tiers import make_op

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_tanh": gelu_tanh_and_mul,
}
_EAGER = {"silu": eager_silu_and_mul, "gelu": eager_gelu_and_mul, "gelu_tanh": eager_gelu_tanh_and_mul}

_grouped_mm = torch_features.grouped_mm()
_grouped_site = Site("moe_grouped_gemm", "grouped", lambda settings: False)
_grouped_verdicts: dict[tuple[torch.device, torch.dtype], str] = {}


def eager_moe(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weight: Tensor, topk_ids: Tensor, activation: str) -> Tensor:
    """Every expert on every token, added with the weight that the token gives it: the reference."""
    _fit(hidden, w1, w2, topk_weight, topk_ids)
    total = torch.zeros_like(hidden, dtype=torch.float32)
    topk_weight = topk_weight.float()
    for expert in range(w1.shape[0]):
        share = (topk_weight * (topk_ids == expert)).sum(1, keepdim=True)
        total = total + share * F.linear(_EAGER[activation](F.linear(hidden, w1[expert])), w2[expert])
    return total.to(hidden.dtype)


def torch_moe(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weight: Tensor, topk_ids: Tensor, activation: str) -> Tensor:
    """Tokens sorted by expert; products in hidden's dtype, the weighted sum in fp32 and rounded once."""
    _fit(hidden, w1, w2, topk_weight, topk_ids)
    gated, topk_weight = ACTIVATIONS[activation], topk_weight.float()
    if hidden.is_cuda and hidden.shape[0]:
        reason = _grouped_reason(hidden, w1, w2)
        if not reason:
            _grouped_site.fast.calls += 1
            return _grouped(hidden, w1, w2, topk_weight, topk_ids, gated)
        _grouped_site.declined(reason)

    def run(expert: int, rows: Tensor) -> Tensor:
        return F.linear(gated(F.linear(rows, w1[expert])), w2[expert])

    return by_expert(hidden, topk_weight, topk_ids, w1.shape[0], run)


def by_expert(hidden: Tensor, weights: Tensor, ids: Tensor, count: int, run: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Call ``run(expert, its tokens)`` once for every expert that was hit, and add up in a fixed order.

    One look at the ids on the host, as stock has. No launch depends on how many tokens an expert got.
    """
    tokens, chosen = ids.shape
    if not tokens:
        return torch.zeros_like(hidden)
    if tokens == 1:
        experts = ids[0].tolist()
        if any(not 0 <= expert < count for expert in experts):
            raise ValueError("an id names no expert")
        rows = torch.cat([run(expert, hidden) for expert in experts])
        return (rows * weights.reshape(chosen, 1)).sum(0, keepdim=True).to(hidden.dtype)
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=count).tolist()
    if len(sizes) != count:
        raise ValueError("an id names no expert")
    parts = hidden[order // chosen].split_with_sizes(sizes)
    rows = torch.cat([run(expert, part) for expert, part in enumerate(parts) if part.shape[0]])
    return _weighted(rows, order, weights, hidden)


def _weighted(rows: Tensor, order: Tensor, weights: Tensor, hidden: Tensor) -> Tensor:
    """Back into the order of the tokens, [T, k, H], and the weighted sum over k."""
    placed = rows[order.argsort()].view(*weights.shape, -1)
    return (placed * weights.unsqueeze(-1)).sum(1).to(hidden.dtype)


def _grouped(
    hidden: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, gated: Callable[[Tensor], Tensor]
) -> Tensor:
    """Two grouped GEMMs; nothing is looked at on the host."""
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    counts = (flat.unsqueeze(0) == torch.arange(w1.shape[0], device=flat.device).unsqueeze(1)).sum(1)
    ends = counts.cumsum(0).to(torch.int32)
    assert _grouped_mm is not None  # _grouped_reason
    both = _grouped_mm(hidden[order // ids.shape[1]], w1.transpose(1, 2), offs=ends)
    rows = _grouped_mm(gated(both), w2.transpose(1, 2), offs=ends)
    return _weighted(rows, order, weights, hidden)


def _grouped_reason(hidden: Tensor, w1: Tensor, w2: Tensor) -> str:
    if _grouped_mm is None:
        return "this torch has no grouped GEMM"
    if hidden.dtype is not torch.bfloat16:
        return f"torch's grouped GEMM is not used for {hidden.dtype}"
    if w1.shape[1] % 16 or w1.shape[2] % 16 or w2.shape[2] % 16:
        return "a dimension of the experts is not a multiple of 16"
    if torch.is_grad_enabled() and (hidden.requires_grad or w1.requires_grad or w2.requires_grad):
        return "gradients are wanted"
    key = hidden.device, hidden.dtype
    if key not in _grouped_verdicts:
        if capturing():
            return "the grouped GEMM has not been proved yet and a stream is being captured"
        _grouped_verdicts[key] = _prove_grouped(*key)
    return _grouped_verdicts[key]


def _prove_grouped(device: torch.device, dtype: torch.dtype) -> str:
    """Compare it once with single products on this device; one of the groups is empty."""
    assert _grouped_mm is not None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(24, 64, generator=generator).to(device, dtype)
    weight = torch.randn(4, 32, 64, generator=generator).to(device, dtype)
    ends = torch.tensor([5, 5, 6, 24], dtype=torch.int32, device=device)
    try:
        found = _grouped_mm(rows, weight.transpose(1, 2), offs=ends)
    except (RuntimeError, NotImplementedError) as error:
        return f"torch's grouped GEMM raised {type(error).__name__} on this device"
    parts = rows.split_with_sizes([5, 0, 1, 18])
    want = torch.cat([F.linear(part.float(), one.float()) for part, one in zip(parts, weight, strict=True)])
    apart = float((found.float() - want).abs().max() / want.abs().max())
    return "" if apart < 2e-2 else f"torch's grouped GEMM is {apart:.1e} off on this device"


def _fit(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weight: Tensor, topk_ids: Tensor) -> None:
    """Refuse what indexing and broadcasting would accept; the public function then names the argument."""
    if hidden.dim() != 2 or w1.dim() != 3 or topk_ids.dim() != 2 or topk_weight.shape != topk_ids.shape:
        raise ValueError("wrong number of dimensions")
    experts, width, size = w1.shape
    if size != hidden.shape[1] or width % 2 or w2.shape != (experts, size, width // 2):
        raise ValueError("the weights do not fit")
    if topk_ids.shape[0] != hidden.shape[0]:
        raise ValueError("the ids do not fit")


_moe = make_op("moe", "USE_OPTIMIZED_OPS", torch=always(torch_moe), eager=eager_moe)


@_moe.public
def moe(
    hidden: Tensor,
    w1: Tensor,
    w2: Tensor,
    topk_weight: Tensor,
    topk_ids: Tensor,
    *,
    activation: str = "silu",
) -> Tensor:
    """Return the weighted sum of the chosen experts, [T, H] in hidden's dtype. Shapes are in the module text.

    An expert is w2[e] @ (act(gate) * up) with gate and up the halves of w1[e] @ x; ``activation`` is silu, gelu or
    gelu_tanh. Ids lie in [0, E). Experts without a token cost nothing. Raises ArgumentError on unusable arguments.

    Examples:
        >>> hidden, w1, w2 = torch.ones(2, 4), torch.ones(8, 6, 4), torch.ones(8, 4, 3)
        >>> weights, ids = amd_ops.softmax_top_k(torch.randn(2, 8), 2)
        >>> amd_ops.moe(hidden, w1, w2, weights, ids).shape
        torch.Size([2, 4])
    """
    _moe.calls += 1
    try:
        result: Tensor = _moe.call(hidden, w1, w2, topk_weight, topk_ids, activation)
    except (*TORCH_ERRORS, KeyError):
        _diagnose(hidden, w1, w2, topk_weight, topk_ids, activation)
        raise
    return result


def _diagnose(hidden: Tensor, w1: Tensor, w2: Tensor, weight: Tensor, ids: Tensor, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise complaint("moe", "activation", repr(activation), f"one of {', '.join(ACTIVATIONS)}")
    for name, tensor, rank in (
        ("hidden", hidden, 2),
        ("w1", w1, 3),
        ("w2", w2, 3),
        ("topk_weight", weight, 2),
        ("topk_ids", ids, 2),
    ):
        if not isinstance(tensor, Tensor) or tensor.dim() != rank:
            raise complaint("moe", name, describe(tensor), f"a tensor of {rank} dimensions")
        if tensor.device != hidden.device:
            raise complaint("moe", name, f"on {tensor.device}", f"{hidden.device}, where hidden is")
    if w1.shape[2] != hidden.shape[1] or w1.shape[1] % 2 or w1.dtype is not hidden.dtype:
        raise complaint("moe", "w1", describe(w1), f"[E, 2I, {hidden.shape[1]}] of hidden's dtype")
    wanted = (w1.shape[0], hidden.shape[1], w1.shape[1] // 2)
    if w2.shape != wanted or w2.dtype is not hidden.dtype:
        raise complaint("moe", "w2", describe(w2), f"{list(wanted)} of hidden's dtype")
    if ids.shape[0] != hidden.shape[0] or ids.is_floating_point():
        raise complaint("moe", "topk_ids", describe(ids), f"integers [{hidden.shape[0]}, k]")
    if weight.shape != ids.shape:
        raise complaint("moe", "topk_weight", describe(weight), f"{list(ids.shape)}, as topk_ids")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < w1.shape[0]:
        raise complaint("moe", "topk_ids", f"{int(ids.min())} to {int(ids.max())}", f"ids from 0 to {w1.shape[0] - 1}")


# -- the router


def stock_route(
    logits: Tensor, top_k: int, renormalise: bool, dtype: torch.dtype, plain: bool
) -> tuple[Tensor, Tensor]:
    """Stock's own operations in stock's order, so the choice is stock's; the weights are rounded to dtype as there."""
    weights = F.softmax(logits, dim=1, dtype=torch.float)
    weights, ids = torch.topk(weights, top_k, dim=-1)
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    weights = weights.to(dtype)
    return (weights, ids) if plain else (weights.float(), ids.to(torch.int32))


_route = make_op("softmax_top_k", "USE_OPTIMIZED_OPS", torch=always(stock_route), eager=stock_route)


@_route.public
def softmax_top_k(
    logits: Tensor,
    top_k: int,
    *,
    renormalise: bool = True,
    dtype: torch.dtype = torch.float32,
    plain: bool = False,
) -> tuple[Tensor, Tensor]:
    """Choose top_k experts for every token: (weights fp32 [T, k], ids int32 [T, k]) of logits [T, E].

    The weights are softmax probabilities, divided by their sum with ``renormalise`` and rounded to ``dtype``. With
    ``plain`` they are of that dtype, and the ids int64, as transformers' routers return them.

    Examples:
        >>> amd_ops.softmax_top_k(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), 2)
        (tensor([[0.5000, 0.5000]]), tensor([[1, 2]], dtype=torch.int32))
    """
    _route.calls += 1
    try:
        result: tuple[Tensor, Tensor] = _route.call(logits, top_k, renormalise, dtype, plain)
    except TORCH_ERRORS:
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
            raise complaint("softmax_top_k", "logits", describe(logits), "a float tensor [T, E]") from None
        if not 0 < top_k <= logits.shape[1]:
            raise complaint("softmax_top_k", "top_k", top_k, f"1 to {logits.shape[1]}") from None
        raise
    return result


# -- experts with a clamped gate and biases, as 3-D parameters


def torch_clamped_moe(
    hidden: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    weights: Tensor,
    ids: Tensor,
    alpha: float,
    limit: float,
) -> Tensor:
    """Two GEMMs per expert that was hit, in the stock order of operations."""
    if weights.shape != ids.shape:
        weights = weights.gather(1, ids.long())

    def run(expert: int, rows: Tensor) -> Tensor:
        middle = _clamped(torch.addmm(gate_up_bias[expert], rows, gate_up[expert]), alpha, limit)
        return torch.addmm(down_bias[expert], middle, down[expert])

    return by_expert(hidden, weights, ids, gate_up.shape[0], run)


def eager_clamped_moe(
    hidden: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    weights: Tensor,
    ids: Tensor,
    alpha: float,
    limit: float,
) -> Tensor:
    """Every expert on every token: the reference."""
    if weights.shape != ids.shape:
        weights = weights.gather(1, ids.long())
    total = torch.zeros_like(hidden, dtype=torch.float32)
    for expert in range(gate_up.shape[0]):
        middle = _clamped(hidden @ gate_up[expert] + gate_up_bias[expert], alpha, limit)
        share = (weights * (ids == expert)).sum(1, keepdim=True)
        total = total + share * (middle @ down[expert] + down_bias[expert])
    return total.to(hidden.dtype)


def _clamped(both: Tensor, alpha: float, limit: float) -> Tensor:
    gate, up = both[..., ::2].clamp(max=limit), both[..., 1::2].clamp(min=-limit, max=limit)
    return (up + 1) * (gate * torch.sigmoid(gate * alpha))


_clamped_moe = make_op("clamped_moe", "USE_OPTIMIZED_OPS", torch=always(torch_clamped_moe), eager=eager_clamped_moe)


@_clamped_moe.public
def clamped_moe(
    hidden: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    weights: Tensor,
    ids: Tensor,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> Tensor:
    """As moe, for experts down(( up + 1) * gate * sigmoid(alpha * gate)) with gate <= limit and |up| <= limit.

    gate_up [E, H, 2I] with gate and up interleaved, gate_up_bias [E, 2I], down [E, I, H], down_bias [E, H]; hidden
    [T, H], weights and ids [T, k]; or weights [T, E], of which those of the ids count. Returns [T, H].

    Examples:
        >>> hidden, weights, ids = torch.ones(1, 2), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32)
        >>> gate_up, down = torch.zeros(3, 2, 8), torch.ones(3, 4, 2)
        >>> amd_ops.clamped_moe(hidden, gate_up, torch.zeros(3, 8), down, torch.ones(3, 2), weights, ids)
        tensor([[1., 1.]])
    """
    _clamped_moe.calls += 1
    try:
        spread = weights.shape == (ids.shape[0], gate_up.shape[0])
        fits = spread or weights.shape == ids.shape
        if hidden.shape[0] != ids.shape[0] or not fits or gate_up.shape[0] != down.shape[0]:
            raise ValueError("unusable arguments")
        result: Tensor = _clamped_moe.call(
            hidden, gate_up, gate_up_bias, down, down_bias, weights, ids, alpha, limit
        )  # fmt: skip
    except TORCH_ERRORS:
        if hidden.dim() != 2 or gate_up.dim() != 3 or gate_up.shape[1] != hidden.shape[1]:
            raise complaint("clamped_moe", "gate_up", describe(gate_up), f"[E, {hidden.shape[-1]}, 2I]") from None
        if ids.dim() != 2 or ids.shape[0] != hidden.shape[0]:
            raise complaint("clamped_moe", "ids", describe(ids), f"integers [{hidden.shape[0]}, k]") from None
        if not fits:
            wanted = f"{list(ids.shape)}, as ids, or [{ids.shape[0]}, {gate_up.shape[0]}]"
            raise complaint("clamped_moe", "weights", describe(weights), wanted) from None
        raise
    return result
