"""What people are told: a warning names their line, a search in the report finds the tier that ran."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import amd_ops
from amd_ops import dispatch
from amd_ops.dispatch import DeclinedWarning, Op, Refusal, Tier


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """An op whose first tier was asked for and cannot run."""
    monkeypatch.setattr(dispatch, "_complained", set())
    refused = Tier("aiter", lambda settings: Refusal("no device", unmet=True), lambda settings: True)
    yield Op("toy", [refused, Tier("eager", dispatch.always(lambda x: x))])
    dispatch.ops.pop("toy", None)


def norm() -> None:
    with amd_ops.override(use_optimized_ops=True):
        amd_ops.rms_norm(torch.randn(2, 4), torch.ones(4), 1e-6)


def test_a_warning_names_the_callers_line(op: Op) -> None:
    with pytest.warns(DeclinedWarning, match="no device") as caught:
        op.call(1)
    assert caught[0].filename == __file__


def test_a_warning_looks_through_the_library_that_calls_us(op: Op) -> None:
    """As from the forward of an overlaid model, which lies in transformers."""
    model = types.ModuleType("transformers.models.mine")
    exec(compile("def forward(call):\n    return call(1)\n", "modeling_mine.py", "exec"), model.__dict__)
    with pytest.warns(DeclinedWarning) as caught:
        model.forward(op.call)
    assert caught[0].filename == __file__


def test_each_row_of_the_report_says_its_op_and_whether_it_ran() -> None:
    norm()
    lines = str(amd_ops.report()).splitlines()
    assert lines[0].startswith("amd_ops: no AMD GPU (torch ")
    rows = [line.split() for line in lines if line.startswith("rms_norm ")]
    assert len(rows) == len(amd_ops.report().content["ops"][0]["tiers"]) > 1
    assert [(row[1], row[3]) for row in rows if row[2] == "ran"] == [("torch", "1")]
    assert all(row[2] in ("ran", "-") for row in rows)


def test_a_warning_names_the_line_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "use.py"
    script.write_text(
        "import torch, amd_ops\n"
        "with amd_ops.override(use_aiter_gemm=1):\n"
        "    amd_ops.linear(torch.zeros(1, 2), torch.zeros(3, 2))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert f"{script}:3: DeclinedWarning" in done.stderr
