"""The clients against a real server on the loopback that answers well, with garbage, 429, 500, and slowly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.errors import TargetError, UsageError
from rocm_overlay.synth import providers, settings
from rocm_overlay.synth.providers.base import Feedback, Pace, ProviderError, Retry, Transient, retry_after
from rocm_overlay.synth.sampler import catalogue
from rocm_overlay.synth.sampler.compose import compose
from rocm_overlay.synth.sampler.plan import Counts, Plan, sample

from .support import Script, chat, journal, program, serve, synth

LISTS = catalogue.load()
PLAN = sample(LISTS, Counts((1, 1), (1, 1), (2, 2)), 5)
KEY = "sk-never-shown"


@pytest.fixture
def server() -> Iterator[Script]:
    yield from serve()


def candidate(text: str) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": text}]}
    usage = {"promptTokenCount": 100, "candidatesTokenCount": 50}
    return {"candidates": [{"content": content, "finishReason": "STOP"}], "usageMetadata": usage}


GOOD = (200, chat("```python\nx = 1\n```"))
ERROR = {"error": {"message": "no", "code": 500, "status": "INTERNAL"}}


def make(server: Script, monkeypatch: pytest.MonkeyPatch, name: str = "openai", **more: Any) -> Any:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    url = server.url if name == "gemini" else f"{server.url}/v1"
    made = providers.make(settings.make(model_name=name, **{"llm_model": "m", "base_url": url, **more}), LISTS)
    naps: list[float] = []
    made._retry.sleep = naps.append  # type: ignore[attr-defined]
    return made, naps


def test_a_good_answer_is_accounted_for(server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    server.steps = [GOOD]
    provider, _ = make(server, monkeypatch, price_in=2.0, price_out=10.0, temperature=0.3)
    reply = provider.generate(PLAN)
    assert (reply.input_tokens, reply.output_tokens, reply.requests) == (100, 50, 1)
    assert reply.cost == pytest.approx(0.0007)
    sent = server.seen[0]
    assert (sent["path"], sent["model"], sent["temperature"]) == ("/v1/chat/completions", "m", 0.3)
    for one in PLAN.operators:
        assert one.name in sent["messages"][1]["content"]
    assert PLAN.label in sent["messages"][1]["content"]
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("name", ["openai", "gemini"])
def test_429_and_500_are_tried_again(server: Script, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    good = (200, candidate("x = 1")) if name == "gemini" else GOOD
    server.steps = [(429, ERROR, ("retry-after", "7")), (500, ERROR), good]
    provider, naps = make(server, monkeypatch, name)
    reply = provider.generate(PLAN)
    assert (reply.requests, len(naps)) == (3, 2)
    assert (reply.input_tokens, reply.output_tokens) == (100, 50)
    assert naps[0] == 7.0
    assert 0.5 <= naps[1] <= 1.0
    assert server.keys[0].removeprefix("Bearer ") == KEY


def test_a_server_that_never_recovers_is_given_up(server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    server.steps = [(500, ERROR)]
    provider, naps = make(server, monkeypatch)
    with pytest.raises(ProviderError, match=r"status 500 \(6 tries\)"):
        provider.generate(PLAN)
    assert naps == sorted(naps)
    assert len(server.seen) == 6


@pytest.mark.parametrize("name", ["openai", "gemini"])
def test_a_slow_answer_is_a_timeout(server: Script, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    good = (200, candidate("x = 1")) if name == "gemini" else GOOD
    server.steps = ["slow", good]
    provider, _ = make(server, monkeypatch, name, request_timeout=0.5)
    assert provider.generate(PLAN).requests == 2


@pytest.mark.parametrize(
    "body", [b"<html>busy</html>", b"", b"{}", b"[1, 2]", json.dumps(chat(None)).encode(), b'{"choices": []}']
)
def test_garbage_is_a_failed_attempt(server: Script, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    server.steps = [(200, body)]
    provider, _ = make(server, monkeypatch)
    with pytest.raises(ProviderError):
        provider.generate(PLAN)


@pytest.mark.parametrize(("name", "status"), [("openai", 401), ("openai", 404), ("gemini", 403)])
def test_a_refused_key_stops_the_run(server: Script, monkeypatch: pytest.MonkeyPatch, name: str, status: int) -> None:
    server.steps = [(status, {"error": {"message": f"wrong key {KEY}", "code": status, "status": "NO"}})]
    provider, _ = make(server, monkeypatch, name)
    with pytest.raises(TargetError) as caught:
        provider.generate(PLAN)
    assert KEY not in str(caught.value)
    assert len(server.seen) == 1


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch, server: Script) -> None:
    provider, naps = make(server, monkeypatch, "local")
    server.shutdown()
    server.server_close()
    with pytest.raises(ProviderError, match="no connection"):
        provider.generate(PLAN)
    assert len(naps) == 5


@pytest.mark.parametrize(("name", "path"), [("openai", "/v1/chat/completions"), ("gemini", "/v1")])
def test_no_model_needs_to_be_named(server: Script, monkeypatch: pytest.MonkeyPatch, name: str, path: str) -> None:
    for variable in ("OPENAI_MODEL", "GEMINI_MODEL"):
        monkeypatch.delenv(variable, raising=False)
    server.steps = [(200, candidate("x = 1")) if name == "gemini" else GOOD]
    provider, _ = make(server, monkeypatch, name, llm_model="")
    provider.generate(PLAN)
    default = settings.DEFAULT_MODELS[name]
    assert server.seen[0]["path"].startswith(path)
    assert default.name in (server.seen[0].get("model") or server.seen[0]["path"])
    assert len(default.since.split("-")) == 3


def test_a_local_server_says_its_model(server: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    server.steps = [GOOD]
    provider, _ = make(server, monkeypatch, "local", llm_model="")
    provider.generate(PLAN)
    assert server.seen[0]["model"] == "served"
    server.shutdown()
    server.server_close()
    with pytest.raises(TargetError, match="names no model"):
        make(server, monkeypatch, "local", llm_model="")


@pytest.mark.parametrize("name", ["openai", "gemini"])
def test_a_rejected_answer_is_part_of_the_next_request(
    server: Script, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    server.steps = [(200, candidate("x = 1")) if name == "gemini" else GOOD]
    provider, _ = make(server, monkeypatch, name)
    provider.generate(PLAN, Feedback("my answer", "missing operators", "no F.silu", ("F.silu",)))
    sent = json.dumps(server.seen[0])
    assert sent.index("my answer") < sent.index("Your answer was rejected (missing operators): no F.silu")
    assert "must be called in forward, and were not: F.silu" in sent


def test_a_plugin_is_a_provider_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine-1.dist-info").mkdir()
    (tmp_path / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    points = "[rocm_overlay.synth_providers]\nmine = mine_provider:make\nbroken = mine_provider:gone\n"
    (tmp_path / "mine-1.dist-info" / "entry_points.txt").write_text(points)
    (tmp_path / "mine_provider.py").write_text(
        "from rocm_overlay.synth.providers import Reply\n\n\nclass Mine:\n"
        "    def generate(self, plan, feedback=None):\n        return Reply(plan.label)\n\n\n"
        "def make(settings):\n    return Mine()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert settings.provider_names()[-2:] == ["broken", "mine"]
    made = providers.make(settings.make(model_name="mine"), LISTS)
    assert made.generate(PLAN).text == PLAN.label
    with pytest.raises(UsageError, match=r"provider broken \(mine_provider:gone\) cannot be loaded"):
        providers.make(settings.make(model_name="broken"), LISTS)


def test_the_pace_is_kept() -> None:
    now, naps = [0.0], []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += seconds

    pace = Pace(30.0, sleep, lambda: now[0])
    for _ in range(3):
        pace.wait()
    assert naps == [2.0, 2.0]


def test_pauses_grow_and_are_bounded() -> None:
    naps: list[float] = []

    def fail() -> None:
        raise Transient("down")

    with pytest.raises(ProviderError):
        Retry(Pace(0.0), 12, naps.append).call(fail)
    assert max(naps) <= 60.0
    assert (retry_after("3"), retry_after(None), retry_after("soon")) == (3.0, None, None)


def test_a_run_against_a_server(server: Script, tmp_path: Path) -> None:
    """A model that mostly does what it is asked for: its programs are kept, the rest is rejected by category."""
    wrong = ["I cannot.", f"```python\nimport os\n{program(name='Evil')}```", f"```python\n{program(name='Other')}```"]

    def answer(count: int) -> dict[str, Any]:
        asked = server.seen[count - 1]["messages"]
        return chat(wrong[count % 3] if len(asked) == 2 and count % 2 else written(asked[1]["content"], count))

    server.steps = [(429, ERROR, ("retry-after", "0")), (200, answer)]
    arguments = ("num_total_samples=6", "num_worker=1", "compile_backend=none", "max_retries=3", "llm_model=m")
    done = synth(
        "parallel", "model_name=local", f"base_url={server.url}/v1", *arguments, f"output_dir={tmp_path}", "--json",
        "price_in=1000000", cwd=tmp_path, OPENAI_API_KEY=KEY,
    )  # fmt: skip
    assert done.code == 0, done.err
    stats = done.json()["stats"]
    assert stats["valid"] == len(list(tmp_path.glob("SynthModel_*.py"))) == 6
    assert stats["requests"] == len(server.seen)
    assert stats["tokens"]["input"] == 100 * (len(server.seen) - 1)
    assert stats["cost"] == pytest.approx(stats["tokens"]["input"])
    assert set(stats["categories"]) == {"missing operators", "policy", "syntax"}
    assert sum(stats["missing"].values()) > 0
    assert sum(tried - passed for passed, tried in stats["operators"].values()) > 0
    for record in journal(tmp_path):
        assert set(record["attempts"][-1]["requested"]) <= set(record["operators"])
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in done.out + done.err + kept


def written(prompt: str, seed: int) -> str:
    """Do what a prompt asks for: the program of the sampler for the operators that it names."""
    lists: dict[str, tuple[catalogue.Operator, ...]] = {}
    for kind in ("core", "compound", "supporting"):
        line = next((one for one in prompt.splitlines() if one.startswith(f"- {kind}")), ": ")
        known = {one.name: one for one in LISTS.operators[kind]}
        lists[kind] = tuple(known[name] for name in line.partition(": ")[2].split(", ") if name)
    return f"Here:\n```python\n{compose(Plan(seed, **lists), LISTS).source}```"
