"""``overlay qualify`` and ``overlay warmup``: from a model folder to a profile, with everything told on the way."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ...console import emit, progress, say
from ...errors import DIFFERENT, UsageError
from ...fingerprint import sha256
from ...shared import rules
from .. import plan, target
from ..options import QualifyOptions as Options
from ..workers import OPTIONAL_TIERS, Setup
from . import arms, child, choose, document, steps
from .arms import Found
from .choose import PLAN, Choice
from .session import Session
from .steps import Counted, Say

GIB = 2**30


def run(options: Options) -> int:
    """Qualify a model on this machine and write its profile; return the exit code.

    0: the profile speaks for every place of the model (it may leave everything to stock). 1: some place could not be
    captured; the profile was written and leaves it to stock. Other codes as for ``overlay verify``.
    """
    content = qualify(options, say, progress)
    code = 0 if content.get("complete", True) else DIFFERENT
    partial = (
        f"{len(content['left_out'])} places or runs are not proved: the profile leaves them to stock" if code else ""
    )
    return emit("qualify", content, partial, code)


def qualify(options: Options, say: Say, counted: Counted | None = None) -> dict[str, Any]:
    """Carry out every step and return the profile (with ``written``), or only the plan in a dry run."""
    start = time.perf_counter()
    counted = counted or steps.unwatched(say)
    if options.dry_run:
        with tempfile.TemporaryDirectory(prefix="overlay-qualify-") as name:  # what earlier runs left stays as it is
            session, _ = _open(options, Path(name))
            supply = _inspect(session, counted)
            _show_plan(session, supply, False, say)
            return {"plan": _plan(session, supply)}
    session, setup = _open(options, document.work_of(options.output))
    supply = _inspect(session, counted)
    if not options.fresh:
        known = document.valid(options.output, session.subject(supply["machine"]))
        if known is not None:
            return _known(options, known, Path(supply["default_profile"]), say)
    resumed = session.open(supply["machine"], fresh=options.fresh)
    _show_plan(session, supply, resumed, say)
    content = _plan(session, supply)
    document.write(session.work / "plan.json", json.dumps(content, indent=1) + "\n")
    captured = session.captured or steps.capture(session, int(options.max_capture * GIB), counted, options.inputs)
    _show_capture(captured, say)
    found = _candidates(session, supply, options, say, counted)
    checked = _end_to_end(session, setup, supply, found.choice, say, counted)
    compared = arms.settle(session, setup, supply, found, options.build_limit, say, counted)
    lost = captured["lost"] or captured["failed_runs"] or found.not_reproduced(session)
    extra = {"end_to_end": checked, "whole": compared, "nan_weights": captured["nan_weights"], "complete": not lost,
             "capture": captured, "left_out": _left_out(session, captured, found)}  # fmt: skip
    content = document.profile(session, supply, found.choice, extra)
    points = [item for item in found.points if found.enabled(session, item)]
    document.write(
        session.work / "replay.json", json.dumps(replayable(session, supply, found.choice, points), indent=1)
    )
    tests = document.write_tests(session, options.output, [item["point"] for item in points])
    apply = document.write_apply(session, options.output, found.points, found.choice)
    # The profile comes last: where it is, so is what belongs to it, whenever a run was stopped.
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    document.write(options.output, text)
    written = [str(options.output)]
    if options.register:
        default = Path(supply["default_profile"])
        document.write(default, text)
        written.append(str(default))
    if apply is not None:
        written.append(str(apply))
        say(f"functions    {apply}: apply_overlay_kernels_to_..., one boolean per compute that was verified")
    _show_outcome(content, written, tests, time.perf_counter() - start, say)
    return {**content, "written": written, "tests": [str(path) for path in tests], "reused": False}


def _inspect(session: Session, counted: Counted) -> dict[str, Any]:
    with counted(1, "asking what this machine supplies"):
        return steps.inspect(session)


def _known(options: Options, known: dict[str, Any], default: Path, say: Say) -> dict[str, Any]:
    """Tell of the profile that holds already, and leave it where AMD_OPS=auto looks where it is not there yet."""
    told = "complete" if known["complete"] else "partial: " + _losses(known["capture"])
    say(f"qualified    {options.output} holds for this device, these releases and this model already ({told})")
    say("             --fresh qualifies again")
    written = [str(options.output)]
    if options.register and document.valid(default, known["subject"]) != known:
        document.write(default, options.output.read_text(encoding="utf-8"))
        written.append(str(default))
        say(f"registered   {default}: AMD_OPS=auto uses it, too")
    return {**known, "written": written, "tests": list(map(str, document.tests_of(options.output))), "reused": True}


def _losses(captured: dict[str, Any]) -> str:
    return ", ".join((*captured["lost"], *captured["failed_runs"])) or "a capture that cannot be replayed"


def _left_out(session: Session, captured: dict[str, Any], found: Found) -> dict[str, str]:
    """Return why a place, or a kind of its calls, is not proved."""
    told = {name: "; ".join(reasons) for name, reasons in captured["lost"].items()}
    return {**told, **{f"run {name}": reason for name, reason in captured["failed_runs"].items()},
            **found.not_reproduced(session)}  # fmt: skip


def _open(options: Options, work: Path) -> tuple[Session, Setup]:
    plan.check_dtype(options.dtype)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        remedy = "run it without torchrun; `overlay bench` under torchrun measures a model that is spread"
        raise UsageError(
            "several-ranks", f"qualify is one process, not one of {os.environ['WORLD_SIZE']}", remedy=remedy
        )
    if not all(0 < limit < math.inf for limit in (options.max_capture, options.time_limit, options.build_limit)):
        raise UsageError("bad-limit", "a limit is not positive and finite", remedy="use numbers above zero")
    document.check_place(options.output)
    if options.inputs is not None and not options.inputs.is_file():
        remedy = "name a safetensors file that holds the keyword arguments of one forward"
        raise UsageError("no-inputs", f"{options.inputs} is no file", remedy=remedy, paths=[options.inputs])
    found = target.read_model(options.model)
    interpreter = target.probe(options.python)
    sources = target.find_sources(interpreter, *found.names)
    inputs = sha256(options.inputs) if options.inputs is not None else None
    session = Session(interpreter, found.path.resolve(), found.seeded, sources, options.dtype, work, inputs)
    try:
        session.scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise document.unwritable(work, error) from None
    setup = Setup(
        interpreter=interpreter, model=session.model, sources=sources, dtype=options.dtype, seed=0, max_new_tokens=8,
        cases=plan.QUICK, implementations=plan.IMPLEMENTATIONS[:1], seeded=found.seeded,
    )  # fmt: skip
    return session, setup


def _plan(session: Session, supply: dict[str, Any]) -> dict[str, Any]:
    points = [{"point": steps.id_of(session, p), "toggles": supply["switches"].get(p.switch, [])}
              for p in session.points]  # fmt: skip
    return {"machine": supply["machine"], "points": points, "supply": supply["supply"]}


def _show_plan(session: Session, supply: dict[str, Any], resumed: bool, say: Say) -> None:
    machine = supply["machine"]
    say(f"device       {machine['device']}, torch {machine['torch']}, aiter {machine['aiter'] or 'none'}")
    say(f"model        {session.model}, {session.dtype}")
    for source in session.sources:
        where = "installed" if source.installed == "overlay" else "not installed: served to the workers"
        say(f"overlay      {source.path} ({source.origin}, {where})")
    refused: dict[str, list[str]] = {}
    for row in supply["supply"]:
        if row["tier"] in OPTIONAL_TIERS and row["reason"]:
            refused.setdefault(f"{row['tier']}: {row['reason']}", []).append(row["op"])
        elif row["tier"] in OPTIONAL_TIERS:
            say(f"supply       {row['op']} on {row['tier']}: offered")
    for reason, ops in refused.items():
        say(f"no supply    {reason} ({', '.join(ops)})")
    for point in session.points:
        say(f"demand       {point.switch} in {point.qualname}")
    say("plan         capture each of these on stock (plans are no part of stock: they are judged last, as a whole);")
    say("             try every tier offered there; check, then time against stock; keep what is right and faster;")
    say("             run the whole model, with and without, and against plain toggles; write profile and tests")
    if resumed:
        say(f"resumed      {len(session.results)} results of an earlier run on the same subject are used")


def _show_capture(captured: dict[str, Any], say: Say) -> None:
    calls, size = sum(captured["places"].values()), captured["bytes"] / 2**20
    runs = "; ".join(captured["runs"])
    say(f"captured     {calls} calls of {len(captured['places'])} places ({size:.1f} MiB): {runs}")
    for name, reasons in captured["lost"].items():
        say(f"lost         {name}: {'; '.join(reasons)}")
    for name, reason in captured["failed_runs"].items():
        say(f"not run      {name}: {reason}")
    for name, reason in captured["not_used"].items():
        say(f"not used     {name}: {reason}")
    if captured["nan_weights"]:
        say(f"weights hold NaN: {', '.join(captured['nan_weights'][:5])}; results are compared NaN for NaN")


def _candidates(session: Session, supply: dict[str, Any], options: Options, say: Say, counted: Counted) -> Found:
    limits = {"limit": options.time_limit, "build_limit": options.build_limit}
    base = steps.per_point(session, supply, {}, "base")
    steps.replay(session, base, say, counted, **limits)
    reach = {item["point"]: sorted(session.results[item["id"]].get("ran", {})) for item in base}
    tried = steps.candidates(session, supply, reach)
    steps.replay(session, tried, say, counted, **limits)
    ops = sorted({row["op"] for row in supply["supply"]})
    choice = choose.choose_tiers(ops, tried, session.results)
    # The tiers that were chosen together, place by place: where nothing was chosen that is the base.
    suffix = "base" if all(tiers == choose.BASE for tiers in choice.op_tiers.values()) else f"chosen:{choice.text()}"
    final = steps.per_point(session, supply, choice.op_tiers, suffix)
    steps.replay(session, final, say, counted, **limits)
    choose.settle(choice, final, session.results, list(supply["switches"]))
    choose.settle_plan(choice, session.has_plan, rules().PLANNED)
    return Found(choice, final, tried, ops)


def _end_to_end(
    session: Session, setup: Setup, supply: dict[str, Any], choice: Choice, say: Say, counted: Counted
) -> list[dict[str, Any]]:
    """Run the whole model under the choice; a switch that the bisect names, else the last one, goes back to stock."""
    checked: list[dict[str, Any]] = []
    while enabled := [name for name in supply["switches"] if name not in choice.stock]:
        result = steps.end_to_end(setup, *document.run_of(choice, supply), counted)
        checked.append({"enabled": enabled, "status": result.status, "cases": len(result.cases)})
        say(f"end to end   {', '.join(enabled)}: {result.status}")
        if result.status in ("ok", "no-effect"):
            return checked
        culprit = result.culprit or {"switches": []}
        named = [item["switch"] for item in culprit["switches"] if item["switch"] in enabled]
        for name in named or enabled[-1:]:
            choice.stock[name] = f"the whole model {result.status} with it {result.message}".strip()[:300]
        if PLAN in enabled:
            choose.settle_plan(choice, session.has_plan, rules().PLANNED)
    return checked


def replayable(
    session: Session, supply: dict[str, Any], choice: Choice, points: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what a test or a warm-up needs to make the calls again, under what the profile allows at each place."""
    kept = []
    for item in points:
        settings = {**item["settings"], "op_tiers": choice.text()}
        kept.append({"id": item["id"], "point": item["point"], "place": item["place"], "switch": item["switch"],
                     "settings": settings})  # fmt: skip
    return {"model": str(session.model), "dtype": session.dtype, "seeded": session.seeded,
            "python": session.interpreter.executable, "machine": supply["machine"], "points": kept}  # fmt: skip


