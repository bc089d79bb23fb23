"""How long generating takes: one model, a whole release cold, and the same again with the results known.

    python benchmarks/bench_gen.py [--release 4.57.6] [--json]

Needs the wheel in $OVERLAY_TEST_WHEELS (or .cache/wheels). Every run is a fresh `overlay gen` process with a cache
folder of its own. Prints wall seconds (median of the runs) beside the target, and the ratio to a bare interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"one model, nothing known": 0.7, "whole release, nothing known": 120.0, "whole release, all known": 3.0}


def seconds(command: list[str], cache: Path | str) -> float:
    """Wall time of one process that must succeed."""
    environment = {**os.environ, "AMD_OVERLAY_CACHE": str(cache)}
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def no_torch(source: Path) -> bool:
    """Say whether generating leaves torch and transformers alone."""
    program = (
        "import sys; from rocm_overlay.patchgen.command import run; from pathlib import Path\n"
        "from rocm_overlay.patchgen.options import Options\n"
        f"code = run(Options(target='llama', source=Path({str(source)!r})))\n"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    return subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=False).returncode == 0


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="4.57.6")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wheels = Path(os.environ.get("OVERLAY_TEST_WHEELS", ROOT / ".cache/wheels"))
    (wheel,) = wheels.glob(f"transformers-{options.release}-*.whl")
    gen = [sys.executable, "-m", "rocm_overlay", "gen"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "tree", [name for name in archive.namelist() if name.startswith("transformers/")])
        source = work / "tree/transformers"
        one = [*gen, "llama", "--source", str(source), "-o", str(work / "one")]
        whole = [*gen, "--all", "--source", str(source), "-o", str(work / "all")]
        runs = {
            "one model, nothing known": [seconds(one, "off") for _ in range(options.repeats)],
            "whole release, nothing known": [seconds(whole, work / "cache")],
            "whole release, all known": [seconds(whole, work / "cache") for _ in range(options.repeats)],
        }
        bare = statistics.median(seconds([sys.executable, "-c", ""], "off") for _ in range(options.repeats))
        clean = no_torch(source)
    rows = [
        {"what": what, "seconds": runs[what], "median": statistics.median(runs[what]), "target": target}
        for what, target in TARGETS.items()
    ]
    if options.json:
        about = {"release": options.release, "cores": len(os.sched_getaffinity(0)), "no_torch": clean, "rows": rows}
        print(json.dumps({"schema": "amd-overlay.bench-gen/1", "bare_python": bare, **about}, indent=1))
        return
    for row in rows:
        print(
            f"{row['what']}: {row['median']:.2f} s ({row['median'] / bare:.0f} x bare python; target {row['target']} s)"
        )
    print(f"torch and transformers stay out: {'yes' if clean else 'NO'}")


if __name__ == "__main__":
    main()
