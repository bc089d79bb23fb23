"""Reports: nothing is told that does not hold, and every form says the same."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.bench import command, comparison, formats, optimum, report, runner
from rocm_overlay.bench.matrix import Work, plan
from rocm_overlay.bench.memory import check_memory
from rocm_overlay.bench.runner import Journal
from rocm_overlay.errors import UsageError

from .samples import SIZE, made_up_report, processes, setup


def row(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in content["cells"] if row["name"] == name)


def test_only_a_planted_difference_is_told(tmp_path: Path) -> None:
    content = made_up_report(tmp_path, "onoff", {"all": 1.2})
    assert row(content, "stock again")["verdicts"]["per_token"]["outcome"] == "same"
    assert row(content, "all")["verdicts"]["per_token"]["outcome"] == "slower"
    assert formats.verdict(row(content, "all"), "per_token").endswith("x slower")


def test_a_wrong_answer_has_no_speed(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    cells = plan("onoff", [Work()])
    made = processes(cells, tmp_path, {"all": 0.5})
    wrong = tmp_path / "wrong.safetensors"
    save_file({name: value + 1 for name, value in load_file(made[0].values).items()}, wrong)
    for process in made:
        if process.cell.startswith("all"):
            process.values = str(wrong)
    built = report.build(setup(cells), made, SIZE, 1.0)
    judged = row(built.content, "all")
    assert not built.ok
    assert not judged["parity"]["ok"]
    assert judged["verdicts"]["per_token"]["outcome"] == "same"
    assert formats.verdict(judged, "per_token") == "parity failed"


def test_a_nan_on_one_side_fails_parity(tmp_path: Path) -> None:
    import numpy
    from safetensors.numpy import save_file

    cells = plan("onoff", [Work()])
    made = processes(cells, tmp_path)
    wrong = tmp_path / "nan.safetensors"
    logits = numpy.ones((1, 4), "float32")
    logits[0, 2] = numpy.nan
    save_file({"logits": logits, "tokens": numpy.ones((1, 4), "float32")}, wrong)
    made[-1].values = str(wrong)
    assert "NaN" in row(report.build(setup(cells), made, SIZE, 1.0).content, "all")["parity"]["reason"]


def test_a_lost_round_leaves_the_others_in_their_places(tmp_path: Path) -> None:
    """The machine slows down from round to round; the first round of a cell is lost in the later run."""
    cells = plan("onoff", [Work()])
    made = processes(cells, tmp_path)
    for process in made:
        for run in process.runs:
            run["itl"] = [value * 1.3**process.round for value in run["itl"]]
    before = report.build(setup(cells), made, SIZE, 1.0).content
    lost = next(process for process in made if process.cell.startswith("all") and process.round == 0)
    lost.status, lost.message, lost.runs = "crashed", "Killed", []
    after = report.build(setup(cells), made, SIZE, 1.0).content
    assert row(after, "all")["measures"]["per_token"]["latency"]["rounds"] == [1, 2, 3, 4]
    found = comparison.compare(before, after, limit=0.05, metrics=["per_token"])
    assert {one.cell.split()[0]: one.outcome for one in found.changes}["all"] == "same"
    assert all(abs(one.ratio - 1) < 0.02 for one in found.changes)


@pytest.mark.parametrize("planted", ["finite", "infinity"])
def test_an_infinity_of_stocks_does_not_hide_what_is_wrong(planted: str, tmp_path: Path) -> None:
    """Scores that stock masks are infinite: differences are held to the largest finite value."""
    import numpy
    from safetensors.numpy import save_file

    cells = plan("onoff", [Work()])
    made = processes(cells, tmp_path)
    logits = numpy.array([[1.0, -numpy.inf, 2.0, -numpy.inf]], "float32")
    wrong = logits.copy()
    wrong[0, 0 if planted == "finite" else 1] = 1.5 if planted == "finite" else numpy.inf
    tokens = numpy.ones((1, 4), "float32")
    for process in made:
        path = tmp_path / f"{process.cell}.safetensors"
        save_file({"logits": wrong if process.cell.startswith("all") else logits, "tokens": tokens}, path)
        process.values = str(path)
    content = report.build(setup(cells), made, SIZE, 1.0).content
    assert not row(content, "all")["parity"]["ok"]
    assert row(content, "stock again")["parity"]["ok"]


def test_a_crashed_process_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    cells = plan("onoff", [Work()])
    made = processes(cells, tmp_path)
    made[-1].status, made[-1].message, made[-1].runs = "crashed", "the process ended with status -9:\nKilled", []
    built = report.build(setup(cells), made, SIZE, 1.0)
    assert not built.ok
    assert row(built.content, "all")["status"] == "crashed"
    assert row(built.content, "all")["measures"]["per_token"]["latency"]["count"] == 4 * 30
    assert any("crashed" in text for text in built.content["warnings"])


def test_a_cell_reads_as_a_report_of_optimum_benchmark(tmp_path: Path) -> None:
    """Names, units and statistics as in its sources: targets of text generation, the fields of Latency and Memory."""
    import numpy

    stock = row(made_up_report(tmp_path, "onoff"), "stock")
    found = optimum.report(stock)
    assert set(found) == {"load_model", "first_generate", "generate", "prefill", "decode", "per_token"}
    assert all(set(one) == {"memory", "latency", "throughput", "energy", "efficiency"} for one in found.values())
    latency = found["per_token"]["latency"]
    fields = {"unit", "values", "count", "total", "mean", "p50", "p90", "p95", "p99", "stdev", "stdev_"}
    assert set(latency) == fields
    values = [value for one in stock["measures"]["per_token"]["latency"]["values"] for value in one]
    assert latency["values"] == values
    assert latency["stdev"] == pytest.approx(numpy.std(values))
    assert latency["stdev_"] == pytest.approx(100 * numpy.std(values) / numpy.mean(values))
    assert latency["p99"] == pytest.approx(numpy.percentile(values, 99))
    decode = found["decode"]
    assert decode["throughput"] == {"unit": "tokens/s", "value": pytest.approx(15 / decode["latency"]["mean"])}
    assert decode["memory"]["unit"] == "MB"
    assert decode["memory"]["max_ram"] == 1000.0


def test_csv_and_markdown_have_every_cell(tmp_path: Path) -> None:
    content = made_up_report(tmp_path)
    lines = list(csv.DictReader(io.StringIO(formats.as_csv(content))))
    assert {line["cell"] for line in lines} == {cell["id"] for cell in content["cells"]}
    assert float(lines[0]["p50"]) == content["cells"][0]["measures"]["per_token"]["latency"]["p50"]
    text = formats.as_markdown(content)
    assert all(f"| {cell['id']} |" in text for cell in content["cells"])


def test_a_jump_of_the_wall_clock_is_told(tmp_path: Path) -> None:
    cells = plan("onoff", [Work()])
    made = processes(cells, tmp_path)
    made[0].runs[0]["clock_jump"] = 3600.0
    assert "jumped" in report.build(setup(cells), made, SIZE, 1.0).content["warnings"][0]


def test_the_page_stands_alone_and_shows_every_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from rocm_overlay.bench.page import render

    content = {
        **made_up_report(tmp_path, isl=(128, 512)),
        "tuning": {"gpu": "gfx950:256", "ladder": [1, 2], "lines": [{"name": "qkv", "cells": ["exact", "miss"]}]},
    }
    page = render(content)
    assert page.count("<svg") == 7
    # Addresses are names of XML namespaces here; nothing is loaded from anywhere.
    assert not re.search(r"""(src|href)=["']https?:""", page)
    assert "<script" not in page


