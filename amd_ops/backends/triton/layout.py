"""What the kernels need to know about a tensor's memory, computed on the host: rows, strides, reach, alignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

MAX_OFFSET = 2**31 - 1
"""Offsets in the kernels are int32 and count elements."""
ALIGNMENT = 16
"""Bytes. Wider loads need it, and Triton compiles a kernel of its own for every other case."""

Rows = tuple[int, int, int, int, int, int]
"""(n1, n2, s0, s1, s2, sd): rows [*, n1, n2] with strides s0, s1, s2, columns with stride sd, all in elements."""

Via = Callable[[Any], Any]
"""How a kernel is launched: directly, or through torch.library.wrap_triton where torch.compile must see it."""


def directly(kernel: Any) -> Any:
    """Launch without a wrapper: what eager calls do."""
    return kernel


def rows_of(x: Tensor) -> Rows | None:
    """The leading dimensions of x [..., D] as three nested ones, or None where their strides need more."""
    if x.is_contiguous():
        return 1, 1, x.shape[-1], 0, 0, 1
    merged: list[tuple[int, int]] = []  # (size, stride), innermost first
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1] = (merged[-1][0] * size, merged[-1][1])
        else:
            merged.append((size, stride))
    if len(merged) > 3:
        return None
    if len(merged) <= 1:
        return 1, 1, merged[0][1] if merged else 0, 0, 0, x.stride(-1)
    while len(merged) < 3:
        merged.append((1, 0))
    (n2, s2), (n1, s1), (_, s0) = merged
    return n1, n2, s0, s1, s2, x.stride(-1)


def specialised(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """What Triton compiles for: per number whether it is 1, a multiple of 16, or neither."""
    return tuple(1 if n == 1 else 16 if n % 16 == 0 else 0 for n in numbers)


def reach(x: Tensor) -> int:
    """The largest offset, in elements, at which x has data."""
    if x.is_contiguous():
        return x.numel()
    return sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def unreachable(*tensors: Tensor) -> str:
    """Say why a kernel cannot address these tensors; "" when it can."""
    for x in tensors:
        if x.numel() > MAX_OFFSET or reach(x) > MAX_OFFSET:
            return "a tensor is too large for 32-bit indexing"
        if x.data_ptr() % ALIGNMENT:
            return f"a tensor does not start at a multiple of {ALIGNMENT} bytes"
    return ""


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n (at least 1)."""
    return 1 << max(n - 1, 0).bit_length()
