"""Which overlaid modeling files this process has imported."""

from __future__ import annotations

import sys


def overlay_info() -> dict[str, str]:
    """Return {module name: "sha256:..." of the stock file it was made from} for every overlaid module imported so far.

    Reads sys.modules only: no file is opened and no lazy module is triggered.
    """
    found = {}
    for name, module in list(sys.modules.items()):
        base = getattr(module, "__dict__", {}).get("__amd_overlay__")
        if isinstance(base, str):
            found[name] = base
    return dict(sorted(found.items()))