def test_the_page_says_what_it_cannot_show(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from rocm_overlay.bench.page import render

    page = render({**made_up_report(tmp_path, "onoff"), "tuning": None})
    assert "--matrix toggles" in page
    assert "--gpu gfx950:256" in page


def test_the_same_report_has_no_change(tmp_path: Path) -> None:
    content = made_up_report(tmp_path, "onoff")
    found = comparison.compare(content, content, 0.05)
    assert not found.failed
    assert {change.outcome for change in found.changes} == {"same"}


def test_a_slower_report_fails_the_gate_and_a_faster_one_does_not(tmp_path: Path) -> None:
    fast, slow = made_up_report(tmp_path, "onoff"), made_up_report(tmp_path, "onoff", {"all": 1.2})
    found = comparison.compare(fast, slow, 0.05)
    assert found.failed
    assert {change.cell.split()[0] for change in found.changes if change.fails} == {"all"}
    assert not comparison.compare(slow, fast, 0.05).failed
    assert not comparison.compare(fast, slow, 0.5).failed


def test_only_the_metrics_that_are_named_are_judged(tmp_path: Path) -> None:
    fast, slow = made_up_report(tmp_path, "onoff"), made_up_report(tmp_path, "onoff", {"all": 1.2})
    found = comparison.compare(fast, slow, 0.05, metrics=comparison.parse_metrics("prefill"))
    assert {change.measure for change in found.changes} == {"prefill"}
    with pytest.raises(UsageError, match="--metric names 'speed'"):
        comparison.parse_metrics("prefill,speed")


def test_a_gpu_that_is_lost_ends_its_process_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runtime says when the device falls off the bus: the worker dies with it, the next cell is tried."""

    class Lost:
        """A double of a worker that measures once and then dies."""

        status, timed_out = 1, False

        def events(self, env: dict[str, str], timeout: float) -> Iterator[dict[str, Any]]:
            yield {"event": "loaded", "seconds": 1.0, "overlay": None}
            yield {"event": "first", "ttft": 1.0, "itl": [1.0], "e2e": 2.0}

        def log_tail(self) -> str:
            return "Traceback ...\nRuntimeError: HIP error: unspecified launch failure"

    monkeypatch.setattr(runner, "child", lambda *args, **options: Lost())
    monkeypatch.setattr(runner, "stage", lambda setup, scratch: tmp_path)
    cells = plan("onoff", [Work()])
    made = setup(cells, rounds=1)
    found = runner.run_all(made, Journal(tmp_path / "run", made), lambda text: None)
    built = report.build(made, found, SIZE, 1.0)
    assert not built.ok
    assert [one["status"] for one in built.content["cells"]] == ["crashed"] * 3
    assert all("HIP error: unspecified launch failure" in one["message"] for one in built.content["cells"])
    assert any("HIP error" in text for text in built.content["warnings"])
    assert all(process.first for process in found), "what was measured before is kept"


def test_a_baseline_of_another_machine_is_refused(tmp_path: Path) -> None:
    content = made_up_report(tmp_path, "onoff")
    other = {**content, "machine": {**content["machine"], "device_name": "another"}}
    with pytest.raises(UsageError, match="different machines"):
        comparison.compare(other, content, 0.05)
    assert "device_name was another" in comparison.compare(other, content, 0.05, other_machine=True).notes[0]


def test_a_baseline_of_another_model_is_refused(tmp_path: Path) -> None:
    content = made_up_report(tmp_path, "onoff")
    other = {**content, "model": {**content["model"], "parameters": 5}}
    with pytest.raises(UsageError, match="different models"):
        comparison.compare(other, content, 0.05)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other/1"}', "[" * 100_000])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=str(path)):
        comparison.read(path)


def _first(content: Any) -> Any:
    return next(iter(content["cells"][0]["measures"].values()))["latency"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("machine"),
        lambda content: content.pop("model"),
        lambda content: content.update(cells="none"),
        lambda content: content["cells"].append(1),
        lambda content: content["cells"][0].pop("against"),
        lambda content: content["cells"][0]["measures"].update(call=3),
        lambda content: _first(content).update(values=[]),
        lambda content: _first(content).update(values=[[]]),
        lambda content: _first(content).update(values=[["fast"]]),
        lambda content: _first(content).update(values=[[math.nan]]),
        lambda content: _first(content).update(p50=0),
    ],
)
def test_a_report_that_was_changed_by_hand_is_refused(tmp_path: Path, change: Callable[[Any], object]) -> None:
    path = tmp_path / "report.json"
    content = made_up_report(tmp_path, "onoff")
    path.write_text(json.dumps(content))
    assert comparison.read(path)["cells"]
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="was changed") as raised:
        comparison.read(path)
    assert "overlay bench" in raised.value.remedy


def test_reports_without_a_failure_are_shown_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(made_up_report(tmp_path, "onoff")))
    assert command.compare(path, path, "5%", None, other_machine=False) == 0
    assert "no failures against the earlier report" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.1", 0.1), ("0", 0.0)])
def test_limits(text: str, value: float) -> None:
    assert comparison.parse_limit(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "five", "-1%", "nan", "5000%"])
def test_a_wrong_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-over"):
        comparison.parse_limit(text)


def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded() -> None:
    made = setup(plan("onoff", [Work()]))
    check_memory(SIZE, made)
    with pytest.raises(UsageError, match=r"70.00 billion parameters: about 170.5 GiB"):
        check_memory({**SIZE, "parameters": 70 * 10**9, "bytes": 140 * 10**9, "free": 10**10}, made)


def test_a_journal_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cells = plan("onoff", [Work()])
    made = processes(cells, tmp_path)
    folder = tmp_path / "run"
    journal = Journal(folder, setup(cells))
    for process in made[:3]:
        journal.keep(process)
    samples = folder / "samples.jsonl"
    whole = samples.read_bytes()
    samples.write_bytes(whole[:-40])  # a kill in the middle of a line
    again = Journal(folder, setup(cells))
    assert set(again.done()) == {(p.cell, p.round) for p in made[:2]}
    again.keep(made[2])
    assert set(Journal(folder, setup(cells)).done()) == {(p.cell, p.round) for p in made[:3]}


def test_a_folder_of_another_plan_is_refused(tmp_path: Path) -> None:
    cells = plan("onoff", [Work()])
    Journal(tmp_path / "run", setup(cells))
    with pytest.raises(UsageError, match=r"another run: plan\.rounds was 5, is 4"):
        Journal(tmp_path / "run", setup(cells, rounds=4))
    header = json.loads((tmp_path / "run" / "samples.jsonl").read_text())
    assert header["settings"] == setup(cells).key.ingredients


def test_samples_of_an_older_form_are_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"cell": "stock", "round": 0}\n')
    with pytest.raises(UsageError, match="not the samples of a run"):
        Journal(tmp_path, setup(plan("onoff", [Work()])))
