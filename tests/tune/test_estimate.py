"""The decode estimate against the published roofline, and against sums of real rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .support import Cli, cells, llama, write_table

# Llama-3.1-8B, batch 1: tokens/s at no context, 2k, 8k and 128k, and 65 % of the bound at 2k.
ROOFLINE = {
    "H200": (320, 314, 298, 149, 204),
    "MI300X": (353, 347, 330, 165, 226),
    "MI325X": (400, 393, 373, 186, 255),
    "MI355X": (533, 524, 497, 249, 341),
}


@pytest.mark.parametrize("gpu", ROOFLINE)
def test_the_roofline_table_within_two_percent(tune: Cli, gpu: str) -> None:
    value = tune("estimate", "--config", "llama-3.1-8b", "--gpu", gpu, "--json").json()
    assert value["weight_bytes"] == pytest.approx(15.01e9, rel=1e-3)
    assert value["cache_bytes_per_token"] == 131072
    lines = value["roofline"]
    assert [line["context"] for line in lines] == [0, 2048, 8192, 131072]
    found = [line["tokens_per_s"] for line in lines] + [lines[1]["tokens_per_s_real"]]
    assert found == pytest.approx(ROOFLINE[gpu], rel=0.02)


def test_measured_rows_add_up(tune: Cli, real_tables: list[Path]) -> None:
    """Qwen3-8B on gfx950 at M = 1: qkv 11.0, o 8.5, gate_up 34.1, about 73 us a layer, lm_head 183, 2.8 ms together."""
    tables = [part for table in real_tables for part in ("--table", table)]
    value = tune("estimate", "--config", "qwen3-8b", "--gpu", "gfx950:256", "--context", "0", *tables, "--json").json()
    step = value["steps"][0]
    us = {product["role"]: product["us"] for product in step["products"] if product["source"] != "roofline"}
    assert us == pytest.approx({"qkv_proj": 11.0, "o_proj": 8.5, "gate_up_proj": 34.1, "lm_head": 183}, rel=0.01)
    assert step["us_per_layer"] == pytest.approx(73, rel=0.02)
    assert step["gemm_us"] / 1e3 == pytest.approx(2.8, rel=0.02)
    assert 0.7 < step["measured_share"] < 0.85


def test_launches_bound_stock_and_memory_bounds_fused(tune: Cli) -> None:
    value = tune("estimate", "--config", "llama-3.1-8b", "--gpu", "MI300X", "--context", "2048", "--json").json()
    stock, fused = value["steps"][0]["launches"]
    assert (stock["per_step"], stock["host_us"], stock["bound"]) == (1302, 6510, "launch-bound")
    assert (fused["per_step"], fused["host_us"], fused["bound"]) == (310, 1550, "memory-bound")
    assert stock["tokens_per_s"] == pytest.approx(154, rel=0.01)


def test_launches_that_were_not_counted_are_told_as_assumed(tune: Cli, tmp_path: Path) -> None:
    config = {"model_type": "granite", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2, "vocab_size": 100}))
    value = tune("estimate", "--config", tmp_path, "--gpu", "MI300X", "--json").json()
    assert [step["per_step"] for step in value["steps"][0]["launches"]] == [2 * 40 + 22, 2 * 9 + 22]
    assert any("granite: 40 stock and 9 overlaid assumed" in note for note in value["notes"])


def test_not_measured_rows_are_not_times(tmp_path: Path, tune: Cli) -> None:
    table = write_table(tmp_path / "t.csv", cells(M=1, N=128256, K=4096, us=0.0))
    arguments = ("estimate", "--config", "llama-3.1-8b", "--gpu", "gfx942:304", "--json")
    with_row, without = tune(*arguments, "--table", table).json(), tune(*arguments).json()
    assert with_row["steps"] == without["steps"]
    assert any("gfx942:304 is also MI325X" in note for note in with_row["notes"])


def test_batches_experts_windows_and_ranks(tmp_path: Path, tune: Cli) -> None:
    def rate(name: str, *options: str) -> float:
        return float(
            tune("estimate", "--config", name, "--gpu", "MI300X", *options, "--json").json()["roofline"][0][
                "tokens_per_s"
            ]
        )

    assert rate("llama-3.1-8b", "--batch", "8") == pytest.approx(8 * rate("llama-3.1-8b"))
    assert rate("llama-3.1-70b", "--tp", "8") > 7.9 * rate("llama-3.1-70b")
    # 2 of 8 experts: 1.61 B of attention, head and router weights + a quarter of 45.1 B of experts, 2 bytes each.
    assert rate("mixtral-8x7b") == pytest.approx(
        5.3e12 / (2 * (1_474_297_856 + 45_097_156_608 / 4 + 266_240)), rel=1e-6
    )
    assert rate("qwen3-30b-a3b") > 5 * rate("qwen3-32b")
    window = llama(tmp_path / "w.json", model_type="mistral", sliding_window=1024)
    assert rate(str(window), "--context", "131072") == rate(str(window), "--context", "1024")


def test_text_and_bandwidth(tune: Cli) -> None:
    answer = tune("estimate", "--config", "llama-3.1-8b", "--gpu", "gfx90a:104", "--hbm-tbs", "1.6", "--context", "0")
    assert "15.01 GB of weights per token" in answer.out
    assert "106.6" in answer.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu", "gfx90a:104"], "no published peaks"),
        (["--gpu", "MI9000"], "is not a GPU"),
        (["--hbm-tbs", "0"], "not a bandwidth"),
        (["--hbm-tbs", "nan"], "not a bandwidth"),
        (["--context", "2k"], "not a list of lengths"),
        (["--context", "-1"], "not a list of lengths"),
        (["--batch", "0"], "batch from 1"),
        (["--efficiency", "1.5"], "efficiency is above 0"),
        (["--launch-us", "nan"], "launch time from 0"),
    ],
)
def test_bad_options(tune: Cli, options: list[str], said: str) -> None:
    answer = tune("estimate", "--config", "llama-3.1-8b", *options)
    assert answer.code == 2
    assert said in answer.err