def _show_outcome(content: dict[str, Any], written: list[str], tests: list[Path], seconds: float, say: Say) -> None:
    for switch, verdict in content["verdicts"]["switches"].items():
        say(f"{'enabled' if verdict == 'enabled' else 'stock':<12} {switch}"
            + ("" if verdict == "enabled" else f": {verdict}"))  # fmt: skip
    whole = content["whole"]
    say(f"with it      {whole['summary']}")
    if content["complete"]:
        say("complete     every place of the model was captured and tried")
    else:
        say(f"partial      {len(content['left_out'])} of its places or runs are not proved:")
        for name, reason in content["left_out"].items():
            say(f"             {name}: {reason}")
    auto = "; AMD_OPS=auto uses it, too" if any(path.endswith(".json") for path in written[1:]) else ""
    say(f"profile      {written[0]} (AMD_OPS={written[0]}{auto})")
    where = f"pytest {tests[0].parent}" if tests else "none: nothing is enabled"
    say(f"tests        {where}; {seconds:.0f} s")


def warmup(profile: Path, *, python: str | None = None) -> int:
    """Make every captured call of a profile once in a fresh process and tell what each op's first call took."""
    found = warm(profile, python, progress)
    lines = []
    for item in found["ops"]:
        first = "-" if item["first_call_s"] is None else f"{item['first_call_s'] * 1e3:.1f} ms"
        lines.append(f"{item['op']:<20} {item['tier']:<8} first call {first:>12}, {item['calls']} calls")
    return emit("warmup", found, "\n".join(lines))


