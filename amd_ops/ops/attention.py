"""Scaled dot product attention with every feature that decoder models use; each tier honours a feature or declines.

Alignment: causality and windows are counted from the last query and the last key (bottom right), so a chunk of
queries behind a cache of keys needs no mask. torch's own ``is_causal`` counts from the first ones: it is used only
where both agree.

Inside, tiers take q [B, H, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv] (as transformers does) and return [B, Sq, H,
Dv]. Tiers: aiter (flash kernels) -> torch (SDPA) -> eager (plain formula, softmax in fp32: the reference).
"""

from __future__ import annotations

import math
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import complaint, describe, same_place
from ..dispatch import Candidate, Offered, Refusal
from ..toggles import Settings
from ..torch_compile import traced
from ..torch_features import hides_whole_rows, torch_takes, tried
from .tiers import make_op

_compiling = torch.compiler.is_dynamo_compiling


_TAKES_GROUPS = torch_takes("scaled_dot_product_attention", "enable_gqa")
_GROUPED_SIZE = 256
"""Above this head size, or with another one for the values, SDPA computes grouped heads by its plain formula."""


class Call:
    """What one call knows beyond its tensors: which layer makes it, and, once found, what its mask amounts to."""

    __slots__ = ("layer", "plan")

    def __init__(self, layer: int | None = None) -> None:
        self.layer = layer
        self.plan: Any = None


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """[B, Hkv, S, D] -> [B, Hkv * groups, S, D], each head ``groups`` times in a row."""
    if groups == 1:
        return x
    batch, heads, length, size = x.shape
    return x[:, :, None].expand(batch, heads, groups, length, size).reshape(batch, heads * groups, length, size)


