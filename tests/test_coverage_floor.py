"""The gate on coverage fails below a floor, and no package is without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import coverage_floor as gate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLOORS = tomllib.loads(gate.FLOORS.read_text())["floors"]


def test_every_package_has_a_floor() -> None:
    for name in ("amd_ops", "rocm_overlay"):
        folder = gate.PLACES[name]
        packages = [path for path in folder.iterdir() if path.is_dir() and list(path.glob("*.py"))]
        assert {name, *(f"{name}.{path.name}" for path in packages)} <= set(FLOORS)


def test_a_package_below_its_floor_or_unmeasured_is_a_problem() -> None:
    shares = {"a": 79.9, "b": 80.0}
    assert gate.judge({"a": 80, "b": 80, "c": 1}, shares) == [
        "a: 79.9 %, below its floor of 80 %",
        "c: nothing was measured",
    ]


def test_a_file_counts_for_the_innermost_package_that_has_a_floor() -> None:
    floors = {"amd_ops": 1, "amd_ops.kernelize": 1}
    inside = gate.PLACES["amd_ops"]
    assert gate.package_of(inside / "kernelize" / "layers.py", floors) == "amd_ops.kernelize"
    assert gate.package_of(inside / "backends" / "aiter" / "norm.py", floors) == "amd_ops"
    assert gate.package_of(Path("/elsewhere/x.py"), floors) is None


@pytest.mark.parametrize(("called", "share"), [("1", 100.0), ("0", 75.0)])
def test_the_share_is_that_of_the_statements_that_ran(
    called: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "m.py").write_text("import sys\ndef f():\n    return 1\nf() if int(sys.argv[1]) else None\n")
    command = [sys.executable, "-m", "coverage", "run", "--data-file", str(tmp_path / "data"), "one/m.py", called]
    subprocess.run(command, cwd=tmp_path, check=True)
    monkeypatch.setattr(gate, "PLACES", {"one": tmp_path / "one"})
    assert gate.measured(tmp_path / "data", {"one": 0}) == {"one": pytest.approx(share)}
    assert json.dumps(gate.measured(tmp_path / "data", {})) == "{}"
