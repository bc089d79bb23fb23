"""Checks on our toggles: values that are refused, and requests that nothing honours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..hook.running import VARIABLE
from ..nearest import nearest
from ..profiles import FAMILIES
from .context import Context
from .registry import Finding, finding

_SWITCHES = ("FORCE_EAGER_ATTENTION", "AMD_OPS_STRICT")
_LISTS = {
    "AMD_OPS_TIERS": ("aiter", "triton", "torch", "eager"),
    "AMD_OPS_TRITON_PROVIDERS": ("ours", "aiter", "liger"),
}
"""Comma lists, and the names that may stand in them."""


def values(c: Context) -> Iterator[Finding]:
    """What amd_ops would refuse at import; the rules are those of its documentation."""
    environ = c.machine.environ
    for names, accepted in ((tuple(FAMILIES), ("0", "1", "auto")), (_SWITCHES, ("0", "1"))):
        for name in names:
            if environ.get(name, accepted[0]) not in accepted:
                yield finding(
                    "toggle-value", f"{name}={environ[name]}", advice=f"set {', '.join(accepted)}, or unset it"
                )
    rows = environ.get("PRESHUFFLE_M_THRESH", "0")
    if not rows.lstrip("-").isdigit():
        yield finding("toggle-value", f"PRESHUFFLE_M_THRESH={rows}", advice="set a whole number of rows, or unset it")
    for name, names in _LISTS.items():
        for part in environ.get(name, names[0]).split(","):
            if part.strip() not in names:
                near = nearest(part.strip(), names)
                hint = f"; did you mean {near}?" if near else ""
                yield finding("toggle-value", f"{name} names {part.strip()!r}{hint}", advice=f"use {', '.join(names)}")
    yield from _profile(environ.get("AMD_OPS", "off"))


def _profile(value: str) -> Iterator[Finding]:
    if value in ("off", "auto"):
        return
    try:
        found = json.loads(Path(value).read_bytes())
        problem = None if isinstance(found, dict) and isinstance(found.get("toggles"), dict) else "it is no profile"
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem is not None:
        advice = "set AMD_OPS to off, auto or the path of a profile file"
        yield finding("toggle-value", f"AMD_OPS={value}: {problem}", advice=advice)


def honoured(c: Context) -> Iterator[Finding]:
    """Requests without an overlay, without a GPU, or without effect on this GPU."""
    asked = c.asked()
    if not asked:
        return
    shown = ", ".join(f"{name}={value}" for name, value in sorted(asked.items()))
    if c.status is not None and c.status.mode is None and VARIABLE not in c.machine.environ:
        yield finding("toggle-without-overlay", shown, f"state {c.status.state.value} in {c.status.target.package}")
    kernels = {name for name in asked if name not in ("AMD_OPS", "USE_FUSED_PROJECTIONS")}
    if kernels and not c.gpus:
        yield finding("toggle-without-gpu", shown)
    archs = {one.arch for one in c.gpus}
    if asked.get("USE_AITER_GEMM") == "1" and archs and "gfx950" not in archs:
        yield finding(
            "toggle-ineffective", f"USE_AITER_GEMM=1 on {', '.join(sorted(archs))}: no tuned bf16 row ships for it"
        )
    if asked.get("USE_PRESHUFFLE") == "1":
        yield finding(
            "toggle-ineffective", "USE_PRESHUFFLE=1: no tuned bf16 row for shuffled weights ships for any GPU"
        )


CHECKS = (values, honoured)
