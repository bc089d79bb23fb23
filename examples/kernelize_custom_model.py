"""A Llama-like model that is not from transformers, made faster by structure alone: compute launches per layer,
before and after.

    python examples/kernelize_custom_model.py

Runs anywhere, also without a GPU: what is counted is launches, not time. A launch is one compute op of torch outside
amd_ops (views excluded) or one op of amd_ops, whatever it runs inside on this machine. The raw number of torch ops is
printed beside it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import amd_ops
from amd_ops import dispatch
from amd_ops.kernelize import kernelize_model, kernelize_report, unkernelize_model


class MeanSquareScale(nn.Module):
    """An RMS norm under another name."""

    def __init__(self, size: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(size) + 0.5)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = x.to(torch.float32)
        spread = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(spread + self.epsilon)
        return self.gain * x.to(kind)


class FeedForward(nn.Module):
    """A gated MLP."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.w_in = nn.Linear(size, inner, bias=False)
        self.w_up = nn.Linear(size, inner, bias=False)
        self.w_out = nn.Linear(inner, size, bias=False)
        self.activate = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.w_out(self.activate(self.w_in(x)) * self.w_up(x))


def turn_half(x: Tensor) -> Tensor:
    """(a, b) -> (-b, a) on halves of the last dimension."""
    a = x[..., : x.shape[-1] // 2]
    b = x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of [B, H, S, D] by [B, S, D]."""
    cos = cos.unsqueeze(1)
    sin = sin.unsqueeze(1)
    return query * cos + turn_half(query) * sin, key * cos + turn_half(key) * sin


class Mixer(nn.Module):
    """Causal grouped-query attention with a growing cache."""

    def __init__(self, size: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.width, self.heads, self.kv_heads = size // heads, heads, kv_heads
        self.wq = nn.Linear(size, heads * self.width, bias=False)
        self.wk = nn.Linear(size, kv_heads * self.width, bias=False)
        self.wv = nn.Linear(size, kv_heads * self.width, bias=False)
        self.wo = nn.Linear(heads * self.width, size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor]) -> Tensor:
        batch, length, _ = x.shape
        query = self.wq(x).view(batch, length, self.heads, self.width).transpose(1, 2)
        key = self.wk(x).view(batch, length, self.kv_heads, self.width).transpose(1, 2)
        value = self.wv(x).view(batch, length, self.kv_heads, self.width).transpose(1, 2)
        query, key = rotate(query, key, cos, sin)
        if cache:
            key, value = torch.cat((cache[0], key), dim=2), torch.cat((cache[1], value), dim=2)
        cache[:] = [key, value]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=length > 1, enable_gqa=True)
        return self.wo(out.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    def __init__(self, size: int, heads: int, kv_heads: int, inner: int) -> None:
        super().__init__()
        self.before, self.after = MeanSquareScale(size), MeanSquareScale(size)
        self.mixer, self.feed = Mixer(size, heads, kv_heads), FeedForward(size, inner)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor]) -> Tensor:
        x = x + self.mixer(self.before(x), cos, sin, cache)
        return x + self.feed(self.after(x))


class CustomModel(nn.Module):
    """Token ids [B, S] -> logits [B, S, V]; ``caches`` holds one list per layer and grows."""

    def __init__(
        self, layers: int = 2, size: int = 64, heads: int = 4, kv_heads: int = 2, inner: int = 128, words: int = 97
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, size)
        self.blocks = nn.ModuleList(Block(size, heads, kv_heads, inner) for _ in range(layers))
        self.last = MeanSquareScale(size)
        self.head = nn.Linear(size, words, bias=False)
        self.width = size // heads

    def forward(self, ids: Tensor, caches: list[list[Tensor]]) -> Tensor:
        start = caches[0][0].shape[2] if caches[0] else 0
        steps = torch.arange(start, start + ids.shape[1], device=ids.device, dtype=torch.float32)
        powers = torch.arange(0, self.width, 2, device=ids.device, dtype=torch.float32) / self.width
        angles = torch.outer(steps, 10000.0**-powers).repeat(1, 2)[None]
        x = self.embed(ids)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cos, sin, cache)
        return self.head(self.last(x))


_NO_LAUNCH = {"aten::empty", "aten::empty_strided", "aten::lift_fresh"}


def _storages(values: Any) -> set[int]:
    """Storages of the tensors in an op's arguments or results."""
    tensors = [v for v in tree_leaves(values) if isinstance(v, Tensor)]
    return {t.untyped_storage().data_ptr() for t in tensors}


class Launches(TorchDispatchMode):
    """Counts compute ops: ``counted`` as launches, ``raw`` as torch sees them.

    An op computes when its result has memory of its own, or when it writes into an argument; all else is a view or a
    question.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()
        self.raw: Counter[str] = Counter()
        self.inside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        given = _storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        if (writes or _storages(result) - given) and name not in _NO_LAUNCH:
            self.raw[name] += 1
            if not self.inside:
                self.counted[name] += 1
        return result


@contextmanager
def count_launches() -> Iterator[Launches]:
    """Count what runs in the block. Ops of amd_ops must have been called before, so that their tiers are bound."""
    launches = Launches()
    before = {op: op.call for op in dispatch.ops.values() if isinstance(op, dispatch.Op)}

    def marked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if not launches.inside:
                launches.counted[f"amd_ops.{name}"] += 1
            launches.inside += 1
            try:
                return call(*args)
            finally:
                launches.inside -= 1

        return run

    for op, call in before.items():
        op.call = marked(op.name, call)
    try:
        with launches:
            yield launches
    finally:
        for op, call in before.items():
            op.call = call


def per_layer(make: Callable[[int], nn.Module], kernels: bool) -> tuple[Counter[str], Counter[str]]:
    """Launches of one decode step per layer: the difference between models of three and of one layer, halved."""
    counts = []
    for layers in (1, 3):
        model = make(layers).eval()
        if kernels:
            kernelize_model(model, mode="inference")
        caches: list[list[Tensor]] = [[] for _ in range(layers)]
        with torch.inference_mode():
            model(torch.tensor([[1, 2, 3, 4]]), caches)
            for _ in range(2):
                model(torch.tensor([[5]]), caches)
            with count_launches() as launches:
                model(torch.tensor([[6]]), caches)
        unkernelize_model(model)
        counts.append(launches)
    return _half(counts[1].counted, counts[0].counted), _half(counts[1].raw, counts[0].raw)


def _half(three: Counter[str], one: Counter[str]) -> Counter[str]:
    return Counter({name: (number - one[name]) // 2 for name, number in three.items() if number != one[name]})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    del options
    torch.manual_seed(0)

    def make(layers: int) -> CustomModel:
        return CustomModel(layers).to(torch.bfloat16)

    with amd_ops.override(use_optimized_ops=1, use_fused_projections=1):
        for title, kernels in (("stock", False), ("kernelized", True)):
            counted, raw = per_layer(make, kernels)
            print(f"{title}: {counted.total()} launches per layer and decode step ({raw.total()} torch ops here)")
            print("  " + ", ".join(f"{number} {name.removeprefix('aten::')}" for name, number in counted.most_common()))
        model = make(2).eval()
        kernelize_model(model, mode="inference")
        with torch.inference_mode():
            model(torch.tensor([[1, 2, 3]]), [[], []])
        print(kernelize_report(model))


if __name__ == "__main__":
    main()
