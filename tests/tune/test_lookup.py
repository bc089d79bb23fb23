"""The padded lookup, against the loaders' own arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rocm_overlay.tune.device import Device
from rocm_overlay.tune.lookup import TableIndex, default_libtype, padded_m
from rocm_overlay.tune.table import read_table

from . import loaders
from .support import BF16, cells, write_table

DEVICE = Device("gfx942", 304)


@given(st.integers(1, 70_000), st.integers(1, 200_000))
def test_padding_equals_aiters(m: int, n: int) -> None:
    assert padded_m(m, n, "exact") == m
    assert padded_m(m, n, "fine") == loaders.padded_m(m, n, 0)
    assert padded_m(m, n, "coarse") == loaders.padded_m(m, n, 1)


@pytest.mark.parametrize(
    ("m", "level", "found"),
    [
        (256, "fine", 256),
        (257, "fine", 288),
        (1025, "fine", 1088),
        (4097, "fine", 4224),
        (3, "coarse", 4),
        (1, "coarse", 1),
        (9000, "coarse", 8192),
    ],
)
def test_padding_at_the_borders(m: int, level: str, found: int) -> None:
    assert padded_m(m, 8192, level) == found  # type: ignore[arg-type]


def test_a_long_m_with_a_small_n_is_padded_up() -> None:
    assert padded_m(9000, 4096, "coarse") == 16384


def test_order_is_exact_then_fine_then_coarse(tmp_path: Path) -> None:
    rows = [cells(M=m, us=float(m)) for m in (5, 16, 8)]
    index = TableIndex(DEVICE, read_table(write_table(tmp_path / "t.csv", *rows)).rows)

    def found(m: int) -> tuple[int, str] | None:
        hit = index.find(m, 4096, 4096, bias=False, dtype=BF16)
        return (hit.m, hit.level) if hit else None

    assert found(5) == (5, "exact")
    assert found(7) == (16, "fine"), "M 8 is nearer, but aiter tries the fine padding first"
    assert found(17) is None
    assert index.find(5, 4096, 4096, bias=True, dtype=BF16) is None
    assert index.find(5, 4096, 4096, bias=False, dtype="torch.float16") is None


@pytest.mark.parametrize(
    ("m", "n", "k", "library"),
    [
        (1, 608, 9216, "skinny"),
        (1, 609, 9216, "torch"),
        (1, 608, 9224, "torch"),
        (4, 304, 9216, "skinny"),
        (5, 304, 9216, "torch"),
        (8, 304, 5120, "skinny"),
        (16, 304, 256, "skinny"),
        (16, 304, 264, "torch"),
        (1, 100, 1001, "torch"),
    ],
)
def test_what_a_miss_runs(m: int, n: int, k: int, library: str) -> None:
    assert default_libtype(DEVICE, m, n, k, BF16) == library
