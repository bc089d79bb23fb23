"""What a qualification captures of small models of every curated architecture, and whether its calls can be replayed.

    python -m tests.verify.survey [MODEL ...]             # a line per model, and per run and place that the summary
                                                          # names as missing; exit 1 where it says nothing, or is wrong
    python -m tests.verify.survey --prove [MODEL ...]     # runs the written tests, too, and tells how long they took
    python -m tests.verify.survey --write                 # writes the installed release's section of docs/qualified.md

Capture (stock's text) and replay (the overlaid one) are the worker's own functions, each in a forked process, so that a
model costs seconds. Composites are shrunk as in `tests.numeric`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch  # noqa: F401 - as the next four: once, not in every forked process
import torch
import transformers
import transformers.generation.utils
import transformers.masking_utils
import transformers.modeling_layers
import transformers.models.auto.modeling_auto
from rocm_overlay.install.hook.sources import SourceFinder
from rocm_overlay.verify import target
from rocm_overlay.verify.models import model_class
from rocm_overlay.verify.qualify import choose, command, document, steps, worker
from rocm_overlay.verify.qualify.capture import key_of
from rocm_overlay.verify.qualify.session import Session

from tests.numeric.worker import classes, module_name
from tests.verify import matrix, matrix_builds

Event = dict[str, Any]
DOC = Path(__file__).resolve().parents[2] / "docs" / "qualified.md"
INTRO = """# What a qualification captures

Small models with seeded weights in fp32, on a CPU, per release: the places of the overlays that a model runs through,
the calls of them that `overlay qualify` keeps of stock's code, and how many computes at these places agree with stock
when the calls are made again on tiers torch and eager. *without effect*: the compute has nothing to do there (a place
of a class whose layers hold experts, or a norm that is no RMS norm). *told*: what the summary of a qualification says
of places or runs without a call; no place is without a call and without a word. Written by
`python -m tests.verify.survey --write`, once per installed release.
"""
HEADER = "| model | captured | agree | without effect | told |\n|---|---|---|---|---|"


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
    if model == "aria":  # it has one entry per number of patches that it knows: an image of this size has 16
        config.projector_patch_to_query_dict = {16: 16}
    if model == "qwen3_next":  # whose generate looks for a layer of each kind; its linear heads have sizes of their own
        config.linear_num_key_heads, config.linear_num_value_heads = 2, 4
        config.linear_key_head_dim = config.linear_value_head_dim = 16
        config.layer_types = ["linear_attention", "full_attention"] * (config.num_hidden_layers // 2)
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
    """Write the tests of a qualification, run them, and return the CPU seconds and what pytest said in the end."""
    replayed = command.replayable(session, supply, choose.Choice(), points)
    (session.work / "replay.json").write_text(json.dumps(replayed))
    tests = document.write_tests(session, session.work.with_name("profile.json"), [item["point"] for item in points])
    start = _used()
    run = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests[0].parent)]
    done = subprocess.run(run, cwd=session.work, capture_output=True, text=True, check=False)
    return _used() - start, done.stdout.strip().splitlines()[-1] if not done.returncode else done.stdout


def _used() -> float:
    """Return the CPU seconds of all children that have ended: neighbours on this machine do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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


def idle(found: dict[str, Any]) -> dict[str, str]:
    """Return the computes that have nothing to do at their place, and why, as amd_ops told it."""
    return {name.removesuffix("@base"): one.get("reason", "") for name, one in found["results"].items()
            if one["status"] == "no effect"}  # fmt: skip


def row(model: str, found: dict[str, Any]) -> str:
    """Return a model's line of the page."""
    results = found["results"].values()
    agree = sum(one["status"] == "valid" for one in results)
    met = sum(one["status"] != "not captured" for one in results)
    cells = [model, f"{len(found['captured'])} places, {sum(found['captured'].values())} calls",
             f"{agree} of {met}", ", ".join(idle(found)), "; ".join(named(found))]  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def surveyed(model: str, *, prove: bool) -> tuple[dict[str, Any], list[str]]:
    """Survey a model in a folder of its own; return what was found and what is wrong."""
    with tempfile.TemporaryDirectory(prefix="overlay-survey-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = survey(model, Path(name), prove=prove)
        except Exception as error:  # noqa: BLE001 - the next model is surveyed, too
            traceback.print_exc()
            return {"captured": {}, "results": {}, "runs": {}, "lost": {}}, [f"{type(error).__name__}: {error}"]
    return found, problems(found)


def main() -> int:
    """Survey models and print what was lost; write the page where that is asked for and nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--prove", action="store_true")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    bad, rows = 0, []
    for model in chosen.models or list(matrix.architectures()):
        found, wrong = surveyed(model, prove=chosen.prove)
        bad += bool(wrong)
        rows.append(row(model, found))
        used = [f"{found['proved']}, {found['seconds']:.1f} s of CPU"] if "seconds" in found else []
        lines = [*used, *(f"no effect: {name}: {why}" for name, why in idle(found).items()), *wrong, *named(found)]
        print(rows[-1] + "".join(f"\n    {line}" for line in lines), flush=True)
    if chosen.write and not bad and not chosen.models:
        before = DOC.read_text(encoding="utf-8") if DOC.is_file() else ""
        new = "\n".join([matrix.section(), "", HEADER, *rows, ""])
        DOC.write_text(matrix.merged(before, new, INTRO), encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
