"""Holds the coverage of each package to the floor that is written for it in tests/coverage.toml.

    python -m tests.tools.coverage_floor [--data .coverage]      # after a run with --cov; exit 1 below a floor

A package is a folder; what lies in its subpackages that have a floor of their own does not count for it.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import coverage

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ROOT / "tests" / "coverage.toml"
# The overlays lie beside the package, which reaches them through a link; coverage follows it.
PLACES = {
    "amd_ops": ROOT / "amd_ops",
    "rocm_overlay": ROOT / "installer" / "rocm_overlay",
    "rocm_overlay.overlays": ROOT / "overlays",
}


def package_of(path: Path, floors: Mapping[str, float]) -> str | None:
    """Return the innermost package with a floor that a file belongs to, such as ``rocm_overlay.install``."""
    for name, folder in PLACES.items():
        if path.is_relative_to(folder):
            parts = [*name.split("."), *path.relative_to(folder).parent.parts]
            owners = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            return next((owner for owner in owners if owner in floors), None)
    return None


def measured(data: Path, floors: Mapping[str, float]) -> dict[str, float]:
    """Return the share of statements that ran, in percent, by package."""
    found = coverage.Coverage(data_file=str(data))
    found.load()
    ran: dict[str, int] = defaultdict(int)
    all_of: dict[str, int] = defaultdict(int)
    for name in found.get_data().measured_files():
        package = package_of(Path(name), floors)
        if package is not None and Path(name).is_file():
            _, statements, _, missing, _ = found.analysis2(name)
            all_of[package] += len(statements)
            ran[package] += len(statements) - len(missing)
    return {package: 100 * ran[package] / count for package, count in all_of.items() if count}


def judge(floors: Mapping[str, float], shares: Mapping[str, float]) -> list[str]:
    """Return one sentence for every package that is below its floor, or that no run has seen."""
    problems = []
    for package, floor in floors.items():
        if package not in shares:
            problems.append(f"{package}: nothing was measured")
        elif shares[package] < floor:
            problems.append(f"{package}: {shares[package]:.1f} %, below its floor of {floor} %")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a package is below its floor."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.coverage_floor", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / ".coverage")
    data: Path = parser.parse_args(arguments).data
    floors: dict[str, float] = tomllib.loads(FLOORS.read_text())["floors"]
    shares = measured(data, floors)
    for package, floor in floors.items():
        print(f"{package:<32} {shares.get(package, 0):6.1f} %   floor {floor:>4} %")
    problems = judge(floors, shares)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
