"""How the contract tests call an op and learn which tier and which kernel answered."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import amd_ops
from tests.doubles.aiter import Call, Double

BF16 = torch.bfloat16
VERSIONS = ("v0.1.5.post4", "v0.1.7.post3", "v0.1.9.post1", "v0.1.16", "v0.1.20.post1", "v0.1.22")
GPUS = {"gfx942": 304, "gfx950": 256}
TARGETS = [(version, "gfx942") for version in VERSIONS] + [("v0.1.9.post1", "gfx950"), ("v0.1.20.post1", "gfx950")]
PRIMARY = [target for target in TARGETS if target[0] in ("v0.1.9.post1", "v0.1.20.post1")]
ON: dict[str, object] = {"use_aiter_attention": 1, "use_aiter_gemm": 1, "use_optimized_ops": 1}


def rand(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape).to(dtype)


@dataclass
class Gpu:
    """A fake GPU with aiter installed; every family of amd_ops asked for, strictly."""

    double: Double

    @property
    def version(self) -> str:
        return self.double.version

    @property
    def has_sinks(self) -> bool:
        return "sink_ptr" in self.double.catalog.ops["mha_fwd"]["schema"]

    @property
    def has_gemma_norm(self) -> bool:
        return "gemma_norm" in str(self.double.catalog.functions)

    def right(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Call ``op`` twice, whatever tier runs, and return the second result."""
        with amd_ops.override(strict=0), warnings.catch_warnings():
            warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
            getattr(amd_ops, op)(*args, **kwargs)
            return getattr(amd_ops, op)(*args, **kwargs)

    def takes(self, op: str, *args: Any, **kwargs: Any) -> tuple[Any, list[Call]]:
        """Call ``op`` twice; the second call (no probe any more) must run in tier aiter: its result and kernels."""
        function = getattr(amd_ops, op)
        function(*args, **kwargs)
        before = amd_ops.report().calls(op, "aiter")
        self.double.clear()
        result = function(*args, **kwargs)
        assert amd_ops.report().calls(op, "aiter") == before + 1, f"{op} left tier aiter:\n{amd_ops.report()}"
        kernels = [call for call in self.double.calls if call.kind == "op"]
        assert len(kernels) == 1, f"{op} launched {[call.name for call in kernels]} in one call"
        return result, kernels

    def declines(self, op: str, *args: Any, strict_error: bool = True, **kwargs: Any) -> tuple[Any, str]:
        """Call ``op``: tier aiter must decline with a reason, say so once, and be an error in strict mode."""
        function = getattr(amd_ops, op)
        if strict_error:
            with pytest.raises(amd_ops.DeclinedError, match=f"{op}.*aiter"):
                function(*args, **kwargs)
        with amd_ops.override(strict=0), warnings.catch_warnings():
            warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
            amd_ops.reset_counters()
            self.double.clear()
            result = function(*args, **kwargs)
            ran = amd_ops.report().calls(op, "aiter")
            reasons = declined(op)
        assert ran == 0, f"{op} ran in tier aiter"
        assert reasons, f"{op} gave no reason:\n{amd_ops.report()}"
        return result, reasons[0]


def declined(op: str, tier: str = "aiter") -> list[str]:
    """The reasons that ``tier`` gave for ``op`` so far."""
    for row in amd_ops.report().as_dict()["ops"]:
        if row["op"] == op:
            return [entry["reason"] for found in row["tiers"] if found["tier"] == tier for entry in found["declined"]]
    return []
