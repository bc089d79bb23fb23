"""How many kernels a piece of work launches, counted in torch's dispatcher: no GPU is needed.

Views and metadata ops launch nothing and are left out. ``once`` counts one call of an op of ours as one, whatever its
tier is made of: that is what it launches where a fused kernel answers it. ``raw`` counts every aten op.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = frozenset(
    """
    view _unsafe_view transpose t unsqueeze squeeze slice select expand split split_with_sizes alias detach lift_fresh
    permute empty empty_like new_empty empty_strided as_strided chunk unbind reshape is_same_size is_set_to
    """.split()  # noqa: SIM905 - a table of words reads better than a column of strings
)


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.once = self.raw = self.inside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ not in VIEWS:
            self.raw += 1
            self.once += not self.inside
        return func(*args, **(kwargs or {}))

    def as_one(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap an op's call so that what happens inside counts once."""

        def counted(*args: Any) -> Any:
            self.once += not self.inside
            self.inside += 1
            try:
                return call(*args)
            finally:
                self.inside -= 1

        return counted


def count(run: Callable[[], object]) -> dict[str, int]:
    """Run once and return ``{"once": ..., "raw": ...}``. Ops must be bound before (call ``run`` once uncounted)."""
    mode = _Count()
    with wrapped_ops(mode.as_one), mode:
        run()
    return {"once": mode.once, "raw": mode.raw}


@contextlib.contextmanager
def wrapped_ops(wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put ``wrap(name, call)`` in the place of every bound op of ours; stock processes have none."""
    amd_ops = sys.modules.get("amd_ops")
    ours = [op for op in amd_ops.dispatch.ops.values() if isinstance(op, amd_ops.dispatch.Op)] if amd_ops else []
    bound = {op: op.call for op in ours}
    for op, call in bound.items():
        op.call = wrap(op.name, call)
    try:
        yield
    finally:
        for op, call in bound.items():
            op.call = call
