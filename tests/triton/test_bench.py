"""The GPU benchmark refuses to measure what is no GPU, and its arithmetic is right where a test can see it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_triton.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_triton", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to measure")
@pytest.mark.parametrize("interpret", ["0", "1"])
def test_without_a_gpu_nothing_is_measured(interpret: str, tmp_path: Path) -> None:
    environ = {**os.environ, "TRITON_INTERPRET": interpret}
    command = [sys.executable, str(SCRIPT), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "nothing was measured" in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_bytes_are_those_that_a_kernel_must_move(bench: ModuleType) -> None:
    variants = bench.kernel_variants(4, 256, "cpu")
    row = 4 * 256 * 2
    assert {name: moved for name, (moved, _) in variants.items()} == {
        "rms_norm": 2 * row,
        "add_rms_norm": 4 * row,
        "silu_and_mul": 3 * row,
        "apply_rope": 2 * (row + row // 2 + 4 * 128 * 2),
    }
    for _, calls in variants.values():
        assert {"triton", "eager", "compile"} <= set(calls)
        ours, stock = calls["triton"](), calls["eager"]()
        for a, b in zip(*([t if isinstance(t, tuple) else (t,) for t in (ours, stock)]), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_a_share_of_the_copy_and_ratios_are_printed(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "kernel": "rms_norm",
        "rows": 1,
        "hidden": 8,
        "bytes": 5_000_000,
        "us": {"triton": [12, 10.0], "eager": [40.0]},
    }
    bench.print_kernels([row], 1000.0)
    assert "50.0%   eager 4.00x" in capsys.readouterr().out


def test_models_that_overlap_show_no_ratio(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def side(*times: float) -> list[dict[str, list[float]]]:
        return [{"prefill": [time], "decode": [time]} for time in times]

    bench.print_models({"1B": {"stock": side(10, 12), "overlaid": side(5, 6)}})
    assert "2.00x" in capsys.readouterr().out
    bench.print_models({"1B": {"stock": side(10, 12), "overlaid": side(9, 11)}})
    assert "no difference beyond noise" in capsys.readouterr().out
