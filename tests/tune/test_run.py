"""`tune run` from end to end, against a fake tuner program: no GPU is behind any number in here."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.tune.run.ab import Comparison

from .loaders import Loader
from .support import BF16, Answer, Cli, child_environment

HERE = Path(__file__).parent
HEAD = "M,N,K,bias,dtype,outdtype,scaleAB,bpreshuffle"


class Bench:
    """A session's folder: the plan of the fake tuner, the shapes, and the log of calls."""

    def __init__(self, folder: Path, tune: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.tune = folder, tune
        self.out = folder / "tuned.csv"
        self.log = folder / "calls.log"
        self.plan_file = folder / "plan.json"
        self.plan({})
        monkeypatch.setenv("FAKE_PLAN", str(self.plan_file))
        monkeypatch.setenv("FAKE_LOG", str(self.log))

    def plan(self, value: dict[str, Any]) -> None:
        self.plan_file.write_text(json.dumps(value))

    def shapes(self, *names: str) -> Path:
        path = self.folder / "untuned.csv"
        lines = [f"{name.replace('x', ',')},False,{BF16},{BF16},False,False" for name in names]
        path.write_text("\n".join([HEAD, *lines]) + "\n")
        return path

    def arguments(self, *more: object) -> list[object]:
        return [
            "run", "-o", self.out, "--shapes", self.folder / "untuned.csv", "--gpu", "gfx942:304",
            "--tuner", HERE / "fake_tuner.py", "--verifier", HERE / "fake_verifier.py", *more,
        ]  # fmt: skip

    def run(self, *more: object) -> Answer:
        return self.tune(*self.arguments(*more))

    def outcomes(self) -> dict[str, dict[str, Any]]:
        meta = json.loads((self.folder / "tuned.csv.meta.json").read_text())
        return {"x".join(map(str, o["shape"][:3])): o for o in meta["outcomes"]}

    def calls(self) -> list[str]:
        return [line.rsplit(" ", 1)[0] for line in self.log.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path, tune: Cli, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, tune, monkeypatch)


def test_only_right_rows_that_beat_the_default_are_kept(bench: Bench) -> None:
    plan = {
        "16x4096x4096": {"us": 10.0, "default_us": 20.0},
        "32x4096x4096": {"us": 19.5, "default_us": 20.0},
        "64x4096x4096": {"us": 2.0, "verify": "wrong"},
        "128x4096x4096": {"us": 2.0, "err": 0.3},
        "256x4096x4096": {"us": 0.001},
        "512x4096x4096": {"crash": "abort"},
        "1024x4096x4096": {"crash": "silent"},
        "2048x4096x4096": {"crash": "once", "us": 90.0, "default_us": 100.0},
        "4096x4096x4096": {"crash": "default", "us": 150.0},
        "8192x4096x4096": {"libtype": "torch", "us": 300.0, "default_us": 500.0},
        "16x512x512": {"gfx": "gfx950"},
        "32x512x512": {"us": 0.0},
        "64x512x512": {"verify": "crash"},
        "128x512x512": {"verify": "silent"},
        "256x512x512": {"us": -1},
    }
    bench.plan(plan)
    bench.shapes(*plan)
    answer = bench.run()
    assert answer.code == 0, answer.err
    found = {name: outcome["status"] for name, outcome in bench.outcomes().items()}
    assert found == {
        "16x4096x4096": "kept",
        "32x4096x4096": "no-gain",
        "64x4096x4096": "wrong",
        "128x4096x4096": "wrong",
        "256x4096x4096": "impossible",
        "512x4096x4096": "crashed",
        "1024x4096x4096": "crashed",
        "2048x4096x4096": "kept",
        "4096x4096x4096": "no-baseline",
        "8192x4096x4096": "no-gain",
        "16x512x512": "wrong",
        "32x512x512": "wrong",
        "64x512x512": "wrong",
        "128x512x512": "wrong",
        "256x512x512": "crashed",
    }
    reasons = {name: outcome["reason"] for name, outcome in bench.outcomes().items()}
    assert reasons["512x4096x4096"].startswith("killed by SIGABRT")
    assert "wrong product: error 0.5 against 0.01" in reasons["64x4096x4096"]
    assert "err_ratio 0.3" in reasons["128x4096x4096"]
    assert "above this device's 1307" in reasons["256x4096x4096"]
    assert "gfx950:304, not for gfx942:304" in reasons["16x512x512"]
    for name in ("512x4096x4096", "64x4096x4096", "256x4096x4096"):
        assert f"{name} bfloat16" in answer.out, "skipped shapes are reported"
    loader = Loader("v0.1.20.post1", "gfx942", 304)
    table = loader.load(bench.out)
    assert len(table) == 2
    assert loader.find(table, 16, 4096, 4096)["us"] == 10.0
    assert loader.find(table, 2048, 4096, 4096)["us"] == 90.0
    assert bench.tune("check", bench.out).code == 0


def test_resumes_after_sigkill(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = child_environment()
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])  # all runs are in one environment
    names = [f"{2**i}x512x512" for i in range(4, 10)]
    bench.plan({"*": {"sleep": 0.15}})
    bench.shapes(*names)
    command = [sys.executable, "-m", "rocm_overlay.tune", *map(str, bench.arguments())]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = bench.folder / "tuned.csv.session" / "session.jsonl"
    deadline = time.monotonic() + 30
    while not journal.exists() or journal.read_text().count("\n") < 3:
        assert time.monotonic() < deadline, "the session did not get anywhere"
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    time.sleep(0.4)  # the tuner that was running ends by itself
    assert not bench.out.exists()
    done = [tuple(json.loads(line)["shape"][:3]) for line in journal.read_text().splitlines()[1:]]
    assert 2 <= len(done) < len(names)
    journal.open("a").write('{"shape": [64, 51')  # the line that was being written
    bench.plan({})
    bench.log.unlink()
    answer = bench.run()
    assert answer.code == 0, answer.err
    again = {call.split(" ")[0] for call in bench.calls()}
    finished = {f"{m}x{n}x{k}" for m, n, k in done}
    assert again == set(names) - finished
    assert len(bench.outcomes()) == len(names)
    assert {outcome["status"] for outcome in bench.outcomes().values()} == {"kept"}
    assert answer.err.count("(from an earlier run)") == len(finished)
    bench.log.unlink()
    first = bench.out.read_bytes()
    answer = bench.run("--json")
    assert answer.code == 0
    assert (answer.json()["reused"]["parts"], answer.json()["reused"]["of"]) == (len(names), len(names))
    assert "6 of 6 shapes in" in answer.err
    assert not bench.log.exists(), "a finished session tunes nothing"
    assert bench.out.read_bytes() == first
    monkeypatch.setenv("HIP_FORCE_DEV_KERNARG", "1")
    answer = bench.run()
    assert (answer.code, "environment.HIP_FORCE_DEV_KERNARG was not set, is 1" in answer.err) == (2, True)
    assert bench.run("--fresh").code == 0
    assert {call.split(" ")[0] for call in bench.calls()} == set(names)


