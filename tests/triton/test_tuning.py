"""The file of cuts: read at binding, written after a probe, ignored with a count when it is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amd_ops.backends.triton.configs import Config, for_rows, neighbours
from amd_ops.backends.triton.target import Target

tuning = pytest.importorskip("amd_ops.backends.triton.tuning", reason="triton is not installed", exc_type=ImportError)

CHIP = Target("cuda", "gfx1100", 32, 96)
KEY = ("torch.bfloat16", 4096, True)
GUESS = Config(1, 4096, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuning, "environment", lambda: {"XDG_CACHE_HOME": str(tmp_path)})
    tuning.forget()
    return tmp_path


def clocked(monkeypatch: pytest.MonkeyPatch, best: Config) -> list[Config]:
    """A clock that finds ``best`` the fastest; returns the list of cuts that were run."""
    runs: list[Config] = []

    def clock(call: Any, launches: int = 20) -> float:
        call()
        return 1.0 if runs[-1] == best else 2.0

    monkeypatch.setattr(tuning, "gpu_time", clock)
    return runs


def test_the_fastest_cut_is_kept_and_read_by_the_next_process(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = Config(1, 4096, 16)
    runs = clocked(monkeypatch, best)
    table = tuning.Table("rms_norm", CHIP)
    assert table.put(KEY, GUESS) == GUESS
    table.tune(KEY, GUESS, runs.append)
    assert table.get(KEY) == best
    assert set(runs) == set(neighbours(GUESS, CHIP))
    (path,) = cache.rglob("*.json")
    assert "gfx1100" in path.name
    assert json.loads(path.read_text())["cuts"] == {"rms_norm|bfloat16|4096|True": [1, 4096, 16]}
    tuning.forget()
    again = tuning.Table("rms_norm", CHIP)
    assert again.put(KEY, GUESS) == best
    runs.clear()
    again.tune(KEY, GUESS, runs.append)
    assert runs == [], "a known cut is not timed again"


def test_every_chip_and_kernel_has_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = clocked(monkeypatch, Config(1, 4096, 4))
    for kernel, chip in (("a", CHIP), ("b", CHIP), ("a", Target("cuda", "gfx942", 64, 304))):
        tuning.Table(kernel, chip).tune(KEY, GUESS, runs.append)
    assert len(list(cache.rglob("*.json"))) == 2
    tuning.forget()
    assert tuning.Table("c", CHIP).put(KEY, GUESS) == GUESS


def test_what_another_process_wrote_meanwhile_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = clocked(monkeypatch, GUESS)
    mine = tuning.Table("a", CHIP)
    tuning.forget()
    tuning.Table("b", CHIP).tune(KEY, GUESS, runs.append)
    mine.tune(KEY, GUESS, runs.append)
    (path,) = cache.rglob("*.json")
    assert sorted(json.loads(path.read_text())["cuts"]) == ["a|bfloat16|4096|True", "b|bfloat16|4096|True"]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"schema": "other/1", "cuts": {}}', '{"schema": "amd-ops.triton-cuts/1"}',
        '{"schema": "amd-ops.triton-cuts/1", "cuts": {"a|bfloat16|4096|True": [1, 3000, 8]}}',
        '{"schema": "amd-ops.triton-cuts/1", "cuts": {"a|bfloat16|4096|True": [1, 4096]}}',
        '{"schema": "amd-ops.triton-cuts/1", "cuts": {"a|bfloat16|4096|True": [0, 4096, 8]}}',
        '{"schema": "amd-ops.triton-cuts/1", "cuts": {"a|bfloat16|4096|True": [1, 4096, "8"]}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_ignored_and_counted(cache: Path, text: str) -> None:
    path = tuning.cache_file(CHIP, {"XDG_CACHE_HOME": str(cache)})
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert tuning.Table("a", CHIP).put(KEY, GUESS) == GUESS
    ((reason, count),) = tuning.notes.items()
    assert "is ignored" in reason
    assert count == 1


def test_a_folder_that_cannot_be_written_is_counted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "amd-overlay").write_text("a file where the folder should be")
    runs = clocked(monkeypatch, GUESS)
    table = tuning.Table("a", CHIP)
    table.tune(KEY, GUESS, runs.append)
    assert table.get(KEY) == GUESS
    assert any("cannot be written" in note for note in tuning.notes)


def test_a_cut_that_does_not_run_is_left_out() -> None:
    def run(cut: Config) -> None:
        if cut.warps > 4:
            raise RuntimeError("out of resources")

    cuts = [Config(1, 64, 2), Config(1, 64, 4), Config(1, 64, 8)]
    assert tuning.fastest(cuts, run, lambda call: 1.0) == cuts[0]
    assert tuning.notes == {"a cut does not run: RuntimeError": 1}
    assert tuning.fastest(cuts[2:], run, lambda call: 1.0) is None


def test_the_interpreter_and_a_capture_are_not_timed(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    runs = clocked(monkeypatch, GUESS)
    tuning.Table("a", Target("cpu", "interpreter", 32, 1)).tune(KEY, GUESS, runs.append)
    monkeypatch.setattr(tuning, "capturing", lambda: True)
    tuning.Table("a", CHIP).tune(KEY, GUESS, runs.append)
    assert runs == []
    assert not list(cache.rglob("*.json"))


@pytest.mark.parametrize("wave", [32, 64])
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("size", [1, 7, 64, 128, 4096, 5000, 16384, 16385, 100_000])
def test_no_cut_asks_for_more_threads_than_a_workgroup_has(size: int, few: bool, wave: int) -> None:
    chip = Target("cuda", "gfx1100" if wave == 32 else "gfx942", wave, 96)
    guess = for_rows(size, few, chip)
    for cut in neighbours(guess, chip):
        assert 1 <= cut.warps * wave <= 1024
        assert cut.rows >= 1
        assert cut.block & (cut.block - 1) == 0
    assert guess.block >= size or guess.block == 8192
