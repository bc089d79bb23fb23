"""``overlay qualify`` and ``overlay warmup``: from a model folder to a profile, with everything told on the way."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ...install.transaction.errors import OverlayError, UsageError
from .. import plan, target
from ..report import refuse
from ..workers import OPTIONAL_TIERS, Setup
from . import child, choose, document, steps
from .choose import Choice
from .session import Session

SCHEMA = "amd-overlay.qualify/1"
WARMUP_SCHEMA = "amd-overlay.warmup/1"
GIB = 2**30


@dataclass(frozen=True)
class Options:
    """What the user asked for; field names are the long options."""

    model: Path
    output: Path = Path("profile.json")
    python: str | None = None
    dtype: str = "bfloat16"
    max_capture: float = 4.0  # GiB
    time_limit: float = 60.0  # seconds without an answer
    build_limit: float = 1200.0  # the same while a first call may build kernels
    dry_run: bool = False
    register: bool = True  # leave it where AMD_OPS=auto looks, too
    json_output: bool = False


def run(options: Options) -> int:
    """Qualify a model on this machine and write its profile; return the exit code.

    0: a profile was written (it may leave everything to stock). Other codes as for ``overlay verify``.
    """
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    try:
        content = qualify(options, say)
    except OverlayError as error:
        return refuse("qualify", error, SCHEMA, as_json=options.json_output)
    if options.json_output:
        print(json.dumps({"schema": SCHEMA, "ok": True, "exit_code": 0, **content}, allow_nan=False))
    return 0


def qualify(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Carry out every step and return the profile (with ``written``), or only the plan in a dry run."""
    start = time.perf_counter()
    session, setup = _open(options)
    supply = steps.inspect(session)
    resumed = session.open(supply["machine"])
    _show_plan(session, supply, resumed, say)
    if options.dry_run:
        return {"plan": _plan(session, supply)}
    told: dict[str, Any] = {"nan_weights": [], "left_out": {}}
    if not session.captured:
        told = steps.capture(session, int(options.max_capture * GIB), say)
        if told["nan_weights"]:
            say(f"weights hold NaN: {', '.join(told['nan_weights'][:5])}; results are compared NaN for NaN")
    points, choice = _candidates(session, supply, options, say)
    checked = _end_to_end(session, setup, supply, choice, say)
    extra = {"end_to_end": checked, "nan_weights": told["nan_weights"], "left_out": told["left_out"]}
    content = document.profile(session, supply, choice, extra)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    document.write(options.output, text)
    written = [str(options.output)]
    if options.register:
        default = Path(supply["default_profile"])
        document.write(default, text)
        written.append(str(default))
    document.write(session.work / "replay.json", json.dumps(_replayable(session, setup, points), indent=1))
    tests = document.write_tests(session, options.output, dict.fromkeys(item["point"] for item in points))
    _show_outcome(content, written, tests, time.perf_counter() - start, say)
    return {**content, "written": written, "tests": [str(path) for path in tests]}


def _open(options: Options) -> tuple[Session, Setup]:
    plan.check_dtype(options.dtype)
    if options.max_capture <= 0 or options.time_limit <= 0 or options.build_limit <= 0:
        raise UsageError("bad-limit", "a limit is not positive", remedy="use numbers above zero")
    found = target.read_model(options.model)
    interpreter = target.probe(options.python)
    sources = target.find_sources(interpreter, *found.types)
    work = options.output.resolve().with_name(options.output.stem + ".work")
    session = Session(interpreter, found.path.resolve(), found.seeded, sources, options.dtype, work)
    session.scratch.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        interpreter=interpreter, model=session.model, sources=sources, dtype=options.dtype, seed=0, max_new_tokens=8,
        cases=plan.QUICK, implementations=plan.IMPLEMENTATIONS[:1], seeded=found.seeded,
    )  # fmt: skip
    return session, setup


def _plan(session: Session, supply: dict[str, Any]) -> dict[str, Any]:
    points = [{"point": f"{p.switch}@{p.qualname}", "toggles": supply["switches"].get(p.switch, [])}
              for p in session.points]  # fmt: skip
    return {"machine": supply["machine"], "points": points, "supply": supply["supply"]}


def _show_plan(session: Session, supply: dict[str, Any], resumed: bool, say: Callable[[str], None]) -> None:
    machine = supply["machine"]
    say(f"device       {machine['device']}, torch {machine['torch']}, aiter {machine['aiter'] or 'none'}")
    say(f"model        {session.model}, {session.dtype}")
    for row in supply["supply"]:
        if row["tier"] in OPTIONAL_TIERS:
            say(f"supply       {row['op']} on {row['tier']}: {row['reason'] or 'offered'}")
    for point in session.points:
        say(f"demand       {point.switch} in {point.qualname}")
    say("plan         capture each of these on stock; try every tier offered there; check, then time against stock;")
    say("             keep what is right and faster; run the whole model; write the profile and one test per place")
    if resumed:
        say(f"resumed      {len(session.results)} candidates of an interrupted run are taken up")


def _candidates(
    session: Session, supply: dict[str, Any], options: Options, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], Choice]:
    limits = {"limit": options.time_limit, "build_limit": options.build_limit}
    base = steps.per_point(session, supply, {}, "base")
    steps.replay(session, base, say, **limits)
    reach = {item["point"]: sorted(session.results[item["id"]].get("ran", {})) for item in base}
    tried = steps.candidates(session, supply, reach)
    steps.replay(session, tried, say, **limits)
    ops = sorted({row["op"] for row in supply["supply"]})
    choice = choose.choose_tiers(ops, tried, session.results)
    # The tiers that were chosen together, place by place: where nothing was chosen that is the base.
    suffix = "base" if all(tiers == choose.BASE for tiers in choice.op_tiers.values()) else f"chosen:{choice.text()}"
    final = steps.per_point(session, supply, choice.op_tiers, suffix)
    steps.replay(session, final, say, **limits)
    choose.settle(choice, final, session.results, list(supply["switches"]))
    return final, choice


