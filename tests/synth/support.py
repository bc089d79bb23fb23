"""Small programs and runs of the command that several test files need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def program(
    body: str = "return x + self.proj(x)", init: str = "self.proj = nn.Linear(8, 8)", name: str = "Small"
) -> str:
    """A program of good form with this statement in forward (and this one in __init__)."""
    lines = [f"        {line}" for line in body.splitlines()]
    return (
        "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n\n\n"
        f"class SynthModel_{name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {init}\n\n"
        "    def forward(self, x):\n" + "\n".join(lines) + "\n\n\n"
        "def get_inputs():\n    return [torch.randn(2, 4, 8)]\n\n\ndef get_init_inputs():\n    return [], {}\n"
    )


@dataclass
class Done:
    """What a run of the command left."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        return json.loads(self.out)  # type: ignore[no-any-return]


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: this checkout first, no keys of the machine."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL", "_MODEL"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "installer")])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def command(*arguments: object) -> list[str]:
    """The command line of `overlay synth`."""
    return [sys.executable, "-m", "rocm_overlay.synth", *map(str, arguments)]


def synth(*arguments: object, cwd: Path | None = None, **more: str) -> Done:
    """Run `overlay synth` in a process of its own."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, cwd=cwd, env=environment(**more), timeout=300
    )
    return Done(done.returncode, done.stdout, done.stderr)


def journals(folder: Path) -> list[Path]:
    """The journals of a folder."""
    return sorted((folder / ".synth").glob("*.jsonl"))


def journal(folder: Path) -> list[dict[str, Any]]:
    """The slots that the journals of a folder hold."""
    return [json.loads(line) for path in journals(folder) for line in path.read_text().splitlines()[1:]]


def serve() -> Iterator[Script]:
    """Run a server for a test."""
    made = Script()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.released.set()
    made.shutdown()
    made.server_close()


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
    def do_GET(self) -> None:
        data = json.dumps({"object": "list", "data": [{"id": "served", "object": "model", "created": 1}]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

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


def chat(text: str | None) -> dict[str, Any]:
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [message], "usage": usage}


def plan_of(lists: Any, made: Any, number: int) -> Any:
    """The plan of a slot."""
    from rocm_overlay.synth.pipeline import plan_for

    return plan_for(lists, made, number)
