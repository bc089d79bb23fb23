"""Conditions that are checked at every call of a kernelized forward. When one fails the original forward runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import RegistrationError

# A guard becomes one Python expression over the guarded tensor `_t`, so that a true guard costs no call. Arithmetic on
# a shape costs more than all the rest: shapes that were right are remembered, so many at most.
_REMEMBERED = 1024


@dataclass(frozen=True)
class Guard:
    """What a kernel needs of its input at call time.

    ``argument`` names the parameter of forward that is looked at (None: the first one).
    ``dtypes`` are the dtypes it takes; ``min_rows`` and ``max_rows`` bound ``numel // shape[-1]`` (both inclusive);
    ``last_dim_multiple`` must divide ``shape[-1]``; ``no_grad`` requires that gradients are off;
    ``check(tensor) -> str | None`` is any other condition and returns the reason when it does not hold.
    """

    dtypes: tuple[torch.dtype, ...] = ()
    min_rows: int | None = None
    max_rows: int | None = None
    last_dim_multiple: int | None = None
    no_grad: bool = False
    check: Callable[[torch.Tensor], str | None] | None = None
    argument: str | None = None

    def __post_init__(self) -> None:
        for dtype in self.dtypes:
            if not isinstance(dtype, torch.dtype):
                raise RegistrationError(f"guard: {dtype!r} is not a torch.dtype")
        if self.min_rows is not None and self.max_rows is not None and self.min_rows > self.max_rows:
            raise RegistrationError(f"guard: min_rows {self.min_rows} is above max_rows {self.max_rows}")
        if self.last_dim_multiple is not None and self.last_dim_multiple < 1:
            raise RegistrationError(f"guard: last_dim_multiple must be at least 1, found {self.last_dim_multiple}")


def parse_guard(guard: Guard | dict[str, Any] | None, where: str) -> Guard | None:
    """Accept a Guard or the same as a mapping, with dtypes as names (``"bfloat16"``)."""
    if guard is None or isinstance(guard, Guard):
        return guard
    if not isinstance(guard, dict):
        raise RegistrationError(f"{where}: guard must be a Guard or a mapping, found {type(guard).__name__}")
    fields = dict(guard)
    names = fields.pop("dtypes", ())
    listed = (names,) if isinstance(names, str | torch.dtype) else tuple(names)
    # A name that torch does not have stays a string, which Guard refuses.
    dtypes: Any = tuple(getattr(torch, name, name) if isinstance(name, str) else name for name in listed)
    try:
        return Guard(dtypes=dtypes, **fields)
    except TypeError as error:
        raise RegistrationError(f"{where}: guard: {error}") from error


def expression(guard: Guard | None, backward: bool, space: dict[str, Any], tag: str) -> str:
    """Return the guard as source text over `_t`, "" when nothing is asked.

    Values the text needs are put into ``space`` under names that end in ``tag``; ``backward`` says whether the kernel
    has one.
    """
    space["_Tensor"] = torch.Tensor
    terms = []
    if guard is not None and (guard.dtypes or guard.check or _bounds_shape(guard)):
        terms.append("isinstance(_t, _Tensor)")
        if guard.dtypes:
            names = [f"_dtype{number}{tag}" for number in range(len(guard.dtypes))]
            space.update(zip(names, guard.dtypes, strict=True))
            first, *others = names
            terms.append(f"({' or '.join([f'(_y := _t.dtype) is {first}', *(f'_y is {name}' for name in others)])})")
        if _bounds_shape(guard):
            space[f"_shapes{tag}"], space[f"_fits{tag}"] = _remembering(guard)
            terms.append(f"(_t.shape in _shapes{tag} or _fits{tag}(_t))")
        if guard.check is not None:
            space[f"_check{tag}"] = guard.check
            terms.append(f"_check{tag}(_t) is None")
    if not backward or (guard is not None and guard.no_grad):
        space["_grad"] = torch.is_grad_enabled
        terms.append("not _grad()")
    return " and ".join(terms)


def _bounds_shape(guard: Guard) -> bool:
    return guard.min_rows is not None or guard.max_rows is not None or guard.last_dim_multiple is not None


def _remembering(guard: Guard) -> tuple[set[torch.Size], Callable[[torch.Tensor], bool]]:
    """Return the shapes that were found right, and the test that adds one."""
    shapes: set[torch.Size] = set()

    def fits(value: torch.Tensor) -> bool:
        if _shape_reason(guard, value):
            return False
        if not torch.compiler.is_dynamo_compiling():  # a trace guards on what it reads and must not write
            if len(shapes) >= _REMEMBERED:
                shapes.clear()
            shapes.add(value.shape)
        return True

    return shapes, fits


def _shape_reason(guard: Guard, value: torch.Tensor) -> str:
    """Say which bound a shape breaks; "" when none."""
    rows = value.numel() // max(value.shape[-1], 1) if value.dim() else 0
    if (guard.min_rows or 0) > rows or (guard.max_rows is not None and rows > guard.max_rows) or not value.dim():
        return f"{rows} rows outside {guard.min_rows or 0}..{'' if guard.max_rows is None else guard.max_rows}"
    if guard.last_dim_multiple and value.shape[-1] % guard.last_dim_multiple:
        return f"last dimension {value.shape[-1]} is no multiple of {guard.last_dim_multiple}"
    return ""


def reason(guard: Guard | None, backward: bool, value: Any) -> str:
    """Say which condition failed for a value. Only called after the expression was false, so it may be slow."""
    if guard is not None and not isinstance(value, torch.Tensor):
        return f"guarded argument is {type(value).__name__}, not a tensor"
    if guard is not None:
        if guard.dtypes and value.dtype not in guard.dtypes:
            return f"dtype {value.dtype} not in {', '.join(map(str, guard.dtypes))}"
        if _bounds_shape(guard) and (broken := _shape_reason(guard, value)):
            return broken
        found = guard.check(value) if guard.check is not None else None
        if found is not None:
            return found
    if not backward:
        return "gradients are on and the kernel has no backward"
    return "gradients are on and the guard asks for no_grad"