def test_another_setting_is_another_session(bench: Bench) -> None:
    bench.shapes("16x4096x4096")
    assert bench.run().code == 0
    before = bench.out.read_bytes()
    answer = bench.run("--margin", "10")
    assert answer.code == 2
    assert "is another session: plan.margin was 0.03, is 0.1" in answer.err
    assert bench.out.read_bytes() == before
    assert bench.run("--margin", "10", "--fresh").code == 0
    kept = bench.folder / "tuned.csv.session" / "notes.txt"
    kept.write_text("mine")
    assert bench.run("--margin", "5", "--restart").code == 0
    assert kept.exists(), "only what a session makes is removed"
    (bench.folder / "mine").mkdir()
    (bench.folder / "mine" / "thesis.tex").write_text("x")
    assert bench.run("--work", bench.folder / "mine", "--restart").code == 2
    assert (bench.folder / "mine" / "thesis.tex").exists()
    other = bench.folder / "mine" / "session.jsonl"
    other.write_text("not ours")
    answer = bench.run("--work", bench.folder / "mine")
    assert (answer.code, other.read_text()) == (2, "not ours")


def test_a_hanging_shape_is_cut_off_with_its_workers(bench: Bench) -> None:
    bench.plan({"16x4096x4096": {"sleep": 60}})
    bench.shapes("16x4096x4096", "32x4096x4096")
    started = time.monotonic()
    assert bench.run("--timeout", "0.5", "--retries", "0").code == 0
    assert time.monotonic() - started < 20
    statuses = [outcome["status"] for outcome in bench.outcomes().values()]
    assert statuses[0] == "timeout"


def test_all_shapes_failing_is_a_failure(bench: Bench) -> None:
    bench.plan({"*": {"crash": "abort"}})
    bench.shapes("16x4096x4096")
    answer = bench.run("--json")
    assert (answer.code, answer.json()["summary"]) == (1, {"crashed": 1})
    assert len(bench.calls()) == 2, "tried once more"


