"""Shuffled copies of weights: the wrapper that carries the layout, and which weight each copy belongs to.

aiter marks a shuffled weight with a bare attribute of the tensor object. That mark is lost by detach, clone, casts and
loading, and a shuffled weight without it multiplies to garbage. So the copy lives in a :class:`Shuffled` that knows
its layout, it is marked anew for each call, and it is never a parameter, a buffer or an attribute of a module:
state_dict, saving, ``.to()`` and deepcopy see the plain weight alone.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .dispatch import new_lock_after_fork

LAYOUT = (16, 16)
ROWS, COLUMNS = 16, 32
"""The layout packs blocks of 16 rows by 32 columns of 16-bit values."""

Shuffle = Callable[[Tensor], Tensor]

_held: dict[int, Shuffled] = {}
_lock = threading.RLock()
new_lock_after_fork(__name__)


class Shuffled:
    """The shuffled copy of one weight [N, K] or [E, N, K]: its layout, and what the weight was when it was made.

    ``parts`` are tensors that hold the same memory under version counters of their own (the parameters whose rows a
    packed matrix consists of): a write through any of them makes the copy stale.
    """

    __slots__ = ("_data", "_source", "_stamps", "layout")

    def __init__(self, weight: Tensor, data: Tensor, parts: tuple[Tensor, ...] = ()) -> None:
        self.layout = LAYOUT
        self._data = data
        self._source = weakref.ref(weight)
        watched = (weight, *parts)
        self._stamps = tuple((weakref.ref(part), stamp(part)) for part in watched)

    def stale(self, weight: Tensor) -> str:
        """Return "" while the copy is that of ``weight`` as it is now, else what changed."""
        if self._source() is not weight:
            return "the weight was replaced"
        for part, made in self._stamps:
            found = part()
            if found is None or stamp(found) != made:
                return "the weight moved or was written to"
        return ""

    def tagged(self) -> Tensor:
        """Return the copy, marked as aiter wants it at this very call."""
        data = self._data
        data.is_shuffled = True  # type: ignore[attr-defined]
        return data

    @property
    def nbytes(self) -> int:
        """Bytes that the copy adds to those of the weight."""
        return self._data.numel() * self._data.element_size()


def stamp(tensor: Tensor) -> tuple[int, int, torch.Size, torch.dtype]:
    """Return what changes when a tensor is written to in place, moved, cast or given other memory."""
    return tensor._version, tensor.data_ptr(), tensor.shape, tensor.dtype


def why_not(weight: Tensor) -> str:
    """Return "" when ``weight`` has a form that can be shuffled, else the reason."""
    if weight.dtype is not torch.bfloat16:
        return f"{weight.dtype} is not bf16"
    if weight.dim() not in (2, 3):
        return "the weight is not [N, K] or [E, N, K]"
    if weight.shape[-2] % ROWS or weight.shape[-1] % COLUMNS:
        return f"N is no multiple of {ROWS} or K no multiple of {COLUMNS}"
    if weight.numel() == 0 or weight.is_meta or not weight.is_contiguous():
        return "the weight is empty, on meta or not contiguous"
    if weight.is_inference():
        return "the weight was made under inference mode, where a write to it leaves no trace"
    return ""


def keep(weight: Tensor, shuffle: Shuffle, parts: tuple[Tensor, ...] = ()) -> Shuffled:
    """Return the shuffled copy of ``weight``, made by ``shuffle`` where there is none or it has gone stale."""
    with _lock:
        held = _held.get(id(weight))
        if held is not None and not held.stale(weight):
            return held
        with torch.inference_mode(False), torch.no_grad():
            made = Shuffled(weight, shuffle(weight.detach()), parts)
        key = id(weight)
        _held[key] = made
        weakref.finalize(weight, _forget_if, key, weakref.ref(weight)).atexit = False
        return made


def find(weight: Tensor) -> Shuffled | None:
    """Return the copy of ``weight`` while it is fresh; a stale one is dropped, so that it never answers for the
    weight.
    """
    held = _held.get(id(weight))
    if held is None:
        return None
    if held.stale(weight):
        drop(weight)
        return None
    return held


def drop(weight: Tensor) -> None:
    """Free the copy of ``weight``."""
    with _lock:
        _held.pop(id(weight), None)


def drop_all() -> None:
    """Free every copy."""
    with _lock:
        _held.clear()


def any_kept() -> bool:
    """Return True when there is any copy at all; the first and cheapest question of a call."""
    return bool(_held)


def kept() -> Iterator[Shuffled]:
    """Yield all copies."""
    return iter(tuple(_held.values()))


def _forget_if(key: int, source: weakref.ref[Tensor]) -> None:
    """The weight is gone; its id may already name another tensor whose copy must stay."""
    held = _held.get(key)
    if held is not None and held._source() is None:
        _held.pop(key, None)
