"""On a GPU the ops of the tier are triton_ops: a graph holds their launches, and knows what each writes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("graph_of_ops.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: see `interpret`")
def test_a_graph_holds_one_launch_per_op_that_writes_its_results_alone() -> None:
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["launches"] == [
        ["rms_norm", ["total", "y"]],
        ["rms_norm", ["y"]],
        ["gate", ["y"]],
        ["gate_backward", ["dx"]],
        ["rope", ["k_out", "q_out"]],
        ["rms_norm_backward", ["dw", "dx"]],
        ["rope", ["k_out", "q_out"]],
    ]
    assert found["opaque"] == []
