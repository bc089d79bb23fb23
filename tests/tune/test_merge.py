"""One safe file out of many: user rows win, the real loaders' rules hold, no source changes a byte."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from rocm_overlay.tune.device import Device, parse_device
from rocm_overlay.tune.merge import Source, merge_files, write_merged
from rocm_overlay.tune.schema import rules_for

from .loaders import TAGS, Loader
from .support import ASM, BF16, COLUMNS, Cli, cells, contents, write_table

MI300 = Device("gfx942", 304)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def shapes(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    return {tuple(row[name] for name in COLUMNS[:10]): row for row in rows_of(path)}


def traps(folder: Path, device: str) -> list[Path]:
    """A user's tables with everything that goes wrong in them; the good rows among them must win."""
    gfx, cu = device.split(":")
    old = [cells(cu_num=cu, M=m, N=1280, K=8192, us=1.5, libtype="torch", kernelName="native") for m in (1, 16)]
    for row in old:
        del row["gfx"]
    ancient = {**cells(cu_num=cu, M=2, N=640, K=640, us=3.25)}
    for name in ("gfx", "bpreshuffle"):
        del ancient[name]
    ancient["soltimes"] = ancient.pop("us")
    last = cells(gfx=gfx, cu_num=cu, M=64, N=512, K=512, us=9.0, kernelName="second")
    mixed = [
        cells(gfx=gfx, cu_num=cu, M=64, N=512, K=512, us=2.0, kernelName="first"),
        last,
        cells(gfx="", cu_num=96, M=1),
        cells(gfx="0", cu_num=cu, M=128, N=512, K=512, us=4.0),
        cells(gfx=gfx, cu_num=cu, M=3, libtype="warp9"),
        cells(gfx=gfx, cu_num=cu, M=4, libtype="asm", kernelName=""),
        cells(gfx="gfx90a", cu_num=104, M=5),
        cells(gfx=gfx, cu_num=cu, M=32, N=512, K=512, us=0.0, solidx="", splitK="", err_ratio="Null"),
    ]
    return [
        write_table(folder / "old.csv", *old),
        write_table(folder / "ancient.csv", ancient),
        write_table(folder / "mixed.csv", *mixed),
    ]


