"""What one forward of a plan carries from layer to layer, and how its calls are asked for once and counted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..dispatch import Op, ops
from ..ops.rope import signed


@dataclass
class State:
    """What one forward carries from layer to layer. ``x`` and ``residual`` are rows [B, width], ``more`` what a layer
    hands on to its attention beside what that names.
    """

    x: Tensor
    residual: Tensor
    mask: Tensor | None
    cos: Tensor
    sin: Tensor
    cache: Any
    layers: Any
    kinds: list[str]
    position: Tensor | None
    more: dict[str, Any] = field(default_factory=dict)
    slots: dict[int, Tensor] = field(default_factory=dict)
    numbers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    tables: tuple[Tensor, Tensor, Tensor] | None = None

    def for_heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """cos as it is, and both tables as ``torch_rope_signed`` takes them, made once per forward and table."""
        known = self.tables
        if known is None or known[0] is not self.cos:
            known = self.tables = self.cos, self.cos.unsqueeze(1), signed(self.sin).unsqueeze(1)
        return known

    def added(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as SDPA adds it, made once per forward: from a bool mask it would make one in every layer."""
        mask = self.mask
        if mask is None or mask.dtype is not torch.bool:
            return mask
        known = self.numbers.get(id(mask))
        if known is None or known[0] is not mask or known[1].dtype is not dtype:
            added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            known = self.numbers[id(mask)] = mask, added.masked_fill_(mask.logical_not(), -math.inf)
        return known[1]


class Calls:
    """The calls of one shape class: each is asked of the dispatcher once, then made without asking."""

    def __init__(self) -> None:
        # Alike ones together, so that a forward counts a handful of sums: (op, tally, reasons) -> [one of them, times].
        self._made: dict[Any, list[Any]] = {}
        self.answered: dict[str, str] = {}

    def of(self, name: str) -> Callable[..., Any]:
        """Return a function of op ``name``'s arguments; they differ from call to call in their data alone."""
        op = ops[name]
        assert isinstance(op, Op)
        fast: Callable[..., Any] | None = None

        def call(*args: Any) -> Any:
            nonlocal fast
            if fast is not None:
                return fast(*args)
            bound = op.bound(*args)
            start = time.perf_counter()
            result = bound.run(*args)
            if bound.tally is not None and bound.tally.first_call_s is None:
                bound.tally.first_call_s = time.perf_counter() - start
            key = name, id(bound.tally), tuple(reason for _, reason in bound.declined)
            self._made.setdefault(key, [bound, 0])[1] += 1
            self.answered[name] = "" if bound.tally is None else bound.tally.tier
            fast = bound.run
            return result

        return call

    def credit(self) -> None:
        """Count what one forward has called."""
        for bound, times in self._made.values():
            bound.credit(times)
