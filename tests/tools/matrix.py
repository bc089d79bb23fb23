"""The core suite on every Python and torch that an AMD image may carry: `make test-matrix`.

    python -m tests.tools.matrix                          # every cell, every suite; writes docs/test-matrix.*
    python -m tests.tools.matrix --cells py3.10-torch2.7 --suites ops,parity
    python -m tests.tools.matrix --list

A cell is an interpreter, a torch and a transformers. Its environment is made once, below .cache/matrix, or is one that
the other targets use; what cannot be had here (no such interpreter, no wheel) is said on the page, not passed over.
Results of cells that were not run this time stay on the page with their day.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "test-matrix.json", ROOT / "docs" / "test-matrix.md"
ENVIRONMENTS = ROOT / ".cache" / "matrix"
NEEDED = (
    "numpy", "safetensors", "accelerate", "typer>=0.20", "filelock>=3.12", "rich>=13", "packaging>=23", "libcst>=1.5",
    "kernels>=0.12", "optimum-quanto>=0.2.7", "pyyaml>=6", "jinja2>=3", "pandas>=2", "jsonschema",
    "pytest>=8", "pytest-timeout", "hypothesis",
)  # fmt: skip
"""What the core suite imports beside torch, triton and transformers; newest releases, without constraints.txt."""


@dataclass(frozen=True)
class Cell:
    """One environment; ``folder`` where the Makefile keeps it already."""

    python: str
    torch: str
    transformers: str
    folder: str = ""

    @property
    def name(self) -> str:
        torch = self.torch.partition("==")[2]
        line = ".".join(self.transformers.split(".")[:2])
        return f"py{self.python}-torch{'.'.join(torch.split('.')[:2]) if torch else '-newest'}-{line}"

    @property
    def home(self) -> Path:
        return ROOT / self.folder if self.folder else ENVIRONMENTS / self.name


CELLS = (
    Cell("3.10", "torch==2.7.1", "4.57.6"),
    Cell("3.11", "torch==2.13.0", "4.53.3", ".venv-4.53"),
    Cell("3.11", "torch==2.13.0", "4.57.6", ".venv"),
    Cell("3.11", "torch==2.13.0", "5.23.0", ".venv-5.23"),
    Cell("3.11", "torch==2.13.0", "5.24.0", ".venv-5.24"),
    Cell("3.12", "torch==2.10.0", "5.23.0"),
    Cell("3.13", "torch", "5.24.0"),
)
MODELS = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3", "mixtral")
SUITES: dict[str, tuple[str, ...]] = {
    "ops": ("tests/ops",),
    "kernelize": ("tests/kernelize",),
    "verify": ("tests/verify/test_compare.py", "tests/verify/test_plan.py", "tests/verify/test_options.py"),
    "install": ("tests/install/test_commands.py", "tests/install/test_help.py", "tests/test_other_systems.py"),
    "patchgen": ("tests/patchgen/test_edits.py", "tests/patchgen/test_engine.py", "tests/patchgen/test_source.py"),
    "parity": (),
}
"""Suite -> its test files; parity compares stock and overlay of eight models in the cell itself."""


def interpreter(version: str) -> str | None:
    """Return an interpreter of this minor version that really starts: this one, on PATH, of pyenv or of uv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = [shutil.which(f"python{version}")]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["uv", "python", "find", "--no-python-downloads", version]
        named.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in (sys.executable, *named, *(str(one / "bin/python") for one in sorted(pyenv.glob(f"{version}.*")))):
        if path and Path(path).exists():
            done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
            if done.stdout.strip() == version:
                return path
    return None


