"""`overlay qualify` from end to end on a CPU, with doubles for kernels: good, slow, wrong, fatal and endless ones."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rocm_overlay.console import Steps
from rocm_overlay.errors import UsageError, WriteError
from rocm_overlay.verify.qualify import capture, child, choose, command, document, replay, steps
from rocm_overlay.verify.qualify.codec import Unsaveable, decode, encode
from rocm_overlay.verify.qualify.session import Session

import amd_ops
from amd_ops import profile, tolerances
from examples.tiny_models import save_tiny
from tests.doubles.aiter import fake_aiter

DOUBLES = "rms_norm=fast,apply_rope=slow,linear=wrong,silu_and_mul=crash,attention=hang,add_rms_norm=same"
HERE = Path(__file__).parent
CAPTURING = "capturing the calls of stock"


class Bars:
    """What a terminal would be shown: for each bar what is done, how many steps there are, and how many were made."""

    def __init__(self, seen: list[tuple[str, int, int]], said: list[str]) -> None:
        self.seen, self.said = seen, said

    @contextmanager
    def __call__(self, total: int, first: str, *, done: int = 0, keep: bool = False) -> Iterator[Steps]:
        steps = Steps(total, done, (lambda text, *_: self.said.append(text)) if keep else None)
        yield steps
        self.seen.append((first, steps.total, steps.done))


class Outcome:
    """What the interrupted run and the one after it left."""

    content: dict[str, Any]
    said: list[str]
    kept_before: list[str]
    captures_before: dict[Path, int]
    output: Path
    model: Path
    bars: list[tuple[str, int, int]]
    order: list[Path]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """One qualification that is killed after three results, then started again."""
    folder = tmp_path_factory.mktemp("qualify")
    model = save_tiny("llama", folder / "llama")
    found = Outcome()
    found.output, found.said, found.model, found.order = folder / "profile.json", [], model, []
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
            found.bars = []
            with pytest.raises(KeyboardInterrupt):
                command.qualify(options, lambda text: None, Bars(found.bars, []))
        work = found.output.with_name("profile.work")
        (work / "captures" / "half.safetensors.partial").write_bytes(b"what a killed capture leaves")
        found.kept_before = [json.loads(line)["id"] for line in (work / "results.jsonl").read_text().splitlines()[1:]]
        found.captures_before = {path: path.stat().st_mtime_ns for path in (work / "captures").glob("*.safetensors")}
        with pytest.MonkeyPatch.context() as watched:
            written, write = found.order, document.write
            watched.setattr(document, "write", lambda path, text: (written.append(path), write(path, text)))
            found.content = command.qualify(options, found.said.append, Bars(found.bars, found.said))
        yield found


def results(done: Outcome) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in done.content["verdicts"]["candidates"]}


def test_the_plan_comes_first_and_a_killed_run_is_taken_up(done: Outcome) -> None:
    first = [line.split()[0] for line in done.said]
    assert first.index("plan") < min(index for index, line in enumerate(done.said) if "@" in line)
    assert "supply       rms_norm on triton: offered" in done.said
    assert "demand       attention in LlamaAttention.forward" in done.said
    assert any("3 results of an earlier run on the same subject are used" in line for line in done.said)
    for name in done.kept_before:
        assert not any(line.startswith(f"{name}:") for line in done.said), "a finished candidate ran again"
    assert json.loads((done.output.with_name("profile.work") / "plan.json").read_text())["points"]
    work = done.output.with_name("profile.work")
    now = {path: path.stat().st_mtime_ns for path in (work / "captures").glob("*.safetensors")}
    assert now == done.captures_before
    assert not list(work.rglob("*.partial"))


def test_every_long_step_has_a_bar_that_gets_to_its_end(done: Outcome) -> None:
    bars: dict[str, list[tuple[int, int]]] = {}
    for first, total, made in done.bars:
        bars.setdefault(first, []).append((total, made))
    (asked, *_), ((places, captured),) = bars.pop("asking what this machine supplies"), bars.pop(CAPTURING)
    assert asked == (1, 0)
    assert 0 < captured <= places, "a place that is not used has no call"
    ((most, compared),) = bars.pop("running the whole model")
    assert 0 < compared <= most, "a case that is of no use for this model is left out"
    assert set(bars) == {"replaying the calls", "timing the whole model"}
    for first, seen in bars.items():
        assert [made for _, made in seen] == [total for total, _ in seen], first


def test_right_and_fast_is_enabled_right_and_slow_is_not(done: Outcome) -> None:
    found = results(done)
    fast = found["rms_norm@LlamaRMSNorm.forward@rms_norm:triton"]
    assert fast["status"] == "valid"
    tests = choose.comparisons(found)
    assert tests > len(fast["timings"])
    assert choose.is_faster(fast, tests), fast
    assert all(item["stock_us"] > 0 and item["candidate_us"] > 0 for item in fast["timings"])
    slow = found["rope@apply_rotary_pos_emb@apply_rope:triton"]
    assert slow["status"] == "valid"
    assert {verdict.outcome for verdict in choose.verdicts(slow, tests)} == {"slower"}
    assert {len(arm) for item in slow["timings"] for arm in item["rounds_us"].values()} == {replay.ROUNDS}
    tiers = dict(part.split("=") for part in done.content["toggles"]["AMD_OPS_OP_TIERS"].split(";"))
    assert tiers["rms_norm"] == "triton,torch,eager"
    assert tiers["apply_rope"] == "torch,eager"
    assert done.content["verdicts"]["switches"]["rms_norm"] == "enabled"
    assert done.content["end_to_end"][-1]["status"] == "ok"


def test_what_takes_as_long_as_before_is_not_chosen_whatever_the_noise_says(done: Outcome) -> None:
    found = [item for name, item in results(done).items() if name.endswith("@add_rms_norm:triton")]
    assert found
    for item in found:
        judged = choose.verdicts(item, choose.comparisons(results(done)), choose.BASE_TIERS)
        assert {verdict.outcome for verdict in judged} == {"same"}, item
    tiers = dict(part.split("=") for part in done.content["toggles"]["AMD_OPS_OP_TIERS"].split(";"))
    assert tiers["add_rms_norm"] == "torch,eager"


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
    assert row[:4] == ["rms_norm", "triton", "ran", "1"]
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


def test_a_profile_of_another_number_of_ranks_says_so(done: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    for size, told in (("1", ""), ("4", "qualified with 1 rank, and this process is one of 4")):
        monkeypatch.setenv("WORLD_SIZE", size)
        with amd_ops.override(profile=done.output) as settings:
            assert told in settings.profile_note
            assert ("shards" in str(amd_ops.report())) == bool(told)
    with pytest.raises(UsageError, match="not one of 4"):
        command.qualify(command.Options(done.model), lambda text: None)


def test_a_profile_edited_by_hand_is_refused(done: Outcome, tmp_path: Path) -> None:
    content = json.loads(done.output.read_text())
    # What was timed decides whether it is on: either way the file then says something else.
    content["toggles"]["USE_AITER_GEMM"] = not content["toggles"].get("USE_AITER_GEMM")
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(content))
    with pytest.raises(amd_ops.ToggleError, match="was changed after"), amd_ops.override(profile=path):
        pytest.fail("entered")
    assert document.digest(content) == profile.digest(content), "both sides must hash alike"


def pytest_of(done: Outcome) -> subprocess.CompletedProcess[str]:
    folder = Path(done.content["tests"][0]).parent
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    env = {**os.environ, "OVERLAY_TEST_DOUBLES": DOUBLES, "PYTHONPATH": str(HERE / "doubles")}
    return subprocess.run(run, cwd=done.output.parent, env=env, capture_output=True, text=True, check=False)


def test_one_pytest_file_per_compute_that_is_enabled_and_all_pass(done: Outcome) -> None:
    tests = [Path(path) for path in done.content["tests"]]
    work = done.output.with_name("profile.work")
    points = json.loads((work / "replay.json").read_text())["points"]
    assert len(tests) == len({item["point"] for item in points})
    enabled = {name for name, verdict in done.content["verdicts"]["switches"].items() if verdict == "enabled"}
    assert {item["switch"] for item in points} <= enabled
    found = pytest_of(done)
    assert f"{len(tests)} passed" in found.stdout, found.stdout + found.stderr


def test_the_tests_of_a_stale_profile_say_so(done: Outcome) -> None:
    path = done.output.with_name("profile.work") / "replay.json"
    kept = path.read_text()
    content = json.loads(kept)
    content["machine"]["torch"] = "1.0"
    path.write_text(json.dumps(content))
    try:
        found = pytest_of(done)
    finally:
        path.write_text(kept)
    assert found.returncode == 1
    assert "stale: qualified with torch '1.0', here it is" in found.stdout
    assert "qualify --fresh" in found.stdout


def test_what_is_qualified_already_is_not_run_again(done: Outcome) -> None:
    said: list[str] = []
    options = command.Options(done.model, done.output, python=sys.executable, dtype="float32")
    before = done.output.read_bytes()
    again = command.qualify(options, said.append)
    assert again["reused"] is True
    assert "already (complete)" in said[0]
    assert "--fresh" in said[1]
    assert len(said) == 2
    assert done.output.read_bytes() == before


def test_the_profile_is_written_last_so_that_a_stopped_run_is_never_taken_for_a_finished_one(done: Outcome) -> None:
    default = profile.default_path()
    assert done.order[-2:] == [done.output, default]
    assert done.order.index(done.output.with_name("profile_apply.py")) > 0
    assert done.output.with_name("profile.work") / "replay.json" in done.order
    assert [str(path) for path in document.tests_of(done.output)] == sorted(done.content["tests"])


def test_what_is_qualified_already_is_registered_where_it_is_not_yet(done: Outcome) -> None:
    default = profile.default_path()
    default.unlink()
    options = command.Options(done.model, done.output, python=sys.executable, dtype="float32", register=False)
    assert command.qualify(options, lambda text: None)["written"] == [str(done.output)]
    assert not default.exists()
    again = command.qualify(dataclasses.replace(options, register=True), lambda text: None)
    assert again["reused"]
    assert again["written"] == [str(done.output), str(default)]
    assert again["tests"] == sorted(done.content["tests"])
    assert default.read_bytes() == done.output.read_bytes()


def test_a_dry_run_leaves_everything_as_it_is(done: Outcome) -> None:
    def there() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in done.output.parent.rglob("*") if "scratch" not in path.parts}

    before = there()
    for fresh, dtype, output in ((False, "bfloat16", done.output), (True, "float32", done.output),
                                 (False, "float32", done.output.with_name("new.json"))):  # fmt: skip
        options = command.Options(done.model, output, python=sys.executable, dtype=dtype, dry_run=True, fresh=fresh)
        assert command.qualify(options, lambda text: None)["plan"]["points"]
        assert there() == before


def test_every_place_is_captured_and_the_run_is_complete(done: Outcome) -> None:
    assert done.content["complete"] is True
    assert done.content["left_out"] == {}
    places = set(done.content["capture"]["places"])
    assert {"modeling_llama.LlamaDecoderLayer.forward", "modeling_llama.LlamaForCausalLM.forward"} <= places
    found = results(done)
    assert "linear_add" in found["mlp_add@LlamaDecoderLayer.forward@base"]["ran"]
    assert found["add_norm@LlamaDecoderLayer.forward@base"]["ran"]["add_rms_norm"] == ["torch"]
    assert found["qk_rope@LlamaAttention.forward@base"]["ran"]["rope_into_cache"] == ["torch"], "no static cache"
    assert any(line.startswith("complete ") for line in done.said)


def test_a_function_with_one_boolean_per_verified_compute_is_written(done: Outcome) -> None:
    path = done.output.with_name("profile_apply.py")
    assert str(path) in done.content["written"]
    space: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    parameters = inspect.signature(space["apply_overlay_kernels_to_llama"]).parameters
    enabled = {name for name, verdict in done.content["verdicts"]["switches"].items() if verdict == "enabled"}
    places = {"add_norm", "attention", "gated_mlp", "linear", "mlp_add", "qk_rope", "qkv", "rms_norm", "rope"}
    assert set(parameters) == places, "every compute of llama is right with the chosen tiers"
    assert {name for name, one in parameters.items() if one.default} == enabled & places
    changed = space["apply_overlay_kernels_to_llama"](**dict.fromkeys(places - {"rms_norm"}, False), rms_norm=True)
    assert changed == ["LlamaRMSNorm.forward: rms_norm"]
    assert space["revert_overlay_kernels_from_llama"]()


def test_the_whole_model_is_measured_with_and_without(done: Outcome) -> None:
    whole = done.content["whole"]
    assert set(whole["arms"]) >= {"stock", "stock again", "profile"}
    assert whole["arms"]["profile"]["launches"] < whole["arms"]["stock"]["launches"]
    assert whole["arms"]["profile"]["tokens"] == whole["arms"]["stock"]["tokens"]
    assert any("plain toggles are no profile: " in line for line in whole["decisions"]), "some candidate is wrong"


def test_warmup_times_every_first_call(done: Outcome) -> None:
    bars: list[tuple[str, int, int]] = []
    found = command.warm(done.output, sys.executable, Bars(bars, []))
    assert bars == [("building and loading kernels", len(found["places"]), len(found["places"]))]
    by_op = {(item["op"], item["tier"]): item for item in found["ops"]}
    assert by_op["rms_norm", "triton"]["first_call_s"] > 0
    points = json.loads((done.output.with_name("profile.work") / "replay.json").read_text())["points"]
    assert {item["place"] for item in found["places"]} == {item["place"]["qualname"] for item in points}


def test_warmup_without_captures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot use"):
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
        steps.capture(session, 1, steps.unwatched(lambda text: None))
    assert not session.captured


def test_the_size_cap_is_honoured_and_told(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    recorder = capture.Recorder(tmp_path, 100, lambda event, **values: told.append({"event": event, **values}))
    recorder.save("f", {}, {"t0": torch.zeros(1000)}, {})
    assert told[0]["event"] == "not-captured"
    assert "size cap" in told[0]["reason"]
    assert not list(tmp_path.iterdir())


def timed(*times: float, status: str = "valid", base: float = 1.0) -> dict[str, Any]:
    """A result with one timed call for each of ``times``, over a stock of 1 and the tiers that always work at ``base``.

    The times scatter by 2 %, the same in every test.
    """
    draw = random.Random(0)

    def rounds(time: float) -> list[float]:
        return [time * draw.gauss(1, 0.02) for _ in range(replay.ROUNDS)]

    arms = [{choose.STOCK: 1.0, choose.AGAIN: 1.0, choose.CANDIDATE: time, choose.BASE_TIERS: base} for time in times]
    told = [{name: rounds(time) for name, time in one.items()} for one in arms]
    return {
        "status": status,
        "timings": [{"ratio": time, "rounds_us": one} for time, one in zip(times, told, strict=True)],
    }


@pytest.mark.parametrize(
    ("result", "faster"),
    [
        (timed(0.9), True),
        (timed(0.9, 1.0), True),
        (timed(0.9, 1.2), False),
        (timed(1.0), False),
        (timed(0.99), False),
        (timed(1.2), False),
        (timed(0.5, status="wrong"), False),
        (timed(), False),
    ],
)
def test_faster_means_beyond_the_noise(result: dict[str, Any], faster: bool) -> None:
    assert choose.is_faster(result, tests=40) is faster


def test_an_op_that_is_wrong_at_one_place_is_used_nowhere() -> None:
    items = [{"id": f"p{n}@x:aiter", "point": f"p{n}", "op": "x", "tier": "aiter"} for n in range(2)]
    found = {"p0@x:aiter": timed(0.3), "p1@x:aiter": timed(0.3, status="wrong"), "p0@base": timed(0.9)}
    assert choose.choose_tiers(["x"], items, found).op_tiers == {"x": ("torch", "eager")}
    found["p1@x:aiter"] = {"status": "declined"}
    assert choose.choose_tiers(["x"], items, found).op_tiers == {"x": ("aiter", "torch", "eager")}


def test_a_tier_has_to_beat_the_tiers_that_always_work_and_the_best_one_is_taken() -> None:
    items = [{"id": f"p@x:{tier}", "point": "p", "op": "x", "tier": tier} for tier in ("aiter", "triton")]
    found = {"p@base": timed(0.5), "p@x:aiter": timed(0.5, base=0.5), "p@x:triton": timed(0.5, base=0.5)}
    assert choose.choose_tiers(["x"], items, found).op_tiers == {"x": ("torch", "eager")}, "faster than stock alone"
    found["p@x:aiter"], found["p@x:triton"] = timed(0.4, base=0.5), timed(0.3, base=0.5)
    assert choose.choose_tiers(["x"], items, found).op_tiers == {"x": ("triton", "torch", "eager")}


def test_a_switch_that_stays_at_stock_is_told_in_plain_words() -> None:
    choice = choose.Choice()
    points = [{"id": name, "switch": name} for name in ("rope", "qkv", "linear")]
    found = {"rope": timed(0.98), "qkv": timed(0.5, 1.3), "linear": timed(0.5)}
    choose.settle(choice, points, found, ["rope", "qkv", "linear"])
    assert choice.stock == {
        "rope": "no faster than stock as far as can be measured here (0.98 of its time)",
        "qkv": "slower than stock in 1 of 2 calls (up to 1.31 of its time)",
    }


@pytest.mark.parametrize("limit", ["max_capture", "time_limit", "build_limit"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_limits_must_be_positive(limit: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not positive"):
        command.qualify(command.Options(tmp_path, **{limit: value}), lambda text: None)


@pytest.mark.parametrize(("arch", "factor"), [("gfx942", 2.0), ("gfx950", 1.0)])
def test_where_aiters_kernels_cut_a_call_may_be_off_by_a_whole_step(arch: str, factor: float) -> None:
    with fake_aiter("v0.1.20.post1", arch, 304):
        limits = replay._allowed({"use_optimized_ops": "1"})
        plain = replay._allowed({"tiers": "triton,torch,eager"})
        assert plain[torch.bfloat16] == tolerances.tolerance(tolerances.ONE_CALL, "bfloat16").relative
        assert limits == {**plain, torch.bfloat16: factor * plain[torch.bfloat16]}
    assert replay._allowed({}) == plain
