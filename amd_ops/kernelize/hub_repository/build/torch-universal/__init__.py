"""Our ops as layers of the kernels library. Needs amd_ops in the same environment: the kernels themselves live
there.
"""

from __future__ import annotations

from . import layers

__all__ = ["layers"]
