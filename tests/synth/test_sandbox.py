"""Hostile and broken programs: contained, and reported by name. What they would do is small, in case it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.executor import Executor
from rocm_overlay.synth.sandbox.pool import Limits, Setup, job, make_executor

from .support import program

LIMITS = Limits(timeout=20.0, memory=1 << 30)
AUDIT = ["audit", "kernel"]
KERNEL = ["kernel"]


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    made = make_executor("process", 1, Setup())
    yield made
    made.close()


def ask(pool: Executor, body: str, layers: list[str] | None = None, limits: Limits = LIMITS, **more: Any) -> Any:
    source = program(body)
    layers = layers or ["builtins", "audit", "kernel"]
    return pool.submit(job("SynthModel_Small", source, limits, layers=layers, **more)).result()


HOSTILE = {
    "os.system": ("import os\nos.system('touch {mark}')\nreturn x", "import os", "os.system"),
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)\nreturn x", "import socket", "socket."),
    "write": ("with open('{mark}', 'w') as f:\n    f.write('x')\nreturn x", "open", "open {mark} for writing"),
    "remove": ("import os\nos.remove('{kept}')\nreturn x", "import os", "os.remove {kept}"),
    "fork": ("import os\nfor _ in range(20):\n    os.fork()\nreturn x", "import os", "os.fork"),
    "subprocess": (
        "import subprocess\nsubprocess.run(['touch', '{mark}'])\nreturn x",
        "import subprocess",
        "subprocess",
    ),
    "kill": ("import os\nos.kill({pid}, 9)\nreturn x", "import os", "os.kill"),
    "ctypes": ("import ctypes\nctypes.CDLL('libc.so.6').fork()\nreturn x", "import ctypes", "ctypes.dlopen"),
}


def _written(text: str, folder: Path) -> str:
    for word, value in (("mark", folder / "mark"), ("kept", folder / "kept"), ("pid", os.getpid())):
        text = text.replace(f"{{{word}}}", str(value))
    return text


@pytest.mark.parametrize("name", HOSTILE)
def test_each_layer_contains_what_is_hostile_and_names_it(pool: Executor, name: str, tmp_path: Path) -> None:
    body, imported, event = HOSTILE[name]
    (tmp_path / "kept").write_text("kept")
    first = ask(pool, _written(body, tmp_path))
    assert not first["ok"]
    assert imported in first["message"]
    second = ask(pool, _written(body, tmp_path), AUDIT)
    assert second["category"] == "hostile"
    assert _written(event, tmp_path) in second["message"]
    # Even with both Python layers away the kernel refuses; a program that swallows the error gains nothing.
    ask(pool, _written(body, tmp_path), KERNEL)
    assert not (tmp_path / "mark").exists()
    assert (tmp_path / "kept").read_text() == "kept"


def test_an_attempt_is_told_even_if_the_error_is_swallowed(pool: Executor, tmp_path: Path) -> None:
    body = f"import os\ntry:\n    os.system('touch {tmp_path}/mark')\nexcept BaseException:\n    pass\nreturn x"
    answer = ask(pool, body, AUDIT)
    assert (answer["ok"], answer["category"]) == (False, "hostile")
    assert "os.system" in answer["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import socket\nsocket.socket()\nreturn x", "Operation not permitted"),
        ("import os\nos.fork()\nreturn x", "Operation not permitted"),
        ("open('/dev/null', 'w')\nreturn x", "Operation not permitted"),
        ("import os\nos.execv('/bin/true', ['true'])\nreturn x", "Operation not permitted"),
    ],
)
def test_the_kernel_refuses_by_itself(pool: Executor, body: str, said: str) -> None:
    answer = ask(pool, body, KERNEL)
    assert not answer["ok"]
    assert said in answer["message"]


def test_an_endless_loop_is_a_timeout(pool: Executor) -> None:
    answer = ask(pool, "while True:\n    x = x + 1", limits=Limits(timeout=1.0))
    assert answer["category"] == "timeout"
    assert ask(pool, "return x + self.proj(x)")["ok"]


def test_twenty_gigabytes_are_refused(pool: Executor) -> None:
    assert ask(pool, "return x + torch.ones(5_000_000_000).sum()")["category"] == "memory"
    assert ask(pool, "return [0] * 2_600_000_000")["category"] == "memory"


@pytest.mark.parametrize(
    ("body", "category", "said"),
    [
        ("return x @ x", "shape", "forward: RuntimeError"),
        ("return x / 0.0", "non-finite", "NaN or infinity"),
        ("return torch.rand(3)[0].item()", "structure", "a result is float"),
        ("return x[:, :0]", "structure", "empty"),
        ("self.n = getattr(self, 'n', 0) + 1\nreturn x * self.n", "nondeterministic", "differ"),
        ("raise SystemExit(0)", "runtime", "SystemExit"),
        ("return undefined", "runtime", "NameError"),
    ],
)
def test_broken_programs_have_a_category(pool: Executor, body: str, category: str, said: str) -> None:
    answer = ask(pool, body)
    assert (answer["ok"], answer["category"]) == (False, category), answer
    assert said in answer["message"]


def test_a_crash_of_the_interpreter_is_told(pool: Executor) -> None:
    answer = ask(pool, "import os\nos._exit(3)", KERNEL)
    assert (answer["category"], "exit status 3" in answer["message"]) == ("crash", True)
    assert ask(pool, "import os\nos.abort()", KERNEL)["category"] == "crash"
    assert ask(pool, "return x + self.proj(x)")["ok"]


def test_a_program_cannot_answer_for_itself(pool: Executor) -> None:
    forged = b'{"ok": true, "token": "x"}' + bytes([10])
    write = "import os\nfor fd in range(3, 64):\n    try:\n"
    write += f"        os.write(fd, {forged!r})\n    except OSError:\n        pass\n"
    assert ask(pool, write + "raise ValueError('x')", KERNEL)["category"] == "runtime"
    assert ask(pool, write + "os._exit(0)", KERNEL)["category"] == "crash"
    assert ask(pool, "return x + self.proj(x)")["ok"]


def test_compiled_is_compared_with_eager() -> None:
    made = make_executor("process", 1, Setup(backend="aot_eager"))
    try:
        assert ask(made, "return x + self.proj(x)", backend="aot_eager")["compile_seconds"] > 0
        answer = ask(made, "return x * (2.0 if torch.compiler.is_compiling() else 1.0)", backend="aot_eager")
        assert answer["category"] == "mismatch"
    finally:
        made.close()


@pytest.mark.full
def test_inductor_runs_in_its_own_limits(tmp_path: Path) -> None:
    made = make_executor("process", 1, Setup(backend="inductor"))
    try:
        assert ask(made, "return x + F.silu(self.proj(x)).softmax(-1)", backend="inductor")["ok"]
        for body in (f"open('{tmp_path}/mark', 'w')\nreturn x", "import socket\nsocket.socket()\nreturn x"):
            assert not ask(made, body, KERNEL, backend="inductor")["ok"]
        assert list(tmp_path.iterdir()) == []
    finally:
        made.close()


def test_no_key_reaches_a_program(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    made = make_executor("process", 1, Setup())
    try:
        body = "import os\nassert 'OPENAI_API_KEY' not in os.environ\nreturn x"
        assert ask(made, body, KERNEL)["ok"]
    finally:
        made.close()
