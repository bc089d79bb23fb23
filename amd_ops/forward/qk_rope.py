"""What overlaid attention calls for its queries and keys: the head norms, the rotation and the write into a static
cache, in one op.

The overlaid forward asks ``qk_rope`` first. What it returns stands in for three things of the stock statements:
``q_norm`` and ``k_norm`` (which then do nothing, since the op norms), the rotation, and the cache's ``update`` (which
then gives back what the op has written to). Where there is neither a head norm nor a static cache to fuse with, it
returns None and everything is stock's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import modes
from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import Candidate, DeclinedError, Site
from ..modules import lives_in, original
from ..ops.norm import FORMS, ROUNDS_OTHERWISE, eager_rms_norm, torch_rms_norm
from ..ops.rope import apply_rope, diagnose_rope, eager_rope, nobody, torch_rope, unusual, whole
from ..ops.tiers import make_op
from ..torch_features import rounds_norms_once, tried
from .residual import norm_form

_compiling = torch.compiler.is_dynamo_compiling
_site = Site("qk_rope", "fused", nobody)
_CACHES = "transformers.cache_utils"
ROTATE = "apply_rotary_pos_emb"

# -- the ops


def torch_qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """torch's norm on both, then the stock order of the rotation."""
    return torch_rope(_head_norm(q, q_weight, eps, form), _head_norm(k, k_weight, eps, form), cos, sin, unsqueeze_dim=1)


def _head_norm(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
    """Norm heads of [B, H, S, D] where a projection left them, [B, S, H, D] in memory: what F.rms_norm returns is
    contiguous, and attention's result, which lies as its queries do, would have to be copied.
    """
    return torch_rms_norm(x.transpose(1, 2), weight, eps, form).transpose(1, 2)


def eager_qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """The plain formulas, one after the other."""
    return eager_rope(
        eager_rms_norm(q, q_weight, eps, form), eager_rms_norm(k, k_weight, eps, form), cos, sin, unsqueeze_dim=1
    )


_qk_norm_rope = make_op(
    "qk_norm_rope",
    "USE_OPTIMIZED_OPS",
    torch=tried(Candidate(torch_qk_norm_rope), rounds_norms_once, ROUNDS_OTHERWISE),
    eager=eager_qk_norm_rope,
)


@_qk_norm_rope.public
def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    *,
    form: str = "llama",
) -> tuple[Tensor, Tensor]:
    """RMS-normalise every head of q and k, then rotate them: apply_rope(rms_norm(q), rms_norm(k)).

    q [B, H, S, D], k [B, Hkv, S, D], weights [D], cos and sin [B or 1, S, R], form one of rms_norm's. New tensors.

    Examples:
        >>> q, k, weight = torch.randn(1, 8, 5, 16), torch.randn(1, 2, 5, 16), torch.ones(16)
        >>> turned, _ = amd_ops.qk_norm_rope(q, k, weight, weight, 1e-6, torch.ones(1, 5, 16), torch.zeros(1, 5, 16))
        >>> turned.shape
        torch.Size([1, 8, 5, 16])
    """
    if _compiling():
        return torch_qk_norm_rope(q, k, q_weight, k_weight, eps, form, cos, sin)
    if not eps >= 0.0:
        _diagnose("qk_norm_rope", q, k, cos, sin, q_weight, k_weight, eps, form)
    _qk_norm_rope.calls += 1
    try:
        result: tuple[Tensor, Tensor] = _qk_norm_rope.call(q, k, q_weight, k_weight, eps, form, cos, sin)
    except TORCH_ERRORS:
        _diagnose("qk_norm_rope", q, k, cos, sin, q_weight, k_weight, eps, form)
        raise
    return result


