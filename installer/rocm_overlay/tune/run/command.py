"""`overlay tune run`: from options to a session, its table, its provenance and the A/B."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ... import executor, fingerprint
from ...console import emit, notes, progress, say
from ...errors import DIFFERENT, UsageError
from ...journal import Reuse
from ..cache import sources_for
from ..commands import model_shapes
from ..files import guard_output, json_bytes, write_atomic
from ..inputs import target_aiter, target_device
from ..installed import find_aiter, need_aiter
from ..merge import Source, merge_files, meta_path, write_merged
from ..options import Ends, Limits, Shapes, Tools
from ..places import VARIABLE
from ..schema import COLUMNS
from ..shapes import Shape, read_untuned
from ..table import read_usable, render
from . import programs as programs_
from .ab import Comparison, compare
from .journal import Outcome
from .programs import Programs
from .session import SCHEMA, Session, open_folder, rows_of, summary

FAILED = frozenset({"crashed", "timeout", "wrong", "impossible", "no-baseline"})


def _shapes(model: Shapes, untuned: Path | None) -> tuple[tuple[Shape, ...], dict[str, object]]:
    if (model.config is None) == (untuned is None):
        raise UsageError("usage", "name one origin of shapes", remedy="--config F or --shapes UNTUNED.csv")
    if untuned is not None:
        return read_untuned(untuned)[0], {"untuned": str(untuned)}
    found = model_shapes(model)
    return found.shapes, found.origin


def _programs(tools: Tools) -> Programs:
    python = tools.python or programs_.this_python()
    if not 0 < tools.timeout < math.inf or not 0 <= tools.err_ratio < math.inf:
        raise UsageError("usage", "--timeout must be above 0 and --err-ratio at least 0", remedy="see --help")
    if tools.tuner is not None:
        tuner = tuple(programs_.as_command(tools.tuner, python))
    elif tools.backend == "tunableop":
        tuner = programs_.tunableop_tuner(python)
    elif tools.backend == "aiter":
        tuner = (python, str(programs_.find_tuner(need_aiter(tools.aiter))))
    else:
        raise UsageError("usage", f"--backend {tools.backend!r} is not known", remedy="use aiter or tunableop")
    verifier = (
        tuple(programs_.as_command(tools.verifier, python)) if tools.verifier else programs_.default_verifier(python)
    )
    # The tuner must not read the table that is being made, nor one the user points at.
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    return Programs(tuner, verifier, tools.timeout, tools.err_ratio, environment, tuple(tools.tuner_option or ()))


def run(
    asked: Shapes,
    untuned: Path | None,
    gpu: str | None,
    output: Path,
    work: Path | None,
    tools: Tools,
    limits: Limits,
    ends: Ends,
) -> int:
    if not 0 <= limits.margin < 100 or limits.retries < 0:
        raise UsageError(
            "usage", "--margin is a percentage from 0 below 100, --retries at least 0", remedy="see --help"
        )
    _check_executor(limits)
    device = target_device(gpu)
    shapes, origin = _shapes(asked, untuned)
    programs = _programs(tools)
    guard_output(output, [untuned] if untuned else [])
    folder = open_folder(work or output.with_name(output.name + ".session"), limits.fresh)
    python = tools.python or programs_.this_python()
    subject = fingerprint.surroundings(python=python, environ=programs.environment)
    session = Session(device, programs, folder, limits.margin / 100, limits.retries, subject)
    outcomes, reused = _outcomes(session, shapes, limits)
    notes([reused.text(f"shapes in {folder}")] if reused else [])
    rows = rows_of(outcomes, folder)
    comparison = _compare(ends, rows, folder, session, tools)
    aiter = find_aiter(tools.aiter)
    meta: dict[str, object] = {
        "schema": SCHEMA,
        "gpu": str(device),
        "origin": origin,
        "measured_with": {"aiter": aiter.version, "aiter_commit": aiter.commit} if aiter else {},
        "settings": session.settings(),
        "summary": summary(outcomes),
        "rows": len(rows),
        "outcomes": [outcome.as_json() for outcome in outcomes],
        "ab": comparison.as_json() if comparison else None,
    }
    write_atomic(meta_path(output), json_bytes(meta), 0o644)
    write_atomic(output, render(rows, COLUMNS), 0o644)
    code = DIFFERENT if outcomes and all(outcome.status in FAILED for outcome in outcomes) else 0
    body = {**meta, "output": str(output), "reused": reused and reused.as_json()}
    return emit("tune.run", body, lambda: _text(output, outcomes, comparison), code)


def _check_executor(limits: Limits) -> None:
    executor.check(limits.executor, limits.workers)
    if limits.executor == "process" and (limits.workers or 1) > 1:
        message = f"--workers is {limits.workers}: tuners that share a GPU disturb each other's times"
        raise UsageError("usage", message, remedy="leave it out, or pass --executor ray for more GPUs")


def _outcomes(session: Session, shapes: Sequence[Shape], limits: Limits) -> tuple[tuple[Outcome, ...], Reuse | None]:
    with progress(len(shapes), "tuning", keep=True) as step:
        if limits.executor == "process":
            return session.run(shapes, step)
        pool = executor.make_executor(limits.executor, limits.workers, whole=True)
        try:
            return session.run(shapes, step, pool)
        finally:
            pool.close()


def _compare(ends: Ends, rows: Sequence[object], folder: Path, session: Session, tools: Tools) -> Comparison | None:
    """Run the A/B with the new rows merged over what is installed, as amd_ops would use them."""
    if ends.ab is None:
        say("note: no end-to-end command was given (--ab): these rows are faster one by one, which proves no gain")
        return None
    if not rows:
        say("note: no row was kept: there is nothing to compare end to end")
        return None
    target = target_aiter(tools.aiter, None)
    kept = folder / "kept.csv"
    sources = [*sources_for(target.aiter, session.device, os.environ, []), Source(kept, "user")]
    merged = folder / "ab.csv"
    write_merged(merge_files(sources, session.device, target.rules), merged, sources)
    environment = {**os.environ, "USE_AITER_GEMM": "1"}
    return compare(ends.ab, merged, environment, runs=ends.ab_runs, metric=ends.ab_metric, higher=ends.ab_higher)


def _text(output: Path, outcomes: Sequence[Outcome], comparison: Comparison | None) -> str:
    lines = [f"{number} {status}" for status, number in summary(outcomes).items()]
    failed = [f"  {o.shape.text()}: {o.status}: {o.reason}" for o in outcomes if o.status in FAILED]
    text = [f"{output}: " + ", ".join(lines), *failed]
    return "\n".join([*text, comparison.text()] if comparison else text)


def verify(table: Path, gpu: str | None, tools: Tools, work: Path) -> int:
    """Run the numeric check on every row of a table for this device; exit 1 when one is wrong."""
    device = target_device(gpu)
    rows = [row for row in read_usable(table).rows if row.key.device == device]
    programs = _programs(replace(tools, tuner=tools.tuner or "unused.py"))
    folder = open_folder(work)
    wrong: dict[str, str] = {}
    with progress(len(rows), "checking", keep=True) as step:
        for row in rows:
            name = f"line {row.line}: {row.key.shape_text()}"
            problem = programs.verify(row, folder)
            if problem:
                wrong[name] = problem
            step(f"{name}: {problem or 'right'}")
    value = {"gpu": str(device), "table": str(table), "rows": len(rows), "wrong": wrong}
    lines = [f"{table}:{name}: {problem}" for name, problem in wrong.items()]
    text = "\n".join([*lines, f"{len(rows) - len(wrong)} of {len(rows)} rows for {device} are right"])
    return emit("tune.verify", value, text, DIFFERENT if wrong else 0)
