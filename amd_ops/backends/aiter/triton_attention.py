"""Attention through aiter's own Triton kernel, where its CK and assembly kernels do not run. Inference only.

Facts of v0.1.5 to v0.1.22: causality is aligned to the bottom right; windows exist from v0.1.12 on and bound the past
alone; sinks exist from v0.1.8 on; there is no soft cap; the cut of the kernel comes from a file per chip, which exists
for few chips and whose place and form change from release to release, or (from v0.1.5 on) from the caller. So nothing
here looks for that file: whether aiter has a cut is learnt by calling it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...checks import OutOfMemoryError
from ...device import Device
from ...dispatch import Candidate, logger
from .attention import Flash, settled
from .library import triton_function

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
    """Return the candidate, or raise Unusable where this aiter has no Triton attention."""
    options = ("softmax_scale", "causal", "window_size")
    dense, names = triton_function("flash_attn_func", ("q", "k", "v"), *options)
    lengths = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    packed, packed_names = triton_function("flash_attn_varlen_func", ("q", "k", "v", *lengths), *options)
    both = set(names) & set(packed_names)
    return TritonFlash(dense, packed, "sink" in both, "config" in both, found.type).candidate(reference)


class TritonFlash(Flash):
    """The Triton attention of one aiter: its limits and the names of its arguments."""

    name = "aiter's Triton attention"
    sink_argument = "sink"

    def __init__(
        self, dense: Callable[..., Any], packed: Callable[..., Any], sinks: bool, takes_cut: bool, kind: str
    ) -> None:
        super().__init__(dense, packed, sinks, False, kind)
        self.takes_cut = takes_cut

    def compare(self, reference: Callable[..., Any], *args: Any) -> str:
        """Probe with aiter's own cut; where the first variant raises, as it does on a chip that aiter has no cut for,
        with ours.
        """
        try:
            reason = super().compare(reference, *args)
        except OutOfMemoryError:
            raise
        except Exception as error:
            if not self.takes_cut:
                raise
            logger.warning(
                "amd_ops: attention: aiter's own cut raised %s: %s. Ours is used.", type(error).__name__, error
            )
            self.takes_cut, self.extra = False, {"config": CUT}
            try:
                return super().compare(reference, *args)
            except Exception:
                self.takes_cut, self.extra = True, {}
                raise
        self.takes_cut = False  # one cut for all variants: what was proved with aiter's own must go on running with it
        return reason

    def untrainable(self, softcap: float | None, sinks: Tensor | None) -> str:
        """There is a backward, which no one here has proved."""
        return f"a gradient is needed and {self.name} is used for inference only"

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