@pytest.mark.parametrize("device", ["gfx950:256", "gfx942:304", "gfx942:80"])
@pytest.mark.parametrize("tag", TAGS)
def test_real_tables_and_traps(tmp_path: Path, tune: Cli, real_tables: list[Path], tag: str, device: str) -> None:
    sources, mine = tmp_path / "sources", tmp_path / "mine"
    sources.mkdir()
    mine.mkdir()
    shipped = [Path(shutil.copy(table, sources)) for table in real_tables]
    users = traps(mine, device)
    before = {**contents(sources), **contents(mine)}
    out = tmp_path / "merged.csv"
    answer = tune(
        "merge", *shipped, *(part for user in users for part in ("--user", user)),
        "-o", out, "--gpu", device, "--aiter-version", tag, "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert {**contents(sources), **contents(mine)} == before, "a source was touched"
    report = answer.json()
    refused = sorted(finding["id"] for finding in report["refused"] if Path(finding["path"]).parent == mine)
    assert refused == ["ambiguous-device", "no-kernel-name", "unknown-libtype"]

    loader = Loader(tag, *_pair(device))
    table = loader.load(out)
    assert len(table) == report["rows"] == len(rows_of(out))
    for key, row in table.items():
        m, n, k, bias = key[-8:-4] if tag == "v0.1.9.post1" else key[2:6]
        if key[-4:-2] == (BF16, BF16):
            assert loader.find(table, m, n, k, bias) == row
    assert loader.find(table, 1, 1280, 8192)["us"] == 1.5, "the user's row wins over a shipped one of the same shape"
    assert loader.find(table, 64, 512, 512)["kernelName"] == "second", "the user's last word counts"
    assert loader.find(table, 2, 640, 640)["us"] == 3.25
    assert loader.find(table, 128, 512, 512)["us"] == 4.0
    zero = loader.find(table, 32, 512, 512)
    assert (zero["us"], zero["solidx"], zero["splitK"]) == (0.0, 0, 0)
    assert all(row["gfx"] == device.split(":")[0] for row in rows_of(out))


def _pair(device: str) -> tuple[str, int]:
    found = parse_device(device)
    return found.gfx, found.cu_num


def test_every_shipped_row_of_a_device_survives(tmp_path: Path, tune: Cli, real_tables: list[Path]) -> None:
    for device, rows, unmeasured in (
        ("gfx950:256", 2202, 0),
        ("gfx942:80", 222, 0),
        ("gfx1250:256", 703, 178),
        ("gfx942:304", 0, 0),
    ):
        out = tmp_path / "out.csv"
        report = tune("merge", *real_tables, "-o", out, "--gpu", device, "--json").json()
        assert (report["rows"], report["unmeasured"], report["refused"]) == (rows, unmeasured, [])
        originals = {k: v for table in real_tables for k, v in shapes(table).items() if ":".join(k[:2]) == device}
        merged = shapes(out)
        assert merged.keys() == originals.keys()
        for key, row in merged.items():
            assert float(row["us"]) == float(originals[key]["us"])
            assert (row["libtype"], row["kernelName"]) == (originals[key]["libtype"], originals[key]["kernelName"])


def test_what_aiter_does_with_the_same_files(tmp_path: Path, tune: Cli, real_tables: list[Path]) -> None:
    """The hazard this command removes: the double of aiter's own merge rewrites the files; one merged file does not."""
    shipped = [Path(shutil.copy(table, tmp_path)) for table in real_tables if "llama70B" in table.name]
    row = rows_of(shipped[0])[0]
    mine = write_table(tmp_path / "mine.csv", {**row, "us": "99.0"})
    out = tmp_path / "out.csv"
    assert tune("merge", *shipped, "--user", mine, "-o", out, "--gpu", "gfx950:256").code == 0
    before = contents(tmp_path)
    loader = Loader("v0.1.20.post1", "gfx950", 256)
    assert shapes(out)[tuple(row[name] for name in COLUMNS[:10])]["us"] == "99.0"
    with pytest.raises(RuntimeError, match="duplicate"):
        loader.merge([*shipped, mine])
    assert contents(tmp_path) != before
    assert [name for name, data in contents(tmp_path).items() if before[name] != data] == ["mine.csv"]


def test_gfx_of_two_architectures_with_256_units_never_meet(tmp_path: Path, tune: Cli, real_tables: list[Path]) -> None:
    """v0.1.9.post1 has no gfx in its key: all real tables in one file break it, the merged file does not."""
    together = tmp_path / "together.csv"
    lines = [table.read_text().splitlines() for table in real_tables]
    together.write_text("\n".join([lines[0][0], *(line for table in lines for line in table[1:])]) + "\n")
    loader = Loader("v0.1.9.post1", "gfx950", 256)
    with pytest.raises(ValueError, match="unique"):
        loader.load(together)
    out = tmp_path / "out.csv"
    tune("merge", together, "-o", out, "--gpu", "gfx950:256", "--aiter-version", "0.1.9.post1")
    libraries = {row["libtype"] for row in rows_of(out)}
    assert libraries <= {"torch", "hipblaslt", "skinny", "asm", "triton"}
    assert len(loader.load(out)) == len(rows_of(out)) > 1000


def test_zero_is_not_a_time(tmp_path: Path) -> None:
    a = write_table(tmp_path / "a.csv", cells(us=0.0, kernelName="unmeasured"))
    b = write_table(tmp_path / "b.csv", cells(us=50.0, kernelName="measured"))
    for order in ((a, b), (b, a)):
        merged = merge_files([Source(path, "shipped") for path in order], MI300, rules_for("0.1.20"))
        assert [row.kernel for row in merged.rows] == ["measured"]
    only = merge_files([Source(a, "shipped")], MI300, rules_for("0.1.20"))
    assert only.unmeasured == 1


def test_a_user_row_wins_although_it_is_slower_or_unmeasured(tmp_path: Path) -> None:
    fast = write_table(tmp_path / "fast.csv", cells(us=1.0, kernelName="shipped"))
    for us in (80.0, 0.0):
        mine = write_table(tmp_path / "mine.csv", cells(us=us, kernelName="mine"))
        merged = merge_files([Source(mine, "user"), Source(fast, "shipped")], MI300, rules_for("0.1.20"))
        assert ([row.kernel for row in merged.rows], merged.replaced) == (["mine"], 1)


def test_the_schema_follows_the_release(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", cells(), cells(M=32, bpreshuffle=True))
    out = tmp_path / "out.csv"
    for version, first, rows in (
        ("0.1.20.post1", "gfx,cu_num,M,N,K,bias,dtype,outdtype,scaleAB,bpreshuffle,libtype", 2),
        ("0.1.9.post1", "gfx,cu_num,M,N,K,bias,dtype,outdtype,scaleAB,bpreshuffle,libtype", 2),
        ("0.1.6.post2", "gfx,M,N,K,bias,dtype,outdtype,scaleAB,cu_num,libtype,solidx,splitK,us,", 1),
        ("0.1.6.post1", "gfx,M,N,K,bias,dtype,outdtype,scaleAB,cu_num,libtype,solidx,splitK,soltimes,", 1),
    ):
        answer = tune("merge", table, "-o", out, "--gpu", "gfx942:304", "--aiter-version", version, "--json")
        assert out.read_text().startswith(first), version
        assert answer.json()["rows"] == rows
    assert tune("merge", table, "-o", out, "--gpu", "gfx942:304", "--aiter-version", "0.1.5").code == 2


def test_strict_refuses_everything(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", cells(), cells(M=32, libtype="warp9"))
    out = tmp_path / "out.csv"
    answer = tune("merge", table, "-o", out, "--gpu", "gfx942:304", "--strict")
    assert answer.code == 2
    assert f"{table}:3" in answer.err
    assert not out.exists()


def test_the_result_is_private_whole_and_told(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", cells())
    out = tmp_path / "out.csv"
    answer = tune("merge", table, "-o", out, "--gpu", "gfx942:304")
    assert f"export AITER_CONFIG_GEMM_BF16={out}" in answer.out
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    meta = json.loads((tmp_path / "out.csv.meta.json").read_text())
    assert (meta["schema"], meta["gpu"], meta["rows"]) == ("amd-overlay.tune.merged/1", "gfx942:304", 1)
    assert meta["sources"][0]["path"] == str(table)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.csv.meta.json", "t.csv"]


@pytest.mark.parametrize("how", ["same", "link", "hardlink", "dots"])
def test_an_input_is_never_the_output(tmp_path: Path, tune: Cli, how: str) -> None:
    table = write_table(tmp_path / "t.csv", cells())
    before = table.read_bytes()
    target = {"same": table, "dots": tmp_path / "x" / ".." / "t.csv"}.get(how, tmp_path / "other.csv")
    (tmp_path / "x").mkdir()
    if how == "link":
        target.symlink_to(table)
    if how == "hardlink":
        os.link(table, target)
    answer = tune("merge", table, "-o", target, "--gpu", "gfx942:304")
    assert answer.code == 2
    assert "one of the inputs" in answer.err
    assert table.read_bytes() == before


def test_the_file_beside_the_output_is_no_input_either(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "o.csv.meta.json", cells())
    before = table.read_bytes()
    assert tune("merge", table, "-o", tmp_path / "o.csv", "--gpu", "gfx942:304").code == 2
    assert table.read_bytes() == before


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, tune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path / "t.csv", cells())
    out = tmp_path / "out.csv"
    out.write_text("precious")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = tune("merge", table, "-o", out, "--gpu", "gfx942:304", "--json")
    assert answer.code == 5
    assert answer.json()["error"]["id"] == "cannot-write"
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "t.csv"]


def test_kernel_names_with_commas_survive(tmp_path: Path) -> None:
    row = cells(kernelName='"Cijk_Ailk, ""quoted"""')
    merged = merge_files([Source(write_table(tmp_path / "t.csv", row), "user")], MI300, rules_for("0.1.20"))
    out = tmp_path / "out.csv"
    write_merged(merged, out, [])
    assert rows_of(out)[0]["kernelName"] == 'Cijk_Ailk, "quoted"'
    assert Loader("v0.1.16", "gfx942", 304).load(out)


def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    """How long it takes is printed by benchmarks/bench_merge.py."""
    big = tmp_path / "big.csv"
    kind = f"False,{BF16},{BF16},False,False"
    with big.open("w") as stream:
        stream.write(",".join(COLUMNS) + "\n")
        for i in range(100_000):
            shape, us = f"{i % 500 + 1},{(i // 500) * 64 + 64},4096", 5 + i % 977 / 100
            stream.write(f"gfx942,304,{shape},{kind},asm,{i % 40},1,{us},{ASM},0.01,{i % 700 / 7:.2f},2700.0\n")
    sources = [Source(big, "user")]
    merged = merge_files(sources, MI300, rules_for("0.1.20.post1"))
    write_merged(merged, tmp_path / "out.csv", sources)
    assert len(merged.rows) == 100_000
    assert (tmp_path / "out.csv").read_bytes().count(b"\n") == 100_001
