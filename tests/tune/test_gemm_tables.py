"""amd_ops' side: one private merged file, in the variable before aiter's loader reads it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch")

from rocm_overlay.tune import cache
from rocm_overlay.tune.merge import Merged, Source

from amd_ops import gemm_tables
from amd_ops.gemm_tables import VARIABLE, GemmTableError, ensure_merged_table, extend_aiter_gemm_configs

from .conftest import make_aiter
from .loaders import TAGS, Loader
from .support import ROOT, Cli, cells, child_environment, contents, write_table

GPU = ("gfx942", 304)


class Place:
    """An installed aiter with two tables, and an environment with its own home."""

    def __init__(self, root: Path) -> None:
        self.tables = root / "tables"
        self.tables.mkdir()
        default = write_table(self.tables / "bf16_tuned_gemm.csv", cells(M=1, us=9.0, kernelName="default"))
        model = write_table(
            self.tables / "llama_bf16_tuned_gemm.csv",
            cells(M=2, us=8.0, kernelName="model"),
            cells(M=1, us=7.0, kernelName="duplicate"),
            cells(M=1, gfx="gfx950", cu_num=256),
        )
        write_table(self.tables / "llama_bf16_untuned_gemm.csv", cells(M=1))
        self.package = make_aiter(root / "site", [default, model])
        self.home = root / "home"
        self.home.mkdir()
        self.environ = {**child_environment(), "HOME": str(self.home)}
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", VARIABLE):
            self.environ.pop(name, None)

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "amd-overlay" / "gemm"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.syspath_prepend(str(made.package.parent))
    for name in [name for name in sys.modules if name == "aiter" or name.startswith("aiter.")]:
        monkeypatch.delitem(sys.modules, name)
    return made


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """List the merged files that are written."""
    written: list[Path] = []
    real = cache.write_merged

    def counted(merged: Merged, output: Path, sources: Sequence[Source]) -> None:
        written.append(output)
        real(merged, output, sources)

    monkeypatch.setattr(cache, "write_merged", counted)
    return written


def test_built_once_then_reused(place: Place, builds: list[Path]) -> None:
    before = contents(place.package)
    first = ensure_merged_table(*GPU, place.environ)
    assert (first.source, first.rows) == ("merged", 2)
    assert first.reason == "built from 2 files, 2 rows for gfx942:304"
    assert place.environ.pop(VARIABLE) == first.path
    second = ensure_merged_table(*GPU, place.environ)
    assert (second.path, second.reason) == (first.path, "reused from 2 files, 2 rows for gfx942:304")
    assert builds == [Path(str(first.path))]
    assert contents(place.package) == before
    path = Path(str(first.path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for tag in TAGS:
        loader = Loader(tag, *GPU)
        assert loader.find(loader.load(path), 1, 4096, 4096)["kernelName"] == "duplicate", "the fastest shipped row"
    assert "aiter" not in sys.modules, "aiter was not imported"


def test_other_inputs_another_file(place: Place, builds: list[Path]) -> None:
    names = {ensure_merged_table(*GPU, {**place.environ}).path}
    names.add(ensure_merged_table("gfx950", 256, {**place.environ}).path)
    write_table(place.package / "configs" / "model_configs" / "x_bf16_tuned_gemm.csv", cells(M=4))
    names.add(ensure_merged_table(*GPU, {**place.environ}).path)
    mine = place.home / ".config" / "amd-overlay" / "gemm"
    mine.mkdir(parents=True)
    write_table(mine / "mine.csv", cells(M=2, us=99.0, kernelName="mine"))
    last = ensure_merged_table(*GPU, {**place.environ})
    names.add(last.path)
    (place.package / "tuned_gemm.py").write_text("# another aiter\n")
    names.add(ensure_merged_table(*GPU, {**place.environ}).path)
    assert len(names) == len(builds) == 5
    loader = Loader("v0.1.16", *GPU)
    assert loader.find(loader.load(Path(str(last.path))), 2, 4096, 4096)["kernelName"] == "mine"


def test_the_same_file_as_tune_env(place: Place, tune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place.home))
    made = ensure_merged_table(*GPU, place.environ)
    value = tune("env", "--gpu", "gfx942:304", "--json").json()
    assert (value["value"], value["reused"], value["rows"]) == (made.path, True, 2)
    assert tune("env", "--gpu", "gfx942:304").out == f"export {VARIABLE}={made.path}\n"


def test_a_users_own_variable_is_respected_and_reported(place: Place, builds: list[Path], tmp_path: Path) -> None:
    one = write_table(tmp_path / "one.csv", cells(), cells(M=32))
    place.environ[VARIABLE] = str(one)
    found = ensure_merged_table(*GPU, place.environ)
    assert (found.path, found.source, found.rows) == (str(one), "user", 2)
    assert "respected" in found.reason
    place.environ[VARIABLE] = f"{one}{os.pathsep}{tmp_path / 'absent.csv'}"
    found = ensure_merged_table(*GPU, place.environ)
    assert "rewrites them" in found.reason
    assert f"missing, so an empty table: {tmp_path / 'absent.csv'}" in found.reason
    assert place.environ[VARIABLE] == found.path
    assert builds == []


def test_too_late_is_said(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "aiter.tuned_gemm", ModuleType("aiter.tuned_gemm"))
    found = ensure_merged_table(*GPU, place.environ)
    assert (found.path, found.source) == (None, "none")
    assert "imported before" in found.reason
    assert VARIABLE not in place.environ
    table = write_table(tmp_path / "mine.csv", cells())
    with pytest.raises(GemmTableError, match="call this before the first GEMM"):
        extend_aiter_gemm_configs(table, gpu=GPU, environ=place.environ)


def test_without_aiter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "find_aiter", lambda: None)
    environ = {"HOME": str(tmp_path)}
    assert ensure_merged_table(*GPU, environ).reason == "aiter is not installed"
    assert environ == {"HOME": str(tmp_path)}
    with pytest.raises(GemmTableError, match="aiter is not installed"):
        extend_aiter_gemm_configs(write_table(tmp_path / "t.csv", cells()), gpu=GPU, environ=environ)


def test_a_broken_table_leaves_aiter_its_own_way(place: Place) -> None:
    bad = place.package / "configs" / "model_configs" / "bad_bf16_tuned_gemm.csv"
    write_table(bad, cells(), cells(us="fast"))
    found = ensure_merged_table(*GPU, place.environ)
    assert found.source == "none"
    assert f"{bad}:3: us is 'fast', not a time in microseconds" in found.reason
    assert VARIABLE not in place.environ
    assert list(place.cache.glob("*.csv")) == []


def test_folders_and_files_of_others_are_not_trusted(place: Place, builds: list[Path]) -> None:
    place.cache.mkdir(parents=True)
    place.cache.chmod(0o777)
    found = ensure_merged_table(*GPU, place.environ)
    assert "not a private folder" in found.reason
    place.cache.chmod(0o700)
    path = Path(str(ensure_merged_table(*GPU, {**place.environ}).path))
    path.chmod(0o666)
    assert ensure_merged_table(*GPU, {**place.environ}).path == str(path)
    assert len(builds) == 2, "a file others can write to is built again"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    blocked = {**place.environ, "XDG_CACHE_HOME": str(place.package / "tuned_gemm.py")}
    assert "no merged table" in ensure_merged_table(*GPU, blocked).reason


def test_a_loader_that_is_no_python_leaves_the_rules_of_its_release(place: Place) -> None:
    (place.package / "tuned_gemm.py").write_bytes(b"x = 1\0\n")
    assert ensure_merged_table(*GPU, place.environ).source == "merged"


def test_no_rows_for_the_gpu_is_said(place: Place) -> None:
    found = ensure_merged_table("gfx942", 80, place.environ)
    assert (found.source, found.rows) == ("merged", 0)
    assert "every product runs aiter's default" in found.reason
    for tag in TAGS:
        assert Loader(tag, "gfx942", 80).load(Path(str(found.path))) == {}


def test_extend_puts_the_callers_rows_first(place: Place, tmp_path: Path) -> None:
    mine = write_table(tmp_path / "mine.csv", cells(M=1, us=50.0, kernelName="mine"))
    before = {**contents(place.package), "mine": mine.read_bytes()}
    found = extend_aiter_gemm_configs(mine, gpu=GPU, environ=place.environ)
    assert {**contents(place.package), "mine": mine.read_bytes()} == before
    assert place.environ[VARIABLE] == found.path
    loader = Loader("v0.1.20.post1", *GPU)
    table = loader.load(Path(str(found.path)))
    assert loader.find(table, 1, 4096, 4096)["kernelName"] == "mine"
    assert loader.find(table, 2, 4096, 4096)["kernelName"] == "model", "per-model rows are not dropped"
    second = write_table(tmp_path / "second.csv", cells(M=1, us=60.0, kernelName="second"))
    found = extend_aiter_gemm_configs(second, gpu=GPU, environ=place.environ)
    assert loader.find(loader.load(Path(str(found.path))), 1, 4096, 4096)["kernelName"] == "second"
    assert ensure_merged_table(*GPU, place.environ).source == "user", "later calls keep it"


def test_extend_refuses_what_it_cannot_use(place: Place, tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "absent.csv", "is not a file"),
        (tmp_path, "is not a file"),
        (write_table(tmp_path / "bad.csv", cells(M="x")), "bad.csv:2: M is 'x'"),
    ):
        with pytest.raises(GemmTableError, match=said):
            extend_aiter_gemm_configs(path, gpu=GPU, environ=place.environ)
        assert VARIABLE not in place.environ


def test_defaults_come_from_the_device_and_the_given_environment(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amd_ops import device

    mine = write_table(tmp_path / "mine.csv", cells())
    monkeypatch.setattr(gemm_tables, "_environment", None)
    monkeypatch.setattr(device, "current", lambda: device.Device("cpu", *GPU))
    with pytest.raises(GemmTableError, match="pass environ="):
        extend_aiter_gemm_configs(mine)
    gemm_tables.use_environment(lambda: place.environ)
    assert extend_aiter_gemm_configs(mine).source == "merged"
    assert ensure_merged_table(*GPU).source == "user"
    monkeypatch.setattr(device, "current", lambda: None)
    with pytest.raises(GemmTableError, match="no HIP device"):
        extend_aiter_gemm_configs(mine)


def test_without_the_program_and_without_a_child(
    place: Place, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", None)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert ensure_merged_table(*GPU, {**place.environ}).source == "merged", "no process is started"
    monkeypatch.setitem(sys.modules, "rocm_overlay.tune.cache", None)
    found = ensure_merged_table(*GPU, place.environ)
    assert found.source == "none"
    assert "install transformers-rocm-overlay" in found.reason
    assert len(builds) == 1


def test_ranks_that_start_at_once(place: Place) -> None:
    script = (
        "import sys; from amd_ops.gemm_tables import ensure_merged_table as e; import os;"
        "t = e('gfx942', 304, os.environ); print(t.path, t.rows, t.source)"
    )
    env = {**place.environ, "PYTHONPATH": os.pathsep.join([str(place.package.parent), place.environ["PYTHONPATH"]])}
    command = [sys.executable, "-c", script.replace("from amd_ops.gemm_tables", "from gemm_tables_alone")]
    alone = place.home / "gemm_tables_alone.py"
    source = (ROOT / "amd_ops" / "gemm_tables.py").read_text()
    alone.write_text(source.replace("from . import device\n", ""))  # without torch: seconds in each process
    env["PYTHONPATH"] = os.pathsep.join([str(place.home), env["PYTHONPATH"]])
    children = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {child.communicate()[0] for child in children}
    assert len(said) == 1
    path, rows, source_ = said.pop().split()
    assert (rows, source_) == ("2", "merged")
    assert [file.name for file in place.cache.iterdir() if file.suffix == ".tmp"] == []
    assert Loader("v0.1.16", *GPU).load(Path(path))
