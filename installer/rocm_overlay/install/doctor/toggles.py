"""Checks on our toggles: values that are refused, and requests that nothing honours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...shared import rules
from ..hook.running import VARIABLE
from .context import Context
from .registry import Finding, finding

LIMITS = ("AMD_OPS_STOCK", "AMD_OPS_OP_TIERS")


def values(c: Context) -> Iterator[Finding]:
    """What amd_ops would refuse at import or warn about, by its own rules."""
    for one in rules().complaints(c.machine.environ):
        yield finding("toggle-value" if one.refused else "toggle-misspelt", one.text)


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


def overriding(c: Context) -> Iterator[Finding]:
    """Toggles that are set beside a policy or a profile, which decides only for those that are unset."""
    environ = c.machine.environ
    policy = environ.get("AMD_OPS", "off")
    if policy == "off":
        return
    wanted: dict[str, str] = {}
    if policy != "auto":
        try:
            read = rules().read_profile(Path(policy))["toggles"]
        except ValueError:
            return  # told as a refused value
        wanted = {name: rules().as_text(value) for name, value in read.items()}
    for name in (*rules().FAMILIES, *LIMITS):
        there = f"the profile has {wanted[name]}" if name in wanted else f"AMD_OPS={policy} would decide"
        if name in environ and environ[name] != wanted.get(name):
            yield finding("toggle-overrides", f"{name}={environ[name]} is set, {there}")


CHECKS = (values, honoured, overriding)
