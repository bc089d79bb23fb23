"""Latent attention's q and k: heads whose last part carries the position and is rotated, joined with the rest.

q_pass [B, H, S, P], q_rot [B, H, S, R], k_pass [B, H, S, P], k_rot [B, 1, S, R] (one part for all heads), cos and sin
[B or 1, S, R] -> q and k [B, H, S, P + R], dense. Without a k_pass, k is k_rot rotated, [B, 1, S, R]: a cache takes it
before it is joined (transformers 5). ``interleaved``: the parts come as pairs (x0, x1), (x2, x3), ... and
leave as halves. Tiers: triton (one launch; inference) -> torch and eager (stock's own operations in stock's order).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import always
from .tiers import make_op


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        b, h, s, d = x.shape
        x = x.view(b, h, s, d // 2, 2).transpose(4, 3).reshape(b, h, s, d)
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return (x * cos) + (torch.cat((-second, first), dim=-1) * sin)


def stock_latent(
    q_pass: Tensor, q_rot: Tensor, k_pass: Tensor | None, k_rot: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """deepseek_v3's statements."""
    if cos.dim() != 3 or q_rot.dim() != 4 or cos.shape[1:] != q_rot.shape[2:]:
        raise ValueError("the tables do not fit")
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    q_rot, k_rot = _turned(q_rot, cos, sin, interleaved), _turned(k_rot, cos, sin, interleaved)
    if k_pass is None:
        return torch.cat((q_pass, q_rot), dim=-1), k_rot
    k_rot = k_rot.expand(*k_pass.shape[:-1], -1)
    return torch.cat((q_pass, q_rot), dim=-1), torch.cat((k_pass, k_rot), dim=-1)


_join = make_op("join_rope", "USE_OPTIMIZED_OPS", torch=always(stock_latent), eager=stock_latent)


@_join.public
def join_rope(
    q_pass: Tensor,
    q_rot: Tensor,
    k_pass: Tensor | None,
    k_rot: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotate q_rot and k_rot and join them with q_pass and k_pass: (q, k). Shapes are in the module text; with None for
    k_pass, k is k_rot rotated.

    Raises ArgumentError on unusable arguments.

    Examples:
        >>> one, turn = torch.ones(1, 1, 1, 1), torch.tensor([[[[1.0, 2.0]]]])  # a quarter turn
        >>> amd_ops.join_rope(one, turn, one, turn, torch.zeros(1, 1, 2), torch.ones(1, 1, 2))[0]
        tensor([[[[ 1., -2.,  1.]]]])
    """
    _join.calls += 1
    try:
        result: tuple[Tensor, Tensor] = _join.call(q_pass, q_rot, k_pass, k_rot, cos, sin, interleaved)
    except TORCH_ERRORS:
        still = q_pass if k_pass is None else k_pass
        named = (("q_pass", q_pass, 4), ("q_rot", q_rot, 4), ("k_pass", still, 4), ("k_rot", k_rot, 4))
        for name, tensor, rank in (*named, ("cos", cos, 3), ("sin", sin, 3)):
            if not isinstance(tensor, Tensor) or tensor.dim() != rank:
                raise complaint("join_rope", name, describe(tensor), f"a tensor of {rank} dimensions") from None
        if cos.shape != sin.shape or cos.shape[1:] != q_rot.shape[2:]:
            wanted = f"[{q_rot.shape[0]} or 1, {q_rot.shape[2]}, {q_rot.shape[3]}]"
            raise complaint("join_rope", "cos and sin", f"{describe(cos)} and {describe(sin)}", wanted) from None
        raise
    return result
