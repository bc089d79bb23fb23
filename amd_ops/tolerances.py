"""How far two results of one computation are apart, what they may differ by, and why: one measure, and one table by
purpose. Nothing else decides.

Standard library only, and nothing of this package: reports read it without importing torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

WHOLE_MODEL = "whole model"
"""Outputs of a model: the error of one op, once per layer, amplified by what follows (`overlay verify`, `bench`)."""
ONE_CALL = "one call"
"""One op, one layer or one module against what it replaces (`overlay qualify`, kernelize)."""
PROGRAM = "program"
"""A program of up to thirty operators, compiled or rewritten, against itself (`overlay synth`)."""
KERNEL_PROBE = "kernel probe"
"""A kernel's first answer on made-up data against the eager formula: a mean error; no element is off by PROBE_WORST
times as much. It asks whether the kernel is that formula, not how it rounds.
"""


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed difference of a tensor, relative to its largest absolute value; and why."""

    relative: float
    reason: str


@dataclass(frozen=True)
class Gap:
    """How far a result is from the one that is wanted: infinitely, where a NaN or an infinity is on one side only."""

    largest: float
    scale: float
    """The largest finite absolute value of what is wanted: single values may be near zero."""
    nan: str = ""
    """The side that has NaN values where the other has none: ``reference`` or ``candidate``."""

    def relative(self, floor: float = 0.0) -> float:
        """Return the gap over the scale, or over ``floor`` where that is more."""
        scale = max(self.scale, floor)
        return self.largest / scale if scale > 0.0 else (0.0 if self.largest == 0.0 else math.inf)


def gap(want: Any, got: Any) -> Gap:
    """Measure two arrays of one shape in double precision; numpy's and torch's are alike here."""
    absent, missing = want != want, got != got  # NaN alone differs from itself
    if bool((absent != missing).any()):
        return Gap(math.inf, 0.0, "reference" if int(absent.sum()) > int(missing.sum()) else "candidate")
    want, got = want[~absent], got[~absent]
    finite = want[abs(want) != math.inf]
    scale = float(abs(finite).max()) if len(finite) else 0.0
    apart = want != got  # equal infinities have no gap
    return Gap(float(abs(want[apart] - got[apart]).max()) if bool(apart.any()) else 0.0, scale)


BITWISE = Tolerance(0.0, "toggles off run stock's own expressions: every bit is the same")

# Of a norm's elements in half precision, on torch's tiers: another order of sums moves few over a rounding edge,
# another place of the rounding moves many (measured: 0 % against 25 %). Other kernels round where they like.
ROUNDED_OTHERWISE = 0.1

# Of logits behind a cache of 4-bit codes: a step between codes is a fifteenth of the range, so that sizes say nothing
# (measured: 0.3 of the largest in bfloat16, at a cosine of 0.994).
CODES_COSINE = 0.98

PROBE_WORST = 4.0
"""How much further than the mean error of a kernel probe one element may be off."""

WORSE_THAN_STOCK = 4.0
"""How much further than stock's own result one call's may be from double precision."""

ROW_TIMES_DEFAULT = 2.0
"""How much further than the library's own product that of a tuned row may be from the exact one: the device is asked
for both, so that there is no number of a dtype to hold it to (`overlay tune run`)."""

SMALLEST_SCALE = {ONE_CALL: 1e-6, PROGRAM: 1e-3}
"""What differences are held to where a result is smaller: nearly zero. `overlay qualify` grants no such floor."""

