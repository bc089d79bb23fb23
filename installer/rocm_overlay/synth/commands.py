"""What the commands do, as functions that return the exit status."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rocm_overlay.console import complain, emit, notes, print_json, raw, say, wants_json
from rocm_overlay.errors import UsageError
from rocm_overlay.executor import Executor

from . import examine as examine_
from . import kernelbench, pipeline, providers
from . import settings as settings_
from .journal import Index, Journal
from .providers import Provider
from .sampler import catalogue
from .sampler.catalogue import Catalogue
from .sandbox.pool import NAMES, Setup, job, make_executor
from .settings import Settings
from .stats import Stats

EVERY_SECONDS = 10.0


def _catalogue(settings: Settings) -> Catalogue:
    """The operator lists, with the user's; the offline provider draws only what it can write."""
    lists = catalogue.load(extra=settings.operators_file)
    if settings.model_name != "offline":
        return lists
    left = [one.name for kind in lists.operators.values() for one in kind if not one.forms]
    if left:
        say(f"the offline provider cannot write {', '.join(left)}: their entries say only a name")
    return lists.written()


def _check_names(settings: Settings, lists: Catalogue, executor: Executor) -> None:
    """Refuse a list of the user's that asks for what torch does not have: no program could ever call it."""
    if settings.operators_file is None:
        return
    described = lists.described()
    names = [name for name in described["names"] if name not in described["compounds"]]
    answer = executor.submit(job("names", "", settings.limits, kind=f"{NAMES}", names=names)).result()
    if not answer["ok"]:
        raise UsageError(
            "bad-operators-file",
            f"operators_file {settings.operators_file}: {answer['message']}",
            remedy="write names as torch has them (nn.Linear, F.silu, torch.cat, torch.Tensor.expand), or category = "
            '"compound" for a class or function of the program\'s own',
            paths=[settings.operators_file],
        )


def _judge(settings: Settings, executor: Executor, provider: Provider, lists: Catalogue) -> pipeline.Judge:
    _check_names(settings, lists, executor)
    near = kernelbench.make(
        settings.kernelbench_filter,
        settings.kernelbench_threshold,
        settings.kernelbench_dir,
        executor,
        settings.limits,
        say,
    )
    return pipeline.Judge(provider, executor, settings, lists, near)


def single_debug(settings: Settings) -> int:
    """Make one program, show the plan, the answer and each check; 1 when it is not valid."""
    settings_.check_machine(settings)
    lists = _catalogue(settings)
    provider = providers.make(settings, lists)
    plan = pipeline.plan_for(lists, settings, 0)
    for kind in ("core", "compound", "supporting"):
        say(f"{kind}: {', '.join(one.name for one in getattr(plan, kind)) or '-'}")
    if settings.model_name != "offline":
        say("\n".join(providers.load_prompts(settings.prompts, settings.prompts_dir).render(plan)))
    executor = make_executor("process", 1, Setup(settings.compile_backend))
    try:
        judge = _judge(settings, executor, provider, lists)
        outcome = judge.attempt(plan)
    finally:
        executor.close()
    program, labels = outcome.program, outcome.labels
    found: dict[str, Any] = {"name": program.name, "source": program.source} if program else {}
    if labels:
        nearest, similarity = judge.filter.nearest(labels["graph"])
        found.update(operators=judge.named(labels), calls=labels["calls"], missing=list(outcome.missing))
        found.update(nearest_problem=nearest, similarity=round(similarity, 3))
    if wants_json():
        body: dict[str, Any] = {"category": outcome.category, "message": outcome.message}
        body |= {"answer": outcome.answer, "attempt": outcome.record(), **found}
        return print_json("synth.single_debug", body, code=1 if outcome.category else 0)
    raw(f"{program.source if program else outcome.reply.text}\n".encode())
    if labels:
        say(f"called: {', '.join(found['operators'])}")
        say(f"nearest KernelBench problem: {nearest or 'none'} (similarity {similarity:.2f})")
    answer = outcome.answer or {}
    shapes = f"{', '.join(answer.get('inputs', []))} -> {', '.join(answer.get('outputs', []))}"
    if outcome.category:
        complain(f"overlay synth single_debug: {outcome.category}: {outcome.message}", "  next: try another seed=N")
        return 1
    say(f"valid: {program and program.name}: {shapes}")
    return 0


