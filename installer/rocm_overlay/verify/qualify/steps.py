"""The steps of a qualification, in order: supply, capture, candidates, choice, end to end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ...console import Steps
from ...errors import OverlayError, UsageError, WriteError
from .. import plan
from ..switches import Point
from ..workers import RunResult, Setup, run_all
from . import child, choose
from .session import Session

Say = Callable[[str], None]
Counted = Callable[..., AbstractContextManager[Steps]]  # as `console.progress`
ROUNDS = 15  # samples of the whole model under each arm
START_LIMIT = 300.0  # seconds for an interpreter to import and load


def unwatched(say: Say) -> Counted:
    """Return a progress without a bar: what a step leaves behind is said, and nothing else."""
    return lambda total, first, *, done=0, keep=False: nullcontext(
        Steps(total, done, (lambda text, *_: say(text)) if keep else None)
    )


def inspect(session: Session) -> dict[str, Any]:
    """Ask a worker what this machine supplies. Raises UsageError where it cannot start."""
    found: dict[str, Any] = {}
    try:
        child.run(session, "inspect", found.update, limit=START_LIMIT)
    except child.WorkerError as error:
        raise _no_start(session, f"{error}\n{error.log}") from None
    if found.get("event") != "inspected":
        raise _no_start(session, found.get("message", "it told nothing"))
    return found


def _no_start(session: Session, why: str) -> UsageError:
    remedy = "run the interpreter with `import amd_ops` and see what fails"
    return UsageError("no-worker", f"{session.interpreter.executable} cannot run amd_ops: {why}", remedy=remedy)


def capture(session: Session, cap: int, counted: Counted, inputs: Path | None = None) -> dict[str, Any]:
    """Capture the calls of every place on stock code and return what was kept and what was not.

    Raises UsageError and WriteError; a full disk leaves no part.
    """
    told: dict[str, Any] = {"lost": {}, "not_used": {}, "runs": [], "failed_runs": {}, "places": {}, "bytes": 0,
                            "nan_weights": []}  # fmt: skip
    message = ""

    def on_event(event: dict[str, Any]) -> None:
        nonlocal message
        if event["event"] == "loaded":
            told["nan_weights"] = event["nan_weights"]
        elif event["event"] == "captured":
            if event["place"] not in told["places"]:
                step(f"captured {event['place']}")
            told["places"][event["place"]] = event["number"] + 1
        elif event["event"] == "not-captured":
            told["lost"].setdefault(event["place"], []).append(event["reason"])
        elif event["event"] == "not-used":
            told["not_used"][event["place"]] = event["reason"]
        elif event["event"] == "run-made":
            told["runs"].append(event["run"])
        elif event["event"] == "run-failed":
            told["failed_runs"][event["run"]] = event["reason"]
        elif event["event"] == "captured-all":
            told["bytes"] = event["bytes"]
        elif event["event"] == "failed":
            message = event["message"]

    job = {"places": session.places(), "cap": cap, "inputs": str(inputs.resolve()) if inputs else None}
    try:
        with counted(len(session.places()), "capturing the calls of stock") as step:
            child.run(session, "capture", on_event, limit=10 * START_LIMIT, build="stock", **job)
    except child.WorkerError as error:
        message = f"{error}: {error.log}"
    if not message and not told["runs"]:
        message = "; ".join(f"{name}: {reason}" for name, reason in told["failed_runs"].items())
    if message:
        raise _no_capture(session, message)
    session.keep_capture(told)
    return told


def _no_capture(session: Session, message: str) -> OverlayError:
    if "No space left" in message:
        remedy = f"free space for {session.captures}, or lower --max-capture; what was captured stays and is used"
        return WriteError("disk-full", f"the disk filled during capture: {message}", remedy=remedy)
    remedy = (
        "check that the folder holds a model of a kind that verify knows, and its weights; where it wants inputs of a "
        "form of its own (images with their grid, sound), pass --inputs a safetensors file with a forward's arguments"
    )
    return UsageError("capture-failed", f"{session.model}: {message}", remedy=remedy, paths=[session.model])


def candidates(session: Session, supply: dict[str, Any], reach: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return one candidate per point, op that it reaches, and tier above those that always work."""
    found = []
    for point in session.points:
        ops = reach.get(id_of(session, point), [])
        base = session.results.get(f"{id_of(session, point)}@base", {})
        works = base.get("status") == "valid"
        against = _candidate(session, point, supply, {})["settings"] if works else None
        for row in supply["supply"]:
            if row["op"] in ops and row["tier"] not in choose.BASE:
                found.append(
                    {
                        **_candidate(session, point, supply, dict.fromkeys(ops, choose.BASE) | {
                            row["op"]: (row["tier"], *choose.BASE)}),
                        "id": f"{id_of(session, point)}@{row['op']}:{row['tier']}", "op": row["op"],
                        "tier": row["tier"], "refused": row["reason"], "against": against,
                    }
                )  # fmt: skip
    return found


def id_of(session: Session, point: Point) -> str:
    """Return the name of a point in results: with its module where another one has a function of that name."""
    several = {one.module for one in session.points if one.qualname == point.qualname}
    where = point.qualname if len(several) == 1 else f"{point.module.rpartition('.')[2]}.{point.qualname}"
    return f"{point.switch}@{where}"


