"""qk_norm_rope and rope_into_cache: the rope kernel with a norm of every head in front, and with k and v written into a
static cache behind. One launch each, and one for the backward of the first; a cache write has none.

Under autocast the norms' weights are fp32 where the heads are not: then the norms and the rotation are three launches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..backward import once
from ..probing import disagreement, made_up, needs_grad, prove
from . import launch
from .common import apply
from .configs import Config, for_rows
from .kernels import norm_rope as backward_kernels
from .kernels import rope as kernels
from .layout import MAX_OFFSET, Via, directly, power_of_two, reach
from .norm import FORMS, PROGRAMS_PER_UNIT, NormFunction
from .rope import (
    Cache,
    Norms,
    Rope,
    RopeFunction,
    by_token,
    fresh,
    launch_rope,
    rope_settings,
    rope_tensors,
    settled_rope,
)
from .target import Target

_MOST_LENGTHS = 64


def launch_norm_rope_backward(
    q: Tensor,
    k: Tensor,
    norms: Norms,
    cos: Tensor,
    sin: Tensor,
    dq: Tensor,
    dk: Tensor,
    config: Config,
    programs: int,
    via: Via = directly,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k [B, H, S, D] and of both norms' weights [D], for those of the rotated heads."""
    tokens, length, size, half = q.shape[0] * q.shape[2], q.shape[2], q.shape[3], cos.shape[2] // 2
    counts = [min(-(-tokens * x.shape[1] // config.rows), programs) for x in (q, k)]
    outs = [fresh(x, 1, x.dtype) for x in (q, k)]
    sums = [torch.empty((count, size), dtype=torch.float32, device=q.device) for count in counts]
    tables = [number for t in (cos, sin) for number in (t.stride(0) if t.shape[0] > 1 else 0, t.stride(1))]
    via(backward_kernels.norm_rope_backward)[(sum(counts),)](
        q, k, dq, dk, norms.q_weight, norms.k_weight, *outs, *sums, cos, sin, norms.eps,
        tokens, length, q.shape[1], k.shape[1], counts[0],
        *by_token(q, 1), *by_token(k, 1), *by_token(dq, 1), *by_token(dk, 1), *tables,
        D=size, HALF=half, FORM=norms.form, ROWS=config.rows,
        BLOCK=power_of_two(half), BLOCK_REST=power_of_two(size - 2 * half), num_warps=config.warps,
    )  # fmt: skip
    dw_q, dw_k = (part.sum(0).to(norms.q_weight.dtype) for part in sums)
    return outs[0], outs[1], dw_q, dw_k


class QkNormRopeFunction(torch.autograd.Function):
    """Norms and rotation in one launch, and their backward in another. Only the inputs are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        eps: float,
        form: str,
        cos: Tensor,
        sin: Tensor,
        cuts: tuple[Config, Config, int],
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, q_weight, k_weight, cos, sin)
        ctx.rest = eps, form, cuts
        return launch_rope(q, k, cos, sin, 1, cuts[0], norms=Norms(q_weight, k_weight, eps, form))

    @staticmethod
    @once("qk_norm_rope in tier triton")
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        q, k, q_weight, k_weight, cos, sin = ctx.saved_tensors
        eps, form, (_, cut, programs) = ctx.rest
        dq, dk = (g if g.stride(3) == 1 and reach(g) <= MAX_OFFSET else g.contiguous() for g in (dq, dk))
        norms = Norms(q_weight, k_weight, eps, form)
        found = launch_norm_rope_backward(q, k, norms, cos, sin, dq, dk, cut, programs)
        return *found, None, None, None, None, None


def _weights(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, form: str) -> str:
    if form not in FORMS or q_weight.shape != q.shape[3:] or k_weight.shape != q.shape[3:]:
        return "unusable arguments"
    if q.dtype is not k.dtype or q_weight.dtype is not k_weight.dtype:
        return f"q is {q.dtype}, k {k.dtype}, the norms' weights {q_weight.dtype} and {k_weight.dtype}"
    if q_weight.stride(0) != 1 or k_weight.stride(0) != 1:
        return "a norm's weight is not dense"
    return ""


def _form(form: str) -> str:
    """With weights of the input's dtype t5 rounds where llama does."""
    return "llama" if form == "t5" else form


def _differentiable(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    form: str,
    cos: Tensor,
    sin: Tensor,
    cuts: tuple[Config, Config, int],
) -> tuple[Tensor, Tensor]:
    """One launch for weights of the heads' dtype, three for others."""
    both: tuple[Tensor, Tensor]
    if q.dtype is q_weight.dtype:
        both = apply(QkNormRopeFunction, q, k, q_weight, k_weight, eps, _form(form), cos, sin, cuts)
        return both
    config, cut, programs = cuts
    q = apply(NormFunction, q, q_weight, eps, form, cut, programs)
    k = apply(NormFunction, k, k_weight, eps, form, cut, programs)
    both = apply(RopeFunction, q, k, cos, sin, 1, config)
    return both


def _qk_norm_rope(reference: Callable[..., Any], target: Target) -> Candidate:
    rope = Rope("qk_norm_rope", target)

    def check(
        q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
    ) -> str:
        return rope.check(q, k, cos, sin, 1, q_weight, k_weight) or _weights(q, k, q_weight, k_weight, form)

    def run(
        q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        config, graded = rope.config(q, cos, 1), needs_grad(q, k, q_weight, k_weight)
        if graded or q.dtype is not q_weight.dtype:
            cuts = config, for_rows(q.shape[3], False, target), PROGRAMS_PER_UNIT * target.cu_count
            return _differentiable(q, k, q_weight, k_weight, eps, form, cos, sin, cuts)
        return launch_rope(q, k, cos, sin, 1, config, norms=Norms(q_weight, k_weight, eps, _form(form)))

    def variant(
        q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
    ) -> Hashable:
        grads = (q_weight.requires_grad, k_weight.requires_grad) if needs_grad(q, k, q_weight, k_weight) else ()
        return form, q_weight.dtype, grads, rope.variant(q, k, cos, sin, 1)

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

    def bind(
        q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
    ) -> Callable[..., tuple[Tensor, Tensor]] | None:
        if q.shape[2] != 1 or q.dtype is not q_weight.dtype or needs_grad(q, k, q_weight, k_weight):
            return None
        fast = settled_rope(q, k, cos, sin, rope.config(q, cos, 1), Norms(q_weight, k_weight, eps, _form(form)))

        def run(
            q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, form: str, cos: Tensor, sin: Tensor
        ) -> tuple[Tensor, Tensor]:
            return fast(q, k, cos, sin, q_weight, k_weight)

        return run

    return Candidate(run, check, variant, probe, bind=bind)


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
        if len(more) > 3 and q.dtype is not q_weight.dtype:
            return f"q is {q.dtype}, the norms' weights {q_weight.dtype}"
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

    def bind(self, *args: Any) -> Callable[..., Tensor] | None:
        """For one token. A cache that has grown is another number to the kernel: it gets a launch of its own."""
        q = args[0]
        if q.shape[2] != 1:
            return None
        shape, kind = tuple(q.shape), torch.promote_types(q.dtype, args[3].dtype)
        starts: dict[int, launch.Run] = {}

        def fast(*args: Any) -> Tensor:
            q, k, v, cos, sin, keys, values, position, q_weight, k_weight, _, _ = args
            out: Tensor = q.new_empty(shape, dtype=kind)
            start = starts.get(keys.shape[2])
            if start is None:
                if len(starts) > _MOST_LENGTHS:
                    starts.clear()
                start = starts[keys.shape[2]] = self.settled(out, *args)
            normed = (cos, cos) if q_weight is None else (q_weight, k_weight)
            start(q, k, v, cos, sin, out, keys, values, position, *normed)
            return out

        return fast

    def settled(self, out: Tensor, *args: Any) -> launch.Run:
        """Return the launch for a cache of this length."""
        q, k, v, cos, sin, keys, values, position, q_weight, k_weight, eps, form = args
        norms = None if q_weight is None or k_weight is None else Norms(q_weight, k_weight, eps, _form(form))
        config, cache = self.rope.config(q, cos, 1), Cache(keys, values, v, position)
        tensors = rope_tensors(q, k, cos, sin, out, keys, norms, cache)
        grid, numbers, constants = rope_settings(tensors, 1, config, norms, cache, backward=False)
        return launch.settled(kernels.rope, grid, numbers, constants, config.warps)

    def variant(self, *args: Any) -> Hashable:
        q, k, v, cos, sin, keys, _, position, q_weight, k_weight, _, form = args
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
            theirs = [t.to(torch.float32, copy=True) for t in ours]
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
    return Candidate(into.run, into.check, into.variant, into.probe, bind=into.bind)