_SEVERAL = "several roundings of the dtype, not those of a whole model"
_THIRTY = "up to thirty operators, each of which may add a rounding of its own"
TOLERANCES: dict[tuple[str, str, str], Tolerance] = {
    (WHOLE_MODEL, "float32", "value"): Tolerance(1e-5, "sums in another order: some hundred roundings of 2**-24 each"),
    (WHOLE_MODEL, "float32", "grad"): Tolerance(
        2e-5, "a gradient sums forward and backward roundings over all positions"
    ),
    (WHOLE_MODEL, "bfloat16", "value"): Tolerance(
        6e-2, "8 bits per rounding; stock's own bf16 is up to 4e-2 from its fp32"
    ),
    (WHOLE_MODEL, "bfloat16", "grad"): Tolerance(1.5e-1, "8 bits per rounding, forward and backward"),
    (WHOLE_MODEL, "float16", "value"): Tolerance(
        1e-2, "11 bits per rounding; fused ops round fewer intermediates than stock"
    ),
    (WHOLE_MODEL, "float16", "grad"): Tolerance(3e-2, "11 bits per rounding, forward and backward"),
    (ONE_CALL, "float64", "value"): Tolerance(1e-10, _SEVERAL),
    (ONE_CALL, "float32", "value"): Tolerance(2e-5, _SEVERAL),
    (ONE_CALL, "bfloat16", "value"): Tolerance(2e-2, _SEVERAL),
    (ONE_CALL, "float16", "value"): Tolerance(4e-3, _SEVERAL),
    (PROGRAM, "float64", "value"): Tolerance(1e-9, _THIRTY),
    (PROGRAM, "float32", "value"): Tolerance(2e-4, _THIRTY),
    (PROGRAM, "bfloat16", "value"): Tolerance(5e-2, _THIRTY),
    (PROGRAM, "float16", "value"): Tolerance(1e-2, _THIRTY),
    (KERNEL_PROBE, "bfloat16", "value"): Tolerance(
        0.0125, "a kernel may round twice, or cut twice (root mean square 6e-3): 3 % off everywhere is a wrong kernel"
    ),
    (KERNEL_PROBE, "float64", "value"): Tolerance(0.002, "as for float32"),
    (KERNEL_PROBE, "float32", "value"): Tolerance(0.002, "a kernel may keep less than float32 between its steps"),
    (KERNEL_PROBE, "float16", "value"): Tolerance(0.002, "11 bits per rounding"),
}

# Chips on which aiter's kernels bring fp32 to bfloat16 by cutting bits off instead of rounding to the nearest (their
# machine code, executed: CUT_SHIFT in the mean), and the tiers that contain aiter.
CUTTING_CHIPS = ("gfx94",)
AITER_TIERS = ("aiter", "any")
CUT_SHIFT = 2.7e-3  # half of bfloat16's step 2**-7, over a mantissa in [1, 2): 2**-8 * ln 2
# An error that is evenly spread over a whole step has twice the root mean square of one spread over half a step to
# either side: what is allowed for roundings is doubled. The shifts of a whole model add up instead of averaging out,
# but a norm divides by the size of what it is given and so takes those before it away: two are left behind the last,
# its own.
CUT_FACTOR = 2.0
CUTS_BEHIND = {WHOLE_MODEL: 2, ONE_CALL: 0}


def tolerance(purpose: str, dtype: str, kind: str = "value", *, tier: str = "", arch: str = "") -> Tolerance:
    """Return the row of a purpose, a dtype name (``float32``) and ``value`` or ``grad``; `KeyError` without one.

    ``tier`` and ``arch`` (``gfx942``) are what ran, "" where that is not known: see CUTTING_CHIPS.

    Examples:
        >>> tolerance(ONE_CALL, "float16").relative
        0.004
    """
    found = TOLERANCES[purpose, dtype, kind]
    cuts = dtype == "bfloat16" and tier in AITER_TIERS and arch.startswith(CUTTING_CHIPS)
    if not cuts or purpose not in CUTS_BEHIND:
        return found
    allowed = CUT_FACTOR * found.relative + CUTS_BEHIND[purpose] * CUT_SHIFT
    return Tolerance(allowed, f"{found.reason}; aiter's kernels on {arch} cut where stock rounds")


def as_json() -> list[dict[str, Any]]:
    """Return the rows of whole models, for a report of `overlay verify`."""
    rows = [{"tier": "off", "dtype": "*", "kind": "*", "relative": 0.0, "reason": BITWISE.reason}]
    for (purpose, dtype, kind), entry in TOLERANCES.items():
        if purpose == WHOLE_MODEL:
            rows.append({"tier": "*", "dtype": dtype, "kind": kind, "relative": entry.relative, "reason": entry.reason})
    for kind in ("value", "grad"):
        cut = tolerance(WHOLE_MODEL, "bfloat16", kind, tier="aiter", arch="gfx942")
        row = {"tier": "aiter on gfx94x", "dtype": "bfloat16", "kind": kind}
        rows.append({**row, "relative": cut.relative, "reason": cut.reason})
    return rows