def warm(profile: Path, python: str | None = None, counted: Counted | None = None) -> dict[str, Any]:
    """Return ``{"places": [...], "ops": [...]}`` of a warm-up. Raises UsageError without the profile's captures."""
    counted = counted or steps.unwatched(lambda text: None)
    profile = profile.resolve()
    session, content, replayed = reopen(profile.with_name(profile.stem + ".work"), profile, python)
    values = dict(content["toggles"])
    names = {"AMD_OPS_STOCK": "stock", "AMD_OPS_OP_TIERS": "op_tiers", "AMD_OPS_TIERS": "tiers"}
    settings = {names.get(name, name.lower()): str(value) for name, value in values.items()}
    places = {(item["place"]["module"], item["place"]["qualname"]): item["place"] for item in replayed["points"]}
    found: dict[str, Any] = {"places": [], "ops": []}

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "warmed":
            found["places"].append({key: event[key] for key in ("place", "calls", "seconds")})
            step(f"{event['place']} is warm")
        elif event["event"] == "warm":
            found["ops"] = event["ops"]
        elif event["event"] == "failed":
            found["message"] = event["message"]

    try:
        with counted(len(places), "building and loading kernels") as step:
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
    content: dict[str, Any] = {}
    if profile is not None:
        try:
            content = rules().read_profile(profile)
        except ValueError as error:
            told = re.split(r": (?:run|set|correct|name) ", str(error))[0]  # the rest is what to do about AMD_OPS
            raise UsageError("no-captures", f"cannot use {profile}, {told}", remedy=remedy) from None
    try:
        replayed = json.loads((work / "replay.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError("no-captures", f"{profile or work} cannot be used: {error}", remedy=remedy) from None
    names = {"model": str, "dtype": str, "seeded": bool, "machine": dict, "points": list}
    if not isinstance(replayed, dict) or not all(isinstance(replayed.get(name), one) for name, one in names.items()):
        message = f"{work / 'replay.json'} is not as `overlay qualify` wrote it"
        raise UsageError("no-captures", message, remedy=remedy, paths=[work / "replay.json"])
    interpreter = target.probe(python or replayed.get("python") or sys.executable)
    found = target.read_model(Path(replayed["model"]))
    sources = target.find_sources(interpreter, *found.names)
    session = Session(interpreter, found.path, replayed["seeded"], sources, replayed["dtype"], work)
    session.scratch.mkdir(parents=True, exist_ok=True)
    return session, content, replayed
