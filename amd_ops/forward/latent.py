"""What an overlaid latent attention calls for q and k, rotated and joined, or None for stock: both at once where the
cache takes whole heads, else q and what the cache takes first, and the key's join behind the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import modes
from ..dispatch import Site
from ..modules import original
from ..ops.latent import join_rope
from ..ops.rope import nobody

_compiling = torch.compiler.is_dynamo_compiling
_site = Site("latent_rope", "taken", nobody)
_key_site = Site("latent_key", "taken", nobody)


def latent_rope(
    q_pass: Tensor,
    q_rot: Tensor,
    k_pass: Tensor | None,
    k_rot: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    halves: Callable[..., tuple[Tensor, Tensor]],
    pairs: Callable[..., tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor] | None:
    """Return ``join_rope`` of these tensors, or None where stock's own statements must run.

    ``halves`` and ``pairs`` are the file's functions for parts that come as halves and, ``interleaved``, as pairs.

    Examples:
        >>> def other(q, k, cos, sin):  # not the function of a modeling file: stock's statements run
        ...     return q, k
        >>> one, turn, table = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 2), torch.ones(1, 1, 2)
        >>> amd_ops.latent_rope(one, turn, one, turn, table, table, False, other, other) is None
        True
    """
    if _compiling():
        return None
    rotate = pairs if interleaved else halves
    name = getattr(rotate, "__name__", "")
    if not original(rotate, name) or "apply_rotary_pos_emb" not in name:
        reason = "the rotating function is no longer that of the file"
    else:
        reason = modes.hidden() or _unusual(q_pass, q_rot, k_pass, k_rot, cos, sin)
    if reason:
        _site.declined(reason)
        return None
    _site.fast.calls += 1
    return join_rope(q_pass, q_rot, k_pass, k_rot, cos, sin, interleaved=bool(interleaved))


def latent_key(k_pass: Tensor, k_rot: Tensor, width: int) -> Tensor | None:
    """Return k_pass [B, H, S, P] joined with k_rot [B, 1, S, R], one rotated part for all heads: [B, H, S, P + R] in
    one launch, or None where stock's own statements must run. ``width`` is the R that stock makes room for.

    Examples:
        >>> amd_ops.latent_key(torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, 1), 1)[0, :, 0]
        tensor([[0., 1.],
                [0., 1.]])
    """
    if _compiling():
        return None
    reason = modes.hidden() or _unlike(k_pass, k_rot, width)
    if reason:
        _key_site.declined(reason)
        return None
    _key_site.fast.calls += 1
    return torch.cat((k_pass, k_rot.expand(-1, k_pass.shape[1], -1, -1)), dim=-1)


def _unlike(k_pass: Tensor, k_rot: Tensor, width: int) -> str:
    """Return "" where stock's two writes take the parts as they are: they would cast, and repeat what is narrow."""
    if type(k_pass) is not Tensor or type(k_rot) is not Tensor:
        return "a part of the key is a tensor subclass"
    if k_pass.dim() != 4 or k_rot.shape != (k_pass.shape[0], 1, k_pass.shape[2], width):
        return "the key's rotated part is not one for all heads, or of another width"
    if k_pass.dtype is not k_rot.dtype or k_pass.device != k_rot.device:
        return "the parts of the key differ in dtype or device"
    return ""


def _unusual(q_pass: Tensor, q_rot: Tensor, k_pass: Tensor | None, k_rot: Tensor, cos: Tensor, sin: Tensor) -> str:
    """Return "" for the shapes of ``join_rope``."""
    batch, heads, length, width = q_rot.shape
    if q_pass.shape[:3] != (batch, heads, length) or (k_pass is not None and k_pass.shape != q_pass.shape):
        return "the parts without position differ in shape"
    if k_rot.shape != (batch, 1, length, width) or width % 2:
        return "the key's rotated part is not one for all heads, or of odd width"
    if cos.dim() != 3 or cos.shape != sin.shape or cos.shape[1:] != (length, width) or cos.shape[0] not in (1, batch):
        return "the tables are not [B or 1, S, R]"
    return ""
