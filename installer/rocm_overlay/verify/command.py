"""``overlay verify``: prove on this machine that the overlaid code computes what stock computes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from ..executor import check, make_executor
from ..install.transaction.errors import OverlayError, UsageError, WriteError
from ..progress import Step, progress
from . import plan, report, spread, target
from .workers import Results, Setup, groups, run_all

SEED = 0


def run(
    model: Path | str,
    *,
    python: str | None = None,
    tiers: str | None = None,
    toggles: Sequence[str] | None = None,
    dtype: str = "float32",
    max_new_tokens: int = 8,
    cases: str | None = None,
    save: Path | None = None,
    compare: Path | None = None,
    json_file: Path | None = None,
    json_output: bool = False,
    executor: str = "process",
    workers: int | None = None,
    work: Path | None = None,
) -> int:
    """Compare stock and overlaid code on a saved model and print the outcome; return the exit code.

    0: every run that could be made is within tolerance. 1: a case deviates or a process crashed. 2: usage. 3: no
    overlay for this model or text. 4: the installed file was edited. 8: a damaged bundle. 9: no usable interpreter.
    """
    codes = []
    try:
        check(executor, workers)
        for name in plan.parse_dtypes(dtype):
            start = time.perf_counter()
            setup, runs = prepare(
                Path(model), python, tiers, toggles or (), name, max_new_tokens, cases=cases, save=save, compare=compare
            )
            if executor == "process" and workers is None and work is None:
                steps = len(setup.cases) * len(setup.implementations) * (1 + len(runs))
                with _progress(steps) as step:
                    results = run_all(setup, runs, step)
            else:
                results = _spread(setup, runs, executor, workers, work)
            _write(setup, results, time.perf_counter() - start, json_file, json_output)
            codes.append(report.exit_code(results))
    except OverlayError as error:
        return report.refuse("verify", error, report.SCHEMA, as_json=json_output)
    return max(codes)


def _spread(setup: Setup, runs: list[plan.Run], executor: str, workers: int | None, work: Path | None) -> Results:
    if setup.save or setup.compare:
        remedy = "leave --executor, --workers and --work away"
        raise UsageError("usage", "--save and --compare go with one worker on this machine", remedy=remedy)
    journal = spread.open_journal(work / "verify.jsonl") if work else None
    pool = make_executor(executor, workers)
    try:
        with _progress(len(groups(runs))) as step:
            return spread.run_spread(setup, runs, step, pool, journal)
    finally:
        pool.close()


def _write(setup: Setup, results: Results, seconds: float, json_file: Path | None, json_output: bool) -> None:
    if json_file is not None:
        try:
            with json_file.open("a", encoding="utf-8") as stream:
                report.write_json(setup, results, seconds, stream)
        except OSError as error:
            message = f"{json_file} cannot be written: {error.strerror}"
            raise WriteError("report-unwritable", message, remedy="name another file with --json-file") from None
    if json_output:
        report.write_json(setup, results, seconds, sys.stdout)
    else:
        report.write_table(setup, results, seconds, _output())


def prepare(
    model: Path,
    python: str | None,
    tiers: str | None,
    toggles: Sequence[str],
    dtype: str,
    max_new_tokens: int,
    *,
    cases: str | None = None,
    save: Path | None = None,
    compare: Path | None = None,
) -> tuple[Setup, list[plan.Run]]:
    """Check everything that the user gave, cheapest first, before any model is loaded."""
    runs = plan.plan_runs(plan.parse_tiers(tiers), toggles)
    if max_new_tokens < 1:
        raise UsageError("bad-length", f"--max-new-tokens is {max_new_tokens}", remedy="use 1 or more")
    plan.check_dtype(dtype)
    chosen = plan.parse_cases(cases)
    if compare is not None and not compare.is_file():
        remedy = "pass a file that `overlay verify --save` wrote"
        raise UsageError("no-reference", f"{compare} is no file", remedy=remedy, paths=[compare])
    found = target.read_model(model)
    interpreter = target.probe(python)
    setup = Setup(
        interpreter=interpreter,
        model=found.path.resolve(),
        sources=target.find_sources(interpreter, *found.types),
        dtype=dtype,
        seed=SEED,
        max_new_tokens=max_new_tokens,
        cases=chosen,
        implementations=plan.IMPLEMENTATIONS,
        seeded=found.seeded,
        save=save,
        compare=compare,
    )
    return setup, runs


def _output() -> Console:
    """Standard output; where it is no terminal, wide enough that the table is not folded."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _progress(steps: int) -> AbstractContextManager[Step]:
    return progress(sys.stderr, steps, "loading stock", elsewhere=lambda text: None)
