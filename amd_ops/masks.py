"""What a materialised mask amounts to: padding on either side, causality, a sliding window; or something else.

transformers hands down a full [B, 1, Sq, Sk] mask whenever a batch is padded, a cache is static or attention is
eager. Flash kernels take no such mask but do all of the above by sequence lengths and flags. The analysis reads the
mask once (one host sync), compares it with what it believes it to be, element by element, and is cached on the mask
object: all layers of a forward share it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from . import dispatch

_KEPT = 32


@dataclass(frozen=True)
class Plan:
    """How to run a masked call without the mask, or ``reason`` why that cannot be.

    keys: all batch rows see this same range of keys and every query counts (no packing needed). Otherwise the packed
    form: (batch, position) indices of the real queries and keys, int32 offsets and the longest lengths.
    """

    reason: str = ""
    causal: bool = False
    window: int | None = None
    keys: tuple[int, int] | None = None
    queries_at: tuple[Tensor, Tensor] | None = None
    keys_at: tuple[Tensor, Tensor] | None = None
    query_offsets: Tensor | None = None
    key_offsets: Tensor | None = None
    longest_queries: int = 0
    longest_keys: int = 0


@dataclass
class _Entry:
    mask: weakref.ref[Tensor]
    version: int | None
    layer: int | None
    shape: tuple[int, int, int]
    plan: Plan


_entries: dict[int, _Entry] = {}


def plan_for(mask: Tensor, batch: int, rows: int, columns: int, layer: int | None) -> Plan:
    """Return the plan of ``mask`` for ``batch`` x ``rows`` queries and ``columns`` keys, from the cache where that is
    sure to be right.

    A tensor made under inference_mode keeps no version counter, so a change in place would go unseen: there the cache
    only serves the later layers of the same forward.
    """
    version = None if mask.is_inference() else mask._version
    shape = (batch, rows, columns)
    entry = _entries.get(id(mask))
    if entry is not None and entry.mask() is mask and entry.shape == shape and entry.version == version:
        if version is not None:
            return entry.plan
        if layer is not None and entry.layer is not None and layer > entry.layer:
            entry.layer = layer
            return entry.plan
    if dispatch.capturing():
        return Plan("the mask has not been analysed yet and a stream is being captured")
    plan = analyse(mask, batch, rows, columns)
    if len(_entries) >= _KEPT:
        _entries.clear()
    key = id(mask)
    _entries[key] = _Entry(weakref.ref(mask, lambda _: _entries.pop(key, None)), version, layer, shape, plan)
    return plan


def analyse(mask: Tensor, batch: int, rows: int, columns: int) -> Plan:
    """Read a mask [B or 1, 1, rows, >= columns], bool (True = attend) or additive (0 or the dtype's lowest value)."""
    if mask.dim() != 4 or mask.shape[2] != rows or mask.shape[3] < columns or mask.shape[0] not in (1, batch):
        return Plan("the mask is not [B, 1, Sq, Sk]")
    if mask.shape[1] != 1:
        return Plan("the mask differs from head to head")
    if mask.requires_grad:
        return Plan("the mask needs a gradient")
    numbers = _measure(mask[:, 0, :, :columns])
    clean, full, causal, windowed, offset, window = (int(number) for number in numbers[:6])
    bounds = numbers[6:]
    starts, stops = bounds[: len(bounds) // 2], bounds[len(bounds) // 2 :]
    if len(starts) != batch:
        starts, stops = starts * batch, stops * batch
    if not clean:
        return Plan("the mask is an additive bias, not only a restriction")
    if full:
        return _plan([(0, rows)] * batch, list(zip(starts, stops, strict=True)), False, None, rows, mask.device)
    if not causal and not windowed:
        return Plan("the mask is not padding with causality and at most a window")
    queries = [(max(0, start - offset), min(rows, stop - offset)) for start, stop in zip(starts, stops, strict=True)]
    if offset != 0 and any(stop - offset < rows for stop in stops):
        # Queries past the last key of their row: right padding behind a cache, or a window that is not causal.
        # Unsure: refuse.
        return Plan("the mask shows queries beyond the keys behind a cache")
    spans = list(zip(starts, stops, strict=True))
    return _plan(queries, spans, True, None if causal else window, rows, mask.device)


def _measure(mask: Tensor) -> list[int]:
    """[B, rows, columns] -> clean, full, causal, windowed, offset, window, starts..., stops...; the only host sync.

    A row's keys run from its first to its last visible one. ``offset`` puts query i at key i + offset: the furthest
    any row reaches.
    """
    seen, clean = (mask, mask.new_ones((), dtype=torch.bool)) if mask.dtype is torch.bool else _kept(mask)
    rows, columns = seen.shape[1:]
    key = torch.arange(columns, device=seen.device)
    row = torch.arange(rows, device=seen.device)
    first = torch.where(seen, key, columns).amin(-1)
    last = torch.where(seen, key, -1).amax(-1)
    offset = (last - row).max()
    window = seen.sum(-1).max()
    start, stop = first.amin(-1), last.amax(-1) + 1
    full = (key >= start[:, None, None]) & (key < stop[:, None, None])
    own = (row + offset)[:, None]
    causal = full & (key <= own)
    windowed = causal & (key > own - window)
    equal = [(seen == guess).all().long() for guess in (full, causal, windowed)]
    head = torch.stack([clean.long(), *equal, offset, window])
    numbers: list[int] = torch.cat((head, start, stop)).tolist()
    return numbers


def _kept(mask: Tensor) -> tuple[Tensor, Tensor]:
    kept = mask == 0
    return kept, (kept | (mask <= torch.finfo(mask.dtype).min)).all()


def _plan(
    queries: list[tuple[int, int]],
    keys: list[tuple[int, int]],
    causal: bool,
    window: int | None,
    rows: int,
    device: torch.device,
) -> Plan:
    """Spans of real queries and keys per batch row -> the dense or the packed form."""
    if any(stop <= start for start, stop in (*queries, *keys)):
        return Plan("a row of the batch is nothing but padding")
    if set(queries) == {(0, rows)} and len(set(keys)) == 1:
        return Plan(causal=causal, window=window, keys=keys[0])
    query_lengths = [stop - start for start, stop in queries]
    key_lengths = [stop - start for start, stop in keys]
    return Plan(
        causal=causal,
        window=window,
        queries_at=_positions(queries, device),
        keys_at=_positions(keys, device),
        query_offsets=_offsets(query_lengths, device),
        key_offsets=_offsets(key_lengths, device),
        longest_queries=max(query_lengths),
        longest_keys=max(key_lengths),
    )


def _positions(spans: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    batch = torch.cat([torch.full((stop - start,), index) for index, (start, stop) in enumerate(spans)])
    position = torch.cat([torch.arange(start, stop) for start, stop in spans])
    return batch.to(device), position.to(device)


def _offsets(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device=device, dtype=torch.int32)
