"""`torchrun ... overlay bench`: the slowest rank is the step, each rank's samples are kept, one rank writes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.bench import ranks, report
from rocm_overlay.bench.matrix import Work, plan, shape_name
from rocm_overlay.bench.memory import check_memory
from rocm_overlay.bench.process import Process
from rocm_overlay.errors import UsageError

from examples.tiny_models import tiny_config
from tests.ranks import launch

from .samples import SIZE, processes, setup

SMALL = ("--dtype", "float32", "--rounds", "1", "--runs", "2", "--isl", "8", "--osl", "4", "-o", "out")


def one(rank: int, times: list[float], **more: Any) -> Process:
    runs = [{"ttft": time, "itl": [time, 2 * time], "e2e": 4 * time, "clock_jump": 0.0} for time in times]
    fields = {"status": "ok", "loaded_s": 1.0 + rank, "first": {"e2e": times[0]}, "bandwidth": 5.0 - rank, **more}
    return Process("stock b1", 0, runs=runs, memory={"max_ram": 10 * (rank + 1)}, **fields)


def test_a_step_takes_as_long_as_its_slowest_rank() -> None:
    first, second = one(0, [1.0, 4.0]), one(1, [3.0, 2.0])
    second.runs[1]["itl"] = [2.0, 9.0]
    merged = ranks.merge([first, second])
    assert merged.runs[0] == {"ttft": 3.0, "itl": [3.0, 6.0], "e2e": 12.0, "clock_jump": 0.0}
    assert merged.runs[1]["itl"] == [4.0, 9.0]
    assert (merged.loaded_s, merged.bandwidth, merged.memory) == (2.0, 4.0, {"max_ram": 20})
    assert [rank["runs"][0]["ttft"] for rank in merged.ranks] == [1.0, 3.0]


def test_a_rank_that_died_is_named() -> None:
    merged = ranks.merge([one(0, [1.0]), one(1, [1.0], status="crashed", message="killed")])
    assert (merged.status, merged.message) == ("crashed", "rank 1: killed")


def test_ranks_that_computed_different_outputs_have_no_speed() -> None:
    alike = ranks.agreed([(one(0, [1.0]), "a"), (one(1, [1.0]), "a")])
    assert ranks.merge(alike).status == "ok"
    other = ranks.agreed([(one(0, [1.0]), "a"), (one(1, [1.0]), "b")])
    assert (ranks.merge(other).status, len(other)) == ("disagree", 2)
    dead = ranks.agreed([(one(0, [1.0]), "a"), (one(1, [1.0], status="crashed", message="killed"), "")])
    assert ranks.merge(dead).message == "rank 1: killed"


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, ranks.Place(0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ranks.Place(1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ranks.Place(0, 1)),
        ({"WORLD_SIZE": "2"}, ranks.Place(0, 1)),
    ],
)
def test_the_launchers_variables(
    environment: dict[str, str], place: ranks.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.place() == place


def test_training_on_several_ranks_is_refused() -> None:
    with pytest.raises(UsageError, match="one process"):
        ranks.join(ranks.Place(0, 2), "train")


def test_cells_of_several_ranks_have_names_and_memory_of_their_own() -> None:
    assert shape_name(Work(ranks=8)) == "b1 i128 o16 tp8"
    large = {**SIZE, "parameters": 70 * 10**9, "bytes": 140 * 10**9, "free": 48 * 10**9}
    eight = setup(plan("onoff", [Work(ranks=8)]))
    check_memory({**large, "device": "cuda"}, eight)
    with pytest.raises(UsageError, match=r"about 177.5 GiB are needed"):
        check_memory(large, eight)  # ranks on a CPU share its memory


def test_the_report_shows_each_rank(tmp_path: Path) -> None:
    cells = plan("onoff", [Work(ranks=2)])
    made = [ranks.merge([process, slower(process)]) for process in processes(cells, tmp_path)]
    content = report.build(setup(cells), made, SIZE, 1.0).content
    row = content["cells"][0]
    assert content["protocol"]["ranks"] == 2
    p50 = [rank["measures"]["per_token"]["latency"]["p50"] for rank in row["ranks"]]
    assert p50[1] == pytest.approx(2 * p50[0])
    assert row["measures"]["per_token"]["latency"]["p50"] == p50[1]


def slower(process: Process) -> Process:
    runs = [
        {"ttft": 2 * run["ttft"], "itl": [2 * t for t in run["itl"]], "e2e": 2 * run["e2e"], "clock_jump": 0.0}
        for run in process.runs
    ]
    return Process(**{**process.__dict__, "runs": runs})


def torchrun(model: Path, cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = launch.torchrun("-m", "rocm_overlay", "bench", "--model", str(model), *SMALL, *more)
    return subprocess.run(
        command, cwd=cwd, env=launch.environment(), capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_config("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.full
def test_two_ranks_measure_together_and_one_writes(model: Path, tmp_path: Path) -> None:
    done = torchrun(model, tmp_path, "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    content = json.loads(done.stdout)  # one object: the other rank says nothing
    rows = {row["name"]: row for row in content["cells"]}
    assert rows["all"]["parity"]["ok"]
    assert rows["all"]["parity"]["tokens_equal"] == 4
    for row in rows.values():
        steps = [rank["measures"]["per_token"]["latency"]["values"][0] for rank in row["ranks"]]
        assert row["measures"]["per_token"]["latency"]["values"][0] == list(map(max, *steps))
        assert steps[0] != steps[1]
    assert sorted(path.name for path in (tmp_path / "out" / "values").iterdir())
    again = torchrun(model, tmp_path, "--json")
    assert again.returncode == 0, again.stderr[-4000:]
    assert "round 1" not in again.stderr


@pytest.mark.full
def test_a_rank_that_dies_ends_its_cell_and_no_other(model: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('CRASH_HERE') and os.environ.get('RANK') == '1': os._exit(7)\n"
    )
    path = f"{tmp_path}:{launch.ROOT}:{launch.ROOT / 'installer'}"
    (tmp_path / "cells.yaml").write_text(f"cells: [{{name: dies, env: {{CRASH_HERE: 1, PYTHONPATH: '{path}'}}}}]\n")
    done = torchrun(model, tmp_path, "--matrix", "cells.yaml", "--timeout", "60", "--json")
    assert done.returncode != 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "report.json").read_text())["cells"]}
    assert rows["stock"]["status"] == "ok"
    assert rows["dies"]["status"] in ("crashed", "timeout")
    assert "rank" in rows["dies"]["message"]
