"""A verification made up for the screens: nothing here was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rocm_overlay.verify.plan import Run
from rocm_overlay.verify.target import Interpreter
from rocm_overlay.verify.workers import Results, RunResult, Setup


def _case(name: str, ok: bool = True, rel: float = 1e-7) -> dict[str, Any]:
    item = {
        "name": "logits", "problem": None, "first_token": None, "near_tie": False,
        "max_rel": rel, "max_abs": rel, "cosine": 1.0, "kl": None,
    }  # fmt: skip
    return {
        "implementation": "sdpa", "case": name, "ok": ok, "error": None, "bitwise": rel == 0, "worst": item,
        "allowed_rel": 2e-4, "tokens": None, "deviating": [] if ok else [item],
    }  # fmt: skip


def _op(name: str, tier: str, calls: int, reason: str | None = None) -> dict[str, Any]:
    declined = [{"reason": reason, "calls": 3}] if reason else []
    return {"op": name, "tiers": [{"tier": tier, "calls": calls, "declined": declined}]}


def verified() -> tuple[Setup, Results]:
    """One run of each outcome."""
    on = {"USE_AITER_ATTENTION": "1", "USE_OPTIMIZED_OPS": "1"}
    names = ("prefill", "decode")
    runs = [
        RunResult(Run("off", "off", {}), "ok", [_case(name, rel=0.0) for name in names]),
        RunResult(Run("all", "torch", on), "ok", [_case(name) for name in names], [_op("rms_norm", "torch", 24)]),
        RunResult(
            Run("all", "triton", on), "declined", [], [_op("rms_norm", "triton", 0, "no GPU with a Triton driver")]
        ),
        RunResult(Run("all", "aiter", on), "deviates", [_case("prefill"), _case("decode", ok=False, rel=0.3)]),
    ]
    interpreter = Interpreter("/usr/bin/python3", "3.11.7", "2.13.0", "4.57.6", Path("/nowhere"), None)
    setup = Setup(interpreter, Path("/models/tiny"), [], "float32", 0, 8, names, ("sdpa", "eager"))
    return setup, Results("cpu", runs=runs, compared=2)
