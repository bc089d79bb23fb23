"""What a materialised mask amounts to: padding on either side, causality, a sliding window; or something else.

transformers hands down a full [B, 1, Sq, Sk] mask whenever a batch is padded, a cache is static or attention is
eager. Flash kernels take no such mask but do all of the above by sequence lengths and flags. The analysis reads the
mask in blocks, compares it with what it believes it to be, element by element, and costs one host sync. All layers of a
forward are handed the same mask: a plan is served again while the mask still has the very content it was made from.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import dispatch

_KEPT = 32
_SMALL = 1 << 20
"""Masks of up to so many bytes have a copy kept."""
_BLOCK = 1 << 18
"""Elements that are looked at at once: the work needs some 40 bytes for each."""


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

    def tensors(self) -> list[Tensor]:
        """Return the positions and offsets of the packed form."""
        parts = (*(self.queries_at or ()), *(self.keys_at or ()), self.query_offsets, self.key_offsets)
        return [part for part in parts if part is not None]


class _Entry(NamedTuple):
    mask: weakref.ref[Tensor]
    shape: tuple[int, int, int]
    plan: Plan
    content: Tensor


_entries: dict[int, _Entry] = {}
_lock = threading.RLock()
dispatch.new_lock_after_fork(__name__)


def plan_for(mask: Tensor, batch: int, rows: int, columns: int, layer: int | None) -> Plan:
    """Return the plan of ``mask`` for ``batch`` x ``rows`` queries and ``columns`` keys.

    A mask may be written to between two layers in ways that leave no trace (``.data``, numpy, inference mode), so a
    known plan is used only after the mask's content was compared with what it was: small masks (a decode's) have a
    copy kept, large ones are analysed anew for each layer.
    """
    if dispatch.capturing():
        # Replays read the mask as it is then; what a plan says of it now would be baked into the graph.
        return Plan("a stream is being captured: the mask is read at every replay")
    shape = (batch, rows, columns)
    entry = _entries.get(id(mask))
    if entry is not None and entry.mask() is mask and entry.shape == shape and _same(mask, entry.content):
        return entry.plan
    plan = analyse(mask, batch, rows, columns)
    small = not plan.reason and mask.numel() * mask.element_size() <= _SMALL
    if small:
        key = id(mask)
        with torch.inference_mode(False), torch.no_grad():
            content = mask.detach().clone()
        with _lock:
            if len(_entries) >= _KEPT:
                _entries.clear()
            _entries[key] = _Entry(weakref.ref(mask, lambda _: _entries.pop(key, None)), shape, plan, content)
    return plan


def nbytes() -> int:
    """Return the bytes of the plans that are kept, and of the contents that masks are compared with."""
    kept = [part for entry in tuple(_entries.values()) for part in (entry.content, *entry.plan.tensors())]
    return sum(part.numel() * part.element_size() for part in kept)


def _same(mask: Tensor, content: Tensor) -> bool:
    return mask.shape == content.shape and mask.dtype is content.dtype and torch.equal(mask, content)


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
    any row reaches. Both passes go over blocks of rows, so that nothing as large as the mask is ever made; results are
    gathered in place, because small tensors that outlive a block would keep the heap from using its room again.
    """
    count, rows, columns = mask.shape
    blocks = _blocks(rows, count * columns)
    key = torch.arange(columns, device=mask.device)
    start, stop = key.new_full((count,), columns), key.new_zeros((count,))
    flags, extent = key.new_ones((4,), dtype=torch.bool), key.new_tensor([-rows, 0])
    for begin, end in blocks:
        _bounds(mask[:, begin:end], key, begin, start, stop, extent, flags[:1])
    for begin, end in blocks:
        _compare(mask[:, begin:end], key, begin, start, stop, extent, flags[1:])
    numbers: list[int] = torch.cat((flags.long(), extent, start, stop)).tolist()
    return numbers


def _blocks(rows: int, width: int) -> list[tuple[int, int]]:
    """Spans of rows of at most _BLOCK elements each, at least one row."""
    step = max(1, _BLOCK // max(1, width))
    return [(begin, min(rows, begin + step)) for begin in range(0, rows, step)]


def _bounds(mask: Tensor, key: Tensor, begin: int, start: Tensor, stop: Tensor, extent: Tensor, clean: Tensor) -> None:
    """Extend by some rows: per batch entry the first key seen by any and the one behind the last [B]; how far beyond
    its own place a row reaches and the most keys that a row sees [2]; whether all is nothing but a restriction [1].
    """
    seen, restricts = _seen(mask)
    torch.minimum(start, torch.where(seen, key, mask.shape[2]).amin((1, 2)), out=start)
    last = torch.where(seen, key, -1).amax(-1)
    torch.maximum(stop, last.amax(-1) + 1, out=stop)
    last -= torch.arange(begin, begin + mask.shape[1], device=mask.device)
    torch.maximum(extent, torch.stack((last.max(), seen.sum(-1).max())), out=extent)
    clean &= restricts


def _compare(mask: Tensor, key: Tensor, begin: int, start: Tensor, stop: Tensor, extent: Tensor, same: Tensor) -> None:
    """Keep in ``same`` [3] whether the rows are those of the full, the causal, the windowed mask of these bounds."""
    seen, _ = _seen(mask)
    own = (torch.arange(begin, begin + mask.shape[1], device=mask.device) + extent[0])[:, None]
    full = (key >= start[:, None, None]) & (key < stop[:, None, None])
    causal = full & (key <= own)
    windowed = causal & (key > own - extent[1])
    same &= torch.stack([(seen == guess).all() for guess in (full, causal, windowed)])


def _seen(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which keys are visible, and whether a mask of numbers says only that."""
    if mask.dtype is torch.bool:
        return mask, mask.new_ones((), dtype=torch.bool)
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
