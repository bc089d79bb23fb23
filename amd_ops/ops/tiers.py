"""Make an op with the tiers that ``toggle_rules.OPS`` lists for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backends import aiter
from ..backends.triton import tier as triton
from ..dispatch import Offer, Op, Tier, always
from ..toggle_rules import OPS


def make_op(name: str, toggle: str, *, torch: Offer, eager: Callable[..., Any]) -> Op:
    """Return op ``name``: the backends among its tiers that ``toggle`` asks for, then tiers torch and eager.

    ``eager`` is the plain formula: the last tier, and what the probes of the backends are compared with.
    """
    known: dict[str, Callable[[], Tier]] = {
        "aiter": lambda: Tier("aiter", aiter.offer(name, toggle, eager), aiter.wanted(toggle)),
        "triton": lambda: Tier("triton", triton.offer(name, toggle, eager), triton.wanted(toggle)),
        "torch": lambda: Tier("torch", torch),
        "eager": lambda: Tier("eager", always(eager)),
    }
    return Op(name, [known[tier]() for tier in OPS[name]])
