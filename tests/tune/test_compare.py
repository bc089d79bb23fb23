"""`tune diff` and `tune prune`."""

from __future__ import annotations

from pathlib import Path

import pytest
from rocm_overlay.tune.table import read_table

from .loaders import Loader
from .support import Cli, cells, contents, write_table


def test_diff(tmp_path: Path, tune: Cli) -> None:
    old = write_table(tmp_path / "old.csv", cells(M=1), cells(M=2), cells(M=3), cells(M=4, us=0.0))
    new = write_table(tmp_path / "new.csv", cells(M=1), cells(M=2, us=10.0), cells(M=4, us=3.0), cells(M=5))
    value = tune("diff", old, new, "--json").json()
    assert value["schema"] == "amd-overlay.tune.diff/1"
    assert [row["shape"]["m"] for row in value["added"]] == [5]
    assert [row["shape"]["m"] for row in value["removed"]] == [3]
    assert [(c["shape"]["m"], c["ratio"], c["kernel"]) for c in value["changed"]] == [(2, 0.8, False), (4, None, False)]
    assert value["same"] == 1
    assert "1 added, 1 removed, 2 changed, 1 the same" in tune("diff", old, new).out
    assert (tune("diff", old, new).code, tune("diff", old, new, "--exit-code").code) == (0, 1)
    assert tune("diff", old, old, "--exit-code").code == 0


def test_diff_of_one_device(tmp_path: Path, tune: Cli) -> None:
    old = write_table(tmp_path / "old.csv", cells())
    new = write_table(tmp_path / "new.csv", cells(), cells(gfx="gfx950", cu_num=256))
    assert tune("diff", old, new, "--gpu", "gfx942:304", "--exit-code").code == 0
    assert tune("diff", old, new, "--exit-code").code == 1


def test_diff_sees_another_kernel(tmp_path: Path, tune: Cli) -> None:
    old, new = write_table(tmp_path / "o.csv", cells()), write_table(tmp_path / "n.csv", cells(solidx=6))
    assert tune("diff", old, new, "--json").json()["changed"][0]["kernel"] is True


ROWS = [
    cells(M=16),
    cells(M=16, us=11.0),
    cells(M=32, us=0.0),
    cells(M=64, libtype="torch"),
    cells(M=128, libtype="warp9"),
    cells(M=1, gfx="gfx950", cu_num=256),
    cells(M=7, N=64, K=64),
    cells(M=8, gfx="", cu_num=96),
]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], [16, 32, 64, 7]),
        (["--unmeasured"], [16, 64, 7]),
        (["--torch-winners"], [16, 32, 7]),
        (["--all-devices"], [16, 32, 64, 1, 7]),
        (["--config", "llama-3.1-8b", "--m-ladder", "12,64"], [16, 64]),
        (["--config", "llama-3.1-8b", "--m-ladder", "1"], [16]),
    ],
)
def test_prune(tmp_path: Path, tune: Cli, options: list[str], kept: list[int]) -> None:
    table = write_table(tmp_path / "t.csv", *ROWS)
    before = contents(tmp_path)
    out = tmp_path / "out.csv"
    answer = tune("prune", table, "-o", out, "--gpu", "gfx942:304", *options, "--json")
    assert answer.code == 0, answer.err
    assert [row.key.m for row in read_table(out).rows] == kept
    assert answer.json()["kept"] == len(kept)
    assert sum(answer.json()["dropped"].values()) == len(ROWS) - len(kept)
    assert contents(tmp_path).items() >= before.items()
    sixteen = [row.us for row in read_table(out).rows if row.key.m == 16]
    assert sixteen == [11.0], "the faster of two rows of a shape"
    if "--all-devices" not in options:
        assert len(Loader("v0.1.9.post1", "gfx942", 304).load(out)) == len(kept)


def test_prune_never_writes_its_input(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", *ROWS)
    before = contents(tmp_path)
    assert tune("prune", table, "-o", table, "--gpu", "gfx942:304").code == 2
    assert contents(tmp_path) == before