def prepared(cell: Cell) -> Path | str:
    """Return the cell's interpreter with everything in it, or why there is none."""
    python = cell.home / "bin" / "python"
    if cell.folder:
        return python if python.exists() else f"{cell.folder} is not there: `make test-full` makes it"
    if not (cell.home / ".installed").exists():
        found = interpreter(cell.python)
        if found is None:
            return f"no Python {cell.python} on this machine"
        subprocess.run([found, "-m", "venv", str(cell.home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        for wanted in (["--upgrade", "pip"], [cell.torch], [f"transformers=={cell.transformers}", *NEEDED]):
            done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
            if done.returncode:
                return f"pip cannot install {' '.join(wanted[:1])}: {done.stderr.strip().splitlines()[-1][:200]}"
        (cell.home / ".installed").touch()
    return python


def versions(python: Path) -> dict[str, str]:
    """Return what is installed, as the page names it."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "names = [d.metadata['Name'] for d in m.distributions()]\n"
        "has = lambda n: m.version(n) if n in names else '-'\n"
        "known = ('torch', 'triton', 'transformers', 'typer', 'kernels')\n"
        "print(json.dumps({'python': platform.python_version(), **{n: has(n) for n in known}}))"
    )
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", code], text=True, cwd=ROOT))
    return found


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "installer"))),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OVERLAY_TEST_WHEELS": os.environ.get("OVERLAY_TEST_WHEELS", str(ROOT / ".cache" / "wheels")),
    }


def run_tests(python: Path, paths: tuple[str, ...]) -> dict[str, Any]:
    """Run test files in a cell; return the counts, and the names of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(python), "-m", "pytest", "-q", "-m", "not full", "-p", "no:cacheprovider", "-W", "ignore"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *paths],
            cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not report.exists():
            said = (done.stdout + done.stderr).strip() or "no word"
            return {"passed": 0, "failed": [f"pytest: {said.splitlines()[-1][:200]}"], "skipped": 0}
        suite = ElementTree.parse(report).getroot()[0]
    bad = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite
        if case.find("failure") is not None or case.find("error") is not None
    ]
    count, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    return {"passed": count - skipped - len(bad), "failed": bad, "skipped": skipped}


def run_parity(python: Path) -> dict[str, Any]:
    """Compare stock and overlay of eight models, toggles off bit for bit and on within the tolerances."""
    command = [str(python), "-m", "tests.parity.child", *MODELS, "--toggles"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        return {"passed": 0, "failed": [(done.stderr.strip() or "no word").splitlines()[-1][:200]], "skipped": 0}
    found = json.loads(done.stdout.splitlines()[-1])
    return {"passed": found["cases"] - len(found["deviating"]), "failed": found["deviating"], "skipped": 0}


def run_cell(cell: Cell, suites: list[str], known: dict[str, Any]) -> dict[str, Any]:
    """Return the cell's row: those suites as they are now, the others as they were."""
    python = prepared(cell)
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    if isinstance(python, str):
        return {"not_had": python, "day": day}
    present = versions(python)
    before = known.get("suites", {}) if known.get("versions") == present else {}
    now = {}
    for suite in suites:
        print(f"{cell.name}: {suite}", file=sys.stderr, flush=True)
        now[suite] = {**(run_parity(python) if suite == "parity" else run_tests(python, SUITES[suite])), "day": day}
    return {"versions": present, "suites": {**before, **now}}


def page(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of docs/test-matrix.md."""
    yield "# Which Python and which torch"
    yield ""
    yield "Written by `make test-matrix`, which runs the core suite in an environment per row; what a row does not name"
    yield "is the newest release that pip takes. A cell says what passed, of how much, and the day. *parity* counts"
    yield "comparisons of stock and overlay, toggles off (every bit) and on (torch tier, within the tolerances), of"
    yield f"{', '.join(MODELS)}. There was no AMD GPU: these are CPU runs."
    yield ""
    shown = ("python", "torch", "triton", "transformers", "typer", "kernels")
    yield "| " + " | ".join((*shown, *SUITES)) + " |"
    yield "|" + "---|" * (len(shown) + len(SUITES))
    for row in results.values():
        if "versions" in row:
            cells = [row["versions"][name] for name in shown]
            cells += [_told(row["suites"].get(suite)) for suite in SUITES]
            yield "| " + " | ".join(cells) + " |"
    missing = [f"* {name}: {row['not_had']} ({row['day']})" for name, row in results.items() if "not_had" in row]
    failed = [
        f"* {name}, {suite}: " + ", ".join(f"`{one}`" for one in found["failed"])
        for name, row in results.items()
        for suite, found in row.get("suites", {}).items()
        if found["failed"]
    ]
    for title, lines in (("Could not be had", missing), ("Failed", failed)):
        if lines:
            yield from ("", f"## {title}", "", *lines)


def _told(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not run"
    mark = "**" if found["failed"] else ""
    return f"{mark}{found['passed']} of {found['passed'] + len(found['failed'])}{mark} ({found['day']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", default=",".join(cell.name for cell in CELLS))
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--list", action="store_true", help="name the cells and whether they can be had; run nothing")
    arguments = parser.parse_args()
    if arguments.list:
        for cell in CELLS:
            print(cell.name, cell.home if cell.folder else interpreter(cell.python) or "no such interpreter", sep="\t")
        return
    wanted, suites = arguments.cells.split(","), arguments.suites.split(",")
    unknown = (set(wanted) - {cell.name for cell in CELLS}) | (set(suites) - set(SUITES))
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for cell in CELLS:
        if cell.name in wanted:
            known[cell.name] = run_cell(cell, suites, known.get(cell.name, {}))
            results = {one.name: known[one.name] for one in CELLS if one.name in known}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            PAGE.write_text("\n".join(page(results)) + "\n")
    bad = [name for name in wanted for one in known[name].get("suites", {}).values() if one["failed"]]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
