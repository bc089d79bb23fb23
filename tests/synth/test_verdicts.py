"""A server on the loopback that plays back answers of all kinds; each gets the verdict that is right for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rocm_overlay.errors import TargetError
from rocm_overlay.executor import Executor
from rocm_overlay.synth import kernelbench, providers, settings
from rocm_overlay.synth.pipeline import Judge, Outcome
from rocm_overlay.synth.sampler import catalogue
from rocm_overlay.synth.sampler.plan import Plan
from rocm_overlay.synth.sandbox.pool import Setup, make_executor

from .support import Script, chat, serve

LISTS = catalogue.load()
NAMES = {one.name: one for kind in ("core", "compound", "supporting") for one in LISTS.operators[kind]}
ASKED = Plan(1, (NAMES["nn.Linear"],), (NAMES["SwiGLU"],), (NAMES["F.silu"], NAMES["torch.add"]))
TESTED = Plan(2, (NAMES["nn.Linear"],), (), (NAMES["torch.mul"], NAMES["nn.LeakyReLU"]))
HEAD = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n\n\n"
SWIGLU = LISTS.helpers["SwiGLU"].code + "\n\n\n"
TAIL = "\n\n\ndef get_inputs():\n    return [torch.randn(2, 4, 8)]\n\n\ndef get_init_inputs():\n    return [], {}\n"
INIT = "self.proj = nn.Linear(8, 8)\nself.mlp = SwiGLU(8, 16)"
BODY = "h = F.silu(self.proj(x))\nreturn torch.add(self.mlp(h), x)"


def indented(text: str) -> str:
    return "\n".join(f"        {line}" for line in text.splitlines())


def code(
    body: str = BODY, init: str = INIT, name: str = "SynthModel_X", head: str = HEAD + SWIGLU, tail: str = TAIL
) -> str:
    """A whole program; the default holds everything that ASKED asks for."""
    main = f"class {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n{indented(init)}\n\n"
    return f"{head}{main}    def forward(self, x):\n{indented(body)}{tail}"


def fenced(text: str) -> str:
    return f"```python\n{text}```"


def body(text: str, **more: str) -> str:
    """The right program with another statement before its last one."""
    first, last = BODY.splitlines()
    return fenced(code("\n".join([first, text, last]), **more))


STUB = """class SwiGLU(nn.Module):
    def __init__(self, a, b):
        super().__init__()

    def forward(self, x):
        return x


"""
SEQUENTIAL = "self.net = nn.Sequential(nn.Linear(8, 8), SwiGLU(8, 16))"
LOOP = "self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])\nself.mlp = SwiGLU(8, 16)"
LOOPED = "y = x\nfor block in self.blocks:\n    y = F.silu(block(y))\nreturn self.mlp(y) + x"
WITH_SIZE = (
    code(init="self.proj = nn.Linear(dim, dim)\nself.mlp = SwiGLU(dim, 2 * dim)")
    .replace(
        "def __init__(self):\n        super().__init__()\n        self.proj",
        "def __init__(self, dim):\n        super().__init__()\n        self.proj",
    )
    .replace("return [], {}", 'return [], {"dim": 8}')
)
PART = """class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x):
        return F.silu(self.a(x))


