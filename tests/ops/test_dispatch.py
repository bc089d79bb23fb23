"""Binding, counting, explaining, declining."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import amd_ops
from amd_ops import device, dispatch
from amd_ops.dispatch import Candidate, DeclinedError, DeclinedWarning, Op, Refusal, Tier
from tests.doubles.aiter import fake_aiter

MakeOp = Callable[..., Op]


@pytest.fixture
def make_op() -> Iterator[MakeOp]:
    """Build an op named ``toy`` with a first tier of the test's making above torch and eager."""
    made: list[Op] = []

    def make(first: Candidate | Refusal, wanted: bool = True, lower: bool = True) -> Op:
        tiers = [Tier("aiter", lambda settings: first, lambda settings: wanted)]
        if lower:
            tiers += [
                Tier("torch", dispatch.always(lambda x: ("torch", x))),
                Tier("eager", dispatch.always(lambda x: ("eager", x))),
            ]
        op = Op("toy", tiers)
        made.append(op)
        return op

    yield make
    dispatch.ops.pop("toy", None)


def call(op: Op, x: Any) -> Any:
    op.calls += 1
    return op.call(x)


def row() -> dict[str, Any]:
    rows = [row for row in amd_ops.report().as_dict()["ops"] if row["op"] == "toy"]
    assert len(rows) == 1
    return {
        tier["tier"]: (tier["calls"], {d["reason"]: d["calls"] for d in tier["declined"]}) for tier in rows[0]["tiers"]
    }


def test_a_refused_tier_costs_nothing_per_call_and_is_reported(make_op: MakeOp) -> None:
    op = make_op(Refusal("no such device"), wanted=False)
    assert [call(op, n) for n in range(3)] == [("torch", 0), ("torch", 1), ("torch", 2)]
    assert op.call is not op._bind_then_call
    assert row() == {"aiter": (0, {"no such device": 3}), "torch": (3, {}), "eager": (0, {})}
    call(op, 3)
    assert row()["aiter"] == (0, {"no such device": 4})
    assert row()["torch"] == (4, {})


def test_a_check_declines_single_calls(make_op: MakeOp) -> None:
    op = make_op(Candidate(lambda x: ("fast", x), lambda x: "odd" if x % 2 else ""), wanted=False)
    assert [call(op, n)[0] for n in range(5)] == ["fast", "torch", "fast", "torch", "fast"]
    assert row() == {"aiter": (3, {"odd": 2}), "torch": (2, {}), "eager": (0, {})}


def test_a_variant_is_probed_once_and_its_verdict_kept(make_op: MakeOp) -> None:
    probed = []

    def probe(x: int) -> str:
        probed.append(x)
        return "its probe disagrees" if x % 2 else ""

    op = make_op(Candidate(lambda x: ("fast", x), None, lambda x: x % 2, probe), wanted=False)
    assert [call(op, n)[0] for n in range(6)] == ["fast", "torch"] * 3
    assert probed == [0, 1]
    assert row()["aiter"] == (3, {"its probe disagrees": 3})


def test_a_probe_that_raises_is_a_verdict(make_op: MakeOp) -> None:
    def probe(x: int) -> str:
        raise KeyError("gfx000")

    op = make_op(Candidate(lambda x: ("fast", x), None, lambda x: 0, probe), wanted=False)
    assert call(op, 1) == ("torch", 1)
    assert row()["aiter"] == (0, {"its probe raised KeyError: 'gfx000'": 1})


def test_a_kernel_that_raises_is_given_up_with_its_reason(make_op: MakeOp) -> None:
    calls = []

    def run(x: int) -> Any:
        calls.append(x)
        raise AssertionError("no solution")

    op = make_op(Candidate(run, None, lambda x: 0), wanted=False)
    assert [call(op, n)[0] for n in range(3)] == ["torch"] * 3
    assert calls == [0], "a variant that failed is not tried again"
    assert row()["aiter"] == (0, {"raised AssertionError: no solution": 3})


def test_running_out_of_memory_is_not_a_verdict(make_op: MakeOp) -> None:
    def run(x: int) -> Any:
        raise torch.OutOfMemoryError("full")

    op = make_op(Candidate(run, None, lambda x: 0), wanted=False)
    with pytest.raises(torch.OutOfMemoryError):
        call(op, 1)


def test_nothing_is_probed_while_a_stream_is_captured(make_op: MakeOp, monkeypatch: pytest.MonkeyPatch) -> None:
    op = make_op(Candidate(lambda x: ("fast", x), None, lambda x: 0, lambda x: ""), wanted=False)
    monkeypatch.setattr(dispatch, "capturing", lambda: True)
    assert call(op, 1) == ("torch", 1)
    monkeypatch.setattr(dispatch, "capturing", lambda: False)
    assert call(op, 1) == ("fast", 1), "a decline under capture is not a verdict"


