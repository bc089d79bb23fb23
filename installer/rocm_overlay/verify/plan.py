"""Which runs are made: toggle sets x tiers, and the files each worker process is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError

SINGLE = ("USE_FUSED_PROJECTIONS", "USE_OPTIMIZED_OPS", "USE_AITER_ATTENTION", "USE_AITER_GEMM")
ACCEPTED = (*SINGLE, "USE_PRESHUFFLE", "PRESHUFFLE_M_THRESH", "USE_FUSED_CROSS_ENTROPY", "FORCE_EAGER_ATTENTION")
TIERS = ("torch", "eager", "triton", "aiter")
ANY = "any"  # whatever settings of its own a run chooses among all tiers
# A tier alone could not run a model whose other ops it lacks: below it the tiers that always work take over.
WITH_FALLBACK = {
    "eager": "eager",
    "torch": "torch,eager",
    "triton": "triton,torch,eager",
    "aiter": "aiter,torch,eager",
    "any": "aiter,triton,torch,eager",
}
DTYPES = ("float32", "bfloat16", "float16")
# What is run unless --cases says otherwise: inference. A kind of model takes those that are for it.
CASES = (
    "forward", "prefill", "decode", "chunked", "padded", "padded-encoder", "packed", "greedy", "greedy-left-padded",
    "generate", "generate-beam", "static-cache", "sliding-cache", "quantised-cache", "beam", "sampling", "rounding",
    "updated-weights", "hooks", "adapter", "hidden-states", "hidden-states-of", "attentions", "attentions-of",
)  # fmt: skip
# They need the memory of gradients, or a compiler.
MORE = ("training-step", "training-step-of", "padded-training-step", "gradient-checkpointing", "compiled")
QUICK = ("forward", "prefill", "decode", "padded", "padded-encoder", "greedy", "generate")
IMPLEMENTATIONS = ("sdpa", "eager")


@dataclass(frozen=True)
class Run:
    """One toggle set on one tier. ``settings`` are keywords of ``amd_ops.override``; off must be bit-equal to stock."""

    label: str
    tier: str
    toggles: dict[str, str]
    limits: dict[str, str] = field(default_factory=dict)  # more keywords: ``stock`` and ``op_tiers``

    @property
    def id(self) -> str:
        """A name that is unique in a plan."""
        return self.label if self.tier == "off" else f"{self.label}/{self.tier}"

    @property
    def settings(self) -> dict[str, str]:
        """Keywords for ``amd_ops.override``."""
        return {
            **{name.lower(): value for name, value in self.toggles.items()},
            **({} if self.tier == "off" else {"tiers": WITH_FALLBACK[self.tier]}),
            **self.limits,
        }

    def as_json(self) -> dict[str, Any]:
        """Return plain values for a worker's job."""
        names = ("id", "label", "tier", "toggles", "settings")
        return {name: getattr(self, name) for name in names}


def parse_toggles(text: str) -> dict[str, str]:
    """Read one toggle set: ``all``, ``off``, or a comma list of ``NAME`` (1) and ``NAME=VALUE``."""
    if text == "off":
        return {}
    if text == "all":
        return dict.fromkeys(SINGLE, "1")
    found = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name.upper() not in ACCEPTED:
            message = f"--toggles {text!r} names {name!r}, which is no toggle"
            remedy = f"use off, all, or a comma list of {', '.join(ACCEPTED)}, each with an optional =VALUE"
            raise UsageError("bad-toggles", message, remedy=remedy)
        found[name.upper()] = value or "1"
    return found


def parse_tiers(text: str | None) -> list[str]:
    """Read a comma list of tiers; all of them by default."""
    if text is None:
        return list(TIERS)
    tiers = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [tier for tier in tiers if tier not in TIERS]
    if unknown or not tiers:
        message = (
            f"--tiers {text!r} {'names ' + repr(unknown[0]) + ', which is no tier' if unknown else 'names no tier'}"
        )
        raise UsageError("bad-tiers", message, remedy=f"use a comma list of {', '.join(TIERS)}")
    return list(dict.fromkeys(tiers))


def parse_cases(text: str | None) -> tuple[str, ...]:
    """Read ``--cases``: ``quick``, ``default``, ``all``, or a comma list of names."""
    if text is None or text == "default":
        return CASES
    if text in ("quick", "all"):
        return QUICK if text == "quick" else CASES + MORE
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in chosen if name not in CASES + MORE]
    if unknown or not chosen:
        message = (
            f"--cases {text!r} {'names ' + repr(unknown[0]) + ', which is no case' if unknown else 'names no case'}"
        )
        remedy = f"use quick, default, all, or a comma list of {', '.join(CASES + MORE)}"
        raise UsageError("bad-cases", message, remedy=remedy)
    return chosen


def parse_dtypes(text: str) -> tuple[str, ...]:
    """Read a comma list of dtypes."""
    return tuple(dict.fromkeys(check_dtype(part.strip()) for part in text.split(",")))


def plan_runs(tiers: Sequence[str], toggle_sets: Sequence[str]) -> list[Run]:
    """Return the runs: off first, then every tier with every toggle set (each toggle alone and all, by default)."""
    sets = {text: parse_toggles(text) for text in toggle_sets} or {
        **{name: {name: "1"} for name in SINGLE},
        "all": parse_toggles("all"),
    }
    runs = [Run("off", "off", {})]
    return runs + [Run(label, tier, toggles) for tier in tiers for label, toggles in sets.items() if toggles]


def check_dtype(dtype: str) -> str:
    """Return ``dtype`` when it is one that the tolerance table knows."""
    if dtype not in DTYPES:
        raise UsageError("bad-dtype", f"--dtype {dtype!r} is not accepted", remedy=f"use one of {', '.join(DTYPES)}")
    return dtype
