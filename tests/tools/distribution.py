"""Builds what is published: the sdist, the wheel made from it, a bill of materials and the hashes of all three.

    python -m tests.tools.distribution --output dist

``SOURCE_DATE_EPOCH`` is the time of the last commit unless it is set, so the same commit gives the same bytes. The bill
of materials (CycloneDX) is that of an environment in which the wheel alone was installed: what its users get.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parents[2]
SBOM = "transformers-rocm-overlay.cdx.json"
SUMS = "SHA256SUMS"


def epoch() -> str:
    """Seconds: the caller's, else those of the last commit, else 0 where there is no repository."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return os.environ["SOURCE_DATE_EPOCH"]
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "0"


def build(source: Path, output: Path, moment: str) -> tuple[Path, Path]:
    """Build the sdist of ``source`` and the wheel from that sdist; return (sdist, wheel)."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(source)],
        env={**os.environ, "SOURCE_DATE_EPOCH": moment}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (sdist,), (wheel,) = output.glob("*.tar.gz"), output.glob("*.whl")
    return sdist, wheel


def environment(folder: Path, wheel: Path, *options: str, base: str = sys.executable) -> Path:
    """Make a virtual environment of ``base`` with the wheel and what it requires; return its interpreter.

    ``options`` go to ``uv pip install``: where packages are looked for.
    """
    subprocess.run([base, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    python = folder / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run(
        [str(uv), "pip", "install", "--quiet", "--python", str(python), *options, str(wheel)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return python


def bill_of_materials(python: Path, wheel: Path, output: Path, moment: str) -> None:
    """Write the CycloneDX description of ``wheel`` and of what is installed with it for ``python``."""
    subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml"),
         "--mc-type", "library", "--output-reproducible", "-o", str(output), str(python)],
        env={**os.environ, "SOURCE_DATE_EPOCH": moment}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    bill = json.loads(output.read_text())
    # The version is dynamic in pyproject.toml, so the generator cannot know it; the hash says which wheel is meant.
    component = bill["metadata"]["component"]
    component["version"] = str(parse_wheel_filename(wheel.name)[1])
    component["hashes"] = [{"alg": "SHA-256", "content": sha256(wheel)}]
    output.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build everything into an empty folder and print the hashes."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.distribution", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    output: Path = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        parser.error(f"{output} is not empty: what is in it must not be taken for the new release")
    moment = epoch()
    sdist, wheel = build(ROOT, output, moment)
    with tempfile.TemporaryDirectory() as folder:
        bill_of_materials(environment(Path(folder, "clean"), wheel), wheel, output / SBOM, moment)
    sums = [f"{sha256(path)}  {path.name}" for path in (sdist, wheel, output / SBOM)]
    (output / SUMS).write_text("\n".join(sums) + "\n")
    print("\n".join(sums))
    return 0


if __name__ == "__main__":
    sys.exit(main())
