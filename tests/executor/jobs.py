"""Functions and a worker that jobs in these tests call, here and on a Ray cluster."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rocm_overlay.errors import UsageError


def double(number: int) -> dict[str, Any]:
    return {"ok": True, "value": 2 * number, "pid": os.getpid()}


def wait(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {"ok": True, "pid": os.getpid()}


def refuse(text: str) -> dict[str, Any]:
    raise UsageError("refused", text, remedy="ask for something else", paths=["a"])


def die_once(mark: Path) -> dict[str, Any]:
    if not mark.exists():
        mark.write_text("")
        os._exit(9)
    return {"ok": True}
