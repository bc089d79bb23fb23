"""``overlay verify``: prove on this machine that the overlaid code computes what stock computes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..console import print_json, progress, wants_json
from ..errors import UsageError, WriteError
from ..executor import check, make_executor
from ..files import check_place
from . import plan, report, spread, target
from .options import Options
from .workers import Results, Setup, groups, run_all

SEED = 0


def run(options: Options) -> int:
    """Compare stock and overlaid code on a saved model and print the outcome; return the exit code.

    0: every run that could be made is within tolerance. 1: a case deviates or a process crashed. Raises OverlayError:
    2: usage. 3: no overlay for this model or text. 4: the installed file was edited. 8: a damaged bundle. 9: no usable
    interpreter.
    """
    told = []
    check(options.executor, options.workers)
    for option, file in (("--save", options.save), ("--json-file", options.json_file)):
        if file is not None:
            check_place(file, option)
    for dtype in plan.parse_dtypes(options.dtype):
        start = time.perf_counter()
        setup, runs = prepare(options, dtype)
        if options.executor == "process" and options.workers is None and options.work is None:
            steps = len(setup.cases) * len(setup.implementations) * (1 + len(runs))
            with progress(steps, "loading stock") as step:
                results = run_all(setup, runs, step)
        else:
            results = _spread(setup, runs, options)
        seconds = time.perf_counter() - start
        told.append(report.as_json(setup, results, seconds))
        if not wants_json():
            report.show(setup, results, seconds)
    content = report.joined(told)
    if options.json_file is not None:
        _append(content, options.json_file)
    code = int(content["exit_code"])
    return print_json("verify", content, code=code) if wants_json() else code


def _spread(setup: Setup, runs: list[plan.Run], options: Options) -> Results:
    if setup.save or setup.compare:
        remedy = "leave --executor, --workers and --work away"
        raise UsageError("usage", "--save and --compare go with one worker on this machine", remedy=remedy)
    kept = None
    if options.work is not None:
        kept = spread.Kept(spread.open_journal(options.work / "verify.jsonl"), options.fresh)
        subject = target.fingerprint_of(setup.interpreter, setup.model, setup.sources)
        setup = replace(setup, subject=subject)
    pool = make_executor(options.executor, options.workers)
    try:
        with progress(len(groups(runs)), "loading stock") as step:
            return spread.run_spread(setup, runs, step, pool, kept)
    finally:
        pool.close()


def _append(content: dict[str, Any], file: Path) -> None:
    try:
        with file.open("a", encoding="utf-8") as stream:
            print(json.dumps(content, allow_nan=False), file=stream)
    except OSError as error:
        message = f"{file} cannot be written: {error.strerror}"
        raise WriteError("report-unwritable", message, remedy="name another file with --json-file") from None


def prepare(options: Options, dtype: str) -> tuple[Setup, list[plan.Run]]:
    """Check everything that the user gave, cheapest first, before any model is loaded."""
    runs = plan.plan_runs(plan.parse_tiers(options.tiers), options.toggles or ())
    if options.max_new_tokens < 1:
        raise UsageError("bad-length", f"--max-new-tokens is {options.max_new_tokens}", remedy="use 1 or more")
    plan.check_dtype(dtype)
    chosen = plan.parse_cases(options.cases)
    compare = options.compare
    if compare is not None and not compare.is_file():
        remedy = "pass a file that `overlay verify --save` wrote"
        raise UsageError("no-reference", f"{compare} is no file", remedy=remedy, paths=[compare])
    assert options.model is not None
    found = target.read_model(Path(options.model))
    interpreter = target.probe(options.python)
    setup = Setup(
        interpreter=interpreter,
        model=found.path.resolve(),
        sources=target.find_sources(interpreter, *found.names),
        dtype=dtype,
        seed=SEED,
        max_new_tokens=options.max_new_tokens,
        cases=chosen,
        implementations=plan.IMPLEMENTATIONS,
        seeded=found.seeded,
        save=options.save,
        compare=compare,
    )
    return setup, runs
