"""What an overlaid latent attention calls in place of its rotation: q and k, rotated and joined, or None for stock."""

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


def latent_rope(
    q_pass: Tensor,
    q_rot: Tensor,
    k_pass: Tensor,
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


def _unusual(q_pass: Tensor, q_rot: Tensor, k_pass: Tensor, k_rot: Tensor, cos: Tensor, sin: Tensor) -> str:
    """Return "" for the shapes of ``join_rope``."""
    batch, heads, length, width = q_rot.shape
    if q_pass.shape[:3] != (batch, heads, length) or k_pass.shape != q_pass.shape:
        return "the parts without position differ in shape"
    if k_rot.shape != (batch, 1, length, width) or width % 2:
        return "the key's rotated part is not one for all heads, or of odd width"
    if cos.dim() != 3 or cos.shape != sin.shape or cos.shape[1:] != (length, width) or cos.shape[0] not in (1, batch):
        return "the tables are not [B or 1, S, R]"
    return ""
