"""What this torch can do, asked of torch itself when a module of ours is imported: not by version, not in a forward.

An argument that is missing is left out where a tier computes the same without it; where it cannot, the tier is refused
when its op is bound, or declines, with a counted reason. Private names of torch never decide: they are looked up with
a default.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .dispatch import Candidate, Offer, Refusal


def torch_takes(op: str, argument: str) -> bool:
    """Return whether an op of torch has an argument: ``torch_takes("scaled_dot_product_attention", "enable_gqa")``."""
    packet = getattr(torch.ops.aten, op, None)
    if packet is None:
        return False
    schemas = (getattr(packet, name)._schema for name in packet.overloads())
    return any(argument == one.name for schema in schemas for one in schema.arguments)


def grouped_mm() -> Callable[..., Any] | None:
    """Return torch's GEMM over groups of rows, None where this torch has none (2.7; it became public with 2.10)."""
    found: Callable[..., Any] | None = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    return found


def tried(candidate: Candidate, trial: Callable[[], bool], reason: str) -> Offer:
    """Offer a tier of torch where ``trial`` finds that this torch computes what the tier relies on.

    Asked once, when the op is bound, on a few numbers on the CPU; ``reason`` is what a refused tier says.
    """
    answer = functools.cache(trial)
    return lambda settings: candidate if answer() else Refusal(reason)


def hides_whole_rows() -> bool:
    """Return whether SDPA answers a query that sees no key with zeros: up to torch 2.4 it is NaN."""
    q = torch.ones(1, 1, 2, 8)
    seen = torch.tensor([[True, False], [False, False]])
    with torch.inference_mode():
        return bool(F.scaled_dot_product_attention(q, q, q, attn_mask=seen)[0, 0, 1].eq(0).all())


def rounds_norms_once() -> bool:
    """Return whether F.rms_norm computes in fp32 and rounds at its end: up to torch 2.4 it rounds on the way."""
    if not hasattr(F, "rms_norm"):
        return False
    x = torch.linspace(-3.0, 5.0, 192).view(3, 64)
    with torch.inference_mode():
        want = (x.bfloat16().float() * torch.rsqrt(x.bfloat16().float().square().mean(-1, keepdim=True))).bfloat16()
        return torch.equal(F.rms_norm(x.bfloat16(), (64,), None, 0.0), want)
