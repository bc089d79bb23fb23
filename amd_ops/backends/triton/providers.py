"""Whose Triton kernels serve an op: ours, or where AMD_OPS_TRITON_PROVIDERS says so, those of aiter or of liger-kernel.

A provider is a maker per op, ``make(op, reference, target) -> Candidate``, or raises Unusable with the reason. All are
held to one contract: a check with a reason, a probe per variant against the eager formula, no write to an input.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...dispatch import Candidate, Offered, Refusal
from .. import attempt
from .target import Target

_HERE = __package__
_AITER = f"{__package__.rpartition('.')[0]}.aiter.triton_ops"

HOMES: dict[str, dict[str, str]] = {
    "ours": {
        "rms_norm": f"{_HERE}.norm",
        "add_rms_norm": f"{_HERE}.norm",
        "apply_rope": f"{_HERE}.rope",
        "qk_norm_rope": f"{_HERE}.qk_rope",
        "rope_into_cache": f"{_HERE}.qk_rope",
        "join_rope": f"{_HERE}.latent",
        "sink_attention": f"{_HERE}.sink_attention",
        "silu_and_mul": f"{_HERE}.gate",
        "gelu_and_mul": f"{_HERE}.gate",
        "gelu_tanh_and_mul": f"{_HERE}.gate",
        "softmax_top_k": f"{_HERE}.experts",
        "moe": f"{_HERE}.experts",
        "clamped_moe": f"{_HERE}.experts",
        "top_k_softmax": f"{_HERE}.router",
        "grouped_top_k": f"{_HERE}.router",
        "router_logits": f"{_HERE}.router",
        "sigmoid_gate": f"{_HERE}.gating",
        "add_shared": f"{_HERE}.gating",
        "conv_step": f"{_HERE}.delta",
        "delta_step": f"{_HERE}.delta",
        "gated_rms_norm": f"{_HERE}.delta",
        "linear_cross_entropy": f"{_HERE}.cross_entropy",
    },
    "aiter": dict.fromkeys(("rms_norm", "add_rms_norm", "apply_rope", "silu_and_mul"), _AITER),
    "liger": dict.fromkeys(
        ("rms_norm", "add_rms_norm", "apply_rope", "silu_and_mul", "gelu_tanh_and_mul"), f"{_HERE}.liger"
    ),
}
"""Provider -> op -> the module whose ``make`` serves it."""

_made: dict[tuple[str, str], Offered] = {}


def offered(provider: str, op: str, reference: Callable[..., Any], target: Target) -> Offered:
    """Return what ``provider`` has for ``op``, made once: a candidate, or why it has none."""
    key = provider, op
    if key not in _made:
        _made[key] = _make(provider, op, reference, target)
    return _made[key]


def _make(provider: str, op: str, reference: Callable[..., Any], target: Target) -> Offered:
    name = "" if provider == "ours" else provider
    home = HOMES[provider].get(op)
    if home is None:
        return Refusal(f"{provider} has no kernel for it", provider=name)
    made: Candidate | str = attempt(lambda: importlib.import_module(home).make(op, reference, target))
    if isinstance(made, str):  # whoever lists a provider asks for it, so to have none of its kernels is told
        return Refusal(made, unmet=True, provider=name)
    return replace(made, provider=name)


def forget() -> None:
    """Drop every candidate and with it its verdicts."""
    _made.clear()