def allowed(rows: int, columns: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Bool [rows, columns], True where causality and window let a query see a key; None when nothing is hidden."""
    causal = causal and rows > 1
    if not causal and (window is None or window >= columns):
        return None
    last = torch.arange(columns - rows, columns, device=device).unsqueeze(1)
    key = torch.arange(columns, device=device).unsqueeze(0)
    seen = key <= last if causal else torch.ones(rows, columns, dtype=torch.bool, device=device)
    return seen if window is None else seen & (key > last - window)


def _fitted(mask: Tensor | None, columns: int) -> Tensor | None:
    """Cut a mask made for a longer cache to the keys there are, as the stock functions do."""
    if mask is None or mask.dim() != 4 or mask.shape[-1] <= columns:
        return mask
    return mask[:, :, :, :columns]


def eager_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    causal: bool,
    mask: Tensor | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    call: Call,
) -> Tensor:
    """The plain formula, in the order and dtypes of transformers' eager functions. A query that sees no key gives
    zeros.
    """
    groups = q.shape[1] // k.shape[1]
    factor = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(q, repeat_heads(k, groups).transpose(2, 3)) * factor
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    mask = _fitted(mask, k.shape[2])
    hidden = allowed(q.shape[2], k.shape[2], causal, window, q.device)
    if mask is not None and mask.dtype is not torch.bool:
        scores = scores + mask
    elif mask is not None:
        hidden = mask if hidden is None else hidden & mask
    if hidden is not None:
        scores = scores.masked_fill(~hidden, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)), dim=-1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32)
    if hidden is not None:
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    weights = F.dropout(weights[..., : k.shape[2]].to(q.dtype), p=dropout, training=dropout > 0.0)
    return torch.matmul(weights, repeat_heads(v, groups)).transpose(1, 2).contiguous()


def torch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    causal: bool,
    mask: Tensor | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    call: Call,
) -> Tensor:
    """SDPA, called as transformers' sdpa function calls it: grouped heads where there is no mask, otherwise the
    queries of a group as rows of one head where each is a single row, and repeated heads where not.
    """
    rows, columns, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    mask = _fitted(mask, columns)
    flag = causal and rows > 1
    if window is not None or (flag and (mask is not None or rows != columns)):
        mask, flag = _merged(mask, allowed(rows, columns, causal, window, q.device)), False
    options: dict[str, Any] = {}
    if groups != 1:
        if mask is None and _TAKES_GROUPS and k.shape[3] == v.shape[3] <= _GROUPED_SIZE:
            options["enable_gqa"] = True
        elif rows == 1:
            q, mask = _packed(q, groups), _packed(mask, groups)
        else:
            k, v = repeat_heads(k, groups), repeat_heads(v, groups)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=flag, scale=scaling, **options
    )
    if out.shape[2] != rows:
        out = out.reshape(out.shape[0], -1, rows, out.shape[3])
    return out.transpose(1, 2).contiguous()


@overload
def _packed(x: Tensor, groups: int) -> Tensor: ...
@overload
def _packed(x: None, groups: int) -> None: ...
def _packed(x: Tensor | None, groups: int) -> Tensor | None:
    """[B, Hkv * groups, 1, D] -> [B, Hkv, groups, D]; what is one for all heads stays."""
    return x if x is None or x.dim() != 4 or x.shape[1] == 1 else x.reshape(x.shape[0], -1, groups, x.shape[3])


def _merged(mask: Tensor | None, seen: Tensor | None) -> Tensor | None:
    if mask is None or seen is None:
        return seen if mask is None else mask
    return mask & seen if mask.dtype is torch.bool else mask.masked_fill(~seen, -math.inf)


def _torch_check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    causal: bool,
    mask: Tensor | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    call: Call,
) -> str:
    if softcap is not None:
        return "SDPA has no soft cap"
    if sinks is not None:
        return "SDPA has no sinks"
    return ""


_sdpa_offer = tried(
    Candidate(torch_attention, _torch_check),
    hides_whole_rows,
    "this torch's SDPA answers a query that sees no key with NaN",
)


def _torch_offer(settings: Settings) -> Offered | tuple[Offered, ...]:
    if settings.force_eager_attention:
        return Refusal("FORCE_EAGER_ATTENTION=1 skips it")
    return _sdpa_offer(settings)


op = make_op("attention", "USE_AITER_ATTENTION", torch=_torch_offer, eager=eager_attention)


def _in_torch(*args: Any) -> Tensor:
    softcap, sinks, layer = args[-3:]
    formula: Any = torch_attention if softcap is None and sinks is None else eager_attention
    result: Tensor = formula(*args[:-1], Call(layer))
    return result


traced_op = traced(
    op,
    "(Tensor q, Tensor k, Tensor v, float? scaling, bool causal, Tensor? mask, float dropout, SymInt? window, "
    "float? softcap, Tensor? sinks, int? layer) -> Tensor",
    _in_torch,
    lambda q, k, v, *rest: q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3])),
    lambda *args: (*args[:-1], Call(args[-1])),
)


@op.public
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None = None,
    is_causal: bool = True,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend: softmax(scaling * query @ key^T, restricted) @ value.

    query [B, Sq, H, D], key [B, Sk, Hkv, D], value [B, Sk, Hkv, Dv] of one dtype and device, Hkv a divisor of H.
    scaling: factor of the scores, None = 1 / sqrt(D). is_causal: query i sees keys up to i + Sk - Sq.
    attention_mask: bool (True = attend) or additive float, broadcastable to [B, H, Sq, Sk]; restricts further.
    sliding_window: a query sees its own key and the window - 1 before it. softcap: scores become softcap *
    tanh(scores / softcap). sinks [H]: a logit per head that takes part in the softmax and has no value. dropout:
    probability on the weights. Returns [B, Sq, H, Dv], contiguous; a query that sees no key gives zeros. Raises
    ArgumentError on unusable arguments.

    Examples:
        >>> q, k = torch.randn(1, 5, 8, 16), torch.randn(1, 5, 2, 16)  # eight heads share two of keys and values
        >>> amd_ops.attention(q, k, k, sliding_window=3).shape
        torch.Size([1, 5, 8, 16])
    """
    args = _arranged(query, key, value, scaling, is_causal, attention_mask, dropout, sliding_window, softcap, sinks)
    if _compiling():
        result: Tensor = traced_op.call(*args[:-1], None)
        return result
    op.calls += 1
    result = op.call(*args)
    return result


def _arranged(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    is_causal: bool,
    mask: Tensor | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Any, ...]:
    """Check the public arguments and bring them into the order and layout of the tiers."""
    if not _fit(query, key, value):
        _check_tensors(query, key, value)
    _check_numbers(scaling, dropout, window, softcap)
    if mask is not None:
        mask = _checked_mask(mask, query, key)
    if sinks is not None and (sinks.shape != query.shape[2:3] or sinks.device != query.device):
        raise complaint(
            "attention", "sinks", describe(sinks), f"[{query.shape[2]}] on {query.device}, one per query head"
        )
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return q, k, v, scaling, is_causal, mask, dropout, window, softcap, sinks, Call()


op.arrange = _arranged


def _fit(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether ``_check_tensors`` would find nothing, in one pass: every call pays this."""
    try:
        (batch, _, heads, size), (key_batch, columns, kv_heads, key_size) = query.shape, key.shape
        value_batch, value_columns, value_heads, _ = value.shape
    except (AttributeError, TypeError, ValueError):
        return False
    return (
        batch == key_batch == value_batch
        and size == key_size
        and columns == value_columns
        and kv_heads == value_heads
        and kv_heads != 0
        and heads % kv_heads == 0
        and query.dtype is key.dtype is value.dtype
        and query.is_floating_point()
        and query.device == key.device == value.device
    )


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 4 or not tensor.is_floating_point():
            raise complaint("attention", name, describe(tensor), "a float tensor [B, S, H, D]")
    same_place("attention", query=query, key=key, value=value)
    batch, _, heads, size = query.shape
    kv_heads = key.shape[2]
    if key.shape[0] != batch or key.shape[3] != size:
        raise complaint("attention", "key", describe(key), f"[{batch}, Sk, Hkv, {size}], as query")
    if value.shape[:3] != key.shape[:3]:
        raise complaint("attention", "value", describe(value), f"{list(key.shape[:3])} in its first dimensions, as key")
    if kv_heads == 0 or heads % kv_heads:
        raise complaint("attention", "key", f"of {kv_heads} heads", f"a divisor of the {heads} heads of query")


def _check_numbers(scaling: float | None, dropout: float, window: int | None, softcap: float | None) -> None:
    if scaling is not None and not -math.inf < scaling < math.inf:
        raise complaint("attention", "scaling", scaling, "a finite number or None")
    if not 0.0 <= dropout < 1.0:
        raise complaint("attention", "dropout", dropout, "a probability from 0 up to but not including 1")
    if window is not None and window < 1:
        raise complaint("attention", "sliding_window", window, "at least 1, or None")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise complaint("attention", "softcap", softcap, "a positive number or None")


def _checked_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    batch, rows, heads, _ = query.shape
    full = (batch, heads, rows, key.shape[1])
    fits = isinstance(mask, Tensor) and mask.dim() <= 4
    fits = fits and all(size in (1, want) for size, want in zip(reversed(mask.shape), reversed(full), strict=False))
    if not fits or mask.device != query.device:
        raise complaint(
            "attention", "attention_mask", describe(mask), f"broadcastable to {list(full)} on {query.device}"
        )
    if mask.dtype is not torch.bool and not mask.is_floating_point():
        raise complaint("attention", "attention_mask", str(mask.dtype), "bool (True = attend) or an additive float")
    mask = mask.view((1,) * (4 - mask.dim()) + tuple(mask.shape))
    if mask.dtype is torch.bool or mask.dtype is query.dtype:
        return mask
    return mask.clamp(min=torch.finfo(query.dtype).min).to(query.dtype)