def test_a_declined_request_warns_once(make_op: MakeOp, caplog: pytest.LogCaptureFixture) -> None:
    op = make_op(Candidate(lambda x: x, lambda x: "odd"))
    with (
        pytest.warns(DeclinedWarning, match="toy: tier aiter was asked for and cannot run: odd"),
        caplog.at_level(logging.WARNING),
    ):
        call(op, 1)
    assert len(caplog.records) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(op, 1)
    assert row()["aiter"] == (0, {"odd": 2})


def test_a_refused_request_warns_when_bound(make_op: MakeOp) -> None:
    op = make_op(Refusal("no device", unmet=True))
    with pytest.warns(DeclinedWarning, match="no device"):
        call(op, 1)


def test_a_decline_that_nobody_asked_about_is_silent(make_op: MakeOp) -> None:
    op = make_op(Candidate(lambda x: x, lambda x: "odd"), wanted=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(op, 1)


@pytest.mark.parametrize("first", [Candidate(lambda x: x, lambda x: "odd"), Refusal("odd", unmet=True)])
def test_strict_mode_raises(make_op: MakeOp, first: Candidate | Refusal) -> None:
    op = make_op(first)
    with (
        amd_ops.override(strict=1),
        pytest.warns(DeclinedWarning),
        pytest.raises(DeclinedError, match=r"toy.*aiter.*odd"),
    ):
        call(op, 1)
    assert call(op, 1) == ("torch", 1), "the mode ends with the override"


def test_strict_mode_lets_empty_inputs_and_unasked_declines_pass(make_op: MakeOp) -> None:
    with amd_ops.override(strict=1):
        assert call(make_op(Candidate(lambda x: x, lambda x: dispatch.EMPTY)), 1) == ("torch", 1)
        assert call(make_op(Candidate(lambda x: x, lambda x: "odd"), wanted=False), 1) == ("torch", 1)
        assert call(make_op(Refusal("off")), 1) == ("torch", 1)


def test_no_tier_left_is_an_error_that_says_so(make_op: MakeOp) -> None:
    op = make_op(Candidate(lambda x: x, lambda x: "odd"), wanted=False, lower=False)
    with pytest.raises(DeclinedError, match="no tier is left"):
        call(op, 1)


def test_the_tier_list_limits_the_tiers(make_op: MakeOp) -> None:
    op = make_op(Candidate(lambda x: ("fast", x)))
    with amd_ops.override(tiers="eager", strict=1):
        assert call(op, 1) == ("eager", 1)
    assert row() == {
        "aiter": (0, {"AMD_OPS_TIERS leaves it out": 1}),
        "torch": (0, {"AMD_OPS_TIERS leaves it out": 1}),
        "eager": (1, {}),
    }
    assert call(op, 1) == ("fast", 1)


def test_reasons_stay_few(make_op: MakeOp) -> None:
    op = make_op(Candidate(lambda x: x, lambda x: f"reason {x}"), wanted=False)
    for n in range(dispatch.MAX_REASONS + 20):
        call(op, n)
    _, declined = row()["aiter"]
    assert len(declined) <= dispatch.MAX_REASONS + 1
    assert declined[dispatch.OTHER_REASONS] == 20
    assert sum(declined.values()) == dispatch.MAX_REASONS + 20


def test_counters_survive_a_change_of_settings(make_op: MakeOp) -> None:
    op = make_op(Refusal("no device"), wanted=False)
    call(op, 1)
    with amd_ops.override(tiers="eager"):
        call(op, 1)
        call(op, 1)
    call(op, 1)
    counts = row()
    assert counts["torch"][0] == 2
    assert counts["eager"][0] == 2
    assert counts["aiter"][1] == {"no device": 2, "AMD_OPS_TIERS leaves it out": 2}


def test_first_call_is_timed_apart(make_op: MakeOp) -> None:
    op = make_op(Refusal("no device"), wanted=False)
    assert op.tallies["torch"].first_call_s is None
    call(op, 1)
    first = op.tallies["torch"].first_call_s
    assert first is not None
    assert first > 0.0
    call(op, 1)
    assert op.tallies["torch"].first_call_s == first


def test_threads_may_bind_together(make_op: MakeOp) -> None:
    op = make_op(Refusal("no device"), wanted=False)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(call(op, 1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [("torch", 1)] * 8


def test_report_is_a_table_and_json() -> None:
    x = torch.randn(2, 4)
    assert "no op has been called" in str(amd_ops.report())
    amd_ops.rms_norm(x, torch.ones(4), 1e-6)
    report = amd_ops.report()
    content = json.loads(report.to_json())
    assert content["schema"] == "amd-ops.report/1"
    assert [row["op"] for row in content["ops"]] == ["rms_norm"]
    assert content["ops"][0]["tiers"][0]["declined"] == [{"reason": "USE_OPTIMIZED_OPS is off", "calls": 1}]
    assert report.calls("rms_norm") == report.calls("rms_norm", "torch") == 1
    assert report.calls("linear") == 0
    assert "rms_norm" in str(report)
    assert "USE_OPTIMIZED_OPS is off" in str(report)


def test_explain_runs_nothing_and_counts_nothing() -> None:
    x = torch.randn(2, 4)
    explained = amd_ops.explain("rms_norm", x, torch.ones(4), 1e-6, form="gemma")
    assert explained.tier == "torch"
    assert [(v.ok, v.tier) for v in explained.verdicts] == [(False, "aiter"), (False, "triton"), (True, "torch")]
    assert "USE_OPTIMIZED_OPS is off" in str(explained)
    assert amd_ops.report().as_dict()["ops"] == []


def test_explain_names_the_reason_of_every_higher_tier() -> None:
    q = torch.randn(1, 3, 2, 8)
    with amd_ops.override(use_aiter_attention=1):
        explained = amd_ops.explain(amd_ops.attention, q, q, q, softcap=2.0)
    assert explained.tier == "eager"
    assert [v.reason for v in explained.verdicts] == [device.why_none(), "SDPA has no soft cap", ""]
    with amd_ops.override(tiers="torch"):
        assert amd_ops.explain("attention", q, q, q, softcap=2.0).tier is None


def test_explain_knows_its_ops() -> None:
    with pytest.raises(ValueError, match=r"knows no op 'nonsense'; known are .*rms_norm"):
        amd_ops.explain("nonsense")


def test_an_unknown_arch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_probe", lambda: device.Device("cpu", "gfx90a", 104))
    amd_ops.refresh()
    with amd_ops.override(use_optimized_ops=1):
        explained = amd_ops.explain("silu_and_mul", torch.randn(2, 4))
    assert "gfx90a is not one of gfx942, gfx950" in explained.verdicts[0].reason


def test_a_bound_call_counts_who_declined_it_and_why() -> None:
    x, weight = torch.randn(2, 64), torch.randn(64)
    op = dispatch.ops["rms_norm"]
    assert isinstance(op, dispatch.Op)
    with fake_aiter("v0.1.20.post1", "gfx942", 304), amd_ops.override(use_optimized_ops=1, tiers="aiter,torch"):
        amd_ops.reset_counters()
        with pytest.warns(amd_ops.DeclinedWarning, match="float32 is neither"):
            bound = op.bound(x, weight, 1e-6, "llama")
        torch.testing.assert_close(
            bound.run(x, weight, 1e-6, "llama"), torch.nn.functional.rms_norm(x, (64,), weight, 1e-6)
        )
        bound.credit(3)
        (row,) = [row for row in amd_ops.report().as_dict()["ops"] if row["op"] == "rms_norm"]
        assert [(tier["tier"], tier["calls"]) for tier in row["tiers"] if tier["calls"]] == [("torch", 3)]
        (aiter,) = [tier for tier in row["tiers"] if tier["tier"] == "aiter"]
        assert [entry["calls"] for entry in aiter["declined"]] == [3]
    with (
        fake_aiter("v0.1.20.post1", "gfx942", 304),
        amd_ops.override(use_optimized_ops=1, tiers="aiter,torch", strict=1),
        pytest.raises(amd_ops.DeclinedError),
    ):
        op.bound(x, weight, 1e-6, "llama")


def test_a_bound_kernel_that_raises_is_out_and_the_chain_answers() -> None:
    x, weight = torch.randn(2, 64).bfloat16(), torch.randn(64).bfloat16()
    op = dispatch.ops["rms_norm"]
    assert isinstance(op, dispatch.Op)
    with (
        fake_aiter("v0.1.20.post1", "gfx942", 304) as double,
        amd_ops.override(use_optimized_ops=1, tiers="aiter,torch"),
        torch.no_grad(),
    ):
        bound = op.bound(x, weight, 1e-6, "llama")
        want = bound.run(x, weight, 1e-6, "llama")
        double.faults.raises["rmsnorm2d_fwd"] = RuntimeError("HIP error")
        amd_ops.reset_counters()
        with pytest.warns(amd_ops.DeclinedWarning, match="HIP error"):
            got = bound.run(x, weight, 1e-6, "llama")
        bound.credit(1)
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
        assert amd_ops.report().calls("rms_norm", "torch") == 1
        assert amd_ops.report().calls("rms_norm", "aiter") == 0
