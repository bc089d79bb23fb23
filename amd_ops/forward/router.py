"""What overlaid routers call in place of their choice of experts: stock's results, in stock's dtypes, or None.

None means that stock's own statements run: under torch.compile, which fuses them, and with the reason counted where the
call is not one that the ops know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import modes
from ..dispatch import Site
from ..modules import lives_in, original
from ..ops.moe import softmax_top_k
from ..ops.rope import nobody
from ..ops.router import grouped_top_k, router_logits, top_k_softmax

_compiling = torch.compiler.is_dynamo_compiling
_site = Site("router", "taken", nobody)


def softmax_router(logits: Tensor, top_k: int, renormalise: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Return (weights [T, k] in dtype, ids int64 [T, k]) of the k largest softmax probabilities of logits [T, E].

    The weights are divided by their sum with ``renormalise``. None: stock's own statements must run.

    Examples:
        >>> amd_ops.softmax_router(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), 2, True, torch.float32)[0]
        tensor([[0.5000, 0.5000]])
    """
    if _refused(logits):
        return None
    return softmax_top_k(logits, top_k, renormalise=renormalise, dtype=dtype, plain=True)


def top_k_router(
    logits: Tensor, top_k: int, spread: bool, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor] | None:
    """Return (weights, ids int64 [T, k]): the k largest of logits [T, E] and the softmax of these alone.

    The weights are [T, k] in ``dtype`` or the logits', or with ``spread`` [T, E] with zeros for the others. None:
    stock's own statements must run.

    Examples:
        >>> amd_ops.top_k_router(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), 2, True)[0]
        tensor([[0.0000, 0.5000, 0.5000, 0.0000]])
    """
    if _refused(logits):
        return None
    return top_k_softmax(logits, top_k, spread=spread, dtype=dtype)


def grouped_router(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    top_k: int,
    groups: int,
    kept: int,
    renormalise: bool,
    scale: float,
    fill: float,
    choose: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return (logits fp32 [T, E], weights fp32 [T, k], ids int64 [T, k]) of hidden [T, H], weight [E, H], bias [E].

    The choice is that of ``grouped_top_k``, by logits whose products are added in fp32. ``choose`` is the method that
    makes it in stock. None: stock's own statements must run.

    Examples:
        >>> hidden, weight = torch.ones(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
        >>> amd_ops.grouped_router(hidden, weight, torch.zeros(4), 2, 2, 1, True, 1.0, 0.0)[2].sort().values
        tensor([[2, 3]])
    """
    if _refused(hidden) or (choose is not None and _replaced(choose)):
        return None
    logits = router_logits(hidden, weight)
    if logits.dtype is not torch.float32:  # autocast: the choice is made as stock makes it, but for these logits
        _site.declined("autocast chooses the dtype of the logits")
        return None
    chosen = grouped_top_k(
        logits, bias, top_k, groups=groups, kept=kept, renormalise=renormalise, scale=scale, fill=fill
    )  # fmt: skip
    return logits, *chosen


def _refused(rows: Tensor) -> bool:
    if _compiling():
        return True
    reason = modes.hidden() or ("" if rows.dim() == 2 else "the rows are not [T, H] or [T, E]")
    if reason:
        _site.declined(reason)
    else:
        _site.fast.calls += 1
    return bool(reason)


def _replaced(choose: Any) -> bool:
    """Whether the method that chooses is another than that of the file."""
    function = getattr(choose, "__func__", None)
    if lives_in(function, "torch.utils._contextlib"):
        function = getattr(function, "__wrapped__", None)  # below torch.no_grad()
    if function is not None and original(function, getattr(function, "__name__", "")):
        return False
    _site.declined("the method that chooses the experts has been replaced")
    return True
