"""A stand-in for AMD's aiter that runs on a CPU and is stricter than the real thing.

    with fake_aiter(version="v0.1.20.post1", arch="gfx950", cu_count=256) as double:
        ...
        assert double.kernels() == ["mha_fwd"]

It registers ``torch.ops.aiter.*`` with the dispatcher schemas of the chosen tag, refuses every call that the real
kernels would refuse or answer with garbage, computes in fp32 and rounds once, and records every call.
"""

from .catalog import versions
from .install import fake_aiter
from .state import Alteration, Call, Corruption, Double, Faults, TensorSpec, Violation

__all__ = [
    "Alteration",
    "Call",
    "Corruption",
    "Double",
    "Faults",
    "TensorSpec",
    "Violation",
    "fake_aiter",
    "versions",
]
