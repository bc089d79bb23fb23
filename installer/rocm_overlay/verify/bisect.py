"""Which op and which layer make a run deviate: switches one by one, tiers op by op, modules in order of execution.

Runs inside a worker, on the model that deviates. Modules are watched through their classes: a hook on an instance
would be noticed by the code under test and change what it does.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from amd_ops.tolerances import WHOLE_MODEL, tolerance

from .compare import chip, difference

Judge = Callable[[], bool]
"""Runs the failing case under the settings of the moment; True when it is within tolerance."""


def find(model: Any, run: dict[str, Any], within: Judge, functions: dict[str, list[str]], dtype: str) -> dict[str, Any]:
    """Return the culprits of a failing run: ``switches`` (with function, op, tier) and the first ``layer``.

    ``functions``: what the guards of each switch call. Culprits are empty where toggles off deviate too: the fault is
    then outside every guard.
    """
    import amd_ops

    if run["tier"] == "off":
        return {"switches": [], "layer": None, "note": "toggles are off: the fault is outside every guard"}
    with amd_ops.override(**run["settings"]):
        active = [name for name in amd_ops.on.__slots__ if getattr(amd_ops.on, name)]
    guilty = [name for name in active if not _passes(run, within, stock=[n for n in active if n != name])]
    if not guilty:  # only together: the switch without which it passes
        guilty = [name for name in active if _passes(run, within, stock=[name])]
    found = [_culprit(name, run, within, active, functions) for name in guilty]
    layer = _first_layer(model, run, within, [n for n in active if n not in guilty], dtype) if guilty else None
    note = "" if guilty else "no single switch explains it"
    return {"switches": found, "layer": layer, "note": note}


def _passes(run: dict[str, Any], within: Judge, *, stock: list[str], op_tiers: str = "") -> bool:
    import amd_ops

    settings = _with_stock(run, stock)
    if op_tiers:
        settings["op_tiers"] = op_tiers
    with amd_ops.override(**settings):
        return within()


def _with_stock(run: dict[str, Any], stock: list[str]) -> dict[str, Any]:
    """The run's settings with more switches at stock: those that the user left there stay there."""
    own = [name for name in str(run["settings"].get("stock", "")).split(",") if name]
    return {**run["settings"], "stock": ",".join([*own, *stock])}


def _culprit(
    name: str, run: dict[str, Any], within: Judge, active: list[str], functions: dict[str, list[str]]
) -> dict[str, Any]:
    """Say which op and tier of a switch is wrong: the one that, put on its eager formula, mends the case."""
    import amd_ops
    from amd_ops import dispatch

    rest = [other for other in active if other != name]
    amd_ops.reset_counters()
    _passes(run, within, stock=rest)
    ran = {
        row["op"]: [tier["tier"] for tier in row["tiers"] if tier["calls"]]
        for row in amd_ops.report().as_dict()["ops"]
        if isinstance(dispatch.ops[row["op"]], dispatch.Op)
    }
    mended = [
        op
        for op, tiers in ran.items()
        if tiers != ["eager"] and _passes(run, within, stock=rest, op_tiers=f"{op}=eager")
    ]
    tier = ran[mended[0]][0] if len(mended) == 1 and ran[mended[0]] else None
    return {
        "switch": name,
        "functions": functions.get(name, []),
        "op": mended[0] if len(mended) == 1 else None,
        "tier": tier,
    }


@dataclass
class _Call:
    """What one module call took and gave, on the CPU."""

    path: str
    kind: str
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]


def _first_layer(model: Any, run: dict[str, Any], within: Judge, stock: list[str], dtype: str) -> dict[str, Any] | None:
    """Return the first module call whose result deviates although its inputs do not."""
    import amd_ops

    with watched(model) as want, amd_ops.override(stock=",".join(amd_ops.on.__slots__)):
        within()
    with watched(model) as got, amd_ops.override(**_with_stock(run, stock)):
        within()
    allowed = tolerance(WHOLE_MODEL, dtype, tier=run["tier"], arch=chip()).relative
    worst: tuple[float, dict[str, Any]] | None = None
    for a, b in _paired(want, got):
        error, before = _error(a.outputs, b.outputs), _error(a.inputs, b.inputs)
        found = {"path": a.path, "class": a.kind, "max_rel": error if error != float("inf") else None}
        if error > allowed >= before:
            return found
        if worst is None or error - before > worst[0]:
            worst = error - before, found
    return worst[1] if worst is not None and worst[0] > 0 else None


def _paired(want: list[_Call], got: list[_Call]) -> Iterator[tuple[_Call, _Call]]:
    """Yield the calls of both runs that belong together; a module that one of them does not call is left out."""
    known: dict[str, list[_Call]] = {}
    for call in got:
        known.setdefault(call.path, []).append(call)
    for call in want:
        if known.get(call.path):
            yield call, known[call.path].pop(0)


def _error(want: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    pairs = zip(want, got, strict=False)
    return max((difference("", a, b).max_rel for a, b in pairs if a.is_floating_point()), default=0.0)


@contextlib.contextmanager
def watched(model: Any) -> Iterator[list[_Call]]:
    """Record every call of a module whose class is defined where a modeling file defines it; innermost first."""
    calls: list[_Call] = []
    paths = {id(module): path for path, module in model.named_modules()}
    homes = {type(module).__module__ for module in model.modules()}
    homes = {home for home in homes if home.startswith("transformers.models.")}
    classes = {
        cls
        for home in homes
        for cls in vars(sys.modules[home]).values()
        if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == home and "forward" in vars(cls)
    }
    saved = {cls: cls.forward for cls in classes}
    for cls, forward in saved.items():
        cls.forward = _recording(forward, paths, calls)
    try:
        yield calls
    finally:
        for cls, forward in saved.items():
            cls.forward = forward


def _recording(forward: Callable[..., Any], paths: dict[int, str], calls: list[_Call]) -> Callable[..., Any]:
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = [_copy(value) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        result = forward(self, *args, **kwargs)
        outputs = result if isinstance(result, tuple) else (result,)
        kept = [_copy(value) for value in outputs if isinstance(value, torch.Tensor)]
        calls.append(_Call(paths.get(id(self), "?"), type(self).__name__, inputs, kept))
        return result

    recorded.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    recorded.__name__ = "forward"
    return recorded


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", copy=True)
