"""``python -m rocm_overlay.tune``: the same as `overlay tune`."""

from __future__ import annotations

import sys

from rocm_overlay.app import run

sys.exit(run(["tune", *sys.argv[1:]]))
