"""`overlay qualify` from end to end on a CPU, with doubles for kernels: good, slow, wrong, fatal and endless ones."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rocm_overlay.install.transaction.errors import UsageError, WriteError
from rocm_overlay.verify.qualify import capture, child, choose, command, document, steps
from rocm_overlay.verify.qualify.codec import FrozenCache, Unsaveable, decode, encode
from rocm_overlay.verify.qualify.session import Session

import amd_ops
from amd_ops import profile
from examples.tiny_models import save_tiny

DOUBLES = "rms_norm=fast,apply_rope=slow,linear=wrong,silu_and_mul=crash,attention=hang"
HERE = Path(__file__).parent


class Outcome:
    """What the interrupted run and the one after it left."""

    content: dict[str, Any]
    said: list[str]
    kept_before: list[str]
    captures_before: dict[Path, int]
    output: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """One qualification that is killed after three results, then started again."""
    folder = tmp_path_factory.mktemp("qualify")
    model = save_tiny("llama", folder / "llama")
    found = Outcome()
    found.output, found.said = folder / "profile.json", []
    options = command.Options(
        model, found.output, python=sys.executable, dtype="float32", time_limit=30.0, build_limit=12.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVERLAY_TEST_DOUBLES", DOUBLES)
        patch.setenv("PYTHONPATH", os.pathsep.join((str(HERE / "doubles"), os.environ.get("PYTHONPATH", ""))))
        patch.setenv("AMD_OPS_PROFILES", str(folder / "auto"))
        with pytest.MonkeyPatch.context() as killed:
            keep = Session.keep

            def until_killed(self: Session, result: dict[str, Any]) -> None:
                keep(self, result)
                if len(self.results) == 3:
                    raise KeyboardInterrupt

            killed.setattr(Session, "keep", until_killed)
            with pytest.raises(KeyboardInterrupt):
                command.qualify(options, lambda text: None)
        work = found.output.with_name("profile.work")
        (work / "captures" / "half.safetensors.partial").write_bytes(b"what a killed capture leaves")
        found.kept_before = [json.loads(line)["id"] for line in (work / "results.jsonl").read_text().splitlines()[1:]]
        found.captures_before = {path: path.stat().st_mtime_ns for path in (work / "captures").glob("*.safetensors")}
        found.content = command.qualify(options, found.said.append)
        yield found


def results(done: Outcome) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in done.content["verdicts"]["candidates"]}


def test_the_plan_comes_first_and_a_killed_run_is_taken_up(done: Outcome) -> None:
    first = [line.split()[0] for line in done.said]
    assert first.index("plan") < min(index for index, line in enumerate(done.said) if "@" in line)
    assert "supply       rms_norm on triton: offered" in done.said
    assert "demand       attention in LlamaAttention.forward" in done.said
    assert any("3 candidates of an interrupted run are taken up" in line for line in done.said)
    assert not any(line.startswith("captured ") for line in done.said), "captured again"
    for name in done.kept_before:
        assert not any(line.startswith(f"{name}:") for line in done.said), "a finished candidate ran again"
    work = done.output.with_name("profile.work")
    now = {path: path.stat().st_mtime_ns for path in (work / "captures").glob("*.safetensors")}
    assert now == done.captures_before
    assert not list(work.rglob("*.partial"))


def test_right_and_fast_is_enabled_right_and_slow_is_not(done: Outcome) -> None:
    found = results(done)
    fast = found["rms_norm@LlamaRMSNorm.forward@rms_norm:triton"]
    assert fast["status"] == "valid"
    assert choose.is_faster(fast), fast
    assert all(item["stock_us"] > 0 and item["candidate_us"] > 0 for item in fast["timings"])
    slow = found["rope@apply_rotary_pos_emb@apply_rope:triton"]
    assert slow["status"] == "valid"
    assert all(item["interval"][0] > 1.0 for item in slow["timings"])
    tiers = dict(part.split("=") for part in done.content["toggles"]["AMD_OPS_OP_TIERS"].split(";"))
    assert tiers["rms_norm"] == "triton,torch,eager"
    assert tiers["apply_rope"] == "torch,eager"
    assert done.content["verdicts"]["switches"]["rms_norm"] == "enabled"
    assert done.content["end_to_end"][-1]["status"] == "ok"


def test_wrong_is_rejected_with_numbers(done: Outcome) -> None:
    wrong = results(done)["linear@LlamaAttention.forward@linear:triton"]
    assert wrong["status"] == "wrong"
    assert "from stock, allowed 2e-05" in wrong["reason"]
    assert 0.003 < wrong["max_rel"] < 0.02


def test_crashing_and_hanging_are_survived(done: Outcome) -> None:
    found = results(done)
    crashed = found["gated_mlp@LlamaMLP.forward@silu_and_mul:triton"]
    assert (crashed["status"], "status -11" in crashed["reason"]) == ("crashed", True)
    hung = found["attention@LlamaAttention.forward@attention:triton"]
    assert (hung["status"], hung["reason"].startswith("no answer for 12 s")) == ("hung", True)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    run = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(run, env=env, capture_output=True, text=True, check=False)


USE = "import torch, amd_ops; amd_ops.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-6); print(amd_ops.report())"


@pytest.mark.parametrize("how", ["auto", "file"])
def test_the_profile_decides_and_the_report_shows_it(done: Outcome, how: str) -> None:
    found = python(
        USE + "; print(amd_ops.on)",
        AMD_OPS="auto" if how == "auto" else str(done.output),
        AMD_OPS_PROFILES=str(done.output.parent / "auto"),
        OVERLAY_TEST_DOUBLES=DOUBLES,
        PYTHONPATH=str(HERE / "doubles"),
    )
    assert found.returncode == 0, found.stderr
    row = next(line.split() for line in found.stdout.splitlines() if " triton " in line)
    assert row[:2] == ["triton", "1"] or row[:3] == ["rms_norm", "triton", "1"]
    assert f"profile {done.output if how == 'file' else done.output.parent / 'auto' / 'cpu.json'}" in found.stdout
    assert "rms_norm=True" in found.stdout
    for switch, verdict in done.content["verdicts"]["switches"].items():
        assert f"{switch}={verdict == 'enabled'}" in found.stdout


def test_a_toggle_set_by_hand_wins_over_what_the_profile_holds_back(done: Outcome, monkeypatch: Any) -> None:
    monkeypatch.setenv("AMD_OPS", str(done.output))
    monkeypatch.setenv("USE_AITER_GEMM", "1")
    try:
        settings = amd_ops.refresh()
        assert amd_ops.on.linear
        assert settings.tiers_of("linear") == settings.tiers
        assert settings.tiers_of("apply_rope") == ("torch", "eager")
    finally:
        monkeypatch.undo()
        amd_ops.refresh()


@pytest.mark.parametrize("name", ["device", "torch", "aiter", "overlay", "amd_ops", "transformers"])
def test_a_profile_of_another_machine_is_refused_with_the_reason(done: Outcome, name: str, tmp_path: Path) -> None:
    content = json.loads(done.output.read_text())
    content["qualified"][name] = "another"
    content["digest"] = profile.digest(content)
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(content))
    with pytest.raises(amd_ops.ToggleError, match=f"qualified with {name} 'another'"), amd_ops.override(profile=path):
        pytest.fail("entered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMD_OPS_PROFILES", str(tmp_path))
        with amd_ops.override(profile="auto") as settings:
            assert f"is not used: it is a file that was qualified with {name}" in settings.profile_note
            assert f"qualified with {name}" in str(amd_ops.report())


def test_a_profile_edited_by_hand_is_refused(done: Outcome, tmp_path: Path) -> None:
    content = json.loads(done.output.read_text())
    # What was timed decides whether it is on: either way the file then says something else.
    content["toggles"]["USE_AITER_GEMM"] = not content["toggles"].get("USE_AITER_GEMM")
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(content))
    with pytest.raises(amd_ops.ToggleError, match="was changed after"), amd_ops.override(profile=path):
        pytest.fail("entered")
    assert document.digest(content) == profile.digest(content), "both sides must hash alike"


def test_one_pytest_file_per_compute_that_passes(done: Outcome) -> None:
    tests = [Path(path) for path in done.content["tests"]]
    assert len(tests) == len({f"{item['point']}" for item in json.loads(
        (done.output.with_name("profile.work") / "replay.json").read_text())["points"]})  # fmt: skip
    (chosen,) = [path for path in tests if "RMSNorm" in path.name]
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(chosen)]
    env = {**os.environ, "OVERLAY_TEST_DOUBLES": DOUBLES, "PYTHONPATH": str(HERE / "doubles")}
    found = subprocess.run(run, cwd=done.output.parent, env=env, capture_output=True, text=True, check=False)
    assert "1 passed" in found.stdout, found.stdout + found.stderr


def test_warmup_times_every_first_call(done: Outcome) -> None:
    found = command.warm(done.output, sys.executable)
    by_op = {(item["op"], item["tier"]): item for item in found["ops"]}
    assert by_op["rms_norm", "triton"]["first_call_s"] > 0
    assert {item["place"] for item in found["places"]} >= {"LlamaRMSNorm.forward", "LlamaMLP.forward"}


def test_warmup_without_captures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        command.warm(tmp_path / "profile.json")


# -- pieces


def test_what_cannot_be_kept_is_named() -> None:
    with pytest.raises(Unsaveable, match="a range"):
        encode([1, range(3)], {}, None)


def test_arguments_come_back_as_they_were() -> None:
    tensors: dict[str, torch.Tensor] = {}
    value = [(torch.ones(2), None), {"flag": True, "scale": 0.5}, "text"]
    back = decode(json.loads(json.dumps(encode(value, tensors, None))), tensors)
    assert torch.equal(back[0][0], torch.ones(2))
    assert back[1:] == [{"flag": True, "scale": 0.5}, "text"]


def test_a_frozen_cache_starts_from_the_same_prefix_every_time() -> None:
    cache = FrozenCache(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    new = torch.ones(1, 1, 1, 4)
    for _ in range(2):
        keys, _values = cache.update(new, new, 0)
        assert keys.shape == (1, 1, 3, 4)


def test_a_disk_that_fills_leaves_no_part_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        capture._write(tmp_path / "x.safetensors", {}, {})
    assert list(tmp_path.iterdir()) == []
    session = Session(None, tmp_path, False, [], "float32", tmp_path)  # type: ignore[arg-type]

    def failing(session: Session, do: str, on_event: Any, **options: Any) -> None:
        on_event({"event": "failed", "message": "OSError: [Errno 28] No space left on device"})

    monkeypatch.setattr(child, "run", failing)
    with pytest.raises(WriteError, match="the disk filled"):
        steps.capture(session, 1, lambda text: None)
    assert not session.captured


def test_the_size_cap_is_honoured_and_told(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    recorder = capture.Recorder(tmp_path, 100, lambda event, **values: told.append({"event": event, **values}))
    recorder.save("f", None, "", ([], {"t0": torch.zeros(1000)}), torch.zeros(1))
    assert told[0]["event"] == "not-captured"
    assert "size cap" in told[0]["reason"]
    assert not list(tmp_path.iterdir())


def timed(low: float, high: float) -> dict[str, Any]:
    return {"status": "valid", "timings": [{"ratio": (low + high) / 2, "interval": [low, high]}]}


@pytest.mark.parametrize(
    ("result", "faster"),
    [
        (timed(0.5, 0.9), True),
        (timed(0.9, 1.1), False),
        (timed(1.1, 1.2), False),
        ({"status": "wrong", "timings": [{"ratio": 0.5, "interval": [0.4, 0.6]}]}, False),
        ({"status": "valid", "timings": []}, False),
    ],
)
def test_faster_means_beyond_doubt(result: dict[str, Any], faster: bool) -> None:
    assert choose.is_faster(result) is faster


def test_an_op_that_is_wrong_at_one_place_is_used_nowhere() -> None:
    items = [{"id": f"p{n}@x:aiter", "point": f"p{n}", "op": "x", "tier": "aiter"} for n in range(2)]
    found = {"p0@x:aiter": timed(0.2, 0.3), "p1@x:aiter": {"status": "wrong"}, "p0@base": timed(0.9, 1.0)}
    assert choose.choose_tiers(["x"], items, found).op_tiers == {"x": ("torch", "eager")}
    found["p1@x:aiter"] = {"status": "declined"}
    assert choose.choose_tiers(["x"], items, found).op_tiers == {"x": ("aiter", "torch", "eager")}


@pytest.mark.parametrize("limit", ["max_capture", "time_limit", "build_limit"])
def test_limits_must_be_positive(limit: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not positive"):
        command.qualify(command.Options(tmp_path, **{limit: 0.0}), lambda text: None)
