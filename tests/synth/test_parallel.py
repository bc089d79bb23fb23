"""Whole runs of `overlay synth parallel`: what they write, and what a kill, a full disk and a second run leave."""

from __future__ import annotations

import ast
import json
import os
import resource
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from rocm_overlay.errors import BusyError
from rocm_overlay.fingerprint import Fingerprint
from rocm_overlay.synth import settings
from rocm_overlay.synth.journal import Index, Journal

from .support import command, environment, journal, journals, program, synth

COMMON = ("compile_backend=none", "num_worker=2")


def assert_whole(folder: Path, total: int) -> None:
    """Every slot is finished once, and the files are exactly the accepted programs."""
    records = journal(folder)
    assert sorted(record["slot"] for record in records) == list(range(total))
    valid = {record["name"]: record["source"] for record in records if record["status"] == "valid"}
    assert {file.stem: file.read_text() for file in folder.glob("*.py")} == valid
    for key in ("signature", "graph", "shape"):
        assert len({record[key] for record in records if record["status"] == "valid"}) == len(valid)
    assert [path.name for path in folder.iterdir() if path.suffix != ".py"] == [".synth"]


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
    for record in journal(tmp_path):
        asked = Counter(record["attempts"][-1]["requested"])
        assert not asked - Counter(record["operators"])
        assert Counter(record["operators"]) - asked == Counter(record["extra"])
        assert 1 <= record["planned"]["core"] <= 3
        assert record["planned"]["compound"] <= 2
        assert 2 <= record["planned"]["supporting"] <= 6


def test_a_kill_loses_and_repeats_nothing(tmp_path: Path) -> None:
    arguments = command("parallel", "num_total_samples=60", *COMMON, f"output_dir={tmp_path}")
    for least in (5, 25):
        process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and lines_of(tmp_path) < least:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lines_of(tmp_path) >= least
    (path,) = journals(tmp_path)
    before = {line["slot"]: line for line in journal_lines(path)[1:]}
    with path.open("ab") as stream:
        stream.write(b'{"slot": 59, "status": "val')  # the line that a kill cut off
    lost = next(line["name"] for line in before.values() if line["status"] == "valid")
    (tmp_path / f"{lost}.py").unlink(missing_ok=True)
    (tmp_path / f".{lost}.py.01234567.part").write_text("a kill during the write")
    done = synth("parallel", "num_total_samples=60", *COMMON, f"output_dir={tmp_path}", "--json")
    assert done.json()["stats"]["resumed"] == done.json()["reused"]["parts"] == len(before)
    assert f"{len(before)} of 60 programs in" in done.err
    assert_whole(tmp_path, 60)
    assert {slot: line for slot, line in ((r["slot"], r) for r in journal(tmp_path)) if slot in before} == before


def lines_of(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in journals(folder))


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


def test_a_run_is_known_by_its_surroundings_and_fresh_makes_it_anew(tmp_path: Path) -> None:
    few = ("parallel", "num_total_samples=3", *COMMON, f"output_dir={tmp_path}", "--json")
    first = synth(*few)
    assert (first.code, first.json()["reused"]) == (0, None), first.err
    mine = next(tmp_path.glob("*.py"))
    mine.write_text("# edited by its owner\n")
    fresh = synth(*few, "--fresh")
    assert (fresh.json()["reused"], fresh.json()["stats"]["resumed"]) == (None, 0)
    assert mine.read_text() == "# edited by its owner\n"
    made = {record["name"] for record in journal(tmp_path) if record["status"] == "valid"}
    assert {path.stem for path in tmp_path.glob("*.py")} == made | {mine.stem}
    other = synth(*few, OMP_NUM_THREADS="2")
    assert other.json()["reused"] is None
    assert "programs of another run stay: environment.OMP_NUM_THREADS was 1, is 2" in other.err


def test_a_second_run_of_the_same_and_a_damaged_journal_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs with the same seed and settings would write the same; others may share the folder."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    first = settings.make(output_dir=tmp_path, compile_backend="none")
    opened = Journal(tmp_path, first.key)
    with pytest.raises(BusyError, match="same settings"):
        Journal(tmp_path, first.key)
    done = synth("parallel", f"output_dir={tmp_path}", "compile_backend=none")
    assert (done.code, "Another run with the same settings" in done.err) == (6, True)
    Journal(tmp_path, settings.make(output_dir=tmp_path, seed=1).key).close()
    opened.close()
    opened.path.write_text("not json\n")
    done = synth("parallel", f"output_dir={tmp_path}", "compile_backend=none")
    assert done.code == 7
    assert opened.path.name in done.err


