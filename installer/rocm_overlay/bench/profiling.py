"""`overlay profile`: where the time of one prefill and one decode step goes, stock and overlaid."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..install.transaction.errors import UsageError
from . import command, matrix, runner
from .memory import check_memory

SCHEMA = "amd-overlay.profile/1"


def run(options: command.Options) -> int:
    """Trace both builds and report; 0 when both could be traced, 1 otherwise."""
    setup = command.prepare(options)
    check_memory(runner.ask_size(setup), setup)
    folder = (options.output or Path("overlay-profile")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cells = {cell.name: cell for cell in setup.cells}
    builds = {"stock": cells["stock"], "overlaid": cells["all"]}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="overlay-profile-") as name:
        weights = runner.stage(setup, Path(name))
        for title, cell in builds.items():
            found[title] = _trace(setup, cell, weights, Path(name), folder)
    report = {
        "schema": SCHEMA,
        "model": setup.model.name,
        "dtype": setup.dtype,
        "work": cells["stock"].as_json()["work"],
    }
    report |= {"builds": found, "folder": str(folder)}
    (folder / "profile.json").write_text(json.dumps(report, indent=1) + "\n")
    if options.as_json:
        print(json.dumps(report, indent=1))
    else:
        _table(report, Console())
    return 0 if all(len(build["phases"]) == 2 for build in found.values()) else 1


def _trace(setup: runner.Setup, cell: matrix.Cell, weights: Path, scratch: Path, folder: Path) -> dict[str, Any]:
    job = {"cell": cell.as_json(), "weights": str(weights), "trace": str(folder)}
    child = runner.child(setup, "profile", scratch, job, build=cell.build)
    phases = {}
    for event in child.events({**cell.env, **cell.toggles}, timeout=setup.timeout):
        if event["event"] == "phase":
            phases[event["phase"]] = {key: value for key, value in event.items() if key not in ("event", "phase")}
    if len(phases) != 2:
        raise UsageError(
            "no-trace",
            f"the {cell.build} build of {setup.model} could not be traced:\n{child.log_tail()}",
            remedy="run `overlay bench` on it first: it names what cannot run",
            paths=[setup.model],
        )
    return {"phases": phases}


def _table(report: dict[str, Any], console: Console) -> None:
    shown = Table(title=f"{report['model']}, {report['dtype']}: share of time in ops of this project, and what is left")
    for title in ("build", "phase", "total ms", "covered", "largest gaps"):
        shown.add_column(title)
    for name, build in report["builds"].items():
        for phase, row in build["phases"].items():
            gaps = ", ".join(f"{gap['op']} {gap['us'] / max(row['total_us'], 1e-9):.0%}" for gap in row["gaps"][:4])
            shown.add_row(name, phase, f"{row['total_us'] / 1e3:.2f}", f"{row['coverage']:.0%}", gaps)
    console.print(shown)
    console.print(f"traces for ui.perfetto.dev and profile.json are in {report['folder']}", highlight=False)
