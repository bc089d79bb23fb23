"""Serve a model over HTTP with nothing but the standard library, and let toggles decide what runs.

    overlay install --transformers 4.57
    USE_OPTIMIZED_OPS=1 USE_FUSED_PROJECTIONS=1 python examples/serve.py --model ./model --port 8000
    curl -d '{"tokens": [3, 4, 5], "max_new_tokens": 8}' http://127.0.0.1:8000/generate
    curl http://127.0.0.1:8000/report            # which tier ran each op, and why a better one did not

Token ids in and out, greedy, one request at a time. `--port 0` takes a free port; the first line printed says which.
"""

from __future__ import annotations

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def generate(model: Any, tokens: list[int], max_new_tokens: int) -> list[int]:
    """Greedy continuation of ``tokens``."""
    prompt = torch.tensor([tokens])
    with torch.inference_mode():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens, do_sample=False
        )
    found: list[int] = out[0, len(tokens) :].tolist()
    return found


def report() -> str:
    """What amd_ops did; it is there only where an overlaid file imported it."""
    return str(sys.modules["amd_ops"].report()) if "amd_ops" in sys.modules else "stock: no overlaid file was imported"


class Handler(BaseHTTPRequestHandler):
    model: Any = None

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({"tokens": generate(self.model, asked["tokens"], int(asked.get("max_new_tokens", 8)))})

    def do_GET(self) -> None:
        self.answer({"report": report()})

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder that save_pretrained wrote")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    Handler.model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    with HTTPServer(("127.0.0.1", options.port), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
