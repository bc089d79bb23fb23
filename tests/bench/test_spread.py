"""`overlay bench --executor ray`: whole shapes go to machines, their samples and outputs come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.bench import report, spread
from rocm_overlay.bench.command import Options, check_executor
from rocm_overlay.bench.matrix import Work, plan
from rocm_overlay.bench.process import Process
from rocm_overlay.bench.ranks import Place
from rocm_overlay.bench.runner import Journal, Setup
from rocm_overlay.errors import UsageError
from rocm_overlay.executor import make_executor

from examples.tiny_models import tiny_config

from .samples import SIZE, processes, setup
from .test_command import bench

CELLS = plan("onoff", [Work(isl=128), Work(isl=512)])


class Measured:
    """A double of what a worker does: made-up samples with an output file each, and a record of the shapes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.devices = iter(("GPU one", "GPU two"))

    def ask_size(self, setup: Setup) -> dict[str, Any]:
        return {**SIZE, "device_name": next(self.devices)}

    def run_all(self, setup: Setup, journal: Journal, step: Any) -> list[Process]:
        self.asked.append(setup.cells[0].against)
        (journal.folder / "values").mkdir()
        made = processes(setup.cells, journal.folder / "values")
        step("measured")
        return made


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    double = Measured()
    monkeypatch.setattr(spread, "run_all", double.run_all)
    monkeypatch.setattr(spread, "ask_size", double.ask_size)
    return double


def run(folder: Path) -> tuple[list[Process], dict[str, Any]]:
    pool = make_executor("process", 1)
    try:
        return spread.run_spread(setup(CELLS), Journal(folder, setup(CELLS)), lambda text: None, pool)
    finally:
        pool.close()


def test_a_shape_with_its_stock_is_one_job_and_is_kept_when_it_is_whole(measured: Measured, tmp_path: Path) -> None:
    found, size = run(tmp_path)
    assert measured.asked == ["stock b1 i128 o16", "stock b1 i512 o16"]
    assert len(found) == len(CELLS) * 5
    assert all(Path(process.values or "").parent == tmp_path / "values" for process in found)
    samples = tmp_path / "samples.jsonl"
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join(lines[:-2]) + "\n")  # the second shape was kept by halves
    measured.asked, measured.devices = [], iter(("GPU three",))
    again, _ = run(tmp_path)
    assert measured.asked == ["stock b1 i512 o16"]
    assert {(p.cell, p.round) for p in again} == {(p.cell, p.round) for p in found}
    assert size["parameters"] == SIZE["parameters"]


def test_rows_of_different_devices_are_told_apart(measured: Measured, tmp_path: Path) -> None:
    found, size = run(tmp_path)
    content = report.build(setup(CELLS), found, size, 1.0).content
    assert any("different devices: GPU one, GPU two" in text for text in content["warnings"])
    assert all(row["hosts"] and row["devices"] for row in content["cells"])


@pytest.mark.parametrize(
    ("options", "place", "said"),
    [
        ({"executor": "slurm"}, Place(), "--executor is 'slurm'"),
        ({"executor": "process", "workers": 4}, Place(), "disturb each other's times"),
        ({"executor": "ray"}, Place(0, 2), "under torchrun"),
    ],
)
def test_what_would_not_measure_what_it_says_is_refused(options: dict[str, Any], place: Place, said: str) -> None:
    if options["executor"] == "ray":
        pytest.importorskip("ray", reason="the [ray] extra is not installed")
    with pytest.raises(UsageError, match=said):
        check_executor(Options(model="m", **options), place)


@pytest.mark.full
def test_a_ray_cluster_measures(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the [ray] extra is not installed")
    tiny_config("llama").save_pretrained(tmp_path / "model")
    small = ("--dtype", "float32", "--rounds", "1", "--runs", "1", "--isl", "8,16", "--osl", "3", "-o", "out", "--json")
    done = bench("--model", tmp_path / "model", *small, "--executor", "ray", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert [row["status"] for row in content["cells"]] == ["ok"] * 6
    assert all(row["parity"]["ok"] for row in content["cells"])
    assert sum(row["parity"]["tokens_equal"] or 0 for row in content["cells"]) == 4 * 3
