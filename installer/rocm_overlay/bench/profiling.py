"""`overlay profile`: where the time of a prefill and of a decode step goes, stock and overlaid."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ..console import print_json, progress, show, table, wants_json
from ..errors import UsageError
from . import command, matrix, runner
from .memory import check_memory
from .options import Options

SCHEMA = "amd-overlay.profile/1"


def run(options: Options) -> int:
    """Trace both builds and report; UsageError where one of them cannot be traced."""
    setup = command.prepare(options)
    check_memory(runner.ask_size(setup), setup)
    folder = (options.output or Path("overlay-profile")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cells = {cell.name: cell for cell in setup.cells}
    builds = {"stock": cells["stock"], "overlaid": cells["all"]}
    found: dict[str, Any] = {}
    shown = progress(1 + len(builds), "preparing the model")
    with tempfile.TemporaryDirectory(prefix="overlay-profile-") as name, shown as step:
        weights = runner.stage(setup, Path(name))
        step("tracing stock")
        for title, cell in builds.items():
            found[title] = _trace(setup, cell, weights, Path(name), folder)
            step(f"{title} traced")
    report = {
        "schema": SCHEMA,
        "model": setup.model.name,
        "dtype": setup.dtype,
        "work": cells["stock"].as_json()["work"],
    }
    report |= {"builds": found, "folder": str(folder)}
    (folder / "profile.json").write_text(json.dumps(report, indent=1) + "\n")
    if wants_json():
        return print_json("profile", report)
    _show(report)
    return 0


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


def _show(report: dict[str, Any]) -> None:
    show(f"{report['model']}, {report['dtype']}: share of time in ops of this project, and what is left")
    rows = [
        (
            name,
            phase,
            _times(row["total_us"], row["totals_us"]),
            f"{row['coverage']:.0%}",
            ", ".join(f"{gap['op']} {gap['us'] / max(row['total_us'], 1e-9):.0%}" for gap in row["gaps"][:4]),
        )
        for name, build in report["builds"].items()
        for phase, row in build["phases"].items()
    ]
    table(("build", "phase", "ms [min, max]", "covered", "largest gaps"), rows)
    steps = len(next(iter(report["builds"].values()))["phases"]["decode"]["totals_us"])
    counted = f"the middle one of {steps} steps" if steps > 1 else "one step"
    show(f"{counted} under the profiler, which slows every op: to compare the two builds, run `overlay bench`")
    show(f"traces for ui.perfetto.dev and profile.json are in {report['folder']}")


def _times(middle_us: float, totals_us: list[float]) -> str:
    """Return ``1.15 [1.10, 1.40]``; one sample alone has no range."""
    middle = f"{middle_us / 1e3:.2f}"
    return f"{middle} [{min(totals_us) / 1e3:.2f}, {max(totals_us) / 1e3:.2f}]" if len(totals_us) > 1 else middle
