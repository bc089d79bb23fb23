"""Tier aiter against the real Python layer of a checkout, where one is at hand (see docs/aiter-real-layer.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = "OVERLAY_TEST_AITER"
SCRIPT = Path(__file__).with_name("real_layer.py")


def test_every_call_fits_the_real_signatures() -> None:
    checkout = os.environ.get(VARIABLE)
    if not checkout:
        pytest.skip(f"{VARIABLE} names no aiter checkout: none is shipped or downloaded")
    done = subprocess.run([sys.executable, str(SCRIPT), checkout], capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 26, done.stderr
    for row in rows:
        old = any("this aiter" in reason for reason in row["declined"])
        assert (row["tier"] == "aiter" and row["kernels"] and row["declined"] == []) or old, row
        assert row["worst_difference"] <= 0.04, row