def test_the_users_table_does_not_reach_the_tuner(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITER_CONFIG_GEMM_BF16", "/some/table.csv")
    bench.shapes("16x4096x4096")
    assert bench.run().code == 0
    assert {line.split()[-1] for line in bench.log.read_text().splitlines()} == {"-"}


def test_shapes_of_a_model(bench: Bench) -> None:
    answer = bench.tune(
        "run", "-o", bench.out, "--config", "llama-3.2-1b", "--m-ladder", "16", "--gpu", "gfx942:304",
        "--tuner", HERE / "fake_tuner.py", "--verifier", HERE / "fake_verifier.py", "--json",
    )  # fmt: skip
    assert answer.code == 0
    assert answer.json()["rows"] == 5
    assert answer.json()["origin"]["fused"] == ["gate_up", "qkv"]
    assert "proves no gain" in answer.err


def test_progress_on_a_terminal(bench: Bench) -> None:
    bench.shapes("16x4096x4096", "32x4096x4096")
    main, other = pty.openpty()
    command = [sys.executable, "-m", "rocm_overlay.tune", *map(str, bench.arguments())]
    child = subprocess.Popen(command, env=child_environment(), stdout=subprocess.DEVNULL, stderr=other)
    os.close(other)
    seen = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        seen += part
    os.close(main)
    assert child.wait() == 0
    assert b"1/2" in seen
    assert b"-:--:--" in seen, "an estimate, as soon as there is one"
    line = rb"\x1b\[2K32x4096x4096 bfloat16: kept 10 us, default 20 us[^\r]*\r\n"
    assert re.search(line, seen), "each shape leaves its line"


def test_no_escape_codes_without_a_terminal(bench: Bench) -> None:
    bench.shapes("16x4096x4096")
    assert "\x1b" not in bench.run().err


AB = "import os, sys; fast = 'AITER_CONFIG_GEMM_BF16' in os.environ; print('tok/s:', {})"


@pytest.mark.parametrize(
    ("number", "verdict"),
    [("110 if fast else 100", "faster"), ("90 if fast else 100", "slower"), ("100", "no change")],
)
def test_the_ab_judges_by_intervals(bench: Bench, number: str, verdict: str) -> None:
    bench.shapes("16x4096x4096")
    command = f'{sys.executable} -c "{AB.format(number)}"'
    answer = bench.run("--ab", command, "--ab-metric", r"tok/s: (\d+)", "--ab-higher", "--ab-runs", "3", "--json")
    assert answer.code == 0, answer.err
    ab = answer.json()["ab"]
    assert (ab["verdict"], len(ab["without"]), len(ab["with"]), len(ab["without_again"])) == (verdict, 3, 3, 3)
    merged = bench.folder / "tuned.csv.session" / "ab.csv"
    assert len(Loader("v0.1.20.post1", "gfx942", 304).load(merged)) == 1


@pytest.mark.parametrize(
    ("ours", "again", "verdict"),
    [
        ((8.0, 11.0, 12.5), (10.1, 10.9, 12.0), "no change"),  # too scattered for three rounds
        ((9.0, 9.9, 10.8), (10.0, 11.0, 12.0), "faster"),  # a tenth in every round
        ((9.0, 9.9, 10.8), (8.0, 9.0, 9.5), "no change"),  # but the same command differs as much from itself
        ((8.0, 9.0, 9.9), (10.0, 11.0, 12.0), "faster"),
    ],
)
def test_a_gain_is_beyond_what_the_command_shows_against_itself(
    ours: tuple[float, ...], again: tuple[float, ...], verdict: str
) -> None:
    found = Comparison(("x",), "seconds", False, (10.0, 11.0, 12.0), ours, again)
    assert found.verdict == verdict
    inverse = [tuple(1 / value for value in side) for side in ((10.0, 11.0, 12.0), ours, again)]
    assert Comparison(("x",), "tok/s", True, *inverse).verdict == verdict


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ab", "false", "--ab-runs", "3"], "ended with status 1"),
        (["--ab", "echo 1", "--ab-runs", "2"], "too few to see noise"),
        (["--ab", "echo 'x"], "cannot be read"),
        (["--ab", "echo 1", "--ab-metric", "tok"], "one group"),
        (["--ab", "echo 1", "--ab-metric", "t=(.*)"], "printed no number"),
        (["--ab", "echo t=0", "--ab-metric", "t=(.*)"], "printed no number above 0"),
    ],
)
def test_bad_abs(bench: Bench, options: list[str], said: str) -> None:
    bench.shapes("16x4096x4096")
    answer = bench.run(*options)
    assert answer.code == 2
    assert said in answer.err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--margin", "100"], 2, "percentage"),
        (["--err-ratio", "nan"], 2, "--err-ratio"),
        (["--timeout", "nan"], 2, "--timeout"),
        (["--timeout", "inf"], 2, "--timeout"),
        (["--retries", "-1"], 2, "--retries at least 0"),
        (["--timeout", "0"], 2, "--timeout must be above 0"),
        (["--config", "llama-3.1-8b"], 2, "name one origin"),
        (["--tuner", "/no/such/tuner"], 9, "cannot start /no/such/tuner"),
    ],
)
def test_bad_options(bench: Bench, options: list[str], code: int, said: str) -> None:
    bench.shapes("16x4096x4096")
    answer = bench.run(*options)
    assert (answer.code, bench.out.exists()) == (code, False)
    assert said in answer.err


