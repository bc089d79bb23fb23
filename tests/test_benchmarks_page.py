"""docs/benchmarks.md is what its command makes of the results, and every row of it names a machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results_page
from tests.bench.samples import made_up_report

ROOT = Path(__file__).resolve().parents[1]


def test_the_committed_page_is_what_the_command_makes() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "results_page.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_changed_result_changes_the_page(tmp_path: Path) -> None:
    for path in results_page.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert results_page.page(tmp_path) == results_page.page()
    changed = json.loads((tmp_path / "memory_cpu.json").read_bytes())
    changed["bytes_after"] *= 2
    (tmp_path / "memory_cpu.json").write_text(json.dumps(changed))
    assert results_page.page(tmp_path) != results_page.page()


def test_every_result_has_a_table_whose_rows_name_machine_and_file() -> None:
    results = sorted(results_page.RESULTS.glob("*.json"))
    lines = results_page.page().splitlines()
    for path in results:
        content = json.loads(path.read_bytes())
        rows = [line for line in lines if line.startswith("| ") and f"/{path.name})" in line]
        assert rows, path.name
        assert all(f"| {results_page.machine(content)} |" in row for row in rows)


def test_a_bench_report_tells_only_what_holds(tmp_path: Path) -> None:
    (tmp_path / "made_up.json").write_text(json.dumps(made_up_report(tmp_path, "onoff", {"all": 1.2})))
    page = results_page.page(tmp_path)
    (slower,) = [line for line in page.splitlines() if "all b1 i128 o16: per_token" in line]
    (again,) = [line for line in page.splitlines() if "stock again b1 i128 o16: per_token" in line]
    assert float(slower.split("|")[4]) == pytest.approx(1.2, rel=0.1)
    assert "no difference" in again
    assert again.split("|")[4].strip() == ""
    assert "made-up CPU (cpu)" in slower


def test_a_result_without_a_machine_says_so_and_one_of_an_unknown_form_is_listed(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"schema": "other/1"}')
    assert results_page.machine({}) == "not recorded"
    assert "other/1, not recorded: no table" in results_page.page(tmp_path)
