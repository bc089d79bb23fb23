"""`python -m rocm_overlay.synth`: the same as `overlay synth`."""

from __future__ import annotations

import sys

from rocm_overlay.app import run

sys.exit(run(["synth", *sys.argv[1:]]))