def test_the_tuner_of_an_installed_aiter_is_found(bench: Bench, tmp_path: Path) -> None:
    from .conftest import make_aiter

    bench.shapes("16x4096x4096")
    package = make_aiter(tmp_path / "site", [])
    common = [
        "run",
        "-o",
        bench.out,
        "--shapes",
        bench.folder / "untuned.csv",
        "--gpu",
        "gfx942:304",
        "--aiter",
        package,
    ]
    verifier = ["--verifier", HERE / "fake_verifier.py"]
    answer = bench.tune(*common, *verifier)
    assert answer.code == 9
    assert "brings no csrc/gemm_a16w16" in answer.err
    place = tmp_path / "site" / "csrc" / "gemm_a16w16"
    place.mkdir(parents=True)
    (place / "gemm_a16w16_tune.py").write_bytes((HERE / "fake_tuner.py").read_bytes())
    answer = bench.tune(*common, *verifier, "--json")
    assert answer.code == 0
    assert answer.json()["measured_with"]["aiter"] == "0.1.20.post1"


def test_verify_only(bench: Bench) -> None:
    bench.shapes("16x4096x4096", "32x4096x4096")
    assert bench.run().code == 0
    bench.plan({"32x4096x4096": {"verify": "wrong"}})
    answer = bench.run("--verify-only", bench.out, "--json")
    assert answer.code == 1
    assert [name.split(":")[0] for name in answer.json()["wrong"]] == ["line 3"]
    bench.plan({})
    assert bench.run("--verify-only", bench.out).code == 0


def test_the_numeric_check_tells_right_from_wrong() -> None:
    """The script's judgement on the CPU, with a right product and with kernels that leave something out."""
    torch = pytest.importorskip("torch")
    from rocm_overlay.tune.on_device.check_row import judge

    from amd_ops.tolerances import ROW_TIMES_DEFAULT as TIMES

    linear = torch.nn.functional.linear
    row = {"M": "32", "N": "64", "K": "256", "bias": "True", "dtype": BF16}
    assert judge(linear, row, "cpu", TIMES)["ok"] is True

    def short(x: Any, w: Any, b: Any) -> Any:
        return linear(x[:, :-8], w[:, :-8], b)

    def biasless(x: Any, w: Any, b: Any) -> Any:
        return linear(x, w)

    def stale(x: Any, w: Any, b: Any) -> Any:
        out = linear(x, w, b)
        out[-1] = 0
        return out

    def broken(x: Any, w: Any, b: Any) -> Any:
        return linear(x, w, b) * float("nan")

    for wrong in (short, biasless, stale, broken):
        assert judge(wrong, row, "cpu", TIMES)["ok"] is False, wrong.__name__


@pytest.mark.full
def test_a_ray_cluster_tunes_what_is_missing(bench: Bench) -> None:
    pytest.importorskip("ray", reason="the [ray] extra is not installed")
    plan = {f"{m}x4096x4096": {"us": 10.0, "default_us": 20.0} for m in (16, 32)}
    bench.plan({**plan, "64x4096x4096": {"us": 19.9}})
    bench.shapes("16x4096x4096")
    assert bench.run().code == 0
    before = len(bench.calls())
    bench.shapes(*plan, "64x4096x4096")
    answer = bench.run("--executor", "ray")
    assert answer.code == 0, answer.err
    assert {name: one["status"] for name, one in bench.outcomes().items()} == {
        "16x4096x4096": "kept", "32x4096x4096": "kept", "64x4096x4096": "no-gain",
    }  # fmt: skip
    assert not [call for call in bench.calls()[before:] if call.startswith("16x")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--executor", "slurm"), "--executor is 'slurm'"), (("--workers", "2"), "disturb each other's times")],
)
def test_an_executor_that_cannot_be_is_refused(bench: Bench, arguments: tuple[str, ...], said: str) -> None:
    bench.shapes("16x4096x4096")
    answer = bench.run(*arguments)
    assert answer.code == 2
    assert said in answer.err
