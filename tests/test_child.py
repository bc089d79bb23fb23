"""Worker processes: what they tell, and what becomes of those that die, hang, or are not listened to any more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rocm_overlay
from rocm_overlay.child import Child, beside
from rocm_overlay.worker import serving

WORKER = """
import json, os, sys, time
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
events = os.fdopen(int(sys.argv[2]), "w")
print("pid", os.getpid(), flush=True)
for number in range(job["events"]):
    print(json.dumps({"number": number, "pid": os.getpid()}), file=events, flush=True)
events.write(job.get("rest", ""))
events.flush()
time.sleep(job.get("sleep", 0))
sys.exit(job.get("status", 0))
"""


def child(folder: Path, **job: object) -> Child:
    (folder / "a_worker.py").write_text(WORKER)
    return Child(sys.executable, "a_worker", job, folder)


def env(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(folder)}


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_events_status_and_log(tmp_path: Path) -> None:
    started = child(tmp_path, events=3, status=7)
    assert [event["number"] for event in started.events(env(tmp_path))] == [0, 1, 2]
    assert (started.status, started.timed_out) == (7, False)
    assert started.log_tail().startswith("pid ")


def test_an_event_that_was_being_told_at_the_end_is_none(tmp_path: Path) -> None:
    started = child(tmp_path, events=1, rest='{"number": 1, "pi', status=1)
    assert [event["number"] for event in started.events(env(tmp_path))] == [0]
    assert started.status == 1


def test_time_is_up(tmp_path: Path) -> None:
    started = child(tmp_path, events=1, sleep=60)
    begin = time.monotonic()
    (event,) = started.events(env(tmp_path), timeout=3.0)
    assert started.timed_out
    assert gone(event["pid"])
    assert time.monotonic() - begin < 30


def test_silence_may_be_given_another_length_while_events_come(tmp_path: Path) -> None:
    started = child(tmp_path, events=1, sleep=60)
    started.patience = 60.0
    for event in started.events(env(tmp_path)):
        pid, started.patience = event["pid"], 0.1
    assert started.timed_out
    assert gone(pid)


def test_a_reader_that_stops_ends_the_process(tmp_path: Path) -> None:
    events = child(tmp_path, events=2, sleep=60).events(env(tmp_path))
    pid = next(events)["pid"]
    events.close()
    assert gone(pid)


def test_a_worker_gets_its_job_and_tells_events_of_plain_numbers(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"amd_ops_path": null, "sources": {}, "cell": 3}')
    reading, writing = os.pipe()
    with serving([str(tmp_path / "job.json"), str(writing)]) as (job, emit):
        emit("size", bytes=job["cell"])
        with pytest.raises(ValueError, match="not JSON compliant"):
            emit("size", bytes=float("nan"))
    with os.fdopen(reading) as events:
        assert [json.loads(line) for line in events] == [{"event": "size", "bytes": 3}]


def test_a_parent_that_has_gone_is_no_error() -> None:
    """In a process of its own, since a worker ends when its parent does."""
    code = """
import os, sys
from rocm_overlay.worker import end

def work(arguments):
    print("worked", flush=True)
    raise BrokenPipeError

reading, writing = os.pipe()
sys.argv = ["worker", "job.json", str(writing)]
end(work)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "worked\n", "")


def test_a_link_to_a_program_elsewhere_makes_way(tmp_path: Path) -> None:
    """The work folder of a qualification outlives its process: the next program of it may be another one."""
    there = tmp_path / "tool" / "rocm_overlay"
    for old in (tmp_path, tmp_path / "gone"):
        there.parent.mkdir(exist_ok=True)
        there.symlink_to(old)
        assert beside("rocm_overlay", there.parent) == there.parent
        assert there.resolve() == Path(rocm_overlay.__file__).resolve().parent
        there.unlink()
