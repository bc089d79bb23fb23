"""`tune check`: what is wrong, doubtful and worth knowing, each with a row that shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rocm_overlay.tune.installed import Kernels, find_aiter, rules_of
from rocm_overlay.tune.schema import rules_for
from rocm_overlay.tune.table import read_table

from .conftest import make_aiter
from .support import ASM, COLUMNS, Cli, cells, write_table

FLYDSL = (
    "flydsl_gemm4_abf16_wbf16_bf16_t16x64x64_split_k4_block_m_warp1_block_n_warp1_block_k_warp1_async_copyTrue"
    "_b_to_ldsTrue_b_preshuffleFalse_c_to_ldsFalse_gfx950"
)


def found(tune: Cli, *arguments: object) -> dict[str, tuple[str, int]]:
    """Return id -> (severity, line) of one table's findings."""
    report = tune("check", *arguments, "--json").json()
    return {f["id"]: (f["severity"], f["line"]) for f in report["tables"][0]["findings"]}


def test_a_good_table_passes(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", cells(), cells(M=32))
    answer = tune("check", table)
    assert (answer.code, answer.out) == (0, f"{table}: 2 rows, nothing found\n")


@pytest.mark.parametrize(
    ("changes", "id_", "severity"),
    [
        ({"libtype": "warp9"}, "unknown-libtype", "error"),
        ({"libtype": "rocblas"}, "unknown-libtype", "error"),
        ({"kernelName": ""}, "no-kernel-name", "error"),
        ({"gfx": "gfx942", "cu_num": 256}, "gfx-cu-pair", "error"),
        ({"gfx": "gfx950", "cu_num": 304}, "gfx-cu-pair", "error"),
        ({"gfx": "gfx942", "cu_num": 77}, "gfx-cu-pair", "warning"),
        ({"gfx": "gfx1100", "cu_num": 48}, "gfx-cu-pair", "warning"),
        ({"err_ratio": 0.051}, "err-ratio", "error"),
        ({"us": 0.0}, "not-measured", "info"),
        ({"us": 0}, "not-measured", "info"),
        ({"libtype": "torch"}, "torch-winner", "info"),
        ({"us": 0.01, "M": 4096}, "impossible-time", "error"),
    ],
)
def test_rows(tmp_path: Path, tune: Cli, changes: dict[str, object], id_: str, severity: str) -> None:
    table = write_table(tmp_path / "t.csv", cells(M=1), cells(**changes))
    assert found(tune, table) == {id_: (severity, 3)}
    assert tune("check", table).code == (1 if severity == "error" else 0)
    assert tune("check", table, "--strict").code == (0 if severity == "info" else 1)


def test_limits_can_be_moved(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", cells(err_ratio=0.2))
    assert found(tune, table, "--err-ratio", "0.3") == {}


def test_old_schemas(tmp_path: Path, tune: Cli) -> None:
    row = cells()
    del row["gfx"]
    table = write_table(tmp_path / "t.csv", row)
    assert found(tune, table) == {"no-gfx": ("error", 1), "legacy-gfx": ("warning", 0)}
    assert found(tune, table, "--aiter-version", "0.1.9.post1") == {"legacy-gfx": ("warning", 0)}
    row["cu_num"] = "96"
    assert found(tune, write_table(tmp_path / "u.csv", row))["ambiguous-device"] == ("error", 2)
    del row["bpreshuffle"]
    assert found(tune, write_table(tmp_path / "v.csv", row))["no-bpreshuffle"] == ("error", 1)


def test_duplicates_depend_on_the_key_of_the_release(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", cells(), cells(us=13))
    assert found(tune, table) == {"duplicate": ("error", 3)}
    twins = write_table(
        tmp_path / "u.csv", cells(gfx="gfx950", cu_num=256), cells(gfx="gfx1250", cu_num=256), columns=list(COLUMNS)
    )
    assert found(tune, twins) == {}
    answer = tune("check", twins, "--aiter-version", "v0.1.9.post1")
    assert "cannot tell gfx950:256 from gfx1250:256" in answer.out


def test_extra_columns_are_named(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", {**cells(), "_tag": "x"})
    assert found(tune, table) == {"extra-columns": ("info", 1)}


def installed(tmp_path: Path) -> Path:
    package = make_aiter(tmp_path / "site", [], "0.1.20.post1")
    hsa = tmp_path / "site" / "hsa" / "gfx942" / "bf16gemm"
    hsa.mkdir(parents=True)
    (hsa / "bf16gemm_fp32bf16.csv").write_text(f"knl_name,co_name,tn\n{ASM},x.co,1\n")
    (package / "ops" / "flydsl").mkdir(parents=True)
    return package


def test_kernels_of_the_installed_aiter(tmp_path: Path, tune: Cli) -> None:
    package = installed(tmp_path)
    rows = [
        cells(M=1),
        cells(M=2, kernelName="_ZN5aiter_renamedE"),
        cells(M=3, libtype="flydsl", kernelName=FLYDSL),
        cells(M=4, libtype="flydsl", kernelName="flydsl_bf16_t16x64_gone"),
        cells(M=5, libtype="opus", kernelName="opus_gemm_gfx942_wkc"),
        cells(M=6, libtype="triton", kernelName="auto"),
        cells(M=7, gfx="gfx950", cu_num=256),
    ]
    table = write_table(tmp_path / "t.csv", *rows)
    report = tune("check", table, "--aiter", package, "--json").json()
    assert report["kernels_checked"] is True
    missing = [f["line"] for f in report["tables"][0]["findings"] if f["id"] == "kernel-missing"]
    assert missing == [3, 5]
    aiter = find_aiter(package)
    assert aiter is not None
    kernels = Kernels(aiter)
    assert [kernels.resolve(row) for row in read_table(table).rows] == [
        "found", "missing", "found", "missing", "unknown", "found", "unknown",
    ]  # fmt: skip
    assert report["tables"][0]["counts"] == {"kernel-missing": 2, "kernel-unverified": 2}


def test_a_table_of_another_aiter_is_stale(tmp_path: Path, tune: Cli) -> None:
    package = installed(tmp_path)
    table = write_table(tmp_path / "t.csv", cells())
    meta = tmp_path / "t.csv.meta.json"
    meta.write_text(json.dumps({"measured_with": {"aiter": "0.1.16", "aiter_commit": ""}}))
    assert found(tune, table, "--aiter", package) == {"stale-aiter": ("warning", 0)}
    meta.write_text(json.dumps({"measured_with": {"aiter": "0.1.20.post1"}}))
    assert found(tune, table, "--aiter", package) == {}
    for broken in ("{", "[1]", '{"measured_with": 3}'):
        meta.write_text(broken)
        expected = {} if broken == "[1]" else {"bad-meta": ("warning", 0)}
        assert found(tune, table, "--aiter", package) == expected


def test_rules_come_from_the_source_of_the_installed_aiter(tmp_path: Path) -> None:
    package = make_aiter(tmp_path, [], "0.1.9.post1")
    aiter = find_aiter(tmp_path)
    assert aiter is not None
    assert rules_of(aiter).key == rules_for("0.1.9.post1").key
    # A build whose version says nothing true: the source decides.
    (package / "_version.py").write_text("__version__ = version = '0.1.dev1+g0730b33fc'\n")
    aiter = find_aiter(package)
    assert aiter is not None
    assert aiter.commit == "0730b33fc"
    with pytest.raises(Exception, match="no AITER_CONFIG_GEMM_BF16"):
        rules_for(aiter.version)
    (package / "_version.py").write_text("__version__ = '0.1.16'\n")
    source = (package / "tuned_gemm.py").read_text()
    (package / "tuned_gemm.py").write_text(re.sub(r', "flydsl": 5, "opus": 6', "", source))
    aiter = find_aiter(package)
    assert aiter is not None
    assert (rules_of(aiter).key[0], rules_of(aiter).libtypes) == ("cu_num", rules_for("0.1.9.post1").libtypes)


def test_real_tables_pass(tune: Cli, real_tables: list[Path]) -> None:
    report = tune("check", *real_tables, "--json").json()
    assert report["failed"] is False
    counts: dict[str, int] = {}
    for table in report["tables"]:
        for name, number in table["counts"].items():
            counts[name] = counts.get(name, 0) + number
    assert sum(table["rows"] for table in report["tables"]) == 3338
    assert counts == {"torch-winner": 452, "not-measured": 242}
