"""How aiter's kernels turn fp32 into bfloat16 on each chip: to the nearest, or by cutting the lower 16 bits off.

fp16 is rounded once to the nearest everywhere. A chip or family that is not in the table rounds to the nearest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FLAG = "CK_TILE_FLOAT_TO_BFLOAT16_DEFAULT=2 in aiter's build settings, read"
TRUNCATES: dict[str, dict[str, str]] = {
    "gfx942": {
        "norm": "machine code executed: 100 % of the results, residual stream included (OPUS_FP32_to_BF16_DEFAULT=2)",
        "activation": "machine code executed: silu 100 %, gelu variants up to their exponential",
        "attention": f"CK's mha_fwd and mha_varlen_fwd: {_FLAG}",
        "moe": f"CK's two stages: {_FLAG}",
    }
}
"""Chip -> family -> how that is known. Not here: the assembly attention (`how_v3_bf16_cvt`, by default to the nearest,
executed), hipBLASLt, and gfx950, whose conversion instruction rounds to the nearest (read).
"""
BIAS = 2.0**-8 * math.log(2)
"""Mean relative shift towards zero of one truncation, 2.7e-3: half of the step 2**-7 of a mantissa in [1, 2), over that
mantissa. Executed machine code: -2.5e-3 to -2.9e-3.
"""


def truncates(arch: str, family: str) -> bool:
    """Whether this family of kernels cuts bits off on this chip."""
    return family in TRUNCATES.get(arch, {})


def narrowed(x: Tensor, dtype: torch.dtype, arch: str, family: str) -> Tensor:
    """fp32 ``x`` in ``dtype`` as the kernels of a family on a chip store it."""
    if dtype is not torch.bfloat16 or not truncates(arch, family):
        return x.to(dtype)
    cut = (x.contiguous().view(torch.int32) & -65536).view(torch.float32)
    return torch.where(torch.isnan(x), x, cut).to(dtype)
