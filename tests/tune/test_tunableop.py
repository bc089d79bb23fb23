"""TunableOp's files: results in, shapes and rows out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .loaders import Loader
from .support import BF16, Cli, cells, write_table

VALIDATORS = """Validator,PT_VERSION,2.9.0
Validator,ROCM_VERSION,7.1.0.0-20
Validator,HIPBLASLT_VERSION,100200-8ef1
Validator,GCN_ARCH_NAME,gfx942:sramecc+:xnack-
Validator,ROCBLAS_VERSION,5.1.0.b9
"""
RESULTS = """GemmTunableOp_BFloat16_TN,tn_4096_16_2048_ld_2048_2048_4096,Gemm_Hipblaslt_63021,0.01234
GemmTunableOp_BFloat16_TN,tn_4096_1_2048,Gemm_Hipblaslt_TN_611,0.005
GemmAndBiasTunableOp_Half_TN,tn_512_8_1024_ld_1024_1024_512,Default,0.0031
GemmTunableOp_BFloat16_TN,tn_4096_2_2048_ld_2048_2048_4096,Gemm_Rocblas_21,0.004
GemmTunableOp_BFloat16_NN,nn_4096_2_2048_ld_4096_2048_4096,Gemm_Hipblaslt_1,0.004
GemmStridedBatchedTunableOp_BFloat16_TN,tn_64_64_64_B_8,Default,0.004
GemmTunableOp_double_TN,tn_64_64_64_ld_64_64_64,Default,0.004
"""


def results(path: Path, text: str = VALIDATORS + RESULTS) -> Path:
    path.write_text(text)
    return path


def test_import(tmp_path: Path, tune: Cli) -> None:
    source = results(tmp_path / "tunableop_results0.csv")
    out = tmp_path / "out.csv"
    answer = tune("import-tunableop", source, "-o", out, "--gpu", "gfx942:304", "--json")
    assert answer.code == 0
    value = answer.json()
    assert value["rows"] == 3
    assert sorted(f["id"] for f in value["skipped"]) == ["no-counterpart", "not-a-linear", "not-a-linear", "other-type"]
    assert "no other" in answer.err
    loader = Loader("v0.1.20.post1", "gfx942", 304)
    table = loader.load(out)
    row = loader.find(table, 16, 4096, 2048)
    assert (row["libtype"], row["solidx"], row["us"]) == ("hipblaslt", 63021, 12.34)
    assert loader.find(table, 1, 4096, 2048)["solidx"] == 611
    half = table[("gfx942", 304, 8, 512, 1024, True, "torch.float16", "torch.float16", False, False)]
    assert (half["libtype"], half["us"]) == ("torch", 3.1)
    meta = json.loads((tmp_path / "out.csv.meta.json").read_text())
    assert meta["measured_with"]["HIPBLASLT_VERSION"] == "100200-8ef1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RESULTS, "has no Validator line for PT_VERSION, GCN_ARCH_NAME"),
        (VALIDATORS.replace("gfx942:", "gfx90a:") + RESULTS, "was measured on gfx90a, not on gfx942"),
        (VALIDATORS + RESULTS.replace("0.01234", "quick"), ":6: error: time 'quick'"),
        (VALIDATORS + RESULTS.replace("0.01234", "-1"), ":6: error: time '-1'"),
        (VALIDATORS + "one,two\n", ":6: error: has 2 cells"),
        (VALIDATORS + "GemmTunableOp_BFloat16_TN,tn_0_1_2,Default,1\n", "dimension of 0"),
    ],
)
def test_results_that_cannot_be_used(tmp_path: Path, tune: Cli, text: str, said: str) -> None:
    out = tmp_path / "out.csv"
    answer = tune("import-tunableop", results(tmp_path / "r.csv", text), "-o", out, "--gpu", "gfx942:304")
    assert answer.code == 2
    assert said in answer.err
    assert not out.exists()


def test_export_shapes(tmp_path: Path, tune: Cli) -> None:
    untuned = tmp_path / "u.csv"
    good = f"16,4096,2048,False,{BF16},{BF16},False,False"
    biased = "8,512,1024,True,torch.float16,torch.float16,False,False"
    untuned.write_text(
        "M,N,K,bias,dtype,outdtype,scaleAB,bpreshuffle\n"
        f"{good}\n{biased}\n1,64,64,False,{BF16},torch.float32,False,False\n1,64,64,False,{BF16},{BF16},False,True\n"
    )
    out = tmp_path / "tunableop_untuned0.csv"
    answer = tune("export-tunableop", untuned, "-o", out, "--json")
    assert (answer.json()["written"], answer.json()["left"]) == (2, 2)
    assert out.read_text() == (
        "GemmTunableOp_BFloat16_TN,tn_4096_16_2048_ld_2048_2048_4096\n"
        "GemmAndBiasTunableOp_Half_TN,tn_512_8_1024_ld_1024_1024_512\n"
    )


def test_rows_go_there_and_back(tmp_path: Path, tune: Cli) -> None:
    source = results(tmp_path / "r.csv")
    rows, back, again = tmp_path / "rows.csv", tmp_path / "back.csv", tmp_path / "again.csv"
    tune("import-tunableop", source, "-o", rows, "--gpu", "gfx942:304")
    assert tune("export-tunableop", rows, "-o", back, "--validators", source).code == 0
    tune("import-tunableop", back, "-o", again, "--gpu", "gfx942:304")
    assert [line.replace("_TN_", "_") for line in again.read_text().splitlines()] == [
        line.replace("_TN_", "_") for line in rows.read_text().splitlines()
    ]


def test_rows_without_a_counterpart_and_without_validators(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", cells(), cells(M=32, libtype="torch"))
    out = tmp_path / "out.csv"
    bare = results(tmp_path / "v.csv", VALIDATORS.replace("Validator,HIPBLASLT_VERSION,100200-8ef1\n", ""))
    answer = tune("export-tunableop", table, "-o", out, "--validators", bare)
    assert answer.code == 2
    assert "HIPBLASLT_VERSION" in answer.err
    answer = tune("export-tunableop", table, "-o", out, "--validators", results(tmp_path / "w.csv"), "--json")
    assert (answer.json()["written"], answer.json()["left"]) == (1, 1)
    assert out.read_text().startswith("Validator,PT_VERSION,2.9.0\n")
