"""The tuned GEMM and the table it reads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import device, toggles
from ...dispatch import Candidate
from ...gemm_tables import GemmTable, ensure_merged_table
from .. import Unusable, shuffled
from ..probing import apart, disagreement, made_up, unusable
from ..shuffled import LAYOUT, Shuffle, Shuffled
from .library import HALF, expect, function_of

_gemm_table: GemmTable | None = None


def gemm_table() -> GemmTable | None:
    """Return which tuning table aiter's GEMM reads, None while nothing has asked for that GEMM."""
    return _gemm_table


def _settle_gemm_table() -> None:
    """Put the merged table in place. Once per process: aiter's loader reads the variable at its import and never
    again.
    """
    global _gemm_table
    found = device.current()
    if _gemm_table is None and found is not None:
        _gemm_table = ensure_merged_table(found.arch, found.cu_count)


def shuffler() -> Shuffle:
    """Return aiter's function that copies a weight into the shuffled layout."""
    function, names = function_of("shuffle_weight", "aiter.ops.shuffle")
    expect("shuffle_weight", names, ("x", "layout"))
    return lambda weight: function(weight, layout=LAYOUT)


def knows_shuffled() -> str:
    """Return "" unless this aiter cannot shuffle, or its GEMM surely does not look at the mark of a shuffled weight.

    Older ones multiply it as if it were plain. Their lookup has no ``bpreshuffle`` in its key: that is how one knows
    without a copy. A newer aiter may look up otherwise: there the probe, which compares numbers, decides.
    """
    try:
        shuffler()
        function_of("gemm_a16w16", "aiter.tuned_gemm")
    except Unusable as reason:
        return str(reason)
    try:
        _, names = function_of("get_GEMM_A16W16_config", "aiter.tuned_gemm")
    except Unusable:
        return ""
    return "" if "bpreshuffle" in names else "this aiter's GEMM does not know shuffled weights"


def why_not_shuffled(weight: Tensor, arch: str) -> str:
    """Return "" when the GEMM has a kernel for the shuffled copy of ``weight`` [N, K] on ``arch``, else the reason.

    gfx942 gives any shape of the layout to hipBLASLt; elsewhere only assembly kernels read it, and without one aiter
    asserts instead of falling back.
    """
    if weight.dim() == 3:
        return ""  # experts, which fused_moe reads
    if weight.dim() != 2:
        return "the weight is not [N, K] or [E, N, K]"
    if arch != "gfx942" and (weight.shape[0] % 64 or weight.shape[1] % 64):
        return f"on {arch} N and K must be multiples of 64"
    return knows_shuffled()


def _shuffled_for(x: Tensor, weight: Tensor) -> Shuffled | None:
    """Return the copy that this call should read, None for the plain weight."""
    if not shuffled.any_kept():
        return None
    least = toggles.settings().preshuffle_m_thresh
    return None if least < 0 or x.numel() < least * x.shape[-1] else shuffled.find(weight)


def make(reference: Callable[..., Any], kind: str) -> Candidate:
    """``gemm_a16w16(A [M, K], B [N, K], bias)``. Probed with the real weight per row class: the kernel choice depends
    on all three.
    """
    _settle_gemm_table()
    function, names = function_of("gemm_a16w16", "aiter.tuned_gemm")
    expect("gemm_a16w16", names, ("A", "B", "bias"))

    def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
        if x.dtype not in HALF:
            return f"{x.dtype} is neither fp16 nor bf16"
        if weight.dtype is not x.dtype or (bias is not None and bias.dtype is not x.dtype):
            return "input, weight and bias differ in dtype"
        if weight.dim() != 2 or x.dim() < 2 or x.shape[-1] != weight.shape[1]:
            return "the shapes are not [..., K] and [N, K] with at least two dimensions"
        if weight.shape[1] % 8:
            return "K is not a multiple of 8"
        reason = unusable(kind, x, weight) if bias is None else unusable(kind, x, weight, bias)
        if reason:
            return reason
        if not weight.is_contiguous() or (bias is not None and (not bias.is_contiguous() or bias.dim() != 1)):
            return "weight or bias is not contiguous"
        return ""

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        held = _shuffled_for(x, weight)
        # Reshape here: gemm_a16w16 answers a 3-D input that it cannot view with F.linear, without saying so.
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out: Tensor = function(rows, weight if held is None else held.tagged(), bias)
        return out.view(*x.shape[:-1], weight.shape[0])

    def variant(x: Tensor, weight: Tensor, bias: Tensor | None) -> Hashable:
        count = x.numel() // x.shape[-1]
        return x.dtype, weight.shape, bias is not None, count.bit_length(), _shuffled_for(x, weight) is not None

    def compare(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
        sample = made_up((x.numel() // x.shape[-1], x.shape[-1]), x.dtype, x.device, 7)
        want = F.linear(sample, weight, bias)
        if not want.any():  # weights of zeros prove nothing
            held = _shuffled_for(x, weight)
            weight = made_up(tuple(weight.shape), weight.dtype, weight.device, 16)
            if held is not None:
                with torch.inference_mode(False):
                    weight = weight.clone()
                shuffled.keep(weight, shuffler())
            want = F.linear(sample, weight, bias)
            found = disagreement(run(sample, weight, bias), want)
            made = shuffled.find(weight)
            if made is not None:
                shuffled.drop(made)
            return found
        return disagreement(run(sample, weight, bias), want)

    def bind(x: Tensor, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor] | None:
        if x.dim() != 2 or not x.is_contiguous() or shuffled.any_kept():
            return None  # a shuffled copy is chosen call by call
        return function

    return Candidate(run, check, variant, apart(compare), bind=bind)