def _end_to_end(
    session: Session, setup: Setup, supply: dict[str, Any], choice: Choice, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run the whole model under the choice; a switch that the bisect names, else the last one, goes back to stock."""
    checked: list[dict[str, Any]] = []
    while enabled := [name for name in supply["switches"] if name not in choice.stock]:
        values = document.toggles_of(choice, supply)
        limits = {"stock": str(values.pop("AMD_OPS_STOCK")), "op_tiers": str(values.pop("AMD_OPS_OP_TIERS"))}
        result = steps.end_to_end(setup, {name: str(value) for name, value in values.items()}, limits)
        checked.append({"enabled": enabled, "status": result.status, "cases": len(result.cases)})
        say(f"end to end   {', '.join(enabled)}: {result.status}")
        if result.status in ("ok", "no-effect"):
            return checked
        culprit = result.culprit or {"switches": []}
        named = [item["switch"] for item in culprit["switches"] if item["switch"] in enabled]
        for name in named or enabled[-1:]:
            choice.stock[name] = f"the whole model {result.status} with it {result.message}".strip()[:300]
    return checked


def _replayable(session: Session, setup: Setup, points: list[dict[str, Any]]) -> dict[str, Any]:
    """What a test or a warm-up needs to make the calls again."""
    return {
        "model": str(session.model),
        "dtype": session.dtype,
        "seeded": session.seeded,
        "points": [{key: item[key] for key in ("id", "point", "place", "settings", "switch")} for item in points],
    }


def _show_outcome(
    content: dict[str, Any], written: list[str], tests: list[Path], seconds: float, say: Callable[[str], None]
) -> None:
    for switch, verdict in content["verdicts"]["switches"].items():
        say(f"{'enabled' if verdict == 'enabled' else 'stock':<12} {switch}"
            + ("" if verdict == "enabled" else f": {verdict}"))  # fmt: skip
    say(f"profile      {written[0]} (AMD_OPS={written[0]}" + ("; AMD_OPS=auto uses it, too)" if written[1:] else ")"))
    say(f"tests        {len(tests)} in {tests[0].parent if tests else 'none'}; {seconds:.0f} s")


def warmup(profile: Path, *, python: str | None = None, json_output: bool = False) -> int:
    """Make every captured call of a profile once in a fresh process and tell what each op's first call took."""
    try:
        found = warm(profile, python)
    except OverlayError as error:
        return refuse("warmup", error, WARMUP_SCHEMA, as_json=json_output)
    if json_output:
        print(json.dumps({"schema": WARMUP_SCHEMA, "ok": True, "exit_code": 0, **found}))
        return 0
    for item in found["ops"]:
        first = "-" if item["first_call_s"] is None else f"{item['first_call_s'] * 1e3:.1f} ms"
        print(f"{item['op']:<20} {item['tier']:<8} first call {first:>12}, {item['calls']} calls")
    return 0


def warm(profile: Path, python: str | None = None) -> dict[str, Any]:
    """Return ``{"places": [...], "ops": [...]}`` of a warm-up. Raises UsageError without the profile's captures."""
    profile = profile.resolve()
    session, content, replayed = reopen(profile.with_name(profile.stem + ".work"), profile, python)
    values = dict(content["toggles"])
    names = {"AMD_OPS_STOCK": "stock", "AMD_OPS_OP_TIERS": "op_tiers", "AMD_OPS_TIERS": "tiers"}
    settings = {names.get(name, name.lower()): str(value) for name, value in values.items()}
    places = {item["place"]["qualname"]: item["place"] for item in replayed["points"]}
    found: dict[str, Any] = {"places": [], "ops": []}

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "warmed":
            found["places"].append({key: event[key] for key in ("place", "calls", "seconds")})
        elif event["event"] == "warm":
            found["ops"] = event["ops"]
        elif event["event"] == "failed":
            found["message"] = event["message"]

    try:
        child.run(session, "warmup", on_event, limit=3600.0, places=list(places.values()), settings=settings)
    except child.WorkerError as error:
        found["message"] = f"{error}: {error.log}"
    if "message" in found:
        remedy = "run `overlay qualify` again on this machine"
        raise UsageError("warmup-failed", f"{profile}: {found['message']}", remedy=remedy, paths=[profile])
    return found


def reopen(work: Path, profile: Path | None, python: str | None) -> tuple[Session, dict[str, Any], dict[str, Any]]:
    """Return the session of a finished qualification, its profile's content and its points. Raises UsageError."""
    remedy = "run `overlay qualify`; its profile and its .work folder belong together"
    try:
        content = json.loads(profile.read_bytes()) if profile is not None else {}
        replayed = json.loads((work / "replay.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError("no-captures", f"{profile or work} cannot be used: {error}", remedy=remedy) from None
    interpreter = target.probe(python or sys.executable)
    found = target.read_model(Path(replayed["model"]))
    sources = target.find_sources(interpreter, *found.types)
    session = Session(interpreter, found.path, replayed["seeded"], sources, replayed["dtype"], work)
    session.scratch.mkdir(parents=True, exist_ok=True)
    return session, content, replayed
