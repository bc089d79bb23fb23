"""Attention through aiter's own Triton kernel, where its CK and assembly kernels do not run. Inference only.

Facts of v0.1.5 to v0.1.20.post1 and of the main branch of 2026-08: causality is aligned to the bottom right; windows
exist from v0.1.12 on and bound the past alone; sinks exist from v0.1.8 on; there is no soft cap; the cut of the kernel
comes from a file per chip, which exists for few chips, or (from v0.1.5 on) from the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...device import Device
from ...dispatch import Candidate
from .. import Unusable
from ..probing import needs_grad
from .attention import Flash, settled
from .library import module_of, triton_function

ARCHES = ("gfx90a", "gfx11", "gfx12")
"""Beginnings of the names of the chips that have no CK or assembly attention here and that Triton compiles for."""

CUT = {
    "BLOCK_M": 64,
    "BLOCK_N": 32,
    "PRELOAD_V": False,
    "waves_per_eu": 1,
    "num_warps": 8,
    "num_ctas": 1,
    "num_stages": 1,
}
"""For chips without a file of cuts. Compiled for gfx1100, gfx1201 and gfx90a it spills nothing up to head_dim 128, and
takes 32 KiB of shared memory at 256 (docs/triton.md). Not timed.
"""


def make(reference: Callable[..., Any], found: Device) -> Candidate:
    """Return the candidate, or raise Unusable where this aiter has no Triton attention or no cut of it for the chip."""
    options = ("softmax_scale", "causal", "window_size")
    dense, names = triton_function("flash_attn_func", ("q", "k", "v"), *options)
    lengths = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    packed, packed_names = triton_function("flash_attn_varlen_func", ("q", "k", "v", *lengths), *options)
    both = set(names) & set(packed_names)
    flash = TritonFlash(dense, packed, "sink" in both, False, found.type)
    if not _has_cut(found.arch):
        if "config" not in both:
            raise Unusable(f"this aiter's Triton attention has no cut for {found.arch}, nor takes one")
        flash.extra = {"config": CUT}
    return flash.candidate(reference)


def _has_cut(arch: str) -> bool:
    """Whether aiter ships a cut of its kernel for this chip: without one its functions raise."""
    home = getattr(module_of("aiter.ops.triton.utils.core"), "AITER_TRITON_CONFIGS_PATH", None)
    return home is not None and (Path(home) / f"{arch}-MHA-DEFAULT.json").is_file()


class TritonFlash(Flash):
    """The Triton attention of one aiter: its limits and the names of its arguments."""

    name = "aiter's Triton attention"
    sink_argument = "sink"

    def check(self, *args: Any) -> str:
        """Gradients first: there is a backward, which no one here has proved."""
        q, k, v, sinks = args[0], args[1], args[2], args[9]
        if needs_grad(q, k, v) if sinks is None else needs_grad(q, k, v, sinks):
            return f"a gradient is needed and {self.name} is used for inference only"
        return super().check(*args)

    def sizes(self, size: int, value_size: int) -> str:
        """Values narrower than keys are taken where both parts are powers of two, wider ones never."""
        reason = super().sizes(size, value_size)
        rest = size - value_size
        if reason or rest == 0:
            return reason
        if min(value_size, rest) < 16 or value_size & (value_size - 1) or rest & (rest - 1):
            return f"head_dim {size}/{value_size}: {self.name} takes equal sizes, or two powers of two from 16 on"
        return ""

    def window(self, window: int | None, causal: bool, rows: int) -> tuple[int, int]:
        """Only the past can be bounded; a bound on the future is an error, and causality or one row implies it."""
        return (-1, -1) if window is None else (window - 1, -1)

    def lost(self, args: tuple[Any, ...]) -> str:
        """A window of one key is a bound of zero, which the kernel takes for none."""
        _, _, window = settled(args)
        return f"{self.name} takes a window of one key for none" if window == 1 else ""
