"""Start-up and install times of the `overlay` program, as multiples of a bare `python -c pass`.

    python benchmarks/bench_cli.py [--tree UNPACKED_WHEEL] [--rounds 15] [--json FILE]

UNPACKED_WHEEL is a folder with transformers/ and its dist-info; it is copied, never changed. Without it the newest
4.57 wheel in the folder $OVERLAY_TEST_WHEELS is unpacked. Commands take turns with
the bare interpreter, each in a fresh process; the ratio is median over median, the second one least over least.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

BARE = "python -c pass"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""An installed program has its bytecode; the folder for it is set in main()."""
RUN = "from rocm_overlay.cli import main; main()"


@dataclass
class Series:
    """Seconds of one command, and what it may cost: a multiple of the bare interpreter, or seconds."""

    arguments: list[str]
    times_bare: float | None = None
    seconds: float | None = None
    before: Callable[[], None] | None = None
    samples: list[float] = field(default_factory=list)

    def once(self) -> None:
        """Run the command once and keep the time. Raises where it fails."""
        if self.before is not None:
            self.before()
        start = time.perf_counter()
        subprocess.run(self.arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT)
        self.samples.append(time.perf_counter() - start)


def overlay(*arguments: str) -> list[str]:
    """Return the command line of an overlay command in this interpreter."""
    return [sys.executable, "-c", RUN, *arguments]


def commands(site: Path) -> dict[str, Series]:
    """Return the series to measure on a copy of a real tree."""
    here = ["--site-packages", str(site)]

    def quietly(*arguments: str) -> Callable[[], None]:
        return lambda: (
            subprocess.run(overlay(*arguments, *here), check=True, capture_output=True, env=ENVIRONMENT) and None
        )

    install, revert = quietly("install", "--transformers", "4.57"), quietly("revert")
    return {
        BARE: Series([sys.executable, "-c", "pass"]),
        "overlay --version": Series(overlay("--version"), times_bare=10),
        "overlay --help": Series(overlay("--help"), times_bare=10),
        "overlay status (stock)": Series(overlay("status", *here), times_bare=20, before=revert),
        "overlay install, all models": Series(
            overlay("install", "--transformers", "4.57", *here), seconds=1.0, before=revert
        ),
        "overlay install, again": Series(overlay("install", "--transformers", "4.57", *here), before=install),
        "overlay status (applied)": Series(overlay("status", *here), times_bare=20, before=install),
        "overlay revert": Series(overlay("revert", *here), seconds=1.0, before=install),
    }


def probe_commands(environment: Path) -> dict[str, Series]:
    """Return the series that also ask an interpreter where its packages are."""
    python = str(environment / "bin" / "python")
    return {"overlay status --python": Series(overlay("status", "--python", python), times_bare=20)}


def unpack(site: Path) -> None:
    """Unpack the newest 4.57 wheel of the test wheels. Raises SystemExit where there is none."""
    wheels = sorted(Path(os.environ.get("OVERLAY_TEST_WHEELS", ".cache/wheels")).glob("transformers-4.57.*.whl"))
    if not wheels:
        raise SystemExit("no transformers 4.57 wheel: run `make wheels`, or pass --tree")
    with zipfile.ZipFile(wheels[-1]) as archive:
        archive.extractall(site)


def make_environment(folder: Path, site: Path) -> Path:
    """Make a virtual environment whose packages folder holds a copy of ``site``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    shutil.copytree(site, packages, dirs_exist_ok=True, symlinks=True)
    return folder


def report(series: dict[str, Series], rounds: int) -> dict[str, object]:
    """Turn the samples into rows with ratios and verdicts."""
    bare = series[BARE].samples
    rows = []
    for name, one in series.items():
        middle = statistics.median(one.samples)
        ratio, least = middle / statistics.median(bare), min(one.samples) / min(bare)
        limit = one.times_bare if one.times_bare is not None else one.seconds
        met = None
        if one.times_bare is not None:
            met = ratio <= one.times_bare
        elif one.seconds is not None:
            met = middle <= one.seconds
        rows.append(
            {
                "command": name,
                "median_ms": round(middle * 1e3, 1),
                "min_ms": round(min(one.samples) * 1e3, 1),
                "ratio": round(ratio, 2),
                "ratio_of_minima": round(least, 2),
                "limit": limit,
                "unit": "x bare" if one.times_bare is not None else "s",
                "met": met,
                "samples_ms": [round(sample * 1e3, 2) for sample in one.samples],
            }
        )
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "system": platform.platform()}
    return {"schema": "amd-overlay.bench-cli/1", "rounds": rounds, "machine": machine, "rows": rows}


def print_table(result: dict[str, object]) -> None:
    """Print the rows for people."""
    rows = result["rows"]
    assert isinstance(rows, list)
    print(f"{'command':30} {'median ms':>10} {'min ms':>8} {'x bare':>7} {'x (min)':>8}  limit")
    for row in rows:
        limit = "" if row["limit"] is None else f"{row['limit']:g} {row['unit']}: {'met' if row['met'] else 'MISSED'}"
        print(
            f"{row['command']:30} {row['median_ms']:10.1f} {row['min_ms']:8.1f} {row['ratio']:7.2f} "
            f"{row['ratio_of_minima']:8.2f}  {limit}"
        )


def main() -> int:
    """Measure, print, and return 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, help="unpacked transformers 4.57 wheel")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ENVIRONMENT["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        site = Path(folder) / "site"
        if options.tree is not None:
            shutil.copytree(options.tree, site, symlinks=True)
        else:
            unpack(site)
        environment = make_environment(Path(folder) / "venv", site)
        series = {**commands(site), **probe_commands(environment)}
        for one in series.values():  # warm caches and bytecode
            one.once()
            one.samples.clear()
        for _ in range(options.rounds):
            for one in series.values():
                one.once()
    result = report(series, options.rounds)
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="ascii")
    rows = result["rows"]
    assert isinstance(rows, list)
    return 1 if any(row["met"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
