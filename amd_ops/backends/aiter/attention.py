"""Flash attention: dense where every query sees one span of keys, packed for padding and soft caps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ... import masks
from ...dispatch import Candidate, Choice
from ..probing import made_up, misplaced, needs_grad, noise, prove, wanting
from . import attention_training as training
from .library import HALF, expect, function_of

_ASM_ROWS = 128
MASKED_DECODE = Choice("one query per sequence under a mask: SDPA takes the mask as it is, without a look on the host")
"""aiter wants lengths that the host knows, and copies of all keys and values where they differ: a wait for the GPU at
every token, and numbers of today in a captured graph.
"""


@functools.lru_cache(maxsize=64)
def _uniform_offsets(batch: int, length: int, where: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=where)


def forget() -> None:
    """Drop the cached offsets."""
    _uniform_offsets.cache_clear()


def make(reference: Callable[..., Any], kind: str) -> Candidate:
    """``flash_attn_func`` [B, S, H, D] (it chooses among aiter's kernels) and ``flash_attn_varlen_func`` for padding
    and soft caps.
    """
    dense, dense_names = function_of("flash_attn_func")
    expect("flash_attn_func", dense_names, ("q", "k", "v"), "softmax_scale", "causal", "window_size")
    packed, packed_names = function_of("flash_attn_varlen_func")
    lengths = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    expect("flash_attn_varlen_func", packed_names, ("q", "k", "v"), *lengths, "softmax_scale", "causal", "window_size")
    trains = set(training.NAMES) <= set(dense_names) & set(packed_names)
    flash = Flash(dense, packed, "sink_ptr" in dense_names, "logits_soft_cap" in packed_names, kind, trains)
    return flash.candidate(reference)


def settled(args: tuple[Any, ...]) -> tuple[bool, bool, int | None]:
    """What a call amounts to after its mask's plan: packed form or dense, causal, and the window where it hides
    anything.
    """
    q, k, _, _, causal, _, _, window, softcap, _, call = args
    plan, columns = call.plan, k.shape[2]
    if plan is not None:
        causal, window = plan.causal, plan.window
        columns = plan.longest_keys if plan.keys is None else plan.keys[1] - plan.keys[0]
    packed = softcap is not None or (plan is not None and plan.keys is None)
    return packed, bool(causal) and q.shape[2] > 1, None if window is None or window >= columns else window


class Flash:
    """The attention functions of one aiter: what they take, and calls in their layouts."""

    name = "this aiter"
    sink_argument = "sink_ptr"

    def __init__(
        self,
        dense: Callable[..., Any],
        packed: Callable[..., Any],
        sinks: bool,
        caps: bool,
        kind: str,
        trains: bool = False,
    ) -> None:
        self.trains = trains
        self.dense, self.packed, self.sinks, self.caps, self.kind = dense, packed, sinks, caps, kind
        self.extra: dict[str, Any] = {}

    def candidate(self, reference: Callable[..., Any]) -> Candidate:
        """What is offered to the dispatcher; probes compare with ``reference``."""
        return Candidate(self.run, self.check, self.variant, functools.partial(self.compare, reference), bind=self.bind)

    def check(self, *args: Any) -> str:
        """Cheap tests first; the mask of a prompt, which costs a host sync once per forward, last."""
        q, k, v, _, causal, mask, dropout, window, softcap, sinks, call = args
        if q.dtype not in HALF or k.dtype is not q.dtype or v.dtype is not q.dtype:
            return f"{q.dtype} is neither fp16 nor bf16" if q.dtype not in HALF else "q, k and v differ in dtype"
        if dropout:
            return "dropout is on"
        reason = self.sizes(q.shape[3], v.shape[3])
        if reason:
            return reason
        tensors = (q, k, v) if sinks is None else (q, k, v, sinks)
        graded = needs_grad(*tensors)
        reason = misplaced(self.kind, *tensors) or (self.untrainable(softcap, sinks) if graded else "")
        if reason:
            return reason
        if torch.is_autocast_enabled(self.kind) and q.dtype is not torch.get_autocast_dtype(self.kind):
            return "autocast chooses another dtype"
        if q.stride(3) != 1 or k.stride(3) != 1 or v.stride(3) != 1:
            return "the last dimension of q, k or v is not dense"
        if softcap is not None and not self.caps:
            return f"{self.name} has no soft cap"
        if sinks is not None and not self.sinks:
            return f"{self.name} has no sinks"
        if mask is not None:
            if q.shape[2] == 1 and softcap is sinks is None:
                return MASKED_DECODE
            if causal or window is not None:
                return "a mask together with causality or a window"
            call.plan = masks.plan_for(mask, q.shape[0], q.shape[2], k.shape[2], call.layer)
            if call.plan.reason:
                return str(call.plan.reason)
        return self.lost(args)

    def untrainable(self, softcap: float | None, sinks: Tensor | None) -> str:
        """Say why no gradient can be had of such a call."""
        if not self.trains:
            return f"a gradient is needed and {self.name} has no {' or no '.join(training.NAMES)}"
        return training.without_backward(softcap, sinks)

    def sizes(self, size: int, value_size: int) -> str:
        """Say which head sizes no kernel here takes."""
        if max(size, value_size) > 256 or size % 8 or value_size % 8:
            return f"head_dim {size}/{value_size}: at most 256 and multiples of 8"
        return ""

    def window(self, window: int | None, causal: bool, rows: int) -> tuple[int, int]:
        """(past, future) keys that a query sees besides its own; without causality a window only bounds the past."""
        return (-1, -1) if window is None else (window - 1, 0 if causal or rows == 1 else -1)

    def lost(self, args: tuple[Any, ...]) -> str:
        """The v3 assembly kernels know no window and no sinks and drop them without a word.

        aiter keeps shapes with a window away from them, but takes a window of one key for none.
        """
        q, k, v, softcap, sinks = args[0], args[1], args[2], args[8], args[9]
        packed, causal, window = settled(args)
        if needs_grad(q, k, v):
            reason = training.unsafe(*_lengths(args), causal and not packed, window)
            if reason:
                return reason
        chosen = q.dtype is torch.bfloat16 and q.shape[3] in (128, 192) and v.shape[3] == 128 and softcap is None
        if not chosen or (window is not None and window > 1) or not (packed or q.shape[2] > _ASM_ROWS):
            return ""
        if sinks is not None:
            return "aiter would take an assembly kernel that drops the sinks"
        return "" if window is None else "aiter would take an assembly kernel that drops the window of one key"

    def variant(self, *args: Any) -> Hashable:
        """What chooses among aiter's kernels: layout, dtype, head sizes, grouping, flags, and the class of q_len."""
        q, k, v, _, _, _, _, _, softcap, sinks, _ = args
        packed, restricted, window = settled(args)
        length = 0 if q.shape[2] == 1 else 1 if q.shape[2] <= _ASM_ROWS else 2
        heads = q.shape[1] // k.shape[1]
        flags = (restricted, window is not None, softcap is not None, sinks is not None)
        backward = training.kernel(q, k, v, packed, *_lengths(args)) if needs_grad(q, k, v) else ()
        return packed, q.dtype, q.shape[3], v.shape[3], heads, length, *flags, *backward

    def run(self, *args: Any) -> Tensor:
        """Dense where every query sees the same span of keys, packed otherwise."""
        q, k, v, scaling, _, _, _, _, softcap, sinks, call = args
        plan = call.plan
        _, causal, window = settled(args)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if plan is not None and plan.keys is not None:
            start, stop = plan.keys
            k, v = k[:, start:stop], v[:, start:stop]
        options: dict[str, Any] = {
            "softmax_scale": q.shape[3] ** -0.5 if scaling is None else scaling,
            "causal": causal,
            "window_size": self.window(window, causal, q.shape[1]),
            **self.extra,
        }
        if sinks is not None:
            options[self.sink_argument] = sinks.float().contiguous()
        if softcap is not None:
            options["logits_soft_cap"] = softcap
        if plan is not None and plan.keys is None:
            return self._padded(q, k, v, plan, options)
        if softcap is not None:
            return self._uniform(q, k, v, options)
        return self._call(self.dense, q, k, v, options).contiguous()

    def _call(self, function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        if needs_grad(q, k, v):
            return training.attended(function, q, k, v, options)
        out: Tensor = function(q, k, v, **options)
        return out

    def bind(self, *args: Any) -> Callable[..., Tensor] | None:
        """One query per sequence sees every key: nothing is left to decide."""
        q, k, v, scaling, _, mask, _, window, softcap, sinks, _ = args
        if q.shape[2] != 1 or not mask is window is softcap is sinks is None or needs_grad(q, k, v):
            return None
        dense, options = (
            self.dense,
            {
                "softmax_scale": q.shape[3] ** -0.5 if scaling is None else scaling,
                "causal": False,
                "window_size": self.window(None, False, 1),
                **self.extra,
            },
        )

        def fast(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
            out: Tensor = dense(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options)
            return out.contiguous()

        return fast

    def _padded(self, q: Tensor, k: Tensor, v: Tensor, plan: Any, options: dict[str, Any]) -> Tensor:
        """Gather the real tokens, attend, scatter back; queries that are padding get zeros."""
        out = torch.zeros((*q.shape[:3], v.shape[3]), dtype=q.dtype, device=q.device)
        lengths = {
            "cu_seqlens_q": plan.query_offsets,
            "cu_seqlens_k": plan.key_offsets,
            "max_seqlen_q": plan.longest_queries,
            "max_seqlen_k": plan.longest_keys,
        }
        q, k, v = (training.gathered(x, at) for x, at in ((q, plan.queries_at), (k, plan.keys_at), (v, plan.keys_at)))
        out[plan.queries_at] = self._call(self.packed, q, k, v, {**lengths, **options})
        return out

    def _uniform(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        """Only the packed function has a soft cap: a batch of equal lengths in packed form."""
        batch, rows, columns = q.shape[0], q.shape[1], k.shape[1]
        out: Tensor = self.packed(
            q.reshape(-1, *q.shape[2:]),
            k.reshape(-1, *k.shape[2:]),
            v.reshape(-1, *v.shape[2:]),
            cu_seqlens_q=_uniform_offsets(batch, rows, q.device),
            cu_seqlens_k=_uniform_offsets(batch, columns, q.device),
            max_seqlen_q=rows,
            max_seqlen_k=columns,
            **options,
        )
        return out.reshape(batch, rows, *out.shape[1:])

    def compare(self, reference: Callable[..., Any], *args: Any) -> str:
        """Probe a call of the same variant, small, and its gradients where they are needed.

        Without gradients the keys are longer than the queries, so that a wrong alignment shows; with them that is a
        variant of its own. Scores have about unit size whatever the scale is, and no order: a scale that is wrong by a
        tenth moves the answer by as much, where waves hid it.
        """
        q, k, v, scaling, _, _, _, _, softcap, sinks, call = args
        plan, (_, causal, window) = call.plan, settled(args)
        graded = needs_grad(q, k, v)
        rows = 1 if q.shape[2] == 1 else 9 if q.shape[2] <= _ASM_ROWS else _ASM_ROWS + 7
        rows, columns = training.small(*_lengths(args)) if graded else (rows, rows + 24)
        heads, where = q.shape[1] // k.shape[1], q.device
        kv_heads = 2
        with torch.inference_mode(not graded), torch.set_grad_enabled(graded):
            xs = [
                noise((2, count, length, x.shape[3]), q.dtype, where, seed)
                for seed, count, length, x in (
                    (12, kv_heads * heads, rows, q), (13, kv_heads, columns, k), (14, kv_heads, columns, v)
                )
            ]  # fmt: skip
            if graded:
                scaling = training.SCALING * q.shape[3] ** -0.5
                xs = wanting([training.laid_out(x, like) for x, like in zip(xs, (q, k, v), strict=True)], (q, k, v))
            elif scaling:
                even = (q.shape[3] ** -0.5 / abs(scaling)) ** 0.5
                xs = [xs[0] * even, xs[1] * even, xs[2]]
            window = None if window is None else 7
            logits = None if sinks is None else made_up((kv_heads * heads,), torch.float32, where, 15)
            cap = None if softcap is None else 2.0
            pads = (0, 5) if plan is not None and plan.keys is None else (0, 0)
            guess, hidden = _padding(pads, rows, columns, causal, window, where)
            made = type(call)()
            made.plan = guess
            rest = (0.0, None if guess is not None else window, cap, logits, made)
            return prove(self.run, reference, xs, (scaling, causal and guess is None, hidden, *rest))


def _lengths(args: tuple[Any, ...]) -> tuple[int, int]:
    """The most (queries, keys) of a sequence, once the call's mask has a plan."""
    rows, columns, plan = args[0].shape[2], args[1].shape[2], args[10].plan
    if plan is None:
        return rows, columns
    if plan.keys is None:
        return plan.longest_queries, plan.longest_keys
    return rows, plan.keys[1] - plan.keys[0]


def _padding(
    pads: tuple[int, int], rows: int, columns: int, causal: bool, window: int | None, where: torch.device
) -> tuple[masks.Plan | None, Tensor | None]:
    """The plan and the bool mask of a left-padded batch of two, as transformers would build it; None without
    padding.
    """
    if pads == (0, 0):
        return None, None
    own = torch.arange(columns - rows, columns, device=where).view(1, rows, 1)
    key = torch.arange(columns, device=where).view(1, 1, columns)
    hidden = (key >= torch.tensor(pads, device=where).view(2, 1, 1)).expand(2, rows, columns)
    if causal and rows > 1:
        hidden = hidden & (key <= own)
    if window is not None:
        hidden = hidden & (key > own - window)
    mask = hidden.unsqueeze(1)
    return masks.analyse(mask, 2, rows, columns), mask
