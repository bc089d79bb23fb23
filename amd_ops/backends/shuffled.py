"""Shuffled copies of weights: the wrapper that carries the layout, and which weight each copy belongs to.

aiter marks a shuffled weight with a bare attribute of the tensor object. That mark is lost by detach, clone, casts and
loading, and a shuffled weight without it multiplies to garbage. So the copy lives in a ``Shuffled`` that knows
its layout, it is marked anew for each call, and it is never a parameter, a buffer or an attribute of a module:
state_dict, saving, ``.to()`` and deepcopy see the plain weight alone.

A copy cannot alias its weight, so it exists only while nobody has taken hold of the weight's memory (frozen.py): the
parameters are frozen before it is made, and it is gone before the first of them can be written to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import frozen
from ..dispatch import new_lock_after_fork

LAYOUT = (16, 16)
ROWS, COLUMNS = 16, 32
"""The layout packs blocks of 16 rows by 32 columns of 16-bit values."""

Shuffle = Callable[[Tensor], Tensor]

_held: dict[tuple[int, torch.Size], Shuffled] = {}
_by_owner: dict[int, Shuffled] = {}
_lock = threading.RLock()
new_lock_after_fork(__name__)


class Shuffled:
    """The shuffled copy of one weight [N, K] or [E, N, K], and the frozen parameters whose memory it was made from."""

    __slots__ = ("_aliases", "_data", "key", "layout", "plain")

    def __init__(self, plain: Tensor, shuffle: Shuffle, owners: Sequence[nn.Parameter]) -> None:
        self.layout = LAYOUT
        self.plain = plain
        self.key = plain.data_ptr(), plain.shape
        # Tensors of the owners' memory, with their version counters: what counts writes is looked at as well.
        aliases = {id(owner): owner.detach() for owner in owners}
        self._aliases = {owner: (alias, alias._version) for owner, alias in aliases.items()}
        self._data = shuffle(plain)

    def current(self, weight: Tensor) -> bool:
        """Return True while the copy is that of ``weight``."""
        if weight.dtype is not self.plain.dtype:
            return False
        return all(alias._version == version for alias, version in self._aliases.values())

    def alias_of(self, owner: int) -> Tensor:
        """Return a plain tensor over the memory of one of the frozen parameters, by its id."""
        return self._aliases[owner][0]

    @property
    def owners(self) -> Iterator[int]:
        """Ids of the frozen parameters."""
        return iter(tuple(self._aliases))

    def tagged(self) -> Tensor:
        """Return the copy, marked as aiter wants it at this very call."""
        data = self._data
        data.is_shuffled = True  # type: ignore[attr-defined]
        return data

    @property
    def nbytes(self) -> int:
        """Bytes that the copy adds to those of the weight."""
        return self._data.numel() * self._data.element_size()


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


def keep(plain: Tensor, shuffle: Shuffle, owners: Sequence[nn.Parameter] = ()) -> str:
    """Freeze ``owners`` and make the shuffled copy of ``plain``, which is their memory; return "" or why not."""
    with _lock, torch.inference_mode(False), torch.no_grad():
        if find(plain) is not None:
            return ""
        for owner in owners:
            reason = frozen.why_not(owner)
            if reason:
                return reason
        made = Shuffled(plain.detach(), shuffle, owners)
        for owner in owners:
            _by_owner[id(owner)] = made
            frozen.watch(owner, lambda reason: drop(made))
        _held[made.key] = made
        return ""


def find(weight: Tensor) -> Shuffled | None:
    """Return the copy of the plain tensor ``weight``; one that is not current any more is dropped, so that it never
    answers for the weight.
    """
    if not _held:
        return None
    held = _held.get((weight.data_ptr(), weight.shape))
    if held is not None and not held.current(weight):
        drop(held)
        return None
    return held


def plain_of(parameter: Any) -> Any:
    """Return a plain tensor over a frozen parameter's memory, which tiers may look at; any other tensor as it is.

    Where a gradient is wanted it is the parameter itself.
    """
    if type(parameter) is not frozen.Frozen or (torch.is_grad_enabled() and parameter.requires_grad):
        return parameter
    held = _by_owner.get(id(parameter))
    return parameter if held is None else held.alias_of(id(parameter))


def drop(held: Shuffled) -> None:
    """Free a copy; its parameters are watched no more."""
    with _lock:
        if _held.get(held.key) is held:
            del _held[held.key]
        for owner in held.owners:
            if _by_owner.get(owner) is held:
                del _by_owner[owner]
            frozen.forget(owner)


def drop_all() -> None:
    """Free every copy."""
    for held in kept():
        drop(held)


def any_kept() -> bool:
    """Return True when there is any copy at all; the first and cheapest question of a call."""
    return bool(_held)


def kept() -> Iterator[Shuffled]:
    """Yield all copies."""
    return iter(tuple(_held.values()))


def nbytes() -> int:
    """Return the bytes of all copies."""
    return sum(held.nbytes for held in kept())