def _rope_into_cache_by(rope: Callable[..., Any], norm_rope: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return the norms where there are any, the rotation, and stock's two writes, from one tier's formulas."""

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        position: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float,
        form: str,
    ) -> Tensor:
        if q_weight is None or k_weight is None:
            q, k = rope(q, k, cos, sin, unsqueeze_dim=1)
        else:
            q, k = norm_rope(q, k, q_weight, k_weight, eps, form, cos, sin)
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        return q

    return run


torch_rope_into_cache = _rope_into_cache_by(torch_rope, torch_qk_norm_rope)
eager_rope_into_cache = _rope_into_cache_by(eager_rope, eager_qk_norm_rope)
_into_cache = make_op(
    "rope_into_cache",
    "USE_OPTIMIZED_OPS",
    torch=tried(Candidate(torch_rope_into_cache), rounds_norms_once, ROUNDS_OTHERWISE),
    eager=eager_rope_into_cache,
)


@_into_cache.public
def rope_into_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
    form: str = "llama",
) -> Tensor:
    """Rotate q and k (normed first where weights are given) and write k and v into a cache; return the rotated q.

    q [B, H, S, D], k and v [B, Hkv, S, D], cos and sin [B or 1, S, R]; keys and values [B, Hkv, L, D] are written at
    the S slots that position [S] (int64) names. Nothing else is written to.

    Examples:
        >>> q, k = torch.randn(1, 8, 1, 16), torch.randn(1, 2, 1, 16)
        >>> keys, values = torch.zeros(1, 2, 32, 16), torch.zeros(1, 2, 32, 16)
        >>> cos, sin = torch.ones(1, 1, 16), torch.zeros(1, 1, 16)
        >>> _ = amd_ops.rope_into_cache(q, k, k, cos, sin, keys, values, torch.tensor([7]))
        >>> torch.equal(values[:, :, 7:8], k)
        True
    """
    _into_cache.calls += 1
    try:
        result: Tensor = _into_cache.call(
            q, k, v, cos, sin, keys, values, position, q_weight, k_weight, eps, form
        )  # fmt: skip
    except DeclinedError:
        raise  # strict mode's own answer is no wrong argument
    except TORCH_ERRORS:
        _diagnose("rope_into_cache", q, k, cos, sin, q_weight, k_weight, eps, form)
        for name, cache, new in (("keys", keys, k), ("values", values, v)):
            if cache.dim() != 4 or new.dim() != 4 or cache.dtype is not new.dtype or cache.device != new.device:
                raise complaint(
                    "rope_into_cache", name, describe(cache), f"a cache that takes {describe(new)}"
                ) from None
        raise
    return result


def _diagnose(
    op: str,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    form: str,
) -> None:
    if not eps >= 0.0:
        raise complaint(op, "eps", eps, "a number that is not negative")
    if form not in FORMS:
        raise complaint(op, "form", repr(form), f"one of {', '.join(FORMS)}")
    for name, weight, heads in (("q_weight", q_weight, q), ("k_weight", k_weight, k)):
        if weight is not None and (not isinstance(weight, Tensor) or weight.shape != heads.shape[-1:]):
            raise complaint(op, name, describe(weight), f"[{heads.shape[-1]}], the head size")
        if weight is not None and weight.device != heads.device:
            raise complaint(op, name, f"on {weight.device}", f"{heads.device}, where the heads are")
    diagnose_rope(op, q, k, cos, sin, 1)


# -- the site


class Rotation:
    """One attention call's plan: which head norms the op does, and which cache layer it writes into."""

    __slots__ = (
        "_attn", "_cache", "_halves", "_layer", "_position", "_rotate", "_weights", "_written", "k_norm", "q_norm",
    )  # fmt: skip

    def __init__(
        self,
        cache: Any,
        layer: Any,
        position: Tensor | None,
        weights: tuple[Any, ...] | None,
        attn: Any = None,
        rotate: Any = None,
        halves: bool = False,
    ) -> None:
        self._attn, self._rotate, self._halves = attn, rotate, halves
        self._cache, self._layer, self._position, self._weights = cache, layer, position, weights
        self._written = False
        self.q_norm: Any = as_it_is
        self.k_norm: Any = as_it_is

    def __call__(self, q: Tensor, k: Tensor, v: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate (and norm) q and k, and write k and v into the cache where that is planned and they fit it."""
        layer, weights = self._layer, self._weights
        unlike = modes.unlike(q) or modes.unlike(k) or unusual(q, k, cos, sin, 1, self._halves)
        if unlike and self._rotate is not None:
            _site.declined(unlike)
            if weights is not None:
                q, k = self._attn.q_norm(q), self._attn.k_norm(k)
            turned: tuple[Tensor, Tensor] = self._rotate(q, k, cos, sin)
            return turned
        if self._halves:
            cos, sin = whole(cos, sin)
        if layer is not None and v is not None and _fits(layer, k, v, self._position):
            keys, position = layer.keys, _position(layer, self._position, k.shape[2])
            if weights is None:
                q = rope_into_cache(q, k, v, cos, sin, keys, layer.values, position)
            else:
                q = rope_into_cache(
                    q, k, v, cos, sin, keys, layer.values, position,
                    q_weight=weights[0], k_weight=weights[1], eps=weights[2], form=weights[3],
                )  # fmt: skip
            if (counted := getattr(layer, "cumulative_length", None)) is not None:
                counted.add_(k.shape[2])
            self._written = True
            return q, k
        if weights is None:
            return apply_rope(q, k, cos, sin)
        return qk_norm_rope(q, k, weights[0], weights[1], weights[2], cos, sin, form=weights[3])

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stand in for the cache's update: hand out its tensors when the op has written to them, else call it."""
        if self._written:
            return self._layer.keys, self._layer.values
        result: tuple[Tensor, Tensor] = self._cache.update(k, v, layer_idx, *args, **kwargs)
        return result


def as_it_is(x: Tensor) -> Tensor:
    """Stand in for a norm that the op does."""
    return x


def qk_rope(
    attn: nn.Module,
    cache: Any = None,
    position: Tensor | None = None,
    *,
    norms: bool = False,
    rotate: Callable[..., tuple[Tensor, Tensor]] | None = None,
    halves: bool = False,
) -> Rotation | None:
    """Plan the rotation of one attention call, or return None where stock's own statements must run.

    ``cache`` and ``position`` (int64 [S], None where the release has none) are what the forward was given; ``norms``
    says that attn's q_norm and k_norm act on whole heads directly before the rotation; ``rotate`` is the function that
    the file calls for it now, ``halves`` that it takes tables of halves (``apply_rope``).

    Examples:
        >>> amd_ops.qk_rope(nn.Module()) is None  # nothing to turn in one launch: stock's statements run
        True
    """
    if _compiling():
        return None
    reason = modes.hidden()
    if not reason and rotate is not None and not original(rotate, ROTATE):
        reason = f"{ROTATE} is no longer that of the file"
    if reason:
        _site.declined(reason)
        return None
    weights = _head_norms(attn) if norms else "there are no head norms"
    layer = _static_layer(cache, getattr(attn, "layer_idx", None), position)
    if isinstance(weights, str) and isinstance(layer, str):
        _site.declined(f"{weights}; {layer}")
        return None
    _site.fast.calls += 1
    fused = None if isinstance(weights, str) else weights
    plan = Rotation(cache, None if isinstance(layer, str) else layer, position, fused, attn, rotate, halves)
    if fused is None and norms:
        plan.q_norm, plan.k_norm = attn.q_norm, attn.k_norm
    return plan


def _head_norms(attn: nn.Module) -> tuple[Tensor, Tensor, float, str] | str:
    children = attn.__dict__["_modules"]
    found = []
    for name in ("q_norm", "k_norm"):
        norm = children.get(name)
        form = "a head norm is missing" if norm is None else norm_form(norm)
        if isinstance(form, str):
            return form
        found.append(form)
    (q_weight, q_eps, q_form), (k_weight, k_eps, k_form) = found
    if (q_eps, q_form) != (k_eps, k_form) or q_weight.shape != k_weight.shape:
        return "the two head norms differ in form, eps or size"
    return q_weight, k_weight, q_eps, q_form


def _static_layer(cache: Any, index: int | None, position: Tensor | None) -> Any:
    """Return the cache layer that the rotation may write into, or the reason why not.

    Only transformers' own cache and static layer, known by the functions that their classes really have: a sliding
    layer, an offloading cache and a subclass with its own update do more than two writes.
    """
    layers = getattr(cache, "layers", None)
    if layers is None or index is None or not 0 <= index < len(layers):
        return "there is no static cache"
    layer = layers[index]
    if not _is_update(type(layer), "StaticLayer.update"):
        return "there is no static cache"
    if not _is_update(type(cache), "Cache.update") or getattr(cache, "offloading", False):
        return "the cache has an update of its own"
    if "update" in cache.__dict__ or "update" in layer.__dict__:
        return "the cache's update has been patched"
    if not layer.is_initialized:
        return "the static cache has no storage yet"
    if position is None and not hasattr(layer, "cumulative_length"):
        return "no cache_position was given"
    return layer


def _is_update(cls: Any, name: str) -> bool:
    """Whether the update of a class is transformers' own function, and that of the class which ``name`` names."""
    function = cls.update
    return lives_in(function, _CACHES) and function.__qualname__ == name and original(function, "update")


def _fits(layer: Any, k: Tensor, v: Tensor, position: Tensor | None) -> bool:
    """Whether two plain writes are all that stock would do with these tensors."""
    keys, values = layer.keys, layer.values
    if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad or keys.requires_grad):
        return False
    if k.dtype is not keys.dtype or v.dtype is not values.dtype or k.device != keys.device:
        return False
    if position is not None and (position.dim() != 1 or position.shape[0] != k.shape[2]):
        return False
    return bool(k.shape[:2] == keys.shape[:2] and k.shape[3] == keys.shape[3] and v.shape[:2] == values.shape[:2])


def _position(layer: Any, position: Tensor | None, length: int) -> Tensor:
    """The slots to write: cache_position where the layer does not count for itself (it does from 5.10 on).

    What the layer has counted is left as it is: the caller adds to it once the slots are written.
    """
    counted = getattr(layer, "cumulative_length", None)
    if counted is None:
        assert position is not None
        return position
    if length == 1:
        slot: Tensor = counted.view(1)  # the layer's own number, which moves on behind the write
        return slot
    slots: Tensor = torch.arange(length, device=layer.keys.device) + counted
    return slots
