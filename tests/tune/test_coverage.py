"""Coverage on aiter's real tables: the published counts for exact M, the padded ones, and a recount by brute force."""

from __future__ import annotations

import csv
import functools
import re
import sys
from pathlib import Path

import pytest
from rocm_overlay.errors import OverlayError
from rocm_overlay.tune.coverage import parse_mix
from rocm_overlay.tune.device import Device
from rocm_overlay.tune.heatmap import COLOURS, page
from rocm_overlay.tune.inputs import model_config
from rocm_overlay.tune.lookup import TableIndex
from rocm_overlay.tune.report import Report, make_report
from rocm_overlay.tune.shapes import LADDERS
from rocm_overlay.tune.table import read_table

from .loaders import padded_m
from .support import BF16, Cli, cells, llama, write_table

# Published for gfx950/256 and the ladder of 13 values: exact hits fused and not; nothing at all for gfx942/304.
PUBLISHED = {
    "llama-3.1-8b": (22, 39),
    "llama-3.1-70b": (40, 30),
    "qwen3-8b": (32, 44),
    "qwen3-32b": (20, 10),
    "mistral-7b": (22, 39),
    "qwen2.5-7b": (0, 0),
    "gemma-2b": (0, 10),
}
# What the recount below found with aiter's padding; kept as numbers so that a change of both sides shows.
PADDED = {
    "llama-3.1-8b": (22, 39),
    "llama-3.1-70b": (52, 39),
    "qwen3-8b": (32, 44),
    "qwen3-32b": (26, 13),
    "mistral-7b": (22, 39),
    "qwen2.5-7b": (0, 0),
    "gemma-2b": (0, 13),
}
SIZES = {
    "llama-3.1-8b": (4096, 14336, 32, 8, 128, 128256, "False"),
    "llama-3.1-70b": (8192, 28672, 64, 8, 128, 128256, "False"),
    "qwen3-8b": (4096, 12288, 32, 8, 128, 151936, "False"),
    "qwen3-32b": (5120, 25600, 64, 8, 128, 151936, "False"),
    "mistral-7b": (4096, 14336, 32, 8, 128, 32768, "False"),
    "qwen2.5-7b": (3584, 18944, 28, 4, 128, 152064, "True"),
    "gemma-2b": (2048, 16384, 8, 1, 256, 256000, "False"),
}


@functools.cache
def rows_present(tables: tuple[Path, ...], gfx: str, cu: str) -> set[tuple[int, int, int, str, str, str]]:
    present = set()
    for table in tables:
        with table.open(newline="") as stream:
            for row in csv.DictReader(stream):
                if (row["gfx"], row["cu_num"], row["scaleAB"], row["bpreshuffle"]) == (gfx, cu, "False", "False"):
                    shape = (int(row["M"]), int(row["N"]), int(row["K"]))
                    present.add((*shape, row["bias"], row["dtype"], row["outdtype"]))
    return present


def brute_force(tables: list[Path], gfx: str, cu: str, model: str, fused: bool) -> tuple[int, int, int]:
    """Return (lookups, exact, found) counted from the CSV text alone, sharing no code with the tool."""
    present = rows_present(tuple(tables), gfx, cu)
    hidden, inter, heads, kv, dim, vocab, bias = SIZES[model]
    last = [(hidden, heads * dim, "False"), (hidden, inter, "False"), (vocab, hidden, "False")]
    if fused:
        first = [((heads + 2 * kv) * dim, hidden, bias), (2 * inter, hidden, "False")]
    else:
        first = [(heads * dim, hidden, bias), (kv * dim, hidden, bias), (inter, hidden, "False")]
    total = exact = found = 0
    for n, k, has_bias in [*first, *last]:
        for power in range(13):
            m = 2**power
            hits = [(at, n, k, has_bias, BF16, BF16) in present for at in (m, padded_m(m, n, 0), padded_m(m, n, 1))]
            total, exact, found = total + 1, exact + hits[0], found + any(hits)
    return total, exact, found


