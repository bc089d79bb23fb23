"""Whether a model fits, told from its parameters alone."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from .runner import Setup

# Weights, activations, the packed copy of the largest matrix and the libraries' own memory, in units of the weights.
MEMORY_FACTOR = 1.3
MEMORY_BASE = 1 << 30


def check_memory(size: dict[str, Any], setup: Setup) -> None:
    """Refuse a model that cannot fit, before it is loaded."""
    factor = 3 * MEMORY_FACTOR if setup.mode == "train" else MEMORY_FACTOR
    # Ranks have a GPU each, but share the memory of a machine.
    share, processes = (setup.ranks, 1) if size["device"] == "cuda" else (1, setup.ranks)
    needed = int(size["bytes"] * factor / share) + MEMORY_BASE * processes
    if needed > size["free"]:
        raise UsageError(
            "too-large",
            f"{setup.model} has {size['parameters'] / 1e9:.2f} billion parameters: about {needed / 2**30:.1f} GiB are "
            f"needed in {setup.dtype}, {size['free'] / 2**30:.1f} GiB are free on {size['device_name']}",
            remedy="free memory, use a smaller dtype, or measure a smaller configuration",
            paths=[setup.model],
        )
