"""Compares the tensors of two runs of one case."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..shared import tolerances


@dataclass(frozen=True)
class Difference:
    """How one tensor of a case differs from the reference."""

    name: str
    bitwise: bool
    max_abs: float
    max_rel: float  # max |a - b| over max |a|: robust where single values are near zero
    cosine: float
    problem: str | None  # what is wrong beyond numbers: shape, dtype, a NaN on one side
    first_token: tuple[int, int] | None = None  # (row, position) of the first token that differs
    near_tie: bool = False  # the reference's own scores of both tokens are within the tolerance
    share: float = 0.0  # of elements that are not equal
    kl: float | None = None  # of the distributions that logits stand for, the largest of all positions, in nats

    def as_json(self) -> dict[str, Any]:
        """Return plain values for a report; a number that is not finite, which JSON lacks, is None."""
        values = asdict(self)
        for name in ("max_abs", "max_rel", "cosine", "kl"):
            values[name] = values[name] if values[name] is not None and math.isfinite(values[name]) else None
        return values


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True when shape, dtype and every bit agree (so -0.0 differs from 0.0, and a NaN equals the same NaN)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return bool(torch.equal(a.contiguous().view(bits), b.contiguous().view(bits)))


def difference(name: str, reference: torch.Tensor, found: torch.Tensor) -> Difference:
    """Measure ``found`` against ``reference``; shapes and dtypes that differ are a problem, not a number."""
    if reference.shape != found.shape or reference.dtype != found.dtype:
        problem = f"{tuple(found.shape)} {found.dtype}, expected {tuple(reference.shape)} {reference.dtype}"
        return Difference(name, False, float("inf"), float("inf"), 0.0, problem)
    bitwise = same_bits(reference, found)
    if not reference.is_floating_point():
        first = first_difference(reference, found)
        return Difference(name, bitwise, 0.0, 0.0, 1.0, None, first)  # a distance between token ids means nothing
    a, b = reference.double().flatten(), found.double().flatten()
    kl = _divergence(reference, found) if name.startswith("logits") else None
    if bitwise:  # a process without amd_ops, and so without its measure, comes to this, too
        return Difference(name, True, 0.0, 0.0, 1.0, None, kl=kl)
    gap = tolerances().gap(a, b)
    if gap.nan:
        return Difference(name, False, float("inf"), float("inf"), 0.0, f"NaN values in the {gap.nan} only")
    keep = ~a.isnan()
    a, b = a[keep], b[keep]
    if a.numel() == 0:
        return Difference(name, bitwise, 0.0, 0.0, 1.0, None)
    share = float((a != b).double().mean())
    return Difference(name, bitwise, gap.largest, gap.relative(), _cosine(a, b), None, share=share, kl=kl)


def _divergence(reference: torch.Tensor, found: torch.Tensor) -> float | None:
    """Return the largest KL(reference || found) over all positions; None where a value is not finite."""
    if reference.numel() == 0 or not bool(reference.isfinite().all()) or not bool(found.isfinite().all()):
        return None
    p, q = reference.double().log_softmax(-1), found.double().log_softmax(-1)
    return max(0.0, float((p.exp() * (p - q)).sum(-1).max()))


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    finite = a.isfinite() & b.isfinite()
    a, b = a[finite], b[finite]
    norms = float(a.norm()) * float(b.norm())
    if norms == 0.0:
        return 1.0 if bool(torch.equal(a, b)) else 0.0
    return float(a @ b) / norms


def first_difference(reference: torch.Tensor, found: torch.Tensor) -> tuple[int, int] | None:
    """Return (row, position) of the earliest position at which any row differs; integer tensors [rows, positions]."""
    unequal = (reference != found).reshape(reference.shape[0], -1)
    if not bool(unequal.any()):
        return None
    position = int(unequal.any(0).nonzero()[0])
    return int(unequal[:, position].nonzero()[0]), position


@dataclass(frozen=True)
class Verdict:
    """One case of one variant: within tolerance or not, with the worst tensor and every tensor that deviates."""

    ok: bool
    bitwise: bool
    worst: Difference
    deviating: tuple[Difference, ...]
    allowed: float
    tokens: Difference | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {
            "ok": self.ok,
            "bitwise": self.bitwise,
            "allowed_rel": self.allowed,
            "worst": self.worst.as_json(),
            "deviating": [item.as_json() for item in self.deviating],
            "tokens": self.tokens.as_json() if self.tokens is not None else None,
        }


def chip() -> str:
    """Return the name of the GPU that amd_ops runs on in this process (``gfx942``), "" without one."""
    from amd_ops import device

    found = device.current()
    return "" if found is None else found.arch


def judge(
    reference: dict[str, torch.Tensor],
    found: dict[str, torch.Tensor],
    *,
    tier: str,
    dtype: str,
    bitwise: bool,
    arch: str | None = None,
) -> Verdict:
    """Compare all tensors of a case.

    ``bitwise`` asks for equality of every bit (toggles off). Otherwise values are held to the table, and tokens must
    be equal in float32; in half precision a token may differ where the reference itself scores both within tolerance.
    ``arch`` is the chip that ran, by default this process's: on some of them aiter's kernels round otherwise.
    """
    if arch is None:  # equality of bits asks for no tolerance: a process without amd_ops can judge it, too
        arch = "" if bitwise else chip()
    if reference.keys() != found.keys():
        missing = sorted(reference.keys() ^ found.keys())
        gone = Difference(", ".join(missing), False, float("inf"), float("inf"), 0.0, "present on one side only")
        return Verdict(False, False, gone, (gone,), 0.0)
    differences = []
    deviating = []
    diverged = _first_divergence(reference, found)
    for name in reference:
        item = difference(name, *_comparable(name, reference[name], found[name], diverged, bitwise))
        if item.name == "tokens" and item.first_token is not None and not bitwise and dtype != "float32":
            item = _near_tie(item, reference, found, _whole(tier, dtype, arch).relative)
        differences.append(item)
        if not _allowed(item, tier, dtype, bitwise, arch):
            deviating.append(item)
    numeric = [item for item in differences if not (item.name.startswith("pads") and not bitwise)]
    worst = max(numeric, key=lambda item: (item in deviating, item.max_rel))
    # Without amd_ops there is no table; that overlaid files then are stock is judged by their bits.
    allowed = 0.0 if bitwise else float(_whole(tier, dtype, arch, worst.name).relative)
    tokens = next((item for item in differences if item.name == "tokens"), None)
    same = all(item.bitwise for item in differences)
    return Verdict(not deviating, same, worst, tuple(deviating), allowed, tokens)


def _whole(tier: str, dtype: str, arch: str, name: str = "") -> Any:
    """Return what a tensor of a whole model may be off by."""
    kind = "grad" if name.startswith("grad") else "value"
    return tolerances().tolerance(tolerances().WHOLE_MODEL, dtype, kind, tier=tier, arch=arch)


def _allowed(item: Difference, tier: str, dtype: str, bitwise: bool, arch: str) -> bool:
    if bitwise:
        return item.bitwise
    if item.name.startswith("pads"):
        return True
    if item.problem is not None:
        return False
    if item.name.startswith("tokens"):
        return item.first_token is None or item.near_tie
    if item.name.startswith("codes"):  # one rounding moves a key or a value to the next of a few codes
        return item.name == "codes.tokens" or item.cosine >= float(tolerances().CODES_COSINE)
    if item.name == "drawn":  # a draw falls on the other side of an edge with any rounding of the scores
        return item.first_token is None or dtype != "float32"
    if item.name.startswith("ulps") and dtype != "float32" and tier in ("torch", "eager"):
        return item.share <= float(tolerances().ROUNDED_OTHERWISE)
    return item.max_rel <= float(_whole(tier, dtype, arch, item.name).relative)


def _first_divergence(reference: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> int | None:
    """Return the position of the first token that differs in a generation, if there is one."""
    name = next((name for name in ("tokens", "drawn", "codes.tokens") if name in reference), "")
    a, b = reference.get(name), found.get(name)
    if a is None or b is None or a.shape != b.shape:
        return None
    first = first_difference(a, b)
    return None if first is None else first[1]


def _comparable(
    name: str, a: torch.Tensor, b: torch.Tensor, diverged: int | None, bitwise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a generation's logits after the first differing token: later ones answer another prompt."""
    if diverged is None or bitwise or name not in ("logits", "codes.logits"):
        return a, b
    return a[:, : diverged + 1], b[:, : diverged + 1]


def _near_tie(
    item: Difference, reference: dict[str, torch.Tensor], found: dict[str, torch.Tensor], relative: float
) -> Difference:
    """Mark a differing token whose two candidates the reference scores within twice the tolerance."""
    logits = reference.get("logits")
    if logits is None or item.first_token is None:
        # Beam search keeps no logits per step; in half precision its scores decide.
        scores = reference.get("scores")
        return _replace_tie(item, scores is not None)
    row, position = item.first_token
    scored = logits[row, position].double()
    ours, theirs = int(found["tokens"][row, position]), int(reference["tokens"][row, position])
    gap = float((scored[theirs] - scored[ours]).abs())
    return _replace_tie(item, gap <= 2 * relative * float(scored.abs().max()))


def _replace_tie(item: Difference, near_tie: bool) -> Difference:
    return Difference(**{**asdict(item), "first_token": item.first_token, "near_tie": near_tie})
