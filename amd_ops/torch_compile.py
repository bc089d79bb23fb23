"""Ops under torch.compile: an opaque custom op for attention and GEMMs where a foreign kernel may run, the plain torch
formula for everything else.

A compiler fuses norms, rotations, activations and adds into one another better than any kernel that it cannot look
into, so a graph holds their formulas whatever the tiers are. For the other two, which of the two forms a graph holds is
settled while it is traced, by asking the op's dispatch once. An opaque op (``torch.ops.amd_ops.<name>``) runs the whole
dispatch at run time: checks, the probe of a new variant, declines and counters are those of eager calls, so no shape
needs a graph of its own.

A graph is traced anew when the toggles change: it carries a guard on :attr:`State.settings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import toggles
from .dispatch import Op

Formula = Callable[..., Any]
_FOREIGN = ("aiter", "triton")


class State:
    """What graphs are guarded on. Texts are compared by value, so equal settings share their graphs."""

    settings = ""


class Traced(NamedTuple):
    """``call`` computes inside a trace; ``opaque`` tells whether the op would be the custom op there."""

    call: Formula
    opaque: Callable[[], bool]


_library: torch.library.Library | None = None
_installs = 0


def traced(
    op: Op,
    schema: str,
    formula: Formula,
    like: Callable[..., Any],
    arrange: Callable[..., tuple[Any, ...]] | None = None,
) -> Traced:
    """Return what the public function of ``op`` calls while it is traced, with the positional arguments of its tiers.

    ``schema``: "(Tensor x, ...) -> Tensor", without a name. ``formula``: the torch tier. ``like(*args)``: empty results
    of the right shapes, dtypes and strides; an opaque call lays its results out in the same way. ``arrange`` turns the
    schema's arguments into those of the tiers, where the two differ.
    """

    def opaque() -> bool:
        """Run outside the trace: its answer is a constant of the graph."""
        live = any(op.can(tier) for tier in _FOREIGN if tier in op.tallies)
        if live:
            _define(op, schema, like, arrange)
        return live

    opaque._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def call(*args: Any) -> Any:
        if State.settings == "" or needs_autograd(args) or not opaque():
            return formula(*args)
        return getattr(torch.ops.amd_ops, op.name)(*args)

    return Traced(call, opaque)


def needs_autograd(args: tuple[Any, ...]) -> bool:
    """Return True where a graph must keep the formula: for gradients, and for autocast, which casts inside it."""
    for arg in args:
        if isinstance(arg, Tensor):
            if torch.is_autocast_enabled(arg.device.type):
                return True
            if arg.requires_grad and torch.is_grad_enabled():
                return True
    return False


def _define(op: Op, schema: str, like: Callable[..., Any], arrange: Callable[..., tuple[Any, ...]] | None) -> None:
    """Register the custom op of ``op`` once per process: its whole dispatch runs when a graph runs."""

    def run(*args: Any) -> Any:
        op.calls += 1
        result = op.call(*(args if arrange is None else arrange(*args)))
        want = like(*(_shape_of(arg) for arg in args))
        if isinstance(result, tuple):
            return tuple(laid_out(part, shape) for part, shape in zip(result, want, strict=True))
        return laid_out(result, want)

    define(op.name, schema, run, like)


def define(
    name: str,
    schema: str,
    run: Callable[..., Any],
    like: Callable[..., Any],
    autograd: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
) -> None:
    """Register ``torch.ops.amd_ops.<name>`` once per process: an implementation for any device, a fake, and its
    (backward, setup_context) for autograd where it has one.
    """
    global _library
    if _library is None:
        _library = torch.library.Library("amd_ops", "DEF")  # type: ignore[no-untyped-call]
    if hasattr(torch.ops.amd_ops, name):
        return
    _library.define(name + schema)  # type: ignore[no-untyped-call]
    _library.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"amd_ops::{name}", like, lib=_library)
    if autograd is not None:
        backward, remember = autograd
        torch.library.register_autograd(f"amd_ops::{name}", backward, setup_context=remember, lib=_library)


def _shape_of(arg: Any) -> Any:
    """A tensor without memory, so that asking for the layout of the result allocates nothing."""
    if not isinstance(arg, Tensor):
        return arg
    return torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device="meta")


def laid_out(result: Tensor, want: Tensor) -> Tensor:
    """Return ``result`` with the strides of ``want``; strides of dimensions of one element do not count."""
    pairs = zip(result.shape, result.stride(), want.stride(), strict=True)
    if all(size == 1 or own == other for size, own, other in pairs):
        return result
    return torch.empty_strided(result.shape, want.stride(), dtype=result.dtype, device=result.device).copy_(result)


def _follow() -> None:
    State.settings = f"{_installs} {toggles.settings()}"


def _count() -> None:
    global _installs
    _installs += 1


toggles.when_settings_change(_follow)
toggles.when_refreshed(_count)
