"""One attention of a plan between its projections: head norms, the rotation, and the write of keys and values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..dispatch import Op, ops
from ..ops.rope import torch_rope_signed
from . import caches
from .state import Calls, State


@dataclass(frozen=True)
class Attention:
    """One attention: its projections, head norms and rotation, and the words that the cache's update is given."""

    module: weakref.ref[nn.Module]
    qkv: Callable[[Callable[..., Any], Tensor], Tensor]
    out: Callable[[Callable[..., Any], Tensor], Tensor]
    heads: list[int]
    size: int
    scaling: float
    index: int
    norms: tuple[dict[str, Any], dict[str, Any], str, float, str] | None
    words: tuple[str, ...]


class Turned:
    """Head norms, rotation and the cache's write of one attention; returns q and the keys and values to attend to."""

    def __init__(self, calls: Calls, attention: Attention) -> None:
        self.attention, self.index = attention, attention.index
        self.into, self.rope, self.normed = (
            calls.of("rope_into_cache"),
            calls.of("apply_rope"),
            calls.of("qk_norm_rope"),
        )
        self.heads, self.turning = attention.heads, [sum(attention.heads[:2]), attention.heads[2]]
        self.calls, self.joined = calls, False
        into = ops["rope_into_cache"]
        assert isinstance(into, Op)
        self.one_kernel = into.can("triton")

    def __call__(self, state: State, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``qkv`` [B, H + 2 Hkv, 1, D]: the heads of one token, of q, k and v in this order.

        Where torch's formulas answer, q and k are turned as they lie, once the ops have been asked (and are counted).
        """
        joined = self.joined
        if joined:
            _, cos, sin = state.for_heads()
            both, v = qkv.split_with_sizes(self.turning, 1)
            q, k = torch_rope_signed(both, cos, sin).split_with_sizes(self.heads[:2], 1)
        else:
            q, k, v = qkv.split_with_sizes(self.heads, 1)
        kind = state.kinds[self.index] if state.cache is not None else "none"
        if kind == "static":
            layer = state.layers[self.index]
            at = layer.cumulative_length.view(1) if state.position is None else state.position
            if joined:
                layer.keys.index_copy_(2, at, k)
                layer.values.index_copy_(2, at, v)
            else:
                q = self._write(state, q, k, v, layer.keys, layer.values, at)
            return q, layer.keys, layer.values
        if kind == "dynamic":
            layer = state.layers[self.index]
            found = caches.room(layer, k, v)
            if found is not None:
                slack, rows = found
                if self.one_kernel:
                    at = state.slots.get(rows)
                    if at is None:
                        at = state.slots[rows] = torch.full((1,), rows, dtype=torch.int64, device=q.device)
                    q = self._write(state, q, k, v, slack.key_buffer, slack.value_buffer, at)
                else:
                    q, k = (q, k) if joined else self._rotate(state, q, k)
                    slack.key_buffer.narrow(2, rows, 1).copy_(k)
                    slack.value_buffer.narrow(2, rows, 1).copy_(v)
                return (q, *caches.grown(layer, slack, rows + 1))
        q, k = (q, k) if joined else self._rotate(state, q, k)
        if kind == "none":
            return q, k, v
        if self.attention.words == ("kwargs",):
            return (q, *state.cache.update(k, v, self.index, kwargs=dict(state.more)))
        given = {"sin": state.sin, "cos": state.cos, "cache_position": state.position}
        words = {word: given[word] for word in self.attention.words}
        return (q, *state.cache.update(k, v, self.index, *([words] if words else [])))

    def _write(self, state: State, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
        norms = self.attention.norms
        if norms is None:
            result: Tensor = self.into(q, k, v, state.cos, state.sin, keys, values, at, None, None, 0.0, "llama")
            self._learn("rope_into_cache", state, q)
            return result
        q_own, k_own, name, eps, form = norms
        result = self.into(q, k, v, state.cos, state.sin, keys, values, at, q_own[name], k_own[name], eps, form)
        return result

    def _rotate(self, state: State, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        norms = self.attention.norms
        if norms is None:
            both: tuple[Tensor, Tensor] = self.rope(q, k, state.cos, state.sin, 1)
            self._learn("apply_rope", state, q)
            return both
        q_own, k_own, name, eps, form = norms
        both = self.normed(q, k, q_own[name], k_own[name], eps, form, state.cos, state.sin)
        return both

    def _learn(self, op: str, state: State, q: Tensor) -> None:
        """Where torch's formula has answered, and turns whole heads, the next calls of this class need no op."""
        self.joined = self.calls.answered[op] == "torch" and state.cos.shape[2] == q.shape[3]
