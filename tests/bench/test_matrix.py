"""Cells: names are unique, and what is misspelt is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from rocm_overlay.bench.matrix import Work, plan, shape_name
from rocm_overlay.bench.runner import order
from rocm_overlay.errors import UsageError


def test_every_matrix_measures_stock_against_itself() -> None:
    for name in ("onoff", "toggles", "tiers"):
        cells = plan(name, [Work()])
        assert [cell.name for cell in cells[:2]] == ["stock", "stock again"]
        assert all(not cell.toggles for cell in cells[:2])


def test_toggles_are_tried_alone_and_left_out_one_by_one() -> None:
    cells = {cell.name: cell for cell in plan("toggles", [Work()])}
    assert cells["only USE_AITER_GEMM"].toggles == {"USE_AITER_GEMM": "1"}
    assert "USE_AITER_GEMM" not in cells["all but USE_AITER_GEMM"].toggles
    assert len(cells["all but USE_AITER_GEMM"].toggles) == 3
    assert cells["off"].build == "overlay"
    assert not cells["off"].toggles


def test_every_shape_has_a_stock_cell_of_its_own() -> None:
    cells = plan("onoff", [Work(batch=b, isl=i) for b in (1, 8) for i in (128, 512)])
    assert len({cell.id for cell in cells}) == 12
    assert {cell.against for cell in cells} == {cell.id for cell in cells if cell.name == "stock"}


def test_the_shape_is_in_the_name() -> None:
    assert shape_name(Work()) == "b1 i128 o16"
    assert shape_name(Work(mode="train", attn="eager")) == "b1 i128 train eager"
    assert shape_name(Work(cache="static", compile="graph")) == "b1 i128 o16 static compile-graph"


def test_a_file_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text("cells:\n  - {name: norms, toggles: {USE_OPTIMIZED_OPS: 1}, env: {OMP_NUM_THREADS: 2}}\n")
    norms = plan(str(path), [Work()])[2]
    assert (norms.build, norms.toggles, norms.env) == ("overlay", {"USE_OPTIMIZED_OPS": "1"}, {"OMP_NUM_THREADS": "2"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cells: []", "no list"),
        ("a: b", "no list"),
        ("cells: [{name: x, toggles: {USE_AITER_GEM: 1}}]", "'USE_AITER_GEM' is no toggle"),
        ("cells: [{name: x, colour: red}]", "unknown key 'colour'"),
        ("cells: [{toggles: {}}]", "`name` must be"),
        ("cells: [{name: x, build: mine}]", "build is 'mine'"),
        ("cells: [{name: x, env: {lower: 1}}]", "'lower' is no name"),
        ("cells: [{name: x}, {name: x}]", "two cells"),
        ("cells: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        plan(str(path), [Work()])


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (Work(mode="dance"), "--mode"),
        (Work(batch=0), "--batch"),
        (Work(osl=1), "--osl"),
        (Work(cache="quantum"), "--cache"),
        (Work(compile="yes"), "--compile"),
    ],
)
def test_wrong_work_is_refused_by_name(work: Work, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan("onoff", [work])


def test_an_unknown_matrix_is_refused() -> None:
    with pytest.raises(UsageError, match="onoff, toggles, tiers"):
        plan("everything", [Work()])


def test_no_cell_is_always_first() -> None:
    cells = plan("onoff", [Work()])
    assert {order(cells, number)[0].name for number in range(3)} == {cell.name for cell in cells}
    assert all(sorted(c.id for c in order(cells, n)) == sorted(c.id for c in cells) for n in range(7))