def parallel(settings: Settings, *, fresh: bool = False) -> int:
    """Fill an output folder; 1 when it holds no valid program of this run at the end."""
    settings_.check_machine(settings)
    lists = _catalogue(settings)
    provider = providers.make(settings, lists)
    settings_.prepare_folder(settings.output_dir)
    journal = Journal(settings.output_dir, settings.key, fresh=fresh)
    reused = journal.reuse(settings.num_total_samples)
    told = [reused.text(f"programs in {settings.output_dir}")] if reused else []
    notes([*told, *(f"programs of another run stay: {other}" for other in journal.others() if not reused)])
    stats = Stats(settings.num_total_samples)
    executor: Executor | None = None
    try:
        executor = make_executor(settings.executor, settings.num_worker, Setup(settings.compile_backend))
        judge = _judge(settings, executor, provider, lists)
        judge.index = Index(journal)
        with _display(stats) as show:
            run = pipeline.Run(settings, judge, journal, stats, show)
            run.restore()
            run.work()
    finally:
        if executor is not None:
            executor.close()
        journal.close()
        for line in stats.text():
            say(line)
    body = {"output_dir": str(settings.output_dir), "stats": stats.as_json(), "reused": reused and reused.as_json()}
    text = f"{settings.output_dir}: {stats.valid} programs"
    return emit("synth.parallel", body, text, 0 if stats.valid else 1)


def merge(folders: list[Path], settings: Settings) -> int:
    """Put the programs of some folders into one, each computation once; 1 when a program had to be left out."""
    from . import merge as merge_

    merge_.check(folders, settings.output_dir)
    settings_.check_machine(settings)
    executor = make_executor("process", settings.num_worker, Setup("none"))
    try:
        done = merge_.merge(folders, settings, executor, catalogue.load(extra=settings.operators_file).described())
    finally:
        executor.close()
    for path, why in done.left_out:
        say(f"{path}: left out: {why}")
    body = {"output_dir": str(settings.output_dir), **done.as_json()}
    text = (
        f"{settings.output_dir}: {done.total} programs, {done.written} of them new; "
        f"{len(done.duplicates)} duplicates, {len(done.left_out)} left out"
    )
    return emit("synth.merge", body, text, 1 if done.left_out else 0)


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
            say(stats.line())

    yield show


def _screen(stats: Stats, outcome: Any) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row("progress", stats.line())
    table.add_row("errors", ", ".join(f"{name} {count}" for name, count in stats.categories.most_common()) or "none")
    worst = ", ".join(f"{name} {good}/{tried}" for name, good, tried in stats.worst()[:8])
    table.add_row("operators", worst or "every operator passes")
    table.add_row("last", outcome.program.name if outcome.program else f"{outcome.category}: {outcome.message[:80]}")
    return table


def validate(path: Path, settings: Settings) -> int:
    """Validate a file or every program of a folder; 1 when one is not valid."""
    settings_.check_machine(settings)
    files = programs(path)
    executor = make_executor("process", min(settings.num_worker, len(files)), Setup(settings.compile_backend))
    try:
        waiting = [(file, _validate_one(file, executor, settings)) for file in files]
        rows = [{"path": str(file), **judge()} for file, judge in waiting]
    finally:
        executor.close()
    lines = [f"{row['path']}: {_verdict(row)}" for row in rows]
    good = sum(row["ok"] for row in rows)
    text = "\n".join([*lines, f"{good} of {len(rows)} programs are valid"])
    return emit("synth.validate", {"programs": rows}, text, 0 if good == len(rows) else 1)


def _verdict(row: dict[str, Any]) -> str:
    return f"valid, {', '.join(row['outputs'])}" if row["ok"] else f"{row['category']}: {row['message']}"


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
        program = examine_.examine(examine_.read_source(file), file.stem)
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


def fuzz(target: str, corpus: Path | None, settings: Settings) -> int:
    """Fuzz one target; 1 when something was found."""
    from .fuzz.session import Session, save

    settings_.check_machine(settings)
    session = Session(target, settings)
    settings_.prepare_folder(settings.output_dir)
    sources = [examine_.read_source(file) for file in programs(corpus)] if corpus else session.fresh_corpus()
    with session:
        findings = session.run(sources, say)
    for finding in findings:
        save(finding, settings.output_dir)
    counts = session.counts
    body = {"target": target, "counts": counts, "findings": [f.as_json() for f in findings]}
    lines = [f"{one.name}: {one.message} ({one.lines} lines of module code)" for one in findings]
    told = f"{counts['programs']} programs, {counts['touched']} with something replaced, {len(findings)} findings"
    text = "\n".join([*lines, f"{target}: {told}"])
    return emit("synth.fuzz", body, text, 1 if findings else 0)
