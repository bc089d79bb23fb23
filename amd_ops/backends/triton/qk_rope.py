"""qk_norm_rope and rope_into_cache: the rope kernel with a norm of every head in front, and with k and v written into a
static cache behind. One launch each. Where a gradient is needed, the norms and the rotation are three launches that
have a backward; a cache write has none.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..probing import disagreement, made_up, needs_grad
from .common import prove
from .configs import for_rows
from .norm import FORMS, NormFunction
from .rope import Cache, Norms, Rope, RopeFunction, launch_rope
from .target import Target


def _weights(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, form: str) -> str:
    if form not in FORMS or q_weight.shape != q.shape[3:] or k_weight.shape != q.shape[3:]:
        return "unusable arguments"
    if not q.dtype is k.dtype is q_weight.dtype is k_weight.dtype:
        return f"q is {q.dtype}, k {k.dtype}, the norms' weights {q_weight.dtype} and {k_weight.dtype}"
    if q_weight.stride(0) != 1 or k_weight.stride(0) != 1:
        return "a norm's weight is not dense"
    return ""


def _form(form: str) -> str:
    """With weights of the input's dtype t5 rounds where llama does."""
    return "llama" if form == "t5" else form


def _qk_norm_rope(reference: Callable[..., Any], target: Target) -> Candidate:
    rope = Rope("qk_norm_rope", target)

    def check(
        q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
    ) -> str:
        return rope.check(q, k, cos, sin, 1, q_weight, k_weight) or _weights(q, k, q_weight, k_weight, form)

    def run(
        q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        config = rope.config(q, cos, 1)
        if needs_grad(q, k, q_weight, k_weight):
            cut, programs = for_rows(q.shape[3], False, target), 4 * target.cu_count
            q = NormFunction.apply(q, q_weight, eps, form, cut, programs)
            k = NormFunction.apply(k, k_weight, eps, form, cut, programs)
            both: tuple[Tensor, Tensor] = RopeFunction.apply(q, k, cos, sin, 1, config)
            return both
        return launch_rope(q, k, cos, sin, 1, config, norms=Norms(q_weight, k_weight, eps, _form(form)))

    def variant(
        q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
    ) -> Hashable:
        grads = (q_weight.requires_grad, k_weight.requires_grad) if needs_grad(q, k, q_weight, k_weight) else ()
        return form, grads, rope.variant(q, k, cos, sin, 1)

    def probe(
        q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
    ) -> str:
        with torch.no_grad():
            norms = Norms(q_weight, k_weight, eps, _form(form))
            key, guess = rope.key(q, cos, 1), rope.config(q, cos, 1)
            rope.table.tune(key, guess, lambda cut: launch_rope(q, k, cos, sin, 1, cut, norms=norms))
        graded = needs_grad(q, k, q_weight, k_weight)
        samples = rope.samples(q, k, cos, 1)
        for seed, weight in ((6, q_weight), (7, k_weight)):
            made = made_up(tuple(weight.shape), weight.dtype, weight.device, seed)
            samples.append(made.requires_grad_() if graded and weight.requires_grad else made)

        def arranged(f: Callable[..., Any]) -> Callable[..., Any]:
            return lambda a, b, c, s, wq, wk: f(a, b, wq, wk, eps, form, c, s)

        return prove(arranged(run), arranged(reference), samples, ())

    return Candidate(run, check, variant, probe)


class _IntoCache:
    """rope_into_cache on one target. Arguments (q, k, v, cos, sin, keys, values, position, q_weight, k_weight, eps,
    form); returns the rotated q.
    """

    def __init__(self, reference: Callable[..., Any], target: Target) -> None:
        self.reference, self.rope = reference, Rope("rope_into_cache", target)

    def check(self, *args: Any) -> str:
        q, k, v, cos, sin, keys, values, position, q_weight, k_weight, _, form = args
        more = [v, keys, values]
        if q_weight is not None and k_weight is not None:
            more += [q_weight, k_weight]
        if needs_grad(q, k, *more):
            return "a gradient is needed and a cache write has no backward"
        reason = self.rope.check(q, k, cos, sin, 1, *more)
        if reason:
            return reason
        if len(more) > 3 and (reason := _weights(q, k, q_weight, k_weight, form)):
            return reason
        if v.dtype is not values.dtype or torch.promote_types(k.dtype, cos.dtype) is not keys.dtype:
            return "the cache's dtype is not that of k and v"
        if position.dtype not in (torch.int32, torch.int64) or position.device != q.device or position.dim() != 1:
            return "the positions are not a list of integers where q is"
        if position.shape[0] != q.shape[2] or position.stride(0) != 1:
            return "the positions are not one dense list, a number per token"
        same = (
            v.dim() == keys.dim() == values.dim() == 4
            and v.shape[:3] == k.shape[:3]
            and keys.shape[:3] == values.shape[:3]
        )
        if not same or keys.shape[:2] != k.shape[:2] or keys.shape[3] != k.shape[3] or values.shape[3] != v.shape[3]:
            return "the cache's shape does not fit k and v"
        if v.stride(3) != 1 or keys.stride(3) != 1 or values.stride(3) != 1:
            return "the last dimension of v or the cache is not dense"
        return ""

    def run(self, *args: Any, cut: Any = None) -> Tensor:
        q, k, v, cos, sin, keys, values, position, q_weight, k_weight, eps, form = args
        norms = None if q_weight is None or k_weight is None else Norms(q_weight, k_weight, eps, _form(form))
        config = cut or self.rope.config(q, cos, 1)
        cache = Cache(keys, values, v, position)
        return launch_rope(q, k, cos, sin, 1, config, norms=norms, cache=cache)[0]

    def variant(self, *args: Any) -> Hashable:
        q, k, v, cos, sin, keys, values, position, q_weight, k_weight, _, form = args
        normed = form if q_weight is not None and k_weight is not None else ""
        return normed, v.dtype, v.shape[3], position.dtype, keys.stride(2) % 16, self.rope.variant(q, k, cos, sin, 1)

    def probe(self, *args: Any) -> str:
        """On a cache of its own: a probe must not write to the model's."""
        q, k, v, cos, _, keys, values, position, q_weight, k_weight, eps, form = args
        with torch.inference_mode():
            a, b, c, s = self.rope.samples(q, k, cos, 1)
            length = a.shape[2]
            new = made_up((*a.shape[:3], v.shape[3]), v.dtype, v.device, 12)
            weights = [
                None if w is None else made_up(tuple(w.shape), w.dtype, w.device, 6) for w in (q_weight, k_weight)
            ]
            at = torch.arange(length, device=q.device, dtype=position.dtype) + 2
            ours = [made_up((*a.shape[:2], length + 5, t.shape[3]), t.dtype, q.device, 13) for t in (keys, values)]
            theirs = [t.float() for t in ours]
            exact = [t.float() for t in (a, b, new, c, s)]
            got = self.run(a, b, new, c, s, *ours, at, *weights, eps, form)
            want = self.reference(
                *exact, *theirs, at.long(), *(None if w is None else w.float() for w in weights), eps, form
            )
            pairs = zip((got, *ours), (want, *theirs), strict=True)
            return next((reason for x, y in pairs if (reason := disagreement(x, y))), "")


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of qk_norm_rope or rope_into_cache."""
    if op == "qk_norm_rope":
        return _qk_norm_rope(reference, target)
    into = _IntoCache(reference, target)
    return Candidate(into.run, into.check, into.variant, into.probe)
