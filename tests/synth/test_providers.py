"""The clients against a real server on the loopback that answers well, with garbage, 429, 500, and slowly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.install.transaction.errors import TargetError
from rocm_overlay.synth import providers, settings
from rocm_overlay.synth.providers.base import Pace, ProviderError, Retry, Transient, retry_after
from rocm_overlay.synth.sampler import catalogue
from rocm_overlay.synth.sampler.plan import Counts, sample

from .support import program, synth

PLAN = sample(catalogue.load(), Counts((1, 1), (1, 1), (2, 2)), 5)
KEY = "sk-never-shown"


class Script(ThreadingHTTPServer):
    """Answers one step per request: a status and a body, or a number of seconds to wait. The last step stays."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: list[Any] = []
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.lock = threading.Lock()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Script)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.seen.append({"path": self.path, **body})
            server.keys.append(self.headers.get("authorization", "") + self.headers.get("x-goog-api-key", ""))
            step = server.steps.pop(0) if len(server.steps) > 1 else server.steps[0]
        if step == "slow":
            server.released.wait(10)
            return
        status, answer, *headers = step
        if callable(answer):
            answer = answer(len(server.seen))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Script]:
    made = Script()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.released.set()
    made.shutdown()
    made.server_close()


def chat(text: str | None) -> dict[str, Any]:
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [message], "usage": usage}


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
    made = providers.make(settings.make(model_name=name, llm_model="m", base_url=url, **more))
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
    if name == "openai":
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
    """Good programs are kept, prose and hostile ones are rejected by category, the key is nowhere."""
    bodies = [f"y = self.proj(x)\nreturn x + torch.{name}(y)" for name in ("sin", "cos", "tanh", "erf", "atan", "exp")]
    texts = [f"Here:\n```python\n{program(body, name=f'P{i}')}```" for i, body in enumerate(bodies)]
    texts += ["I cannot.", f"```python\nimport os\n{program(name='Evil')}```", texts[0]]
    server.steps = [(429, ERROR, ("retry-after", "0")), (200, lambda count: chat(texts[count % len(texts)]))]
    arguments = ("num_total_samples=6", "num_worker=2", "compile_backend=none", "max_retries=9", "llm_model=m")
    done = synth(
        "parallel", "model_name=local", f"base_url={server.url}/v1", *arguments, f"output_dir={tmp_path}", "--json",
        "price_in=1000000", cwd=tmp_path, OPENAI_API_KEY=KEY,
    )  # fmt: skip
    assert done.code == 0, done.err
    stats = done.json()["stats"]
    assert stats["valid"] == len(list(tmp_path.glob("SynthModel_P*.py"))) == 6
    assert stats["requests"] == len(server.seen)
    assert stats["tokens"]["input"] == 100 * (len(server.seen) - 1)
    assert stats["cost"] == pytest.approx(stats["tokens"]["input"])
    assert set(stats["categories"]) <= {"duplicate", "policy", "structure", "syntax"}
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in done.out + done.err + written
