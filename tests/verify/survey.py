"""What a qualification captures of small models of every curated architecture, and whether its calls can be replayed.

    python -m tests.verify.survey [MODEL ...]             # a line per model, and per run and place that the summary
                                                          # names as missing; exit 1 where it says nothing, or is wrong
    python -m tests.verify.survey --prove [MODEL ...]     # runs the written tests, too, and tells how long they took

Capture (stock's text) and replay (the overlaid one) are the worker's own functions, each in a forked process, so that a
model costs seconds. Composites are shrunk as in `tests.numeric`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time as clock
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.generation
from rocm_overlay.install.hook.sources import SourceFinder
from rocm_overlay.verify import target
from rocm_overlay.verify.models import model_class
from rocm_overlay.verify.qualify import choose, command, document, steps, worker
from rocm_overlay.verify.qualify.capture import key_of
from rocm_overlay.verify.qualify.session import Session

from tests.numeric.worker import classes, module_name
from tests.verify import matrix, matrix_builds

Event = dict[str, Any]


def save_config(model: str, folder: Path) -> Path:
    """Write config.json of a small model of a curated type, with its architecture, and return it."""
    if matrix_builds._is_composite(model) or model == "whisper":  # whose configuration alone is that of a decoder
        from tests.numeric.shrink import shrink

        listed = classes(importlib.import_module(module_name(matrix.architectures()[model].path)))
        found = [one for one in listed if one.config_class.model_type in transformers.CONFIG_MAPPING]
        kind = next((one for one in found if one.__name__.endswith("ForConditionalGeneration")), found[0])
        config: Any = shrink(kind.config_class(), "small")
        name = kind.__name__
    else:
        config = matrix_builds.small_config(model, every_expert=False)
        name = model_class(config).__name__
    if model == "deepseek_v2":  # whose stock code repeats no keys, whatever the configuration says
        config.num_key_value_heads = config.num_attention_heads
    config.architectures = [name]
    config.save_pretrained(folder)
    return folder / "config.json"


def session_of(config: Path, work: Path, dtype: str = "float32") -> Session:
    """Return the session of a small model on this interpreter."""
    interpreter = target.probe(sys.executable)
    found = target.read_model(config)
    sources = target.find_sources(interpreter, *found.names)
    session = Session(interpreter, found.path.resolve(), found.seeded, sources, dtype, work)
    session.captures.mkdir(parents=True)
    for build in ("stock", "overlay"):
        for source in sources:
            path = work / build / source.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.stock if build == "stock" else source.overlay)
    return session


def run(session: Session, build: str, task: Callable[..., None], **job: Any) -> list[Event]:
    """Run a task of the worker in a forked process on one build and return its events."""
    content = {"model": str(session.model), "seeded": session.seeded, "seed": 0, "dtype": session.dtype,
               "captures": str(session.captures), **job}  # fmt: skip
    sources = {source.module: session.work / build / source.path for source in session.sources}
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if child == 0:

            def emit(event: str, **values: Any) -> None:
                print(json.dumps({"event": event, **values}, allow_nan=False), file=file, flush=True)

            try:
                SourceFinder(sources).install()
                task(content, emit)
            except BaseException as error:  # noqa: BLE001 - handed to the parent as an event
                traceback.print_exc()
                emit("failed", message=f"{type(error).__name__}: {error}")
            file.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        file.seek(0)
        events = [json.loads(line) for line in file]
    return events if not status else [*events, {"event": "failed", "message": f"status {status}"}]


def survey(model: str, folder: Path, *, prove: bool = False) -> dict[str, Any]:
    """Return {"lost": {place: reason}, "runs": {run: reason}, "results": {id: result}, "captured": {place: calls}}."""
    session = session_of(_forked_config(model, folder / "config"), folder / "work")
    events = run(session, "stock", worker.capture, places=session.places(), cap=1 << 30)
    found: dict[str, Any] = {"lost": {}, "runs": {}, "results": {}, "captured": {}, "unused": {}, "failed": "",
                             "places": [key_of(place) for place in session.places()]}  # fmt: skip
    for event in events:
        if event["event"] == "not-captured":
            found["lost"][event["place"]] = event["reason"]
        elif event["event"] == "not-used":
            found["unused"][event["place"]] = event["reason"]
        elif event["event"] == "captured":
            found["captured"][event["place"]] = event["number"] + 1
        elif event["event"] == "run-failed":
            found["runs"][event["run"]] = event["reason"]
        elif event["event"] == "failed":
            found["failed"] = event["message"]
    supply = run(session, "overlay", worker.inspect)[-1]
    base = [{**item, "time": False} for item in steps.per_point(session, supply, {}, "base")]
    for event in run(session, "overlay", worker.replay, candidates=base):
        if event["event"] == "result":
            found["results"][event["id"]] = event
        elif event["event"] == "failed":
            found["failed"] = event["message"]
    if prove:
        good = [item for item in base if found["results"].get(item["id"], {}).get("status") == "valid"]
        found["seconds"], found["proved"] = _prove(session, supply, good)
    return found


def _prove(session: Session, supply: Event, points: list[Event]) -> tuple[float, str]:
    """Write the tests of a qualification, run them, and return the seconds and what pytest said in the end."""
    replayed = command.replayable(session, supply, choose.Choice(), points)
    (session.work / "replay.json").write_text(json.dumps(replayed))
    tests = document.write_tests(session, session.work.with_name("profile.json"), [item["point"] for item in points])
    start = clock.perf_counter()
    run = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests[0].parent)]
    done = subprocess.run(run, cwd=session.work, capture_output=True, text=True, check=False)
    return clock.perf_counter() - start, done.stdout.strip().splitlines()[-1] if not done.returncode else done.stdout


def _forked_config(model: str, folder: Path) -> Path:
    """Write the configuration in a process of its own: making one may import the stock file."""
    child = os.fork()
    if child == 0:
        try:
            save_config(model, folder)
        except BaseException:  # noqa: BLE001 - the parent sees the status
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"{model}: no small configuration")
    return folder / "config.json"


def named(found: dict[str, Any]) -> list[str]:
    """Return what a qualification's summary says is missing."""
    told = [f"run {name}: {reason}" for name, reason in found["runs"].items()]
    return told + [f"lost {place}: {reason}" for place, reason in found["lost"].items()]