"""
OTHERS = code("return self.b(self.a(x))", "self.a = nn.Linear(8, 8)\nself.b = nn.LayerNorm(8)", head=HEAD)
LEVEL_2 = code(
    "x = self.proj(x)\nx = x * 3.0\nx = self.act(x)\nreturn x",
    "self.proj = nn.Linear(8, 8)\nself.act = nn.LeakyReLU(0.1)",
    head=HEAD,
)
PARTED = code(
    "return self.mlp(self.part(x)) + x", "self.part = Part()\nself.mlp = SwiGLU(8, 16)", head=HEAD + SWIGLU + PART
)
NO_SILU = code("return torch.add(self.mlp(self.proj(x)), x)")
NO_LINEAR = code("h = F.silu(x)\nreturn torch.add(self.mlp(h), x)")
UNUSED = body("unused = self.proj(h)").replace("F.silu(self.proj(x))", "F.silu(x)")
NO_FORWARD = code().replace(f"    def forward(self, x):\n{indented(BODY)}", "").replace("X(nn.Module)", "X(SwiGLU)")
NUMBER = code("return self.mlp(torch.add(F.silu(self.proj(x)), x)).sum().item()")
UNSTEADY = code().replace("torch.randn(2, 4, 8)", "torch.randn(2, int(torch.randint(2, 99, (1,))), 8)")
CUT = code()[: code().index("return [torch")] + "return [torch.randn("
TWO_FACED = "h = h * (2.0 if torch.compiler.is_compiling() else 1.0)"
COUNTED = "self.n = getattr(self, 'n', 0) + 1\nh = h * self.n"

# (what it is, the answer, the category that is right, what the message says)
ANSWERS: list[tuple[str, str, str, str]] = [
    ("right", fenced(code()), "", ""),
    ("prose around", f"Sure! Here it is:\n\n{fenced(code())}\n\nIt branches and joins.", "", ""),
    ("no fence", code(), "", ""),
    ("fence without a language", f"```\n{code()}```", "", ""),
    ("several blocks", f"```bash\npip install torch\n```\n{fenced(code())}\n```\nx = 1\n```", "", ""),
    ("several classes", fenced(PARTED), "", ""),
    ("inside Sequential", fenced(code("return F.silu(self.net(x)) + x", SEQUENTIAL)), "", ""),
    ("by sign and method", fenced(code("h = F.silu(self.proj(x))\nreturn self.mlp(h).add(x)")), "", ""),
    ("in a loop", fenced(code(LOOPED, LOOP)), "", ""),
    ("arguments of the constructor", fenced(WITH_SIZE), "", ""),
    ("another name after SynthModel", fenced(code(name="SynthModel_Conv2d_Conv2d_strided")), "", ""),
    ("more than was asked for", body("h = torch.tanh(h)"), "", ""),
    ("other operators", fenced(OTHERS), "missing operators", "F.silu, SwiGLU, torch.add"),
    ("one is missing", fenced(NO_SILU), "missing operators", "call F.silu"),
    ("made and not called", fenced(NO_LINEAR), "missing operators", "call nn.Linear"),
    ("called for nothing", UNUSED, "missing operators", "call nn.Linear"),
    ("an empty class of the name", fenced(code(head=HEAD + STUB)), "missing operators", "call SwiGLU"),
    ("wrong name", fenced(code(name="Net")), "structure", "classes: SwiGLU, Net"),
    ("no get_inputs", fenced(code().replace("get_inputs", "inputs")), "structure", "no function get_inputs"),
    ("no forward", fenced(NO_FORWARD), "structure", "no forward"),
    ("no tensor comes back", fenced(NUMBER), "structure", "float"),
    ("inputs that change", fenced(UNSTEADY), "structure", "second time"),
    ("syntax error", fenced(code("return x +")), "syntax", "SyntaxError"),
    ("cut off in the block", fenced(code())[:-40], "syntax", "cut off"),
    ("cut off without a fence", CUT, "syntax", "never closed"),
    ("refusal", "I cannot help with that.", "syntax", "SyntaxError"),
    ("imports os", fenced("import os\n" + code()), "policy", "import os"),
    ("opens a file", body("open('/etc/passwd')"), "policy", "use of open"),
    ("talks to a network", fenced("import urllib.request\n" + code()), "policy", "import urllib.request"),
    ("loads from a hub", body("torch.hub.load('a/b', 'c')"), "policy", "torch.hub"),
    ("hides an import", body("__import__('socket')"), "policy", "__import__"),
    ("hangs", body("while True:\n    h = h + 0.0"), "timeout", "limit"),
    ("takes all memory", body("h = h + torch.ones(5_000_000_000).sum()"), "memory", "memory"),
    ("shapes that do not fit", body("h = h @ h"), "shape", "forward"),
    ("not finite", body("h = h / 0.0"), "non-finite", "NaN"),
    ("different every time", body(COUNTED), "nondeterministic", "differ"),
    ("unknown name", body("h = undefined(h)"), "runtime", "NameError"),
    ("compiled it does something else", body(TWO_FACED), "mismatch", "against eager"),
    ("compiled it fails", body("h = h.view(3, 7) if torch.compiler.is_compiling() else h"), "compile", "aot_eager"),
]  # fmt: skip
ERROR = {"error": {"message": "no", "code": 500}}
RIGHT = (200, chat(fenced(code())))
# (what it is, what the server does, category, message, pauses that the client makes)
SERVERS: list[tuple[str, list[Any], str, str, int]] = [
    ("429, then right", [(429, ERROR, ("retry-after", "3")), RIGHT], "", "", 1),
    ("500 and 503, then right", [(500, ERROR), (503, ERROR, ("retry-after", "1")), RIGHT], "", "", 2),
    ("always 502", [(502, ERROR)], "provider", "status 502", 5),
    ("429 for an hour", [(429, ERROR, ("retry-after", "3600"))], "provider", "3600 s", 0),
    ("400", [(400, ERROR)], "provider", "status 400", 0),
    ("slow, then right", ["slow", RIGHT], "", "", 1),
    ("no JSON", [(200, b"<html>busy</html>")], "provider", "", 0),
    ("JSON cut off", [(200, b'{"id": "1", "choices": [')], "provider", "", 0),
    ("no text", [(200, chat(None))], "provider", "no text", 0),
]


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    made = make_executor("process", 1, Setup("aot_eager"))
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[Script]:
    yield from serve()


def judge(server: Script, executor: Executor) -> tuple[Judge, list[float]]:
    """A judge that asks the server, and the pauses that its client makes."""
    made = settings.make(
        model_name="local", llm_model="m", base_url=f"{server.url}/v1", compile_backend="aot_eager",
        validation_timeout=6.0, request_timeout=1.0,
    )  # fmt: skip
    provider = providers.make(made, LISTS)
    naps: list[float] = []
    provider._retry.sleep = naps.append  # type: ignore[attr-defined]
    problems = kernelbench.Filter("near", 0.8, kernelbench.shipped())
    return Judge(provider, executor, made, LISTS, problems), naps


def test_there_are_enough_answers() -> None:
    assert len(ANSWERS) + len(SERVERS) >= 40
    assert len({name for name, *_ in [*ANSWERS, *SERVERS]}) == len(ANSWERS) + len(SERVERS)


@pytest.mark.parametrize(("what", "answer", "category", "said"), ANSWERS, ids=[one[0] for one in ANSWERS])
def test_each_answer_gets_its_verdict(
    server: Script, executor: Executor, what: str, answer: str, category: str, said: str
) -> None:
    server.steps = [(200, chat(answer))]
    outcome = judge(server, executor)[0].attempt(ASKED)
    assert (outcome.category, said in outcome.message) == (category, True), outcome.message
    if not category:
        assert_named_after_itself(outcome)


def assert_named_after_itself(outcome: Outcome) -> None:
    """The name says what was seen in the program, and the program is called that."""
    assert outcome.program is not None
    assert {"nn.Linear", "SwiGLU", "F.silu", "torch.add"} <= set(outcome.labels["operators"])
    assert "Conv2d" not in outcome.program.name
    assert f"class {outcome.program.name}(nn.Module)" in outcome.program.source
    for word in ("Linear", "SwiGLU", "silu", "add"):
        assert f"_{word}" in outcome.program.name


@pytest.mark.parametrize(
    ("what", "steps", "category", "said", "pauses"), SERVERS, ids=[one[0].replace(" ", "-") for one in SERVERS]
)
def test_each_kind_of_server(
    server: Script, executor: Executor, what: str, steps: list[Any], category: str, said: str, pauses: int
) -> None:
    server.steps = list(steps)
    made, naps = judge(server, executor)
    outcome = made.attempt(ASKED)
    assert (outcome.category, said in outcome.message, len(naps)) == (category, True, pauses), outcome.message
    asked = [float(step[2][1]) for step in steps if step != "slow" and len(step) > 2 and float(step[2][1]) < 600]
    assert set(asked) <= set(naps)


def test_a_refused_key_ends_the_run(server: Script, executor: Executor) -> None:
    server.steps = [(401, ERROR)]
    with pytest.raises(TargetError, match="401"):
        judge(server, executor)[0].attempt(ASKED)


def test_a_problem_of_the_test_set_is_rejected_and_named(server: Script, executor: Executor) -> None:
    server.steps = [(200, chat(fenced(LEVEL_2)))]
    outcome = judge(server, executor)[0].attempt(TESTED)
    assert outcome.category == "quality"
    assert "problem 12 " in outcome.message
    assert "similarity 1.00" in outcome.message


def test_the_same_again_is_a_duplicate(server: Script, executor: Executor) -> None:
    server.steps = [RIGHT, RIGHT, (200, chat(fenced(code(init=INIT.replace("16", "32"), name="SynthModel_Y"))))]
    made, _ = judge(server, executor)
    first = made.attempt(ASKED)
    made.index.note(made.record(first))
    assert made.attempt(ASKED).message.startswith("the text is that of SynthModel_Linear_silu_SwiGLU_add")
    # Other names and other sizes are no other computation.
    assert made.attempt(ASKED).message.startswith("the computation is that of SynthModel_Linear_silu_SwiGLU_add")


def test_the_next_attempt_is_told_what_was_wrong(server: Script, executor: Executor) -> None:
    server.steps = [(200, chat(fenced(OTHERS))), RIGHT]
    made, _ = judge(server, executor)
    first = made.attempt(ASKED)
    assert first.missing == ("F.silu", "SwiGLU", "torch.add")
    assert not made.attempt(ASKED, first.feedback()).category
    roles = [one["role"] for one in server.seen[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert "F.silu, SwiGLU, torch.add" in server.seen[1]["messages"][3]["content"]
    assert server.seen[1]["messages"][2]["content"] == fenced(OTHERS)
