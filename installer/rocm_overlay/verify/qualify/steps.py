"""The steps of a qualification, in order: supply, capture, candidates, choice, end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...install.transaction.errors import UsageError, WriteError
from .. import plan
from ..workers import RunResult, Setup, run_all
from . import child, choose
from .session import Session

Say = Callable[[str], None]
START_LIMIT = 300.0  # seconds for an interpreter to import and load


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


def capture(session: Session, cap: int, say: Say) -> dict[str, Any]:
    """Capture the calls of every place on stock code. Raises UsageError and WriteError; a full disk leaves no part."""
    told: dict[str, Any] = {"left_out": {}, "nan_weights": [], "bytes": 0, "message": ""}

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "loaded":
            told["nan_weights"] = event["nan_weights"]
        elif event["event"] == "captured":
            say(f"captured {event['place']} ({event['bytes'] / 2**20:.1f} MiB)")
        elif event["event"] == "not-captured":
            told["left_out"][event["place"]] = event["reason"]
        elif event["event"] == "captured-all":
            told["bytes"] = event["bytes"]
        elif event["event"] == "failed":
            told["message"] = event["message"]

    try:
        child.run(session, "capture", on_event, limit=10 * START_LIMIT, build="stock", places=session.places(), cap=cap)
    except child.WorkerError as error:
        told["message"] = f"{error}: {error.log}"
    if told["message"]:
        if "No space left" in told["message"]:
            remedy = f"free space for {session.captures}, or lower --max-capture; what was captured stays and is used"
            raise WriteError("disk-full", f"the disk filled during capture: {told['message']}", remedy=remedy)
        remedy = "check that the folder holds a model of a kind that verify knows, and its weights"
        raise UsageError("capture-failed", f"{session.model}: {told['message']}", remedy=remedy, paths=[session.model])
    (session.captures / "complete").write_text("")
    return told


def candidates(session: Session, supply: dict[str, Any], reach: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return one candidate per point, op that it reaches, and tier above those that always work."""
    found = []
    for point in session.points:
        ops = reach.get(_id(point), [])
        for row in supply["supply"]:
            if row["op"] in ops and row["tier"] not in choose.BASE:
                found.append(
                    {
                        **_candidate(session, point, supply, dict.fromkeys(ops, choose.BASE) | {
                            row["op"]: (row["tier"], *choose.BASE)}),
                        "id": f"{_id(point)}@{row['op']}:{row['tier']}", "op": row["op"], "tier": row["tier"],
                        "refused": row["reason"],
                    }
                )  # fmt: skip
    return found


def _id(point: Any) -> str:
    return f"{point.switch}@{point.qualname}"


def per_point(
    session: Session, supply: dict[str, Any], op_tiers: dict[str, tuple[str, ...]], suffix: str
) -> list[dict[str, Any]]:
    """Return one candidate per point with the given tiers."""
    made = []
    for point in session.points:
        made.append({**_candidate(session, point, supply, op_tiers), "id": f"{_id(point)}@{suffix}"})
    return made


def _candidate(
    session: Session, point: Any, supply: dict[str, Any], op_tiers: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    others = [name for name in supply["switches"] if name != point.switch]
    toggles = {family.lower(): "1" for families in supply["switches"].values() for family in families}
    base = dict.fromkeys((row["op"] for row in supply["supply"]), choose.BASE)
    limits = choose.Choice({**base, **op_tiers}).text()
    return {
        "point": _id(point), "switch": point.switch, "time": True,
        "place": {"module": point.module, "qualname": point.qualname},
        "settings": {**toggles, "stock": ",".join(others), "op_tiers": limits},
    }  # fmt: skip


def replay(session: Session, todo: list[dict[str, Any]], say: Say, *, limit: float, build_limit: float) -> None:
    """Run candidates in worker processes; one that kills or hangs its process is marked, the rest go on in another."""
    for item in todo:
        if item.get("refused") and item["id"] not in session.results:
            session.keep({"id": item["id"], "status": "declined", "reason": item["refused"]})
    while left := [item for item in todo if item["id"] not in session.results]:
        current: dict[str, str] = {}

        def on_event(event: dict[str, Any], current: dict[str, str] = current) -> float | None:
            if event["event"] == "begin":
                current["id"] = event["id"]
                return build_limit
            if event["event"] == "first":
                current["built"] = "yes"
                if event["seconds"] > 5.0:
                    say(f"{event['id']}: the first calls took {event['seconds']:.0f} s (built; not part of the timing)")
                return limit
            if event["event"] == "result":
                session.keep({key: value for key, value in event.items() if key != "event"})
                say(f"{event['id']}: {event['status']} {event.get('reason', '')}".rstrip())
                current.clear()
            if event["event"] == "failed":
                current["failed"] = event["message"]
            return None

        try:
            child.run(session, "replay", on_event, limit=START_LIMIT, candidates=left)
            error, died = current.get("failed", "the process ended before its work was done"), "crashed"
        except child.WorkerError as raised:
            error = f"{raised}" + (f": {raised.log.splitlines()[-1]}" if raised.log else "")
            died = "hung" if raised.status is None else "crashed"
        unfinished = [item for item in left if item["id"] not in session.results]
        if not unfinished:
            break
        name = current.get("id", unfinished[0]["id"])
        session.keep({"id": name, "status": died, "reason": error})
        say(f"{name}: {died} ({error})")


def replay_once(session: Session, todo: list[dict[str, Any]], limit: float = 600.0) -> list[dict[str, Any]]:
    """Run candidates without keeping their results on disk, and return these."""
    found: list[dict[str, Any]] = []
    child.run(
        session, "replay", lambda event: found.append(event) if event["event"] == "result" else None,
        limit=limit, candidates=todo,
    )  # fmt: skip
    return found


def end_to_end(setup: Setup, toggles: dict[str, str], limits: dict[str, str]) -> RunResult:
    """Run the whole model under the profile against stock, in processes of their own."""
    run = plan.Run("profile", plan.ANY, toggles, limits)
    found = run_all(setup, [run], lambda text: None)
    (result,) = found.runs
    return result
