"""How many kernels a piece of work launches, counted in torch's dispatcher: no GPU is needed.

Views and metadata ops launch nothing and are left out. ``once`` counts one call of an op of ours as the kernels (mostly
one) of the tier that answered it, aiter or triton, and as what it launched where torch did; ``raw`` counts every aten
op.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = frozenset(
    """
    view _unsafe_view transpose t unsqueeze squeeze slice select expand split split_with_sizes alias detach lift_fresh
    permute narrow promote_types empty empty_like new_empty empty_strided as_strided chunk unbind is_same_size is_set_to
    detach_
    """.split()  # noqa: SIM905 - a table of words reads better than a column of strings
)

MAY_COPY = frozenset("to contiguous flatten reshape type_as dropout resolve_conj resolve_neg".split())  # noqa: SIM905
"""Ops that launch something only where they do not give back the memory that they got."""
WITH_KERNELS = ("aiter", "triton")
"""The tiers whose answer to a call is one kernel, or as many as ``SEVERAL`` says."""
SEVERAL = {"aiter::moe": 3, "triton::moe": 2, "triton::clamped_moe": 2}
"""Sorting and two stages in aiter; two gathered products in our kernels."""


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.once = self.raw = 0
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        if name not in VIEWS and not (name in MAY_COPY and result.data_ptr() == args[0].data_ptr()):
            self.raw += 1
            self.once += 1
            self.names[name] += 1
        if name == "scaled_dot_product_attention" and _as_bool(args, kwargs or {}):
            self.raw += 1
            self.once += 1
            self.names["mask as numbers"] += 1
        return result

    def as_one(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap an op's call so that it counts once where the tier that answered it has a kernel for it."""

        def counted(*args: Any) -> Any:
            once, names, answers = self.once, self.names.copy(), _answers(name)
            result = call(*args)
            tier = next((tier for tier, calls in _answers(name).items() if calls != answers.get(tier)), "")
            if tier:
                self._replace(once, names, f"{tier}::{name}")
            return result

        return counted

    def bound(self, name: str, call: Callable[..., Any], tier: str) -> Callable[..., Any]:
        """As ``as_one``, for a call of a plan, whose tier is known."""
        if tier not in WITH_KERNELS:
            return call

        def counted(*args: Any) -> Any:
            once, names = self.once, self.names.copy()
            result = call(*args)
            self._replace(once, names, f"{tier}::{name}")
            return result

        return counted

    def _replace(self, once: int, names: Counter[str], name: str) -> None:
        """Count what a call has launched by its kernels in place of what its stand-in here has dispatched."""
        launches = SEVERAL.get(name, 1)
        self.once, self.names = once + launches, names + Counter({name: launches})


def _as_bool(args: Any, kwargs: Any) -> bool:
    """Whether SDPA gets a bool mask, of which it makes one of numbers at every call."""
    mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
    return mask is not None and "bool" in str(mask.dtype)


def _answers(name: str) -> dict[str, int]:
    """Calls that each tier with kernels has answered; a tier that serves an op without a check counts elsewhere."""
    tallies = sys.modules["amd_ops"].dispatch.ops[name].tallies.values()
    return {tally.name: tally.calls for tally in tallies if tally.tier in WITH_KERNELS}


def count(run: Callable[[], object], names: Counter[str] | None = None) -> dict[str, int]:
    """Run once and return ``{"once": ..., "raw": ...}``. Ops must be bound before (call ``run`` once uncounted).

    ``names`` receives what ``once`` counted, by name.
    """
    mode = _Count()
    with wrapped_ops(mode.as_one, mode.bound), mode:
        run()
    if names is not None:
        names.update(mode.names)
    return {"once": mode.once, "raw": mode.raw}


@contextlib.contextmanager
def wrapped_ops(
    wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]],
    bound: Callable[[str, Callable[..., Any], str], Callable[..., Any]] | None = None,
) -> Iterator[None]:
    """Put ``wrap(name, call)`` in the place of every bound op of ours; stock processes have none.

    What plans bind for themselves is wrapped by ``bound(name, call, tier)``, or as the others are.
    """
    amd_ops = sys.modules.get("amd_ops")
    if amd_ops is None:
        yield
        return
    dispatch, plans = amd_ops.dispatch, amd_ops.plans
    calls = {op: op.call for op in dispatch.ops.values() if isinstance(op, dispatch.Op)}
    binds = dispatch.Op.bound

    def bind(op: Any, *args: Any) -> Any:
        found = binds(op, *args)
        if found.tally is None:
            return found  # the chain, which is wrapped already
        run = wrap(op.name, found.run) if bound is None else bound(op.name, found.run, found.tally.tier)
        return dataclasses.replace(found, run=run)

    wrapped = {op: wrap(op.name, call) for op, call in calls.items()}
    for op, call in wrapped.items():
        op.call = call
    plans.forget()
    dispatch.Op.bound = bind
    try:
        yield
    finally:
        dispatch.Op.bound = binds
        plans.forget()
        for op, call in calls.items():
            if op.call is wrapped[op]:  # else it was bound meanwhile
                op.call = call
