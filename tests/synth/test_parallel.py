"""Whole runs of `overlay synth parallel`: what they write, and what a kill, a full disk and a second run leave."""

from __future__ import annotations

import ast
import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from rocm_overlay.install.transaction.errors import BusyError, UsageError
from rocm_overlay.synth import settings
from rocm_overlay.synth.journal import Journal

from .support import command, environment, journal, synth

COMMON = ("compile_backend=none", "num_worker=2")


def assert_whole(folder: Path, total: int) -> None:
    """Every slot is finished once, and the files are exactly the accepted programs."""
    records = journal(folder)
    assert sorted(record["slot"] for record in records) == list(range(total))
    valid = {record["name"]: record["source"] for record in records if record["status"] == "valid"}
    assert {file.stem: file.read_text() for file in folder.glob("*.py")} == valid
    assert len({record["signature"] for record in records if record["status"] == "valid"}) == len(valid)
    assert [path.name for path in folder.iterdir() if path.suffix not in (".py", ".jsonl")] == []


def test_the_seeds_command_line(tmp_path: Path) -> None:
    ranges = ("num_core_ops_range=[1,3]", "num_compound_ops_range=[0,2]", "num_supporting_ops_range=[2,6]")
    done = synth(
        ".parallel", "num_total_samples=12", *ranges, "p_value=0.4", *COMMON, f"output_dir={tmp_path}", "--json"
    )
    assert done.code == 0, done.err
    stats = done.json()["stats"]
    assert stats["valid"] >= 11
    assert stats["yield_per_attempt"] > 0.8
    assert "12/12 slots" in done.err
    assert_whole(tmp_path, 12)
    for file in tmp_path.glob("*.py"):
        names = {node.name for node in ast.parse(file.read_text()).body if hasattr(node, "name")}
        assert {file.stem, "get_inputs", "get_init_inputs"} <= names


def test_a_kill_loses_and_repeats_nothing(tmp_path: Path) -> None:
    arguments = command("parallel", "num_total_samples=60", *COMMON, f"output_dir={tmp_path}")
    path = tmp_path / ".synth-journal.jsonl"
    for least in (5, 25):
        process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < least):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(journal_lines(path)) >= least
    before = {line["slot"]: line for line in journal_lines(path)[1:]}
    with path.open("ab") as stream:
        stream.write(b'{"slot": 59, "status": "val')  # the line that a kill cut off
    lost = next(line["name"] for line in before.values() if line["status"] == "valid")
    (tmp_path / f"{lost}.py").unlink(missing_ok=True)
    done = synth("parallel", "num_total_samples=60", *COMMON, f"output_dir={tmp_path}", "--json")
    assert done.json()["stats"]["resumed"] == len(before)
    assert_whole(tmp_path, 60)
    assert {slot: line for slot, line in ((r["slot"], r) for r in journal(tmp_path)) if slot in before} == before


def journal_lines(path: Path) -> list[dict[str, object]]:
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    """The size limit of files stands in for the disk: a write stops in the middle of a line, as it would there."""
    arguments = ("parallel", "num_total_samples=30", *COMMON, f"output_dir={tmp_path}")
    done = subprocess.run(
        command(*arguments),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 5, done.stderr
    assert "What was finished is kept" in done.stderr
    kept = journal(tmp_path)
    assert 0 < len(kept) < 30
    assert synth(*arguments).code == 0
    assert_whole(tmp_path, 30)
    assert journal(tmp_path)[: len(kept)] == kept


def test_other_settings_and_a_second_run_are_refused(tmp_path: Path) -> None:
    first = settings.make(output_dir=tmp_path)
    opened = Journal(tmp_path, first.fingerprint())
    with pytest.raises(BusyError):
        Journal(tmp_path, first.fingerprint())
    opened.close()
    with pytest.raises(UsageError, match=r"other settings \(seed\)"):
        Journal(tmp_path, settings.make(output_dir=tmp_path, seed=1).fingerprint())
    (tmp_path / ".synth-journal.jsonl").write_text("not json\n")
    done = synth("parallel", f"output_dir={tmp_path}", *COMMON)
    assert done.code == 7
    assert ".synth-journal.jsonl" in done.err


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    arguments = ("parallel", "num_total_samples=3", "max_retries=1", *COMMON)
    synth(*arguments, f"output_dir={tmp_path / 'a'}")
    taken = next((tmp_path / "a").glob("*.py")).name
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / taken).write_text("mine")
    done = synth(*arguments, f"output_dir={tmp_path / 'b'}", "--json")
    assert (tmp_path / "b" / taken).read_text() == "mine"
    assert done.json()["stats"]["categories"] == {"duplicate": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert synth("parallel", f"output_dir={tmp_path / 'x'}", *COMMON).code == 5


@pytest.mark.full
def test_ray_does_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the [ray] extra is not installed")
    done = synth("parallel", "num_total_samples=12", "executor=ray", *COMMON, f"output_dir={tmp_path}", "--json")
    assert done.code == 0, done.err
    assert_whole(tmp_path, 12)
