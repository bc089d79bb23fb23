"""The tests in interpreted/ belong to a process of their own: triton decides at its import whether kernels are
interpreted. test_interpreter.py starts that process; `TRITON_INTERPRET=1 pytest FILE` does for one of
them (some leave modules behind).
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
