"""The only package that knows aiter: which of its functions serve which op, what they accept, and how each is proved.

That aiter imports, or that an op is registered, says nothing about a kernel: ops are registered before anything is
built. So a function is used only when its argument names are known ones, a call only when it meets the kernels'
preconditions (several of which no kernel checks: strides, devices, missing autograd), and a variant only after one
call of it agreed with the eager formula.

Preconditions and version differences: facts of aiter v0.1.5 to v0.1.22. Arguments are chosen by name, never by
version.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ... import device, toggles
from ...dispatch import Candidate, Offer, Offered, Refusal
from ...toggles import Settings
from .. import attempt
from ..probing import NO_BACKWARD
from . import activation, attention, library, linear, moe, norm, rope, triton_attention
from .linear import gemm_table, shuffler

ARCHES = ("gfx942", "gfx950")
"""Where the kernels used here are known to run (CK, assembly and HIP); Radeon and gfx90a are not among them.

Their attention is served by aiter's own Triton kernel (triton_attention.py).
"""

CUTTING_CHIPS = ("gfx94",)
"""Where these kernels bring fp32 to bfloat16 by cutting bits off (their machine code, executed) instead of rounding."""
_CUT_OPS = ("rms_norm", "add_rms_norm", "silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "attention", "moe")

__all__ = [
    "ARCHES", "CUTTING_CHIPS", "forget", "gemm_table", "offer", "rounding_notes", "shuffler", "wanted",
    "why_not_shuffled",
]  # fmt: skip

_candidates: dict[str, Candidate | str] = {}


def rounding_notes(found: device.Device | None, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Say how many calls' bfloat16 results this chip's kernels cut: a note for the report, none where they round."""
    if found is None or not found.arch.startswith(CUTTING_CHIPS):
        return {}
    tiers = [tier for row in rows if row["op"] in _CUT_OPS for tier in row["tiers"] if tier["tier"] == "aiter"]
    calls = sum(tier["calls"] for tier in tiers)
    text = f"aiter on {found.arch}: bfloat16 is cut, not rounded; such a result is 0.27 % nearer to zero in the mean"
    return {text: calls} if calls else {}


def wanted(toggle: str) -> Callable[[Settings], bool]:
    """Return whether tier aiter was asked for by hand through ``toggle``."""
    return lambda settings: settings.asked(toggle)


def offer(op: str, toggle: str, reference: Callable[..., Any]) -> Offer:
    """Return the offer of tier aiter for ``op``: its family's ``toggle``, and the eager function that probes compare
    with.
    """

    def ask(settings: Settings) -> Offered | tuple[Offered, ...]:
        if not getattr(settings, toggle.lower()):
            return Refusal(f"{toggle} is off")
        if op == "attention" and settings.force_eager_attention:
            return Refusal("FORCE_EAGER_ATTENTION=1 skips it")
        # USE_AITER_* name aiter: no device for it breaks the request. USE_OPTIMIZED_OPS asks for the best there is.
        named = toggle.startswith("USE_AITER") and settings.asked(toggle)
        found = device.current()
        if found is None:
            return Refusal(device.why_none(), unmet=named)
        if found.arch not in ARCHES:
            refusal = Refusal(f"{found.arch} is not one of {', '.join(ARCHES)}, where aiter's kernels run", unmet=named)
            in_triton = op == "attention" and found.arch.startswith(triton_attention.ARCHES)
            return _instead(refusal, reference, found) if in_triton else refusal
        made = _offered(op, lambda: _MAKERS[op](reference, found.type))
        if isinstance(made, Candidate):
            return replace(made, passes=NO_BACKWARD)
        refusal = Refusal(made, unmet=settings.asked(toggle))
        return _instead(refusal, reference, found) if op == "attention" else refusal

    return ask


def why_not_shuffled(weight: Tensor) -> str:
    """Return "" when a shuffled copy of the bf16 ``weight`` [N, K] would be read by a kernel here, else the reason."""
    settings, found = toggles.settings(), device.current()
    if not settings.use_aiter_gemm:
        return "USE_AITER_GEMM is off, and nothing else reads shuffled weights"
    if "aiter" not in settings.tiers:
        return "AMD_OPS_TIERS leaves tier aiter out"
    if found is None:
        return device.why_none()
    if found.arch not in ARCHES:
        return f"{found.arch} is not one of {', '.join(ARCHES)}, where aiter's kernels run"
    if weight.device.type != found.type:
        return f"the weight is on {weight.device.type}, the GPU's are on {found.type}"
    return linear.why_not_shuffled(weight, found.arch)


def forget() -> None:
    """Drop every verdict, also that of the import."""
    library.forget()
    _candidates.clear()
    attention.forget()


toggles.when_refreshed(forget)


def _offered(key: str, make: Callable[[], Candidate]) -> Candidate | str:
    """Return what ``make`` makes, once, or why it cannot."""
    if key not in _candidates:
        _candidates[key] = attempt(make)
    return _candidates[key]


def _instead(refusal: Refusal, reference: Callable[..., Any], found: device.Device) -> tuple[Offered, ...]:
    """Offer aiter's Triton attention where its other kernels are refused; one of both serves the request, or none."""
    made = _offered("attention in triton", lambda: triton_attention.make(reference, found))
    if isinstance(made, Candidate):
        return replace(refusal, unmet=False), replace(made, provider="triton")
    return refusal, Refusal(made, provider="triton")


_MAKERS: dict[str, Callable[[Callable[..., Any], str], Candidate]] = {
    "attention": attention.make,
    "linear": linear.make,
    "rms_norm": norm.make_rms_norm,
    "add_rms_norm": norm.make_add_rms_norm,
    "apply_rope": rope.make,
    "moe": moe.make,
    **{
        name: functools.partial(activation.make, name) for name in ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul")
    },
}
