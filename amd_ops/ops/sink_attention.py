"""One query per sequence over a cache of keys, with a sink per head and the mask as it is: gpt_oss's decode step.

query [B, H, 1, D], key [B, Hkv, Sk, D], value [B, Hkv, Sk, Dv], sinks [H] -> [B, 1, H, Dv]. The mask says which slots
of a static cache or a window are seen; nothing is looked at on the host. Tiers: triton (one launch; inference) ->
torch and eager (the plain formula of ``attention``, softmax in fp32: SDPA takes no sinks).
"""

from __future__ import annotations

from torch import Tensor

from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import always
from .attention import Call, eager_attention
from .tiers import make_op


def eager_sink_attention(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scaling: float | None, mask: Tensor | None
) -> Tensor:
    """The reference. A query that sees no key gives zeros."""
    return eager_attention(q, k, v, scaling, False, mask, 0.0, None, None, sinks, Call())


op = make_op(
    "sink_attention", "USE_AITER_ATTENTION", torch=always(eager_sink_attention), eager=eager_sink_attention
)  # fmt: skip


@op.public
def sink_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    *,
    scaling: float | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Attend with one query per sequence; ``sinks`` [H] take part in each head's softmax and have no value.

    Shapes are in the module text. scaling: factor of the scores, None = 1 / sqrt(D). attention_mask: bool (True =
    attend) or additive float, broadcastable to [B, H, 1, Sk]; one that is longer than the keys is cut. Returns
    [B, 1, H, Dv], dense. Raises ArgumentError on unusable arguments.

    Examples:
        >>> q, k, v = torch.ones(1, 2, 1, 4), torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4)
        >>> amd_ops.sink_attention(q, k, v, torch.full((2,), -1e9)).shape
        torch.Size([1, 1, 2, 4])
    """
    op.calls += 1
    try:
        result: Tensor = op.call(query, key, value, sinks, scaling, attention_mask)
    except TORCH_ERRORS:
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if not isinstance(tensor, Tensor) or tensor.dim() != 4 or not tensor.is_floating_point():
                raise complaint("sink_attention", name, describe(tensor), "a float tensor [B, H, S, D]") from None
        if not isinstance(sinks, Tensor) or sinks.shape != query.shape[1:2]:
            raise complaint("sink_attention", "sinks", describe(sinks), f"[{query.shape[1]}], one per head") from None
        raise
    return result