def problems(found: dict[str, Any]) -> list[str]:
    """Return what is wrong: a failure, a place that nothing is said of, a capture that does not hold, a failed test."""
    told = [f"failed: {found['failed']}"] if found["failed"] else []
    known = {*found["captured"], *found["lost"], *found["unused"]}
    told += [f"not a word of {place}" for place in found["places"] if place not in known]
    if "failed" in found.get("proved", ""):
        told.append(found["proved"])
    good = ("valid", "no effect")
    missing = "no call was captured"  # which the summary says of the place
    return told + [f"{name}: {one['status']}: {one.get('reason')}" for name, one in found["results"].items()
                   if one["status"] not in good and one.get("reason") != missing]  # fmt: skip


def main(models: list[str]) -> int:
    """Survey models and print what was lost."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    bad, prove = 0, "--prove" in models
    models = [name for name in models if name != "--prove"]
    for model in models or list(matrix.architectures()):
        with tempfile.TemporaryDirectory(prefix="overlay-survey-") as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = survey(model, Path(name), prove=prove)
                told = problems(found)
            except Exception as error:  # noqa: BLE001 - the next model is surveyed, too
                told = [f"{type(error).__name__}: {error}"]
                found = {"captured": {}, "results": {}, "runs": {}, "lost": {}}
        bad += bool(told)
        calls = sum(found["captured"].values())
        idle = [name for name, one in found["results"].items() if one["status"] == "no effect"]
        print(f"{model}: {len(found['captured'])} places, {calls} calls, {len(found['results'])} points"
              + (f", no effect: {', '.join(idle)}" if idle else "")
              + (f", {found['proved']} ({found['seconds']:.1f} s)" if prove else "")
              + "".join(f"\n    {line}" for line in [*told, *named(found)]), flush=True)  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
