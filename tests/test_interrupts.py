"""Ctrl-C on the real commands: an end soon, exit 130, one sentence, no process left, and what was finished is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.tiny_models import save_tiny
from tests.install.support import environment

# Two seconds are the promise, and a third of one is what an idle machine takes; tests share theirs with others.
SECONDS = 5.0
PATIENCE = 240.0
TUNE = Path(__file__).parent / "tune"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Where these tests themselves run in the background of a shell, SIGINT is ignored, and a child inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state != "Z"


def _below(number: int) -> Iterator[int]:
    """Every process that a process started, or one of these."""
    for listed in Path(f"/proc/{number}/task").glob("*/children"):
        try:
            children = [int(one) for one in listed.read_text().split()]
        except OSError:  # that thread has ended
            continue
        for child in children:
            yield child
            yield from _below(child)


def interrupt(words: list[str], when: Callable[[list[int]], bool], folder: Path, **more: str) -> str:
    """Run a command until ``when(its processes)``, send SIGINT as a terminal does, and return what it said."""
    own = {
        "AMD_OVERLAY_CACHE": str(folder / "cache"),
        "AMD_OPS_PROFILES": str(folder / "profiles"),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.Popen(
        [sys.executable, "-m", "rocm_overlay", *words],
        env=environment({**own, **more}), cwd=folder, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + PATIENCE
    while run.poll() is None and not when(list(_below(run.pid))) and time.monotonic() < end:
        time.sleep(0.05)
    processes = list(_below(run.pid))
    assert run.poll() is None, f"it ended before: {run.communicate()}"
    start = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    try:
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    seconds = time.monotonic() - start
    assert run.returncode == 130, said
    assert seconds < SECONDS
    assert "Traceback" not in said
    assert ": Stopped by a signal" in said
    assert said.splitlines()[-1].startswith("  next: run ")
    while left := [one for one in processes if _alive(one)]:
        assert time.monotonic() < start + SECONDS, f"{left} go on"
        time.sleep(0.05)
    return said


def _lines(folder: Path, pattern: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))


@pytest.mark.parametrize("least", [1, 2], ids=["at its start", "with work done"])
@pytest.mark.parametrize(
    ("words", "journal"),
    [
        ("bench --model {model} --rounds 3 --runs 1 --osl 4 -o out", "out/*.jsonl"),
        ("verify --model {model} --work out --cases prefill", "out/*.jsonl"),
        ("qualify --model {model} -o out/profile.json --no-register", "out/*.work/*.jsonl"),
        ("synth parallel --num-total-samples 400 --compile-backend none --output-dir out", "out/**/*.jsonl"),
        ("tune run --model llama-3.1-8b --gpu gfx942:304 -o out/t.csv --tuner {tune}/fake_tuner.py "
         "--verifier {tune}/fake_verifier.py", "out/*.session/*.jsonl"),
    ],
    ids=["bench", "verify", "qualify", "synth", "tune"],
)  # fmt: skip
def test_what_was_finished_is_kept(words: str, journal: str, least: int, model: Path, tmp_path: Path) -> None:
    """The journal's first line says of what run it is, each other one is a part; none of them is cut off or gone."""
    (tmp_path / "out").mkdir()
    (tmp_path / "plan.json").write_text(json.dumps({"*": {"sleep": 0.5}}))
    fake = {"FAKE_PLAN": str(tmp_path / "plan.json"), "FAKE_LOG": str(tmp_path / "log")}
    seen: list[int] = []

    def far_enough(processes: list[int]) -> bool:
        seen.append(_lines(tmp_path, journal))
        return bool(processes) and seen[-1] >= least

    interrupt(words.format(model=model, tune=TUNE).split(), far_enough, tmp_path, **fake)
    (file,) = tmp_path.glob(journal)
    data = file.read_bytes()
    assert data.endswith(b"\n")
    assert len([json.loads(line) for line in data.splitlines()]) >= seen[-1] >= least


@pytest.mark.parametrize(
    "words",
    [
        "profile --model {model}",
        "verify --model {model} --cases prefill",
        "synth fuzz --target ops --output-dir out",
        "gen --all --from-installed -o out",
        "drift 4.57.6 5.23.0",
        "install --generate --dry-run",
    ],
    ids=lambda words: words.split(" -")[0],
)
def test_nobody_goes_on(words: str, model: Path, tmp_path: Path) -> None:
    """As soon as there is a second process, when libraries are imported, and a second later."""
    for seconds in (0.0, 1.0):
        started: list[float] = []

        def later(processes: list[int], seconds: float = seconds, started: list[float] = started) -> bool:
            started += [time.monotonic()] if processes else []
            return bool(started) and time.monotonic() - started[0] >= seconds

        interrupt(words.format(model=model).split(), later, tmp_path)
        assert not list(tmp_path.glob("out/**/*.py")), "written at the end only"


def test_before_there_is_any_command(tmp_path: Path) -> None:
    """While modules are imported nobody knows yet what was asked for."""
    code = "import os, signal, sys; import rocm_overlay.cli as c; sys.modules['typer'] = Now()\nc.main()"
    now = "class Now:\n def __getattr__(self, name):\n  import signal; signal.raise_signal(signal.SIGINT)\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{now}{code}", "status"], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "overlay: stopped by a signal\n")


def test_a_warm_up_ends_with_its_worker(model: Path, tmp_path: Path) -> None:
    """As soon as the process that builds kernels has started."""
    work = tmp_path / "profile.work"
    work.mkdir()
    (tmp_path / "profile.json").write_text(json.dumps({"schema": "amd-ops.profile/1", "toggles": {}}))
    found = {"model": str(model), "seeded": False, "dtype": "float32", "machine": {}, "points": []}
    (work / "replay.json").write_text(json.dumps(found))

    def building(processes: list[int]) -> bool:
        return bool(processes) and any(work.rglob("warmup.json"))

    interrupt(["warmup"], building, tmp_path)
