"""The command on real processes and a tiny model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.bench import command, runner
from rocm_overlay.bench.process import Process
from rocm_overlay.bench.runner import Journal, Setup
from rocm_overlay.console import set_json
from rocm_overlay.errors import UsageError

from examples.tiny_models import tiny_config

from .samples import SIZE, processes

MODULE = [sys.executable, "-m", "rocm_overlay", "bench"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_config("llama").save_pretrained(folder)
    return folder


def bench(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [*MODULE, *map(str, arguments)], cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )


def test_a_run_from_a_configuration_alone_and_again_as_its_own_baseline(model: Path, tmp_path: Path) -> None:
    small = ("--dtype", "float32", "--rounds", "1", "--runs", "2", "--isl", "8", "--osl", "4", "-o", "out", "--json")
    done = bench("--model", model, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["schema"] == "amd-overlay.bench/1"
    rows = {row["name"]: row for row in report["cells"]}
    assert rows["all"]["parity"]["ok"]
    assert rows["all"]["parity"]["tokens_equal"] == 4
    assert rows["stock again"]["parity"]["max_abs"] == 0
    assert rows["all"]["launches"]["once"] < rows["stock"]["launches"]["once"]
    assert rows["stock"]["dispatch"] == []
    assert len(rows["all"]["measures"]["per_token"]["latency"]["values"][0]) == 2 * 3
    # One round is too little for a claim, whatever the numbers are.
    assert {v["outcome"] for row in report["cells"] for v in row["verdicts"].values()} == {"same"}
    theirs = json.loads((tmp_path / "out" / "optimum" / "all_b1_i8_o4" / "benchmark_report.json").read_text())
    assert theirs["per_token"]["latency"]["count"] == 2 * 3
    # The same command measures nothing again.
    again = bench("--model", model, *small, "--baseline", "out/report.json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "round" not in again.stderr
    assert "3 of 3 samples in" in again.stderr
    assert "from an earlier run of 20" in again.stderr
    reused = json.loads(again.stdout)
    assert reused["baseline"]["failed"] is False
    assert reused["reused"]["parts"] == reused["reused"]["of"] == 3
    assert reused["created"] == report["created"] == reused["reused"]["newest"]
    # Under the same path another model, and in the same folder another environment: nothing of the above may stand.
    config = model / "config.json"
    before = config.read_text()
    try:
        config.write_text(before.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
        assert config.read_text() != before
        refused = bench("--model", model, *small, cwd=tmp_path)
        assert refused.returncode == 2
        assert "samples of another run: model.config.json was" in refused.stderr
        fresh = bench("--model", model, *small, "--fresh", cwd=tmp_path)
        assert fresh.returncode == 0, fresh.stderr
        answer = json.loads(fresh.stdout)
        assert answer["reused"] is None
        assert answer["model"]["parameters"] < report["model"]["parameters"]
        assert answer["cells"][0]["measures"] != report["cells"][0]["measures"]
        refused = bench("--model", model, *small, cwd=tmp_path, HIP_FORCE_DEV_KERNARG="1")
        assert (refused.returncode, "HIP_FORCE_DEV_KERNARG was not set, is 1" in refused.stderr) == (2, True)
    finally:
        config.write_text(before)


def test_a_cell_that_crashes_is_told_and_ends_with_1(model: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nif os.environ.get('CRASH_HERE'): os._exit(7)\n")
    (tmp_path / "cells.yaml").write_text(f"cells: [{{name: dies, env: {{CRASH_HERE: 1, PYTHONPATH: {tmp_path}}}}}]\n")
    work = ("--rounds", "1", "--runs", "1", "--isl", "8", "--osl", "2", "--dtype", "float32", "-o", "out")
    done = bench("--model", model, "--matrix", "cells.yaml", *work, "--json", cwd=tmp_path)
    assert done.returncode == 1
    rows = {row["name"]: row for row in json.loads(done.stdout)["cells"]}
    assert rows["dies"]["status"] == "crashed"
    assert "status 7" in rows["dies"]["message"]
    assert rows["stock"]["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--matrix", "toggles"), "--model is missing"),
        (("--model", "nowhere"), "nowhere is neither a folder nor in the local Hugging Face cache"),
        (("--model", "MODEL", "--dtype", "int8"), "--dtype is 'int8'"),
        (("--model", "MODEL", "--batch", "one"), "--batch is 'one'"),
        (("--model", "MODEL", "--matrix", "x"), "--matrix is 'x'"),
        (("--model", "MODEL", "--rounds", "0"), "--rounds is 0"),
        (("--model", "MODEL", "--timeout", "inf"), "--timeout is inf"),
        (("--model", "MODEL", "--timeout", "nan"), "--timeout is nan"),
        (("--model", "MODEL", "--timeout", "0"), "--timeout is 0"),
        (("--model", "MODEL", "--baseline", "none.json"), "none.json cannot be read"),
        (("--model", "MODEL", "--metric", "tokens"), "--metric names 'tokens'"),
        (("--model", "MODEL", "--executor", "slurm"), "--executor is 'slurm'"),
        (("--model", "MODEL", "--workers", "2"), "--workers is 2"),
        (("compare", "a.json", "b.json"), "a.json cannot be read"),
        (("compare", "a.json", "b.json", "--metric", "tokens"), "--metric names 'tokens'"),
    ],
)
def test_a_mistake_costs_one_sentence_and_exit_2(
    model: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = bench(*(str(model) if text == "MODEL" else text for text in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_page_that_has_no_folder_is_refused_before_anything_is_measured(model: Path, tmp_path: Path) -> None:
    done = bench("--model", str(model), "--html", "none/page.html", cwd=tmp_path)
    assert done.returncode == 5
    assert "none/page.html" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_answers_for_programs_leave_no_folder_and_another_model_has_a_folder_of_its_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without -o the folder's name holds the key; with --json alone there is none. Measuring is a double here."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def measured(setup: Setup, journal: Journal, step: Any, team: Any = None) -> list[Process]:
        done = journal.done()
        missing = [p for p in processes(setup.cells, journal.folder) if (p.cell, p.round) not in done]
        asked.extend(p.cell for p in missing)
        for process in missing:
            journal.keep(process)
        return [*done.values(), *missing]

    monkeypatch.setattr(runner, "run_all", measured)
    monkeypatch.setattr(runner, "ask_size", lambda setup: SIZE)
    options = command.Options(str(model), python=sys.executable)
    set_json(True)
    command.run(options)
    set_json(False)
    assert list(tmp_path.iterdir()) == []
    command.run(options)
    (first,) = tmp_path.iterdir()
    asked.clear()
    command.run(options)
    assert (asked, list(tmp_path.iterdir())) == ([], [first]), "the same is not measured twice"
    command.run(dataclasses.replace(options, fresh=True))
    assert (len(asked), list(tmp_path.iterdir())) == (15, [first])
    other = tmp_path.parent / "other"
    shutil.copytree(model, other)
    (other / "model.bin").write_bytes(b"weights")
    asked.clear()
    command.run(dataclasses.replace(options, model=str(other)))
    assert (len(asked), len(list(tmp_path.iterdir()))) == (15, 2)
    monkeypatch.setenv("MIOPEN_FIND_MODE", "1")
    asked.clear()
    command.run(options)
    assert (len(asked), len(list(tmp_path.iterdir()))) == (15, 3)
    assert "15 of 15 samples" in capsys.readouterr().err


def test_a_page_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    monkeypatch.setattr(runner, "ask_size", lambda setup: pytest.fail("measured"))
    with pytest.raises(UsageError, match="--html` needs matplotlib"):
        command.run(command.Options(str(model), html=tmp_path / "page.html", output=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_a_run_that_is_killed_half_way_keeps_what_it_has(model: Path, tmp_path: Path) -> None:
    small = ("--dtype", "float32", "--rounds", "2", "--runs", "1", "--isl", "8", "--osl", "2", "-o", "out", "--json")
    command = [*MODULE, "--model", str(model), *small]
    samples = tmp_path / "out" / "samples.jsonl"
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}  # as `bench` has it
    process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (samples.exists() and samples.read_bytes().count(b"\n") >= 3):
        time.sleep(0.1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = samples.read_text().splitlines()
    done = bench("--model", model, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert samples.read_text().splitlines()[: len(kept)] == kept
    assert len(samples.read_text().splitlines()) == 1 + 3 * 2, "a line of settings, then one per sample"
    assert f"note: {len(kept) - 1} of 6 samples" in done.stderr
    assert {row["status"] for row in json.loads(done.stdout)["cells"]} == {"ok"}