def per_point(
    session: Session, supply: dict[str, Any], op_tiers: dict[str, tuple[str, ...]], suffix: str
) -> list[dict[str, Any]]:
    """Return one candidate per point with the given tiers."""
    made = []
    for point in session.points:
        made.append({**_candidate(session, point, supply, op_tiers), "id": f"{id_of(session, point)}@{suffix}"})
    return made


def _candidate(
    session: Session, point: Point, supply: dict[str, Any], op_tiers: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    others = [name for name in supply["switches"] if name != point.switch]
    toggles = {family.lower(): "1" for families in supply["switches"].values() for family in families}
    base = dict.fromkeys((row["op"] for row in supply["supply"]), choose.BASE)
    limits = choose.Choice({**base, **op_tiers}).text()
    return {
        "point": id_of(session, point), "switch": point.switch, "time": True,
        "place": {"module": point.module, "qualname": point.qualname},
        "settings": {**toggles, "stock": ",".join(others), "op_tiers": limits},
    }  # fmt: skip


def told(name: str) -> str:
    """Return a candidate's name for readers: the tiers that were chosen together make a long one."""
    return f"{name.partition('@chosen:')[0]} with the chosen tiers" if "@chosen:" in name else name


def replay(
    session: Session, todo: list[dict[str, Any]], say: Say, counted: Counted, *, limit: float, build_limit: float,
    **job: Any,
) -> None:  # fmt: skip
    """Run candidates in worker processes; one that kills or hangs its process is marked, the rest go on in another."""
    for item in todo:
        if item.get("refused") and item["id"] not in session.results:
            session.keep({"id": item["id"], "status": "declined", "reason": item["refused"]})
    done = sum(item["id"] in session.results for item in todo)
    with counted(len(todo), "replaying the calls", done=done, keep=True) as step:
        while left := [item for item in todo if item["id"] not in session.results]:
            _replay(session, left, say, step, limit=limit, build_limit=build_limit, **job)


def _replay(
    session: Session, left: list[dict[str, Any]], say: Say, step: Say, *, limit: float, build_limit: float, **job: Any
) -> None:
    """Run candidates in one process, and mark the one that ended it."""
    current: dict[str, str] = {}

    def on_event(event: dict[str, Any]) -> float | None:
        if event["event"] == "begin":
            current["id"] = event["id"]
            return build_limit
        if event["event"] == "first":
            current["built"] = "yes"
            if event["seconds"] > 5.0:
                name, seconds = told(event["id"]), event["seconds"]
                say(f"{name}: the first calls took {seconds:.0f} s (built; not part of the timing)")
            return limit
        if event["event"] == "result":
            session.keep({key: value for key, value in event.items() if key != "event"})
            step(f"{told(event['id'])}: {event['status']} {event.get('reason', '')}".rstrip())
            current.clear()
        if event["event"] == "failed":
            current["failed"] = event["message"]
        return None

    try:
        child.run(session, "replay", on_event, limit=START_LIMIT, candidates=left, **job)
        error, died = current.get("failed", "the process ended before its work was done"), "crashed"
    except child.WorkerError as raised:
        error = f"{raised}" + (f": {raised.log.splitlines()[-1]}" if raised.log else "")
        died = "hung" if raised.status is None else "crashed"
    if "failed" in current and "id" not in current:
        remedy = "run `overlay qualify --fresh` on this machine"
        raise UsageError("no-replay", f"what was captured cannot be replayed: {current['failed']}", remedy=remedy)
    unfinished = [item for item in left if item["id"] not in session.results]
    if unfinished:
        name = current.get("id", unfinished[0]["id"])
        session.keep({"id": name, "status": died, "reason": error})
        step(f"{told(name)}: {died} ({error})")


def end_to_end(setup: Setup, toggles: dict[str, str], limits: dict[str, str], counted: Counted) -> RunResult:
    """Run the whole model under the profile against stock, in processes of their own."""
    run = plan.Run("profile", plan.ANY, toggles, limits)
    with counted(2 * len(setup.cases) * len(setup.implementations), "running the whole model") as step:
        found = run_all(setup, [run], step)
    (result,) = found.runs
    return result


def whole(
    session: Session, arms: dict[str, dict[str, str]], limit: float, counted: Counted
) -> dict[str, dict[str, Any]] | str:
    """Return seconds, launches and tokens of the whole model under each arm's settings, or why there are none."""
    found: dict[str, Any] = {}

    def on_event(event: dict[str, Any]) -> float | None:
        if event["event"] == "loaded":
            return limit
        if event["event"] == "round":
            step(f"round {event['number']}")
        else:
            found.update(event)
        return None

    try:
        with counted(ROUNDS, "timing the whole model") as step:
            child.run(session, "whole", on_event, limit=max(START_LIMIT, limit), arms=arms, rounds=ROUNDS)
    except child.WorkerError as error:
        return f"{error}: {(error.log.splitlines() or [''])[-1]}"
    arms_found: dict[str, dict[str, Any]] | str = found.get("arms") or str(found.get("message", "it told nothing"))
    return arms_found
