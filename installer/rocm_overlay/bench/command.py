"""What `overlay bench` and `overlay bench compare` do: check, measure, report."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ..console import Step, notes, print_json, progress, say, show, table, wants_json
from ..errors import UsageError, WriteError
from ..executor import check, make_executor
from ..files import check_place, model_path
from ..verify import target
from ..verify.plan import DTYPES
from . import comparison, formats, matrix, optimum, ranks, report, runner, spread
from .memory import check_memory
from .options import Options
from .process import Process

SEED = 0
PAGE_LIBRARIES = ("jinja2", "matplotlib")


def run(options: Options) -> int:
    """Measure and report. 0: done. 1: a cell failed, deviates, or is slower than the baseline allows. 2: usage."""
    start = time.perf_counter()
    require_libraries(html=options.html is not None)
    if options.html is not None:
        check_place(options.html, "--html")
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
    with _folder(options, setup) as folder:
        return _run(options, setup, folder, team, start, baseline, limit, metrics)


@contextmanager
def _folder(options: Options, setup: runner.Setup) -> Iterator[Path]:
    """Where samples and report go: what is named, else a folder here; a program that reads the JSON gets none."""
    if options.output is not None:
        yield options.output
    elif wants_json():
        with tempfile.TemporaryDirectory(prefix="overlay-bench-") as name:
            yield Path(name)
    else:
        yield Path(f"overlay-bench-{setup.key.digest[:12]}")


def _run(
    options: Options,
    setup: runner.Setup,
    folder: Path,
    team: ranks.Team,
    start: float,
    baseline: dict[str, Any] | None,
    limit: float,
    metrics: tuple[str, ...],
) -> int:
    journal = runner.Journal(folder, setup, fresh=options.fresh)
    reused = journal.reuse(len(setup.cells) * setup.rounds)
    notes([reused.text(f"samples in {journal.folder}")] if reused else [])
    processes, size = _measure(options, setup, journal, team)
    built = report.build(setup, processes, size, time.perf_counter() - start)
    content = {**built.content, "tuning": tuning(setup, options.gpu), "reused": reused and reused.as_json()}
    _write(folder, content, options.html)
    compared = comparison.compare(baseline, content, limit, metrics=metrics) if baseline else None
    code = 0 if built.ok and not (compared and compared.failed) else 1
    kept = None if wants_json() and options.output is None else folder
    _show(content, compared, kept, code)
    return code


def _measure(
    options: Options, setup: runner.Setup, journal: runner.Journal, team: ranks.Team
) -> tuple[list[Process], dict[str, Any]]:
    """Run the plan here or on a cluster; return every process, and the size of the model."""
    if options.executor == "process":
        size = runner.ask_size(setup)
        check_memory(size, setup)
        with _progress(setup, journal) as step:
            return runner.run_all(setup, journal, step, team), size
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


def require_libraries(*, html: bool = False) -> None:
    """Refuse before any work where a library of the report, or of the page that is wanted, is missing."""
    needed = ("numpy", "safetensors", *(PAGE_LIBRARIES if html else ()))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "no-library",
            f"`overlay bench{' --html' if html else ''}` needs {' and '.join(missing)}, not found in {sys.prefix}",
            remedy=f"run `pip install {' '.join(missing)}`",
        )


def compare(old: Path, new: Path, fail_over: str, metric: str | None, other_machine: bool) -> int:
    """Compare two reports; 1 when something became slower than allowed."""
    limit, metrics = comparison.parse_limit(fail_over), comparison.parse_metrics(metric)
    before, after = comparison.read(old), comparison.read(new)
    found = comparison.compare(before, after, limit, other_machine=other_machine, metrics=metrics)
    code = 1 if found.failed else 0
    if wants_json():
        return print_json("bench.compare", found.as_json(), code=code)
    _print_comparison(found)
    return code


def prepare(options: Options, size: int = 1) -> runner.Setup:
    """Check what the user gave, cheapest first; nothing is loaded here."""
    if options.model is None:
        remedy = "name a folder with a config.json, as in `overlay bench --model ./Llama-3.2-1B`"
        raise UsageError("no-model", "--model is missing", remedy=remedy)
    for name, value, least in (("rounds", options.rounds, 1), ("runs", options.runs, 1), ("warmup", options.warmup, 0)):
        if value < least:
            raise UsageError("bad-count", f"--{name} is {value}", remedy=f"use {least} or more")
    if not 0 < options.timeout < math.inf:
        raise UsageError("bad-limit", f"--timeout is {options.timeout:g}", remedy="use seconds above zero")
    if options.dtype not in DTYPES:
        message = f"--dtype is {options.dtype!r}"
        raise UsageError("bad-dtype", message, remedy=f"use one of {', '.join(DTYPES)}")
    works = [
        matrix.Work(options.mode, batch, isl, options.osl, options.attn, options.cache, options.compile, size)
        for batch in _numbers("batch", options.batch)
        for isl in _numbers("isl", options.isl)
    ]
    cells = matrix.plan(options.matrix, works)
    model = model_path(options.model)
    folder = model.parent if model.name == "config.json" else model
    found = target.read_model(folder)
    interpreter = target.probe(options.python)
    sources = target.find_sources(interpreter, *found.names)
    return runner.Setup(
        interpreter=interpreter,
        model=folder.resolve(),
        has_weights=any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")),
        sources=sources,
        mode=options.mode,
        dtype=options.dtype,
        seed=SEED,
        rounds=options.rounds,
        runs=options.runs,
        warmup=options.warmup,
        timeout=options.timeout,
        cells=cells,
        subject=target.fingerprint_of(interpreter, folder, sources),
    )


def tuning(setup: runner.Setup, gpu: str | None) -> dict[str, Any] | None:
    """Which hot shapes of the model have a tuned row, where a GPU with tables is named; None otherwise."""
    if gpu is None:
        return None
    from ..errors import OverlayError
    from ..tune import coverage, inputs, shapes
    from ..tune.models import read_model

    try:
        device = inputs.target_device(gpu)
        index, _ = inputs.index_for(device, [], None, inputs.target_aiter(None, None).rules)
        fused = shapes.parse_fused("qkv,gate_up")
        model = read_model(setup.model / "config.json", fused=fused, tp=1, assume=None)
        ladder = shapes.parse_ladder("decode")
        found = coverage.cover(model, index, ladder, shapes.parse_dtype(setup.dtype), fused)
    except OverlayError as error:
        say(f"warning: tuned coverage is left out: {error.message}")
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


def _write(folder: Path, content: dict[str, Any], html: Path | None) -> None:
    texts = {
        "report.json": json.dumps(content, indent=1) + "\n",
        "report.csv": formats.as_csv(content),
        "report.md": formats.as_markdown(content),
    }
    try:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for row in content["cells"]:
            if row["measures"]:
                place = folder / "optimum" / row["id"].replace(" ", "_")
                place.mkdir(parents=True, exist_ok=True)
                (place / "benchmark_report.json").write_text(json.dumps(optimum.report(row), indent=1) + "\n")
        page = _page(content)
        if page is not None:
            (html or folder / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        message = f"{error.filename or folder} cannot be written: {error.strerror}; the samples are in {folder}"
        raise WriteError("no-output", message, remedy="run the same command again: nothing is measured twice") from None


def _page(content: dict[str, Any]) -> str | None:
    """Return the HTML page, or None where its libraries are missing; `--html` refuses that beforehand."""
    try:
        from .page import render

        return render(content)
    except ModuleNotFoundError as error:
        notes([f"no report.html, since {error.name} is not installed (run `pip install {error.name}`)"])
        return None


def _show(content: dict[str, Any], compared: comparison.Comparison | None, folder: Path | None, code: int) -> None:
    if wants_json():
        whole = {**content, **({"baseline": compared.as_json()} if compared else {}), "folder": folder and str(folder)}
        print_json("bench", whole, code=code)
        return
    formats.show(content)
    if compared:
        _print_comparison(compared)
    show(f"report.json, report.csv, report.md and the samples are in {folder}")


def _print_comparison(found: comparison.Comparison) -> None:
    failed = sum(change.fails for change in found.changes) + len(found.only_old)
    show(f"{failed or 'no'} failure{'' if failed == 1 else 's'} against the earlier report")
    notes(found.notes)
    rows = [
        (
            change.cell,
            change.measure,
            f"{formats.milliseconds(change.old_s)} -> {formats.milliseconds(change.new_s)}",
            change.outcome,
            "FAIL" if change.fails else "",
        )
        for change in found.changes
    ]
    rows += [(cell, "", "", "only in the old report", "FAIL") for cell in found.only_old]
    rows += [(cell, "", "", "only in the new report", "") for cell in found.only_new]
    table(("cell", "measure", "ms", "outcome", ""), rows)


def _progress(setup: runner.Setup, journal: runner.Journal) -> AbstractContextManager[Step]:
    return progress(len(setup.cells) * setup.rounds, "starting", done=len(journal.done()))
