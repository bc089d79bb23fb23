"""The real command, with faults put into its system calls from outside by strace: nothing of ours is replaced."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.install.support import environment, modeling, run_process, snapshot

STRACE = shutil.which("strace")
CALLS = ("renameat", "renameat2", "rename", "fsync", "linkat", "unlinkat", "mkdirat", "fchmod", "utimensat", "write")
CODES = {0, 5, 7, 10}
MODELS = "llama,qwen3"
RUN = "from rocm_overlay.cli import main; main()"


def traced(site: Path, command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    assert STRACE is not None
    log = site.parent / "trace"
    argv = [STRACE, "-f", "-qq", "-o", str(log), *options, sys.executable, "-B", "-c", RUN, *command]
    return subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def strace() -> None:
    if STRACE is None:
        pytest.skip("needs strace")
    done = subprocess.run([STRACE, "-o", os.devnull, "true"], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"strace may not trace here: {done.stderr.decode().strip()}")


def count_calls(site: Path, command: list[str]) -> Counter[str]:
    """Return how often a fault-free run makes each call."""
    done = traced(site, command, "-e", f"trace={','.join(CALLS)}")
    assert done.returncode == 0, done.stderr
    return Counter(re.findall(r"^\d+ +(\w+)\(", (site.parent / "trace").read_text(), re.MULTILINE))


def points(counts: Counter[str], whole: bool) -> list[tuple[str, int]]:
    """Return the calls to spoil: all, or for each kind the first, one in the middle and the last."""
    chosen = []
    for name, number in sorted(counts.items()):
        wanted = range(1, number + 1) if whole else sorted({(number + 2) // 2, number})
        chosen += [(name, point) for point in wanted]
    return chosen


def end_of(site: Path, stock: dict[str, object], overlaid: dict[str, bytes]) -> str:
    """Run the next command, `recover`; return stock, overlay or what is wrong."""
    recovered = run_process("recover", "--json", "--site-packages", str(site))
    assert recovered.code == 0, recovered
    status = run_process("status", "--json", "--site-packages", str(site))
    assert status.code == 0, status
    texts = {model: modeling(site, model).read_bytes() for model in MODELS.split(",")}
    if list(site.rglob("*.ovtmp")):
        return "BAD: temporary files"
    if texts == overlaid:
        return "overlay" if status.json["state"] == "APPLIED" else f"BAD: overlay, but {status.json['state']}"
    if snapshot(site) == stock:
        return "stock" if status.json["state"] == "STOCK" else f"BAD: stock, but {status.json['state']}"
    return "BAD: mixed"


def spoil(site: Path, tmp_path: Path, verb: str, faults: tuple[str, ...], whole: bool) -> Counter[str]:
    """Run the command once per point and fault on a fresh copy; return how the runs ended."""
    stock = snapshot(site)
    where = ["--site-packages", str(site)]
    install = ["install", "--transformers", "4.57", "--models", MODELS, *where]
    command = install if verb == "install" else ["revert", *where]
    clean, overlaid_tree = tmp_path / "clean", tmp_path / "overlaid"
    shutil.copytree(site, clean, symlinks=True)
    assert run_process(*install).code == 0
    overlaid = {model: modeling(site, model).read_bytes() for model in MODELS.split(",")}
    shutil.copytree(site, overlaid_tree, symlinks=True)

    def fresh() -> None:
        shutil.rmtree(site)
        shutil.copytree(clean if verb == "install" else overlaid_tree, site, symlinks=True)

    fresh()
    ends: Counter[str] = Counter()
    for number, (name, point) in enumerate(points(count_calls(site, command), whole)):
        for fault in faults if whole else faults[number % len(faults) :][:1]:
            fresh()
            done = traced(site, [*command, "--json"], "-e", f"inject={name}:{fault}:when={point}")
            end = end_of(site, stock, overlaid)
            killed = fault.startswith("signal")
            if killed and done.returncode not in (-9, 137, *CODES):
                end = f"BAD: ended with {done.returncode}"
            if not killed and done.returncode not in CODES:
                end = f"BAD: exit {done.returncode}: {done.stdout}{done.stderr}"
            if "Traceback" in done.stderr:
                end = f"BAD: {done.stderr}"
            if not killed and done.stdout.strip() and name != "write":
                answer = json.loads(done.stdout)
                if not answer["ok"] and answer["error"]["code"] != done.returncode:
                    end = "BAD: another exit code than the report"
                if answer["ok"] and end == ("stock" if verb == "install" else "overlay"):
                    end = "BAD: exit 0 without an effect"
            ends[f"{name} {fault} {end}" if end.startswith("BAD") else end] += 1
    return ends


FAULTS = ("signal=SIGKILL", "error=EIO", "error=ENOSPC", "error=EROFS", "error=EDQUOT")


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=[pytest.mark.full, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("verb", ["install", "revert"])
def test_faults_in_the_system_calls_of_the_real_command(
    verb: str, whole: bool, real_site: Callable[[str], Path], tmp_path: Path
) -> None:
    ends = spoil(real_site("4.57.6"), tmp_path, verb, FAULTS, whole)
    assert [end for end in ends if end.startswith("BAD")] == []
    assert ends["stock"] > 0
    assert ends["overlay"] > 0
    assert ends.total() > (100 if whole else 8)
