"""What `overlay env` prints. The names are the public interface of amd_ops, which is not imported: it needs torch."""

from __future__ import annotations

FAMILIES = ("USE_AITER_ATTENTION", "USE_AITER_GEMM", "USE_OPTIMIZED_OPS", "USE_FUSED_PROJECTIONS")


def assignments(profile: str) -> dict[str, str | None]:
    """Return the variables of a profile; None stands for a variable that has to be unset."""
    if profile == "off":
        return {"AMD_OPS": "off", **dict.fromkeys(FAMILIES, "0"), "USE_PRESHUFFLE": "0"}
    if profile == "auto":
        return {"AMD_OPS": "auto", **dict.fromkeys(FAMILIES, None), "USE_PRESHUFFLE": None}
    return {"AMD_OPS": "off", **dict.fromkeys(FAMILIES, "1"), "USE_PRESHUFFLE": "auto"}
