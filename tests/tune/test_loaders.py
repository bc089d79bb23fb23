"""The doubles of aiter's loader: the traps they must show, and the answers of pandas where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .loaders import TAGS, EmptyDataError, Loader, ParserError
from .support import COLUMNS, cells, write_table

GPU = ("gfx942", 304)


def test_the_traps_of_hand_made_tables(tmp_path: Path) -> None:
    new, old = Loader("v0.1.20.post1", *GPU), Loader("v0.1.9.post1", *GPU)
    legacy = cells()
    del legacy["gfx"]
    with pytest.raises(KeyError, match="gfx"):
        new.load(write_table(tmp_path / "legacy.csv", legacy))
    assert old.load(tmp_path / "legacy.csv")
    with pytest.raises(ValueError, match="unique"):
        new.load(write_table(tmp_path / "twice.csv", cells(), cells(us=13)))
    assert len(new.load(write_table(tmp_path / "same.csv", cells(), cells()))) == 1, "whole equal rows are dropped"
    assert new.load(tmp_path / "absent.csv") == {}, "a missing file is an empty table, silently"
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(EmptyDataError):
        new.load(tmp_path / "empty.csv")
    blank = new.load(write_table(tmp_path / "blank.csv", cells(solidx=""), cells(M=32)))
    with pytest.raises(TypeError, match="solidx"):
        new.find(blank, 32, 4096, 4096)
    unknown = new.load(write_table(tmp_path / "unknown.csv", cells(libtype="warp9")))
    with pytest.raises(KeyError, match="warp9"):
        new.find(unknown, 16, 4096, 4096)
    (tmp_path / "long.csv").write_text("a,b\n1,2,3\n")
    with pytest.raises(ParserError):
        new.load(tmp_path / "long.csv")
    with pytest.raises(AssertionError, match="Column mismatch"):
        old.merge([tmp_path / "legacy.csv", tmp_path / "twice.csv"])


def _pandas_load(path: Path, key: list[str]) -> dict[Any, dict[str, Any]]:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.read_csv(str(path)).drop_duplicates()
    loaded: dict[Any, dict[str, Any]] = frame.set_index(key).to_dict("index")
    return loaded


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: "NaN" if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    "rows",
    [
        [cells(), cells(M=32, bias=True, us=0)],
        [cells(), cells(), cells(M=1)],
        [cells(kernelName=""), cells(M=2, kernelName="None")],
        [cells(solidx=""), cells(M=2)],
        [cells(bias="TRUE"), cells(M=2, bias="false")],
        [cells(bias=1), cells(M=2, bias=0)],
        [cells(us="1e3"), cells(M=2, us="Null")],
        [],
    ],
)
def test_the_double_reads_as_pandas_does(tmp_path: Path, tag: str, rows: list[dict[str, str]]) -> None:
    path = write_table(tmp_path / "t.csv", *rows, columns=list(COLUMNS))
    loader = Loader(tag, *GPU)
    expected = {key: _plain(row) for key, row in _pandas_load(path, loader.key).items()}
    assert {key: _plain(row) for key, row in loader.load(path).items()} == expected


def _outcome(load: Callable[[Path], object], table: Path) -> object:
    """Return what a loader returns, or the text of its refusal: gfx950/256 beside gfx1250/256 breaks the oldest one."""
    try:
        return load(table)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("tag", TAGS)
def test_and_the_real_tables(real_tables: list[Path], tag: str) -> None:
    loader = Loader(tag, "gfx950", 256)
    for table in real_tables:
        assert _outcome(loader.load, table) == _outcome(lambda path: _pandas_load(path, loader.key), table)
