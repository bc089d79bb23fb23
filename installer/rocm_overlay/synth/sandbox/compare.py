"""When two results are the same: exactly, or within a tolerance relative to the largest value."""

from __future__ import annotations

import math
from typing import Any

import torch

from rocm_overlay.shared import tolerances

_TABLE = tolerances()
TOLERANCE = {
    getattr(torch, dtype): row.relative
    for (purpose, dtype, _), row in _TABLE.TOLERANCES.items()
    if purpose == _TABLE.PROGRAM
}


def flat(value: Any) -> list[torch.Tensor]:
    """Return the tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [one for item in value.values() for one in flat(item)]
    if isinstance(value, list | tuple):
        return [one for item in value for one in flat(item)]
    raise TypeError(f"a result is {type(value).__name__}, expected tensors")


def difference(expected: Any, found: Any, *, exact: bool = False, slack: list[float] | None = None) -> str:
    """Return "" when two results agree, else what differs. ``slack`` allows a larger difference, tensor by tensor."""
    left, right = flat(expected), flat(found)
    if len(left) != len(right):
        return f"{len(right)} tensors, expected {len(left)}"
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        text = _difference(a.detach(), b.detach(), exact, slack[index] if slack else 0.0)
        if text:
            return f"result {index}: {text}" if len(left) > 1 else text
    return ""


def _difference(a: torch.Tensor, b: torch.Tensor, exact: bool, slack: float) -> str:
    if a.shape != b.shape:
        return f"shape {list(b.shape)}, expected {list(a.shape)}"
    if a.dtype != b.dtype:
        return f"dtype {b.dtype}, expected {a.dtype}"
    if torch.equal(a, b) or not a.numel():
        return ""
    if exact or not a.is_floating_point():
        return f"{int((a != b).sum())} of {a.numel()} values differ, expected none"
    gap = _TABLE.gap(a.double(), b.double())
    if gap.largest == math.inf:
        return "infinities or NaN at other places"
    scale = max(gap.scale, _TABLE.SMALLEST_SCALE[_TABLE.PROGRAM])
    allowed = max(TOLERANCE.get(a.dtype, 0.0) * scale, slack)
    return "" if gap.largest <= allowed else f"values differ by {gap.largest:.2e}, allowed {allowed:.2e}"
