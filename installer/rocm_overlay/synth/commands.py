"""What the commands do, as functions that return the exit status."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rocm_overlay.install.transaction.errors import UsageError

from . import examine as examine_
from . import pipeline, providers
from . import settings as settings_
from .journal import Journal
from .sampler import catalogue
from .sampler.plan import derive, sample
from .sandbox.pool import Setup, job, make_executor
from .settings import Settings
from .stats import Stats

EVERY_SECONDS = 10.0


def _emit(command: str, body: dict[str, Any]) -> None:
    print(json.dumps({"schema": f"amd-overlay.synth.{command}/1", **body}, indent=1, sort_keys=True))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def single_debug(settings: Settings, *, as_json: bool) -> int:
    """Make one program, show the plan, the answer and each check; 1 when it is not valid."""
    settings_.check_machine(settings)
    provider = providers.make(settings)
    plan = sample(catalogue.load(), settings.counts, derive(settings.seed, 0))
    for kind in ("core", "compound", "supporting"):
        _say(f"{kind}: {', '.join(one.name for one in getattr(plan, kind)) or '-'}")
    if settings.model_name != "offline":
        from .providers.base import prompt

        _say("\n".join(prompt(settings.prompts, plan)))
    executor = make_executor("process", 1, Setup(settings.compile_backend))
    try:
        outcome = pipeline.attempt(plan, provider, executor, pipeline.Seen(), settings)
    finally:
        executor.close()
    program = outcome.program
    if as_json:
        found = (
            {"name": program.name, "source": program.source, "calls": sorted(set(program.operators))} if program else {}
        )
        body = {"ok": not outcome.category, "category": outcome.category, "message": outcome.message}
        _emit("single_debug", {**body, "answer": outcome.answer, "attempt": outcome.record(), **found})
    else:
        print(program.source if program else outcome.reply.text)
        _say(f"valid: {outcome.answer}" if not outcome.category else f"{outcome.category}: {outcome.message}")
    return 1 if outcome.category else 0


def parallel(settings: Settings, *, as_json: bool) -> int:
    """Fill an output folder; 1 when it holds no valid program at the end."""
    settings_.check_machine(settings)
    provider = providers.make(settings)
    settings_.prepare_folder(settings.output_dir)
    journal = Journal(settings.output_dir, settings.fingerprint())
    stats = Stats(settings.num_total_samples)
    executor = make_executor(settings.executor, settings.num_worker, Setup(settings.compile_backend))
    try:
        with _display(stats) as show:
            run = pipeline.Run(settings, provider, executor, journal, stats, show)
            run.restore()
            run.work()
    finally:
        executor.close()
        journal.close()
        for line in stats.text():
            _say(line)
    if as_json:
        _emit("parallel", {"ok": stats.valid > 0, "output_dir": str(settings.output_dir), "stats": stats.as_json()})
    else:
        print(f"{settings.output_dir}: {stats.valid} programs")
    return 0 if stats.valid else 1


@contextmanager
def _display(stats: Stats) -> Iterator[Callable[[Any], None]]:
    """Show the state while a run goes on: in place on a terminal, as a line now and then elsewhere; on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(Text(stats.line()), console=Console(stderr=True), refresh_per_second=4) as live:
            yield lambda outcome: live.update(_screen(stats, outcome))
        return
    last = [time.monotonic()]

    def show(outcome: Any) -> None:
        if time.monotonic() - last[0] >= EVERY_SECONDS:
            last[0] = time.monotonic()
            _say(stats.line())

    yield show


def _screen(stats: Stats, outcome: Any) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row("progress", stats.line())
    table.add_row("errors", ", ".join(f"{name} {count}" for name, count in stats.categories.most_common()) or "none")
    worst = ", ".join(f"{name} {good}/{tried}" for name, good, tried in stats.worst()[:5])
    table.add_row("operators", worst or "every operator passes")
    table.add_row("last", outcome.program.name if outcome.program else f"{outcome.category}: {outcome.message[:80]}")
    return table


def validate(path: Path, settings: Settings, *, as_json: bool) -> int:
    """Validate a file or every program of a folder; 1 when one is not valid."""
    settings_.check_machine(settings)
    files = programs(path)
    executor = make_executor("process", min(settings.num_worker, len(files)), Setup(settings.compile_backend))
    try:
        waiting = [(file, _validate_one(file, executor, settings)) for file in files]
        rows = [{"path": str(file), **judge()} for file, judge in waiting]
    finally:
        executor.close()
    good = all(row["ok"] for row in rows)
    if as_json:
        _emit("validate", {"ok": good, "programs": rows})
        return 0 if good else 1
    for row in rows:
        what = f"valid, {', '.join(row['outputs'])}" if row["ok"] else f"{row['category']}: {row['message']}"
        print(f"{row['path']}: {what}")
    print(f"{sum(row['ok'] for row in rows)} of {len(rows)} programs are valid")
    return 0 if good else 1


def programs(path: Path) -> list[Path]:
    """Return the program files that a path means.

    Raises:
        UsageError: it does not exist, or the folder has none.
    """
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob("*.py") if not file.name.startswith("test_")) if path.is_dir() else []
    if not files:
        what = "holds no .py file" if path.is_dir() else "does not exist"
        raise UsageError(
            "no-programs", f"{path} {what}.", remedy="name a program or a folder of programs", paths=[path]
        )
    return files


def _validate_one(file: Path, executor: Any, settings: Settings) -> Callable[[], dict[str, Any]]:
    """Start the validation of a file and return what waits for it: the policy at once, then eager, then compiled."""
    try:
        program = examine_.examine(read_source(file), file.stem)
    except examine_.Rejected as error:
        rejected = {"ok": False, "category": error.category, "message": error.message}
        return lambda: rejected
    eager = executor.submit(job(program.name, program.source, settings.limits, backend="none"))

    def judge() -> dict[str, Any]:
        answer: dict[str, Any] = eager.result()
        if answer["ok"] and settings.compile_backend != "none":
            compiled = job(program.name, program.source, settings.limits, backend=settings.compile_backend)
            answer = executor.submit(compiled).result()
        return answer

    return judge


def read_source(file: Path) -> str:
    """Return a program's text.

    Raises:
        Rejected: it is not UTF-8, or far too long.
    """
    data = file.read_bytes()
    if len(data) > examine_.MAX_BYTES:
        raise examine_.Rejected("syntax", f"the file has {len(data)} bytes, more than {examine_.MAX_BYTES}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise examine_.Rejected("syntax", f"not UTF-8 (byte {error.start})") from error


def fuzz(target: str, corpus: Path | None, settings: Settings, *, as_json: bool) -> int:
    """Fuzz one target; 1 when something was found."""
    from .fuzz.session import Session, save

    settings_.check_machine(settings)
    session = Session(target, settings)
    settings_.prepare_folder(settings.output_dir)
    sources = [read_source(file) for file in programs(corpus)] if corpus else session.fresh_corpus()
    with session:
        findings = session.run(sources, _say)
    for finding in findings:
        save(finding, settings.output_dir)
    counts = session.counts
    if as_json:
        _emit(
            "fuzz",
            {"ok": not findings, "target": target, "counts": counts, "findings": [f.as_json() for f in findings]},
        )
    else:
        for finding in findings:
            print(f"{finding.name}: {finding.message} ({finding.lines} lines of module code)")
        print(
            f"{target}: {counts['programs']} programs, {counts['touched']} with something replaced, "
            f"{len(findings)} findings"
        )
    return 1 if findings else 0