@pytest.mark.parametrize("gpu", ["gfx942:304", "gfx950:256"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("model", PUBLISHED)
def test_counts_on_the_real_tables(tune: Cli, real_tables: list[Path], model: str, fused: bool, gpu: str) -> None:
    tables = [part for table in real_tables for part in ("--table", table)]
    choice = "qkv,gate_up" if fused else "none"
    report = tune("report", "--model", model, "--gpu", gpu, "--fused", choice, *tables, "--json").json()
    assert report["schema"] == "amd-overlay.tune.report/1"
    coverage = report["coverage"]
    counted = (coverage["total"], coverage["exact"], coverage["found"])
    assert counted == brute_force(real_tables, *gpu.split(":"), model, fused)
    at = 0 if fused else 1
    published = PUBLISHED[model][at] if gpu == "gfx950:256" else 0
    padded = PADDED[model][at] if gpu == "gfx950:256" else 0
    assert counted == (65 if fused else 78, published, padded)
    assert sum(len(shape["lookups"]) for shape in report["shapes"]) == coverage["total"]


def test_padding_adds_hits_between_the_powers_of_two(tune: Cli, real_tables: list[Path]) -> None:
    tables = [part for table in real_tables for part in ("--table", table)]
    ladder = ",".join(map(str, range(1, 65)))
    report = tune(
        "report", "--model", "llama-3.1-70b", "--gpu", "gfx950:256", "--m-ladder", ladder, *tables, "--json"
    ).json()
    exact, found = report["coverage"]["exact"], report["coverage"]["found"]
    assert (exact, found) == (_count_exact(real_tables, report), _count_found(real_tables, report))
    assert found > 3 * exact > 0


def _present(tables: list[Path]) -> set[tuple[int, int, int]]:
    return {row[:3] for row in rows_present(tuple(tables), "gfx950", "256") if row[3:] == ("False", BF16, BF16)}


def _count_exact(tables: list[Path], report: dict[str, list[dict[str, int]]]) -> int:
    present = _present(tables)
    return sum((m, shape["n"], shape["k"]) in present for shape in report["shapes"] for m in range(1, 65))


def _count_found(tables: list[Path], report: dict[str, list[dict[str, int]]]) -> int:
    present = _present(tables)
    return sum(
        any(
            (at, shape["n"], shape["k"]) in present
            for at in (m, padded_m(m, shape["n"], 0), padded_m(m, shape["n"], 1))
        )
        for shape in report["shapes"]
        for m in range(1, 65)
    )


def test_fusing_can_lose_rows_and_the_report_says_so(tune: Cli, real_tables: list[Path]) -> None:
    tables = [part for table in real_tables for part in ("--table", table)]
    answer = tune("report", "--model", "llama-3.1-8b", "--gpu", "gfx950:256", *tables)
    assert "tuned: 22 of 65 lookups with exact M" in answer.out
    assert "fusing qkv loses 3% of weight bytes (39 of 78 lookups apart, 22 of 65 fused)" in answer.out
    assert "fusing gate_up leaves the covered weight bytes unchanged" in answer.out
    empty = tune("report", "--model", "llama-3.1-8b", "--gpu", "gfx942:304", *tables).out
    assert "no row is for gfx942:304" in empty
    assert "leave USE_AITER_GEMM=0" in empty


def index(path: Path, *rows: dict[str, str]) -> TableIndex:
    return TableIndex(Device("gfx942", 304), read_table(write_table(path, *rows)).rows)


def test_weights_and_mix(tmp_path: Path) -> None:
    """The head is 525 M of 7505 M weights: found at M = 1 only, it is worth exactly its bytes and its share of M."""
    made = index(tmp_path / "t.csv", cells(M=1, N=128256, K=4096))
    path = llama(tmp_path / "config.json")
    head, total = 128256 * 4096, 7_504_658_432
    plain = make_report(path, made, ladder=(1, 2), dtype=BF16, fused=frozenset())
    assert plain.asked.share_found == pytest.approx(head / total / 2)
    mixed = make_report(path, made, ladder=(), dtype=BF16, fused=frozenset(), mix=parse_mix("1:3,64:1"))
    assert mixed.ladder == (1, 64)
    assert mixed.asked.share_found == pytest.approx(head / total * 0.75)
    assert (mixed.asked.exact, mixed.asked.total) == (1, 12)


@pytest.mark.parametrize("text", ["", "1", "1:x", "0:1", "1:-1", "1:0", "1:inf", "1:nan"])
def test_bad_mixes(text: str) -> None:
    with pytest.raises(OverlayError, match="m-mix"):
        parse_mix(text)


def test_states_of_a_cell(tmp_path: Path) -> None:
    made = index(
        tmp_path / "t.csv",
        cells(M=1, N=128256, K=4096),
        cells(M=2, N=128256, K=4096, libtype="torch"),
        cells(M=16, N=128256, K=4096, us=0.0),
        cells(M=64, N=128256, K=4096),
    )
    report = make_report(llama(tmp_path / "c.json"), made, ladder=(1, 2, 16, 60, 65), dtype=BF16, fused=frozenset())
    head = report.asked.lines[-1]
    assert [cell.state for cell in head.cells] == ["exact", "torch", "unmeasured", "padded", "miss"]


def test_the_page_stands_alone_and_draws_every_lookup(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", cells(M=1, N=128256, K=4096), cells(M=2, N=6144, K=4096, us=0))
    out = tmp_path / "map.html"
    answer = tune("report", "--model", "llava-1.5-7b", "--gpu", "gfx942:304", "--table", table, "--html", out)
    assert answer.code == 0
    text = out.read_text()
    assert not re.search(r"https?:|<script|<link|src=|@import|url\(", text)
    assert text.count('class="c"') == sum(c.total for c in _report(table).choices)
    assert all(colour in text for colour in COLOURS.values())


def _report(table: Path) -> Report:
    made = TableIndex(Device("gfx942", 304), read_table(table).rows)
    return make_report(
        model_config("llava-1.5-7b"), made, ladder=LADDERS["full"], dtype=BF16, fused=frozenset({"qkv", "gate_up"})
    )


def test_names_are_escaped(tmp_path: Path) -> None:
    path = llama(tmp_path / "<b>&.json")
    report = make_report(path, index(tmp_path / "t.csv", cells()), ladder=(1,), dtype=BF16, fused=frozenset())
    assert "<b>&" not in page(report)
    assert "&lt;b&gt;&amp;" in page(report)


def test_png(tmp_path: Path, tune: Cli) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, an extra, is not installed")
    table = write_table(tmp_path / "t.csv", cells(M=1, N=128256, K=4096))
    out = tmp_path / "map.png"
    assert tune("report", "--model", "llama-3.1-8b", "--gpu", "gfx942:304", "--table", table, "--png", out).code == 0
    assert out.read_bytes().startswith(b"\x89PNG\r\n")


def test_png_without_matplotlib(tmp_path: Path, tune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    table = write_table(tmp_path / "t.csv", cells())
    out = tmp_path / "map.png"
    answer = tune("report", "--model", "llama-3.1-8b", "--gpu", "gfx942:304", "--table", table, "--png", out)
    assert answer.code == 2
    assert "pip install matplotlib, or use --html" in answer.err
    assert not out.exists()
