"""What difference from stock is allowed, per tier and dtype, and why. One table; nothing else in here decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed difference of a tensor, relative to its largest absolute value; and why."""

    relative: float
    reason: str


BITWISE = Tolerance(0.0, "toggles off run stock's own expressions: every bit is the same")

# Of a norm's elements in half precision, on torch's tiers: another order of sums moves few over a rounding edge,
# another place of the rounding moves many (measured: 0 % against 25 %). Other kernels round where they like.
ROUNDED_OTHERWISE = 0.1

# Of logits behind a cache of 4-bit codes: a step between codes is a fifteenth of the range, so that sizes say nothing
# (measured: 0.3 of the largest in bfloat16, at a cosine of 0.994).
CODES_COSINE = 0.98

# Keys: tier ("*": every tier without a row of its own), dtype, and "value" (logits, caches, hidden states) or "grad".
# A row holds for a whole model: the error of one op, once per layer, amplified by what follows.
TOLERANCES: dict[tuple[str, str, str], Tolerance] = {
    ("*", "float32", "value"): Tolerance(1e-5, "sums in another order: some hundred roundings of 2**-24 each"),
    ("*", "float32", "grad"): Tolerance(2e-5, "a gradient sums forward and backward roundings over all positions"),
    ("*", "bfloat16", "value"): Tolerance(6e-2, "8 bits per rounding; stock's own bf16 is up to 4e-2 from its fp32"),
    ("*", "bfloat16", "grad"): Tolerance(1.5e-1, "8 bits per rounding, forward and backward"),
    ("*", "float16", "value"): Tolerance(1e-2, "11 bits per rounding; fused ops round fewer intermediates than stock"),
    ("*", "float16", "grad"): Tolerance(3e-2, "11 bits per rounding, forward and backward"),
}


def tolerance(tier: str, dtype: str, kind: str) -> Tolerance:
    """Return the row of a tier, a dtype name (``float32``) and ``value`` or ``grad``; `KeyError` without one."""
    found = TOLERANCES.get((tier, dtype, kind))
    return found if found is not None else TOLERANCES["*", dtype, kind]


def as_json() -> list[dict[str, Any]]:
    """Return the table as rows."""
    rows = [{"tier": "off", "dtype": "*", "kind": "*", "relative": 0.0, "reason": BITWISE.reason}]
    for (tier, dtype, kind), entry in TOLERANCES.items():
        rows.append({"tier": tier, "dtype": dtype, "kind": kind, "relative": entry.relative, "reason": entry.reason})
    return rows