def test_three_runs_at_once_share_a_folder(tmp_path: Path) -> None:
    """The mixed strategy: as many programs as were asked for, no two of one computation, whoever was first."""
    runs = [
        subprocess.Popen(
            command("parallel", "num_total_samples=8", f"p_value={p}", "compile_backend=none", "num_worker=1"),
            cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for p in (0.1, 0.3, 0.5)
    ]  # fmt: skip
    for run in runs:
        assert run.wait() == 0, run.stderr and run.stderr.read()
        assert run.stderr is not None
        run.stderr.close()
    folder = tmp_path / "generated_programs"
    records = [record for record in journal(folder) if record["status"] == "valid"]
    assert len(journals(folder)) == 3
    assert len(list(folder.glob("*.py"))) == len(records) == 24
    assert len({record["graph"] for record in records}) == len({record["name"] for record in records}) == 24


def test_another_runs_programs_are_duplicates(tmp_path: Path) -> None:
    one = Journal(tmp_path, Fingerprint({"run": 1}))
    other = Journal(tmp_path, Fingerprint({"run": 2}))
    index = Index(other)
    with index.locked():
        assert index.twin(graph="g", signature="s", shape="t") == ""
    one.keep({"slot": 0, "status": "valid", "name": "SynthModel_A", "graph": "g", "signature": "s", "shape": "t"})
    with index.locked():
        assert index.twin(graph="g") == "the computation is that of SynthModel_A"
        assert index.twin(graph="h", signature="s") == "the combination of operators is that of SynthModel_A"
    with one.path.open("ab") as stream:
        stream.write(b'{"slot": 1, "status": "val')  # another run is killed in the middle of a line
    with index.locked():
        assert index.twin(graph="h") == ""
    one.close()
    other.close()


def test_merging_keeps_each_computation_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    body = "h = self.proj(x)\nreturn F.silu(h) * torch.sin(x)"
    (tmp_path / "a" / "SynthModel_A.py").write_text(program(body, name="A"))
    # The same computation: other names, another size, the product the other way round.
    other = program("v = self.l(x)\nreturn torch.sin(x) * F.silu(v)", "self.l = nn.Linear(8, 8)", name="B")
    (tmp_path / "b" / "SynthModel_B.py").write_text(other)
    (tmp_path / "b" / "SynthModel_A.py").write_text(program("return self.proj(x).tanh() + x", name="A"))
    (tmp_path / "c" / "SynthModel_Bad.py").write_text(program("return x @ x", name="Bad"))
    done = synth("merge", tmp_path / "a", tmp_path / "b", tmp_path / "c", "--output-dir", tmp_path / "all", "--json")
    value = done.json()
    assert (done.code, value["programs"], value["written"]) == (1, 2, 2)
    assert [Path(one["path"]).name for one in value["duplicates"]] == ["SynthModel_B.py"]
    assert value["duplicates"][0]["of"] == "SynthModel_A"
    assert "SynthModel_Bad.py" in value["left_out"][0]["path"]
    assert "shape" in value["left_out"][0]["why"]
    names = sorted(path.stem for path in (tmp_path / "all").glob("*.py"))
    assert len(names) == 2
    assert names[0] == "SynthModel_A"
    for name in names:
        assert f"class {name}(" in (tmp_path / "all" / f"{name}.py").read_text()
    again = synth("merge", tmp_path / "a", "--output-dir", tmp_path / "all", "--json")
    assert (again.code, again.json()["written"], again.json()["programs"]) == (0, 0, 2)
    assert synth("merge", tmp_path / "a", "--output-dir", tmp_path / "a").code == 2
    assert synth("merge", tmp_path / "nowhere").code == 2


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    arguments = ("parallel", "num_total_samples=3", "max_retries=1", *COMMON)
    synth(*arguments, f"output_dir={tmp_path / 'a'}")
    taken = next((tmp_path / "a").glob("*.py")).name
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / taken).write_text("mine")
    done = synth(*arguments, f"output_dir={tmp_path / 'b'}", "--json")
    assert (tmp_path / "b" / taken).read_text() == "mine"
    assert done.json()["stats"]["valid"] == 3
    assert len(list((tmp_path / "b").glob("*.py"))) == 4


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
