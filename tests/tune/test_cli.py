"""What holds for every command: the names, one JSON object on stdout, the machine's own GPU, `tune env`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rocm_overlay.errors import OverlayError
from rocm_overlay.tune import device, inputs
from rocm_overlay.tune.device import Device

from .conftest import make_aiter
from .support import Cli, cells, child_environment, write_table

COMMANDS = ["shapes", "merge", "check", "report", "estimate", "diff", "prune", "env", "run"]
COMMANDS += ["import-tunableop", "export-tunableop"]


def test_the_commands_are_all_there_and_take_json(tune: Cli) -> None:
    text = tune("--help").out
    for name in COMMANDS:
        assert f"\n  {name} " in text
        assert "--json" in tune(name, "--help").out


def test_one_object_on_stdout_and_the_rest_on_stderr(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", cells(), cells(M=3, libtype="warp9"))
    command = [sys.executable, "-m", "rocm_overlay.tune", "merge", str(table), "-o", str(tmp_path / "o.csv")]
    done = subprocess.run(
        [*command, "--gpu", "gfx942:304", "--json"], env=child_environment(LC_ALL="C"), capture_output=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"{")
    assert done.stdout.isascii()
    assert b"unknown-libtype" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["merge", "--gpu"], ["nonsense"], ["check"], ["report"], ["report", "--tp", "x"]]
)
def test_usage_errors(tune: Cli, arguments: list[str]) -> None:
    assert tune(*arguments).code == 2


def gpus(root: Path, *nodes: str) -> Path:
    for number, text in enumerate(nodes):
        (root / str(number)).mkdir(parents=True)
        (root / str(number) / "properties").write_text(text)
    return root


CPU = "cpu_cores_count 96\nsimd_count 0\nsimd_per_cu 0\ngfx_target_version 0\n"
MI300 = "simd_count 1216\nsimd_per_cu 4\ngfx_target_version 90402\n"
MI250 = "simd_count 416\nsimd_per_cu 4\ngfx_target_version 90010\n"


def test_the_gpus_of_the_kernel_driver(tmp_path: Path) -> None:
    assert device.devices(gpus(tmp_path / "a", CPU, MI300, MI300)) == (Device("gfx942", 304),) * 2
    assert device.devices(gpus(tmp_path / "b", MI250)) == (Device("gfx90a", 104),)
    assert device.only_device(tmp_path / "a") == Device("gfx942", 304)
    for nodes, said in (
        (gpus(tmp_path / "c", MI300, MI250), "gfx90a:104, gfx942:304"),
        (tmp_path / "none", "no AMD GPU"),
    ):
        with pytest.raises(OverlayError, match=said):
            device.only_device(nodes)


def test_the_machines_gpu_is_the_default(tmp_path: Path, tune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "t.csv", cells())
    monkeypatch.setattr(inputs, "only_device", lambda: Device("gfx942", 304))
    assert tune("merge", table, "-o", tmp_path / "o.csv", "--json").json()["gpu"] == "gfx942:304"


def test_env_builds_then_reuses_and_reports_what_is_set(
    tmp_path: Path, tune: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = write_table(tmp_path / "bf16_tuned_gemm.csv", cells())
    package = make_aiter(tmp_path / "site", [default])
    mine = write_table(tmp_path / "mine.csv", cells(us=99.0), cells(M=3))
    arguments = ("env", "--gpu", "gfx942:304", "--aiter", package, "--user", mine)
    monkeypatch.setenv("AITER_CONFIG_GEMM_BF16", "/elsewhere.csv")
    first = tune(*arguments)
    assert first.code == 0
    assert first.out.startswith("export AITER_CONFIG_GEMM_BF16=")
    assert "is set already to /elsewhere.csv" in first.err
    assert "2 rows for gfx942:304, built now" in first.err
    second = tune(*arguments, "--json")
    value = second.json()
    assert (value["reused"], value["already_set"]) == (True, "/elsewhere.csv")
    assert first.out.strip().endswith(value["value"])
    assert "99.0" in Path(value["value"]).read_text()
    write_table(mine, cells(us=98.0))
    assert tune(*arguments, "--json").json()["reused"] is False


def test_without_aiter_and_tables(tune: Cli, tmp_path: Path) -> None:
    assert tune("report", "--model", "gemma-2b", "--gpu", "gfx942:304").code == 9
    assert tune("env", "--gpu", "gfx942:304").code == 2
    answer = tune("report", "--model", "gemma-2b", "--gpu", "gfx942:304", "--aiter", tmp_path)
    assert answer.code == 9
    assert "holds no aiter" in answer.err


def test_merging_only_ones_own(tmp_path: Path, tune: Cli) -> None:
    mine = write_table(tmp_path / "mine.csv", cells())
    assert tune("merge", "--user", mine, "-o", tmp_path / "o.csv", "--gpu", "gfx942:304").code == 0


def test_the_installed_tables_are_the_default(tmp_path: Path, tune: Cli) -> None:
    model = write_table(tmp_path / "m_bf16_tuned_gemm.csv", cells(M=1, N=256000, K=2048))
    other = write_table(tmp_path / "m_bf16_untuned_gemm.csv", cells(M=2))
    package = make_aiter(tmp_path / "site", [model, other])
    common = ("--gpu", "gfx942:304", "--aiter", package, "--json")
    assert tune("report", "--model", "gemma-2b", *common).json()["coverage"]["exact"] == 1
    assert tune("merge", "-o", tmp_path / "o.csv", *common).json()["rows"] == 1
