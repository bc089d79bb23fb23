"""What `overlay bench` and `overlay bench compare` do: check, measure, report."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..executor import check, make_executor
from ..install.transaction.errors import UsageError, WriteError
from ..progress import Step, progress
from ..verify import target
from ..verify.plan import DTYPES
from . import comparison, matrix, optimum, output, ranks, report, runner, spread
from .memory import check_memory
from .process import Process

SEED = 0
TIMEOUT = 1800.0


@dataclass(frozen=True)
class Options:
    """The options of `overlay bench`, as typed."""

    model: str
    matrix: str = "onoff"
    mode: str = "generate"
    batch: str = "1"
    isl: str = "128"
    osl: int = 16
    attn: str = "sdpa"
    cache: str = "dynamic"
    compile: str = "no"
    dtype: str = "bfloat16"
    rounds: int = 5
    runs: int = 3
    warmup: int = 1
    timeout: float = TIMEOUT
    python: str | None = None
    output: Path | None = None
    html: Path | None = None
    gpu: str | None = None
    baseline: Path | None = None
    fail_over: str = "5%"
    metric: str | None = None
    as_json: bool = False
    executor: str = "process"
    workers: int | None = None


def run(options: Options) -> int:
    """Measure and report. 0: done. 1: a cell failed, deviates, or is slower than the baseline allows. 2: usage."""
    start = time.perf_counter()
    notes = Console(stderr=True)
    require_libraries()
    limit = comparison.parse_limit(options.fail_over)
    metrics = comparison.parse_metrics(options.metric)
    baseline = comparison.read(options.baseline) if options.baseline else None
    place = ranks.place()
    check_executor(options, place)
    setup = prepare(options, place.size)
    team = ranks.join(place, setup.mode)
    if isinstance(team, ranks.Crew) and place.rank:
        runner.follow(setup, team)
        return 0
    folder = options.output or Path(f"overlay-bench-{setup.digest()[:12]}")
    processes, size = _measure(options, setup, folder, team, notes)
    built = report.build(setup, processes, size, time.perf_counter() - start)
    content = {**built.content, "tuning": tuning(setup, options.gpu, notes)}
    _write(folder, content, options.html, notes)
    compared = comparison.compare(baseline, content, limit, metrics=metrics) if baseline else None
    _show(content, compared, folder, options.as_json)
    return 0 if built.ok and not (compared and compared.failed) else 1


def _measure(
    options: Options, setup: runner.Setup, folder: Path, team: ranks.Team, notes: Console
) -> tuple[list[Process], dict[str, Any]]:
    """Run the plan here or on a cluster; return every process, and the size of the model."""
    if options.executor == "process":
        size = runner.ask_size(setup)
        check_memory(size, setup)
        journal = runner.Journal(folder, setup)
        with _progress(setup, journal) as step:
            return runner.run_all(setup, journal, step, team), size
    journal = runner.Journal(folder, setup)
    pool = make_executor(options.executor, options.workers, whole=True)
    try:
        with _progress(setup, journal) as step:
            return spread.run_spread(setup, journal, step, pool)
    finally:
        pool.close()


def check_executor(options: Options, place: ranks.Place) -> None:
    """Refuse combinations that would not measure what they say."""
    check(options.executor, options.workers)
    if options.executor == "ray" and place.size > 1:
        message = "--executor ray under torchrun: both would place the processes"
        raise UsageError("usage", message, remedy="use one of them")
    if options.executor == "process" and (options.workers or 1) > 1:
        message = f"--workers is {options.workers}: processes that share a machine disturb each other's times"
        raise UsageError("bad-workers", message, remedy="leave it out, or pass --executor ray for more machines")


def require_libraries() -> None:
    """Refuse before any work where a library of the report is missing."""
    missing = [name for name in ("numpy", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "no-library",
            f"`overlay bench` needs {' and '.join(missing)}, not found in {sys.prefix}",
            remedy="run `pip install 'transformers-rocm-overlay[bench]'`",
        )


def compare(old: Path, new: Path, fail_over: str, metric: str | None, other_machine: bool, as_json: bool) -> int:
    """Compare two reports; 1 when something became slower than allowed."""
    limit, metrics = comparison.parse_limit(fail_over), comparison.parse_metrics(metric)
    before, after = comparison.read(old), comparison.read(new)
    found = comparison.compare(before, after, limit, other_machine=other_machine, metrics=metrics)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        _print_comparison(found)
    return 1 if found.failed else 0


def prepare(options: Options, size: int = 1) -> runner.Setup:
    """Check what the user gave, cheapest first; nothing is loaded here."""
    for name, value, least in (("rounds", options.rounds, 1), ("runs", options.runs, 1), ("warmup", options.warmup, 0)):
        if value < least:
            raise UsageError("bad-count", f"--{name} is {value}", remedy=f"use {least} or more")
    if options.dtype not in DTYPES:
        message = f"--dtype is {options.dtype!r}"
        raise UsageError("bad-dtype", message, remedy=f"use one of {', '.join(DTYPES)}")
    works = [
        matrix.Work(options.mode, batch, isl, options.osl, options.attn, options.cache, options.compile, size)
        for batch in _numbers("batch", options.batch)
        for isl in _numbers("isl", options.isl)
    ]
    cells = matrix.plan(options.matrix, works)
    model = Path(options.model)
    folder = model.parent if model.name == "config.json" else model
    model_type = target.read_model_type(folder)
    interpreter = target.probe(options.python)
    return runner.Setup(
        interpreter=interpreter,
        model=folder.resolve(),
        has_weights=any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")),
        sources=target.find_sources(interpreter, model_type),
        mode=options.mode,
        dtype=options.dtype,
        seed=SEED,
        rounds=options.rounds,
        runs=options.runs,
        warmup=options.warmup,
        timeout=options.timeout,
        cells=cells,
    )


def tuning(setup: runner.Setup, gpu: str | None, notes: Console) -> dict[str, Any] | None:
    """Which hot shapes of the model have a tuned row, where a GPU with tables is named; None otherwise."""
    if gpu is None:
        return None
    from ..tune import coverage, inputs, shapes
    from ..tune.errors import TuneError
    from ..tune.models import read_model

    try:
        device = inputs.target_device(gpu)
        index, _ = inputs.index_for(device, [], None, inputs.target_aiter(None, None).rules)
        fused = shapes.parse_fused("qkv,gate_up")
        model = read_model(setup.model / "config.json", fused=fused, tp=1, assume=None)
        ladder = shapes.parse_ladder("decode")
        found = coverage.cover(model, index, ladder, shapes.parse_dtype(setup.dtype), fused)
    except TuneError as error:
        notes.print(f"warning: tuned coverage is left out: {error.message}", highlight=False, markup=False)
        return None
    lines = [
        {"name": f"{line.linear.role} {line.linear.n}x{line.linear.k}", "cells": [cell.state for cell in line.cells]}
        for line in found.lines
        if line.linear.kind != "image"
    ]
    return {"gpu": gpu, "hot_shapes": found.total, "tuned": found.found, "ladder": list(ladder), "lines": lines}


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"--{name} is {text!r}, expected whole numbers separated by commas"
        raise UsageError("bad-length", message, remedy=f"write --{name} 1,8,32") from None


def _write(folder: Path, content: dict[str, Any], html: Path | None, notes: Console) -> None:
    texts = {
        "report.json": json.dumps(content, indent=1) + "\n",
        "report.csv": output.as_csv(content),
        "report.md": output.as_markdown(content),
    }
    try:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for row in content["cells"]:
            if row["measures"]:
                place = folder / "optimum" / row["id"].replace(" ", "_")
                place.mkdir(parents=True, exist_ok=True)
                (place / "benchmark_report.json").write_text(json.dumps(optimum.report(row), indent=1) + "\n")
        page = _page(content, notes, wanted=html is not None)
        if page is not None:
            (html or folder / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        message = f"{error.filename or folder} cannot be written: {error.strerror}; the samples are in {folder}"
        raise WriteError("no-output", message, remedy="run the same command again: nothing is measured twice") from None


def _page(content: dict[str, Any], notes: Console, *, wanted: bool) -> str | None:
    """Return the HTML page, or None where its libraries are missing and nobody asked for it by name."""
    try:
        from .page import render

        return render(content)
    except ModuleNotFoundError as error:
        remedy = "run `pip install 'transformers-rocm-overlay[bench]'`"
        if wanted:
            raise UsageError("no-plot", f"--html needs {error.name}, which is not installed", remedy=remedy) from None
        notes.print(f"note: no report.html, since {error.name} is not installed ({remedy})", highlight=False)
        return None


def _show(content: dict[str, Any], compared: comparison.Comparison | None, folder: Path, as_json: bool) -> None:
    if as_json:
        whole = {**content, **({"baseline": compared.as_json()} if compared else {}), "folder": str(folder)}
        print(json.dumps(whole, indent=1))
        return
    console = Console()
    output.table(content, console if console.is_terminal else Console(width=200))
    if compared:
        _print_comparison(compared)
    print(f"report.json, report.csv, report.md and the samples are in {folder}")


def _print_comparison(found: comparison.Comparison) -> None:
    for note in found.notes:
        print(f"note: {note}")
    for change in found.changes:
        mark = "FAIL" if change.fails else "    "
        print(
            f"{mark} {change.cell:40} {change.measure:10} {output.milliseconds(change.old_s):>8} ms -> "
            f"{output.milliseconds(change.new_s):>8} ms  {change.outcome}"
        )
    for cell in found.only_old:
        print(f"FAIL {cell}: only in the old report")
    for cell in found.only_new:
        print(f"     {cell}: only in the new report")


def _progress(setup: runner.Setup, journal: runner.Journal) -> AbstractContextManager[Step]:
    total, done = len(setup.cells) * setup.rounds, len(journal.done())
    lines: Step = lambda text: print(f"overlay bench: {text}", file=sys.stderr)  # noqa: E731
    return progress(sys.stderr, total, "starting", elsewhere=lines, done=done)
